"use strict";
// The page is whole without this: it sorts tables, and searches the long ones.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  // an interval goes by its lower end
  const numeric = (text) => /^[-+±<]?\s?[\d,.]+(e[-+]?\d+)?\s*(%|ms|s|[kMG]?B|points?)?(\s+(to|-)\s.*)?$/.test(text);
  const value = (text) => parseFloat(text.replace(/[<,±+]/g, "")) * ({ kB: 1e3, MB: 1e6, GB: 1e9 }[text.slice(-2)] || 1);
  if (body.rows.length > 2) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const text = (row) => row.cells[column].textContent.trim();
        const compare = (a, b) =>
          numeric(a) && numeric(b) ? value(a) - value(b) : numeric(a) - numeric(b) || a.localeCompare(b);
        body.append(...[...body.rows].sort((a, b) => sign * compare(text(a), text(b))));
      });
    });
  }
  const sign = table.parentElement.previousElementSibling;
  const measure = () => sign.classList.toggle("cut", table.parentElement.scrollWidth > table.parentElement.clientWidth + 1);
  measure(); // at once: an observer is told a frame later
  new ResizeObserver(measure).observe(table.parentElement);
  const controls = sign.previousElementSibling;
  if (!controls?.classList.contains("controls")) continue;
  const [select, search, told] = controls.children;
  const update = () => {
    const words = search.value.toLowerCase();
    let kept = 0;
    for (const row of body.rows) {
      const fits = !select.value || row.dataset.sets.split(" ").includes(select.value);
      row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
      kept += !row.hidden;
    }
    told.textContent = `${kept} of ${body.rows.length} rows here`;
  };
  select.addEventListener("change", update);
  search.addEventListener("input", update);
  controls.hidden = false;
  update();
}

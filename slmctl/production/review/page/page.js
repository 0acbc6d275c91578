const card = at("row"), choice = at("choice"), query = at("query"), hits = at("hits");
const token = location.hash.slice(1);
const WHY = {
  uniform: "drawn by chance",
  feedback: "a client found the answer wrong",
  disagreement: "local and general model disagree",
  escalated: "asked of the general model",
  unsure: "the model is unsure",
  suspect: "the label of this training row looks wrong",
  novel: "no training row is like it",
  duplicates: "stands for all rows like it",
};
let task = null; // what /v1/review/task says
let row = null; // on the screen
let editor = null; // of the row: value() and isChanged()
let busy = false;

// Asking

async function send(path, body) {
  const options = { headers: { Authorization: `Bearer ${token}` }, cache: "no-store", credentials: "same-origin", redirect: "error" };
  if (body) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Fault("slmctl review cannot be reached: the last decision does not count. Is it still running?");
  }
  if (response.ok) return response.json();
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    // no body of ours: the status has to do
  }
  throw new Fault(said ? said[0].toUpperCase() + said.slice(1) + "." : `slmctl review answered with status ${response.status}.`);
}

// One request at a time; what it says is shown, and a fault leaves the row as it is.
async function act(path, body, words) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  fault.hidden = true;
  try {
    const state = await send(path, body);
    told.textContent = words;
    show(state);
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    told.textContent = "";
    fault.textContent = clean(error.message);
    fault.hidden = false;
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function decide(answer) {
  if (!row) return;
  const words = answer === null ? "Skipped." : task.kind === "pairs" && PAIR[answer] ? `${PAIR[answer].name}.` : task.kind === "classify" ? `${clean(answer)}.` : answer === row.answer ? "Right." : "Corrected.";
  act("/v1/review/decide", { id: row.id, answer }, words);
}

function accept() {
  if (!row || task.kind === "pairs") return;
  let answer = row.answer;
  if (editor && editor.isChanged()) {
    try {
      answer = editor.value();
    } catch (error) {
      fault.textContent = clean(error.message);
      fault.hidden = false;
      return;
    }
  }
  decide(answer);
}

// The first button says what Enter does now.
function nameAct() {
  at("accept").firstChild.textContent = editor && editor.isChanged() ? "Save" : "Right";
}
choice.addEventListener("input", nameAct);

// A row

function show(state) {
  row = state.row;
  showFigures(state.progress);
  closeSearch();
  editor = null;
  choice.replaceChildren();
  at("messages").replaceChildren();
  at("near").hidden = true;
  for (const id of ["accept", "find", "skip"]) at(id).disabled = !row;
  if (!row) {
    at("why").textContent = "";
    at("messages").append(make("p", "message", `Nothing is left to decide. The decisions are in ${task.file}.`));
    card.focus();
    return;
  }
  at("why").textContent = [WHY[row.chosen] || row.chosen, row.seen && row.seen.replace("T", " ").replace("Z", " UTC")].filter(Boolean).join(" · ");
  const several = row.messages.length > 1;
  for (const turn of row.messages) {
    if (several) at("messages").append(make("p", "said-by", turn.role));
    at("messages").append(make("div", "message", typeof turn.content === "string" ? turn.content : JSON.stringify(turn.content)));
  }
  if (task.kind !== "pairs") choice.append(answers());
  choice.append((KINDS[task.kind] || KINDS.generate)());  // a call is edited as its text
  nameAct();
  if (row.near) showNear();
  scrollTo(0, 0);
  card.focus({ preventScroll: true });
}

function showFigures(progress) {
  at("bar").max = Math.max(1, progress.total);
  at("bar").value = progress.decided;
  const parts = [`${progress.decided.toLocaleString("en")} of ${progress.total.toLocaleString("en")} rows`, `${progress.own} in this session`];
  if (progress.per_hour) parts.push(`${Math.round(progress.per_hour).toLocaleString("en")} rows an hour`);
  at("figures").replaceChildren(...parts.map((part) => make("span", "", part)));
}

// What each side has answered; only what there is.
function answers() {
  const list = make("dl", "answers");
  const add = (name, text, className = "") => text && list.append(make("dt", "", name), make("dd", className, text));
  const sure = [row.confidence !== null && `confidence ${percent(row.confidence)}`, row.p_correct !== null && `chance to be right ${percent(row.p_correct)}`];
  const own = task.kind === "classify" ? row.answer : "";
  const figures = sure.filter(Boolean).join(", ");
  add(row.chosen === "suspect" ? "Label today" : "Model", own || figures, own ? "mine" : "note");
  if (own && figures) list.lastChild.append(make("span", "note", figures));
  add("Proposed", row.proposed);
  add("General model", row.general);
  add("Client", row.client);
  return list;
}

function showNear() {
  const rows = row.near.map((near) => {
    const text = make("th", "", near.text.length > 300 ? `${near.text.slice(0, 299)}…` : near.text);
    text.scope = "row";
    return make("tr", "", text, make("td", "", near.answer.length > 200 ? `${near.answer.slice(0, 199)}…` : near.answer), make("td", "", near.similarity.toFixed(2)));
  });
  at("near").querySelector("tbody").replaceChildren(...rows);
  at("near").hidden = !rows.length;
}

// What a reviewer says of a pair, with its keys; the first one is shown.
const PAIR = {
  left: { name: "Left is better", keys: ["1", "ArrowLeft"] },
  right: { name: "Right is better", keys: ["2", "ArrowRight"] },
  same: { name: "The same", keys: ["3"] },
  neither: { name: "Both bad", keys: ["4"] },
};

// The kinds of task, and pairs of answers

const KINDS = {
  pairs() {
    const parts = aligned(row.left, row.right);
    const side = (name, text, own) => {
      const shown = parts ? parts.filter(([tag]) => tag === "span" || tag === own) : [["span", text]];
      const words = shown.map(([tag, part]) => (tag === "span" ? clean(part) : make("mark", "", part)));
      const answer = make("div", "message", ...(text ? words : [make("span", "note", "No answer.")]));
      const section = make("section", "side", make("h2", "", name), answer);
      section.setAttribute("aria-label", `${name} answer`);
      section.tabIndex = 0;  // which arrows then scroll
      return section;
    };
    const buttons = Object.entries(PAIR).map(([answer, { name, keys }]) => {
      const button = make("button", answer === "left" || answer === "right" ? "" : "quiet", name, make("kbd", "", keys[0]));
      button.type = "button";
      button.id = answer;
      button.addEventListener("click", () => decide(answer));
      return button;
    });
    const note = parts ? [] : [make("p", "note", "Too long to mark what differs.")];
    return make("div", "", make("div", "sides", side("Left", row.left, "del"), side("Right", row.right, "ins")), ...note, make("div", "row", ...buttons));
  },
  classify() {
    const list = make("ul", "options");
    row.options.forEach((option, place) => {
      const bar = make("span", "bar", make("span"));
      bar.firstChild.style.width = `${100 * Math.min(1, Math.max(0, option.probability || 0))}%`;
      bar.classList.toggle("first", option.label === row.answer);
      const button = make("button", option.label === row.answer ? "mine" : "", make("kbd", "", place + 1), make("span", "label", option.label));
      const known = option.probability !== null;
      button.append(known ? bar : make("span"), make("span", "share", known ? percent(option.probability) : ""));
      button.type = "button";
      button.addEventListener("click", () => decide(option.label));
      list.append(make("li", "", button));
    });
    return list;
  },
  extract() {
    if (rounds(row.answer)) return KINDS.generate(); // as the text that it is
    let value = {};
    try {
      value = JSON.parse(row.answer);
    } catch {
      // an answer that was cut off: the fields begin empty
    }
    if (value === null || typeof value !== "object" || Array.isArray(value)) value = {};
    const properties = (task.schema && task.schema.properties) || {};
    const required = (task.schema && task.schema.required) || [];
    const fields = [...new Set([...Object.keys(properties), ...Object.keys(value)])].map((name) => fieldOf(name, properties[name] || {}, value[name], required.includes(name)));
    editor = {
      isChanged: () => fields.some((field) => field.isChanged()),
      value() {
        const whole = {};
        for (const field of fields) {
          const part = field.value();
          if (part !== undefined) whole[field.name] = part;
        }
        return JSON.stringify(whole);
      },
      focus: () => fields[0] && fields[0].input.focus(),
    };
    return make("div", "", ...fields.map((field) => field.element));
  },
  generate() {
    const text = make("textarea");
    text.id = "text";
    text.setAttribute("aria-label", "Answer");
    text.value = row.answer;
    const changes = make("p");
    changes.id = "changes";
    changes.hidden = true;
    text.addEventListener("input", () => {
      changes.hidden = text.value === row.answer;
      changes.replaceChildren(...difference(row.answer, text.value));
    });
    editor = { isChanged: () => text.value !== row.answer, value: () => text.value, focus: () => text.focus() };
    return make("div", "", text, changes);
  },
};

const typesOf = (about) => [about.type || []].flat();

// A field of the form: a flat value as an input, anything else as JSON.
function fieldOf(name, about, value, required) {
  const types = typesOf(about).filter((type) => type !== "null");
  const scalars = ["string", "number", "integer"];
  const flat = types.length === 1 && scalars.includes(types[0]) && (value === undefined || value === null || typeof value !== "object");
  const listed = about.enum ? about.enum.filter((item) => item !== null) : types.length === 1 && types[0] === "boolean" ? [true, false] : null;
  const input = make(listed ? "select" : flat ? "input" : "textarea");
  const asText = value === undefined || value === null ? "" : flat || listed ? String(value) : JSON.stringify(value, null, 1);
  if (listed) {
    input.append(make("option", "", "not stated"), ...listed.map((item) => make("option", "", item === true ? "yes" : item === false ? "no" : item)));
    [...input.options].forEach((option, place) => (option.value = place ? String(listed[place - 1]) : ""));
  } else if (flat) {
    input.type = "text";
    input.autocomplete = "off";
    if (types[0] !== "string") input.inputMode = "decimal";
  } else {
    input.rows = Math.min(8, asText.split("\n").length);
    input.spellcheck = false;
  }
  input.value = asText;
  input.id = `field-${name}`;
  const label = make("label", "", about.title || name, ...(about.description ? [make("small", "", about.description)] : []));
  label.htmlFor = input.id;
  const element = make("div", "field", label, input);
  const isChanged = () => input.value !== asText;
  input.addEventListener("input", () => element.classList.toggle("changed", isChanged()));
  const nothing = () => (typesOf(about).includes("null") || (about.enum || []).includes(null) ? null : required && types[0] === "string" ? "" : undefined);
  return {
    name, element, input, isChanged,
    value() {
      if (!isChanged()) return value;
      const text = input.value.trim();
      if (!text) return nothing();
      if (listed) return listed.find((item) => String(item) === input.value);
      if (flat && types[0] === "string") return input.value;
      if (rounds(text)) throw new Fault(`The field ${about.title || name} has a number of over 15 digits: correct it in a spreadsheet (slmctl review --csv).`);
      if (flat) return Number.isFinite(Number(text)) ? Number(text) : text; // a text that is none is refused by slmctl
      try {
        return JSON.parse(text);
      } catch {
        throw new Fault(`The field ${about.title || name} is not JSON.`);
      }
    },
  };
}

function difference(before, after) {
  const parts = aligned(before, after);
  return parts ? parts.map(([tag, text]) => make(tag, "", text)) : [make("span", "", "Changed; too long to show what.")];
}

// The words that both texts have (span), or the first (del) or the second alone (ins), by their longest common
// subsequence; null for texts that are too long.
function aligned(before, after) {
  const a = before.split(/(\s+)/), b = after.split(/(\s+)/);
  if (a.length * b.length > 4e6) return null;
  const width = b.length + 1;
  const common = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i * width + j] = a[i] === b[j] ? common[(i + 1) * width + j + 1] + 1 : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const parts = [];
  const add = (tag, word) => (parts.length && parts.at(-1)[0] === tag ? (parts.at(-1)[1] += word) : parts.push([tag, word]));
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add("span", b[j++]);
      i++;
    } else if (j === b.length || (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) add("del", a[i++]);
    else add("ins", b[j++]);
  }
  return parts;
}

// The search among all labels

function openSearch() {
  if (!row || task.kind === "pairs") return;
  if (task.kind !== "classify") {
    if (editor) editor.focus();
    return;
  }
  at("search").hidden = false;
  query.value = "";
  listHits();
  query.focus();
}

function closeSearch() {
  at("search").hidden = true;
}

function listHits() {
  const text = query.value.trim().toLowerCase();
  const matching = task.labels.filter((label) => label.toLowerCase().includes(text));
  matching.sort((a, b) => b.toLowerCase().startsWith(text) - a.toLowerCase().startsWith(text));
  hits.replaceChildren(
    ...matching.slice(0, 200).map((label, place) => {
      const item = make("li", "", label);
      item.setAttribute("role", "option");
      item.id = `hit-${place}`;
      item.dataset.place = task.labels.indexOf(label);
      item.addEventListener("click", () => decide(label));
      return item;
    }),
  );
  mark(hits.firstElementChild);
}

function mark(item) {
  for (const each of hits.children) each.setAttribute("aria-selected", String(each === item));
  if (item) {
    query.setAttribute("aria-activedescendant", item.id);
    item.scrollIntoView({ block: "nearest" });
  } else query.removeAttribute("aria-activedescendant");
}

query.addEventListener("input", listHits);
query.addEventListener("keydown", (event) => {
  const marked = hits.querySelector("[aria-selected=true]");
  const moved = { ArrowDown: marked && marked.nextElementSibling, ArrowUp: marked && marked.previousElementSibling }[event.key];
  if (moved) mark(moved);
  else if (event.key === "Enter" && marked) decide(task.labels[Number(marked.dataset.place)]);
  else if (event.key === "Escape") {
    closeSearch();
    card.focus();
  } else if (!event.key.startsWith("Arrow") && event.key !== "Enter") return;
  event.preventDefault();
});

// Keys

const ACTS = { "/": openSearch, e: openSearch, u: () => act("/v1/review/undo", {}, "Undone."), s: () => decide(null) };

document.addEventListener("keydown", (event) => {
  if (!task || at("desk").hidden || event.isComposing || event.target === query) return;
  const field = event.target.closest("input, textarea, select");
  if (field) {
    const sends = event.key === "Enter" && (field.tagName === "INPUT" || event.ctrlKey || event.metaKey);
    if (!sends && event.key !== "Escape") return;
    event.preventDefault();
    if (sends) accept();
    else card.focus();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter") {
    if (event.target.closest("button, a")) return; // which the browser presses itself
    event.preventDefault();
    accept();
  } else if (task.kind === "pairs" && !ACTS[event.key]) {
    const said = Object.keys(PAIR).find((answer) => PAIR[answer].keys.includes(event.key));
    if (!said) return;
    event.preventDefault();
    decide(said);
  } else if (task.kind === "classify" && /^[1-5]$/.test(event.key)) {
    const option = row && row.options[Number(event.key) - 1];
    if (option) decide(option.label);
  } else if (ACTS[event.key]) {
    event.preventDefault();
    ACTS[event.key]();
  }
});

at("accept").addEventListener("click", accept);
at("find").addEventListener("click", openSearch);
at("skip").addEventListener("click", ACTS.s);
at("undo").addEventListener("click", ACTS.u);

// The beginning: the token, the task

async function start() {
  try {
    task = await send("/v1/review/task");
  } catch (error) {
    if (!(error instanceof Fault)) throw error;
    told.textContent = clean(error.message);
    return;
  }
  document.title = `Review · ${clean(task.project)}`;
  at("kind").textContent = clean(`slmctl review · ${task.project} · ${task.file}`);
  at("name").textContent = { classify: "Which label is right?", tag: "Are the labels right?", extract: "Are the fields right?", generate: "Is the answer right?", call: "Is the call right?", pairs: "Which answer is better?" }[task.kind];
  for (const id of ["accept", "find"]) at(id).hidden = task.kind === "pairs";
  at("find").replaceChildren(...(task.kind === "classify" ? ["All labels", make("kbd", "", "/")] : ["Edit", make("kbd", "", "e")]));
  at("desk").hidden = false;
  act("/v1/review/next", {}, "");
}
start();

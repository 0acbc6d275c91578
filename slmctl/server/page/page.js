const form = at("form"), field = at("text"), log = at("log"), result = at("result");
const KEY = "slmctl-key";
let task = null; // what /v1/task says
let turns = []; // of the conversation
let running = null; // the AbortController of the answer that is being written

const bounded = (share) => Math.min(1, Math.max(0, Number(share) || 0));

// Asking

function headers() {
  const found = { "Content-Type": "application/json" };
  if (at("key").value) found.Authorization = `Bearer ${at("key").value}`;
  if (at("sensitive").checked) found["X-Slmctl-Sensitive"] = "true";
  return found;
}

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { headers: headers(), cache: "no-store", credentials: "same-origin", redirect: "error", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error instanceof TypeError && /header|ISO-8859-1|ByteString/i.test(error.message)) {
      throw new Fault("The API key holds characters that no key has.", 401);
    }
    throw new Fault("The server cannot be reached. Is slmctl serve still running?");
  }
  if (!response.ok) throw new Fault(await words(response), response.status);
  return response;
}

async function words(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    // no body in OpenAI's form: the status has to do
  }
  const wait = response.headers.get("Retry-After");
  const again = wait && /^\d+$/.test(wait) ? ` Try again in ${wait} second${wait === "1" ? "" : "s"}.` : " Try again in a moment.";
  const known = {
    401: "The server wants an API key that it knows. Enter it below.",
    403: "This API key may not ask this model.",
    413: "The text is longer than this server takes.",
    429: "The server is busy, or this key has reached its limit." + again,
    503: "The model cannot answer just now." + again,
  }[response.status];
  return [known || (said ? "" : `The server answered with status ${response.status}.`), said].filter(Boolean).join(" ");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const lines = rest.split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

// One answer: each piece is handed over as it comes; what the server says of it comes back at the end.
async function ask(messages, onPiece) {
  running = new AbortController();
  const body = { model: task.name, messages, stream: true, stream_options: { include_usage: true } };
  if (at("length").value) body.max_tokens = Number(at("length").value);
  if (task.kind === "generate") body.temperature = Number(at("temperature").value) || 0;
  const begun = performance.now();
  const response = await send("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal: running.signal });
  const found = { text: "", extra: {}, usage: null, finish: null, model: "", id: response.headers.get("x-request-id") || "" };
  let whole = false;
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") {
        whole = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Fault(chunk.error.message || "The server broke off the answer.");
      Object.assign(found.extra, chunk.slmctl);
      found.usage = chunk.usage || found.usage;
      found.model = chunk.model || found.model;
      for (const choice of chunk.choices || []) {
        found.finish = choice.finish_reason || found.finish;
        if (choice.delta && choice.delta.content) {
          found.text += choice.delta.content;
          onPiece(found.text);
        }
        for (const call of (choice.delta && choice.delta.tool_calls) || []) {
          found.call ??= { name: "", arguments: "" };
          for (const part of ["name", "arguments"]) found.call[part] += (call.function && call.function[part]) || "";
          onPiece(`${found.call.name} ${found.call.arguments}`);
        }
      }
    }
  } catch (error) {
    if (error instanceof Fault || error.name === "AbortError") throw error;
    throw new Fault("The connection broke before the answer was complete.");
  }
  if (!whole) throw new Fault("The connection ended before the answer was complete.");
  found.seconds = found.extra.seconds || (performance.now() - begun) / 1000;
  return found;
}

// Showing

// What the server's reasons mean; one that is not here is shown as it is.
const WHY = {
  "no-policy": "no other model is asked",
  kept: "it is sure enough",
  sensitive: "the text is sensitive, so it stays here",
  doubt: "it is not known whether the text is sensitive, or how sure the model is",
  unsure: "the small model is not sure enough",
  "out-of-scope": "the text is about nothing that the small model was trained for",
  "circuit-open": "the general model keeps failing, and is left alone for a while",
  "generalist-down": "the general model cannot be reached",
  "generalist-slow": "the general model took too long",
  "generalist-busy": "the general model is busy",
  "generalist-error": "the general model refused",
  "generalist-garbage": "the general model's answer made no sense",
};

// Which model answered, why, how sure it is and how fast it was; what the server does not say is left out.
function facts(found) {
  const { route = "", reason = "" } = found.extra;
  const tokens = found.usage && found.usage.completion_tokens;
  const list = make("dl", "facts");
  const add = (name, value) => value && list.append(make("div", "", make("dt", "", name), make("dd", "", value)));
  add("model", found.extra.model || found.model);
  add("answered by", { local: "this server", generalist: "the general model" }[route] || route);
  add("because", Object.hasOwn(WHY, reason) ? WHY[reason] : reason.replace(/[_-]+/g, " "));
  if (typeof found.extra.confidence === "number" && task.kind !== "classify") add("confidence", percent(bounded(found.extra.confidence)));
  const written = task.kind !== "classify" && tokens; // a label is chosen, not written token by token
  if (written) add("speed", `${(tokens / found.seconds).toFixed(1)} tokens/s`);
  add("took", `${found.seconds.toFixed(2)} s` + (written ? ` for ${tokens} token${tokens === 1 ? "" : "s"}` : ""));
  if (found.finish === "length") list.append(make("div", "", make("dd", "", "cut at the longest answer that was allowed")));
  return list;
}

// [label, probability] of every label that the server names, the answer first.
function scores(found) {
  const others = Object.entries(found.extra.labels || {}).filter(([label, share]) => label !== found.text && typeof share === "number");
  others.sort((a, b) => b[1] - a[1]);
  const own = found.extra.confidence;
  return [...(typeof own === "number" ? [[found.text, own]] : []), ...others.slice(0, 4)];
}

function bars(pairs) {
  const grid = make("div", "scores");
  pairs.forEach(([label, share], place) => {
    const bar = make("div", place ? "bar" : "bar first", make("span"));
    const text = percent(bounded(share));
    bar.firstChild.style.width = `${100 * bounded(share)}%`;
    for (const [name, value] of [["role", "meter"], ["aria-valuemin", 0], ["aria-valuemax", 100], ["aria-valuenow", (100 * bounded(share)).toFixed(1)], ["aria-valuetext", text], ["aria-label", `confidence in ${clean(label)}`]]) {
      bar.setAttribute(name, value);
    }
    grid.append(make("div", "label", label), bar, make("div", "share", text));
  });
  return grid;
}

const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// A value of an extracted answer as text, a list, or a table in a table.
function shownValue(value, schema) {
  if (value === null || value === undefined || value === "") return "not stated";
  if (value === true || value === false) return value ? "yes" : "no";
  if (isObject(value)) return fieldsOf(value, schema || {});
  if (!Array.isArray(value)) return String(value);
  if (!value.length) return "none";
  return make("ul", "", ...value.map((one) => make("li", "", shownValue(one, schema && schema.items))));
}

function fieldsOf(value, schema, title) {
  const known = schema.properties || {};
  const names = [...Object.keys(known).filter((name) => name in value || title), ...Object.keys(value).filter((name) => !(name in known))];
  const body = make("tbody");
  for (const name of names) {
    const about = known[name] || {};
    const head = make("th", "", about.title || name);
    head.scope = "row";
    if (about.description) head.append(make("small", "", about.description));
    const shown = shownValue(value[name], about);
    body.append(make("tr", "", head, make("td", shown === "not stated" || shown === "none" ? "none" : "", shown)));
  }
  const table = make("table", "", ...(title ? [make("caption", "", title)] : []), body);
  return table;
}

// The places of the values in a document, each with the text around it.
function places(list) {
  const rows = list.map(({ path, value, page, around, conflict }) => {
    const title = make("dt", "", `${path || "answer"}, page ${page}`);
    if (conflict) title.append(make("span", "conflict", " another value that is likely too"));
    const text = clean(around), wanted = clean(String(value));
    const start = path ? text.toLowerCase().indexOf(wanted.toLowerCase()) : -1;
    const said = make("dd", "text");
    if (start < 0) said.append(text);
    else said.append(text.slice(0, start), make("mark", "", text.slice(start, start + wanted.length)), text.slice(start + wanted.length));
    return make("div", "", title, said);
  });
  return rows.length ? [make("h2", "note", "Where it stands"), make("dl", "places", ...rows)] : [];
}

function copyButton(text) {
  const button = make("button", "quiet", "Copy as JSON");
  button.type = "button";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      told.textContent = "Copied.";
    } catch {
      told.textContent = "The browser does not allow copying here: select the text under JSON instead.";
    }
  });
  return button;
}

// A reader's word on an answer: right, or wrong and what would have been right.
function verdict(found) {
  const right = make("button", "quiet", "Right"), wrong = make("button", "quiet", "Wrong");
  const said = make("p", "note");
  said.setAttribute("role", "status");
  const group = make("div", "verdict", make("span", "", "Is this answer right?"), right, wrong, said);
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Is this answer right?");
  const tell = async (word, button) => {
    try {
      await send("/v1/feedback", { method: "POST", body: JSON.stringify({ request_id: found.id, ...word }) });
      for (const other of [right, wrong]) other.setAttribute("aria-pressed", String(other === button));
      said.textContent = word.answer === undefined ? "Thank you, this is noted." : "Thank you, the right answer is noted.";
      return true;
    } catch (error) {
      if (!(error instanceof Fault)) throw error;
      said.textContent = clean(error.message);
      return false;
    }
  };
  for (const button of [right, wrong]) {
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
  }
  right.addEventListener("click", async () => {
    if (await tell({ ok: true }, right)) group.querySelector("form")?.remove();
  });
  wrong.addEventListener("click", async () => {
    if (!(await tell({ ok: false }, wrong)) || group.querySelector("form")) return;
    const better = correction(found, (answer) => tell({ ok: false, answer }, wrong));
    said.before(better);
    better.querySelector("select, textarea").focus();
  });
  return group;
}

// The field for the right answer: the labels, or the answer to correct.
function correction(found, tell) {
  const chooses = task.kind === "classify";
  const field = make(chooses ? "select" : "textarea", "");
  if (chooses) {
    for (const label of task.labels.filter((one) => one !== found.text)) {
      const option = make("option", "", label);
      option.value = label;
      field.append(option);
    }
  } else {
    field.rows = 4;
    field.value = found.text;
  }
  const better = make("form", "better", make("label", "", "What would be right? ", field), make("button", "quiet", "Send the right answer"));
  better.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (field.value.trim() && (await tell(field.value))) better.remove();
  });
  return better;
}

const TASKS = {
  classify(found) {
    return [make("h2", "note", "Category"), make("p", "best", found.text), bars(scores(found))];
  },
  extract(found) {
    let value;
    try {
      value = JSON.parse(found.text);
    } catch {
      return [make("p", "notice warn", "The answer is no whole JSON: it was cut off, or the model is not held to the schema."), make("pre", "text", found.text)];
    }
    if (rounds(found.text)) return [make("pre", "text", found.text), copyButton(found.text)];
    const text = JSON.stringify(value, null, 2);
    const raw = make("details", "", make("summary", "", "JSON"), make("pre", "text", text));
    const labels = () => make("div", "", make("h2", "note", "Labels"), shownValue(value));
    const shown = task.kind === "tag" ? labels() : isObject(value) ? fieldsOf(value, task.schema || {}, "Fields found") : make("pre", "text", text);
    return [shown, raw, copyButton(text)];
  },
  // The function that is called, with its arguments as fields; the raw answer is the call as feedback and files hold it.
  call(found) {
    if (!found.call) return [make("h2", "note", "No function is called"), make("p", "text", found.text)];
    const tool = (task.tools || []).find((one) => one.name === found.call.name) || {};
    const head = [make("h2", "note", "Calls"), make("p", "best", found.call.name)];
    if (tool.description) head.push(make("p", "note", tool.description));
    let value;
    try {
      value = JSON.parse(found.call.arguments);
    } catch {
      return [...head, make("p", "notice warn", "The arguments are no whole JSON: the answer was cut off."), make("pre", "text", found.call.arguments)];
    }
    if (rounds(found.call.arguments)) return [...head, make("pre", "text", found.call.arguments), copyButton(found.call.arguments)];
    const text = JSON.stringify({ name: found.call.name, arguments: value }, null, 2);
    found.text = text;
    const raw = make("details", "", make("summary", "", "JSON"), make("pre", "text", text));
    const fields = isObject(value) && Object.keys(value).length ? fieldsOf(value, tool.parameters || {}, "Arguments") : make("p", "none", "It has no arguments.");
    return [...head, fields, raw, copyButton(text)];
  },
};
TASKS.tag = TASKS.extract;

function card(home) {
  const text = make(["tag", "extract", "call"].includes(task.kind) ? "pre" : "div", "text");
  const shown = make("article", "answer", text);
  shown.setAttribute("aria-busy", "true"); // read out when it is whole, not letter by letter
  home.append(shown);
  return { shown, text };
}

// What happens

function busy(is) {
  at("send").disabled = is;
  at("stop").hidden = !is;
  at("anew").hidden = is || !turns.length;
  told.textContent = is ? "Answering…" : "";
  if (!is) running = null;
}

function complain(error, shown) {
  const stopped = error.name === "AbortError";
  if (shown) shown.append(make("p", "notice warn", stopped ? "Stopped here." : "This answer is not complete."));
  if (stopped) return;
  if (!(error instanceof Fault)) throw error;
  fault.textContent = clean(error.message);
  fault.hidden = false;
  if (error.status === 401) {
    at("access").open = true;
    at("key").focus();
  }
}

// A document as a file part of a message, with the text beside it.
async function withDocument(question, file) {
  const data = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Fault("The browser cannot read this file."));
    reader.readAsDataURL(file);
  });
  const text = question.trim() ? [{ type: "text", text: question }] : [];
  return [{ type: "file", file: { filename: file.name, file_data: data } }, ...text];
}

async function answer(question) {
  const chat = task.kind === "generate";
  fault.hidden = true;
  const [file] = at("file").files;
  const asked = { role: "user", content: question };
  const home = chat ? log : result;
  let said = null;
  if (chat) {
    log.hidden = false;
    said = make("p", "said", question);
    log.append(said);
    field.value = "";
  } else {
    result.replaceChildren();
    result.hidden = false;
  }
  const { shown, text } = card(home);
  let done = "";
  busy(true);
  shown.scrollIntoView({ block: "nearest" });
  try {
    if (file) asked.content = await withDocument(question, file);
    const found = await ask(chat ? [...turns, asked] : [asked], (soFar) => {
      text.textContent = clean(soFar);
      if (chat) shown.scrollIntoView({ block: "end" });
    });
    if (chat) turns.push(asked, { role: "assistant", content: found.text });
    else text.replaceWith(...TASKS[task.kind](found));
    if (found.extra.places) shown.append(...places(found.extra.places));
    shown.append(facts(found));
    if (task.feedback && found.id) shown.append(verdict(found));
    done = "Answered.";
  } catch (error) {
    if (chat && !text.textContent) { // nothing was answered: give the question back
      said.remove();
      field.value = field.value || question;
    }
    complain(error, text.textContent ? shown : null);
    if (!text.textContent) shown.remove();
  } finally {
    shown.removeAttribute("aria-busy");
    busy(false);
    told.textContent = done;
  }
}

function forget() {
  turns = [];
  for (const shown of [log, result]) {
    shown.replaceChildren();
    shown.hidden = true;
  }
  at("anew").hidden = true;
}

function arrange() {
  const names = { classify: "Sorts a text into one category", tag: "Finds the labels that fit a text", extract: "Reads the fields out of a text", generate: "Answers in free text", call: "Calls the function that a text asks for" };
  document.title = `${clean(task.name)} · slmctl`;
  at("name").textContent = clean(task.name);
  at("kind").textContent = ["Served by slmctl", task.version && `version ${clean(task.version)}`].filter(Boolean).join(" · ");
  at("about").textContent = names[task.kind];
  at("api").textContent = `${location.origin}/v1`;
  at("asked").textContent = task.kind === "generate" ? "Message" : "Text";
  at("send").textContent = { classify: "Find the category", tag: "Find the labels", extract: "Read the fields", generate: "Send", call: "Find the function" }[task.kind];
  at("length").max = task.max_tokens;
  at("length").placeholder = `up to ${task.max_tokens}`;
  at("options").hidden = task.kind !== "generate";
  at("labels").hidden = !task.labels.length;
  at("labels").firstElementChild.textContent = `The ${task.labels.length} categories`;
  at("labels").lastElementChild.replaceChildren(...task.labels.map((label) => make("li", "", label)));
  if (task.tools) {
    at("labels").hidden = !task.tools.length;
    at("labels").firstElementChild.textContent = task.tools.length === 1 ? "The function" : `The ${task.tools.length} functions`;
    const about = ({ name, description }) => make("li", "", description ? `${name}: ${description}` : name);
    at("labels").lastElementChild.replaceChildren(...task.tools.map(about));
  }
  at("attach").hidden = !task.documents;
  at("file").value = "";
  field.required = !task.documents;
  form.hidden = false;
  field.focus();
}

// Where several models are served, the one that is chosen.
async function start(name = "") {
  try {
    if (!name) {
      const models = (await (await send("/v1/models")).json()).data.map((model) => model.id);
      at("models").hidden = models.length < 2;
      at("model").replaceChildren(...models.map((id) => make("option", "", id)));
      models.forEach((id, place) => (at("model").options[place].value = id));
    }
    const query = name ? `?model=${encodeURIComponent(name)}` : "";
    task = await (await send(`/v1/task${query}`)).json();
    at("model").value = task.name;
    fault.hidden = true;
    forget();
    arrange();
  } catch (error) {
    at("name").textContent = "slmctl";
    complain(error);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running && (field.value.trim() || at("file").files.length)) answer(field.value);
});
field.addEventListener("dragover", (event) => task.documents && event.preventDefault());
field.addEventListener("drop", (event) => {
  if (!task.documents || !event.dataTransfer.files.length) return;
  event.preventDefault();
  at("file").files = event.dataTransfer.files;
});
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});
at("stop").addEventListener("click", () => running && running.abort());
at("anew").addEventListener("click", () => {
  forget();
  field.focus();
});
at("model").addEventListener("change", () => {
  if (running) running.abort();
  start(at("model").value);
});
at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    sessionStorage.setItem(KEY, at("key").value);
  } catch {
    // a browser that stores nothing: the field itself still holds it
  }
  if (!task) start();
  else told.textContent = "The key is used from now on.";
});
try {
  at("key").value = sessionStorage.getItem(KEY) || "";
} catch {
  // as above
}
start();

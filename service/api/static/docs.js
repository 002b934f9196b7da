/** The page at /docs: the server's own OpenAPI document, to read and to try. */
import { authorization, json } from "./api.js";
import { byId, make } from "./dom.js";
import { explained } from "./explain.js";
import { exampleBody, mentioned, operations, resolved, typeOf } from "./openapi.js";
import { fieldOf, range } from "./schema.js";

const DEEPEST = 3;
const MOST_SHOWN = 20_000;

async function begin() {
  let spec, models;
  try {
    [spec, models] = await Promise.all([json("openapi.json"), json("v1/models")]);
  } catch (error) {
    const { title, message } = explained(error);
    const where = error.status === 401 ? " Enter it in the playground, and come back." : "";
    byId("about").textContent = `${title}. ${message}${where}`;
    return;
  }
  byId("about").textContent = `${spec.info.description.replaceAll("\n", " ").replaceAll("`", "")} Version ${spec.info.version}.`;
  const tags = Map.groupBy(operations(spec), (one) => one.tag);
  for (const [tag, ones] of tags) {
    byId("contents").append(make("h2", {}, tag), ...ones.map((one) => make("a", { href: `#${one.id}` }, `${one.method} ${one.path}`)));
    byId("operations").append(...ones.map((one) => operation(spec, one, models.data)));
  }
  addEventListener("hashchange", unfold);
  unfold();
}

/** Opens the operation that the address names. */
function unfold() {
  const target = byId(location.hash.slice(1));
  if (!(target instanceof HTMLDetailsElement)) return;
  target.open = true;
  target.querySelector("summary").focus();
  target.scrollIntoView();
}

function operation(spec, one, models) {
  const head = make(
    "summary", {}, make("span", { class: `method ${one.method.toLowerCase()}` }, one.method), make("h3", {}, one.path),
    make("span", {}, one.summary),
  );
  const inside = make("div", { class: "inside" }, one.description && make("p", {}, one.description.replaceAll("`", "")));
  if (one.parameters.length) inside.append(make("h4", {}, "In the address"), table(one.parameters.map(parameterRow)));
  if (one.body) inside.append(make("h4", {}, "Body"), fields(spec, resolved(spec, one.body), 0, new Set()));
  const answers = one.answers.map(({ status, description }) => [status, description]);
  inside.append(make("h4", {}, "Answers"), table(answers, ["Status", ""]));
  const isForm = one.method === "POST" && !one.body;
  if (!isForm) inside.append(make("h4", {}, "Try it"), attempt(spec, one, models));
  return make("details", { class: "operation", id: one.id }, head, inside);
}

const parameterRow = (one) => [one.name, typeOf(one.schema ?? {}), one.description ?? ""];

function table(rows, heads = ["Name", "Type", "Meaning"]) {
  const head = make("tr", {}, heads.map((text) => make("th", { scope: "col" }, text)));
  const lines = rows.map((cells) => make("tr", {}, cells.map((cell) => make("td", {}, cell))));
  const body = make("table", {}, make("thead", {}, head), make("tbody", {}, lines));
  return make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" }, body);
}

/** The fields of an object, and behind them the objects that they mention, folded away. */
function fields(spec, schema, depth, above) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, one]) => {
    const field = fieldOf(name, one);
    const standard = one.default !== undefined && one.default !== null && JSON.stringify(one.default);
    const words = [one.description, field && range(field), standard && `${standard} by default`].filter(Boolean).join("; ");
    return [required.has(name) ? [name, " ", make("span", { class: "required" }, "required")] : name, typeOf(one), words];
  });
  const names = new Set(Object.values(schema.properties ?? {}).flatMap(mentioned).filter((name) => !above.has(name)));
  const inner = depth >= DEEPEST ? [] : [...names].map((name) => make(
    "details", { class: "nested" }, make("summary", {}, name),
    fields(spec, spec.components.schemas[name], depth + 1, new Set([...above, ...names])),
  ));
  return make("div", {}, table(rows), inner);
}

/** A form that sends this operation, and shows what comes back. */
function attempt(spec, one, models) {
  const inputs = one.parameters.map(({ name }) => {
    const input = make("input", { id: `${one.id}-${name}`, type: "text", autocomplete: "off" });
    return { name, input, label: make("label", { for: input.id }, name) };
  });
  const body = one.body && make("textarea", { id: `${one.id}-body`, rows: 7, spellcheck: "false" });
  if (body) body.value = JSON.stringify(exampleBody(spec, one.body, one.path, models), null, 2);
  const answer = make("pre", { tabindex: "0", role: "status", "aria-label": "Answer", hidden: true });
  const form = make(
    "form", { class: "try" }, inputs.flatMap(({ label, input }) => [label, input]),
    body && [make("label", { for: body.id }, "JSON"), body],
    make("div", {}, make("button", { type: "submit" }, "Send")), answer,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const path = inputs.reduce((text, { name, input }) => text.replace(`{${name}}`, encodeURIComponent(input.value)), one.path);
    answer.hidden = false;
    answer.textContent = "…";
    answer.textContent = await sent(one.method, path.replace(/^\//, ""), body?.value);
  });
  return form;
}

async function sent(method, path, body) {
  const headers = authorization();
  if (body !== undefined) headers["Content-Type"] = "application/json";
  try {
    const response = await fetch(path, { method, headers, body });
    const text = await response.text();
    const kind = response.headers.get("Content-Type") ?? "";
    const shown = kind.includes("json") ? JSON.stringify(JSON.parse(text), null, 2) : text;
    return `${response.status} ${response.statusText}\n\n${shown.slice(0, MOST_SHOWN)}${shown.length > MOST_SHOWN ? "\n…" : ""}`;
  } catch (error) {
    return `No answer: ${error.message}`;
  }
}

begin();

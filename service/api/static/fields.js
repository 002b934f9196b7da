/** A group of form fields made from descriptions: shown, read, and marked where the server refuses one. */
import { make } from "./dom.js";
import { FieldError, isDefault, range, valueOf } from "./schema.js";

export class Fields {
  #root;
  #prefix;
  #more;
  #fields = [];
  #inputs = new Map();

  /** `more` is what the fields are called that are folded away. */
  constructor(root, prefix, more) {
    this.#root = root;
    this.#prefix = prefix;
    this.#more = more;
  }

  /** Shows these fields, those of `prominent` first and the others folded away. What was set under the same name stays. */
  show(fields, prominent, actions = {}) {
    const kept = this.#set();
    const open = this.#root.querySelector("details")?.open ?? false;
    this.#fields = fields;
    this.#inputs = new Map();
    const rows = new Map(fields.map((field) => [field.name, this.#row(field, kept.get(field.name), actions[field.name])]));
    const first = prominent.filter((name) => rows.has(name));
    const rest = fields.map((field) => field.name).filter((name) => !first.includes(name));
    const pick = (names) => names.map((name) => rows.get(name));
    this.#root.replaceChildren(...pick(first));
    if (rest.length) {
      const summary = make("summary", {}, this.#more, make("span", { class: "count" }, String(rest.length)));
      this.#root.append(make("details", { class: "more", open }, summary, ...pick(rest)));
    }
  }

  /** What differs from the defaults, or is always sent. Throws FieldError. */
  values() {
    const out = {};
    for (const field of this.#fields) {
      const input = this.#inputs.get(field.name);
      if (input.validity.badInput) throw new FieldError(field.name, `${field.name} is a number`);
      const value = valueOf(field, field.kind === "boolean" ? input.checked : input.value);
      if (value !== undefined && (field.always || !isDefault(field, value))) out[field.name] = value;
    }
    return out;
  }

  input(name) {
    return this.#inputs.get(name);
  }

  /** Says at the field what is wrong with it, and takes the reader there. False where there is no such field. */
  refuse(name, message) {
    const input = this.#inputs.get(name);
    if (!input) return false;
    const details = input.closest("details");
    if (details) details.open = true;
    refuseInput(input, message);
    return true;
  }

  clear() {
    for (const input of this.#inputs.values()) acceptInput(input);
  }

  #set() {
    const kept = new Map();
    for (const field of this.#fields) {
      const input = this.#inputs.get(field.name);
      const raw = field.kind === "boolean" ? input.checked : input.value;
      if (raw !== shown(field)) kept.set(field.name, raw);
    }
    return kept;
  }

  #row(field, kept, action) {
    const id = `${this.#prefix}-${field.name}`;
    const allowed = range(field);
    const described = [field.description.replace(/\.$/, ""), allowed && !field.description.includes(allowed) ? allowed : ""].filter(Boolean).join(" · ");
    const input = control(field, id, described ? `${id}-help` : null);
    const fits = kept !== undefined && (field.kind !== "choice" || field.choices.some((choice) => String(choice) === kept));
    const value = fits ? kept : shown(field);
    if (field.kind === "boolean") input.checked = value;
    else input.value = value;
    this.#inputs.set(field.name, input);
    return make(
      "div", { class: "field", data: { kind: field.kind } },
      make("label", { for: id }, field.name.replaceAll("_", " ")),
      make("div", { class: "control" }, input, action),
      described && make("p", { class: "help", id: `${id}-help` }, described),
    );
  }
}

/** What an untouched control holds. */
function shown(field) {
  const value = field.preset ?? field.value;
  if (field.kind === "boolean") return value === true;
  if (value === null) return "";
  return field.kind === "list" ? value.join(", ") : String(value);
}

function control(field, id, help) {
  const common = { id, name: id, "aria-describedby": help, autocomplete: "off" };
  switch (field.kind) {
    case "boolean":
      return make("input", { ...common, type: "checkbox", class: "switch", role: "switch" });
    case "choice": {
      const none = field.value === null ? [make("option", { value: "" }, "auto")] : [];
      return make("select", common, none, field.choices.map((choice) => make("option", { value: String(choice) }, String(choice))));
    }
    case "number":
    case "integer": {
      const step = field.kind === "integer" ? 1 : stepOf(field);
      const bounds = { min: field.min ?? field.above, max: field.max ?? field.below, step };
      const mode = field.kind === "integer" ? "numeric" : "decimal";
      return make("input", { ...common, type: "number", inputmode: mode, placeholder: field.value === null ? "auto" : null, ...bounds });
    }
    default:
      return make("input", { ...common, type: "text", placeholder: field.value === null ? "auto" : null, spellcheck: "false" });
  }
}

/** How far an arrow key goes. */
function stepOf(field) {
  const span = (field.max ?? Infinity) - (field.min ?? field.above ?? 0);
  return span <= 2 ? 0.05 : span <= 40 ? 0.5 : 1;
}

/** Marks an input as refused and focuses it. `role` is the note's, where nothing else tells of the refusal. */
export function refuseInput(input, message, role = null) {
  acceptInput(input);
  const note = make("p", { class: "refusal", id: `${input.id}-refusal`, role }, message);
  input.setAttribute("aria-invalid", "true");
  input.dataset.help = input.getAttribute("aria-describedby") ?? "";
  input.setAttribute("aria-describedby", `${note.id} ${input.dataset.help}`.trim());
  (input.closest(".field") ?? input.parentElement).append(note);
  input.addEventListener("input", () => acceptInput(input), { once: true });
  input.focus();
  for (const part of [note, input]) part.scrollIntoView({ block: "nearest" });
}

export function acceptInput(input) {
  if (input.getAttribute("aria-invalid") !== "true") return;
  document.getElementById(`${input.id}-refusal`)?.remove();
  input.removeAttribute("aria-invalid");
  if (input.dataset.help) input.setAttribute("aria-describedby", input.dataset.help);
  else input.removeAttribute("aria-describedby");
}

/** JSON Schemas as a form needs them. Pure: no page, no server. */

/** A value that is no value of its field; `name` is the field's. */
export class FieldError extends Error {
  constructor(name, message) {
    super(message);
    this.name = "FieldError";
    this.field = name;
  }
}

/** The members of a union, each with what stands around the union. */
function members(schema) {
  const { anyOf, oneOf, allOf, ...around } = schema;
  const inner = anyOf ?? oneOf ?? allOf;
  return inner ? inner.flatMap((one) => members({ ...around, ...one })) : [schema];
}

function kindOf(options) {
  const types = new Set(options.map((one) => (one.enum ? "choice" : one.type)));
  if (types.has("choice")) return "choice";
  if (types.has("number")) return "number";
  if (types.has("integer")) return "integer";
  if (types.has("boolean")) return "boolean";
  if (types.has("array") && !types.has("string")) {
    const list = options.find((one) => one.type === "array");
    const items = [...(list.prefixItems ?? []), ...(list.items ? [list.items] : [])];
    return items.length && items.every((one) => one.type === "number" || one.type === "integer") ? "list" : null;
  }
  return types.has("string") ? "text" : null;
}

/** {name, kind, choices, min, max, above, below, value, description}; null for what a form cannot ask, as an object.
 *  `value` is the default, null where the server decides; a form may begin with a `preset` instead; `above` and `below` are bounds that are not allowed themselves. */
export function fieldOf(name, schema) {
  const options = members(schema).filter((one) => one.type !== "null");
  const kind = kindOf(options);
  if (kind === null) return null;
  const first = (...keys) => {
    for (const one of options) for (const key of keys) if (one[key] !== undefined) return one[key];
    return undefined;
  };
  return {
    name,
    kind,
    choices: kind === "choice" ? options.flatMap((one) => one.enum ?? []) : [],
    min: first("minimum", "ge"),
    max: first("maximum", "le"),
    above: first("exclusiveMinimum", "gt"),
    below: first("exclusiveMaximum", "lt"),
    value: schema.default ?? null,
    description: first("description") ?? "",
  };
}

/** The fields of an object's schema, in its order. */
export const fieldsOf = (schema) =>
  Object.entries(schema.properties ?? {})
    .map(([name, one]) => fieldOf(name, one))
    .filter((field) => field !== null);

/** What is allowed, for people: "1 to 1000", "above 0, at most 100"; empty where everything is. */
export function range(field) {
  if (field.kind === "choice") return "";
  const far = (value) => value === undefined || Math.abs(value) >= 1e9;
  const low = !far(field.min) ? `at least ${field.min}` : !far(field.above) ? `above ${field.above}` : "";
  const high = !far(field.max) ? `at most ${field.max}` : !far(field.below) ? `below ${field.below}` : "";
  if (!far(field.min) && !far(field.max)) return `${field.min} to ${field.max}`;
  return [low, high].filter(Boolean).join(", ");
}

/** What was typed or chosen, as a value; undefined where it says nothing. Whether it is allowed is the server's to say.
 *  Throws FieldError for what cannot be written as JSON of this kind. */
export function valueOf(field, raw) {
  if (field.kind === "boolean") return raw === true;
  if (field.kind === "choice") return field.choices.find((choice) => String(choice) === raw);
  if (field.kind === "text") return raw === "" ? undefined : raw;
  const typed = raw.trim();
  if (typed === "") return undefined;
  if (field.kind === "list") {
    const numbers = typed.split(/[\s,;]+/).filter(Boolean).map(Number);
    if (numbers.some(Number.isNaN)) throw new FieldError(field.name, `${field.name} is numbers, separated by commas`);
    return numbers;
  }
  const value = Number(typed);
  if (!Number.isFinite(value)) throw new FieldError(field.name, `${field.name} is a number`);
  if (field.kind === "integer" && Math.abs(value) > Number.MAX_SAFE_INTEGER) {
    throw new FieldError(field.name, `this page writes integers up to ${Number.MAX_SAFE_INTEGER}`);
  }
  return value;
}

/** Whether a value is the one that the server takes without being told. */
export const isDefault = (field, value) => JSON.stringify(value) === JSON.stringify(field.value);

/** An OpenAPI document, as a page shows it. Pure. */

/** {tag, method, path, id, summary, description, parameters, body, answers} of every operation, in the document's order. */
export function operations(document) {
  return Object.entries(document.paths).flatMap(([path, ways]) =>
    Object.entries(ways).map(([method, way]) => ({
      tag: way.tags?.[0] ?? "Others",
      method: method.toUpperCase(),
      path,
      id: method + path.replaceAll(/\W+/g, "-").replace(/-$/, ""),
      summary: way.summary ?? "",
      description: way.description ?? "",
      parameters: way.parameters ?? [],
      body: way.requestBody?.content?.["application/json"]?.schema ?? null,
      answers: Object.entries(way.responses ?? {}).map(([status, one]) => ({ status, description: one.description })),
    })));
}

/** The schema that a reference stands for; others are themselves. */
export function resolved(document, schema) {
  const name = schema.$ref?.split("/").at(-1);
  return name ? document.components.schemas[name] : schema;
}

/** A type in a few words: `integer`, `string | number[]`, `"a" | "b"`, the name of an object. */
export function typeOf(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const inner = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (inner) {
    const types = new Set(inner.filter((one) => one.type !== "null").map(typeOf));
    if (types.has("number")) types.delete("integer");
    return [...types].join(" | ");
  }
  if (schema.type === "array") return schema.items ? `${bracketed(typeOf(schema.items))}[]` : "array";
  return schema.type ?? "any";
}

const bracketed = (type) => (type.includes(" | ") ? `(${type})` : type);

/** Names of the objects that a schema mentions, itself left out. */
export function mentioned(schema) {
  if (schema.$ref) return [schema.$ref.split("/").at(-1)];
  return [...(schema.anyOf ?? schema.oneOf ?? schema.allOf ?? []), ...(schema.items ? [schema.items] : [])].flatMap(mentioned);
}

/** A body to begin with: what is required, for one of the models that are served. */
export function exampleBody(document, schema, path, models) {
  const model = models.find((one) => (one.kind === "image") === path.includes("images")) ?? models[0];
  const known = {
    model: model?.id ?? "", prompt: "ROMEO:\n", tokens: [72, 105], messages: [{ role: "user", content: "Who are you?" }],
  };
  if (model?.kind === "image") known.prompt = "a large red circle above a small blue square";
  const { required = [], properties } = resolved(document, schema);
  const names = [...new Set([...required, ..."prompt" in properties ? ["prompt"] : [], ..."max_tokens" in properties ? ["max_tokens"] : []])];
  return Object.fromEntries(names.map((name) => [name, known[name] ?? (name === "max_tokens" ? 32 : "")]));
}

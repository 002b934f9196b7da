/** What the server serves: models, the procedures of each, and their parameters with what the model's card says of them. */
import { json } from "./api.js";
import { fieldOf, fieldsOf } from "./schema.js";

/** {models, procedures, request}: cards, procedures by name, and the schema of a request's own fields. Throws ServerError. */
export async function loadCatalogue() {
  const [models, procedures, document] = await Promise.all([json("v1/models"), json("v1/procedures"), json("openapi.json")]);
  return {
    models: models.data,
    procedures: new Map(procedures.data.map((one) => [one.name, one])),
    request: document.components.schemas.GenerateBody.properties,
  };
}

/** The procedures that a model can run, its own default first. */
export function proceduresOf(catalogue, model) {
  const names = [model.default_procedure, ...model.procedures.filter((name) => name !== model.default_procedure)];
  return names.map((name) => catalogue.procedures.get(name)).filter(Boolean);
}

/** The parameters of a procedure on this model: choices and defaults are those of the model's card, which has some for the
 *  rule of its own, where `rule` is no other. `starts` is whether a picture is given to start from. */
export function parametersOf(model, procedure, starts, rule = model.canvas_defaults.rule) {
  return fieldsOf(procedure.parameters).flatMap((field) => {
    const narrowed = narrow(model, procedure, field, starts, rule);
    return narrowed ? [narrowed] : [];
  });
}

function narrow(model, procedure, field, starts, rule) {
  const defaults = model.procedure_defaults;
  if (procedure.name === model.default_procedure && field.name in defaults) field = { ...field, value: defaults[field.name] };
  if (field.name === "guidance" && "guidance" in defaults) field = { ...field, value: defaults.guidance };
  const own = field.name === "rule" || rule === model.canvas_defaults.rule;
  if (own && field.name in model.canvas_defaults) field = { ...field, value: model.canvas_defaults[field.name] };
  switch (field.name) {
    case "block_length": {
      if (!model.block_lengths.length) return field;
      const value = model.block_lengths.length === 1 ? model.block_lengths[0] : field.value;
      return { ...field, kind: "choice", choices: model.block_lengths, value };
    }
    case "drafter":
      // Heads were trained to guess this model: where there are some, they show most.
      return { ...field, choices: model.drafters, preset: model.drafters.includes("heads") ? "heads" : undefined };
    case "rule": {
      const foreign = model.mask_token_id === null ? "remask" : "uniform";
      return { ...field, choices: field.choices.filter((rule) => rule !== foreign) };
    }
    case "guidance": {
      if (model.guidance_input === "no" || !model.guidance_range) return field;
      const where = model.guidance_input === "jumps" ? "; of jumps, " : "; ";
      const [low, high] = model.guidance_range;
      return { ...field, description: `${field.description.replace(/\.$/, "")}${where}${low} to ${high}.` };
    }
    case "reuse_threshold":
      return model.reuses ? field : null;
    case "strength":
      return starts ? { ...field, value: null } : null;
    default:
      return field;
  }
}

const TEXT = ["max_tokens", "n", "seed", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
  "frequency_penalty", "min_tokens", "ignore_eos", "stop", "priority", "deadline_ms"];
const PICTURE = ["size", "n", "seed", "preview_every", "priority", "deadline_ms"];
const USUAL_TOKENS = 240;

/** The request's own fields for this model. `always` marks those that are sent even where they are as they were. */
export function requestFields(catalogue, model) {
  const names = model.kind === "text" ? TEXT : PICTURE;
  return names.map((name) => {
    const field = fieldOf(name, catalogue.request[name]);
    if (name in model.sampling_defaults) return { ...field, value: model.sampling_defaults[name] };
    switch (name) {
      case "seed":
        return { ...field, value: freshSeed(), always: true, description: "the same seed gives the same output" };
      case "max_tokens":
        return { ...field, value: Math.min(USUAL_TOKENS, model.max_model_len - 1), always: true, max: model.max_model_len - 1 };
      case "size":
        return sizes(field, model);
      case "preview_every":
        return { ...field, value: null, description: "evaluations between previews; 0 is none, empty is about ten in all" };
      default:
        return field;
    }
  });
}

function sizes(field, model) {
  const usual = model.sizes[0] ?? null;
  if (model.sizes.length) return { ...field, kind: "choice", choices: model.sizes, value: usual, description: "" };
  return { ...field, value: null, description: model.size_rule ?? field.description };
}

/** One that JavaScript holds exactly, and that is short to read. */
export const freshSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;

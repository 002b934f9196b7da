/** The form: model, prompt, one procedure or two, and what else a request says. */
import { freshSeed, parametersOf, proceduresOf, requestFields } from "./catalogue.js";
import { byId, make, number } from "./dom.js";
import { acceptInput, Fields, refuseInput } from "./fields.js";
import { GivenPicture } from "./given_picture.js";
import { FieldError } from "./schema.js";

const MOST_OUTPUTS = 1024;
const PROMINENT = ["steps", "guidance", "strength", "gamma", "iterations", "drafter", "draft_tokens", "block_length", "rule", "threshold"];
const PROMINENT_REQUEST = ["max_tokens", "temperature", "size", "n", "seed"];
const PREVIEWS = 10;
const EXAMPLES = {
  shakespeare: ["ROMEO:\n", "First Citizen:\nBefore we proceed any further, ", "KING RICHARD:\nMy lord, "],
  shapes: ["a large red circle above a small blue square", "a small green triangle left of a large yellow circle", "a purple square on a black background"],
};
const FIRST = { text: "Once upon a time", image: "a large red circle above a small blue square" };

export class Composer {
  #catalogue;
  #model;
  #prompts = new Map();
  #ways;
  #request = new Fields(byId("request-fields"), "request", "More of the request");
  #picture = new GivenPicture(() => this.#showParameters());

  constructor(catalogue) {
    this.#catalogue = catalogue;
    this.#ways = ["a", "b"].map((letter) => new Way(letter, () => this.#starts));
    byId("model").replaceChildren(...catalogue.models.map((model) => make("option", { value: model.id }, model.id)));
    byId("model").addEventListener("change", () => this.#choose());
    byId("compare").addEventListener("change", () => this.#compare());
    byId("prompt").addEventListener("input", () => acceptInput(byId("prompt")));
    this.#choose();
  }

  get comparing() {
    return byId("compare").checked;
  }

  get model() {
    return this.#model;
  }

  /** What to run: one or two of {procedure, body, automatic}, with one seed. Marks the field and throws FieldError where
   *  something cannot be read. */
  plans() {
    this.clear();
    const ways = this.comparing ? this.#ways : this.#ways.slice(0, 1);
    try {
      const request = this.#request.values();
      if (request.n > MOST_OUTPUTS) throw new FieldError("n", `this page shows at most ${MOST_OUTPUTS} outputs`);
      if (this.comparing) request.seed ??= freshSeed();
      return ways.map((way) => this.#plan(way, request));
    } catch (error) {
      if (error instanceof FieldError) this.refuse(error.field, error.message, error.way ?? 0);
      throw error;
    }
  }

  /** Takes the reader to the field that an error names, which may be a parameter of the way `index`. False where there is none. */
  refuse(param, message, index) {
    const name = (param ?? "").replace(/^procedure\./, "");
    // The field is there to see.
    if (message.startsWith(`${name}: `)) message = message.slice(name.length + 2);
    if (name === "prompt" || name === "input_tokens") refuseInput(byId("prompt"), message);
    else if (name === "negative_prompt" && this.#model.kind === "image") {
      byId("picture").open = true;
      refuseInput(byId("negative"), message);
    } else if (name === "image" && this.#model.kind === "image") {
      byId("picture").open = true;
      refuseInput(byId("picture-file"), message);
    } else if (name === "model") refuseInput(byId("model"), message);
    else return this.#ways[index].refuse(name, message) || this.#request.refuse(name, message);
    return true;
  }

  clear() {
    for (const id of ["prompt", "negative", "picture-file", "model"]) acceptInput(byId(id));
    this.#request.clear();
    for (const way of this.#ways) way.clear();
  }

  get #starts() {
    return this.#model.kind === "image" && this.#picture.url !== null;
  }

  #plan(way, request) {
    const parameters = way.values();
    const body = { model: this.#model.id, prompt: byId("prompt").value, procedure: { name: way.procedure.name, ...parameters }, ...request };
    if (this.#model.kind === "text") return { procedure: way.procedure, body, automatic: false };
    if (byId("negative").value.trim()) body.negative_prompt = byId("negative").value;
    if (this.#picture.url) body.image = this.#picture.url;
    const automatic = !("preview_every" in body);
    if (automatic) body.preview_every = Math.max(1, Math.ceil((parameters.steps ?? way.usualSteps) / PREVIEWS));
    return { procedure: way.procedure, body, automatic };
  }

  #choose() {
    if (this.#model) this.#prompts.set(this.#model.id, byId("prompt").value);
    this.#model = this.#catalogue.models.find((model) => model.id === byId("model").value);
    const { id, kind, signature, parameters_count: size } = this.#model;
    byId("model-help").textContent = `${kind === "text" ? "Text" : "Pictures"}, ${number(size / 1e6, 1)} M parameters: ${signature.join(", ")}`;
    byId("compose").dataset.kind = kind;
    const examples = EXAMPLES[id] ?? [];
    byId("prompt").value = this.#prompts.get(id) ?? examples[0] ?? FIRST[kind];
    const fill = (example) => () => {
      byId("prompt").value = example;
      byId("prompt").focus();
    };
    byId("examples").replaceChildren(
      ...examples.map((one) => make("li", {}, make("button", { type: "button", class: "chip", on: { click: fill(one) } }, one.trim()))),
    );
    byId("picture").hidden = kind !== "image";
    if (kind !== "image") this.#picture.clear();
    const procedures = proceduresOf(this.#catalogue, this.#model);
    const second = procedures.find((one) => one.name === { text: "speculative", image: "euler" }[kind] && one !== procedures[0]);
    this.#ways[0].show(this.#model, procedures, procedures[0]);
    this.#ways[1].show(this.#model, procedures, second ?? procedures[1] ?? procedures[0]);
    this.#showRequest();
    this.clear();
    this.#compare();
  }

  #showRequest() {
    const draw = () => {
      const seed = this.#request.input("seed");
      seed.value = freshSeed();
      seed.dispatchEvent(new Event("input"));
    };
    const dice = make("button", { type: "button", class: "quiet", id: "fresh-seed", "aria-label": "Draw another seed", title: "Draw another seed", on: { click: draw } }, "↻");
    this.#request.show(requestFields(this.#catalogue, this.#model), PROMINENT_REQUEST, { seed: dice });
  }

  #showParameters() {
    for (const way of this.#ways) way.showParameters();
  }

  #compare() {
    byId("way-b").hidden = !this.comparing;
    byId("way-a-name").textContent = this.comparing ? "First procedure" : "Procedure";
  }
}

/** A procedure and its parameters. */
class Way {
  #letter;
  #starts;
  #model;
  #procedures;
  #fields;
  procedure;

  constructor(letter, starts) {
    this.#letter = letter;
    this.#starts = starts;
    this.#fields = new Fields(byId(`way-${letter}-fields`), `way-${letter}`, "More parameters");
    byId(`way-${letter}-procedure`).addEventListener("change", () => this.#choose());
    byId(`way-${letter}-fields`).addEventListener("change", ({ target }) => {
      if (target.name !== `way-${letter}-rule`) return;
      this.showParameters(target.value);
      this.#fields.input("rule").focus();
    });
  }

  show(model, procedures, first) {
    this.#model = model;
    this.#procedures = procedures;
    const options = procedures.map(({ name }) => make("option", { value: name }, name === model.default_procedure ? `${name} (default)` : name));
    byId(`way-${this.#letter}-procedure`).replaceChildren(...options);
    byId(`way-${this.#letter}-procedure`).value = first.name;
    this.#choose();
  }

  showParameters(rule = this.#model.canvas_defaults.rule) {
    const show = (rule) => this.#fields.show(parametersOf(this.#model, this.procedure, this.#starts(), rule), PROMINENT);
    show(rule);
    const chosen = this.#fields.input("rule")?.value;
    if (chosen !== undefined && chosen !== rule) show(chosen);
  }

  get usualSteps() {
    return parametersOf(this.#model, this.procedure, false).find((field) => field.name === "steps")?.value ?? 1;
  }

  /** Throws FieldError with the way it is of. */
  values() {
    try {
      return this.#fields.values();
    } catch (error) {
      error.way = this.#letter === "a" ? 0 : 1;
      throw error;
    }
  }

  refuse(name, message) {
    if (name === "name" || name === "procedure") {
      refuseInput(byId(`way-${this.#letter}-procedure`), message);
      return true;
    }
    return this.#fields.refuse(name, message);
  }

  clear() {
    acceptInput(byId(`way-${this.#letter}-procedure`));
    this.#fields.clear();
  }

  #choose() {
    const name = byId(`way-${this.#letter}-procedure`).value;
    this.procedure = this.#procedures.find((one) => one.name === name);
    const tags = this.procedure.axes.map((axis) => make("span", { class: `axis ${axis}` }, axis));
    const help = byId(`way-${this.#letter}-help`);
    help.replaceChildren(...tags, document.createTextNode(this.procedure.summary.replaceAll("`", "")));
    this.showParameters();
  }
}

/** One procedure at work: its outputs, its figures, and how it ended. */
import { make, number, seconds } from "./dom.js";
import { explained } from "./explain.js";
import { PictureView } from "./picture_view.js";
import { TextView } from "./text_view.js";

const STATES = {
  queued: "queued", running: "running", done: "done", cancelled: "cancelled", failed: "failed",
};

const LITTLE_GAINED = 1.5;

export class Pane {
  #title = make("h3");
  #axes = make("span", { class: "axes" });
  #state = make("span", { class: "state" });
  #figures = make("dl", { class: "figures" });
  #note = make("p", { class: "note", hidden: true }, "Where guesses would cost more than they save, none are made; adaptive: false always guesses.");
  #outputs = make("div", { class: "outputs" });
  #views = [];
  #kind = "text";
  #began = 0;
  #first = null;
  #adaptive = false;
  #clock = 0;
  #counts = {};
  usage = null;

  constructor() {
    const head = make("header", {}, this.#title, this.#axes, this.#state);
    this.element = make("article", { class: "pane", data: { state: "queued" } }, head, this.#figures, this.#note, this.#outputs);
  }

  /** Ready for the events of this request. */
  begin(model, procedure, body) {
    this.#kind = model.kind;
    this.#title.textContent = procedure.name.replaceAll("_", " ");
    this.element.setAttribute("aria-label", `${procedure.name} on ${model.id}`);
    this.#axes.replaceChildren(...procedure.axes.map((axis) => make("span", { class: `axis ${axis}` }, axis)));
    const View = model.kind === "text" ? TextView : PictureView;
    const count = body.n ?? 1;
    this.#views = Array.from({ length: count }, (_, i) => new View(body.prompt, count > 1 ? `Output ${i + 1}` : "Output"));
    this.#outputs.className = `outputs ${model.kind}`;
    this.#outputs.replaceChildren(...this.#views.map((view) => view.element));
    this.#counts = { tokens: 0, events: 0, drafted: 0, accepted: 0, step: 0, steps: 0 };
    this.usage = null;
    this.#first = null;
    this.#adaptive = procedure.name === "speculative" && body.procedure.adaptive !== false;
    this.#note.hidden = true;
    this.#set("queued");
    this.#began = performance.now();
    this.#clock = setInterval(() => this.#figure(), 100);
    this.#figure();
  }

  /** A `token`, `revision` or `preview` event. */
  take(event, data) {
    this.#set("running");
    const view = this.#views[data.index];
    if (event === "token") {
      view.token(data);
      this.#first ??= (performance.now() - this.#began) / 1000;
      this.#counts.tokens += data.token_ids.length;
      this.#counts.events += 1;
      this.#counts.drafted += data.drafted ?? 0;
      this.#counts.accepted += data.accepted ?? 0;
    } else if (event === "revision") {
      view.revision(data);
    } else if (event === "preview") {
      view.preview(data);
      Object.assign(this.#counts, { step: data.step, steps: data.steps });
    }
  }

  /** The `done` event's object. */
  finish(answer) {
    this.usage = answer.usage;
    this.answer = answer;
    this.#note.hidden = !(this.#adaptive && leftOut(answer.usage));
    this.#views.forEach((view, i) => view.end(answer.outputs[i]));
    this.#stop(answer.outputs.every((output) => output.finish_reason === "cancelled") ? "cancelled" : "done");
  }

  /** Given up by the reader before the server could say what it had. */
  abandon() {
    this.#views.forEach((view) => view.end());
    this.#stop("cancelled");
  }

  /** `again` runs the request once more. */
  fail(error, again) {
    const { title, message, advice, retry, field } = explained(error);
    this.#views.forEach((view) => view.end());
    this.#stop("failed");
    const empty = this.#counts.tokens === 0 && this.#counts.step === 0;
    if (empty) this.#outputs.replaceChildren();
    const tag = [error.status || "", error.code, field && `field ${field}`].filter(Boolean).join(" · ");
    const box = make(
      "div", { class: "failure", role: "alert", tabindex: "-1" },
      make("strong", {}, title), make("p", {}, message), advice && make("p", {}, advice), tag && make("p", { class: "tag" }, tag),
      retry && make("button", { type: "button", on: { click: again } }, "Try again"),
    );
    this.#outputs.prepend(box);
    return box;
  }

  get text() {
    return this.#views.map((view) => view.text ?? "");
  }

  /** One line for whoever does not see the figures. */
  summary() {
    const usage = this.usage ?? {};
    const parts = this.#kind === "text"
      ? [`${usage.generated_tokens ?? this.#counts.tokens} tokens`, `${usage.forwards ?? "–"} forwards`]
      : [`${usage.nfe ?? "–"} network evaluations`];
    return `${this.#title.textContent}: ${[...parts, seconds(usage.total_seconds)].join(", ")}`;
  }

  #set(state) {
    if (this.element.dataset.state === state) return;
    this.element.dataset.state = state;
    this.#state.textContent = STATES[state];
  }

  #stop(state) {
    clearInterval(this.#clock);
    this.#set(state);
    this.#figure();
  }

  #figure() {
    const { usage } = this;
    const elapsed = usage?.total_seconds ?? (performance.now() - this.#began) / 1000;
    const items = this.#kind === "text" ? this.#textFigures(usage) : this.#pictureFigures(usage);
    items.push(["time", seconds(elapsed), "from arrival to end, at the server"]);
    this.#figures.replaceChildren(
      ...items.map(([name, value, title]) => make("div", { title }, make("dt", {}, name), make("dd", {}, value))),
    );
  }

  #textFigures(usage) {
    const { tokens, drafted, accepted } = this.#counts;
    const guessed = (usage?.drafted_tokens ?? drafted) > 0;
    return [
      ["tokens", number(usage?.generated_tokens ?? tokens), "generated"],
      ["forwards", number(usage?.forwards), "of the network"],
      ["per forward", number(usage?.tokens_per_forward, 2), "tokens a forward: more than one needs drafts or a canvas"],
      guessed && ["accepted", `${usage?.accepted_tokens ?? accepted}/${usage?.drafted_tokens ?? drafted}`, "of the drafted tokens"],
      ["first output", seconds(usage?.first_output_seconds ?? this.#first), "from arrival"],
    ].filter(Boolean);
  }

  #pictureFigures(usage) {
    const { step, steps } = this.#counts;
    return [
      ["NFE", number(usage?.nfe), "network function evaluations"],
      ["forwards", number(usage?.forwards), "of the network that this request had a row in"],
      ["step", steps ? `${usage && this.element.dataset.state === "done" ? steps : step} of ${steps}` : "–", "of the sampler's table"],
      ["queue", seconds(usage?.queue_seconds), "wait before the first forward"],
    ];
  }
}

/** Whether forwards without a guess were so many that drafting gained little. */
const leftOut = ({ tokens_per_forward: gained, drafted_tokens: drafted, forwards }) => gained < LITTLE_GAINED && drafted < forwards;

/** One text as it is written: committed tokens with accepted drafts marked, and behind them the canvas that may still change. */
import { make } from "./dom.js";

const MASK = "▁";
const MOST_BARS = 96;

export class TextView {
  #body;
  #committed = make("span", { class: "committed" });
  #canvas = make("span", { class: "canvas" });
  #caret = make("span", { class: "caret", "aria-hidden": "true" });
  #strides = make("div", { class: "strides", role: "img", "aria-label": "Tokens of each event" });
  #queue = [];
  #frame = 0;
  #shown = "";
  #events = 0;
  text = "";
  tokens = 0;

  /** `prompt` is shown before the text that continues it. */
  constructor(prompt, heading) {
    this.#body = make("div", { class: "paper", tabindex: "0", role: "region", "aria-label": heading });
    this.#body.append(make("span", { class: "prompt" }, prompt), this.#committed, this.#canvas, this.#caret);
    this.element = make("div", { class: "text-output" }, this.#body, this.#strides);
  }

  /** A `token` event: text that will not change any more. */
  token(data) {
    this.text += data.text;
    this.tokens += data.token_ids.length;
    this.#events += 1;
    this.#shown = "";
    this.#later({ kind: "token", data, number: this.#events });
  }

  /** A `revision` event: the canvas as it is now, with signs for what is not set. */
  revision(data) {
    this.#later({ kind: "revision", data });
  }

  end() {
    this.#flush();
    this.#caret.remove();
    this.#canvas.replaceChildren();
    this.element.classList.add("ended");
  }

  #later(item) {
    this.#queue.push(item);
    this.#frame ||= requestAnimationFrame(() => this.#flush());
  }

  #flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const { scrollTop, scrollHeight, clientHeight } = this.#body;
    const following = scrollHeight - scrollTop - clientHeight < 24;
    for (const { kind, data, number } of this.#queue) {
      if (kind === "token") this.#commit(data, number);
      else this.#revise(data);
    }
    this.#queue = [];
    if (following) this.#body.scrollTop = this.#body.scrollHeight;
  }

  #commit(data, number) {
    this.#canvas.replaceChildren();
    this.#committed.append(...run(data, number));
    this.#stride(data.token_ids.length, data.accepted ?? 0, number);
  }

  #revise(data) {
    this.#canvas.replaceChildren(...canvasNodes(data.text, this.#shown));
    this.#shown = data.text;
    this.#canvas.title = `Provisional: ${data.positions.length} of ${data.length} set`;
  }

  #stride(tokens, accepted, number) {
    if (tokens === 0) return;
    const bar = make("i", { title: `Event ${number}: ${plural(tokens, "token")}${accepted ? `, ${accepted} guessed` : ""}` });
    bar.style.setProperty("--tokens", Math.min(tokens, 16));
    bar.style.setProperty("--accepted", Math.min(accepted, 16));
    this.#strides.append(bar);
    if (this.#strides.childElementCount > MOST_BARS) this.#strides.firstElementChild.remove();
    this.#strides.setAttribute("aria-label", `Tokens of each of ${number} events; ${this.tokens} in all`);
  }
}

/** The nodes of one event's text: what came of accepted guesses is marked. */
function run(data, number) {
  const accepted = data.accepted_text ?? "";
  if (!accepted) return [document.createTextNode(data.text)];
  const title = `Event ${number}: ${data.accepted} of ${plural(data.drafted, "guess", "guesses")} accepted`;
  return [make("mark", { class: "accepted", title }, accepted), document.createTextNode(data.text.slice(accepted.length))];
}

/** The nodes of a canvas: masks, what is set, and what was set since it was last shown. */
function canvasNodes(text, before) {
  const [signs, old] = [Array.from(text), Array.from(before)]; // by characters, which may be two units of a string
  const kinds = signs.map((sign, i) => (sign === MASK ? "mask" : sign === old[i] ? "set" : "fresh"));
  const nodes = [];
  let start = 0;
  for (let i = 1; i <= kinds.length; i += 1) {
    if (i < kinds.length && kinds[i] === kinds[start]) continue;
    const part = signs.slice(start, i).join("");
    nodes.push(make("span", { class: kinds[start], "aria-hidden": kinds[start] === "mask" ? "true" : null }, part.replaceAll(MASK, "·")));
    start = i;
  }
  return nodes;
}

const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

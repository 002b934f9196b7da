/** The live strip: what the server does now, from its own metrics, once a second while somebody can see it. */
import { text } from "./api.js";
import { byId, number } from "./dom.js";
import { between, parsed } from "./metrics.js";

const EVERY_MS = 1000;
const KEPT = 60;
const MOST_ROWS = 8;

export class LiveStrip {
  #before = null;
  #at = 0;
  #timer = null;
  #history = [];

  start() {
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#pause() : this.#resume()));
    if (!document.hidden) this.#resume();
  }

  #resume() {
    this.#pause();
    this.#before = null;
    this.#tick();
  }

  #pause() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  async #tick() {
    const own = (this.#timer = setTimeout(() => {}, 0));
    try {
      const now = parsed(await text("metrics"));
      const at = performance.now();
      if (this.#before) this.#show(between(this.#before, now, (at - this.#at) / 1000));
      [this.#before, this.#at] = [now, at];
    } catch {
      this.#away();
    }
    if (this.#timer === own) this.#timer = setTimeout(() => this.#tick(), EVERY_MS);
  }

  #away() {
    this.#before = null;
    byId("strip").dataset.state = "away";
    byId("strip-engine").textContent = "no answer";
  }

  #show(now) {
    byId("strip").dataset.state = now.up ? "up" : "away";
    byId("strip-engine").textContent = now.up ? `${Math.round(now.busy * 100)} % busy` : "engine away";
    byId("strip-running").textContent = number(now.running);
    byId("strip-waiting").textContent = number(now.waiting);
    const rows = now.expand + now.refine + now.other;
    byId("strip-rows").textContent = rows ? number(rows, 1) : "0";
    byId("strip-forwards").textContent = number(now.forwards, 0);
    byId("strip-tokens").textContent = number(now.tokens, 0);
    byId("strip-pictures").textContent = number(now.pictures, 1);
    for (const axis of ["expand", "refine", "other"]) {
      byId("strip-bar").style.setProperty(`--${axis}-rows`, `${(100 * now[axis]) / Math.max(MOST_ROWS, rows)}%`);
    }
    byId("strip-axes").textContent = `${number(now.expand, 1)} expand, ${number(now.refine, 1)} refine`;
    this.#history = [...this.#history, now.tokens].slice(-KEPT);
    byId("strip-line").setAttribute("points", points(this.#history));
  }
}

/** A line through the last minute in a box of 60 by 20, the newest on the right. */
function points(history) {
  const most = Math.max(1, ...history);
  return history.map((value, i) => `${KEPT - history.length + i},${(19 - (18 * value) / most).toFixed(1)}`).join(" ");
}

/** What a screen reader is told: the newest at most every few seconds, so that a fast stream does not talk without end. */
const PAUSE_MS = 2500;

export class Announcer {
  #region;
  #waiting = "";
  #timer = null;
  #last = 0;

  constructor(region) {
    this.#region = region;
  }

  /** Told at once; what was waiting is left out. */
  say(text) {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#waiting = "";
    this.#tell(text);
  }

  /** Added to what waits, and told whole when its time has come. */
  add(text) {
    this.#waiting += text;
    this.#timer ??= setTimeout(() => {
      this.#timer = null;
      const told = this.#waiting.trim();
      this.#waiting = "";
      if (told) this.#tell(told);
    }, Math.max(0, this.#last + PAUSE_MS - Date.now()));
  }

  #tell(text) {
    this.#last = Date.now();
    this.#region.textContent = text;
  }
}

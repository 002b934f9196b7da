/** One request on its way: started, followed, given up. */
import { cancel, generate, ServerError } from "./api.js";

const PATIENCE_MS = 1000;

export class Run {
  #abort = new AbortController();
  #id = null;
  #over = false;
  #given = false;

  /** `take` is called with each event's name and data, in their order. `automatic` says that the number of previews is not
   *  the reader's wish: where a picture has too few steps for any, it is made without. */
  constructor(body, automatic, take) {
    Object.assign(this, { body, automatic, take });
  }

  /** Resolves to the `done` event's object, or to null when it was given up. Throws ServerError. */
  async finish() {
    try {
      return await this.#answer();
    } catch (error) {
      if (error.name === "AbortError") return null;
      throw error;
    } finally {
      this.#over = true;
    }
  }

  async #answer() {
    try {
      return await this.#follow(this.body);
    } catch (error) {
      const tooMany = error instanceof ServerError && error.param === "preview_every" && this.automatic;
      if (!tooMany || this.#given) throw error;
      const { preview_every: _, ...without } = this.body;
      return await this.#follow(without);
    }
  }

  async #follow(body) {
    let answer = null;
    for await (const { event, data } of generate({ ...body, stream: true }, this.#abort.signal, (id) => (this.#id = id))) {
      if (event === "done") answer = data;
      else this.take(event, data);
    }
    return answer;
  }

  /** Asks the server to end it, and leaves when that says nothing: either frees all that the request holds. */
  async cancel() {
    if (this.#over) return;
    this.#given = true;
    setTimeout(() => this.#over || this.#abort.abort(), PATIENCE_MS);
    if (this.#id === null || !(await cancel(this.#id).catch(() => false))) this.#abort.abort();
  }
}

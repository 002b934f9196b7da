/** One picture on its way from noise to data: the newest estimate, where it is in time, and those before it to look back at. */
import { make } from "./dom.js";

export class PictureView {
  #figure;
  #image = make("img", { alt: "", hidden: true });
  #noise = make("div", { class: "noise", "aria-hidden": "true" });
  #where = make("output", { class: "where" }, "waiting for its first step");
  #time = make("div", { class: "time", "aria-hidden": "true" }, make("i"));
  #film = make("ol", { class: "film", "aria-label": "Steps, to look back at" });
  #prompt;
  #heading;

  constructor(prompt, heading) {
    this.#prompt = prompt;
    this.#heading = heading;
    this.#figure = make("div", { class: "frame" }, this.#noise, this.#image);
    const axis = make("div", { class: "timeline" }, make("span", {}, "noise"), this.#time, make("span", {}, "data"));
    this.element = make("figure", { class: "picture" }, this.#figure, axis, make("figcaption", {}, this.#where), this.#film);
    this.element.setAttribute("aria-label", heading);
  }

  /** A `preview` event. */
  preview(data) {
    const says = `step ${data.step} of ${data.steps} · t = ${data.t.toFixed(3)}`;
    this.#show(data.image, says, data.t, `${this.#heading}, provisional: ${says}`);
    this.#frame(data.image, says, data.t);
  }

  /** An output of `done`; a cancelled one has no picture, and the last preview stays. */
  end(output) {
    this.element.classList.add("ended");
    if (!output?.image) {
      if (this.#image.hidden) this.#where.textContent = "ended before there was a picture";
      return;
    }
    const says = `finished · t = 0 · ${output.width}×${output.height}`;
    this.#show(output.image, says, 0, `${this.#heading}: ${this.#prompt}`);
    this.#frame(output.image, says, 0);
    const name = `stride-${output.seed}.png`;
    const link = { class: "quiet button", href: `data:image/png;base64,${output.image}`, download: name };
    this.element.querySelector("figcaption").append(make("a", link, "Save PNG"));
  }

  #show(image, says, t, alt) {
    this.#image.src = `data:image/png;base64,${image}`;
    this.#image.alt = alt;
    this.#image.hidden = false;
    this.#image.onload = () => this.element.classList.toggle("coarse", this.#image.naturalWidth <= 128);
    this.#noise.hidden = true;
    this.#where.textContent = says;
    this.#time.style.setProperty("--t", Math.max(0, Math.min(1, t)));
  }

  #frame(image, says, t) {
    const picture = make("img", { src: `data:image/png;base64,${image}`, alt: "" });
    const label = t === 0 ? "done" : `t ${t.toFixed(2)}`;
    const look = () => {
      this.#show(image, says, t, `${this.#heading}, ${says}`);
      for (const one of this.#film.querySelectorAll("button")) one.setAttribute("aria-pressed", String(one === button));
    };
    const attributes = { type: "button", "aria-label": `Show ${says}`, "aria-pressed": "true", on: { click: look } };
    const button = make("button", attributes, picture, make("span", {}, label));
    for (const one of this.#film.querySelectorAll("button")) one.setAttribute("aria-pressed", "false");
    this.#film.append(make("li", {}, button));
    this.#film.scrollLeft = this.#film.scrollWidth;
  }
}

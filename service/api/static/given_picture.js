/** The picture to start from: chosen, shown, and as small as a request's body allows. */
import { byId } from "./dom.js";

const LARGE_BYTES = 2_000_000;
const LARGE_SIDE = 1536;

export class GivenPicture {
  #input = byId("picture-file");
  #shown = byId("picture-shown");
  #remove = byId("picture-remove");
  #url = null;

  /** `changed` is called when a picture is there or is there no more. */
  constructor(changed) {
    this.#input.addEventListener("change", async () => {
      const [file] = this.#input.files;
      this.#show(file ? await dataUrl(file) : null);
      changed();
    });
    this.#remove.addEventListener("click", () => {
      this.clear();
      changed();
      this.#input.focus();
    });
  }

  /** A data URL, or null. */
  get url() {
    return this.#url;
  }

  clear() {
    this.#input.value = "";
    this.#show(null);
  }

  #show(url) {
    this.#url = url;
    this.#shown.hidden = this.#remove.hidden = url === null;
    if (url) this.#shown.src = url;
    else this.#shown.removeAttribute("src");
  }
}

async function dataUrl(file) {
  const small = file.size > LARGE_BYTES ? await shrunk(file) : file;
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(small);
  });
}

/** The same picture with sides that no model here exceeds; the file itself where the browser cannot read it. */
async function shrunk(file) {
  const bitmap = await createImageBitmap(file).catch(() => null);
  if (!bitmap) return file;
  const scale = Math.min(1, LARGE_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob ?? file), "image/jpeg", 0.92));
}

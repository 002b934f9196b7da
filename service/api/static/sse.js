/** Server-sent events out of pieces of text that may end anywhere. Pure: push pieces, take events. */
export class EventParser {
  #rest = "";

  /** The events that this piece completes, as {event, data}; comments and other fields are left out. */
  push(piece) {
    const blocks = (this.#rest + piece).replaceAll("\r\n", "\n").split("\n\n");
    this.#rest = blocks.pop();
    return blocks.map(parsed).filter((event) => event.data !== "");
  }
}

function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue;
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (line.startsWith("event:")) event = value;
    else if (line.startsWith("data:")) data.push(value);
  }
  return { event, data: data.join("\n") };
}

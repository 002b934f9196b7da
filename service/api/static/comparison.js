/** Two answers to one question, in a sentence. Pure. */

/** What the second made of the same prompt and seed, against the first: a line of text. */
export function compared(first, second) {
  const parts = [alike(first, second)];
  const cost = first.kind === "text" ? ["forwards", "forwards"] : ["nfe", "evaluations"];
  const [a, b] = [first.usage[cost[0]], second.usage[cost[0]]];
  const [s, t] = [first.usage.total_seconds, second.usage.total_seconds];
  const found = [];
  if (a && b) found.push(a === b ? `as many ${cost[1]}` : `${times(a, b)} ${a > b ? "fewer" : "more"} ${cost[1]}`);
  if (s && t) found.push(`${times(s, t)} ${s > t ? "faster" : "slower"}`);
  if (found.length) parts.push(`${second.name}: ${found.join(", ")}`);
  return parts.join(" · ");
}

const times = (a, b) => `${Number((Math.max(a, b) / Math.min(a, b)).toFixed(1))}×`;

function alike(first, second) {
  if (first.kind !== "text") {
    return first.outputs[0] === second.outputs[0] ? "The same picture" : "Two pictures from one noise";
  }
  const [a, b] = [first.outputs.join("\n"), second.outputs.join("\n")];
  if (a === b) return "The same text, token for token";
  let common = 0;
  while (common < Math.min(a.length, b.length) && a[common] === b[common]) common += 1;
  return common ? `The same for ${common} characters, then they part` : "Two texts from one seed";
}

/** The server's Prometheus metrics, read for the live strip. Pure. */

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const READ = new Set(["stride_engine_up", "stride_device_busy_ratio", "stride_requests_running", "stride_requests_waiting",
  "stride_moves_total", "stride_batch_rows_count", "stride_tokens_total", "stride_refine_steps_total", "stride_images_total"]);

/** Samples of the metrics that are read, as {name, labels, value}. */
export function parsed(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = LINE.exec(line);
    if (!found || !READ.has(found[1])) continue;
    const labels = Object.fromEntries(Array.from((found[2] ?? "").matchAll(LABEL), ([, name, value]) => [name, value]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

/** The sum over all samples of a metric with these labels. */
export const total = (samples, name, labels = {}) =>
  samples
    .filter((one) => one.name === name && Object.entries(labels).every(([key, value]) => one.labels[key] === value))
    .reduce((sum, one) => sum + one.value, 0);

/** What happened between two readings `elapsed` seconds apart. Rows are means over the forwards of that time; counters that
 *  fell, as after a restart, count as nothing. */
export function between(before, now, elapsed) {
  const grown = (name, labels) => Math.max(0, total(now, name, labels) - total(before, name, labels));
  const forwards = grown("stride_batch_rows_count");
  const rows = (axis) => (forwards ? grown("stride_moves_total", { axis }) / forwards : 0);
  return {
    up: total(now, "stride_engine_up") > 0,
    busy: total(now, "stride_device_busy_ratio"),
    waiting: total(now, "stride_requests_waiting"),
    running: total(now, "stride_requests_running"),
    expand: rows("expand"),
    refine: rows("refine"),
    other: rows("encode") + rows("decode") + rows("score"),
    forwards: forwards / elapsed,
    tokens: grown("stride_tokens_total", { kind: "generated" }) / elapsed,
    pictures: grown("stride_images_total") / elapsed,
  };
}

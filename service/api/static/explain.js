/** Errors in words: what happened, and what can be done about it. */

const KNOWN = {
  0: ["No connection", "Is the server running, and reachable from here?", true],
  400: ["The request was refused", "", false],
  401: ["An API key is needed", "Enter the key that the server was started with.", false],
  404: ["Not there", "", false],
  413: ["Too large", "Use a smaller picture or a shorter prompt.", false],
  429: ["The queue is full", "Others are being served first.", true],
  499: ["The request was given up", "", true],
  500: ["The model could not finish", "Other requests go on. A different seed or fewer steps may help.", true],
  503: ["The engine is away", "It is started again by itself; the models are read anew, which takes a moment.", true],
  504: ["The deadline passed in the queue", "Give it more time, or run it when less is waiting.", true],
};

const DRAINING = ["The server is shutting down", "Another may take its place: try again in a moment.", true];

/** {title, message, advice, retry, field}: `field` is the parameter to look at, `retry` whether the same may work later. */
export function explained(error) {
  const known = KNOWN[error.status] ?? KNOWN[error.status >= 500 ? 503 : 400];
  const [title, advice, retry] = error.code === "draining" ? DRAINING : known;
  const wait = error.retryAfter ? ` The server asks to wait ${error.retryAfter} s.` : "";
  return { title, message: error.message.trim().replace(/([^.!?])$/, "$1."), advice: advice + wait, retry, field: error.param };
}

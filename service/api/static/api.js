/** The server's routes. Addresses are relative, so that a proxy may serve Stride under any path. */
import { EventParser } from "./sse.js";

/** What the server, or the way to it, said instead of an answer. `status` is 0 where nothing answered. */
export class ServerError extends Error {
  constructor(status, { message, param = null, code = null, retryAfter = null }) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

const KEY = "stride-api-key";
let secret = "";
try {
  secret = sessionStorage.getItem(KEY) ?? "";
} catch {
  // Kept in memory alone.
}

export const apiKey = () => secret;

/** Kept until the tab is closed, and sent nowhere but to this server. */
export function setApiKey(value) {
  secret = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // Kept in memory alone.
  }
}

/** The header that tells the key, as the server compares it: in UTF-8. A page gives the bytes of a header one a character. */
export function authorization() {
  return secret ? { Authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(secret))}` } : {};
}

async function asked(path, options = {}) {
  const headers = { ...options.headers, ...authorization() };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, { message: "Nothing answers at this address", code: "unreachable" });
  }
  if (response.ok) return response;
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  let detail = { message: `The answer is ${response.status} ${response.statusText}` };
  try {
    detail = (await response.json()).error ?? detail;
  } catch {
    // Something between here and Stride answered, in words of its own.
  }
  throw new ServerError(response.status, { ...detail, retryAfter });
}

export const json = async (path) => whole((await asked(path)).json());
export const text = async (path) => whole((await asked(path)).text());

async function whole(body) {
  try {
    return await body;
  } catch {
    throw new ServerError(0, { message: "The answer is not whole, or is somebody else's", code: "unreachable" });
  }
}

/** Ends a request on the server. Resolves to false where it had ended already. */
export async function cancel(id) {
  try {
    await asked(`v1/requests/${encodeURIComponent(id)}`, { method: "DELETE" });
    return true;
  } catch (error) {
    if (error instanceof ServerError) return false;
    throw error;
  }
}

/** Streams POST /v1/generate as {event, data}. `named` is told the request's id as soon as it is known. */
export async function* generate(body, signal, named) {
  const response = await asked("v1/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  named(response.headers.get("X-Request-Id"));
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      for (const { event, data } of parser.push(value)) {
        const read = JSON.parse(data);
        if (event === "error") throw new ServerError(statusOf(read.error), read.error);
        ended ||= event === "done";
        yield { event, data: read };
      }
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError(0, { message: "The connection broke before the answer was complete", code: "unreachable" });
  } finally {
    reader.releaseLock();
  }
  if (!ended) throw new ServerError(0, { message: "The answer ended before it was complete", code: "unreachable" });
}

/** In a stream that has begun the status is 200, and the error says what it would have been. */
function statusOf({ type, code }) {
  const byCode = { engine_unavailable: 503, draining: 503, deadline_exceeded: 504 }[code];
  const byType = { invalid_request_error: 400, not_found_error: 404, rate_limit_error: 429 }[type];
  return byCode ?? byType ?? 500;
}

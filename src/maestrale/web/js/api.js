// Talks to the server, and says what went wrong in plain words.
import { keyHeaders } from "./key.js";

const PLAIN = {
  context_length_exceeded: "The conversation is too long for this model",
  model_not_found: "This server has no such model",
  invalid_api_key: "The key was not accepted",
  rate_limit_exceeded: "Too many requests with this key",
  queue_full: "The server is busy",
  queue_timeout: "The server is busy",
  starting: "The server is still starting",
  draining: "The server is shutting down",
  dead: "The engine has stopped",
  engine_died: "The engine stopped and could not go on",
  payload_too_large: "This is more text than the server takes at once",
  permission_denied: "The server does not answer this page",
};
const BY_STATUS = { 400: "The server did not accept this request", 401: PLAIN.invalid_api_key, 403: PLAIN.permission_denied, 408: "The request took too long to arrive", 413: PLAIN.payload_too_large, 429: PLAIN.rate_limit_exceeded, 503: "The server can't answer now" };

/** A failure as a person reads it: a title, the server's sentence, what it was about. */
export class Failure extends Error {
  constructor(title, detail = "", { status = 0, code = "", param = "", retryAfter = 0 } = {}) {
    super(title);
    Object.assign(this, { title, detail, status, code, param, retryAfter });
  }
}

export function failureOf(error, status = 0, retryAfter = 0) {
  const { code = "", message = "", param = "" } = error ?? {};
  const title = PLAIN[code] ?? BY_STATUS[status] ?? "The server failed on this request";
  return new Failure(title, message ?? "", { status, code: code ?? "", param: param ?? "", retryAfter });
}

/** fetch with the key; `path` has no leading slash, so that it is found below a proxy's path, too.
    Raises: Failure for whatever isn't a success; an abort stays an AbortError. */
export async function call(path, { body, signal, method = body ? "POST" : "GET", headers = {} } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: { ...headers, ...keyHeaders(), ...(body ? { "content-type": "application/json" } : {}) },
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server can't be reached", "Is it running, and is this device connected to it?", { code: "unreachable" });
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => null);
  throw failureOf(answer?.error, response.status, Number(response.headers.get("retry-after")) || 0);
}

/** {state, detail} as /health tells, which never asks for a key; "unreachable" without an answer. */
export async function health() {
  try {
    const answer = await (await fetch("health", { cache: "no-store", credentials: "omit" })).json();
    return { state: answer.status, detail: answer.detail };
  } catch {
    return { state: "unreachable", detail: "The server can't be reached." };
  }
}

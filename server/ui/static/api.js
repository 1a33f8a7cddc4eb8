// The server's HTTP API. The key is sent as a header and stands in no address.

import { eventsOf } from "./events.js";

const KEPT = "core.key";

/** What the server answered instead. `status` is 0 when it did not answer. */
export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** The key of this tab, or null. */
export function key() {
  return sessionStorage.getItem(KEPT);
}

/** Keep a key until the tab is closed. */
export function keepKey(given) {
  sessionStorage.setItem(KEPT, given);
}

/** JSON of a path. Throws ApiError. */
export async function read(path) {
  return (await answered(path, {})).json();
}

/** The events of a streamed answer, parsed, until [DONE]. Throws ApiError; aborted, whatever fetch throws. */
export async function* stream(path, body, signal) {
  const response = await answered(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  let ended = false;
  for await (const data of eventsOf(response.body)) {
    ended = data === "[DONE]";
    if (ended) break;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(event.error.message, response.status);
    yield event;
  }
  if (!ended) throw new ApiError("The connection ended before the answer did.");
}

async function answered(path, options) {
  const headers = { ...options.headers };
  if (key()) headers.authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (!response.ok) throw new ApiError(await complaint(response), response.status);
  return response;
}

async function complaint(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}`.trim();
  }
}

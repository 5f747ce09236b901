// The client of the HTTP API. Paths are below the page's own folder, so that it works below BASE_PATH, too.
//
//   await api.get("/api/queues", {family: ":", limit: 100});      query options without a value are left out
//   await api.send("POST", api.path`/api/queues/${name}/retry`, {query: {dry_run: 1}, body: {...}});
//   try { … } catch (error) { error.message; error.status; error.code; error.right; error.incident; error.outcome }
//
// A 401 asks the person to sign in and leaves the URL as it is: `session.state` becomes "out".

import { createStore } from "./store.js";

// The page is at the folder's own URL; the URL's hash is not part of it.
export const BASE = new URL(".", document.baseURI).href.replace(/[?#].*$/, "");

/**
 * Who is signed in: `state` is "asking", "in", "out" or "failed"; `me` is the answer of GET /api/me:
 * {name, rights, expires, may: {view, operate, admin, push}, payloads, needs_token, environment, version, warnings}.
 */
export const session = createStore({ state: "asking", me: null, error: null });

/** What the caller may do: `may("operate")`; false for all that is not known. */
export const may = (right) => Boolean(session.get().me?.may[right]);

export class ApiError extends Error {
  constructor(status, body, requestId) {
    super(body.error || `The registry answered ${status}.`);
    this.status = status;
    this.code = body.code || "unknown";
    this.right = body.right;
    this.incident = body.incident;
    this.outcome = body.outcome;
    this.requestId = requestId;
  }
}

/** No answer came: the daemon or the network is away. */
export class Unreachable extends Error {
  constructor() {
    super("The registry does not answer.");
    this.status = 0;
    this.code = "unreachable";
  }
}

/** A path with its values encoded: path`/api/queues/${name}/tasks`. */
export function path(strings, ...values) {
  return strings.reduce((text, part, at) => text + encodeURIComponent(values[at - 1]) + part);
}

export function url(target, query = {}) {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const text = new URLSearchParams(pairs.map(([key, value]) => [key, String(value)])).toString();
  return BASE + target.replace(/^\//, "") + (text && `?${text}`);
}

async function request(method, target, { query, body, raw, signal, token } = {}) {
  const init = { method, signal, credentials: token ? "omit" : "same-origin", cache: "no-store", headers: {} };
  if (token) init.headers.Authorization = `Bearer ${token}`;
  if (raw !== undefined) init.body = raw;
  else if (body !== undefined) init.body = JSON.stringify(body);
  if (init.body !== undefined) init.headers["Content-Type"] = "application/json";
  let answer;
  let text;
  try {
    answer = await fetch(url(target, query), init);
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  let value = {};
  try {
    value = text ? JSON.parse(text) : {};
  } catch {
    // A proxy between us and the registry answers with a page of its own.
    value = { error: `Something between this page and the registry answered ${answer.status} without JSON.` };
    if (answer.ok) throw new ApiError(502, value, null);
  }
  if (!answer.ok) {
    const error = new ApiError(answer.status, value, answer.headers.get("x-request-id"));
    if (answer.status === 401 && target !== "/api/session" && !token) session.set({ state: "out", me: null });
    throw error;
  }
  return { value, text, headers: answer.headers };
}

/** The value of a JSON answer. */
export async function get(target, query, options) {
  return (await request("GET", target, { query, ...options })).value;
}

/** The text of an answer as it came: payloads must not be reshaped by a parser. */
export async function getText(target, query, options) {
  return (await request("GET", target, { query, ...options })).text;
}

/**
 * Change something. `raw`: a body that is JSON text already; `token`: used in place of the session, for a push. Answers
 * {value, audit}: `audit` is the id of the entry in the audit, by which it can be undone, or null.
 */
export async function send(method, target, options) {
  const { value, headers } = await request(method, target, options);
  return { value, audit: headers.get("registry-audit") };
}

/** Ask who is signed in. */
export async function askMe() {
  try {
    session.set({ state: "in", me: await get("/api/me"), error: null });
  } catch (error) {
    if (error.status === 401) session.set({ state: "out", me: null, error: null });
    else if (session.get().state === "asking") session.set({ state: "failed", error });
  }
}

export async function signIn(token) {
  await send("POST", "/api/session", { body: { token } });
  await askMe();
}

export async function signOut() {
  await send("DELETE", "/api/session");
  session.set({ state: "asking", me: null });
  await askMe();
}

export const api = { get, getText, send, path, url };

// Server-sent events over fetch, not EventSource: that one hides the status of a refusal and the heartbeats, without which a
// dead connection looks like a quiet one.
//
//   const stream = openStream("/api/events", {limit: 0}, {event(name, data), heard(), closed(error)});
//   stream.close(); stream.lastId

import { ApiError, url } from "./api.js";

// The registry sends something every 15 s at least.
const SILENCE = 40_000;

/** Splits text into events; `feed` calls back for each: event(name, data, id). */
export function parser(event) {
  let rest = "";
  let name = "message";
  let data = [];
  let id;
  const line = (text) => {
    if (text === "") {
      if (data.length || id !== undefined) event(name, data.join("\n"), id);
      name = "message";
      data = [];
      id = undefined;
      return;
    }
    const [, field, value] = text.match(/^([^:]*):? ?(.*)$/s);
    if (field === "event") name = value;
    else if (field === "data") data.push(value);
    else if (field === "id") id = value;
  };
  return {
    feed(text) {
      // A carriage return at the end may be half a line break.
      const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      lines.forEach(line);
    },
  };
}

export function openStream(target, query, { event, heard, closed }) {
  const abort = new AbortController();
  const stream = { lastId: null, close: () => abort.abort() };
  let isClosed = false;
  let watch = null;
  const end = (error) => {
    clearTimeout(watch);
    if (isClosed || abort.signal.aborted) return;
    isClosed = true;
    abort.abort();
    closed(error);
  };
  const alive = () => {
    clearTimeout(watch);
    watch = setTimeout(() => end(new Error("The registry has gone silent.")), SILENCE);
    heard();
  };
  abort.signal.addEventListener("abort", () => clearTimeout(watch));
  (async () => {
    watch = setTimeout(() => end(new Error("The registry does not answer.")), SILENCE);
    const answer = await fetch(url(target, query), {
      signal: abort.signal,
      cache: "no-store",
      headers: { Accept: "text/event-stream" },
    });
    if (!answer.ok) throw new ApiError(answer.status, await answer.json().catch(() => ({})), null);
    const events = parser((name, data, id) => {
      if (id !== undefined) stream.lastId = id;
      if (data && !abort.signal.aborted) event(name, JSON.parse(data));
    });
    const text = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { value, done } = await text.read();
      if (done) break;
      alive();
      events.feed(value);
    }
    end(null);
  })().catch(end);
  return stream;
}

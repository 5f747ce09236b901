// Findings: what will not heal by itself. GET /api/findings says each in a sentence; here is what the page adds.
//
//   glyphOf(finding)            the glyph beside it
//   reasonOf(finding, now)      a few words for the row of its queue: "nobody polls, last 38 min ago"
//   <FindingText finding />     its sentence, the queue's name stronger
//   <NextStep finding />        its button: a link, or a counted and undoable deed

import { api, may } from "./api.js";
import { duration, ms, number } from "./format.js";
import { Button, Name } from "./parts.js";
import { html, useState } from "./preact.js";
import { toast } from "./toast.js";

export const glyphOf = ({ code, severity }) =>
  code === "deaths" || severity === "critical" ? "dead" : code === "paused" ? "paused" : "asks";

export function reasonOf({ code, since, count, facts }, now) {
  const seconds = since ? (now - ms(since)) / 1000 : null;
  if (code === "nobody_polls") {
    const last = facts.last_polled_at ? (now - ms(facts.last_polled_at)) / 1000 : null;
    return last === null ? "nobody polls" : `nobody polls, last ${duration(Math.max(1, Math.round(last)))} ago`;
  }
  if (code === "paused") {
    const by = facts.by ? ` by ${facts.by}` : "";
    return seconds === null ? `paused${by}` : `paused ${duration(Math.max(1, Math.round(seconds)))} ago${by}`;
  }
  if (code === "deaths") return `${number(count)} died in ${duration(facts.seconds ?? 900)}`;
  return "";
}

export function FindingText({ finding }) {
  const { sentence, queue } = finding;
  const at = queue ? sentence.indexOf(queue) : -1;
  if (at < 0) return html`<${Name} text=${sentence} />`;
  return html`${sentence.slice(0, at)}<b><${Name} text=${queue} limit=${40} /></b>${sentence.slice(at + queue.length)}`;
}

/** Where a finding is looked into. */
export function placeOf({ code, queue }) {
  if (!queue) return null;
  if (code === "deaths") return { page: "dead", query: { queue: queue.endsWith(":*") ? null : queue } };
  if (queue.endsWith(":*")) return { page: "overview", query: { q: queue.slice(0, -1) } };
  return { page: "queue", queue };
}

export function NextStep({ finding }) {
  const [isBusy, setBusy] = useState(false);
  const { action, code } = finding;
  const place = placeOf(finding);
  const open = place && html`<${Button} bare next to=${place}>${code === "deaths" ? "See the error" : "Open queue"}<//>`;
  // What changes something is offered beside the look, to those who may.
  if (!action?.method || action.method === "GET" || !may(action.right)) return open;
  const act = async () => {
    setBusy(true);
    try {
      const [path, query] = action.path.split("?");
      const options = { query: Object.fromEntries(new URLSearchParams(query)), body: action.body ?? undefined };
      const { audit } = await api.send(action.method, path, options);
      toast({ text: `${action.label}: done.`, audit });
    } catch (error) {
      toast({ text: `${action.label}: not done. ${error.message}` });
    }
    setBusy(false);
  };
  return html`<${Button} busy=${isBusy} onClick=${act}><${Name} text=${action.label} limit=${28} /><//>${open}`;
}

// Tasks as pages show them.
//
//   const {rows, cursor} = await taskPage(queue, {state, cursor, limit, …}, signal)   rows have `raw`: the payload as it was pushed
//   const task = await wholeTask(queue, id, signal)                                   `raw` and `rawResult`
//   errorOf(task)       {type, message, trace} of the last attempt that has one, or null
//   errorLine(error)    "SMTPAuthError: 535 5.7.8 authentication failed"
//   workerOf(task)      who has it, or had it last; null
//   attemptsOf(task, policy), lengthOf(task, policy, "lease")   what counts for it: its own, else the queue's, else the default

import { api } from "./api.js";
import { count, duration, number } from "./format.js";
import { elements, member } from "./json-text.js";

export const STATES = ["ready", "delayed", "leased", "dead", "done"];
export const STATE_WORDS = { ready: "Ready", delayed: "Delayed", leased: "Leased", dead: "Dead", done: "Done" };
export const DEFAULTS = { attempts: 25, lease: 60, backoff: 10, poison: 3 };
export const RETENTION = { done: 3600, done_max: 1000, dead: 2592000, dead_max: 100000 };

export async function taskPage(queue, query, signal) {
  const text = await api.getText(api.path`/api/queues/${queue}/tasks`, query, { signal });
  const { tasks, cursor } = JSON.parse(text);
  const raws = elements(member(text, "tasks"));
  // A payload that was cut is the beginning of its text, in a string.
  const rows = tasks.map((task, at) => ({ ...task, raw: task.truncated && typeof task.task === "string" ? task.task : member(raws[at], "task") }));
  return { rows, cursor };
}

export async function wholeTask(queue, id, signal) {
  const text = await api.getText(api.path`/api/queues/${queue}/tasks/${id}`, {}, { signal });
  const task = JSON.parse(text);
  return { ...task, raw: member(text, "task"), rawResult: task.result === null ? null : member(text, "result") };
}

export function errorOf(task) {
  for (const attempt of [...(task.history ?? [])].reverse()) {
    if (attempt.error && Object.keys(attempt.error).length) return attempt.error;
    if (attempt.reason === "failed") return null;
  }
  return null;
}

export function errorLine(error) {
  if (!error) return "";
  if (typeof error === "string") return error;
  return [error.type, error.message].filter(Boolean).join(": ");
}

export const workerOf = (task) => task.worker ?? task.history?.[task.history.length - 1]?.worker ?? null;

export const lengthOf = (task, policy, name) => task.options?.[name] ?? policy?.[name] ?? DEFAULTS[name];

export const attemptsOf = (task, policy) => `${number(task.attempt)} of ${number(lengthOf(task, policy, "attempts"))}`;

/** A length that somebody has set, s: whole units stay whole, "1 h" and "30 d". */
export function length(seconds) {
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size && seconds % size === 0) return `${number(seconds / size)} ${unit}`;
  }
  return duration(seconds);
}

const REASONS = {
  failed: "failed",
  lease_expired: "lease ran out",
  expired: "expired before its first lease",
  cancelled: "cancelled",
  handover_expired: "never reached its worker",
  poison: "several workers died on it",
  not_json: "is not JSON",
  released: "given back",
  done: "done",
};
/** A reason of the API in words. */
export const reasonText = (reason) => REASONS[reason] ?? (reason ?? "").replace(/_/g, " ");

/** "Retried 1,098 tasks. Skipped 6, their key is taken." */
export function told(verb, { count: many, skipped }, why) {
  return `${verb} ${count(many, "task")}.${skipped ? ` Skipped ${number(skipped)}${why ? `, ${why}` : ""}.` : ""}`;
}

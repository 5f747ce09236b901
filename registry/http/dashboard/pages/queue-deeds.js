// The deeds on many tasks of a queue: retry, delete, purge, move. Each is counted by the server before it is confirmed.

import { api } from "../lib/api.js";
import { Confirm } from "../lib/confirm.js";
import { clock, count, number } from "../lib/format.js";
import { Glyph } from "../lib/icons.js";
import { useFetch } from "../lib/live.js";
import { Button, Name, Select } from "../lib/parts.js";
import { html, useState } from "../lib/preact.js";
import { told } from "../lib/tasks.js";
import { toast } from "../lib/toast.js";
import { giveOrder } from "./orders.js";

const UNDO = "You can undo this for 10 min.";
const SPREADS = [
  { value: "", text: "now" },
  { value: "60", text: "1 min" },
  { value: "600", text: "10 min" },
  { value: "3600", text: "1 h" },
];
const HOW_DEAD = { dead: "dead ", done: "done ", ready: "ready ", delayed: "delayed " };

/** One request for each task; those that cannot be changed are counted as skipped. Answers as a bulk request does. */
export async function each(ids, ask) {
  const value = { count: 0, skipped: 0 };
  const audits = [];
  for (const id of ids) {
    try {
      const { audit } = await ask(id);
      value.count += 1;
      if (audit) audits.push(audit);
    } catch (error) {
      if (error.status !== 404 && error.status !== 409) {
        error.message = `${error.message} ${number(value.count)} of ${number(ids.length)} were done.`;
        throw error;
      }
      value.skipped += 1;
    }
  }
  return { value, audit: audits };
}

/** Which tasks a deed is about, in words. */
function Scope({ ids, filter }) {
  if (ids) return html`The ${count(ids.length, "task")} you selected.`;
  if (!filter.tokens.length) return "All of them.";
  return html`All that match ${filter.tokens.map(({ key, value }, at) => html`${at > 0 && ", "}<b>${key}: <${Name} text=${value} limit=${60} /></b>`)}.`;
}

/** A warning that what killed these tasks still works. */
function Culprit({ group }) {
  const worker = group?.points_to === "worker" ? group.workers[0] : null;
  const { data, reload } = useFetch(
    async (signal) => {
      const { workers } = await api.get("/api/workers", {}, { signal });
      return workers.find((one) => one.worker === worker) ?? null;
    },
    [worker, "culprit"],
    { enabled: worker !== null },
  );
  if (!data || data.order !== "run") return null;
  return html`<div class="warn">
    <${Glyph} state="asks" />
    <span class="grow"><b><${Name} text=${worker} limit=${40} /></b> failed nearly every one of them and still takes tasks.</span>
    <${Button} onClick=${() => giveOrder(worker, "quiet").then(reload)}><span>Quiet <${Name} text=${worker} limit=${20} /> first</span><//>
  </div>`;
}

/** `query`: what the server selects by, where no `ids` are given; `group`: of the dead, if the filter selects one. */
export function RetryPanel({ queue, ids, filter, query, group, attempts, close, done }) {
  const [spread, setSpread] = useState("");
  const where = api.path`/api/queues/${queue}/retry`;
  const act = () =>
    ids
      ? each(ids, (id) => api.send("POST", where, { query: { id, spread } }))
      : api.send("POST", where, { query: { ...query, spread } });
  const how = spread ? `They become ready one after the other over ${SPREADS.find((one) => one.value === spread).text}` : "They join the end of Ready";
  const span = group && !ids && group.count > 1 ? html` They died between ${clock(group.first)} and ${clock(group.last)}.` : "";
  const noted = !ids && query.reason === undefined ? " Cancelled and expired tasks stay dead." : "";
  return html`<${Confirm}
    title=${(many) => `Retry ${count(many, "dead task")}?`}
    verb=${(many) => `Retry ${count(many, "task")}`}
    count=${() => (ids ? Promise.resolve(ids.length) : api.send("POST", where, { query: { ...query, dry_run: 1 } }).then(({ value }) => value.count))}
    scope=${JSON.stringify([ids, query])}
    act=${act}
    told=${(value) => told("Retried", value, "their key is taken or they were retried already")}
    close=${close}
    done=${done}
    extra=${html`<label class="row spread"><span class="quiet">Spread over</span>
        <${Select} boxed label="Spread over" options=${SPREADS} value=${spread} onChange=${setSpread} /></label>
      <span class="note">${UNDO}</span>`}
  >
    <p><${Scope} ids=${ids} filter=${filter} />${span} ${how} and may be tried ${count(attempts, "more time")}.${noted}</p>
    <${Culprit} group=${group} />
  <//>`;
}

export function DeletePanel({ queue, state, ids, filter, query, close, done }) {
  const where = api.path`/api/queues/${queue}/tasks`;
  // Waiting tasks that were selected one by one are cancelled: that is how the API ends a single one.
  const isCancel = ids && (state === "ready" || state === "delayed" || state === "leased");
  const verb = isCancel ? "Cancel" : "Delete";
  const act = () =>
    ids
      ? each(ids, (id) => api.send("DELETE", api.path`/api/queues/${queue}/tasks/${id}`))
      : api.send("DELETE", where, { query: { ...query, state } });
  const next = isCancel ? "They become dead, with the reason cancelled; whoever works on one is told to stop." : "Their payloads, results and histories go with them.";
  return html`<${Confirm}
    destroys
    title=${(many) => `${verb} ${count(many, `${HOW_DEAD[state] ?? ""}task`)}?`}
    verb=${(many) => `${verb} ${count(many, "task")}`}
    count=${() => (ids ? Promise.resolve(ids.length) : api.send("DELETE", where, { query: { ...query, state, dry_run: 1 } }).then(({ value }) => value.count))}
    scope=${JSON.stringify([ids, query, state])}
    act=${act}
    told=${(value) => told(isCancel ? "Cancelled" : "Deleted", value, "they were gone or had changed")}
    close=${close}
    done=${done}
    extra=${html`<span class="note">${UNDO}</span>`}
  >
    <p><${Scope} ids=${ids} filter=${filter} /> ${next}</p>
  <//>`;
}

export function PurgePanel({ queue, close }) {
  const tasks = api.path`/api/queues/${queue}/tasks`;
  const counted = async () => {
    const found = await Promise.all(["ready", "delayed"].map((state) => api.send("DELETE", tasks, { query: { state, dry_run: 1 } })));
    return found.reduce((sum, { value }) => sum + value.count, 0);
  };
  return html`<${Confirm}
    destroys
    title=${(many) => `Purge ${count(many, "task")}?`}
    verb=${(many) => `Purge ${count(many, "task")}`}
    count=${counted}
    act=${() => api.send("DELETE", api.path`/api/queues/${queue}`)}
    told=${(value) => told("Purged", value)}
    close=${close}
    extra=${html`<span class="note">${UNDO}</span>`}
  >
    <p>All ready and delayed tasks of <b><${Name} text=${queue} limit=${60} /></b> are deleted. Leased, dead and done ones stay, and so does the policy.</p>
  <//>`;
}

export function MovePanel({ queue, counts, close }) {
  const [to, setTo] = useState("");
  const act = async () => {
    if (!to.trim()) throw new Error("Name the queue that gets the tasks.");
    return api.send("POST", api.path`/api/queues/${queue}/move`, { query: { to: to.trim(), state: "ready" } });
  };
  return html`<${Confirm}
    title=${(many) => `Move ${count(many, "ready task")} to another queue?`}
    verb=${(many) => `Move ${count(many, "task")}`}
    count=${async () => (await api.get(api.path`/api/queues/${queue}`)).ready}
    act=${act}
    told=${(value) => told("Moved", value, "their key is taken there")}
    close=${close}
    extra=${html`<span class="note">This cannot be undone; moving them back can.</span>`}
  >
    <p>They go to the tail of the other queue and keep their ids and their order.</p>
    <label class="label" for="move-to">To queue</label>
    <div class="field"><input id="move-to" value=${to} onInput=${(event) => setTo(event.target.value)} autocomplete="off" spellcheck=${false} /></div>
  <//>`;
}

export const failed = (error) => toast({ text: error.message });

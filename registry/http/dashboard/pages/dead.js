// Dead: how many reasons, which one grows, and whom does it point to?

import { api, may, session } from "../lib/api.js";
import { Confirm } from "../lib/confirm.js";
import { ago, clock, count, number, visible, word, zoned } from "../lib/format.js";
import { bulkQuery, groupFilter, listQuery, writeFilter } from "../lib/filter.js";
import { HeldNote, useHeld } from "../lib/hold.js";
import { Icon } from "../lib/icons.js";
import { compact } from "../lib/json-text.js";
import { useFetch, useLittleRoom } from "../lib/live.js";
import { Button, Chips, Empty, Failure, FilterField, Meter, Name, Num, Time } from "../lib/parts.js";
import { html, useState } from "../lib/preact.js";
import { href, setQuery } from "../lib/router.js";
import { useRefresh } from "../lib/refresh.js";
import { Table } from "../lib/table.js";
import { errorOf, reasonText, taskPage, told, wholeTask } from "../lib/tasks.js";
import { ErrorWell } from "../lib/well.js";
import { giveOrder } from "./orders.js";

export const title = () => "Dead";

const keyOf = (group) => [group.reason, group.type ?? "", group.message ?? ""].join("\u0001");
const grows = (group) => group.recent > 0;
const isToday = (at) => new Date(at).toDateString() === new Date().toDateString();
const isOne = (group) => group.points_to === "worker";

/** What a group is called: the type of its error, or what else ended its tasks. */
function nameOf(group) {
  if (group.hidden) return "Failed";
  if (group.reason === "failed") return group.type ?? (group.message ? "Failed" : "Failed without an error");
  const text = reasonText(group.reason);
  return text[0].toUpperCase() + text.slice(1);
}

function Lead({ groups }) {
  const growing = groups.filter(grows);
  if (!growing.length) return html`None of them grows: nothing died in the last 5 min.`;
  const [worst] = [...growing].sort((one, other) => other.recent - one.recent);
  const where = worst.queues.length === 1 ? html`${nameOf(worst)} in ${worst.queues[0]}` : `${nameOf(worst)} in ${count(worst.queues.length, "queue")}`;
  const many = growing.length === 1 ? "One of them grows" : `${word(growing.length, true)} of them grow, most of all`;
  return html`${many}: <b>${where}</b>, ${number(worst.recent)} in the last 5 min.${groups.length > growing.length && " The rest is quiet."}`;
}

function Hours({ group }) {
  const top = Math.max(6, ...group.hours);
  const first = Math.max(0, group.hours.findIndex((value) => value > 0));
  const label = group.hours.some(Boolean)
    ? `Died in the last 24 h: ${number(group.hours.reduce((sum, value) => sum + value, 0))}, the first ${group.hours.length - first} h ago`
    : "None died in the last 24 h";
  return html`<svg class="hours" viewBox="0 0 144 28" role="img" aria-label=${label}>
    <path class="base" d="M0 27.5H144" />
    ${group.hours.map((value, at) => value > 0 && html`<rect class="bar-dead" x=${at * 6 + 1} y=${27 - Math.max(2, (value / top) * 25)} width="4" height=${Math.max(2, (value / top) * 25)} />`)}
  </svg>`;
}

function PointsTo({ group }) {
  const notes = {
    worker: html`<${Name} text=${group.workers[0]} limit=${24} />`,
    tasks: group.workers.length > 1 ? `failed on ${number(group.workers.length)} workers` : "no worker could do them",
    unclear: group.count === 1 ? "seen once" : group.workers.length ? count(group.workers.length, "worker") : "no worker is named",
  };
  const heads = { worker: "one worker", tasks: "the tasks", unclear: "unclear" };
  return html`<div class=${isOne(group) ? "asks" : ""}>${heads[group.points_to]}</div>
    <div class="note cut">${notes[group.points_to]}</div>`;
}

function Queues({ names }) {
  const [first, ...rest] = names;
  return html`<span class="cut"><${Name} text=${first} limit=${22} />${rest.length > 0 && html` <span class="faint">and ${number(rest.length)} more</span>`}</span>`;
}

const shortAgo = (at) => html`<time datetime=${at} title=${zoned(at)}>${ago(at)}</time>`;

function Sentence({ group }) {
  const worker = group.workers[0];
  const many = group.count === 1 ? "The one task" : `Nearly all of these ${number(group.count)} tasks`;
  if (isOne(group)) return html`<b>${many} failed on <${Name} text=${worker} limit=${40} /></b>; other workers finish tasks of ${group.queues.length === 1 ? "this queue" : "these queues"}.`;
  if (group.points_to === "tasks" && group.workers.length > 1) return html`<b>They fail whoever tries</b>: on ${number(group.workers.length)} workers. Look at the tasks, or at what they need.`;
  if (group.reason === "expired") return html`<b>Nobody took them in time</b>: their ttl ran out before their first lease.`;
  if (group.reason === "cancelled") return html`<b>Somebody cancelled them.</b> The audit says who.`;
  if (group.reason === "lease_expired") return html`<b>Their workers fell silent</b> until the lease had run out, as often as a task may be tried.`;
  if (group.workers.length === 1) return html`<b>They failed on <${Name} text=${worker} limit=${40} /></b>, and no other worker is known to have tried.`;
  return html`<b>The workers have no names</b>, so nobody knows whether it is one of them.`;
}

/** A deed on a group is one request for each of its queues. */
function GroupPanel({ kind, group, close }) {
  const query = bulkQuery(groupFilter(group));
  const ask = (queue, more) =>
    kind === "retry"
      ? api.send("POST", api.path`/api/queues/${queue}/retry`, { query: { ...query, ...more } })
      : api.send("DELETE", api.path`/api/queues/${queue}/tasks`, { query: { ...query, state: "dead", ...more } });
  const sumOver = async (more) => {
    const value = { count: 0, skipped: 0 };
    const audit = [];
    for (const queue of group.queues) {
      const answer = await ask(queue, more);
      value.count += answer.value.count;
      value.skipped += answer.value.skipped;
      if (answer.audit) audit.push(answer.audit);
    }
    return { value, audit };
  };
  const isRetry = kind === "retry";
  const where = group.queues.length === 1 ? html`in <b><${Name} text=${group.queues[0]} limit=${40} /></b>` : `in ${count(group.queues.length, "queue")}`;
  return html`<${Confirm}
    destroys=${!isRetry}
    title=${(many) => `${isRetry ? "Retry" : "Delete"} ${count(many, "dead task")}?`}
    verb=${(many) => `${isRetry ? "Retry" : "Delete"} ${count(many, "task")}`}
    count=${() => sumOver({ dry_run: 1 }).then(({ value }) => value.count)}
    scope=${keyOf(group) + kind}
    act=${() => sumOver({})}
    told=${(value) => told(isRetry ? "Retried" : "Deleted", value, isRetry ? "their key is taken" : "they had changed")}
    close=${close}
    extra=${html`<span class="note">You can undo this for 10 min.</span>`}
  >
    <p>
      All of <b>${nameOf(group)}</b> ${where}, died between ${clock(group.first)} and ${clock(group.last)}.
      ${isRetry ? " They join the end of Ready." : " Their payloads and histories go with them."}
    </p>
  <//>`;
}

function Detail({ group, panel, setPanel }) {
  const queue = group.queues[0];
  const filter = groupFilter(group);
  const hides = session.get().me?.payloads === false;
  const example = useFetch((signal) => wholeTask(group.example.queue, group.example.id, signal), [group.example.queue, group.example.id], {
    enabled: Boolean(group.example.id),
  });
  const newest = useFetch((signal) => taskPage(queue, { state: "dead", limit: 3, ...(hides ? {} : listQuery(filter)) }, signal), [queue, keyOf(group), group.count], {
    enabled: !group.hidden,
  });
  const error = example.data && errorOf(example.data);
  const operates = may("operate");
  const rows = newest.data?.rows ?? [];
  return html`<div class="group-detail">
    <div class="row wide wraps">
      <p class="lead grow"><${Sentence} group=${group} /></p>
      ${operates &&
      html`<span class="row wraps">
        ${isOne(group) && html`<${Button} primary onClick=${() => giveOrder(group.workers[0], "quiet")}><span>Quiet <${Name} text=${group.workers[0]} limit=${20} /></span><//>`}
        <${Button} data-key="r" onClick=${() => setPanel("retry")}>Retry ${number(group.count)}…<//>
        <${Button} onClick=${() => setPanel("delete")}>Delete ${number(group.count)}…<//>
      </span>`}
    </div>
    ${panel && html`<${GroupPanel} kind=${panel} group=${group} close=${() => setPanel(null)} />`}
    <div class="halves">
      <section class="stack tight">
        <h2 class="note">${error?.trace ? "Newest trace" : "Newest error"}</h2>
        ${error ? html`<${ErrorWell} error=${error} />` : html`<p class="quiet">${example.data?.hidden ? "Hidden from this token." : example.data ? "No error was given." : ""}</p>`}
      </section>
      <section class="stack tight">
        <h2 class="note">Newest tasks</h2>
        <ul class="lines">
          ${rows.map(
            (task) => html`<li key=${task.id} class="row">
              <a class="id" href=${href({ page: "task", queue, task: task.id })}>${task.id}</a>
              <bdi class="mono cut quiet grow">${task.hidden ? "" : visible(compact(task.raw, 80))}</bdi>
              <span class="quiet"><${Time} at=${task.ended_at} ago /></span>
            </li>`,
          )}
        </ul>
        <p>
          ${group.queues.slice(0, 5).map(
            (name, at) => html`${at > 0 && ", "}<a class="link" href=${href({ page: "queue", queue: name, query: { tab: "dead", q: hides ? undefined : writeFilter(filter) } })}
                >${at === 0 ? "All in " : ""}<${Name} text=${name} limit=${40} /></a>`,
          )}
        </p>
      </section>
    </div>
  </div>`;
}

function columnsFor({ narrow, total, opened, openTo, ask }) {
  const toggle = (group) => {
    const isOpen = opened === keyOf(group);
    return html`<button
      type="button"
      class="opener"
      data-open
      aria-expanded=${isOpen}
      aria-label=${`${isOpen ? "Close" : "Open"} ${nameOf(group)}`}
      onClick=${() => openTo(isOpen ? null : keyOf(group))}
    >
      <${Icon} name=${isOpen ? "down" : "right"} />
    </button>`;
  };
  const error = (group) => html`<div class="strong cut"><${Name} text=${nameOf(group)} limit=${40} /></div>
    <bdi class="mono cut quiet" title=${group.message ?? ""}>${group.hidden ? "hidden from this token" : visible(group.message ?? "")}</bdi>`;
  const tasks = (group) => html`<${Num} value=${group.count} kind=${grows(group) ? "dies strong" : "strong"} />
    <${Meter} kind=${grows(group) ? "dead" : ""} share=${group.count / Math.max(1, total)} label=${`${number(group.count)} of ${number(total)}`} />`;
  const retry = (group) =>
    opened !== keyOf(group) && html`<${Button} bare onClick=${() => ask(group)}>Retry ${number(group.count)}…<//>`;
  if (narrow) {
    const both = (group) => html`${error(group)}<div class="note"><${Queues} names=${group.queues} /></div>`;
    const right = (group) => html`${number(group.count)}<div class="note">${shortAgo(group.last)}</div>`;
    return [
      { key: "open", label: "Open", width: "w3", cell: toggle },
      { key: "error", head: "Error", width: "grow", cell: both },
      { key: "tasks", head: "Tasks", width: "w10", num: true, cell: right },
    ];
  }
  return [
    { key: "open", label: "Open", width: "w3", cell: toggle },
    { key: "error", head: "Error", width: "grow", cell: error },
    { key: "queue", head: "Queue", width: "w18", cell: (group) => html`<${Queues} names=${group.queues} />` },
    { key: "tasks", head: "Tasks", width: "w8", num: true, cell: tasks },
    { key: "hours", head: "Last 24 h", width: "w20", cell: (group) => html`<${Hours} group=${group} />` },
    { key: "first", head: "First", width: "w12", cell: (group) => shortAgo(group.first) },
    { key: "last", head: "Latest", width: "w12", cell: (group) => shortAgo(group.last) },
    { key: "points", head: "Points to", width: "w18", cell: (group) => html`<${PointsTo} group=${group} />` },
    ...(may("operate") ? [{ key: "retry", head: "", label: "Retry", width: "w14", num: true, cell: retry }] : []),
  ];
}

function matches(group, q) {
  if (!q) return true;
  const text = [nameOf(group), group.message ?? "", ...group.queues, ...group.workers].join("\n").toLowerCase();
  return text.includes(q.toLowerCase());
}

export default function Dead({ route }) {
  const { q = "", show = "all", open: opened, queue } = route.query;
  const narrow = useLittleRoom();
  const [panel, setPanel] = useState(null);
  const { data, error, reload } = useFetch((signal) => api.get("/api/dead", { limit: 1000, queue }, { signal }), ["dead", queue ?? ""], { every: 3 });
  useRefresh(reload);
  const groups = data?.groups ?? [];
  const shows = { all: () => true, growing: grows, new: (group) => isToday(group.first) };
  const rows = groups.filter((group) => (shows[show] ?? shows.all)(group) && matches(group, q));
  const held = useHeld(rows.slice(0, 100), { key: keyOf, scope: q + show, lock: Boolean(opened) });
  const total = groups.reduce((sum, group) => sum + group.count, 0);
  const chips = [
    { value: "all", text: "All", count: groups.length },
    { value: "growing", text: "Growing", count: groups.filter(grows).length },
    { value: "new", text: "New today", count: groups.filter(shows.new).length },
  ];
  const openTo = (key) => {
    setPanel(null);
    setQuery({ open: key });
  };
  const ask = (group) => {
    openTo(keyOf(group));
    setPanel("retry");
  };
  const reasons = groups.length === 1 ? "one reason" : `${word(groups.length)} reasons`;
  const heading = !data ? "\u00a0" : total ? `${count(data.count, "dead task")}, ${reasons}.` : `No dead tasks${queue ? ` in ${visible(queue)}` : ""}.`;
  return html`<h1 class="verdict">${heading}</h1>
    <p class="lead">${data && (total ? html`<${Lead} groups=${groups} />` : "A task that fails for good appears here, with the reason.")}</p>
    ${error && html`<${Failure} error=${error} retry=${reload} />`}
    ${total > 0 &&
    html`<div class="toolbar">
        <${FilterField} value=${q} placeholder="Filter by error, queue or worker" onChange=${(value) => setQuery({ q: value }, true)} />
        ${queue &&
        html`<span class="token"><span class="faint">queue:</span> <${Name} text=${queue} limit=${30} />
          <button type="button" class="remove" aria-label="All queues" onClick=${() => setQuery({ queue: null })}><${Icon} name="close" /></button></span>`}
        <${Chips} label="Which reasons" options=${chips} value=${show} onChange=${(value) => setQuery({ show: value === "all" ? null : value })} />
        <span class="order"><${HeldNote} held=${held} /></span>
      </div>
      ${held.rows.length
        ? html`<${Table}
            label="Dead tasks by reason"
            dense=${false}
            columns=${columnsFor({ narrow, total, opened, openTo, ask })}
            rows=${held.rows}
            keyOf=${keyOf}
            opened=${opened}
            detail=${(group) => html`<${Detail} group=${group} panel=${panel} setPanel=${setPanel} />`}
            hand=${held.hand}
          />`
        : html`<${Empty} title=${html`No reason matches${q && html` <b><${Name} text=${q} limit=${60} /></b>`}.`}>
            <${Button} onClick=${() => setQuery({ q: null, show: null })}>Clear<//>
          <//>`}
      ${!data.complete && html`<p class="note">There are more dead tasks than were read: the newest of each queue are counted.</p>`}
      ${rows.length > 100 && html`<p class="note">The 100 largest are shown.</p>`}`}`;
}

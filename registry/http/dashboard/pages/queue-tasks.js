// The tasks of a queue in one state: filter, rows, and deeds on what is selected or on all that match.

import { api, may } from "../lib/api.js";
import { ago, duration, left, middle, ms, number, visible, zoned } from "../lib/format.js";
import { TokenField, bulkQuery, fitsGroup, idOf, listQuery, parseFilter } from "../lib/filter.js";
import { HeldNote, useHeld } from "../lib/hold.js";
import { Glyph } from "../lib/icons.js";
import { compact } from "../lib/json-text.js";
import { useFetch, useNarrow, useNow } from "../lib/live.js";
import { Button, Empty, Failure, Name, Num, Pager } from "../lib/parts.js";
import { html, useEffect, useMemo, useState } from "../lib/preact.js";
import { href, setQuery } from "../lib/router.js";
import { useRefresh } from "../lib/refresh.js";
import { Table } from "../lib/table.js";
import { attemptsOf, errorLine, errorOf, lengthOf, reasonText, taskPage, workerOf } from "../lib/tasks.js";
import { DeletePanel, RetryPanel } from "./queue-deeds.js";

const LIMIT = 25;
const PAYLOAD = 160;
// A filtered page may be empty although more follows: so many are read before that is said.
const PAGES_READ = 10;
const WHEN = {
  ready: { head: "Pushed", at: (task) => task.pushed_at },
  delayed: { head: "Due", at: (task) => task.due_at },
  leased: { head: "Lease left", at: (task) => task.lease_ends_at },
  dead: { head: "Died", at: (task) => task.ended_at },
  done: { head: "Done", at: (task) => task.ended_at },
};
const NOTHING = {
  ready: "No task is ready.",
  delayed: "No task is delayed.",
  leased: "No task is leased.",
  dead: "No dead tasks.",
  done: "No done tasks are kept.",
};
// The cursors of the pages that were seen: the API knows the way forward only.
const cursors = new Map();

/** The page of the list that the URL names. Filtered pages that are empty are passed over, up to a bound. */
async function load(name, state, filter, cursor, signal) {
  const query = { state, limit: LIMIT, ...listQuery(filter) };
  const id = idOf(filter);
  let page = { rows: [], cursor };
  for (let read = 0; read < PAGES_READ; read += 1) {
    page = await taskPage(name, { ...query, cursor: page.cursor ?? undefined }, signal);
    if (id) page.rows = page.rows.filter((row) => row.id?.includes(id));
    if (page.rows.length || !page.cursor) break;
  }
  return page;
}

/** How many tasks of the state match, as the server counts them; undefined if it cannot. */
function useMatching(name, state, filter, total) {
  const query = bulkQuery(filter);
  const canCount = may("operate") && query !== null && filter.tokens.length > 0 && state !== "leased";
  const { data } = useFetch(
    async (signal) => {
      const { value } = await api.send("DELETE", api.path`/api/queues/${name}/tasks`, { query: { ...query, state, dry_run: 1 }, signal });
      return value.count;
    },
    [name, state, query, total, "matching"],
    { enabled: canCount },
  );
  return canCount ? (data ?? undefined) : undefined;
}

/** The group of dead tasks that the filter selects, if it is one. */
function groupOf(deaths, state, filter) {
  const fitting = (deaths?.groups ?? []).filter((group) => fitsGroup(filter, group));
  return state === "dead" && deaths?.complete && fitting.length === 1 && !fitting[0].hidden ? fitting[0] : null;
}

function When({ task, state }) {
  const now = useNow();
  const at = WHEN[state].at(task);
  if (!at) return html`<span class="faint">–</span>`;
  const seconds = (ms(at) - now) / 1000;
  const text = state === "leased" ? left(seconds) : state === "delayed" ? `in ${duration(Math.max(0, seconds))}` : ago(at, now);
  const isShort = state === "leased" && seconds < 10;
  return html`<time class=${isShort ? "asks" : ""} datetime=${at} title=${zoned(at)}>${text}</time>`;
}

/** How much of the lease is left, 0 to 1. */
function share(task) {
  const begin = ms(task.leased_at);
  const end = ms(task.lease_ends_at);
  return end > begin ? Math.max(0, Math.min(1, (end - Date.now()) / (end - begin))) : 0;
}

function Payload({ task }) {
  if (task.hidden) return html`<span class="faint">hidden from this token</span>`;
  return html`<bdi class="mono cut quiet">${visible(compact(task.raw, PAYLOAD))}</bdi>`;
}

function IdLink({ task, name, state }) {
  const glyph = state === "leased" ? html`<${Glyph} state="leased" share=${share(task)} /> ` : "";
  if (task.id === null) return html`${glyph}<span class="faint">no id yet</span>`;
  return html`${glyph}<a class="id" data-open href=${href({ page: "task", queue: name, task: task.id })}>${task.id}</a>`;
}

function Why({ task }) {
  const error = errorLine(errorOf(task));
  const reason = task.reason && task.reason !== "failed" ? reasonText(task.reason) : "";
  const text = [reason, error].filter(Boolean).join(": ");
  return text ? html`<bdi class="cut mono dies second" title=${visible(text)}>${visible(middle(text, 200))}</bdi>` : null;
}

function columnsFor({ name, state, policy, narrow, tick, showsErrors, tickAll }) {
  const ticks = tick ? [{ key: "tick", head: tickAll, width: "w3", cell: tick }] : [];
  const second = (task) => (showsErrors ? html`<${Why} task=${task} />` : null);
  const when = { key: "when", head: WHEN[state].head, width: "w10", num: true, cell: (task) => html`<${When} task=${task} state=${state} />` };
  if (narrow) {
    const lines = (task) => html`<${IdLink} task=${task} name=${name} state=${state} /><div><${Payload} task=${task} /></div>${second(task)}`;
    return [...ticks, { key: "task", head: "Task", width: "grow", cell: lines }, { ...when, width: "w10" }];
  }
  const worker = { key: "worker", head: "Worker", width: "w12", cell: (task) => html`<span class="cut"><${Name} text=${workerOf(task)} limit=${18} /></span>` };
  const attempts = { key: "attempts", head: "Attempts", width: "w8", num: true, cell: (task) => attemptsOf(task, policy) };
  const priority = { key: "priority", head: "Priority", width: "w8", num: true, cell: (task) => html`<${Num} value=${task.priority} />` };
  const result = {
    key: "result",
    head: "Result",
    width: "w18",
    cell: (task) => html`<bdi class="mono cut quiet">${task.hidden || task.result === null ? "–" : visible(compact(JSON.stringify(task.result), 60))}</bdi>`,
  };
  return [
    ...ticks,
    { key: "id", head: "Task", width: state === "leased" ? "w26" : "w24", cell: (task) => html`<${IdLink} task=${task} name=${name} state=${state} />` },
    { key: "payload", head: "Payload", label: "Payload", width: "grow", cell: (task) => html`<${Payload} task=${task} />${second(task)}` },
    ...(state === "done" ? [result] : [attempts]),
    ...(state === "ready" ? [priority] : [worker]),
    when,
  ];
}

export function QueueTasks({ route, state, queue, name, deaths, counted }) {
  const q = route.query.q ?? "";
  const filter = useMemo(() => parseFilter(q), [q]);
  const cursor = route.query.cursor ?? "";
  const page = Number(route.query.page) || 1;
  const narrow = useNarrow();
  const [picked, setPicked] = useState(new Set());
  const [panel, setPanel] = useState(null);
  const scope = JSON.stringify([name, state, q, cursor]);
  const { data, error, reload, isCurrent } = useFetch((signal) => load(name, state, filter, cursor, signal), [name, state, q, cursor], { every: 5 });
  useRefresh(reload, counted);
  useEffect(() => setPicked(new Set()), [scope]);

  const held = useHeld(data?.rows ?? [], { key: (row) => row.id ?? `raw ${row.raw}`, scope: scope + isCurrent, lock: picked.size > 0 || panel !== null });
  const rows = held.rows.map(({ row }) => row);
  const total = queue?.[state];
  const matching = useMatching(name, state, filter, total);
  const group = groupOf(deaths, state, filter);
  const isFiltered = q !== "";
  const query = bulkQuery(filter);
  const errors = new Set(rows.map((row) => errorLine(errorOf(row)) || reasonText(row.reason)));
  const one = errors.size === 1 ? [...errors][0] : group ? errorLine(group) || reasonText(group.reason) : "";
  const shared = state === "dead" && rows.length > 1 ? one : "";
  const showsErrors = !shared && (state === "dead" || state === "delayed" || state === "ready");

  const operates = may("operate");
  const canTick = operates && state !== "done";
  const all = panel?.ids === null;
  const toggle = (id) => {
    const next = new Set(picked);
    if (!next.delete(id)) next.add(id);
    setPicked(next);
  };
  const ids = rows.map((row) => row.id).filter((id) => id !== null);
  const isAll = ids.length > 0 && ids.every((id) => picked.has(id));
  const tick = canTick
    ? (task) =>
        task.id !== null &&
        html`<input class="tick" type="checkbox" tabindex="-1" checked=${all || picked.has(task.id)} aria-label=${`Select ${task.id}`} onChange=${() => toggle(task.id)} />`
    : null;
  const tickAll = html`<input
    class="tick"
    type="checkbox"
    checked=${all || isAll}
    aria-label="Select all rows of this page"
    onChange=${() => setPicked(isAll ? new Set() : new Set(ids))}
  />`;
  const many = picked.size || (isFiltered ? matching : total);
  const open = (kind) => setPanel({ kind, ids: picked.size ? [...picked] : null });
  const close = () => setPanel(null);
  const done = () => setPicked(new Set());
  const canBulk = operates && many > 0 && (picked.size > 0 || (query !== null && state !== "leased"));
  const deleting = state === "dead" || state === "done" || !picked.size ? "Delete" : "Cancel";
  const note = isFiltered && matching !== undefined && total !== undefined ? `${number(matching)} of ${number(total)} match.` : "";
  const props = { queue: name, filter, query: query ?? {}, ids: panel?.ids, close, done };

  const goTo = (nextPage, nextCursor) => setQuery({ page: nextPage > 1 ? nextPage : null, cursor: nextPage > 1 ? nextCursor : null });
  const place = JSON.stringify([name, state, q]);
  cursors.set(`${place} ${page}`, cursor);
  const previous = page > 1 ? () => goTo(page - 1, cursors.get(`${place} ${page - 1}`) ?? "") : null;
  const next = data?.cursor && rows.length ? () => goTo(page + 1, data.cursor) : null;
  const from = (page - 1) * LIMIT + 1;
  const known = isFiltered ? matching : total;
  const range = rows.length ? `${number(from)}–${number(from + rows.length - 1)}${known === undefined ? "" : ` of ${number(Math.max(known, from + rows.length - 1))}`}` : "";
  return html`<div class="toolbar">
      <${TokenField}
        value=${q}
        keys=${["error", "worker", "id", "reason"]}
        placeholder="Filter, or error: worker: id:"
        label="Filter the tasks"
        onChange=${(value) => setQuery({ q: value, page: null, cursor: null })}
      />
      <span class="quiet told">
        ${note} ${shared && html`All say “<${Name} text=${shared} limit=${90} />”.`}
      </span>
      <span class="order">
        <${HeldNote} held=${held} />
        ${canBulk &&
        state === "dead" &&
        html`<${Button} data-key="r" onClick=${() => open("retry")}>Retry ${number(many)}…<//>`}
        ${canBulk && html`<${Button} onClick=${() => open("delete")}>${deleting} ${number(many)}…<//>`}
      </span>
    </div>
    ${panel?.kind === "retry" &&
    html`<${RetryPanel} ...${props} group=${group} attempts=${rows[0] ? lengthOf(rows[0], queue?.policy, "attempts") : 25} />`}
    ${panel?.kind === "delete" && html`<${DeletePanel} ...${props} state=${state} />`}
    ${error && html`<${Failure} error=${error} retry=${reload} />`}
    ${picked.size > 0 &&
    html`<p class="row quiet selection">
      ${number(picked.size)} selected.
      ${query !== null && state !== "leased" &&
      html`<button type="button" class="link" data-select-all onClick=${() => setPicked(new Set())}>
        All ${known === undefined ? "" : number(known)} that match instead
      </button>`}
    </p>`}
    ${rows.length > 0 &&
    html`<${Table}
        label=${`Tasks of ${name}, ${state}`}
        columns=${columnsFor({ name, state, policy: queue?.policy, narrow, tick, showsErrors, tickAll })}
        rows=${held.rows}
        keyOf=${(row) => row.id ?? `raw ${row.raw}`}
        rowClass=${(row) => (all || picked.has(row.id) ? "selected" : "")}
        hand=${held.hand}
      />
      <${Pager} text=${range} previous=${previous} next=${next} />`}
    ${data && isCurrent && !rows.length && html`<${Nothing} state=${state} filter=${filter} q=${q} data=${data} previous=${previous} next=${next} />`}`;
}

function Nothing({ state, q, data, previous }) {
  if (!q) {
    return html`<${Empty} title=${NOTHING[state]}>${previous && html`<${Button} onClick=${previous}>Previous page<//>`}<//>`;
  }
  const searched = data.cursor ? " in what was searched so far" : "";
  return html`<${Empty} title=${html`No task matches <b><${Name} text=${q} limit=${80} /></b>${searched}.`}>
    <span class="row">
      <${Button} onClick=${() => setQuery({ q: null, page: null, cursor: null })}>Clear<//>
      ${data.cursor && html`<${Button} onClick=${() => setQuery({ cursor: data.cursor })}>Search on<//>`}
    </span>
  <//>`;
}

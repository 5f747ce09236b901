// The queues: those that need somebody first, then the others; families folded; filter, sort and pages are the server's work.

import { api } from "../lib/api.js";
import { glyphOf, reasonOf } from "../lib/findings.js";
import { UNKNOWN, duration, number, rate } from "../lib/format.js";
import { HeldNote, useHeld } from "../lib/hold.js";
import { Glyph, Icon } from "../lib/icons.js";
import { ageOf, live, useFetch, useLiveQueues, useLittleRoom, useNow } from "../lib/live.js";
import { Button, Chips, Empty, Failure, FilterField, Name, Num, Pager, Select, classes } from "../lib/parts.js";
import { html, useMemo, useRef } from "../lib/preact.js";
import { href, setQuery } from "../lib/router.js";
import { Spark } from "../lib/spark.js";
import { useStore } from "../lib/store.js";
import { Table } from "../lib/table.js";

const PER_PAGE = 50;
const EVERY = 2;
// Rows that ask, beside those of the page; and rows that a chip shows.
const MAX_PINNED = 20;
const MAX_NAMED = 100;
const SORTS = [
  { value: "asks", text: "Need you first, then oldest" },
  { value: "oldest", text: "Oldest first" },
  { value: "ready", text: "Most ready" },
  { value: "delayed", text: "Most delayed" },
  { value: "leased", text: "Most leased" },
  { value: "dead", text: "Most dead" },
  { value: "done", text: "Most done" },
  { value: "name", text: "By name" },
];
// Which findings a chip shows.
const CHIPS = { asks: null, unpolled: "nobody_polls", paused: "paused", dying: "deaths" };
const LOOK = { ready: 0, delayed: 0, leased: 0, dead: 0, done: 0, pollers: 0, oldest_age: null, policy: {}, rates: {} };

const isFamily = (row) => row.name.endsWith(":*") && row.queues !== undefined;

/** The queues that findings are about: {name: finding}, the worst first. */
function asking(report) {
  const found = new Map();
  for (const one of report?.findings ?? []) if (one.queue && !found.has(one.queue)) found.set(one.queue, one);
  return found;
}

/** One row, with its last hour. */
async function rowOf(name, signal) {
  const [family, search] = name.endsWith(":*") ? [":", name.slice(0, -1)] : [undefined, name];
  const { queues } = await api.get("/api/queues", { family, search, limit: 100, stats: 1 }, { signal });
  return queues.find((row) => row.name === name) ?? { ...LOOK, name, ...(family && { queues: 0 }) };
}

/** The rates and the last hour of the rows of a page, by name: the stream does not have them. */
function useHours({ sort, search, folds, only, names }, matching) {
  const { data } = useFetch(
    async (signal) => {
      const rows = only
        ? await Promise.all(names.slice(0, MAX_PINNED).map((name) => rowOf(name, signal)))
        : (await api.get("/api/queues", { stats: 1, sort: orderOf(sort), limit: PER_PAGE, search, family: folds ? ":" : undefined }, { signal })).queues;
      return new Map(rows.map((row) => [row.name, row]));
    },
    ["hours", sort, search, folds, only && names],
    // A look at many queues costs Redis more than a look at few.
    { every: matching > 500 ? 30 : 10 },
  );
  return data;
}

const orderOf = (sort) => (sort === "asks" ? "oldest" : sort);

/**
 * The rows to show, and where they are from. The first page comes with the event stream; the rows that ask, as far as it does
 * not show them, and further pages are looked up.
 */
function useRows(wanted) {
  const { names, only, search, sort, cursor, folds } = wanted;
  const order = orderOf(sort);
  const family = folds ? ":" : undefined;
  const selection = cursor
    ? { limit: 0 }
    : only
      ? { queue: names.slice(0, MAX_NAMED).join("/") || undefined, family: ":", limit: names.length ? MAX_NAMED : 0 }
      : { family, search: search || undefined, sort: order, limit: PER_PAGE };
  const { rows, matching } = useLiveQueues(selection);
  const asks = sort === "asks" && !cursor && !only ? names.filter((name) => name.includes(search)) : [];
  const shown = new Set(rows?.map((row) => row.name));
  const missing = rows ? asks.filter((name) => !shown.has(name)).slice(0, MAX_PINNED) : [];
  const pinned = useFetch((signal) => Promise.all(missing.map((name) => rowOf(name, signal))), [missing], {
    every: EVERY,
    enabled: missing.length > 0,
  });
  const hours = useHours(wanted, matching ?? 0);
  const page = useFetch((signal) => api.get("/api/queues", { stats: 1, sort: order, limit: PER_PAGE, cursor, search, family }, { signal }), [sort, cursor, search, folds], {
    every: 5 * EVERY,
    enabled: Boolean(cursor),
  });
  const scope = JSON.stringify([sort, search, cursor, folds, only]);
  if (cursor) return { rows: page.data?.queues ?? null, next: page.data?.cursor, matching, scope, error: page.error, reload: page.reload };
  if (!rows) return { rows: null, scope };
  const known = new Map([...rows, ...(missing.length ? (pinned.data ?? []) : [])].map((row) => [row.name, row]));
  const withHour = (row) => {
    const { last_hour: hour, rates } = hours?.get(row.name) ?? row;
    return { ...row, last_hour: hour, rates: rates ?? {} };
  };
  const first = (only ? names : asks).filter((name) => known.has(name) && name.includes(search));
  const rest = only ? [] : rows.filter((row) => !first.includes(row.name));
  return { rows: [...first.map((name) => known.get(name)), ...rest].map(withHour), asks: first.length, next: !only && matching > PER_PAGE, matching, scope };
}

/** The cursor behind the first page, which came with the stream. */
async function secondPage({ sort, search, folds }) {
  const { cursor } = await api.get("/api/queues", { sort: orderOf(sort), limit: PER_PAGE, search, family: folds ? ":" : undefined });
  return cursor;
}

function Reason({ row, finding, now }) {
  if (finding) {
    const kind = finding.code === "deaths" ? "dies" : "asks";
    return html`<span class=${`reason ${kind}`}><${Name} text=${reasonOf(finding, now)} /></span>`;
  }
  if (isFamily(row)) return html`<span class="reason faint">${number(row.queues)} ${row.queues === 1 ? "queue" : "queues"}</span>`;
  const { paused, concurrency, rate: limit } = row.policy;
  if (paused) return html`<span class="reason faint">paused</span>`;
  if (concurrency && row.leased >= concurrency) {
    return html`<span class="reason faint">at its limit, ${number(row.leased)} of ${number(concurrency)} running</span>`;
  }
  if (limit && row.ready) return html`<span class="reason faint">at most ${rate(limit)} a second</span>`;
  return null;
}

function QueueLink({ row, folded }) {
  if (isFamily(row)) {
    const open = (event) => {
      event.preventDefault();
      setQuery({ q: row.name.slice(0, -1), folds: "no", page: null, cursor: null });
    };
    return html`<a data-open class="queue-name" href=${href(folded(row.name.slice(0, -1)))} onClick=${open}><${Name} text=${row.name} limit=${34} /></a>`;
  }
  return html`<a data-open class="queue-name" href=${href({ page: "queue", queue: row.name })}><${Name} text=${row.name} limit=${34} /></a>`;
}

function mark(row, finding) {
  if (finding) return html`<${Glyph} state=${glyphOf(finding)} label=${finding.severity} />`;
  return isFamily(row) ? html`<${Icon} name="right" />` : null;
}

function spark({ last_hour: hour, ready }, finding) {
  if (!hour) return null;
  const asks = finding !== undefined && finding.code !== "deaths";
  return html`<${Spark} values=${hour.ready} asks=${asks} label=${`Ready, last hour; now ${number(ready)}`} />`;
}

const count = (value) => html`<${Num} value=${value} kind="live" />`;

function columnsOf({ finds, now, folded, hasHours }) {
  const finding = (row) => finds.get(row.name);
  const oldest = (row) => {
    const asks = ["nobody_polls", "paused"].includes(finding(row)?.code);
    return html`<span class=${classes("live", row.oldest_age === null && "zero", asks && "asks strong")}>${duration(ageOf(row, now))}</span>`;
  };
  const dead = (row) => {
    const grows = finding(row)?.code === "deaths";
    return html`<${Num} value=${row.dead} kind=${grows ? "dies strong" : "live"} />`;
  };
  const pollers = (row) =>
    finding(row)?.code === "nobody_polls" ? html`<span class="asks strong">none</span>` : html`<${Num} value=${row.pollers} kind="live" />`;
  const state = (key, head) => ({
    key,
    head,
    glyph: html`<${Glyph} state=${key} />`,
    num: true,
    width: "w10",
    sort: key,
    cell: (row) => (key === "dead" ? dead(row) : count(row[key])),
  });
  const speed = (key, head) => ({
    key,
    head,
    num: true,
    width: "w6",
    cell: (row) => {
      const asks = key === "done" && row.rates.done === 0 && finding(row);
      return html`<span class=${classes("live", asks && "asks strong", !row.rates[key] && "zero")}>${rate(row.rates[key])}</span>`;
    },
  });
  return [
    { key: "mark", label: "State", width: "mark", cell: (row) => mark(row, finding(row)) },
    {
      key: "name",
      head: "Queue",
      sort: "name",
      up: true,
      width: "grow",
      class: "who",
      cell: (row) => html`<${QueueLink} row=${row} folded=${folded} />${" "}<${Reason} row=${row} finding=${finding(row)} now=${now} />`,
    },
    state("ready", "Ready"),
    state("delayed", "Delayed"),
    state("leased", "Leased"),
    state("dead", "Dead"),
    hasHours
      ? { ...state("done", "Done, 1 h"), sort: undefined, cell: (row) => html`<${Num} value=${row.last_hour?.done ?? null} kind="live" />` }
      : state("done", "Done"),
    { key: "oldest", head: "Oldest", num: true, width: "w8", sort: "oldest", cell: oldest },
    ...(hasHours ? [speed("pushed", "In /s"), speed("done", "Out /s"), { key: "hour", head: "Ready, last hour", width: "w14", class: "hour", cell: (row) => spark(row, finding(row)) }] : []),
    { key: "pollers", head: "Pollers", num: true, width: "w8", cell: pollers },
  ];
}

/** On a phone a row has two lines: name and reason, ready over oldest. */
function narrowColumnsOf({ finds, now, folded, hasHours }) {
  const under = (row) => {
    const finding = finds.get(row.name);
    if (finding || isFamily(row) || row.policy.paused) return html`<${Reason} row=${row} finding=${finding} now=${now} />`;
    const parts = ["leased", "delayed", "dead"].filter((key) => row[key]).map((key) => `${number(row[key])} ${key}`);
    return html`<span class="reason faint">${parts.slice(0, 2).join(", ") || UNKNOWN}</span>`;
  };
  const asks = (row) => ["nobody_polls", "paused"].includes(finds.get(row.name)?.code);
  return [
    { key: "mark", label: "State", width: "mark", cell: (row) => mark(row, finds.get(row.name)) },
    {
      key: "name",
      head: "Queue",
      width: "grow",
      class: "who stacked",
      cell: (row) => html`<${QueueLink} row=${row} folded=${folded} />${" "}${under(row)}`,
    },
    ...(hasHours ? [{ key: "hour", label: "Ready, last hour", width: "w10", class: "hour", cell: (row) => spark(row, finds.get(row.name)) }] : []),
    {
      key: "ready",
      head: "Ready",
      num: true,
      width: "w8",
      class: "stacked",
      cell: (row) => html`${count(row.ready)}<span class=${asks(row) ? "asks strong" : "faint"}>${duration(ageOf(row, now))}</span>`,
    },
  ];
}

export function Queues({ route, report }) {
  const { q: search = "", sort = "asks", show = "all", cursor, page = "1", folds = "yes" } = route.query;
  const narrow = useLittleRoom();
  const now = useNow(1);
  const totals = useStore(live, (value) => value.totals);
  const finds = useMemo(() => asking(report), [report]);
  const only = show !== "all";
  const code = CHIPS[show];
  const names = [...finds].filter(([, one]) => !code || one.code === code).map(([name]) => name);
  const wanted = { names, only, search, sort, cursor, folds: folds === "yes" };
  const found = useRows(wanted);
  // Until the rows that were asked for are there, the old ones stay.
  const latest = useRef(null);
  if (found.rows) latest.current = found;
  const data = latest.current;
  const held = useHeld(data?.rows ?? [], { key: (row) => row.name, scope: data?.scope });
  // The way back: the cursor of each page that was seen.
  const cursors = useRef({ scope: "", of: {} });
  const set = JSON.stringify([show, search, sort, folds]);
  if (cursors.current.scope !== set) cursors.current = { scope: set, of: {} };
  cursors.current.of[page] = cursor ?? null;

  const change = (changes, replace) => setQuery({ page: null, cursor: null, ...changes }, replace);
  const counted = (wantedCode) => [...finds.values()].filter((one) => !wantedCode || one.code === wantedCode).length;
  const chips = [
    { value: "all", text: "All", count: totals?.queues },
    ...(report ? [{ value: "asks", text: "Need you", count: finds.size }] : []),
    ...(report ? [{ value: "unpolled", text: "Not polled", count: counted("nobody_polls") }] : []),
    ...(report ? [{ value: "paused", text: "Paused", count: counted("paused") }] : []),
    ...(report ? [{ value: "dying", text: "Dying", count: counted("deaths") }] : []),
  ];
  const folded = (name) => ({ ...route, query: { ...route.query, q: name, folds: "no", page: null, cursor: null } });
  const hasHours = held.rows.some(({ row }) => row.last_hour);
  const about = { finds, now, folded, hasHours };
  const lastAsking = only ? 0 : (data?.asks ?? 0);
  const rowClass = (row) => lastAsking && held.rows[lastAsking - 1]?.row.name === row.name && "last-asking";
  const from = (Number(page) - 1) * PER_PAGE;
  const older = cursors.current.of[Number(page) - 1];
  const back = Number(page) > 1 ? () => setQuery(older === undefined || Number(page) === 2 ? { page: null, cursor: null } : { page: Number(page) - 1, cursor: older }) : null;
  const go = async () => setQuery({ page: Number(page) + 1, cursor: cursor ? found.next : await secondPage(wanted) });
  const further = found.rows && found.next ? go : null;
  return html`<section class="queues" aria-labelledby="queues-title">
    <h2 class="section" id="queues-title">Queues</h2>
    <div class="toolbar">
      <${FilterField} label="Filter by name" placeholder="Filter by name" value=${search} onChange=${(text) => change({ q: text || null }, true)} />
      <${Chips} label="Which queues" options=${chips} value=${show} onChange=${(value) => change({ show: value === "all" ? null : value })} />
      <div class="order">
        <${HeldNote} held=${held} />
        ${folds === "no" && html`<${Button} bare onClick=${() => change({ folds: null, q: null })}>Fold families<//>`}
        <${Select} label="Order" options=${SORTS} value=${sort} onChange=${(value) => change({ sort: value === "asks" ? null : value })} />
      </div>
    </div>
    <${Failure} error=${found.rows ? null : found.error} retry=${found.reload} />
    ${data && !held.rows.length
      ? html`<${Empty} title=${search ? `No queue is called “${search}”.` : "No queue is like that."}>
          <${Button} onClick=${() => change({ q: null, show: null })}>Clear<//>
        <//>`
      : html`<${Table}
          label="Queues"
          columns=${narrow ? narrowColumnsOf(about) : columnsOf(about)}
          rows=${held.rows}
          keyOf=${(row) => row.name}
          sort=${sort}
          onSort=${(value) => change({ sort: value === sort ? null : value })}
          rowClass=${rowClass}
          hand=${held.hand}
          dense=${!narrow}
          headless=${narrow}
        />`}
    ${held.rows.length > 0 &&
    html`<${Pager}
      text=${`${number(from + 1)}–${number(from + held.rows.length)}${cursor ? "" : ` of ${number(Math.max(data.matching ?? 0, held.rows.length))}`} rows`}
      note=${totals && !only && !search ? `${number(totals.queues)} queues${folds === "yes" ? ", families folded" : ""}` : null}
      previous=${back}
      next=${further}
    />`}
  </section>`;
}

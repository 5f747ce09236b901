// Audit: who did what to how many? What can be undone is undone here, too.

import { api, may } from "../lib/api.js";
import { left, middle, ms, number, visible, word } from "../lib/format.js";
import { HeldNote, useHeld } from "../lib/hold.js";
import { useFetch, useLittleRoom, useNow } from "../lib/live.js";
import { Button, Empty, Failure, FilterField, Name, Num, Pager, Select, Time } from "../lib/parts.js";
import { html, useState } from "../lib/preact.js";
import { href, setQuery } from "../lib/router.js";
import { useRefresh } from "../lib/refresh.js";
import { Table } from "../lib/table.js";
import { undo } from "../lib/toast.js";

export const title = () => "Audit";

const LIMIT = 50;
const PAGES_READ = 5;
const ACTIONS = {
  policy: "Changed the policy of",
  pause: "Paused",
  resume: "Resumed",
  purge: "Purged",
  delete: "Deleted tasks of",
  retry: "Retried tasks of",
  move: "Moved tasks of",
  cancel: "Cancelled a task of",
  run: "Ran a delayed task of",
  import: "Imported tasks into",
  order: "Told a worker",
  schedule_put: "Set the schedule",
  schedule_delete: "Deleted the schedule",
  schedule_run: "Ran the schedule",
  undo: "Undid",
};
const FILTERS = [{ value: "", text: "All deeds" }, ...Object.keys(ACTIONS).map((value) => ({ value, text: value.replace("_", " ") }))];
const cursors = new Map();

async function load(query, signal) {
  let page = { audit: [], cursor: query.cursor };
  // One page reads a bounded number of entries, and may be empty although more follow.
  for (let read = 0; read < PAGES_READ; read += 1) {
    page = await api.get("/api/audit", { ...query, cursor: page.cursor ?? undefined }, { signal });
    if (page.audit.length || !page.cursor) break;
  }
  return page;
}

function What({ line }) {
  const text = ACTIONS[line.action] ?? line.action.replace(/_/g, " ");
  const { worker, order, how, to, id, action } = line.options;
  if (line.action === "order") return html`Told <b><${Name} text=${worker} limit=${30} /></b> to ${order === "quiet" ? "be quiet" : order}`;
  if (line.action === "undo") return html`Undid the ${(action ?? "").replace("_", " ")} <span class="faint">no. ${id}</span>`;
  if (line.schedule) return html`${text} <b><${Name} text=${line.schedule} limit=${40} /></b>`;
  const queue = line.queue && html`<a class="strong" href=${href({ page: "queue", queue: line.queue })}><${Name} text=${line.queue} limit=${40} /></a>`;
  const target = to && html` to <${Name} text=${to} limit=${30} />`;
  const verb = how === "removed" ? "Deleted a task of" : text;
  return html`${verb} ${queue}${target}`;
}

const shown = (value) => (typeof value === "object" && value !== null ? JSON.stringify(value) : String(value));
/** The options of a deed, in one line. */
function Options({ line }) {
  const left = Object.entries(line.options).filter(([name]) => !["worker", "order", "how", "to", "action"].includes(name) && !(line.action === "undo" && name === "id"));
  const parts = left.map(([name, value]) => (value === null ? `${name} reset` : `${name} ${shown(value)}`));
  const text = [line.task && `task ${line.task}`, ...parts].filter(Boolean).join(", ");
  return text ? html`<bdi class="note cut" title=${visible(text)}>${visible(middle(text, 120))}</bdi>` : null;
}

function Undo({ line }) {
  const now = useNow(1);
  const [isBusy, setBusy] = useState(false);
  const entry = line.undo;
  if (!entry) return null;
  if (entry.undone_at && entry.undone >= entry.tasks) return html`<span class="quiet">undone <${Time} at=${entry.undone_at} /></span>`;
  const seconds = (ms(entry.until) - now) / 1000;
  if (seconds <= 0) return entry.undone ? html`<span class="quiet">${number(entry.undone)} of ${number(entry.tasks)} undone</span>` : null;
  if (!may("operate")) return html`<span class="quiet">can be undone for ${left(seconds, true)}</span>`;
  const act = async () => {
    setBusy(true);
    await undo(line.id);
    setBusy(false);
  };
  return html`<span class="row orders"><span class="note">${left(seconds, true)}</span><${Button} busy=${isBusy} data-open data-undo-entry aria-label=${`Undo no. ${line.id}`} onClick=${act}>Undo<//></span>`;
}

function Who({ line }) {
  return html`<div class="cut">${line.name ? html`<${Name} text=${line.name} limit=${24} />` : html`<span class="faint">no token</span>`}</div><div class="note cut">${line.address}</div>`;
}

function Many({ line }) {
  if (line.count === null) return html`<span class="faint">${line.outcome === "unfinished" ? "unfinished" : "–"}</span>`;
  return html`<${Num} value=${line.count} />${line.skipped > 0 && html`<div class="note">${number(line.skipped)} skipped</div>`}
    ${line.outcome === "unfinished" && html`<div class="note asks">unfinished</div>`}`;
}

function columnsFor(narrow) {
  const when = { key: "at", head: "When", width: "w14", cell: (line) => html`<${Time} at=${line.at} />` };
  const what = { key: "what", head: "What", width: "grow", cell: (line) => html`<div class="cut"><${What} line=${line} /></div><${Options} line=${line} />` };
  if (narrow) {
    const both = (line) => html`<div><${What} line=${line} /></div><div class="note">${line.name ? html`<${Name} text=${line.name} limit=${24} />` : "no token"}, <${Time} at=${line.at} /></div>`;
    return [
      { ...what, cell: both },
      { key: "many", head: "Tasks", width: "w14", num: true, cell: (line) => html`<${Many} line=${line} /><${Undo} line=${line} />` },
    ];
  }
  return [
    when,
    { key: "who", head: "Who", width: "w20", cell: (line) => html`<${Who} line=${line} />` },
    what,
    { key: "many", head: "Tasks", width: "w12", num: true, cell: (line) => html`<${Many} line=${line} />` },
    { key: "undo", head: "Undo", width: "w20", num: true, cell: (line) => html`<${Undo} line=${line} />` },
  ];
}

export default function Audit({ route }) {
  const { q = "", action = "", cursor, page: pageText } = route.query;
  const page = Number(pageText) || 1;
  const narrow = useLittleRoom();
  const now = useNow(5);
  const query = { limit: LIMIT, queue: q || undefined, action: action || undefined, cursor };
  const { data, error, reload } = useFetch((signal) => load(query, signal), [q, action, cursor ?? ""], { every: page > 1 ? 0 : 3 });
  useRefresh(reload);
  const lines = data?.audit ?? [];
  const held = useHeld(lines, { key: (line) => line.id, scope: [q, action, cursor].join() });
  const undoable = lines.filter((line) => line.undo && ms(line.undo.until) > now && line.undo.undone < line.undo.tasks);
  const newest = lines[0];
  const place = JSON.stringify([q, action]);
  cursors.set(`${place} ${page}`, cursor);
  const goTo = (next, at) => setQuery({ page: next > 1 ? next : null, cursor: next > 1 ? at : null });
  const heading = !data ? "\u00a0" : undoable.length ? `${word(undoable.length, true)} ${undoable.length === 1 ? "deed" : "deeds"} can be undone.` : lines.length ? "Nothing to undo." : "Nothing was done yet.";
  const isFiltered = Boolean(q || action);
  return html`<h1 class="verdict">${isFiltered && data && !lines.length ? "Nothing matches." : heading}</h1>
    <p class="lead">
      ${newest && page === 1 ? html`Latest: ${newest.name ? html`<b><${Name} text=${newest.name} limit=${30} /></b>` : "somebody without a token"}, <${Time} at=${newest.at} ago />: <${What} line=${newest} />.` : "Policies, pauses, purges, retries, orders and schedules are written down here, and who changed them."}
    </p>
    ${error && html`<${Failure} error=${error} retry=${reload} />`}
    <div class="toolbar">
      <${FilterField} value=${q} placeholder="Name of a queue" label="Only deeds on this queue" onChange=${(value) => setQuery({ q: value, cursor: null, page: null }, true)} />
      <${Select} boxed label="Kind of deed" options=${FILTERS} value=${action} onChange=${(value) => setQuery({ action: value, cursor: null, page: null })} />
      <span class="order"><${HeldNote} held=${held} /></span>
    </div>
    ${held.rows.length
      ? html`<${Table} label="Audit, the newest first" dense=${false} columns=${columnsFor(narrow)} rows=${held.rows} keyOf=${(line) => line.id} hand=${held.hand} />
          <${Pager}
            text=${`Entries ${number((page - 1) * LIMIT + 1)}–${number((page - 1) * LIMIT + lines.length)}`}
            previous=${page > 1 ? () => goTo(page - 1, cursors.get(`${place} ${page - 1}`)) : null}
            next=${data?.cursor ? () => goTo(page + 1, data.cursor) : null}
          />`
      : data && isFiltered && html`<${Empty} title="No entry matches."><${Button} onClick=${() => setQuery({ q: null, action: null, cursor: null, page: null })}>Clear<//><//>`}`;
}

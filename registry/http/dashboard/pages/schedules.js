// Schedules: what runs next, and what has run?

import { api, may } from "../lib/api.js";
import { cronInWords } from "../lib/cron.js";
import { clock, count, duration, ms, number, visible, word, zoned } from "../lib/format.js";
import { useHeld } from "../lib/hold.js";
import { Glyph, Icon } from "../lib/icons.js";
import { elements, member } from "../lib/json-text.js";
import { useFetch, useLittleRoom, useNow } from "../lib/live.js";
import { Button, Empty, Failure, FilterField, Name, Pager, Time } from "../lib/parts.js";
import { html, useState } from "../lib/preact.js";
import { href, setQuery } from "../lib/router.js";
import { useRefresh } from "../lib/refresh.js";
import { Table } from "../lib/table.js";
import { toast } from "../lib/toast.js";
import { Well } from "../lib/well.js";

export const title = () => "Schedules";

const FIELDS = ["cron", "timezone", "queue", "options", "missed"];

async function load(signal) {
  const text = await api.getText("/api/schedules", { limit: 1000 }, { signal });
  const { schedules, cursor } = JSON.parse(text);
  const raws = elements(member(text, "schedules"));
  return { more: cursor !== null, rows: schedules.map((row, at) => ({ ...row, raw: row.truncated ? row.task : member(raws[at], "task") })) };
}

async function act(work, text) {
  try {
    const { audit } = await work();
    toast({ text, audit });
  } catch (error) {
    toast({ text: error.message });
  }
}

const runNow = (row) => act(() => api.send("POST", api.path`/api/schedules/${row.name}/run`), `Pushed the task of ${visible(row.name)}.`);

/** A schedule is paused by putting it again: all of it, its task as the bytes that it has. */
const pause = (row, paused) =>
  act(async () => {
    // The list may have a part of the task only.
    const text = await api.getText(api.path`/api/schedules/${row.name}`);
    const now = JSON.parse(text);
    const members = FIELDS.map((name) => `${JSON.stringify(name)}:${JSON.stringify(now[name])}`);
    const raw = `{${[...members, `"task":${member(text, "task")}`, `"paused":${paused}`].join(",")}}`;
    return api.send("PUT", api.path`/api/schedules/${row.name}`, { raw });
  }, paused ? `${visible(row.name)} is paused.` : `${visible(row.name)} runs again.`);

function When({ row }) {
  const words = cronInWords(row.cron);
  return html`<div>${words ?? html`<span class="mono">${row.cron}</span>`}</div>
    <div class="note">${words && html`<span class="mono">${row.cron}</span>, `}${row.timezone}</div>`;
}

function Next({ row, now }) {
  if (row.paused) return html`<span class="asks">paused</span>`;
  if (!row.next_at) return html`<span class="faint">–</span>`;
  const seconds = (ms(row.next_at) - now) / 1000;
  return html`<div title=${zoned(row.next_at)}>in ${duration(Math.max(0, seconds))}</div><div class="note">${clock(row.next_at)}</div>`;
}

function Last({ row }) {
  const missed = row.missed_count > 0 && html`<div class="note asks">${count(row.missed_count, "tick")} missed</div>`;
  return html`<div>${row.last_at ? html`<${Time} at=${row.last_at} ago />` : html`<span class="faint">never</span>`}</div>${missed}`;
}

function Deeds({ row }) {
  const [isBusy, setBusy] = useState(false);
  if (!may("operate")) return null;
  const once = (work) => async () => {
    setBusy(true);
    await work();
    setBusy(false);
  };
  const hidden = row.hidden ? "This token may not see the task." : false;
  return html`<span class="row orders">
    <${Button} busy=${isBusy} aria-label=${`Run ${visible(row.name)} now`} onClick=${once(() => runNow(row))}>Run now<//>
    <${Button} busy=${isBusy} disabled=${hidden} aria-label=${`${row.paused ? "Resume" : "Pause"} ${visible(row.name)}`} onClick=${once(() => pause(row, !row.paused))}>
      ${row.paused ? "Resume" : "Pause"}
    <//>
  </span>`;
}

function Detail({ row }) {
  const options = Object.entries(row.options ?? {}).map(([name, value]) => `${name} ${value}`);
  return html`<div class="halves group-detail">
    <section>${row.hidden ? html`<p class="quiet">The task is hidden from this token.</p>` : html`<${Well} text=${row.raw} json=${!row.truncated} label="Task" cut=${row.truncated} />`}</section>
    <section>
      <h2 class="subject">Schedule</h2>
      <dl class="facts">
        <div><dt>Cron</dt><dd class="mono">${row.cron}</dd></div>
        <div><dt>Time zone</dt><dd>${row.timezone}</dd></div>
        <div><dt>Options</dt><dd>${options.length ? html`<${Name} text=${options.join(", ")} limit=${80} />` : html`<span class="faint">none</span>`}</dd></div>
        <div><dt>A missed tick</dt><dd>${row.missed === "once" ? "is made up for, once" : "is skipped"}</dd></div>
        <div><dt>Last run</dt><dd><${Time} at=${row.last_at} /></dd></div>
        <div><dt>Next run</dt><dd><${Time} at=${row.next_at} /></dd></div>
      </dl>
    </section>
  </div>`;
}

function columnsFor({ narrow, opened, now }) {
  const toggle = (row) => {
    const isOpen = opened === row.name;
    return html`<button type="button" class="opener" data-open aria-expanded=${isOpen} aria-label=${`${isOpen ? "Close" : "Open"} ${visible(row.name)}`} onClick=${() => setQuery({ open: isOpen ? null : row.name })}>
      ${row.paused ? html`<${Glyph} state="paused" label="paused" />` : html`<${Icon} name=${isOpen ? "down" : "right"} />`}
    </button>`;
  };
  const name = (row) => html`<span class="cut strong-name"><${Name} text=${row.name} limit=${32} /></span>`;
  const queue = (row) => html`<a class="cut" href=${href({ page: "queue", queue: row.queue })}><${Name} text=${row.queue} limit=${28} /></a>`;
  const open = { key: "open", label: "Open", width: "w3", cell: toggle };
  const next = { key: "next", head: "Next", width: "w14", num: narrow, cell: (row) => html`<${Next} row=${row} now=${now} />` };
  if (narrow) {
    return [open, { key: "name", head: "Schedule", width: "grow", cell: (row) => html`${name(row)}<${When} row=${row} />` }, { ...next, width: "w10" }];
  }
  return [
    open,
    { key: "name", head: "Schedule", width: "w20", cell: name },
    { key: "when", head: "When", width: "grow", cell: (row) => html`<${When} row=${row} />` },
    { key: "queue", head: "Pushes into", width: "w18", cell: queue },
    next,
    { key: "last", head: "Last", width: "w14", cell: (row) => html`<${Last} row=${row} />` },
    ...(may("operate") ? [{ key: "deeds", head: "", label: "Deeds", width: "w24", num: true, cell: (row) => html`<${Deeds} row=${row} />` }] : []),
  ];
}

function verdict(rows) {
  if (!rows.length) return "No schedules.";
  const paused = rows.filter((row) => row.paused).length;
  const all = `${word(rows.length, true)} ${rows.length === 1 ? "schedule" : "schedules"}`;
  if (!paused) return `${all}, none paused.`;
  return paused === rows.length ? `${all}, all paused.` : `${all}, ${word(paused)} paused.`;
}

export default function Schedules({ route }) {
  const { q = "", open: opened } = route.query;
  const narrow = useLittleRoom();
  const now = useNow(1);
  const { data, error, reload } = useFetch(load, ["schedules"], { every: 3 });
  useRefresh(reload);
  const all = data?.rows ?? [];
  const rows = all.filter((row) => `${row.name}\n${row.queue}\n${row.cron}`.toLowerCase().includes(q.toLowerCase()));
  const held = useHeld(rows.slice(0, 100), { key: (row) => row.name, scope: q, lock: Boolean(opened) });
  const [soonest] = all.filter((row) => row.next_at).sort((one, other) => ms(one.next_at) - ms(other.next_at));
  const missed = all.filter((row) => row.missed_count > 0).length;
  const lead = soonest
    ? html`Next is <b><${Name} text=${soonest.name} limit=${40} /></b>, in ${duration(Math.max(0, (ms(soonest.next_at) - now) / 1000))}, into <${Name} text=${soonest.queue} limit=${40} />. ${missed > 0 && `${count(missed, "schedule")} missed a tick once.`}`
    : all.length
      ? "Nothing is due: all are paused."
      : html`A schedule pushes a task at the times of a cron expression: <span class="mono">registryctl schedules put</span> makes one.`;
  return html`<h1 class="verdict">${data ? verdict(all) : "\u00a0"}</h1>
    <p class="lead">${data && lead}</p>
    ${error && html`<${Failure} error=${error} retry=${reload} />`}
    ${all.length > 0 &&
    html`<div class="toolbar"><${FilterField} value=${q} placeholder="Filter by name or queue" onChange=${(value) => setQuery({ q: value }, true)} /></div>
      ${held.rows.length
        ? html`<${Table}
              label="Schedules"
              dense=${false}
              columns=${columnsFor({ narrow, opened, now })}
              rows=${held.rows}
              keyOf=${(row) => row.name}
              opened=${opened}
              detail=${(row) => html`${narrow && html`<p class="phone-order"><${Deeds} row=${row} /></p>`}<${Detail} row=${row} />`}
              hand=${held.hand}
            />
            <${Pager} text=${`${number(held.rows.length)} of ${number(rows.length)}${data.more ? " or more" : ""}`} />`
        : html`<${Empty} title=${html`No schedule matches <b><${Name} text=${q} limit=${60} /></b>.`}><${Button} onClick=${() => setQuery({ q: null })}>Clear<//><//>`}`}`;
}

// Workers: who is silent, who fails, who holds what?

import { api } from "../lib/api.js";
import { count, duration, middle, ms, number, visible, word, zoned } from "../lib/format.js";
import { HeldNote, useHeld } from "../lib/hold.js";
import { Glyph, Icon } from "../lib/icons.js";
import { useFetch, useLittleRoom, useNow } from "../lib/live.js";
import { Button, Chips, Empty, Failure, FilterField, Name, Num, Pager, Time } from "../lib/parts.js";
import { html } from "../lib/preact.js";
import { href, setQuery } from "../lib/router.js";
import { useRefresh } from "../lib/refresh.js";
import { Table } from "../lib/table.js";
import { OrderControl, ORDERS } from "./orders.js";

export const title = () => "Workers";

const LIMIT = 50;
const SHOWN_LEASES = 16;
// A worker that holds a task polls or renews; one whose lease nears its end unheard for so long, s, is called silent.
const SILENT = 60;
const NEAR_END = 15;

const keyOf = (worker) => worker.worker ?? "\u0000";

const leftOf = (lease, now) => (ms(lease.lease_ends_at) - now) / 1000;

function isSilent(worker, now) {
  return worker.parked === 0 && now - ms(worker.last_seen) > SILENT * 1000 && worker.leases.some((lease) => leftOf(lease, now) < NEAR_END);
}

const isOrdered = (worker) => worker.order !== "run";

/** What each worker alone fails, by its name: [{type, count, queues}], from the groups of dead tasks that point to it. */
function failuresOf(groups) {
  const found = new Map();
  for (const group of groups ?? []) {
    if (group.points_to !== "worker") continue;
    const [worker] = group.workers;
    found.set(worker, [...(found.get(worker) ?? []), group]);
  }
  return found;
}

function Lead({ silent, named, failing, now }) {
  const parts = [];
  const [one] = silent;
  const verdict = named.find((worker) => worker.verdict)?.verdict;
  const [[worker, groups] = []] = [...failing].filter(([name]) => named.some((found) => found.worker === name));
  if (one) parts.push(html`<b><${Name} text=${one.worker} limit=${30} /></b> was last heard ${duration((now - ms(one.last_seen)) / 1000)} ago and holds ${count(one.lease_count, "task")}. `);
  if (verdict) {
    const failed = named.find((found) => found.verdict);
    parts.push(html`<b><${Name} text=${failed.worker} limit=${30} /></b> fails what others finish. <${Name} text=${verdict.sentence} />`);
  } else if (worker) {
    const dead = groups.reduce((sum, group) => sum + group.count, 0);
    parts.push(html`<b><${Name} text=${worker} limit=${30} /></b> alone failed ${count(dead, "task")} ${groups[0].type ? html`with <${Name} text=${groups[0].type} limit=${40} />` : ""}; others finish tasks of the same queue.`);
  }
  return parts.length ? parts : "Nobody is silent, and nobody fails what others finish.";
}

/** One bar per held task, its height the lease that is left. */
function Bars({ worker, now }) {
  const shown = worker.leases.slice(0, SHOWN_LEASES);
  if (!shown.length) return html`<${Num} value=${worker.lease_count} />`;
  const width = shown.length * 8 - 2;
  const soonest = Math.min(...shown.map((lease) => leftOf(lease, now)));
  return html`<span class="row holds">
    <span class="num holds-count">${number(worker.lease_count)}</span>
    <svg class="leases" width=${width} height="16" viewBox=${`0 0 ${width} 16`} role="img" aria-label=${`${count(worker.lease_count, "task")} held, the next lease ends in ${duration(Math.max(0, soonest))}`}>
      ${shown.map((lease, at) => {
        const whole = (ms(lease.lease_ends_at) - ms(lease.leased_at)) / 1000;
        const left = leftOf(lease, now);
        const height = Math.max(2, Math.min(1, left / whole) * 16);
        return html`<rect class="track" x=${at * 8} y="0" width="6" height="16" rx="1.5" />
          <rect class=${left < NEAR_END && left < whole / 4 ? "lease asks" : "lease"} x=${at * 8} y=${16 - height} width="6" height=${height} rx="1.5" />`;
      })}
    </svg>
  </span>`;
}

function Seen({ worker, silent, now }) {
  if (worker.parked) return html`<span class="quiet">parked</span>`;
  const seconds = (now - ms(worker.last_seen)) / 1000;
  return html`<span class=${silent ? "asks strong" : ""} title=${zoned(worker.last_seen)}>${duration(Math.max(0, seconds))}</span>`;
}

function Queues({ names }) {
  if (!names.length) return html`<span class="faint">–</span>`;
  return html`<span class="cut" title=${visible(names.join(", "))}>${names.map(
    (name, at) => html`${at > 0 && ", "}<a href=${href({ page: "queue", queue: name })}><${Name} text=${name} limit=${26} /></a>`,
  )}</span>`;
}

function Detail({ worker, failures, silent, now }) {
  const draining = isOrdered(worker) && worker.lease_count > 0;
  return html`<div class="worker-detail stack tight">
    <p class="lead">
      ${silent && html`<b>Not heard for ${duration((now - ms(worker.last_seen)) / 1000)}.</b> Its leases end soon, and the tasks go back to their queue. `}
      ${worker.verdict && html`<b>It fails what others finish.</b> <${Name} text=${worker.verdict.sentence} /> `}
      ${failures && html`${worker.verdict ? "" : html`<b>Others finish tasks of the queues where these died on it alone.</b> `}${failures.map((group) => html`${number(group.count)} × ${group.type ? html`<${Name} text=${group.type} limit=${40} />` : "an error"} in ${group.queues.map((name) => html`<a class="link" href=${href({ page: "dead", query: { q: worker.worker } })}><${Name} text=${name} limit=${30} /></a>`)}. `)}`}
      ${worker.shared_name && html`<b>Several live workers share this name</b>, so its numbers are theirs together. `}
      ${draining && html`${count(worker.lease_count, "task")} left. `}
      ${isOrdered(worker) && html`The order stands until <${Time} at=${worker.order_until} />.`}
      ${!worker.worker && "These tasks are held by workers that gave no name. "}
      First seen <${Time} at=${worker.since} />.
    </p>
    <ul class="lines">
      ${worker.leases.map((lease) => {
        const left = leftOf(lease, now);
        const share = Math.max(0, Math.min(1, left / ((ms(lease.lease_ends_at) - ms(lease.leased_at)) / 1000)));
        return html`<li key=${lease.id} class="row wraps">
          <${Glyph} state="leased" share=${share} />
          <a class="id" href=${href({ page: "task", queue: lease.queue, task: lease.id })}>${lease.id}</a>
          <span class="grow cut"><${Name} text=${lease.queue} limit=${40} /></span>
          <span class="quiet">attempt ${lease.attempt}${lease.progress !== null && `, ${Math.round(lease.progress * 100)}%`}</span>
          <span class=${left < NEAR_END ? "asks lease-end" : "lease-end"}>lease ends in ${duration(Math.max(0, left))}</span>
        </li>`;
      })}
      ${worker.lease_count > worker.leases.length && html`<li class="quiet">and ${number(worker.lease_count - worker.leases.length)} more</li>`}
      ${!worker.leases.length && html`<li class="quiet">It holds nothing.</li>`}
    </ul>
  </div>`;
}

function columnsFor({ narrow, opened, failing, now, reload }) {
  const fails = (worker) => worker.failing || failing.has(worker.worker);
  const asks = (worker) => isSilent(worker, now) || fails(worker) || worker.shared_name;
  const toggle = (worker) => {
    const isOpen = opened === keyOf(worker);
    const name = visible(worker.worker ?? "workers without a name");
    return html`<button type="button" class="opener" data-open aria-expanded=${isOpen} aria-label=${`${isOpen ? "Close" : "Open"} ${name}`} onClick=${() => setQuery({ open: isOpen ? null : keyOf(worker) })}>
      ${asks(worker) ? html`<${Glyph} state="asks" label="needs a look" />` : html`<${Icon} name=${isOpen ? "down" : "right"} />`}
    </button>`;
  };
  const name = (worker) => html`<span class="cut strong-name">${worker.worker ? html`<${Name} text=${worker.worker} limit=${30} />` : html`<span class="faint">without a name</span>`}</span>`;
  const order = (worker) => {
    if (!worker.worker) return null;
    const left = isOrdered(worker) && worker.lease_count > 0 && html`<span class="note">${count(worker.lease_count, "task")} left</span>`;
    return html`<span class="row orders">${left}<${OrderControl} worker=${worker.worker} order=${worker.order} folds=${!asks(worker) && !isOrdered(worker)} reload=${reload} /></span>`;
  };
  const failed = (worker) => {
    const ended = worker.done + worker.failed;
    if (!worker.worker || !ended) return html`<span class="faint">–</span>`;
    const share = (100 * worker.failed) / ended;
    return html`<span class=${fails(worker) ? "asks strong" : worker.failed ? "" : "zero"}>${share > 0 && share < 10 ? share.toFixed(1) : Math.round(share)}%</span>`;
  };
  if (narrow) {
    const lines = (worker) => html`${name(worker)}<div class="note"><${Queues} names=${worker.queues} /></div>`;
    const right = (worker) => html`<${Seen} worker=${worker} silent=${isSilent(worker, now)} now=${now} /><div class="note">${isOrdered(worker) ? ORDERS.find((one) => one.value === worker.order).text : `holds ${number(worker.lease_count)}`}</div>`;
    return [
      { key: "open", label: "Open", width: "w3", cell: toggle },
      { key: "worker", head: "Worker", width: "grow", cell: lines },
      { key: "seen", head: "Silent for", width: "w12", num: true, cell: right },
    ];
  }
  return [
    { key: "open", label: "Open", width: "w3", cell: toggle },
    { key: "worker", head: "Worker", width: "w14", cell: name },
    { key: "polls", head: "Polls", width: "grow", cell: (worker) => html`<${Queues} names=${worker.queues} />` },
    { key: "version", head: "Version", width: "w18", cell: (worker) => html`<span class="cut" title=${visible(worker.user_agent ?? "")}><bdi>${visible(middle(worker.version ?? worker.user_agent ?? "–", 28))}</bdi></span>` },
    { key: "address", head: "Address", width: "w12", cell: (worker) => html`<span class="mono cut">${worker.address ?? "–"}</span>` },
    { key: "holds", head: "Holds and lease left", width: "w20", cell: (worker) => html`<${Bars} worker=${worker} now=${now} />` },
    { key: "seen", head: "Silent for", width: "w8", num: true, cell: (worker) => html`<${Seen} worker=${worker} silent=${isSilent(worker, now)} now=${now} />` },
    { key: "done", head: "Done lately", width: "w10", num: true, cell: (worker) => (worker.worker ? html`<${Num} value=${worker.done} />` : "") },
    { key: "failed", head: "Failed", width: "w6", num: true, cell: failed },
    { key: "order", head: "Order", width: "w20", num: true, cell: order },
  ];
}

export default function Workers({ route }) {
  const { q = "", show = "all", open: opened, page: pageText } = route.query;
  const page = Number(pageText) || 1;
  const narrow = useLittleRoom();
  const now = useNow(1);
  const { data, error, reload } = useFetch((signal) => api.get("/api/workers", {}, { signal }), ["workers"], { every: 2 });
  const dead = useFetch((signal) => api.get("/api/dead", {}, { signal }), ["blame"], { every: 10 });
  useRefresh(reload);
  const failing = failuresOf(dead.data?.groups);
  const all = data?.workers ?? [];
  const named = all.filter((worker) => worker.worker !== null);
  const silent = named.filter((worker) => isSilent(worker, now));
  const shows = {
    all: () => true,
    silent: (worker) => isSilent(worker, now),
    failing: (worker) => worker.failing || failing.has(worker.worker),
    ordered: isOrdered,
  };
  const needs = new Set([...silent.map(keyOf), ...named.filter((worker) => shows.failing(worker) || worker.shared_name).map(keyOf)]);
  const chips = [
    { value: "all", text: "All", count: all.length },
    { value: "silent", text: "Silent", count: silent.length },
    { value: "failing", text: "Failing", count: named.filter(shows.failing).length },
    { value: "ordered", text: "Quieting", count: all.filter(isOrdered).length },
  ];
  const text = (worker) => [worker.worker ?? "", worker.user_agent ?? "", worker.address ?? "", ...worker.queues].join("\n").toLowerCase();
  const matching = all
    .filter((worker) => (shows[show] ?? shows.all)(worker) && text(worker).includes(q.toLowerCase()))
    .sort((one, other) => needs.has(keyOf(other)) - needs.has(keyOf(one)));
  const pages = Math.max(1, Math.ceil(matching.length / LIMIT));
  const at = Math.min(page, pages);
  const held = useHeld(matching.slice((at - 1) * LIMIT, at * LIMIT), { key: keyOf, scope: [q, show, at, dead.data !== null].join(), lock: Boolean(opened) });
  const total = named.length + (data?.left_out ?? 0);
  const heading = !data ? "\u00a0" : !total ? "No workers." : needs.size ? `${count(total, "worker")}, ${word(needs.size)} ${needs.size === 1 ? "needs" : "need"} a look.` : total === 1 ? "One worker, and all is well." : `${number(total)} workers, and all is well.`;
  const parked = all.reduce((sum, worker) => sum + worker.parked, 0);
  const goTo = (next) => setQuery({ page: next > 1 ? next : null });
  return html`<h1 class="verdict">${heading}</h1>
    <p class="lead">${data && (total ? html`<${Lead} silent=${silent} named=${named} failing=${failing} now=${now} />` : "A worker that gives its name with a poll, worker=NAME, appears here.")}</p>
    ${error && html`<${Failure} error=${error} retry=${reload} />`}
    ${all.length > 0 &&
    html`<div class="toolbar">
        <${FilterField} value=${q} placeholder="Filter by name, queue or version" onChange=${(value) => setQuery({ q: value, page: null }, true)} />
        <${Chips} label="Which workers" options=${chips} value=${show} onChange=${(value) => setQuery({ show: value === "all" ? null : value, page: null })} />
        <span class="order"><${HeldNote} held=${held} /><span>Need a look first, then by name</span></span>
      </div>
      ${held.rows.length
        ? html`<${Table}
            label="Workers"
            dense=${!narrow}
            columns=${columnsFor({ narrow, opened, failing, now, reload })}
            rows=${held.rows}
            keyOf=${keyOf}
            opened=${opened}
            detail=${(worker) => html`${narrow && worker.worker && html`<p class="phone-order"><${OrderControl} worker=${worker.worker} order=${worker.order} reload=${reload} /></p>`}<${Detail} worker=${worker} failures=${failing.get(worker.worker)} silent=${isSilent(worker, now)} now=${now} />`}
            hand=${held.hand}
          />`
        : html`<${Empty} title=${html`No worker matches${q && html` <b><${Name} text=${q} limit=${60} /></b>`}.`}>
            <${Button} onClick=${() => setQuery({ q: null, show: null, page: null })}>Clear<//>
          <//>`}
      <${Pager}
        text=${matching.length ? `${number((at - 1) * LIMIT + 1)}–${number(Math.min(at * LIMIT, matching.length))} of ${number(matching.length)}` : ""}
        note=${`${count(parked, "parked poll")} of workers with a name`}
        previous=${at > 1 ? () => goTo(at - 1) : null}
        next=${at < pages ? () => goTo(at + 1) : null}
      />
      ${data.left_out > 0 && html`<p class="note">${number(data.left_out)} more workers are not shown.</p>`}`}`;
}

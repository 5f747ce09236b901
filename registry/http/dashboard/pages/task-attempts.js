// The attempts of a task: a strip to scale, and a list with worker, error, trace and progress, the newest first.

import { ago, clock, count, duration, ms, zoned } from "../lib/format.js";
import { Glyph } from "../lib/icons.js";
import { useNow } from "../lib/live.js";
import { Meter, Name, Time } from "../lib/parts.js";
import { html, useLayoutEffect, useRef, useState } from "../lib/preact.js";
import { href } from "../lib/router.js";
import { lengthOf } from "../lib/tasks.js";
import { ErrorWell } from "../lib/well.js";

const LOOKS = { failed: "dead", lease_expired: "asks", done: "done", late: "done", cancelled: "dead", released: "ready" };
const HOW = {
  failed: "failed on",
  lease_expired: "lease ran out on",
  done: "done by",
  late: "done late by",
  released: "given back by",
  cancelled: "cancelled on",
};
const STEPS = [0.01, 0.1, 1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 604800];
const HEIGHT = 64;

/** Everything that happened, in order: finished attempts, the one that runs, and when the next may begin. */
function attemptsOf(task, now) {
  const list = task.history.map((one) => ({ ...one, from: ms(one.leased_at), to: ms(one.ended_at) ?? ms(one.leased_at) }));
  if (task.state === "leased" && task.leased_at) {
    list.push({ attempt: task.attempt, worker: task.worker, from: ms(task.leased_at), to: now, runs: true });
  }
  return list.filter((one) => one.from !== null && one.from !== undefined);
}

function useWidth() {
  const [width, setWidth] = useState(0);
  const element = useRef();
  useLayoutEffect(() => {
    const watch = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    watch.observe(element.current);
    return () => watch.disconnect();
  }, []);
  return [width, element];
}

function Strip({ task, list, now }) {
  const [width, element] = useWidth();
  const begin = Math.min(ms(task.pushed_at) ?? Infinity, ...list.map((one) => one.from));
  const hasEnded = task.state === "dead" || task.state === "done";
  const due = task.state === "delayed" ? ms(task.due_at) : null;
  const last = Math.max(...list.map((one) => one.to), ms(task.ended_at) ?? 0);
  const end = Math.max(hasEnded ? last : now, due ?? 0, begin + 1);
  const inner = Math.max(1, width - (due ? 24 : 2));
  const x = (at) => 1 + ((at - begin) / (end - begin)) * (inner - 2);
  const seconds = (end - begin) / 1000;
  const step = STEPS.find((one) => seconds / one <= Math.max(2, width / 110)) ?? Math.ceil(seconds / 6 / 604800) * 604800;
  const ticks = [];
  // Times of day, or what has passed since the push where they would all be the same second.
  for (let at = step < 1 ? begin / 1000 + step : Math.ceil(begin / 1000 / step) * step; at * 1000 <= end && ticks.length < 20; at += step) ticks.push(at * 1000);
  const label = `${count(list.length, "attempt")} between ${clock(begin)} and ${clock(end)}`;
  return html`<div class="strip" ref=${element}>
    ${width > 0 &&
    html`<svg width=${width} height=${HEIGHT} viewBox=${`0 0 ${width} ${HEIGHT}`} role="img" aria-label=${label}>
      ${ticks.map((at) => {
        const place = x(at);
        return html`<g><path class="tick-line" d=${`M${place} 2V42`} />${place > 24 && place < width - 24 && html`<text class="axis" x=${place} y="58" text-anchor="middle">${step < 1 ? `+${duration((at - begin) / 1000)}` : clock(at, step < 60)}</text>`}</g>`;
      })}
      <path class="waiting" d=${`M${x(begin)} 22H${due ? x(due) : x(hasEnded ? last : now)}`} />
      ${list.map((one) => {
        const left = x(one.from);
        const wide = Math.max(4, x(one.to) - left);
        const look = one.runs ? "leased" : (LOOKS[one.reason] ?? "ready");
        return html`<g class=${`attempt ${look}`}>
          <rect class="body" x=${left} y="13" width=${wide} height="18" rx="3" />
          ${!one.runs && html`<rect class="end" x=${left + wide - 3} y="13" width="3" height="18" rx="1" />`}
          ${wide > 20 && html`<text x=${left + 9} y="26">${one.attempt}</text>`}
        </g>`;
      })}
      ${!hasEnded && html`<path class="now" d=${`M${x(now)} 2V42`} />${due && html`<text class="axis ink" x=${Math.min(x(now) + 5, width - 30)} y="10">now</text>`}`}
      ${due &&
      html`<rect class="due" x=${x(due)} y="13" width="20" height="18" rx="3" /><text class="axis ink" x=${x(due) + 10} y="26" text-anchor="middle">${task.attempt + 1}</text>`}
    </svg>`}
  </div>`;
}

function Entry({ glyph, head, when, children }) {
  return html`<li class="entry">
    ${glyph}
    <div class="grow">
      <div class="row wide wraps entry-head"><p>${head}</p><p class="quiet">${when}</p></div>
      ${children}
    </div>
  </li>`;
}

function Past({ one, task, policy }) {
  const worker = one.worker
    ? html`<a class="link" href=${href({ page: "workers", query: { q: one.worker } })}><${Name} text=${one.worker} limit=${40} /></a>`
    : "a worker without a name";
  const length = one.to > one.from ? duration((one.to - one.from) / 1000) : "";
  const silent = one.reason === "lease_expired";
  return html`<${Entry}
    glyph=${html`<${Glyph} state=${LOOKS[one.reason] ?? "asks"} />`}
    head=${html`<b>Attempt ${one.attempt}</b> <span class="quiet">${HOW[one.reason] ?? `${(one.reason ?? "ended").replace(/_/g, " ")} on`}</span> ${worker}`}
    when=${html`<span title=${`${zoned(one.from)} to ${zoned(one.to)}`}>${clock(one.from)} to ${clock(one.to)}${length && `, ${length}`}</span>`}
  >
    ${silent && html`<p class="quiet">Nothing was heard of it until the lease of ${duration(lengthOf(task, policy, "lease"))} or more had run out.</p>`}
    <${ErrorWell} error=${one.error} />
    ${one.result === "too_large" && html`<p class="quiet">Its result was too large and was dropped.</p>`}
  <//>`;
}

function Progress({ task, isRunning }) {
  if (task.progress === null || task.progress === undefined || task.state === "done") return null;
  const percent = `${Math.round(task.progress * 100)}%`;
  return html`<div class="progress">
    <${Meter} share=${task.progress} label=${`Progress ${percent}`} />
    <span>${percent}${task.message && html`, <${Name} text=${task.message} limit=${120} />`} ${!isRunning && html`<span class="faint">as last reported</span>`}</span>
  </div>`;
}

export function Attempts({ task, policy }) {
  const isRunning = task.state === "leased";
  const now = useNow(1);
  const list = attemptsOf(task, now);
  const past = list.filter((one) => !one.runs).reverse();
  const missing = task.attempt - list.filter((one) => one.reason !== "released").length;
  const most = lengthOf(task, policy, "attempts");
  return html`<section class="stack">
    <div class="row wide wraps">
      <h2 class="section">Attempts <span class="quiet plain">${task.attempt} of ${most}</span></h2>
      ${task.pushed_at && html`<span class="quiet" title=${zoned(task.pushed_at)}>pushed ${clock(task.pushed_at)}, ${ago(task.pushed_at, now)}</span>`}
    </div>
    ${(list.length > 0 || task.state === "delayed") && task.pushed_at && html`<${Strip} task=${task} list=${list} now=${now} />`}
    <ol class="entries">
      ${task.state === "delayed" &&
      html`<${Entry}
        glyph=${html`<${Glyph} state="delayed" />`}
        head=${html`<b>Attempt ${task.attempt + 1}</b> <span class="quiet">may start at</span> <${Time} at=${task.due_at} />`}
        when=${`in ${duration(Math.max(0, (ms(task.due_at) - now) / 1000))}`}
      />`}
      ${task.state === "ready" &&
      html`<${Entry} glyph=${html`<${Glyph} state="ready" />`} head=${html`<b>Attempt ${task.attempt + 1}</b> <span class="quiet">waits for a worker</span>`} when="" />`}
      ${isRunning &&
      html`<${Entry}
        glyph=${html`<${Glyph} state="leased" share=${task.progress ?? 0.6} />`}
        head=${html`<b>Attempt ${task.attempt}</b> <span class="quiet">runs on</span> <${Name} text=${task.worker ?? "a worker without a name"} limit=${40} />`}
        when=${html`since <${Time} at=${task.leased_at} />`}
      ><${Progress} task=${task} isRunning=${true} /><//>`}
      ${past.map((one, at) => html`<${Past} key=${one.from} one=${one} task=${task} policy=${policy} />${at === 0 && !isRunning && html`<li class="entry progress-entry"><span></span><${Progress} task=${task} /></li>`}`)}
      ${missing > 0 && past.length >= 20 && html`<li class="entry"><span></span><p class="quiet">${count(missing, "earlier attempt")} no longer kept.</p></li>`}
      ${task.pushed_at && html`<${Entry} glyph=${html`<${Glyph} state="ready" />`} head=${html`<b>Pushed</b>`} when=${html`<${Time} at=${task.pushed_at} />`} />`}
    </ol>
  </section>`;
}

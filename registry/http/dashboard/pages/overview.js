// Overview: is everything all right, and if not, where? The verdict, the findings, the totals, the charts, the queues.

import { duration, large, number, rate, unbroken, visible } from "../lib/format.js";
import { FindingText, NextStep, glyphOf } from "../lib/findings.js";
import { Glyph } from "../lib/icons.js";
import { live, useNarrow } from "../lib/live.js";
import { CopyButton, Empty } from "../lib/parts.js";
import { html, useState } from "../lib/preact.js";
import { BASE } from "../lib/api.js";
import { RANGES, known, last, lastRate, rangeText, useStats } from "../lib/stats.js";
import { useStore } from "../lib/store.js";
import { Flow } from "./overview-flow.js";
import { Queues } from "./overview-queues.js";

export const title = () => "";
const MAX_FINDINGS = 5;
const FEW_POINTS = 10;

/** The sentence about everything. Without a word about findings nobody can say that all is well. */
function headline(report, totals, stats) {
  if (report?.findings.length) return report.headline;
  if (!totals) return "Asking the registry…";
  if (!report) return totals.ready ? `${number(totals.ready)} tasks are ready.` : "Nothing waits.";
  const moves = totals.leased || totals.ready || lastRate(stats, "pushed") || lastRate(stats, "done");
  return moves ? report.headline : "Nothing waits.";
}

function Lead({ report, totals, stats }) {
  if (!totals) return html`<p class="lead">${"\u00a0"}</p>`;
  const arrive = lastRate(stats, "pushed");
  const finish = lastRate(stats, "done");
  const wait = last(stats, "wait_p50");
  const rest = report?.findings.some((one) => one.queue) ? "The rest is moving: " : "";
  if (arrive === null || finish === null) {
    const [ready, leased] = [totals.ready, totals.leased].map(number);
    return html`<p class="lead live"><b>${ready}</b> ${totals.ready === 1 ? "task is" : "tasks are"} ready, <b>${leased}</b> ${totals.leased === 1 ? "is" : "are"} leased, in ${number(totals.queues)} ${totals.queues === 1 ? "queue" : "queues"}.</p>`;
  }
  if (!arrive && !finish) return html`<p class="lead live">No task arrived or finished in the last minute.</p>`;
  return html`<p class="lead live">
    ${rest}<b>${rate(arrive)}</b> tasks arrive and <b>${rate(finish)}</b> finish each second${wait !== null && html`, half of them start within <b>${duration(wait)}</b>`}.
  </p>`;
}

function Findings({ report }) {
  const [all, setAll] = useState(false);
  const found = (report?.findings ?? []).filter((one) => one.code !== "anonymous");
  if (!found.length) return null;
  const shown = all ? found : found.slice(0, MAX_FINDINGS);
  const more = report.count - (report.findings.length - found.length) - shown.length;
  return html`<section class="findings box" aria-label="Findings">
    <ul>
      ${shown.map(
        (one) => html`<li key=${`${one.code} ${one.queue}`}>
          <${Glyph} state=${glyphOf(one)} label=${one.severity} />
          <p class="what"><${FindingText} finding=${one} /></p>
          <p class="detail">${unbroken(visible(one.detail))}</p>
          <span class="next"><${NextStep} finding=${one} /></span>
        </li>`,
      )}
    </ul>
    ${more > 0 && !all && html`<button class="more" onClick=${() => setAll(true)}>and ${number(more)} more</button>`}
  </section>`;
}

function Total({ glyph, label, value, note, kind }) {
  return html`<div class="total">
    <dt>${glyph && html`<${Glyph} state=${glyph} />`}${label}</dt>
    <dd><span class="value live">${value}</span>${note && html` <span class=${`note ${kind ?? ""}`}>${note}</span>`}</dd>
  </div>`;
}

function Totals({ totals, stats, range }) {
  const narrow = useNarrow();
  if (!totals) return html`<dl class="totals waiting"></dl>`;
  const { dead: died = null, done = null } = stats?.totals ?? {};
  return html`<dl class="totals">
    <${Total} glyph="ready" label="Ready" value=${large(totals.ready)} />
    <${Total} glyph="delayed" label="Delayed" value=${large(totals.delayed)} />
    <${Total} glyph="leased" label="Leased" value=${large(totals.leased)} />
    <${Total} glyph="dead" label="Dead" value=${large(totals.dead)} note=${died ? `+${number(died)}` : null} kind="dies" />
    ${done === null
      ? html`<${Total} glyph="done" label="Done, kept" value=${large(totals.done)} />`
      : html`<${Total} glyph="done" label=${narrow ? `Done, ${RANGES.find((one) => one.value === range)?.text ?? range}` : `Done, ${rangeText(range)}`} value=${large(done)} />`}
    <${Total} label="Parked polls" value=${large(totals.pollers)} />
  </dl>`;
}

function Nothing() {
  const line = `curl ${BASE}api/pushTask/mail -d '{"to":"ann"}'`;
  return html`<${Empty} title="No queues yet. Push a task and it appears here.">
    <div class="row"><pre class="well grow">${line}</pre><${CopyButton} text=${line} label="Copy the line" /></div>
  <//>`;
}

export default function Overview({ route }) {
  const chosen = route.query.range;
  const totals = useStore(live, (value) => value.totals);
  const report = useStore(live, (value) => value.report);
  const asked = useStats(chosen ?? "1h");
  // A registry that has just begun has little to show of an hour.
  const isNew = !chosen && Boolean(asked.stats) && known(asked.stats) < FEW_POINTS;
  const begun = useStats("15m", undefined, isNew);
  const range = chosen ?? (isNew ? "15m" : "1h");
  const { stats, error } = isNew && begun.stats ? begun : asked;
  const isEmpty = totals && !totals.queues;
  return html`<div class="overview">
    <h1 class="verdict">${headline(report, totals, stats)}</h1>
    <${Lead} report=${report} totals=${totals} stats=${stats} />
    <${Findings} report=${report} />
    <${Totals} totals=${totals} stats=${stats} range=${range} />
    ${error?.status !== 404 && html`<${Flow} range=${range} stats=${stats} />`}
    ${isEmpty ? html`<${Nothing} />` : html`<${Queues} route=${route} report=${report} />`}
  </div>`;
}

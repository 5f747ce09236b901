// The three charts: throughput with a lane for deaths, wait and run on one log axis, marks where a worker's version was new.

import { Chart } from "../lib/chart.js";
import { duration, rate, visible } from "../lib/format.js";
import { useNarrow } from "../lib/live.js";
import { Segments } from "../lib/parts.js";
import { html, useMemo } from "../lib/preact.js";
import { setQuery } from "../lib/router.js";
import { RANGES, perSecond, series, times } from "../lib/stats.js";

const MAX_MARKS = 3;

/** Marks that would lie upon each other are one: "mailer 2.4.1", "4 versions". The latest ones are shown. */
function gathered(marks, at) {
  const near = (at[at.length - 1] - at[0]) / 4;
  const groups = [];
  for (const { at: time, text } of marks) {
    const seconds = Date.parse(time) / 1000;
    const last = groups[groups.length - 1];
    if (last && seconds - last.at < near) last.texts.push(text);
    else groups.push({ at: seconds, texts: [text] });
  }
  return groups.slice(-MAX_MARKS).map((group) => ({
    at: group.at,
    text: group.texts.length > 1 ? `${group.texts.length} versions` : visible(group.texts[0].replace("/", " ")),
  }));
}

function draw(stats) {
  const at = times(stats);
  const perMinute = (value) => (value ? `${rate((value * 60) / stats.step)} dead/min` : "");
  const marks = gathered(stats.marks ?? [], at);
  const common = { times: at, marks, sync: "flow" };
  return {
    throughput: {
      ...common,
      named: true,
      scale: "linear",
      lines: [
        { values: perSecond(stats, "pushed"), label: (value) => `${rate(value)} in`, color: "ink-3", text: "ink-2" },
        { values: perSecond(stats, "done"), label: (value) => `${rate(value)} done`, color: "move-fill", text: "move", width: 1.75, fill: true },
      ],
      lane: { values: series(stats, "dead"), label: perMinute },
    },
    wait: {
      ...common,
      scale: "log",
      lines: [
        { values: series(stats, "wait_p99"), label: (value) => `p99 ${duration(value)}`, color: "ink-3", text: "ink-2" },
        { values: series(stats, "wait_p50"), label: (value) => `p50 ${duration(value)}`, color: "ink-2", text: "ink", width: 1.75 },
        { values: series(stats, "oldest_age"), label: (value) => `oldest ${duration(value)}`, color: "ask-fill", text: "ask", width: 1.75 },
      ],
      band: [0, 1],
    },
    run: {
      ...common,
      scale: "log",
      lines: [
        { values: series(stats, "run_p99"), label: (value) => `p99 ${duration(value)}`, color: "move-fill", text: "ink-2" },
        { values: series(stats, "run_p50"), label: (value) => `p50 ${duration(value)}`, color: "move-fill", text: "move", width: 1.75 },
      ],
      band: [0, 1],
    },
  };
}

export function Flow({ range, stats }) {
  const narrow = useNarrow();
  const drawn = useMemo(() => stats && stats.points.length > 1 && draw(stats), [stats]);
  const height = narrow ? 170 : 176;
  return html`<section class="flow" aria-labelledby="flow-title">
    <div class="row wide">
      <h2 class="section" id="flow-title">Flow</h2>
      <${Segments} label="Range of the charts" options=${RANGES} value=${range} onChange=${(value) => setQuery({ range: value })} />
    </div>
    ${drawn
      ? html`<div class="charts">
          <${Chart} title="Throughput" note="tasks per second" height=${height} ...${drawn.throughput} />
          <${Chart} title="Wait" note="from ready to leased" height=${height} ...${drawn.wait} />
          <${Chart} title="Run" note="from leased to done" height=${height} ...${drawn.run} />
        </div>`
      : html`<div class="charts empty-charts">
          ${["Throughput", "Wait", "Run"].map(
            (title) => html`<figure class="chart">
              <figcaption><span class="subject">${title}</span></figcaption>
              <div class="canvas no-data">${stats && "No data yet: a point is drawn every " + duration(stats.step) + "."}</div>
            </figure>`,
          )}
        </div>`}
  </section>`;
}

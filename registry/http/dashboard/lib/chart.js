// A chart of lines over time: labels at the ends of the lines, one crosshair over all charts of the page, gaps as gaps.
//
//   html`<${Chart}
//     title="Wait" note="from ready to leased"
//     times=${[s since 1970, …]}
//     lines=${[{values, label: (value) => `p50 ${duration(value)}`, color: "ink", width: 1.75, fill: true, strong: true}]}
//     band=${[0, 1]}                      fills between two lines
//     scale="linear" or "log"             log: of seconds, from 1 ms on
//     lane=${{values, label: (value) => …}}   deaths, as bars below the lines
//     marks=${[{at: s, text}]}            with their text if `named`
//     height=${150} sync="flow"
//   />`
//
// Colours are the names of the tokens: "move-fill", "ink-2", "ask-fill". Everything is drawn on the canvas, so that no element
// needs a style; a table beside it tells screen readers the same.

import { clock, rate } from "./format.js";
import { html, useEffect, useRef, useState } from "./preact.js";

const DAY = 86400;
const LOG_TICKS = [0.001, 0.01, 0.1, 1, 10, 60, 600, 3600, 10 * 3600, DAY, 10 * DAY];
// Those that have a line and a label.
const LOG_LABELS = new Map([[0.01, "10 ms"], [1, "1 s"], [60, "1 min"], [3600, "1 h"], [DAY, "1 d"]]);
const LANE = 24;
const LANE_GAP = 10;
const TOP = 14;
const BOTTOM = 22;
const LEFT = 44;
const RIGHT = 92;

let loading = null;
/**
 * uPlot is fetched when the first chart is drawn, and again after a while where that failed. Its small file is a script that sets
 * a global name, and no module.
 */
const loadUPlot = () => {
  loading =
    loading ??
    new Promise((resolve) => {
      const fetchIt = () => {
        const script = document.createElement("script");
        script.src = new URL("../vendor/uPlot.iife.min.js", import.meta.url).href;
        script.onload = () => resolve(window.uPlot);
        script.onerror = () => setTimeout(fetchIt, 3000);
        document.head.append(script);
      };
      fetchIt();
    });
  return loading;
};

function token(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function faint(name, alpha) {
  const hex = token(name).slice(1);
  const [red, green, blue] = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgb(${red} ${green} ${blue} / ${alpha})`;
}

/** The top of an axis and the step of its lines: 441 -> {top: 500, step: 250}. */
export function roundScale(max) {
  if (!(max > 0)) return { top: 1, step: 1 };
  const size = 10 ** Math.floor(Math.log10(max));
  const top = [1, 2, 5, 10].map((one) => one * size).find((one) => one >= max);
  return { top, step: top / 2 };
}

function logScale(values) {
  const known = values.filter((value) => value > 0);
  // Some room, so that no line runs along an edge.
  const low = Math.min(0.01, ...known) / 1.5;
  const high = Math.max(1, ...known) * 1.2;
  return {
    low: LOG_TICKS.filter((tick) => tick <= low).pop() ?? 0.001,
    high: LOG_TICKS.find((tick) => tick >= high) ?? high,
  };
}

/** Moves labels apart: none nearer than `gap`, as near to their lines as that allows. */
export function spread(places, gap) {
  const order = places.map((y, at) => ({ y, at })).sort((a, b) => a.y - b.y);
  for (let round = 0; round < 8; round += 1) {
    for (let at = 1; at < order.length; at += 1) {
      const near = gap - (order[at].y - order[at - 1].y);
      if (near > 0) {
        order[at].y += near / 2;
        order[at - 1].y -= near / 2;
      }
    }
  }
  const moved = [];
  for (const one of order) moved[one.at] = one.y;
  return moved;
}

const themes = new Set();
const onTheme = () => themes.forEach((listener) => listener());
new MutationObserver(onTheme).observe(document.documentElement, { attributeFilter: ["data-theme"] });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onTheme);

function useTheme() {
  const [version, setVersion] = useState(0);
  useEffect(() => {
    const listener = () => setVersion((count) => count + 1);
    themes.add(listener);
    return () => themes.delete(listener);
  }, []);
  return version;
}

/** Draws axes, lane, marks and labels around the lines that uPlot draws. */
function decorate(u, props) {
  const { ctx } = u;
  const px = devicePixelRatio;
  const { left, top, width, height } = u.bbox;
  const { times, lines, lane, marks = [], named, scale } = props.current;
  if (!times.length) return;
  const at = u.cursor.idx ?? times.length - 1;
  const isHovered = u.cursor.idx !== null && u.cursor.idx !== undefined;
  const x = (seconds) => u.valToPos(seconds, "x", true);
  const y = (value) => u.valToPos(value, "y", true);
  const font = (weight) => `${weight} ${11 * px}px ${getComputedStyle(document.body).fontFamily}`;
  const write = (text, place, line, color, align, weight = 400) => {
    ctx.font = font(weight);
    ctx.fillStyle = token(color);
    ctx.textAlign = align;
    ctx.textBaseline = "middle";
    ctx.fillText(text, place, line);
  };
  ctx.save();
  // The axis on the left.
  for (const tick of u.ticks) {
    const line = y(tick);
    ctx.strokeStyle = token("line");
    ctx.lineWidth = px;
    ctx.beginPath();
    ctx.moveTo(left, line);
    ctx.lineTo(left + width, line);
    ctx.globalCompositeOperation = "destination-over";
    ctx.stroke();
    ctx.globalCompositeOperation = "source-over";
    write(scale === "log" ? LOG_LABELS.get(tick) : rate(tick), left - 8 * px, line, "ink-3", "right");
  }
  // The time below: begin, end, and the crosshair's or the middle.
  const below = top + height + 12 * px;
  const withDate = times[times.length - 1] - times[0] > DAY;
  const time = (seconds) => (withDate ? clock(seconds * 1000, false) : clock(seconds * 1000, false).slice(-5));
  write(time(times[0]), left, below, "ink-3", "left");
  write(time(times[times.length - 1]), left + width, below, "ink-3", "right");
  const shown = isHovered ? times[at] : marks.length ? marks[0].at : (times[0] + times[times.length - 1]) / 2;
  const middle = Math.min(left + width - 72 * px, Math.max(left + 72 * px, x(shown)));
  if (width > 190 * px) write(time(shown), middle, below, isHovered ? "ink" : "ink-3", "center");
  // Deaths: bars in a lane of their own.
  if (lane) {
    const most = Math.max(1, ...lane.values.filter((value) => value !== null));
    const base = top + height;
    const step = width / Math.max(1, times.length);
    ctx.strokeStyle = token("line");
    ctx.lineWidth = px;
    ctx.beginPath();
    ctx.moveTo(left, base - px / 2);
    ctx.lineTo(left + width, base - px / 2);
    ctx.stroke();
    ctx.fillStyle = token("dead-fill");
    lane.values.forEach((value, index) => {
      if (!value) return;
      const size = Math.max(2 * px, (value / most) * LANE * px);
      const bar = Math.max(px, step - px);
      ctx.fillRect(Math.min(left + width - bar, Math.max(left, x(times[index]) - bar / 2)), base - size, bar, size);
    });
    const text = lane.label(lane.values[at]);
    if (text) write(text, left + width + 8 * px, base - (LANE / 2) * px, "dead", "left");
  }
  // Where something began.
  for (const mark of marks) {
    const line = Math.round(x(mark.at));
    if (line < left || line > left + width) continue;
    ctx.strokeStyle = token("ink-2");
    ctx.lineWidth = px;
    ctx.setLineDash([2 * px, 3 * px]);
    ctx.beginPath();
    ctx.moveTo(line, top);
    ctx.lineTo(line, top + height);
    ctx.stroke();
    ctx.setLineDash([]);
    if (named) write(mark.text, Math.min(left + width - 30 * px, Math.max(left + 30 * px, line)), top - 7 * px, "ink-2", "center");
  }
  // The ends of the lines.
  const ends = lines.map((line) => ({ line, value: line.values[at] ?? null })).filter((one) => one.value !== null);
  const places = spread(ends.map((one) => y(Math.max(one.value, u.scales.y.min))), 14 * px);
  ends.forEach(({ line, value }, index) => {
    write(line.label(value), left + width + 8 * px, places[index], line.text ?? line.color, "left", line.strong ? 600 : 400);
    ctx.fillStyle = token(line.color);
    ctx.beginPath();
    ctx.arc(x(times[at]), y(Math.max(value, u.scales.y.min)), 2.5 * px, 0, 7);
    ctx.fill();
  });
  ctx.restore();
}

function options(props, width) {
  const { lines, band, scale, lane, height, sync } = props.current;
  const below = lane ? LANE + LANE_GAP : 0;
  const log = scale === "log";
  return {
    width,
    height,
    pxAlign: 0,
    legend: { show: false },
    padding: [TOP, RIGHT, BOTTOM, LEFT],
    cursor: { y: false, points: { show: false }, drag: { x: false, y: false }, sync: sync ? { key: sync, setSeries: false } : undefined },
    scales: {
      x: { time: true },
      y: {
        distr: log ? 3 : 1,
        range: (u) => {
          const all = props.current.lines.flatMap((line) => line.values);
          if (log) {
            const { low, high } = logScale(all);
            u.ticks = LOG_TICKS.filter((tick) => tick >= low && tick <= high && LOG_LABELS.has(tick));
            return [low, high];
          }
          const { top, step } = roundScale(Math.max(0, ...all.filter((value) => value !== null)));
          u.ticks = [0, step, top];
          // Room for the lane lies below zero.
          return [(-below / (height - TOP - BOTTOM - below)) * top, top];
        },
      },
    },
    axes: [{ show: false }, { show: false }],
    series: [
      {},
      ...lines.map((line) => ({
        stroke: token(line.color),
        width: line.width ?? 1.25,
        fill: line.fill ? faint(line.color, 0.12) : undefined,
        fillTo: 0,
        points: { show: false },
        spanGaps: false,
      })),
    ],
    bands: band ? [{ series: [band[0] + 1, band[1] + 1], fill: faint(lines[band[0]].color, 0.14) }] : undefined,
    hooks: {
      draw: [(u) => decorate(u, props)],
      setCursor: [(u) => u.redraw(false)],
    },
  };
}

const dataOf = ({ times, lines, scale }) => [
  times,
  // A logarithm needs something; less than a ms is drawn as one.
  ...lines.map((line) => (scale === "log" ? line.values.map((value) => (value === null ? null : Math.max(value, 0.001))) : line.values)),
];

export function Chart(given) {
  const { title, note, times, lines, height = 150, lane } = given;
  const box = useRef();
  const chart = useRef(null);
  const props = useRef();
  props.current = { height, ...given };
  const theme = useTheme();
  const shape = `${theme} ${lines.length} ${given.scale} ${height}`;
  useEffect(() => {
    let isHere = true;
    let observer = null;
    loadUPlot().then((UPlot) => {
      if (!isHere) return;
      const element = box.current;
      chart.current = new UPlot(options(props, element.clientWidth), dataOf(props.current), element);
      observer = new ResizeObserver(() => chart.current?.setSize({ width: element.clientWidth, height: props.current.height }));
      observer.observe(element);
    });
    return () => {
      isHere = false;
      observer?.disconnect();
      chart.current?.destroy();
      chart.current = null;
    };
  }, [shape]);
  useEffect(() => {
    if (!document.hidden) chart.current?.setData(dataOf(props.current));
  }, [times, lines]);
  const every = Math.max(1, Math.ceil(times.length / 12));
  const told = times.map((_, index) => index).filter((index) => index % every === 0 || index === times.length - 1);
  const cell = (value, label) => (value === null || value === undefined ? "–" : label(value));
  return html`<figure class="chart">
    <figcaption><span class="subject">${title}</span> <span class="note">${note}</span></figcaption>
    <div class="canvas" ref=${box} aria-hidden="true"></div>
    <table class="for-readers">
      <caption>${title}, ${note}</caption>
      <tbody>
        ${told.map(
          (index) => html`<tr key=${times[index]}>
            <th scope="row">${clock(times[index] * 1000, false)}</th>
            ${lines.map((line) => html`<td>${cell(line.values[index], line.label)}</td>`)}
            ${lane && html`<td>${cell(lane.values[index], lane.label)}</td>`}
          </tr>`,
        )}
      </tbody>
    </table>
  </figure>`;
}

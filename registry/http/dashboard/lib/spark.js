// A line of 80 x 20 without axes. The scale begins at a floor that all lines share, so that 2 tasks are no mountain.
//
//   html`<${Spark} values=${[0, 3, null, 12]} label="Ready, last hour: now 12" asks=${true} />`   null: a gap

import { html } from "./preact.js";
import { classes } from "./parts.js";

const FLOOR = 24;
const WIDTH = 80;
const HEIGHT = 20;

export function Spark({ values, label, asks = false, floor = FLOOR }) {
  const known = values.filter((value) => value !== null && value !== undefined);
  if (known.length < 2) return null;
  const top = Math.max(floor, ...known);
  const step = WIDTH / (values.length - 1);
  const place = (value, at) => [(at * step).toFixed(1), (HEIGHT - 1 - (value / top) * (HEIGHT - 3)).toFixed(1)];
  let line = "";
  let area = "";
  let begin = null;
  values.forEach((value, at) => {
    if (value === null || value === undefined) {
      begin = null;
      return;
    }
    const [x, y] = place(value, at);
    line += `${begin === null ? "M" : "L"}${x} ${y}`;
    if (begin === null) begin = x;
    // The last point of a piece closes the ground below it.
    area += `${begin === x ? `M${x} ${HEIGHT - 1}L` : "L"}${x} ${y}`;
    if ((values[at + 1] ?? null) === null) area += `L${x} ${HEIGHT - 1}z`;
  });
  const last = values.length - 1;
  const [x, y] = (values[last] ?? null) === null ? [null, null] : place(values[last], last);
  return html`<svg class=${classes("spark", asks && "asks")} viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label=${label}>
    ${asks && html`<path class="area" d=${area} />`}
    <path class="path" d=${line} />
    ${asks && x !== null && html`<circle class="end" cx=${x} cy=${y} r="1.75" />`}
  </svg>`;
}

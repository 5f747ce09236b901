// Glyphs of the states, 14 px, so that colour is never alone, and icons of 16 px.
//
//   html`<${Glyph} state="ready" />`   ready, delayed, leased, done, dead, asks, paused, passed
//   html`<${Glyph} state="leased" share=${0.4} />`   the pie of a leased task: progress, or what is left of its lease, 0 to 1
//   html`<${Glyph} state="dead" label="dead" />`     with a word for those who do not see it, where no word stands beside it
//   html`<${Icon} name="search" />`    always beside a word, or in a button with an aria-label

import { html } from "./preact.js";

// A sector of a circle of radius 3.5 around 7,7, from the top, clockwise.
function sector(share) {
  if (share >= 0.999) return "M7 3.5a3.5 3.5 0 1 1 0 7a3.5 3.5 0 1 1 0-7z";
  const angle = Math.max(0.02, share) * 2 * Math.PI;
  const x = (7 + 3.5 * Math.sin(angle)).toFixed(2);
  const y = (7 - 3.5 * Math.cos(angle)).toFixed(2);
  return `M7 7V3.5A3.5 3.5 0 ${share > 0.5 ? 1 : 0} 1 ${x} ${y}z`;
}

const RING = html`<circle cx="7" cy="7" r="5.75" fill="none" stroke="currentColor" stroke-width="1.5" />`;
const DISC = html`<circle cx="7" cy="7" r="6.5" fill="currentColor" />`;
const on = (d, width = 1.6) =>
  html`<path d=${d} fill="none" stroke="var(--canvas)" stroke-width=${width} stroke-linecap="round" stroke-linejoin="round" />`;

const SHAPES = {
  ready: () => RING,
  delayed: () =>
    html`<circle cx="7" cy="7" r="5.75" fill="none" stroke="currentColor" stroke-width="1.5" stroke-dasharray="2 1.61" />`,
  leased: (share) => html`${RING}<path d=${sector(share)} fill="currentColor" />`,
  done: () => html`${DISC}${on("M4.2 7.3l2 2 3.6-4.1")}`,
  passed: () => html`${DISC}${on("M4.2 7.3l2 2 3.6-4.1")}`,
  dead: () => html`${DISC}${on("M4.9 4.9l4.2 4.2M9.1 4.9L4.9 9.1")}`,
  asks: () => html`${DISC}${on("M7 3.9v3.6M7 9.9v.1", 1.8)}`,
  paused: () => html`${DISC}${on("M5.4 4.8v4.4M8.6 4.8v4.4")}`,
};

export function Glyph({ state, share = 0.6, label, large = false }) {
  const words = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" };
  return html`<svg class="glyph ${state} ${large ? "large" : ""}" viewBox="0 0 14 14" ...${words}>
    ${(SHAPES[state] ?? SHAPES.ready)(share)}
  </svg>`;
}

// Lines of 1.5 on a grid of 16.
const PATHS = {
  search: "M7 2.5a4.5 4.5 0 1 0 0 9a4.5 4.5 0 1 0 0-9zM10.4 10.4l3.1 3.1",
  right: "M6 3.5L10.5 8 6 12.5",
  left: "M10 3.5L5.5 8l4.5 4.5",
  down: "M4 6.3L8 10l4-3.7",
  up: "M4 9.7L8 6l4 3.7",
  close: "M4 4l8 8M12 4l-8 8",
  lock: "M4.5 7.5h7v5.5h-7zM5.8 7.5V5.2a2.2 2.2 0 0 1 4.4 0v2.3",
  copy: "M6 6h7v7H6zM3 10V3h7",
  more: "M3.5 8h.01M8 8h.01M12.5 8h.01",
  pause: "M5.5 4v8M10.5 4v8",
  play: "M5 3.5l7 4.5-7 4.5z",
  sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6a2.8 2.8 0 1 0 0-5.6zM8 1.2v1.2M8 13.6v1.2M1.2 8h1.2M13.6 8h1.2M3.2 3.2l.8.8M12 12l.8.8M3.2 12.8l.8-.8M12 4l.8-.8",
  moon: "M13 9.6A5.6 5.6 0 0 1 6.4 3a5.6 5.6 0 1 0 6.6 6.6z",
  home: "M2.5 8L8 3l5.5 5M4 7v6h8V7",
  person: "M8 3a2.3 2.3 0 1 0 0 4.6A2.3 2.3 0 1 0 8 3zM3.5 13.2c.3-2.6 2-3.7 4.5-3.7s4.2 1.1 4.5 3.7",
  cross: "M8 2.2a5.8 5.8 0 1 0 0 11.6A5.8 5.8 0 1 0 8 2.2zM6 6l4 4M10 6l-4 4",
  undo: "M3 6.5h6.2a3.3 3.3 0 1 1 0 6.6H6M5.6 3.6L2.7 6.5l2.9 2.9",
  check: "M3.5 8.5l3 3 6-7",
};

export function Icon({ name }) {
  const dots = name === "more" ? 2 : 1.5;
  return html`<svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
    <path d=${PATHS[name]} fill="none" stroke="currentColor" stroke-width=${dots} stroke-linecap="round" stroke-linejoin="round" />
  </svg>`;
}

/** The sign of the registry. */
export function Mark() {
  return html`<svg class="mark" viewBox="0 0 16 16" width="18" height="18" aria-hidden="true">
    <circle cx="8" cy="8" r="6.8" fill="none" stroke="currentColor" stroke-width="1.8" />
    <path d="M8 4.2a3.8 3.8 0 0 1 0 7.6z" fill="currentColor" />
  </svg>`;
}

// Nothing moves under the hand: while somebody points at a table, its order is held.
//
//   const held = useHeld(rows, {key: (row) => row.name, scope: filter + sort + page, lock: selected.size > 0});
//   html`<div ...${held.hand}>…${held.rows.map(({row, leaving}) => …)}</div>`
//
// `rows`: the newest. `held.rows`: those to draw, each {row, leaving}; a row that left stays, `leaving`, with its last numbers.
// `held.isHeld`: say so in the toolbar with `HeldNote`. `held.fresh`: how many new rows wait; `held.show()` lets them in.
// `scope`: of which filter, sort and page the rows are (of the rows that are here, not of those that were asked for): where the
// person asked for others, they come at once. `lock`: holds as long as it is true: rows are selected, or a
// panel is open. The order is free again 2 s after the hand has left.

import { Icon } from "./icons.js";
import { html, useEffect, useRef, useState } from "./preact.js";

const AFTER = 2000;

export function useHeld(rows, { key, scope = "", lock = false }) {
  const [near, setNear] = useState(false);
  const hand = useRef({ over: false, focus: false, timer: null });
  const shown = useRef({ scope: null, rows: [] });
  const [, redraw] = useState(0);

  const update = () => {
    const { over, focus, timer } = hand.current;
    clearTimeout(timer);
    if (over || focus) setNear(true);
    else hand.current.timer = setTimeout(() => setNear(false), AFTER);
  };
  useEffect(() => () => clearTimeout(hand.current.timer), []);

  const isHeld = near || lock;
  let fresh = 0;
  if (!isHeld || shown.current.scope !== scope || !shown.current.rows.length) {
    shown.current = { scope, rows: rows.map((row) => ({ row, leaving: false })) };
  } else {
    const newest = new Map(rows.map((row) => [key(row), row]));
    shown.current.rows = shown.current.rows.map((old) => {
      const row = newest.get(key(old.row));
      return row ? { row, leaving: false } : { row: old.row, leaving: true };
    });
    const drawn = new Set(shown.current.rows.map((old) => key(old.row)));
    fresh = rows.filter((row) => !drawn.has(key(row))).length;
  }
  // This preact takes focusin only as it is written here.
  const handlers = {
    onPointerEnter: (event) => {
      // A finger leaves no pointer behind.
      if (event.pointerType !== "mouse") return;
      hand.current.over = true;
      update();
    },
    onPointerLeave: () => {
      hand.current.over = false;
      update();
    },
    onfocusin: () => {
      hand.current.focus = true;
      update();
    },
    onfocusout: (event) => {
      hand.current.focus = event.currentTarget.contains(event.relatedTarget);
      update();
    },
  };
  return {
    rows: shown.current.rows,
    isHeld,
    fresh,
    show: () => {
      shown.current.scope = null;
      redraw((count) => count + 1);
    },
    hand: handlers,
  };
}

/** For the toolbar: that the order is held, and how many rows wait. */
export function HeldNote({ held }) {
  if (!held.isHeld) return null;
  return html`<span class="held">
    <${Icon} name="lock" />
    ${held.fresh
      ? html`<button class="link" onClick=${held.show}>${held.fresh} new, show</button>`
      : "Order held while you point"}
  </span>`;
}

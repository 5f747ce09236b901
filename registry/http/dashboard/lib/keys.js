// The keyboard. Keys look for the element that does the same with a click, so that a page only marks its elements:
//
//   data-filter                 the filter field: f
//   data-row                    a row: j k and the arrows move the focus over rows; Enter clicks its [data-open] link or button,
//                               x its tick box
//   data-select-all             X
//   role="tab"                  [ and ]
//   data-page="previous|next"   , and .
//   data-key="r"  data-key="p"  retry…, pause or resume
//   data-undo                   z (toasts have it)
//   data-close                  Esc (panels, menus and the help have it; the last one in the page is closed)
//
// Off inside fields; single letters can be switched off in the help.

import { createStore } from "./store.js";
import { go } from "./router.js";

const STORED = "registry.keys";
function readSetting() {
  try {
    return localStorage.getItem(STORED) !== "off";
  } catch {
    return true;
  }
}
export const keyboard = createStore({ letters: readSetting(), help: false, waiting: false });

export function switchLetters(on) {
  keyboard.set({ letters: on });
  try {
    localStorage.setItem(STORED, on ? "on" : "off");
  } catch {
    // Without storage it lasts as long as the page.
  }
}

export const KEYS = [
  ["/", "Go to a queue or task"],
  ["f", "Filter"],
  ["g o", "Overview"],
  ["g d", "Dead"],
  ["g w", "Workers"],
  ["g s", "Schedules"],
  ["g a", "Audit"],
  ["j k", "Next and previous row; the arrows, too"],
  ["Enter", "Open the row"],
  ["x", "Select the row"],
  ["X", "Select all that match"],
  ["[ ]", "Previous and next tab"],
  [", .", "Previous and next page"],
  ["r", "Retry…"],
  ["p", "Pause or resume"],
  ["z", "Undo"],
  ["Esc", "Close"],
  ["?", "This list"],
];
const PLACES = { o: "overview", d: "dead", w: "workers", s: "schedules", a: "audit" };

const visible = (element) => element.offsetParent !== null || element.getClientRects().length > 0;
const find = (selector) => [...document.querySelectorAll(selector)].filter(visible);

function click(selector) {
  const elements = find(selector).filter((one) => !one.disabled && one.getAttribute("aria-disabled") !== "true");
  const last = elements[elements.length - 1];
  last?.click();
  return Boolean(last);
}

function focus(selector) {
  const [element] = find(selector);
  element?.focus();
  element?.select?.();
  return Boolean(element);
}

function moveRow(step) {
  const rows = find("[data-row]");
  if (!rows.length) return false;
  const at = rows.indexOf(document.activeElement?.closest("[data-row]"));
  const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step));
  rows[next].focus();
  rows[next].scrollIntoView({ block: "nearest" });
  return true;
}

function inRow(selector) {
  const found = document.activeElement?.closest("[data-row]")?.querySelector(selector);
  found?.click();
  return Boolean(found);
}

function moveTab(step) {
  const tabs = find('[role="tab"]');
  const at = tabs.findIndex((tab) => tab.getAttribute("aria-selected") === "true");
  tabs[at + step]?.click();
  return Boolean(tabs[at + step]);
}

const DEEDS = {
  "/": () => focus("[data-command]") || click("[data-command-open]"),
  f: () => focus("[data-filter]"),
  j: () => moveRow(1),
  k: () => moveRow(-1),
  x: () => inRow("input.tick"),
  X: () => click("[data-select-all]"),
  "[": () => moveTab(-1),
  "]": () => moveTab(1),
  ",": () => click('[data-page="previous"]'),
  ".": () => click('[data-page="next"]'),
  r: () => click('[data-key="r"]'),
  p: () => click('[data-key="p"]'),
  z: () => click("[data-undo]"),
  "?": () => keyboard.set({ help: !keyboard.get().help }) ?? true,
};

let waitingSince = 0;

function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const { target, key } = event;
  const inField = target.matches?.("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]");
  let done = false;
  if (key === "Escape") {
    if (click("[data-close]")) done = true;
    else if (inField) target.blur();
  } else if (!inField) {
    const row = target.matches?.("[data-row]");
    if (key === "ArrowDown" && row) done = moveRow(1);
    else if (key === "ArrowUp" && row) done = moveRow(-1);
    else if (key === "Enter" && row) done = inRow("[data-open]");
    else if (key === " " && row) done = inRow("input.tick");
    else if (keyboard.get().letters) {
      if (Date.now() - waitingSince < 1500 && PLACES[key]) {
        go({ page: PLACES[key] });
        done = true;
        waitingSince = 0;
      } else if (key === "g") {
        waitingSince = Date.now();
        done = true;
      } else {
        done = Boolean(DEEDS[key]?.());
      }
    }
  }
  if (done) event.preventDefault();
}

export function startKeys() {
  document.addEventListener("keydown", onKey);
}

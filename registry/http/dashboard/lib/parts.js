// The parts that pages are made of. What is text of others goes through `Name`.
//
//   Button {primary, danger, bare, square, next, disabled: "the reason", busy, onClick, …}   a deed; a link with `to`
//   Name {text, limit}          a name in <bdi>, control characters made visible, cut in the middle, the whole in its title
//   Time {at, ago, seconds}     a time of day with its zone in the title; `ago`: as "3 s ago"
//   Num {value}                 a number; a zero is fainter; – for null
//   Chips {label, options: [{value, text, count}], value, onChange}
//   Segments {label, options: [{value, text}], value, onChange}
//   Tabs {label, tabs: [{value, text, glyph, count}], value, onChange}   the panel below has role="tabpanel"
//   FilterField {value, onChange, placeholder, label}   calls onChange 250 ms after the last key; `f` reaches it
//   Select {label, options: [{value, text}], value, onChange, boxed}
//   Pager {text, note, previous, next}   `previous`, `next`: functions, or null where there is no such page
//   Meter {share, kind, label}  kind: "", "asks" or "dead"; share 0 to 1
//   Failure {error, retry}      a sentence for an error of the API: 403 names the right, 5xx the incident
//   Empty {title, children}     for lists with nothing in them
//   Crumbs {items: [{text, to}]}
//   CopyButton {text, label}

import { UNKNOWN, ago, clock, middle, number, visible, zoned } from "./format.js";
import { Glyph, Icon } from "./icons.js";
import { useNow } from "./live.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { href } from "./router.js";
import { toast } from "./toast.js";

export const classes = (...names) => names.filter(Boolean).join(" ");

export function Button({ primary, danger, bare, square, next, disabled, busy, to, children, ...rest }) {
  const look = classes("button", primary && "primary", danger && "danger", bare && "bare", square && "square", next && "next-step");
  const content = html`${children}${next && html`<${Icon} name="right" />`}`;
  if (to) return html`<a class=${look} href=${href(to)} ...${rest}>${content}</a>`;
  const off = Boolean(disabled) || busy;
  const { onClick, ...others } = rest;
  return html`<button
    type="button"
    class=${look}
    aria-disabled=${off ? "true" : undefined}
    aria-busy=${busy ? "true" : undefined}
    title=${typeof disabled === "string" ? disabled : undefined}
    ...${others}
    onClick=${off ? (event) => event.preventDefault() : onClick}
  >
    ${content}
  </button>`;
}

export function Name({ text, limit = 0 }) {
  const whole = visible(text ?? UNKNOWN);
  const shown = limit ? middle(whole, limit) : whole;
  return html`<bdi class="name" title=${shown === whole ? undefined : whole}>${shown}</bdi>`;
}

export function Time({ at, ago: isAge = false, seconds = true }) {
  const now = useNow(isAge ? 1 : 60);
  if (at === null || at === undefined) return html`<span class="faint">${UNKNOWN}</span>`;
  return html`<time datetime=${new Date(at).toISOString()} title=${zoned(at)}>${isAge ? ago(at, now) : clock(at, seconds)}</time>`;
}

export function Num({ value, text, kind = "" }) {
  return html`<span class=${classes(kind, (value === 0 || value === null) && "zero")}>${text ?? number(value)}</span>`;
}

export function Chips({ label, options, value, onChange }) {
  return html`<div class="chips" role="group" aria-label=${label}>
    ${options.map(
      (one) => html`<button
        key=${one.value}
        type="button"
        class="chip"
        aria-pressed=${one.value === value}
        onClick=${() => onChange(one.value)}
      >
        ${one.text} ${one.count !== undefined && html`<span class="count">${number(one.count)}</span>`}
      </button>`,
    )}
  </div>`;
}

export function Segments({ label, options, value, onChange }) {
  return html`<div class="segments" role="group" aria-label=${label}>
    ${options.map(
      (one) => html`<button
        key=${one.value}
        type="button"
        aria-pressed=${one.value === value}
        aria-label=${one.label}
        title=${one.title}
        onClick=${() => onChange(one.value)}
      >
        ${one.text}
      </button>`,
    )}
  </div>`;
}

export function Tabs({ label, tabs, value, onChange, panel }) {
  const list = useRef();
  const move = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const at = tabs.findIndex((tab) => tab.value === value);
    const next = tabs[(at + step + tabs.length) % tabs.length];
    onChange(next.value);
    list.current.querySelector(`[data-tab="${next.value}"]`)?.focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} ref=${list} onKeyDown=${move}>
    ${tabs.map(
      (tab) => html`<button
        key=${tab.value}
        type="button"
        role="tab"
        class="tab"
        data-tab=${tab.value}
        id=${`tab-${tab.value}`}
        aria-selected=${tab.value === value}
        aria-controls=${tab.value === value ? panel : undefined}
        tabindex=${tab.value === value ? 0 : -1}
        onClick=${() => onChange(tab.value)}
      >
        ${tab.glyph && html`<${Glyph} state=${tab.glyph} />`}${tab.text}
        ${tab.count !== undefined && html`<span class="count">${number(tab.count)}</span>`}
      </button>`,
    )}
  </div>`;
}

export function FilterField({ value, onChange, placeholder, label, children }) {
  const [text, setText] = useState(value);
  const timer = useRef(null);
  // The URL is the truth: Back changes it without a key.
  useEffect(() => setText(value), [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const later = (next, wait) => {
    setText(next);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => onChange(next), wait);
  };
  return html`<div class="field">
    <${Icon} name="search" />${children}
    <input
      data-filter
      type="text"
      value=${text}
      placeholder=${placeholder}
      aria-label=${label ?? placeholder}
      autocomplete="off"
      autocapitalize="off"
      spellcheck=${false}
      onInput=${(event) => later(event.target.value, 250)}
      onKeyDown=${(event) => event.key === "Enter" && later(text, 0)}
    />
    ${text &&
    html`<button type="button" class="icon-button" aria-label="Clear the filter" onClick=${() => later("", 0)}>
      <${Icon} name="close" />
    </button>`}
  </div>`;
}

export function Select({ label, options, value, onChange, boxed = false }) {
  return html`<span class=${classes("select", boxed && "boxed")}>
    <select aria-label=${label} onChange=${(event) => onChange(event.target.value)}>
      ${options.map((one) => html`<option key=${one.value} value=${one.value} selected=${one.value === value}>${one.text}</option>`)}
    </select>
    <${Icon} name="down" />
  </span>`;
}

export function Pager({ text, note, previous, next }) {
  return html`<nav class="pager" aria-label="Pages of the list">
    <span>${text}${note && html`<span class="faint beside">${note}</span>`}</span>
    ${(previous || next) &&
    html`<span class="row">
      <${Button} data-page="previous" disabled=${previous ? false : "This is the first page."} onClick=${previous}>
        <${Icon} name="left" />Previous
      <//>
      <${Button} data-page="next" disabled=${next ? false : "This is the last page."} onClick=${next}>
        Next<${Icon} name="right" />
      <//>
    </span>`}
  </nav>`;
}

export function Meter({ share, kind = "", label }) {
  const filled = Math.max(0, Math.min(1, share || 0)) * 100;
  return html`<svg class=${classes("meter", kind)} viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label=${label}>
    <rect class="track" width="100" height="4" rx="1" />
    <rect class="fill" width=${filled} height="4" rx="1" />
  </svg>`;
}

export function Failure({ error, retry }) {
  if (!error) return null;
  const more = error.status === 403 && error.right ? ` Sign in with a token that has the right “${error.right}”.` : "";
  return html`<div class="error" role="alert">
    <${Glyph} state="dead" />
    <span class="grow">${error.message}${more}</span>
    ${error.incident && html`<span class="mono">incident ${error.incident}</span>`}
    ${retry && error.status !== 403 && html`<${Button} onClick=${retry}>Try again<//>`}
  </div>`;
}

export function Empty({ title, children }) {
  return html`<div class="empty"><p>${title}</p>${children}</div>`;
}

export function Crumbs({ items }) {
  return html`<nav class="crumbs" aria-label="Path">
    ${items.map(
      (one, at) => html`${at > 0 && html`<span aria-hidden="true">/</span>`}${one.to
        ? html`<a href=${href(one.to)}>${items.length === 1 && html`<${Icon} name="left" /> `}<${Name} text=${one.text} limit=${40} /></a>`
        : html`<span class="faint"><${Name} text=${one.text} limit=${40} /></span>`}`,
    )}
  </nav>`;
}

export function CopyButton({ text, label = "Copy", square = true }) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "function" ? await text() : text);
      toast({ text: "Copied." });
    } catch {
      toast({ text: "This browser does not let the page copy; select the text instead." });
    }
  };
  return html`<${Button} bare square=${square} aria-label=${square ? label : undefined} title=${square ? label : undefined} onClick=${copy}>
    <${Icon} name="copy" />${square ? "" : label}
  <//>`;
}

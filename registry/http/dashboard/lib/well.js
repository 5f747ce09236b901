// What producers and workers wrote: text in a sunken field, never markup. A long text begins with its first 32 kB.
//
//   html`<${Well} text=${raw} json=${true} label="Payload" />`     with Copy, As pushed and Wrap
//   html`<${ErrorWell} error=${{type, message, trace}} />`         a worker's error, its trace folded after some lines

import { bytes, count, visible } from "./format.js";
import { indented } from "./json-text.js";
import { CopyButton, classes } from "./parts.js";
import { html, useMemo, useState } from "./preact.js";

const FIRST = 32 * 1024;
const TRACE_LINES = 6;

const sizeOf = (text) => new TextEncoder().encode(text).length;

export function Well({ text, json = false, label, cut = false }) {
  const [wraps, setWraps] = useState(true);
  const [asPushed, setAsPushed] = useState(false);
  const [all, setAll] = useState(false);
  const size = useMemo(() => sizeOf(text), [text]);
  const isLong = text.length > FIRST;
  const isIndented = json && !asPushed && !isLong;
  const shown = isLong && !all ? text.slice(0, FIRST) : text;
  const parts = useMemo(() => (isIndented ? indented(shown) : [{ text: shown, key: false }]), [shown, isIndented]);
  const many = parts.length > 1 || /[{[,]/.test(shown);
  return html`<section class="stack tight">
    <div class="row wide well-head">
      <h2 class="subject">${label}</h2>
      <${CopyButton} text=${text} label="Copy" square=${false} />
    </div>
    <pre class=${classes("well", "scrolls", wraps && "wraps")} tabindex="0" aria-label=${label} role="group"><bdi
      >${parts.map((part) => (part.key ? html`<span class="key">${visible(part.text, true)}</span>` : visible(part.text, true)))}</bdi
    ></pre>
    <p class="note">
      ${bytes(size)}${isIndented && many ? ", shown indented. " : isLong && !all ? `, the first ${bytes(FIRST)} are shown. ` : ". "}
      ${isLong && !all && html`<button type="button" class="link" onClick=${() => setAll(true)}>Show all</button> `}
      ${json && !isLong && many &&
      html`<button type="button" class="link" onClick=${() => setAsPushed(!asPushed)}>${asPushed ? "Indented" : "As pushed"}</button> `}
      <button type="button" class="link" onClick=${() => setWraps(!wraps)}>${wraps ? "Long lines" : "Wrap"}</button>
      ${cut && " The registry sent the beginning only."}
    </p>
  </section>`;
}

export function ErrorWell({ error }) {
  const [all, setAll] = useState(false);
  if (!error || (typeof error === "object" && !Object.keys(error).length)) return null;
  const { type, message, trace, truncated } = typeof error === "string" ? { message: error } : error;
  const lines = trace ? trace.replace(/\n+$/, "").split("\n") : [];
  const rest = all ? 0 : Math.max(0, lines.length - TRACE_LINES);
  const shown = rest ? lines.slice(0, TRACE_LINES) : lines;
  const head = [type, message].filter(Boolean).join(": ");
  return html`<div class="well wraps scrolls" tabindex="0" role="group" aria-label="Error">
    ${head && html`<bdi class="dies">${visible(head, true)}</bdi>`}
    ${shown.length > 0 && html`<bdi class="trace">${(head ? "\n" : "") + visible(shown.join("\n"), true)}</bdi>`}
    ${rest > 0 && html`${"\n"}<button type="button" class="link" onClick=${() => setAll(true)}>${count(rest, "more line")}</button>`}
    ${truncated && html`<span class="faint">${"\n"}The registry kept a part of it.</span>`}
  </div>`;
}

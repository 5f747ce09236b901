// The filter of a list of tasks: words and tokens, `error: SMTPAuthError worker: mail-3 timeout`.
//
//   const filter = parseFilter("error: SMTPAuthError timeout")    {tokens: [{key, value}], text: "timeout"}
//   writeFilter(filter)          the same text again, for the URL
//   listQuery(filter)            options of GET …/tasks
//   bulkQuery(filter)            options of a retry or a deletion; null where words or an id select, which those do not know
//   html`<${TokenField} value=${route.query.q ?? ""} keys=${["error", "worker", "id"]} placeholder="…" onChange=${(q) => …} />`

import { visible } from "./format.js";
import { Icon } from "./icons.js";
import { html, useEffect, useRef, useState } from "./preact.js";

const KEYS = ["error", "worker", "id", "reason", "type", "message"];
const TOKEN = new RegExp(`(?:^|\\s)(${KEYS.join("|")}):`, "g");
const NONE = "none";

export function parseFilter(q) {
  const found = [...q.matchAll(TOKEN)];
  const end = (at) => found[at + 1]?.index ?? q.length;
  const tokens = found.map((one, at) => ({ key: one[1], value: q.slice(one.index + one[0].length, end(at)).trim() }));
  return { tokens: tokens.filter((one) => one.value), text: q.slice(0, found[0]?.index ?? q.length).trim() };
}

export const writeFilter = ({ tokens, text }) => [text, ...tokens.map(({ key, value }) => `${key}: ${value}`)].filter(Boolean).join(" ");

export const idOf = (filter) => filter.tokens.find((one) => one.key === "id")?.value ?? null;

/** What the server selects by; an error without a type or a message is selected by an empty one. */
function selected(filter) {
  const query = {};
  for (const { key, value } of filter.tokens) {
    if (key !== "id") query[key] = (key === "type" || key === "message") && value === NONE ? "" : value;
  }
  return query;
}

export const listQuery = (filter) => ({ ...selected(filter), search: filter.text || idOf(filter) || undefined });

export const bulkQuery = (filter) => (filter.text || idOf(filter) ? null : selected(filter));

/** The filter for the tasks of a group of GET /api/dead. */
export function groupFilter(group) {
  if (group.reason !== "failed") return { tokens: [{ key: "reason", value: group.reason }], text: "" };
  const tokens = [
    { key: "type", value: group.type ?? NONE },
    { key: "message", value: group.message ?? NONE },
  ];
  return { tokens, text: "" };
}

/** Whether a group has all tasks, and no others, of a filter by its type, message, error or reason. */
export function fitsGroup(filter, group) {
  const query = selected(filter);
  const line = `${group.type ?? ""}: ${group.message ?? ""}`;
  if (query.reason !== undefined && query.reason !== group.reason) return false;
  if (query.type !== undefined && query.type !== (group.type ?? "")) return false;
  if (query.message !== undefined && query.message !== (group.message ?? "")) return false;
  if (query.worker !== undefined && !group.workers.includes(query.worker)) return false;
  return query.error === undefined || line.includes(query.error);
}

export function TokenField({ value, keys, placeholder, label, onChange }) {
  const filter = parseFilter(value);
  const [text, setText] = useState(filter.text);
  const timer = useRef(null);
  const input = useRef();
  useEffect(() => setText(parseFilter(value).text), [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  const apply = (tokens, words) => {
    clearTimeout(timer.current);
    const typed = parseFilter(words);
    const names = new Set(typed.tokens.map((one) => one.key));
    const next = writeFilter({ tokens: [...tokens.filter((one) => !names.has(one.key)), ...typed.tokens], text: typed.text });
    setText(typed.text);
    if (next !== value) onChange(next);
  };
  const onInput = (event) => {
    const words = event.target.value;
    setText(words);
    clearTimeout(timer.current);
    // A token is taken when it is complete: with Enter, or when the field is left.
    if (!new RegExp(TOKEN.source).test(words)) timer.current = setTimeout(() => apply(filter.tokens, words), 300);
  };
  const onKeyDown = (event) => {
    if (event.key === "Enter") apply(filter.tokens, text);
    else if (event.key === "Backspace" && event.target.selectionEnd === 0 && filter.tokens.length) apply(filter.tokens.slice(0, -1), text);
    else return;
    event.preventDefault();
  };
  const remove = (at) => {
    apply(filter.tokens.filter((_, index) => index !== at), text);
    input.current.focus();
  };
  return html`<div class="field tokens">
    <${Icon} name="search" />
    ${filter.tokens.map(
      ({ key, value: given }, at) => html`<span class="token" key=${`${key} ${given}`}>
        <span class="faint">${key}:</span> <bdi class="cut" title=${visible(given)}>${visible(given)}</bdi>
        <button type="button" class="remove" aria-label=${`Remove ${key}: ${visible(given)}`} onClick=${() => remove(at)}>
          <${Icon} name="close" />
        </button>
      </span>`,
    )}
    <input
      data-filter
      ref=${input}
      type="text"
      value=${text}
      placeholder=${filter.tokens.length ? "" : placeholder}
      title=${`Words, or ${keys.map((key) => `${key}:`).join(" ")}`}
      aria-label=${label ?? placeholder}
      autocomplete="off"
      autocapitalize="off"
      spellcheck=${false}
      onInput=${onInput}
      onKeyDown=${onKeyDown}
      onBlur=${() => apply(filter.tokens, text)}
    />
    ${(text || filter.tokens.length > 1) &&
    html`<button type="button" class="icon-button" aria-label="Clear the filter" onClick=${() => { setText(""); onChange(""); }}>
      <${Icon} name="close" />
    </button>`}
  </div>`;
}

// Short words about a deed, with Undo as long as the API allows it; and the one polite live region of the page.
//
//   toast({text: "Deleted 14 dead tasks of mail", audit});     `audit`: the id that api.send answers, or several in a list;
//                                                               Undo then stands in it
//   toast({text: "Copied."});                                   goes after 4 s
//   announce("A new finding: …");                               for screen readers only: findings, never numbers
//   await undo(audit)                                           answers {count, skipped}; tells it in a toast

import { api, path } from "./api.js";
import { count, left, ms } from "./format.js";
import { html, useEffect } from "./preact.js";
import { createStore, useStore } from "./store.js";
import { useNow } from "./live.js";

const SHORT = 4000;
const MAX = 3;
export const toasts = createStore({ list: [], said: "" });
let lastId = 0;
// Deeds after which lists have changed: pages listen to look again.
export const changed = createStore({ count: 0 });

export function announce(text) {
  toasts.set({ said: text });
}

function remove(id) {
  toasts.set({ list: toasts.get().list.filter((one) => one.id !== id) });
}

const listOf = (audit) => (Array.isArray(audit) ? audit : [audit]);

/** Until when the first of these entries of the audit can be undone, ms; null if it cannot. */
async function undoUntil([audit]) {
  const { audit: lines } = await api.get("/api/audit", { cursor: Number(audit) + 1, limit: 1 });
  return lines[0]?.id === String(audit) && lines[0].undo ? ms(lines[0].undo.until) : null;
}

export async function toast({ text, audit = null }) {
  const id = (lastId += 1);
  const hasAudit = audit !== null && listOf(audit).length > 0;
  const until = hasAudit ? await undoUntil(listOf(audit)).catch(() => null) : null;
  const one = { id, text, audit: until === null ? null : audit, since: Date.now(), until };
  toasts.set({ list: [...toasts.get().list, one].slice(-MAX), said: text });
  changed.set({ count: changed.get().count + 1 });
  if (until === null) setTimeout(() => remove(id), SHORT);
}

export async function undo(audit) {
  const sum = { count: 0, skipped: 0, reasons: {} };
  try {
    for (const one of listOf(audit)) {
      const { value } = await api.send("POST", path`/api/audit/${one}/undo`);
      sum.count += value.count;
      sum.skipped += value.skipped;
      for (const [reason, many] of Object.entries(value.reasons ?? {})) sum.reasons[reason] = (sum.reasons[reason] ?? 0) + many;
    }
  } catch (error) {
    toast({ text: sum.count ? `Undone for ${count(sum.count, "task")} only. ${error.message}` : `Not undone. ${error.message}` });
    return null;
  }
  const reasons = Object.entries(sum.reasons).map(([reason, many]) => `${many} ${reason.replace(/_/g, " ")}`);
  const skipped = sum.skipped ? ` ${count(sum.skipped, "task")} did not: ${reasons.join(", ")}.` : "";
  toast({ text: `Undone: ${count(sum.count, "task")} came back.${skipped}` });
  return sum;
}

function Toast({ one }) {
  const now = useNow();
  const seconds = one.until === null ? 0 : (one.until - now) / 1000;
  useEffect(() => {
    if (one.until !== null && seconds <= 0) remove(one.id);
  }, [seconds <= 0]);
  const act = () => {
    remove(one.id);
    undo(one.audit);
  };
  const share = one.until === null ? 0 : Math.max(0, (100 * (one.until - now)) / (one.until - one.since));
  return html`<div class="toast">
    <span>${one.text}</span>
    ${one.until !== null &&
    html`<span class="time">${left(seconds, true)}</span>
      <button class="button" data-undo onClick=${act}>Undo <kbd>z</kbd></button>
      <svg class="countdown" viewBox="0 0 100 2" preserveAspectRatio="none" aria-hidden="true">
        <rect width=${share} height="2" />
      </svg>`}
    ${one.until !== null &&
    html`<button class="icon-button" aria-label="Close this message" onClick=${() => remove(one.id)}>×</button>`}
  </div>`;
}

export function Toasts() {
  const { list, said } = useStore(toasts);
  return html`<div class="toasts">${list.map((one) => html`<${Toast} key=${one.id} one=${one} />`)}</div>
    <div class="for-readers" role="status" aria-live="polite">${said}</div>`;
}

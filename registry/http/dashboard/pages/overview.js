// Overview.

import { live } from "../lib/live.js";
import { number } from "../lib/format.js";
import { html } from "../lib/preact.js";
import { useStore } from "../lib/store.js";

export const title = () => "";

export default function Overview() {
  const totals = useStore(live, (value) => value.totals);
  return html`<h1 class="verdict">${totals ? `${number(totals.ready)} tasks are ready.` : ""}</h1>`;
}

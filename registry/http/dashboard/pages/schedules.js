// Schedules.

import { html } from "../lib/preact.js";

export const title = () => "Schedules";

export default function Schedules() {
  return html`<h1 class="verdict">Schedules</h1>`;
}

// Audit.

import { html } from "../lib/preact.js";

export const title = () => "Audit";

export default function Audit() {
  return html`<h1 class="verdict">Audit</h1>`;
}

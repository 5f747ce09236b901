// Dead.

import { html } from "../lib/preact.js";

export const title = () => "Dead";

export default function Dead() {
  return html`<h1 class="verdict">Dead</h1>`;
}

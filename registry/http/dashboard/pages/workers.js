// Workers.

import { html } from "../lib/preact.js";

export const title = () => "Workers";

export default function Workers() {
  return html`<h1 class="verdict">Workers</h1>`;
}

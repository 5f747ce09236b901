// Queue.

import { html } from "../lib/preact.js";

export const title = () => "Queue";

export default function Queue() {
  return html`<h1 class="verdict">Queue</h1>`;
}

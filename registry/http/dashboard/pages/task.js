// Task.

import { html } from "../lib/preact.js";

export const title = () => "Task";

export default function Task() {
  return html`<h1 class="verdict">Task</h1>`;
}

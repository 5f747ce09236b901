// An address that names no page.

import { Button } from "../lib/parts.js";
import { html } from "../lib/preact.js";

export const title = () => "No such page";

export default function Missing() {
  return html`<div class="stack">
    <h1 class="verdict">There is no such page.</h1>
    <p class="lead">The address may be of another version of the dashboard.</p>
    <${Button} to=${{ page: "overview" }}>Overview<//>
  </div>`;
}

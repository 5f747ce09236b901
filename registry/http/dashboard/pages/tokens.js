// Tokens.

import { html } from "../lib/preact.js";

export const title = () => "Tokens";

export default function Tokens() {
  return html`<h1 class="verdict">Tokens</h1>`;
}

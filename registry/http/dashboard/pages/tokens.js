// Tokens: who may do what, until when? To be read only: they are made and revoked with registryctl.

import { api, session } from "../lib/api.js";
import { clock, count, ms, number, word } from "../lib/format.js";
import { useFetch, useNarrow, useNow } from "../lib/live.js";
import { Failure, Name, Time } from "../lib/parts.js";
import { html } from "../lib/preact.js";
import { useStore } from "../lib/store.js";
import { Table, plain } from "../lib/table.js";

export const title = () => "Tokens";

const WEEK = 7 * 86_400_000;
const PAGES = 10;

async function load(signal) {
  const tokens = [];
  let cursor;
  for (let read = 0; read < PAGES; read += 1) {
    const page = await api.get("/api/tokens", { limit: 100, cursor }, { signal });
    tokens.push(...page.tokens);
    cursor = page.cursor;
    if (!cursor) break;
  }
  return { tokens, more: Boolean(cursor) };
}

function Expires({ token, now }) {
  if (token.expired) return html`<span class="quiet">expired <${Time} at=${token.expires} /></span>`;
  if (!token.expires) return html`<span class="faint">never</span>`;
  const isSoon = ms(token.expires) - now < WEEK;
  return html`<span class=${isSoon ? "asks" : ""}><${Time} at=${token.expires} /></span>`;
}

const Rights = ({ token }) => html`<ul class="rights">${token.rights.map((right) => html`<li key=${right} class="mono"><${Name} text=${right} limit=${60} /></li>`)}</ul>`;
const Used = ({ token }) => (token.last_used ? html`<${Time} at=${token.last_used} ago />` : html`<span class="faint">not in 400 days</span>`);

function columnsFor(narrow, now, me) {
  const name = (token) => html`<span class="strong-name"><${Name} text=${token.name} limit=${40} /></span>${token.name === me.name && html` <span class="note">you</span>`}`;
  if (narrow) {
    return [
      { key: "name", head: "Token", width: "grow", cell: (token) => html`${name(token)}<${Rights} token=${token} />` },
      { key: "used", head: "Last used", width: "w14", num: true, cell: (token) => html`<${Used} token=${token} /><div class="note"><${Expires} token=${token} now=${now} /></div>` },
    ];
  }
  return [
    { key: "name", head: "Token", width: "w24", cell: name },
    { key: "rights", head: "Rights", width: "grow", cell: (token) => html`<${Rights} token=${token} />` },
    { key: "used", head: "Last used", width: "w18", cell: (token) => html`<${Used} token=${token} />` },
    { key: "created", head: "Created", width: "w14", cell: (token) => (token.created ? html`<${Time} at=${token.created} />` : html`<span class="faint">–</span>`) },
    { key: "expires", head: "Expires", width: "w18", cell: (token) => html`<${Expires} token=${token} now=${now} />` },
  ];
}

export default function Tokens() {
  const me = useStore(session, (value) => value.me);
  const narrow = useNarrow();
  const now = useNow(60);
  const { data, error, reload } = useFetch(load, ["tokens"], { every: 10 });
  const tokens = data?.tokens ?? [];
  const soon = tokens.filter((token) => !token.expired && token.expires && ms(token.expires) - now < WEEK);
  const expired = tokens.filter((token) => token.expired).length;
  const [first] = [...soon].sort((one, other) => ms(one.expires) - ms(other.expires));
  let heading = "\u00a0";
  if (data) {
    const rest = soon.length ? `, ${word(soon.length)} ${soon.length === 1 ? "expires" : "expire"} within a week` : "";
    heading = tokens.length ? `${count(tokens.length, "token")}${data.more ? " or more" : ""}${rest}.` : "No tokens: everybody who reaches this registry may do everything.";
  }
  return html`<h1 class="verdict">${heading}</h1>
    <p class="lead">
      ${first && html`<b><${Name} text=${first.name} limit=${40} /></b> is the first, at ${clock(first.expires)}. `}
      ${expired > 0 && `${number(expired)} ${expired === 1 ? "has" : "have"} expired. `}
      They are made and revoked with <span class="mono">registryctl token</span>.
    </p>
    ${error && html`<${Failure} error=${error} retry=${reload} />`}
    ${tokens.length > 0 && html`<${Table} label="Tokens" columns=${columnsFor(narrow, now, me)} rows=${plain(tokens)} keyOf=${(token) => token.name} />`}`;
}

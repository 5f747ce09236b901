// Beside a queue's tasks: what it does now, deaths and waits of the last hour, and the policy, edited in place.

import { api, may } from "../lib/api.js";
import { Chart } from "../lib/chart.js";
import { clock, count, duration, ms, number, rate } from "../lib/format.js";
import { Button, Failure, Meter, Num, Time } from "../lib/parts.js";
import { html, useEffect, useRef, useState } from "../lib/preact.js";
import { lastRate, series, times } from "../lib/stats.js";
import { DEFAULTS, RETENTION, length } from "../lib/tasks.js";
import { toast } from "../lib/toast.js";

const Fact = ({ name, children }) => html`<div><dt>${name}</dt><dd>${children}</dd></div>`;

export function Now({ queue, stats }) {
  const { policy, leased, pollers, oldest_age: age } = queue;
  const pushed = lastRate(stats, "pushed");
  const done = lastRate(stats, "done");
  return html`<section>
    <h2 class="subject">Now</h2>
    <dl class="facts">
      <${Fact} name="Oldest ready">${age === null ? html`<span class="faint">–</span>` : duration(age)}<//>
      ${pushed !== null && html`<${Fact} name="In, out">${rate(pushed)}, ${rate(done)} per s<//>`}
      <${Fact} name="Parked polls"><${Num} value=${pollers} /><//>
      <${Fact} name="Running">${policy.concurrency ? `${number(leased)} of ${number(policy.concurrency)}` : html`<${Num} value=${leased} />`}<//>
    </dl>
    ${policy.concurrency &&
    html`<${Meter} share=${leased / policy.concurrency} kind=${leased >= policy.concurrency ? "asks" : ""} label=${`${leased} of ${policy.concurrency} running`} />`}
  </section>`;
}

/** The sum of one key over the range; null if nothing is known. */
function total(stats, key) {
  const known = series(stats, key).filter((value) => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) : null;
}

/** Deaths of each minute as bars. */
function Deaths({ stats }) {
  const per = Math.max(1, Math.round(60 / stats.step));
  const points = stats.points;
  const minutes = [];
  for (let at = points.length % per; at < points.length; at += per) {
    const some = points.slice(at, at + per).filter((point) => (point.dead ?? null) !== null);
    minutes.push(some.length ? some.reduce((sum, point) => sum + point.dead, 0) : null);
  }
  const top = Math.max(4, ...minutes.filter((value) => value !== null));
  const width = 288 / Math.max(1, minutes.length);
  const dead = total(stats, "dead");
  const label = `${count(dead, "task")} died in the last hour, at most ${top} a minute`;
  return html`<section>
    <h2 class="subject">Died <span class="faint">per minute, last hour</span></h2>
    <svg class="bars" viewBox="0 0 288 44" role="img" aria-label=${label}>
      <path class="base" d="M0 43.5H288" />
      ${minutes.map(
        (value, at) =>
          value > 0 && html`<rect class="bar-dead" x=${at * width} y=${43 - (value / top) * 41} width=${Math.max(1, width - 1)} height=${(value / top) * 41} />`,
      )}
    </svg>
    <p class="note row wide"><span>${clock(points[0].at, false)}</span><span>${clock(points[points.length - 1].at, false)}</span></p>
  </section>`;
}

export function DeathsAndWait({ stats }) {
  if (!stats?.points?.length) return null;
  const dead = total(stats, "dead");
  const waits = series(stats, "wait_p50").some((value) => value !== null);
  const lines = [
    { values: series(stats, "wait_p99"), label: (value) => `p99 ${duration(value)}`, color: "ink-3", width: 1 },
    { values: series(stats, "wait_p50"), label: (value) => `p50 ${duration(value)}`, color: "ink", width: 1.5, strong: true },
  ];
  return html`${dead > 0 && html`<${Deaths} stats=${stats} />`}
    ${waits &&
    html`<section>
      <${Chart} title="Wait" note="p50 to p99, last hour" times=${times(stats)} lines=${lines} band=${[0, 1]} scale="log" height=${112} sync="queue" />
    </section>`}`;
}

const unset = (text) => html`<span class="faint">${text}</span>`;

const RULES = [
  { name: "lease", text: "Lease", unit: "s", show: length, default: DEFAULTS.lease },
  { name: "attempts", text: "Attempts", show: number, default: DEFAULTS.attempts },
  { name: "backoff", text: "Backoff", unit: "s", show: (value) => `${length(value)}, doubling`, default: DEFAULTS.backoff },
  { name: "concurrency", text: "Concurrency", show: number, none: "no limit" },
  { name: "rate", text: "Rate", unit: "per s", show: (value) => `${rate(value)} per s`, none: "no limit" },
  { name: "ttl", text: "Expires", unit: "s", show: length, none: "never" },
  { name: "max_length", text: "Max length", show: number, none: "no limit" },
  { name: "poison", text: "Poison", show: (value) => (value ? `after ${count(value, "worker")}` : "off"), default: DEFAULTS.poison },
  { name: "max_run", text: "Run at most", unit: "s", show: length, none: "no limit" },
];
const KEPT = [
  { name: "done", text: "Done kept", unit: "s", show: length },
  { name: "done_max", text: "Done, at most", show: number },
  { name: "dead", text: "Dead kept", unit: "s", show: length },
  { name: "dead_max", text: "Dead, at most", show: number },
];

export function Policy({ name, policy, reload }) {
  const [isOpen, setOpen] = useState(false);
  const kept = { ...RETENTION, ...policy.retention };
  if (isOpen) return html`<${PolicyForm} name=${name} policy=${policy} reload=${reload} close=${() => setOpen(false)} />`;
  const value = (rule) => {
    if (policy[rule.name] !== undefined) return rule.show(policy[rule.name]);
    return rule.none ? unset(rule.none) : rule.show(rule.default);
  };
  return html`<section>
    <div class="row wide">
      <h2 class="subject">Policy</h2>
      ${may("operate") && html`<button type="button" class="quiet edit" aria-label="Edit the policy" onClick=${() => setOpen(true)}>Edit</button>`}
    </div>
    <dl class="facts">
      ${policy.paused && html`<${Fact} name="Paused">${policy.paused_until ? html`until <${Time} at=${policy.paused_until} />` : html`<span class="asks">yes</span>`}<//>`}
      ${RULES.map((rule) => html`<${Fact} key=${rule.name} name=${rule.text}>${value(rule)}<//>`)}
      <${Fact} name="Done kept">${length(kept.done)}, at most ${number(kept.done_max)}<//>
      <${Fact} name="Dead kept">${length(kept.dead)}, at most ${number(kept.dead_max)}<//>
    </dl>
  </section>`;
}

function PolicyForm({ name, policy, reload, close }) {
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const form = useRef();
  const begun = useRef(policy);
  useEffect(() => form.current.querySelector("input").focus(), []);
  const submit = async (event) => {
    event.preventDefault();
    const before = begun.current;
    const changes = {};
    const read = (rule, old) => {
      const text = form.current[rule.name].value.trim();
      const value = text === "" ? null : Number(text);
      return text !== "" && Number.isNaN(value) ? text : value === (old ?? null) ? undefined : value;
    };
    for (const rule of RULES) {
      const value = read(rule, before[rule.name]);
      if (value !== undefined) changes[rule.name] = value;
    }
    const retention = { ...before.retention };
    let hasKept = false;
    for (const rule of KEPT) {
      const value = read({ name: `kept-${rule.name}` }, before.retention?.[rule.name]);
      if (value === undefined) continue;
      hasKept = true;
      if (value === null) delete retention[rule.name];
      else retention[rule.name] = value;
    }
    if (hasKept) changes.retention = Object.keys(retention).length ? retention : null;
    const many = Object.keys(changes).length;
    if (!many) return close();
    setBusy(true);
    try {
      const { audit } = await api.send("PATCH", api.path`/api/queues/${name}`, { body: changes });
      toast({ text: `Changed ${count(many, "rule")} of the policy.`, audit });
      reload();
      return close();
    } catch (problem) {
      setError(problem);
      setBusy(false);
      return undefined;
    }
  };
  const field = (rule, id, value, placeholder) => html`<div key=${id} class="rule">
    <label for=${`rule-${id}`}>${rule.text}${rule.unit && html`<span class="faint">, ${rule.unit}</span>`}</label>
    <div class="field">
      <input id=${`rule-${id}`} name=${id} inputmode="decimal" autocomplete="off" value=${value ?? ""} placeholder=${placeholder} />
    </div>
  </div>`;
  return html`<form ref=${form} onSubmit=${submit} aria-label="Policy" class="stack tight policy-form">
    <h2 class="subject">Policy</h2>
    <div>
      ${RULES.map((rule) => field(rule, rule.name, begun.current[rule.name], rule.none ?? String(rule.default)))}
      ${KEPT.map((rule) => field(rule, `kept-${rule.name}`, begun.current.retention?.[rule.name], String(RETENTION[rule.name])))}
    </div>
    <p class="note">An empty field goes back to what stands in it in grey. In force at once.</p>
    <${Failure} error=${error} />
    <div class="row"><${Button} primary type="submit" busy=${isBusy}>Save<//><${Button} bare data-close onClick=${close}>Cancel<//></div>
  </form>`;
}

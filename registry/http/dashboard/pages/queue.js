// Queue: is it moving, what is in it, what rules it?

import { api, may, session } from "../lib/api.js";
import { duration, ms, number, visible, word } from "../lib/format.js";
import { Icon } from "../lib/icons.js";
import { useFetch, useLiveQueues } from "../lib/live.js";
import { Menu } from "../lib/menu.js";
import { Button, Crumbs, Failure, Name, Tabs, Time } from "../lib/parts.js";
import { html, useEffect, useState } from "../lib/preact.js";
import { setQuery } from "../lib/router.js";
import { useRefresh } from "../lib/refresh.js";
import { useStats } from "../lib/stats.js";
import { useStore } from "../lib/store.js";
import { STATES, STATE_WORDS } from "../lib/tasks.js";
import { toast } from "../lib/toast.js";
import { DeathsAndWait, Now, Policy } from "./queue-rail.js";
import { MovePanel, PurgePanel } from "./queue-deeds.js";
import { PushForm, mayPush } from "./push-form.js";
import { QueueTasks } from "./queue-tasks.js";

export const title = (route) => visible(route.queue);

const FEW_DEATHS = 3;

/** The deaths that have not ended: since when, and how many tasks end for each one that dies. Null if nothing dies now. */
export function deathsNow(stats) {
  const points = (stats?.points ?? []).filter((point) => (point.dead ?? null) !== null);
  // The last point is not over yet.
  let at = points.length - 1;
  const quiet = Math.max(1, Math.ceil(300 / (stats?.step ?? 60)));
  while (at >= 0 && points.length - 1 - at <= quiet && !points[at].dead) at -= 1;
  if (at < 0 || !points[at].dead) return null;
  let begin = at;
  for (let back = at; back >= 0 && begin - back <= 2; back -= 1) if (points[back].dead) begin = back;
  const during = points.slice(begin);
  const dead = during.reduce((sum, point) => sum + point.dead, 0);
  const done = during.reduce((sum, point) => sum + (point.done ?? 0), 0);
  if (dead < FEW_DEATHS) return null;
  return { since: ms(points[begin].at), oneIn: Math.max(1, Math.round((dead + done) / dead)), dead };
}

function Verdict({ queue, stats, deaths: found, pausedBy }) {
  const { ready, delayed, leased, pollers, oldest_age: age, policy } = queue;
  const waiting = html`${ready === 1 ? "one task waits" : `${word(ready)} tasks wait`}${age !== null && ready > 0 && `, the oldest for ${duration(age)}`}`;
  if (policy.paused) {
    const since = pausedBy && html` since <${Time} at=${pausedBy.at} />${pausedBy.name && html`, by <${Name} text=${pausedBy.name} />`}`;
    const until = policy.paused_until && html` until <${Time} at=${policy.paused_until} />`;
    return html`It is <b>paused</b>${until || since}. ${ready ? html`Meanwhile ${waiting}.` : "Nothing waits."}`;
  }
  if (ready > 0 && !pollers && !leased) return html`<b>Nobody polls</b>: ${waiting}.`;
  const deaths = deathsNow(stats);
  if (deaths) {
    const share = deaths.oneIn === 1 ? "every task dies" : `one task in ${word(deaths.oneIn)} dies`;
    return html`${deaths.oneIn === 1 ? "" : "It moves, but "}<b>${deaths.oneIn === 1 ? "Every task dies" : share}</b> since${" "}
      <${Time} at=${deaths.since} seconds=${false} />. ${ready ? html`Meanwhile ${waiting}.` : "Nothing waits."}`;
  }
  // Where there are no statistics yet, the dead tasks themselves tell.
  const recent = (found?.groups ?? []).filter((group) => group.reason !== "cancelled").reduce((sum, group) => sum + group.recent, 0);
  if (recent >= FEW_DEATHS) {
    return html`It moves, but <b>${number(recent)} tasks died</b> in the last 5 min. ${ready ? html`Meanwhile ${waiting}.` : "Nothing waits."}`;
  }
  if (policy.concurrency && leased >= policy.concurrency && ready) {
    return html`It is <b>at its limit</b>: ${number(leased)} of ${number(policy.concurrency)} tasks run, ${waiting}.`;
  }
  if (ready > 0) return html`It moves: ${waiting}.`;
  if (leased > 0) return `It moves: nothing waits, ${leased === 1 ? "one task runs" : `${word(leased)} tasks run`}.`;
  if (delayed > 0) return `Nothing is due: ${delayed === 1 ? "one task is" : `${word(delayed)} tasks are`} delayed.`;
  if (pollers > 0) return `Idle: nothing waits, and ${pollers === 1 ? "one poll is" : `${word(pollers)} polls are`} parked.`;
  return "Empty: nothing waits, and nobody polls.";
}

/** Who paused a queue, and when; null if the audit does not say. */
function usePausedBy(name, isPaused) {
  const { data } = useFetch(
    async (signal) => {
      const { audit } = await api.get("/api/audit", { queue: name, action: "pause", limit: 1 }, { signal });
      return audit[0] ?? null;
    },
    [name, isPaused, "paused"],
    { enabled: isPaused },
  );
  return isPaused ? data : null;
}

function Head({ queue, name, open, reload }) {
  const [isBusy, setBusy] = useState(false);
  const isPaused = Boolean(queue?.policy.paused);
  const act = async (seconds, text) => {
    setBusy(true);
    try {
      const { audit } = await api.send("POST", api.path`/api/queues/${name}/pause`, { query: { seconds } });
      toast({ text, audit });
    } catch (error) {
      toast({ text: error.message });
    }
    setBusy(false);
    reload();
  };
  const waiting = queue ? queue.ready + queue.delayed : 0;
  const items = queue
    ? [
        !isPaused && { text: "Pause for 10 min", onClick: () => act(600, "Paused for 10 min.") },
        !isPaused && { text: "Pause for 1 h", onClick: () => act(3600, "Paused for 1 h.") },
        queue.ready > 0 && { text: "Move ready tasks…", onClick: () => open("move") },
        waiting > 0 && { text: `Purge ${number(waiting)}…`, danger: true, onClick: () => open("purge") },
      ]
    : [];
  return html`<div class="row wraps deeds">
    ${mayPush() && html`<${Button} onClick=${() => open("push")}>Push a task<//>`}
    ${may("operate") &&
    queue &&
    html`<${Button} data-key="p" busy=${isBusy} onClick=${() => act(isPaused ? 0 : undefined, isPaused ? "Resumed." : "Paused.")}>
        <${Icon} name=${isPaused ? "play" : "pause"} />${isPaused ? "Resume" : "Pause"}
      <//>
      <${Menu} label="More for this queue" items=${items} />`}
  </div>`;
}

export default function Queue({ route }) {
  const name = route.queue;
  const tab = STATES.includes(route.query.tab) ? route.query.tab : "ready";
  const [panel, setPanel] = useState(null);
  useStore(session, (value) => value.me);
  const { data: queue, error, reload } = useFetch((signal) => api.get(api.path`/api/queues/${name}`, {}, { signal }), [name], { every: 5 });
  const { stats } = useStats("1h", name);
  const hasDead = Boolean(queue?.dead);
  const { data: deaths } = useFetch((signal) => api.get("/api/dead", { queue: name }, { signal }), [name, "deaths"], { every: 5, enabled: hasDead });
  const pausedBy = usePausedBy(name, Boolean(queue?.policy.paused));
  // The event stream tells at once that something happened here.
  const { rows } = useLiveQueues({ queue: name });
  const row = rows?.find((one) => one.name === name);
  const counted = rows && JSON.stringify(STATES.map((state) => row?.[state] ?? 0));
  useRefresh(reload, counted);
  useEffect(() => {
    // On a phone the row of tabs is wider than the page.
    document.querySelector('[role="tab"][aria-selected="true"]')?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [tab, queue === null]);
  const close = () => setPanel(null);
  const tabs = STATES.map((state) => ({
    value: state,
    text: STATE_WORDS[state],
    glyph: state,
    count: queue?.[state],
  }));
  return html`<${Crumbs} items=${[{ text: "Queues", to: { page: "overview" } }]} />
    <div class="page-head">
      <div class="grow">
        <h1 class="verdict"><${Name} text=${name} limit=${60} /></h1>
        <p class="lead">${queue ? html`<${Verdict} queue=${queue} stats=${stats} deaths=${hasDead ? deaths : null} pausedBy=${pausedBy} />` : "\u00a0"}</p>
      </div>
      <${Head} queue=${queue} name=${name} open=${setPanel} reload=${reload} />
    </div>
    ${error && !queue && html`<${Failure} error=${error} retry=${reload} />`}
    <div class="with-rail">
      <div class="stack">
        ${panel === "push" && html`<${PushForm} queue=${name} close=${close} />`}
        ${panel === "purge" && html`<${PurgePanel} queue=${name} close=${close} />`}
        ${panel === "move" && html`<${MovePanel} queue=${name} counts=${queue} close=${close} />`}
        <${Tabs}
          label="Tasks by state"
          panel="queue-tasks"
          tabs=${tabs}
          value=${tab}
          onChange=${(value) => setQuery({ tab: value === "ready" ? null : value, page: null, cursor: null, q: null })}
        />
        <div role="tabpanel" id="queue-tasks" aria-labelledby=${`tab-${tab}`} class="stack">
          <${QueueTasks} key=${tab} counted=${counted} route=${route} state=${tab} queue=${queue} name=${name} deaths=${hasDead ? deaths : null} />
        </div>
      </div>
      <aside class="rail" aria-label=${`About ${name}`}>
        ${queue &&
        html`<${Now} queue=${queue} stats=${stats} />
          <${DeathsAndWait} stats=${stats} />
          <${Policy} name=${name} policy=${queue.policy} reload=${reload} />`}
      </aside>
    </div>`;
}

// Task: why is it not running? Then its attempts, what it is, and what came of it.

import { api, may } from "../lib/api.js";
import { Confirm } from "../lib/confirm.js";
import { duration, middle, ms, visible } from "../lib/format.js";
import { Glyph } from "../lib/icons.js";
import { useFetch, useNow } from "../lib/live.js";
import { Button, CopyButton, Crumbs, Failure, Meter, Name, Time } from "../lib/parts.js";
import { html, useEffect, useState } from "../lib/preact.js";
import { useRefresh } from "../lib/refresh.js";
import { RETENTION, STATE_WORDS, errorLine, errorOf, length, lengthOf, reasonText, wholeTask } from "../lib/tasks.js";
import { toast } from "../lib/toast.js";
import { Well } from "../lib/well.js";
import { Attempts } from "./task-attempts.js";
import { Gates } from "./task-gates.js";

export const title = (route) => `${route.task} in ${visible(route.queue)}`;

const WAITS = ["ready", "delayed"];
// A large payload is not looked up again every other second.
const LARGE = 64 * 1024;

function useTask(queue, id) {
  const [size, setSize] = useState(0);
  const every = size > LARGE ? 15 : 2;
  const found = useFetch(
    async (signal) => {
      const task = await wholeTask(queue, id, signal);
      setSize(task.raw?.length ?? 0);
      return task;
    },
    [queue, id],
    { every },
  );
  const why = useFetch((signal) => api.get(api.path`/api/queues/${queue}/tasks/${id}/why`, {}, { signal }), [queue, id, "why"], { every: 2 });
  const rules = useFetch((signal) => api.get(api.path`/api/queues/${queue}`, {}, { signal }), [queue, "rules"], { every: 5 });
  // The reason is looked up more often than a large task: a new state means that the task has changed.
  const state = why.data?.state;
  useEffect(() => {
    if (state && found.data && state !== found.data.state) found.reload();
  }, [state]);
  const reload = () => {
    found.reload();
    why.reload();
  };
  return { ...found, why: why.data, queue: rules.data, reload };
}

function Running({ task }) {
  const now = useNow();
  const left = (ms(task.lease_ends_at) - now) / 1000;
  const whole = (ms(task.lease_ends_at) - ms(task.leased_at)) / 1000;
  const short = left < Math.min(10, whole / 5);
  return html`<section class="box answer" aria-label="Who works on it">
    <div class="answer-text">
      <p class="quiet">Who works on it?</p>
      <h2 class="why-answer">${task.worker ? html`<${Name} text=${task.worker} limit=${60} />` : "A worker without a name"} has it for ${duration((now - ms(task.leased_at)) / 1000)}.</h2>
      <p class=${short ? "lead asks" : "lead"}>
        The lease ends in ${duration(Math.max(0, left))}; then the task comes back, unless the worker renews it.
        ${task.cancelled && " It was cancelled: the worker is told to stop."}
      </p>
      ${task.progress !== null &&
      html`<div class="progress"><${Meter} share=${task.progress} label=${`Progress ${Math.round(task.progress * 100)} %`} />
        <span>${Math.round(task.progress * 100)}%${task.message && html`, <${Name} text=${task.message} limit=${120} />`}</span></div>`}
    </div>
  </section>`;
}

function Dead({ task, policy }) {
  const most = lengthOf(task, policy, "attempts");
  const hadMore = task.attempt < most;
  const failed = hadMore ? `It failed in attempt ${task.attempt} of ${most}, and its worker asked for no further one.` : `It failed in its last attempt, ${task.attempt} of ${most}.`;
  const error = errorOf(task);
  return html`<section class="box answer" aria-label="Why it is dead">
    <div class="answer-text stack tight">
      <p class="quiet">Why is it dead?</p>
      <h2 class="why-answer">${task.reason === "failed" || !task.reason ? failed : `It is dead: ${reasonText(task.reason)}.`}</h2>
      <p class="lead">Dead since <${Time} at=${task.ended_at} />.${error && html` It said <bdi class="dies">${visible(middle(errorLine(error), 200))}</bdi>`}</p>
    </div>
  </section>`;
}

function Result({ task, policy }) {
  if (task.state === "done") {
    if (task.hidden) return html`<section><h2 class="subject">Result</h2><p class="quiet">Hidden from this token.</p></section>`;
    if (task.rawResult) return html`<${Well} text=${task.rawResult} json=${true} label="Result" />`;
    const tooLarge = task.history.some((attempt) => attempt.result === "too_large");
    return html`<section class="stack tight"><h2 class="subject">Result</h2>
      <p class="quiet">${tooLarge ? "It was larger than what is kept, and was dropped." : "The worker gave none."}</p></section>`;
  }
  if (task.state === "dead") return null;
  const kept = task.options?.result ?? policy?.retention?.done ?? RETENTION.done;
  return html`<section class="stack tight"><h2 class="subject">Result</h2>
    <p class="none">None yet. It will be kept for ${length(kept)} after the task is done.</p></section>`;
}

function Facts({ task, policy }) {
  const own = (name) => (task.options?.[name] === undefined ? null : html`<span class="faint"> its own</span>`);
  const trace = task.traceparent?.split("-")[1] ?? task.traceparent;
  const rows = [
    ["Priority", task.priority],
    ["Pushed", html`<${Time} at=${task.pushed_at} />`],
    task.key && ["Key", html`<span class="mono"><${Name} text=${task.key} limit=${32} /></span>`],
    ["Lease", html`${length(lengthOf(task, policy, "lease"))}${own("lease")}`],
    ["Attempts", html`${task.attempt} of ${lengthOf(task, policy, "attempts")}${own("attempts")}`],
    ["Backoff", html`${length(lengthOf(task, policy, "backoff"))}, doubling${own("backoff")}`],
    ["Expires", task.expires_at ? html`<${Time} at=${task.expires_at} />` : html`<span class="faint">never</span>`],
    trace && ["Trace", html`<span class="mono"><${Name} text=${trace} limit=${18} /></span>`],
  ].filter(Boolean);
  return html`<section>
    <h2 class="subject">Task</h2>
    <dl class="facts">${rows.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
  </section>`;
}

function Deeds({ task, ask, act }) {
  if (!may("operate")) return null;
  const where = api.path`/api/queues/${task.queue}`;
  const run = () => act("POST", `${where}${api.path`/tasks/${task.id}/run`}`, {}, "It is ready now.");
  const retry = () => act("POST", `${where}/retry`, { id: task.id }, "Retried: it is at the end of Ready.");
  return html`<div class="row wraps deeds">
    ${task.state === "delayed" && html`<${Button} primary data-key="r" onClick=${run}>Run it now<//>`}
    ${task.state === "dead" && html`<${Button} primary data-key="r" onClick=${retry}>Retry<//>`}
    ${["ready", "delayed", "leased"].includes(task.state) && html`<${Button} onClick=${() => ask("Cancel")}>Cancel task…<//>`}
    ${["dead", "done"].includes(task.state) && html`<${Button} onClick=${() => ask("Delete")}>Delete…<//>`}
  </div>`;
}

const NEXT = {
  ready: "It becomes dead, with the reason cancelled. A bulk retry leaves it alone.",
  delayed: "It becomes dead, with the reason cancelled. A bulk retry leaves it alone.",
  leased: "The worker is told to stop with its next renewal. If it finishes all the same, the task is done; else it is dead.",
  dead: "Its payload and its history go with it.",
  done: "Its payload, its result and its history go with it.",
};

export default function Task({ route }) {
  const { queue: name, task: id } = route;
  const { data: task, why, queue, error, reload } = useTask(name, id);
  const [asked, setAsked] = useState(null);
  useRefresh(reload);
  const act = async (method, target, query, text) => {
    try {
      const { audit } = await api.send(method, target, { query });
      toast({ text, audit });
    } catch (problem) {
      toast({ text: problem.message });
    }
  };
  const state = task?.state;
  const crumbs = [
    { text: "Queues", to: { page: "overview" } },
    { text: name, to: { page: "queue", queue: name } },
    ...(state ? [{ text: STATE_WORDS[state], to: { page: "queue", queue: name, query: { tab: state === "ready" ? null : state } } }] : []),
  ];
  const verb = asked ?? "";
  return html`<${Crumbs} items=${crumbs} />
    <div class="page-head">
      <h1 class="verdict-mono row grow">
        ${state && html`<${Glyph} state=${state} large label=${state} />`}
        <span class="break">${id}</span><${CopyButton} text=${id} label="Copy the id" />
      </h1>
      ${task && html`<${Deeds} task=${task} ask=${setAsked} act=${act} />`}
    </div>
    ${error &&
    (error.status === 404
      ? html`<div class="empty"><p>This queue has no such task. It never existed, or it has ended and is no longer kept.</p>
          <${Button} to=${{ page: "queue", queue: name }}>Open <${Name} text=${name} limit=${40} /><//></div>`
      : html`<${Failure} error=${error} retry=${reload} />`)}
    ${asked &&
    task &&
    html`<${Confirm}
      destroys
      title=${() => `${verb} this task?`}
      verb=${() => `${verb} 1 task`}
      count=${() => Promise.resolve(1)}
      act=${() => api.send("DELETE", api.path`/api/queues/${name}/tasks/${id}`)}
      told=${() => (verb === "Delete" ? "Deleted 1 task." : "Cancelled 1 task.")}
      close=${() => setAsked(null)}
      extra=${html`<span class="note">You can undo this for 10 min.</span>`}
    ><p>${NEXT[task.state]}</p><//>`}
    ${task &&
    !(error?.status === 404) &&
    html`<div class="stack wide-gap">
      ${WAITS.includes(state) && why && html`<${Gates} why=${why} task=${task} queue=${queue} name=${name} />`}
      ${state === "leased" && html`<${Running} task=${task} />`}
      ${state === "dead" && html`<${Dead} task=${task} policy=${queue?.policy} />`}
      <div class="with-rail">
        <div class="stack wide-gap">
          ${state === "done" && html`<${Result} task=${task} policy=${queue?.policy} />`}
          <${Attempts} task=${task} policy=${queue?.policy} />
        </div>
        <aside class="rail" aria-label="About this task">
          <${Facts} task=${task} policy=${queue?.policy} />
          ${task.hidden
            ? html`<section><h2 class="subject">Payload</h2><p class="quiet">Hidden from this token.</p></section>`
            : html`<${Well} text=${task.raw} json=${true} label="Payload" />`}
          ${state !== "done" && html`<${Result} task=${task} policy=${queue?.policy} />`}
        </aside>
      </div>
    </div>`}`;
}

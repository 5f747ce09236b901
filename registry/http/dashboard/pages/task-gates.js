// Why a task is not running: the API's own sentence, then the five gates in the order in which a task passes them.

import { clock, duration, number, rate } from "../lib/format.js";
import { Glyph } from "../lib/icons.js";
import { Name, Time } from "../lib/parts.js";
import { html } from "../lib/preact.js";

/** [reason code, when it is shut, when it is open]; each answers [head, note]. */
function gates({ reason, task, queue, name }) {
  const policy = queue?.policy ?? {};
  const polls = queue ? `${number(queue.pollers)} parked` : "";
  const place = reason("next") ? "first in line" : "";
  const position = reason("position");
  const behind = position ? (position.position === null ? "more than 1,000 are ahead" : `${number(position.position)} ${position.position === 1 ? "is" : "are"} ahead`) : "";
  return [
    {
      code: "paused",
      shut: ["Queue paused", policy.paused_until ? `until ${clock(policy.paused_until)}` : "until it is resumed"],
      open: ["Queue open", html`<${Name} text=${name} limit=${28} /> is not paused`],
    },
    {
      code: "delayed",
      shut: ["Not due yet", `in ${duration(reason("delayed")?.seconds)}`],
      open: ["Due", task.due_at ? `since ${clock(task.due_at)}` : "it has no delay"],
    },
    {
      code: "concurrency_limited",
      shut: ["No room to run", queue && policy.concurrency ? `${number(queue.leased)} of ${number(policy.concurrency)} running` : "the limit is reached"],
      open: ["Room to run", policy.concurrency && queue ? `${number(queue.leased)} of ${number(policy.concurrency)} running` : "no limit"],
    },
    {
      code: "rate_limited",
      shut: ["Over the rate", policy.rate ? `at most ${rate(policy.rate)} per second` : ""],
      open: ["Within rate", policy.rate ? `at most ${rate(policy.rate)} per second` : "no limit"],
    },
    {
      code: "nobody_polls",
      shut: ["Nobody polls", `for ${duration(reason("nobody_polls")?.seconds)}`],
      open: [position ? "In line" : "Someone polls", [polls, place, behind].filter(Boolean).join("; ")],
      asks: Boolean(position),
    },
  ];
}

export function Gates({ why, task, queue, name }) {
  const reason = (code) => why.reasons.find((one) => one.code === code);
  const before = task.history[task.history.length - 1];
  const [first, ...others] = why.reasons;
  const shut = first && first.code !== "next" && first.code !== "position";
  const list = gates({ reason, task, queue, name });
  return html`<section class="box answer" aria-label="Why it is not running">
    <div class="answer-text">
      <p class="quiet">Why is it not running?</p>
      <h2 class="why-answer"><${Name} text=${first?.text ?? why.sentence} /></h2>
      <p class="lead">${before && html`Attempt ${before.attempt} ${before.reason === "failed" ? "failed" : "ended"} at <${Time} at=${before.ended_at} />. `}${
        others.length ? others.map((one) => one.text).join(" ") : shut ? "Nothing else holds it back." : ""
      }</p>
    </div>
    <ol class="gates">
      ${list.map((gate) => {
        const isShut = Boolean(reason(gate.code));
        const waits = isShut || gate.asks;
        const [head, note] = isShut ? gate.shut : gate.open;
        return html`<li key=${gate.code} class=${waits ? "gate shut" : "gate"}>
          <${Glyph} state=${waits ? "asks" : "passed"} label=${waits ? "holds it back" : "passed"} />
          <div><p>${head}</p><p class="quiet note-line">${note}</p></div>
        </li>`;
      })}
    </ol>
  </section>`;
}

// A form that pushes a task.
//
// The session of the page is never valid for a push: a page of another site that got hold of it could fill queues. Where the
// registry needs tokens, the form therefore asks for one with the right "push". It is kept in this module's memory alone, until the
// page is closed or loaded again, and is sent with pushes and nothing else.

import { api, session } from "../lib/api.js";
import { Button, Failure, Name } from "../lib/parts.js";
import { html, useEffect, useRef, useState } from "../lib/preact.js";
import { toast } from "../lib/toast.js";

let pushToken = "";

/** Whether to offer the form: who may push, or may change queues and could have a token for it. */
export function mayPush() {
  const { me } = session.get();
  if (!me) return false;
  return me.may.push || me.may.operate || me.rights.some((right) => right.startsWith("push"));
}

const FIELDS = [
  { name: "priority", label: "Priority, 0 to 9", example: "0" },
  { name: "delay", label: "Delay, s", example: "0" },
  { name: "attempts", label: "Attempts", example: "as the policy says" },
  { name: "key", label: "Key", example: "none" },
];

export function PushForm({ queue, close }) {
  const needsToken = !session.get().me.may.push;
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const [token, setToken] = useState(pushToken);
  const form = useRef();
  const from = useRef(document.activeElement);
  useEffect(() => {
    form.current.querySelector("textarea").focus();
    return () => from.current?.isConnected && from.current.focus();
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    if (isBusy) return;
    const given = Object.fromEntries(new FormData(form.current));
    if (needsToken && !token.trim()) {
      setError({ message: "Give a token that has the right “push” for this queue." });
      return;
    }
    setBusy(true);
    setError(null);
    try {
      const query = Object.fromEntries(FIELDS.map(({ name }) => [name, given[name].trim()]));
      const { value } = await api.send("POST", api.path`/api/pushTask/${queue}`, {
        query,
        raw: given.payload,
        token: needsToken ? token.trim() : undefined,
      });
      pushToken = token.trim();
      toast({ text: value.duplicate ? `A task with this key is there already: ${value.id}.` : `Pushed ${value.id}.` });
      form.current.payload.select();
    } catch (problem) {
      setError(problem.status === 401 ? { message: "This token is not valid, or no longer." } : problem);
    }
    setBusy(false);
  };
  return html`<form class="panel stack" ref=${form} onSubmit=${submit} aria-label="Push a task">
    <h2>Push a task to <${Name} text=${queue} limit=${40} /></h2>
    <div>
      <label class="label" for="push-payload">Task, any JSON value</label>
      <div class="field"><textarea id="push-payload" name="payload" class="mono" rows="4" spellcheck=${false}>{}</textarea></div>
    </div>
    <div class="fields">
      ${FIELDS.map(
        ({ name, label, example }) => html`<div key=${name}>
          <label class="label" for=${`push-${name}`}>${label}</label>
          <div class="field"><input id=${`push-${name}`} name=${name} placeholder=${example} autocomplete="off" spellcheck=${false} /></div>
        </div>`,
      )}
    </div>
    ${needsToken &&
    html`<div>
      <label class="label" for="push-token">Token with the right “push”; you are signed in without it, and it is kept until this page is closed</label>
      <div class="field">
        <input id="push-token" type="password" autocomplete="off" placeholder="rgy_…" value=${token} onInput=${(event) => setToken(event.target.value)} />
      </div>
    </div>`}
    <${Failure} error=${error} />
    <div class="row"><${Button} primary type="submit" busy=${isBusy}>Push<//><${Button} bare data-close onClick=${close}>Close<//></div>
  </form>`;
}

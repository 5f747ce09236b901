// Signing in: a token is exchanged for a cookie that no script can read. The URL stays as it is.

import { askMe, session, signIn } from "./api.js";
import { Mark } from "./icons.js";
import { Button, Failure } from "./parts.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { useStore } from "./store.js";

export function SignIn() {
  const [error, setError] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const input = useRef();
  useEffect(() => {
    document.title = "Sign in · registry";
    input.current.focus();
  }, []);
  const submit = async (event) => {
    event.preventDefault();
    const token = input.current.value.trim();
    if (!token) return;
    setBusy(true);
    try {
      await signIn(token);
    } catch (problem) {
      setBusy(false);
      const wrong = problem.status === 401 ? "This token is not valid, or no longer." : problem.message;
      setError({ ...problem, message: wrong, status: problem.status });
      input.current.select();
    }
  };
  return html`<main class="sign-in stack">
    <p class="brand"><${Mark} />registry</p>
    <h1 class="verdict">Sign in</h1>
    <p class="quiet">This registry needs a token. <span class="mono">registryctl token create me --right operate</span> makes one.</p>
    <form class="stack" onSubmit=${submit}>
      <div>
        <label class="label" for="token">Token</label>
        <div class="field">
          <input id="token" ref=${input} type="password" autocomplete="current-password" placeholder="rgy_…" spellcheck=${false} />
        </div>
      </div>
      <${Failure} error=${error} />
      <${Button} primary busy=${isBusy} onClick=${submit} type="submit">Sign in<//>
    </form>
  </main>`;
}

/** Nobody knows yet who is signed in, because the registry did not answer. */
export function Away() {
  const error = useStore(session, (value) => value.error);
  useEffect(() => {
    const timer = setInterval(askMe, 5000);
    return () => clearInterval(timer);
  }, []);
  return html`<main class="sign-in stack">
    <p class="brand"><${Mark} />registry</p>
    <h1 class="verdict">The registry does not answer.</h1>
    <${Failure} error=${error} retry=${askMe} />
    <p class="quiet">This page tries again every 5 s.</p>
  </main>`;
}

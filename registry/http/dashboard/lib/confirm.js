// A deed on many tasks is counted by the server, confirmed in place and can be undone. No browser dialog.
//
//   html`<${Confirm}
//     title=${(count) => `Retry ${number(count)} dead tasks?`}
//     verb=${(count) => `Retry ${number(count)} tasks`}          the button; it repeats the count
//     count=${() => api.send("POST", where, {query: {...filter, dry_run: 1}}).then(({value}) => value.count)}
//     scope=${JSON.stringify(filter)}                             counted again when it changes
//     act=${() => api.send("POST", where, {query: filter})}
//     told=${({count, skipped}) => "Retried 1,098. Skipped 6, their key is taken."}
//     destroys                                                    Cancel stands first and has the focus
//     close=${() => …} done=${(value) => …}
//   >What it applies to, over which time, what happens next, how long it can be undone; warnings.<//>`

import { Button, Failure } from "./parts.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { toast } from "./toast.js";

export function Confirm({ title, verb, count, scope = "", act, told, destroys = false, primary = true, close, done, extra, children }) {
  const [state, setState] = useState({ name: "counting", count: null, error: null });
  const panel = useRef();
  const from = useRef(document.activeElement);

  useEffect(() => {
    panel.current?.focus();
    return () => {
      // Whoever opened it may be gone with the rows.
      if (from.current?.isConnected) from.current.focus();
    };
  }, []);
  useEffect(() => {
    let isCurrent = true;
    setState((old) => ({ ...old, name: "counting", error: null }));
    count()
      .then((found) => isCurrent && setState({ name: "ready", count: found, error: null }))
      .catch((error) => isCurrent && setState({ name: "failed", count: null, error }));
    return () => (isCurrent = false);
  }, [scope]);
  useEffect(() => {
    if (state.name === "ready") panel.current?.querySelector("[data-first]")?.focus();
  }, [state.name]);

  const run = async () => {
    setState({ ...state, name: "working" });
    try {
      const { value, audit } = await act();
      toast({ text: told(value), audit });
      done?.(value);
      close();
    } catch (error) {
      setState({ ...state, name: "failed", error });
    }
  };
  const counted = state.count;
  const cancel = html`<${Button} key="cancel" bare=${!destroys} data-close data-first=${destroys || undefined} onClick=${close}>Cancel<//>`;
  const deed = html`<${Button}
    key="deed"
    primary=${primary && !destroys}
    danger=${destroys}
    data-first=${!destroys || undefined}
    busy=${state.name === "counting" || state.name === "working"}
    disabled=${counted === 0 ? "No task matches." : false}
    onClick=${run}
  >
    ${counted === null ? "Counting…" : state.name === "working" ? "Working…" : verb(counted)}
  <//>`;
  return html`<section class="panel stack" ref=${panel} tabindex="-1" aria-label=${counted === null ? "Counting" : title(counted)}>
    <h2>${counted === null ? "Counting…" : title(counted)}</h2>
    <div class="quiet">${children}</div>
    ${state.error && html`<${Failure} error=${state.error} retry=${counted === null ? null : run} />`}
    <div class="row wraps">${destroys ? [cancel, deed] : [deed, cancel]}${extra}</div>
  </section>`;
}

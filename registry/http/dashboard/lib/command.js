// The field in the bar: go to a queue by a part of its name, or to a task by its id.

import { api } from "./api.js";
import { Icon } from "./icons.js";
import { classes } from "./parts.js";
import { Name } from "./parts.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { go, href } from "./router.js";

const ID = /^[0-9a-fA-F]{24}$|^[0-9a-f]{11}A[0-9a-f]{12}$/;
const MAX = 8;

/** The queues that hold a task of this id; a task is known by its queue, so those with tasks are asked. */
async function findTask(id, signal) {
  const { queues } = await api.get("/api/queues", { limit: 1000 }, { signal });
  const names = queues.map((row) => row.name);
  for (let at = 0; at < names.length; at += 8) {
    const asked = names.slice(at, at + 8).map(async (queue) => {
      await api.get(api.path`/api/queues/${queue}/tasks/${id}/why`, {}, { signal });
      return queue;
    });
    const found = (await Promise.allSettled(asked)).find((one) => one.status === "fulfilled");
    if (found) return { page: "task", queue: found.value, task: id };
  }
  return null;
}

async function look(text, signal) {
  if (ID.test(text)) {
    const target = await findTask(text, signal);
    return target ? [{ target, text, note: target.queue }] : [];
  }
  const { queues } = await api.get("/api/queues", { search: text, limit: MAX }, { signal });
  const rows = queues.map(({ name }) => ({ target: { page: "queue", queue: name }, text: name }));
  // An exact name comes first; a queue that holds nothing has a page, too.
  const exact = rows.findIndex((row) => row.text === text);
  if (exact > 0) rows.unshift(...rows.splice(exact, 1));
  return rows;
}

export function CommandField({ isOpen, close }) {
  const [text, setText] = useState("");
  const [found, setFound] = useState(null);
  const [at, setAt] = useState(0);
  const input = useRef();
  useEffect(() => {
    if (isOpen) input.current.focus();
  }, [isOpen]);
  useEffect(() => {
    setAt(0);
    const wanted = text.trim();
    if (!wanted) {
      setFound(null);
      return undefined;
    }
    const abort = new AbortController();
    const timer = setTimeout(() => {
      look(wanted, abort.signal)
        .then(setFound)
        .catch((error) => error.name !== "AbortError" && setFound([]));
    }, 150);
    return () => {
      clearTimeout(timer);
      abort.abort();
    };
  }, [text]);
  const leave = () => {
    setText("");
    setFound(null);
    close();
    input.current.blur();
  };
  const open = (target) => {
    go(target);
    leave();
  };
  const onKeyDown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && found?.length) setAt((at + step + found.length) % found.length);
    else if (event.key === "Enter" && found?.length) open(found[at].target);
    else if (event.key === "Escape") leave();
    else return;
    event.preventDefault();
  };
  return html`<search class=${classes("command", isOpen && "open")}>
    <label class="field">
      <${Icon} name="search" />
      <input
        data-command
        ref=${input}
        type="text"
        role="combobox"
        aria-expanded=${found !== null}
        aria-controls="command-list"
        aria-activedescendant=${found?.length ? `command-${at}` : undefined}
        aria-autocomplete="list"
        aria-label="Go to a queue or task"
        placeholder="Go to a queue or task"
        autocomplete="off"
        autocapitalize="off"
        spellcheck=${false}
        value=${text}
        onInput=${(event) => setText(event.target.value)}
        onKeyDown=${onKeyDown}
        onBlur=${() => setTimeout(leave, 150)}
      />
      <kbd aria-hidden="true">/</kbd>
    </label>
    ${found !== null &&
    html`<div class="menu" role="listbox" id="command-list" aria-label="Queues and tasks">
      ${found.map(
        (one, index) => html`<a
          key=${one.text}
          id=${`command-${index}`}
          role="option"
          tabindex="-1"
          aria-selected=${index === at}
          class="menu-item"
          href=${href(one.target)}
          onClick=${leave}
        >
          <span class="grow cut"><${Name} text=${one.text} limit=${40} /></span>
          ${one.note && html`<span class="faint"><${Name} text=${one.note} limit=${20} /></span>`}
        </a>`,
      )}
      ${!found.length && html`<p class="menu-item faint" role="option" aria-selected="false">No queue or task is called that.</p>`}
    </div>`}
  </search>`;
}

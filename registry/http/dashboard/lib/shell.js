// The frame around every page: the bar, the phone's bar, banners, the help, toasts, the page's title and its icon.

import { api, session, signOut } from "./api.js";
import { CommandField } from "./command.js";
import { duration, left, number } from "./format.js";
import { Glyph, Icon, Mark } from "./icons.js";
import { KEYS, keyboard, switchLetters } from "./keys.js";
import { busy, live, tryAgain, useFetch, useNow } from "./live.js";
import { classes } from "./parts.js";
import { html, useEffect, useRef, useState } from "./preact.js";
import { href, useRoute } from "./router.js";
import { useStore } from "./store.js";
import { Toasts } from "./toast.js";

const PLACES = [
  ["overview", "Overview"],
  ["dead", "Dead"],
  ["workers", "Workers"],
  ["schedules", "Schedules"],
  ["audit", "Audit"],
];
const place = (page) => (page === "queue" || page === "task" ? null : page);

/** The numbers beside the places; undefined for what is not known. */
function useCounts() {
  const dead = useStore(live, (value) => value.totals?.dead);
  const { data } = useFetch(
    async (signal) => {
      const [workers, schedules] = await Promise.all([
        api.get("/api/workers", { limit: 1 }, { signal }),
        api.get("/api/schedules", { limit: 1000 }, { signal }),
      ]);
      return {
        workers: workers.workers.length + workers.left_out,
        schedules: schedules.cursor ? undefined : schedules.schedules.length,
      };
    },
    ["counts"],
    { every: 10 },
  );
  return { dead, workers: data?.workers, schedules: data?.schedules };
}

function LiveState() {
  const { state, lastAt, retryAt } = useStore(live);
  const now = useNow();
  const dot = html`<svg class="dot" viewBox="0 0 8 8" aria-hidden="true"><circle cx="4" cy="4" r="4" /></svg>`;
  if (state === "connecting") return html`<span class="state">Connecting</span>`;
  if (state === "live") return html`<span class="state">${dot}Live</span>`;
  const silent = lastAt === null ? "No word yet" : `Last word ${duration(Math.max(1, Math.round((now - lastAt) / 1000)))} ago`;
  const next = retryAt === null || retryAt <= now ? "trying again" : `trying again in ${left((retryAt - now) / 1000)}`;
  const text = state === "stale" ? `${silent}, ${next}` : "Reconnecting";
  return html`<button class="state late" title="Try again now" onClick=${tryAgain}>${dot}<span>${text}</span></button>`;
}

const rightOf = (me) => {
  if (!me.needs_token) return "no token needed";
  const name = me.may.admin ? "admin" : me.may.operate ? "operator" : me.may.view ? "viewer" : "no view";
  return me.may.view && !me.payloads ? `${name}, no payloads` : name;
};

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("registry.theme", theme);
  } catch {
    // Without storage it lasts as long as the page.
  }
}

function ThemeButton() {
  const [, redraw] = useState(0);
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = dark ? "Use the light theme" : "Use the dark theme";
  const toggle = () => {
    setTheme(dark ? "light" : "dark");
    redraw((count) => count + 1);
  };
  return html`<button class="icon-button theme" aria-label=${label} title=${label} onClick=${toggle}>
    <${Icon} name=${dark ? "moon" : "sun"} />
  </button>`;
}

function Bar({ page, counts, me, skip }) {
  const grows = useStore(live, (value) => value.deadGrows);
  const isBusy = useStore(busy, (value) => value.count > 0);
  const [isOpen, setOpen] = useState(false);
  return html`<header class="bar">
    <a class="skip" href="#/" onClick=${skip}>Skip to the page</a>
    <div class="bar-inner">
      <a class="brand" href=${href({ page: "overview" })}><${Mark} />registry</a>
      ${me.environment && html`<span class="environment">${me.environment}</span>`}
      <nav class="places" aria-label="Pages">
        ${PLACES.map(
          ([key, text]) => html`<a key=${key} href=${href({ page: key })} aria-current=${key === page ? "page" : undefined}>
            ${text}
            ${counts[key] > 0 &&
            html`<span class=${classes("count", key === "dead" && grows && "dies")}>${number(counts[key])}</span>`}
          </a>`,
        )}
      </nav>
      <div class="right">
        <${CommandField} isOpen=${isOpen} close=${() => setOpen(false)} />
        <${LiveState} />
        <span class="account">
          ${me.name &&
          html`${me.may.operate
            ? html`<a class="who" href=${href({ page: "tokens" })} title="Tokens">${me.name}</a>`
            : html`<span class="who">${me.name}</span>`} `}<span class="rights">${rightOf(me)}</span>
        </span>
        ${me.needs_token && html`<button class="account link" onClick=${signOut}>Sign out</button>`}
        <${ThemeButton} />
        <button class="icon-button only-narrow" data-command-open aria-label="Go to a queue or task" onClick=${() => setOpen(true)}>
          <${Icon} name="search" />
        </button>
      </div>
    </div>
    ${isBusy && html`<div class="loading-line" role="progressbar" aria-label="Loading"></div>`}
  </header>`;
}

/** The phone's bar: three places, and the others behind More. */
function Bottom({ page, counts, me }) {
  const [isOpen, setOpen] = useState(false);
  const grows = useStore(live, (value) => value.deadGrows);
  useEffect(() => setOpen(false), [page]);
  const item = (key, icon, text, count) => html`<a href=${href({ page: key })} aria-current=${key === page ? "page" : undefined}>
    <${Icon} name=${icon} />
    <span>${text} ${count > 0 && html`<span class=${classes("count", grows && "dies")}>${number(count)}</span>`}</span>
  </a>`;
  return html`<nav class="bottom" aria-label="Pages">
    ${item("overview", "home", "Overview")} ${item("dead", "cross", "Dead", counts.dead)} ${item("workers", "person", "Workers")}
    <button aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}><${Icon} name="more" /><span>More</span></button>
    ${isOpen &&
    html`<div class="menu">
      <a class="menu-item" href=${href({ page: "schedules" })}>Schedules</a>
      <a class="menu-item" href=${href({ page: "audit" })}>Audit</a>
      ${me.may.operate && html`<a class="menu-item" href=${href({ page: "tokens" })}>Tokens</a>`}
      <button class="menu-item" onClick=${() => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark")}>
        Light or dark
      </button>
      ${me.needs_token && html`<button class="menu-item" onClick=${signOut}>Sign out</button>`}
      <button class="menu-item" data-close onClick=${() => setOpen(false)}>Close</button>
    </div>`}
  </nav>`;
}

function Help() {
  const { help, letters } = useStore(keyboard);
  const dialog = useRef();
  useEffect(() => {
    if (!help) return undefined;
    const from = document.activeElement;
    dialog.current.querySelector("[data-close]").focus();
    return () => from?.focus?.();
  }, [help]);
  if (!help) return null;
  const close = () => keyboard.set({ help: false });
  const keepInside = (event) => {
    if (event.key !== "Tab") return;
    const stops = [...dialog.current.querySelectorAll("button, input")];
    const last = event.shiftKey ? stops[0] : stops[stops.length - 1];
    if (document.activeElement !== last) return;
    event.preventDefault();
    (event.shiftKey ? stops[stops.length - 1] : stops[0]).focus();
  };
  return html`<div class="overlay" onClick=${(event) => event.target === event.currentTarget && close()}>
    <section class="dialog stack" role="dialog" aria-modal="true" aria-labelledby="help-title" ref=${dialog} onKeyDown=${keepInside}>
      <div class="row wide">
        <h2 id="help-title">Keyboard</h2>
        <button class="icon-button" data-close aria-label="Close" onClick=${close}><${Icon} name="close" /></button>
      </div>
      <dl class="shortcuts">
        ${KEYS.map(
          ([keys, text]) => html`<div key=${keys}>
            <dt>${keys.split(" ").map((key) => html`<kbd>${key}</kbd> `)}</dt>
            <dd>${text}</dd>
          </div>`,
        )}
      </dl>
      <label class="row">
        <input class="tick" type="checkbox" checked=${letters} onChange=${(event) => switchLetters(event.target.checked)} />
        Single letters are shortcuts
      </label>
    </section>
  </div>`;
}

function useTitle(name, findings) {
  useEffect(() => {
    const asking = findings?.length ?? 0;
    document.title = `${asking ? `(${asking}) ` : ""}${name ? `${name} · ` : ""}registry`;
    const worst = asking ? (findings.some((one) => one.code === "deaths" || one.severity === "critical") ? "-dead" : "-asks") : "";
    const icon = document.querySelector('link[rel="icon"]');
    const target = new URL(`../icon${worst}.svg`, import.meta.url).href;
    if (icon.href !== target) icon.href = target;
  }, [name, findings]);
}

export function Shell({ title, children }) {
  const route = useRoute();
  const page = place(route.page);
  const me = useStore(session, (value) => value.me);
  const counts = useCounts();
  const stale = useStore(live, (value) => value.state === "stale");
  const findings = useStore(live, (value) => value.report?.findings);
  const main = useRef();
  const first = useRef(true);
  useTitle(title, findings);
  useEffect(() => {
    // A new page begins at its top, and the keyboard and the reader with it.
    if (first.current) first.current = false;
    else {
      scrollTo(0, 0);
      main.current.focus({ preventScroll: true });
    }
  }, [route.page, route.queue, route.task]);
  const skip = (event) => {
    event.preventDefault();
    main.current.focus();
  };
  return html`<div class=${classes(stale && "is-stale")}>
    <${Bar} page=${page} counts=${counts} me=${me} skip=${skip} />
    ${me.warnings.length > 0 &&
    html`<section class="banner" aria-label="Warnings">
      ${me.warnings.map((text) => html`<div key=${text}><${Glyph} state="asks" /><span>${text}</span></div>`)}
    </section>`}
    <main class="page" tabindex="-1" ref=${main}>${children}</main>
    <${Bottom} page=${page} counts=${counts} me=${me} />
    <${Help} />
    <${Toasts} />
  </div>`;
}

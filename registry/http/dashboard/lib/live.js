// What changes by itself: one event stream for the whole page, and look-ups that are repeated while somebody looks.
//
//   const {state, lastAt, retryAt} = useStore(live)     "connecting", "live", "reconnecting" or "stale"; times in ms
//   const totals = useStore(live, (value) => value.totals)
//   const {data, error, at, reload} = useFetch(() => api.get("/api/workers"), [dependencies], {every: 2})
//
// `useFetch` keeps the old data until the new are there, repeats every so many seconds while the tab is seen, and again when
// the stream comes back. `error` is that of the last try; with data from before, the data stay and the bar says how old they are.

import { api, session } from "./api.js";
import { useEffect, useRef, useState } from "./preact.js";
import { createStore, useStore } from "./store.js";

const TICK = 1000;
const MAX_PAUSE = 15_000;
// Without any word for so long, what is shown is called stale.
const STALE = 5000;

export const live = createStore({
  state: "connecting",
  lastAt: null,
  retryAt: null,
  // By name, as in GET /api/queues; null until the first word.
  queues: null,
  totals: null,
  // The answer of GET /api/findings: {headline, findings, count}; null as long as nobody knows.
  report: null,
  back: 0,
  // Whether more tasks died than were retried or deleted within the last minute.
  deadGrows: false,
});

let deaths = [];
/** Remember how many dead there are; a count turns red only while it grows. */
function grows(dead) {
  const now = Date.now();
  deaths = [...deaths.filter((one) => now - one.at < 60_000), { at: now, dead }];
  return dead > deaths[0].dead;
}

/** Look-ups that take longer than 400 ms are shown as a line under the bar. */
export const busy = createStore({ count: 0 });

/** Whether somebody can see the tab: a hidden one asks nothing and draws nothing. */
export const seen = createStore({ value: !document.hidden });
document.addEventListener("visibilitychange", () => seen.set({ value: !document.hidden }));

let timer = null;
let failures = 0;

function heard() {
  const { state, back } = live.get();
  failures = 0;
  const returned = state === "reconnecting" || state === "stale";
  live.set({ state: "live", lastAt: Date.now(), retryAt: null, back: returned ? back + 1 : back });
}

function lost() {
  const pause = Math.min(MAX_PAUSE, 1000 * 2 ** failures) * (0.75 + Math.random() / 2);
  failures += 1;
  const { lastAt } = live.get();
  const stale = lastAt !== null && Date.now() - lastAt > STALE;
  live.set({ state: stale ? "stale" : "reconnecting", retryAt: Date.now() + pause });
  return pause;
}

function sum(queues) {
  const totals = { ready: 0, delayed: 0, leased: 0, dead: 0, done: 0, pollers: 0, queues: 0 };
  for (const row of queues) {
    for (const key of ["ready", "delayed", "leased", "dead", "done", "pollers"]) totals[key] += row[key];
    totals.queues += row.queues ?? 1;
  }
  return totals;
}

async function poll() {
  let pause = TICK;
  try {
    const [{ queues }, report] = await Promise.all([
      api.get("/api/queues", { family: ":", limit: 1000 }),
      api.get("/api/findings").catch((error) => {
        if (error.status === 404) return null;
        throw error;
      }),
    ]);
    if (session.get().state !== "in") return;
    const totals = sum(queues);
    live.set({ totals, report, deadGrows: grows(totals.dead) });
    heard();
  } catch (error) {
    if (error.status === 401) return;
    pause = lost();
  }
  timer = setTimeout(next, pause);
}

function next() {
  timer = null;
  if (seen.get().value && session.get().state === "in") poll();
}

/** Begin, and go on whenever somebody signs in or looks again. */
export function startLive() {
  const wake = () => {
    if (timer === null) next();
  };
  session.listen(wake);
  seen.listen(wake);
  addEventListener("online", () => {
    clearTimeout(timer);
    next();
  });
  next();
}

/** Try to reach the registry now. */
export function tryAgain() {
  clearTimeout(timer);
  next();
}

export function useFetch(load, dependencies, { every = 0, enabled = true } = {}) {
  const [result, setResult] = useState({ data: null, error: null, at: null, key: null });
  const looked = useStore(seen, (value) => value.value);
  const back = useStore(live, (value) => value.back);
  const [again, setAgain] = useState(0);
  const key = JSON.stringify(dependencies);
  const latest = useRef();
  latest.current = load;
  useEffect(() => {
    if (!enabled || !looked) return undefined;
    const abort = new AbortController();
    let wait = null;
    const run = async () => {
      let shown = false;
      const late = setTimeout(() => {
        shown = true;
        busy.set({ count: busy.get().count + 1 });
      }, 400);
      let pause = every * 1000;
      try {
        const data = await latest.current(abort.signal);
        if (abort.signal.aborted) return;
        setResult({ data, error: null, at: Date.now(), key });
      } catch (error) {
        if (abort.signal.aborted || error.name === "AbortError") return;
        // What was shown for other dependencies does not answer these.
        setResult((old) => ({ ...old, data: old.key === key ? old.data : null, error, key }));
        if (error.status === 401 || error.status === 403 || error.status === 404) pause = 0;
        else pause = Math.max(pause, 5000);
      } finally {
        clearTimeout(late);
        if (shown) busy.set({ count: busy.get().count - 1 });
        if (!abort.signal.aborted && pause) wait = setTimeout(run, pause);
      }
    };
    run();
    return () => {
      abort.abort();
      clearTimeout(wait);
    };
  }, [key, enabled, looked, back, again, every]);
  return { ...result, isCurrent: result.key === key, reload: () => setAgain((count) => count + 1) };
}

/** The time now, ms, drawn again every so many seconds: for ages that grow. */
export function useNow(seconds = 1) {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const interval = setInterval(() => {
      if (!document.hidden) setNow(Date.now());
    }, seconds * 1000);
    return () => clearInterval(interval);
  }, [seconds]);
  return now;
}

/** Whether the page is as narrow as a phone. */
const phone = matchMedia("(max-width: 719px)");
const width = createStore({ narrow: phone.matches });
phone.addEventListener("change", () => width.set({ narrow: phone.matches }));
export const useNarrow = () => useStore(width, (value) => value.narrow);

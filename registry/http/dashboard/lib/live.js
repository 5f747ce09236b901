// What changes by itself: one event stream for the whole page, and look-ups that are repeated while somebody looks.
//
//   const {state, lastAt, retryAt} = useStore(live)     "connecting", "live", "reconnecting" or "stale"; times in ms
//   const totals = useStore(live, (value) => value.totals)   of all queues: {queues, ready, delayed, leased, dead, done, pollers, …}
//   const report = useStore(live, (value) => value.report)   the answer of GET /api/findings
//   const {rows, matching} = useLiveQueues({search: "ma", sort: "oldest", limit: 50, family: ":"})
//       rows as in GET /api/queues, kept current and in order; null until they are there. `queue`: names with / between them.
//       One component at a time.
//   const {data, error, at, key, reload} = useFetch(() => api.get("/api/workers"), [dependencies], {every: 2})
//
// `useFetch` keeps the old data until the new are there, repeats every so many seconds while the tab is seen, and again when
// the stream comes back. `error` is that of the last try; with data from before, the data stay and the bar says how old they are.

import { askMe, session } from "./api.js";
import { ms } from "./format.js";
import { useEffect, useRef, useState } from "./preact.js";
import { createStore, useStore } from "./store.js";
import { openStream } from "./stream.js";

const MAX_PAUSE = 15_000;
// Without any word for so long, what is shown is called stale.
const STALE = 5000;
const NO_ROWS = { limit: 0 };

export const live = createStore({
  state: "connecting",
  lastAt: null,
  retryAt: null,
  totals: null,
  // The answer of GET /api/findings: {headline, findings, count}; null as long as nobody knows.
  report: null,
  // What `useLiveQueues` gives: {scope, rows: Map by name, matching}.
  queues: null,
  // The line of the audit that came last.
  audit: null,
  // How often the stream has come back.
  back: 0,
  // Whether more tasks died than were retried or deleted within the last minute.
  deadGrows: false,
});

/** How many ms this machine's clock is ahead of the registry's. */
export let ahead = 0;

/** Look-ups that take longer than 400 ms are shown as a line under the bar. */
export const busy = createStore({ count: 0 });

/** Whether somebody can see the tab: a hidden one asks nothing and draws nothing. */
export const seen = createStore({ value: !document.hidden });
document.addEventListener("visibilitychange", () => seen.set({ value: !document.hidden }));

let deaths = [];
/** Remember how many dead there are; a count turns red only while it grows. */
function grows(dead) {
  const now = Date.now();
  deaths = [...deaths.filter((one) => now - one.at < 60_000), { at: now, dead }];
  return dead > deaths[0].dead;
}

let stream = null;
let timer = null;
let failures = 0;
let selection = NO_ROWS;
// Changes of rows that nobody sees are drawn when somebody looks again.
let unseen = null;

function heard() {
  const { state, back } = live.get();
  failures = 0;
  const returned = state === "reconnecting" || state === "stale";
  live.set({ state: "live", lastAt: Date.now(), retryAt: null, back: returned ? back + 1 : back });
}

function takeQueues({ at, full, totals, matching, queues, gone }, scope) {
  ahead = Date.now() - ms(at);
  const old = full ? null : (unseen?.queues ?? live.get().queues);
  const rows = new Map(old?.rows);
  gone.forEach((name) => rows.delete(name));
  queues.forEach((row) => rows.set(row.name, row));
  const changes = { totals, deadGrows: grows(totals.dead), queues: { scope, rows, matching } };
  if (seen.get().value) live.set(changes);
  else unseen = changes;
}

function take(name, data, scope) {
  if (name === "queues") takeQueues(data, scope);
  else if (name === "findings") live.set({ report: data });
  else if (name === "audit") live.set({ audit: data });
  else if (name === "end" && data.code === "unauthorized") askMe();
}

function lost(error) {
  stream = null;
  if (error?.status === 401) {
    askMe();
    return;
  }
  const pause = Math.min(MAX_PAUSE, 1000 * 2 ** failures) * (0.75 + Math.random() / 2);
  failures += 1;
  const { lastAt } = live.get();
  live.set({ state: "reconnecting", retryAt: Date.now() + pause });
  if (lastAt !== null) {
    setTimeout(() => {
      const now = live.get();
      if (now.state === "reconnecting" && Date.now() - now.lastAt >= STALE) live.set({ state: "stale" });
    }, Math.max(0, lastAt + STALE - Date.now()));
  }
  timer = setTimeout(connect, pause);
}

function connect() {
  clearTimeout(timer);
  timer = null;
  const after = stream?.lastId ?? undefined;
  stream?.close();
  stream = null;
  if (session.get().state !== "in" || !session.get().me.may.view) return;
  const scope = JSON.stringify(selection);
  stream = openStream("/api/events", { ...selection, after }, {
    event: (name, data) => take(name, data, scope),
    heard,
    closed: lost,
  });
}

/** Begin, and go on whenever somebody signs in or looks again. */
export function startLive() {
  session.listen(({ state }) => {
    if (state !== "in") {
      stream?.close();
      stream = null;
    } else if (!stream && timer === null) connect();
  });
  seen.listen(({ value }) => {
    if (value && unseen) {
      live.set(unseen);
      unseen = null;
    }
    if (value && timer !== null) connect();
  });
  addEventListener("online", connect);
}

/** Try to reach the registry now. */
export const tryAgain = connect;

const ORDERS = {
  name: (a, b) => (a.name < b.name ? -1 : 1),
  oldest: (a, b) => (ms(a.oldest_at) ?? Infinity) - (ms(b.oldest_at) ?? Infinity) || ORDERS.name(a, b),
};

/** How long the oldest ready task of a row has been ready, s; null for none or unknown. */
export const ageOf = (row, now) => {
  if (row.oldest_at === undefined) return row.oldest_age;
  return row.oldest_at === null ? null : Math.max(0, (now - ahead - ms(row.oldest_at)) / 1000);
};

export function useLiveQueues(wanted) {
  const scope = JSON.stringify(wanted);
  const queues = useStore(live, (value) => value.queues);
  useEffect(() => {
    selection = JSON.parse(scope);
    connect();
  }, [scope]);
  useEffect(
    () => () => {
      selection = NO_ROWS;
      connect();
    },
    [],
  );
  if (queues?.scope !== scope) return { rows: null, matching: null };
  const sort = wanted.sort ?? "name";
  const order = ORDERS[sort] ?? ((a, b) => b[sort] - a[sort] || ORDERS.name(a, b));
  return { rows: [...queues.rows.values()].sort(order), matching: queues.matching };
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

/** Whether a table of many columns has no room. */
const tablet = matchMedia("(max-width: 1023px)");
const room = createStore({ little: tablet.matches });
tablet.addEventListener("change", () => room.set({ little: tablet.matches }));
export const useLittleRoom = () => useStore(room, (value) => value.little);

// The URL holds all state of the page, behind the #: the page, what it shows, filter, sort, range, page number, opened row.
//
//   #/                             Overview            {page: "overview", query: {}}
//   #/queues/mail?tab=dead&page=2  a queue             {page: "queue", queue: "mail", query: {tab: "dead", page: "2"}}
//   #/queues/mail/tasks/1a20…      a task              {page: "task", queue: "mail", task: "1a20…", query: {}}
//   #/dead  #/workers  #/schedules  #/audit  #/tokens  {page: "dead", query: {}} …
//
//   href({page: "queue", queue: "mail", query: {tab: "dead"}})   for links
//   go(route)                       a new entry of the history: Back returns
//   setQuery({page: 2})             changes options of this page, null removes one; a new entry, too
//   setQuery({q: "ma"}, true)       replaces the entry: for text while it is typed
//   const route = useRoute()

import { createStore, useStore } from "./store.js";

const PAGES = ["dead", "workers", "schedules", "audit", "tokens"];

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function parse(hash) {
  const [path, search = ""] = hash.replace(/^#/, "").split(/\?(.*)/s);
  const query = Object.fromEntries(new URLSearchParams(search));
  const parts = path.split("/").filter(Boolean).map(decode);
  if (!parts.length) return { page: "overview", query };
  if (parts[0] === "queues" && parts.length === 2) return { page: "queue", queue: parts[1], query };
  if (parts[0] === "queues" && parts.length === 4 && parts[2] === "tasks") {
    return { page: "task", queue: parts[1], task: parts[3], query };
  }
  if (parts.length === 1 && PAGES.includes(parts[0])) return { page: parts[0], query };
  return { page: "missing", query };
}

export function href({ page, queue, task, query = {} }) {
  const encoded = encodeURIComponent;
  const path =
    page === "queue"
      ? `queues/${encoded(queue)}`
      : page === "task"
        ? `queues/${encoded(queue)}/tasks/${encoded(task)}`
        : page === "overview"
          ? ""
          : page;
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(pairs.map(([key, value]) => [key, String(value)])).toString();
  return `#/${path}${search && `?${search}`}`;
}

export const route = createStore({ value: parse(location.hash) });

export const current = () => route.get().value;

export const useRoute = () => useStore(route, (value) => value.value);

function read() {
  route.set({ value: parse(location.hash) });
}

// Back and Forward fire both, an edited URL the second only.
addEventListener("popstate", read);
addEventListener("hashchange", () => {
  if (href(current()) !== href(parse(location.hash))) read();
});

export function go(target, replace = false) {
  const text = href(target);
  if (text === location.hash) return;
  history[replace ? "replaceState" : "pushState"](null, "", text);
  read();
}

export function setQuery(changes, replace = false) {
  const now = current();
  go({ ...now, query: { ...now.query, ...changes } }, replace);
}

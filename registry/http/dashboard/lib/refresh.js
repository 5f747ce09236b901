// Looks again when something has changed: after a deed of this page, after one of somebody else (the audit of the event stream), and
// when a value does that a page names.
//
//   useRefresh(reload)                      `reload` of `useFetch`
//   useRefresh(reload, rowAsText)           and when this changes, at most every two seconds

import { live } from "./live.js";
import { useEffect, useRef } from "./preact.js";
import { useStore } from "./store.js";
import { changed } from "./toast.js";

const PAUSE = 2000;

export function useRefresh(reload, value = null) {
  const deeds = useStore(changed, (store) => store.count);
  const line = useStore(live, (store) => store.audit?.id ?? null);
  const key = JSON.stringify([deeds, line]);
  const last = useRef({ key, value, at: 0 });
  useEffect(() => {
    const old = last.current;
    if (old.key === key && old.value === value) return undefined;
    const isDeed = old.key !== key;
    const wait = isDeed ? 0 : Math.max(0, old.at + PAUSE - Date.now());
    const timer = setTimeout(() => {
      last.current = { key, value, at: Date.now() };
      reload();
    }, wait);
    return () => clearTimeout(timer);
  }, [key, value]);
}

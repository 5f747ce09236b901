// Small stores of values that several parts of the page show.
//
//   const store = createStore({count: 0});
//   store.get().count;  store.set({count: 1});        changes some keys; listeners run if one is another value
//   const count = useStore(store, (value) => value.count);   in a component: drawn again when the selected value changes

import { useEffect, useReducer, useRef } from "./preact.js";

export function createStore(initial) {
  let value = initial;
  const listeners = new Set();
  return {
    get: () => value,
    set(changes) {
      if (Object.keys(changes).every((key) => Object.is(value[key], changes[key]))) return;
      value = { ...value, ...changes };
      for (const listener of [...listeners]) listener(value);
    },
    listen(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

export function useStore(store, select = (value) => value) {
  const [, redraw] = useReducer((count) => count + 1, 0);
  const selected = select(store.get());
  const latest = useRef();
  latest.current = { selected, select };
  useEffect(() => {
    const check = () => {
      const { selected: shown, select: current } = latest.current;
      if (!Object.is(shown, current(store.get()))) redraw();
    };
    check();
    return store.listen(check);
  }, [store]);
  return selected;
}

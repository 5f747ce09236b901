// The parts of preact that the dashboard uses, and `html`, which writes elements without a build step.

export {
  html,
  render,
  createContext,
  useState,
  useReducer,
  useEffect,
  useLayoutEffect,
  useRef,
  useMemo,
  useCallback,
  useContext,
  useErrorBoundary,
} from "../vendor/htm-preact.module.js";

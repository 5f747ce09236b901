// What the charts draw: GET /api/stats, looked up again with each new point.
//
//   const stats = useStats("1h")            of all queues
//   const stats = useStats("1h", "mail")    of one queue, or of a family ("crawl:*")
//   stats.points: [{at, pushed, started, done, failed, dead, wait_p50, …}], those that are whole; stats.step in s;
//   stats.marks: [{at, text}], where a worker's version was first seen; stats.totals: {pushed, …} over the range
//   series(stats, "wait_p50")                the values of one key, null for a gap
//   perSecond(stats, "pushed"), lastRate(stats, "pushed")

import { api } from "./api.js";
import { ms } from "./format.js";
import { useFetch } from "./live.js";
import { useMemo } from "./preact.js";

export const RANGES = [
  { value: "15m", text: "15 min", seconds: 900 },
  { value: "1h", text: "1 h", seconds: 3600 },
  { value: "6h", text: "6 h", seconds: 21600 },
  { value: "24h", text: "24 h", seconds: 86400 },
  { value: "7d", text: "7 d", seconds: 604800 },
];

export const rangeText = (range) => {
  const words = { "15m": "last 15 min", "1h": "last hour", "6h": "last 6 h", "24h": "last 24 h", "7d": "last 7 days" };
  return words[range] ?? "last hour";
};

export function useStats(range, queue, enabled = true) {
  const wait = { "15m": 5, "1h": 10, "6h": 30 }[range] ?? 60;
  const { data, error } = useFetch((signal) => api.get("/api/stats", { range, queue }, { signal }), [range, queue], { every: wait, enabled });
  // The last step is not over: its counts would look like a fall.
  const stats = useMemo(() => data && { ...data, points: data.points.filter((point) => ms(point.at) + 1000 * data.step <= ms(data.final_until)) }, [data]);
  return { stats, error };
}

/** How many points are known. */
export const known = (stats) => stats.points.filter((point) => point.pushed !== null).length;

export const series = (stats, key) => stats.points.map((point) => point[key] ?? null);

export const times = (stats) => stats.points.map((point) => ms(point.at) / 1000);

export const perSecond = (stats, key) => series(stats, key).map((value) => (value === null ? null : value / stats.step));

/** The rate over the last minute or so that is whole; null if it is not known. */
export function lastRate(stats, key) {
  const whole = (stats?.points ?? []).filter((point) => (point[key] ?? null) !== null);
  const many = Math.max(1, Math.round(60 / (stats?.step ?? 60)));
  const last = whole.slice(-many);
  return last.length ? last.reduce((sum, point) => sum + point[key], 0) / (last.length * stats.step) : null;
}

/** The last value that is known. */
export function last(stats, key) {
  const points = stats?.points ?? [];
  for (let at = points.length - 1; at >= Math.max(0, points.length - 3); at -= 1) {
    if ((points[at][key] ?? null) !== null) return points[at][key];
  }
  return null;
}

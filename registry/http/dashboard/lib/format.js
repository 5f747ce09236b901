// Numbers, durations, times and names as text. "–" stands for what is not known; it is never written 0.

export const UNKNOWN = "–";
const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

/** 1234567 -> "1,234,567". */
export function number(value) {
  return known(value) ? Math.round(value).toLocaleString("en-US") : UNKNOWN;
}

/** At most four digits and a unit: 1580000 -> "1.58 M"; below a million as `number`. */
export function large(value) {
  if (!known(value)) return UNKNOWN;
  for (const [unit, size] of [["G", 1e9], ["M", 1e6]]) {
    if (value >= size) return `${(value / size).toPrecision(3)}\u00a0${unit}`;
  }
  return number(value);
}

/** Two significant digits, thousands whole: 0.4, 5.8, 245. */
export function rate(value) {
  if (!known(value)) return UNKNOWN;
  if (value === 0) return "0";
  if (value < 0.1) return "<0.1";
  return value < 10 ? value.toFixed(1).replace(/\.0$/, "") : number(value);
}

/** Seconds as a duration of two significant digits, with a space that does not break: "12 ms", "8.7 s", "38 min", "2 d". */
export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const [value, unit] = inUnits(Math.max(0, seconds));
  return `${value}\u00a0${unit}`;
}

function inUnits(seconds) {
  if (seconds < 0.0005) return [0, "s"];
  if (seconds < 0.9995) return [Number((seconds * 1000).toPrecision(2)), "ms"];
  if (seconds < 9.95) return [seconds.toFixed(1), "s"];
  if (seconds < 99.5) return [Math.round(seconds), "s"];
  if (seconds < 1.95 * 3600) return [Math.round(seconds / 60), "min"];
  const [unit, size] = seconds < 2 * 86400 ? ["h", 3600] : ["d", 86400];
  const many = seconds / size;
  return [many < 9.95 ? many.toFixed(1).replace(/\.0$/, "") : Math.round(many), unit];
}

/** Seconds until an end, to the second: "14 min 36 s", "7:48" with `clock`. */
export function left(seconds, clock = false) {
  const whole = Math.max(0, Math.ceil(seconds));
  const minutes = Math.floor(whole / 60);
  const rest = whole % 60;
  if (clock) return `${minutes}:${String(rest).padStart(2, "0")}`;
  if (minutes >= 60) return duration(seconds);
  if (!minutes) return `${whole} s`;
  return rest ? `${minutes} min ${rest} s` : `${minutes} min`;
}

/** An RFC 3339 time, or ms, as ms; null if there is none. */
export function ms(value) {
  return typeof value === "string" ? Date.parse(value) : (value ?? null);
}

const two = (value) => String(value).padStart(2, "0");

/** "05:02:11" of the viewer's own day; "12 Nov 05:02" for another day. */
export function clock(value, seconds = true) {
  const at = ms(value);
  if (at === null) return UNKNOWN;
  const date = new Date(at);
  const time = `${two(date.getHours())}:${two(date.getMinutes())}${seconds ? `:${two(date.getSeconds())}` : ""}`;
  if (date.toDateString() === new Date().toDateString()) return time;
  const day = `${date.getDate()} ${date.toLocaleString("en-GB", { month: "short" })}`;
  return `${day} ${time.slice(0, 5)}`;
}

/** How long ago: "3 s ago", "38 min ago". */
export function ago(value, now = Date.now()) {
  const at = ms(value);
  if (at === null) return UNKNOWN;
  const seconds = Math.max(0, Math.round((now - at) / 1000));
  return `${seconds < 10 ? `${seconds}\u00a0s` : duration(seconds)} ago`;
}

/** The whole time with its zone, for titles: "2026-11-24 05:02:11 UTC+01:00". */
export function zoned(value) {
  const at = ms(value);
  if (at === null) return "";
  const date = new Date(at);
  const offset = -date.getTimezoneOffset();
  const zone = `UTC${offset < 0 ? "-" : "+"}${two(Math.floor(Math.abs(offset) / 60))}:${two(Math.abs(offset) % 60)}`;
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())} ${zone}`;
}

/** "1 task", "1,104 tasks"; `many` where the plural is another one. */
export function count(value, one, many = `${one}s`) {
  return `${number(value)} ${value === 1 ? one : many}`;
}

const WORDS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/** Small numbers as words, as sentences have them: "three", "10,247"; `first`: at the beginning of a sentence. */
export function word(value, first = false) {
  const text = WORDS[value] ?? number(value);
  return first ? text[0].toUpperCase() + text.slice(1) : text;
}

/** Bytes: "168 bytes", "1.2 MB". */
export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 1000) return count(value, "byte");
  return value < 1e6 ? `${Number((value / 1e3).toPrecision(2))} kB` : `${Number((value / 1e6).toPrecision(2))} MB`;
}

// C0 and C1 controls, DEL, and the characters that turn the direction of what follows or cannot be seen.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** Text with its control characters made visible, "\n" as "\u240a"; `keepLines` leaves line feeds and tabs. */
export function visible(text, keepLines = false) {
  return String(text).replace(HIDDEN, (found) => {
    const code = found.charCodeAt(0);
    if (keepLines && (code === 10 || code === 9)) return found;
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return code === 127 ? "\u2421" : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** A sentence whose names are not broken at a hyphen. */
export const unbroken = (text) => text.replace(/(?<=\S)-(?=\S)/g, "\u2011");

/** Text cut in its middle to `limit` characters. */
export function middle(text, limit = 48) {
  const characters = [...text];
  if (characters.length <= limit) return text;
  const half = Math.floor((limit - 1) / 2);
  return `${characters.slice(0, limit - 1 - half).join("")}…${characters.slice(-half).join("")}`;
}

// A cron expression in words: cronInWords("*/15 8-18 * * 1-5") -> "every 15 minutes from 08:00 to 18:59, Monday to Friday".
// Null for what has no short sentence; the expression itself always stands beside it.

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS = ["", "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const SHORT_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const SHORT_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const MACROS = {
  "@yearly": "0 0 1 1 *",
  "@annually": "0 0 1 1 *",
  "@monthly": "0 0 1 * *",
  "@weekly": "0 0 * * 0",
  "@daily": "0 0 * * *",
  "@midnight": "0 0 * * *",
  "@hourly": "0 * * * *",
};

const two = (value) => String(value).padStart(2, "0");
const list = (words) => (words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}` : words[0]);

function ordinal(value) {
  const ending = value % 100 >= 11 && value % 100 <= 13 ? "th" : (["th", "st", "nd", "rd"][value % 10] ?? "th");
  return `${value}${ending}`;
}

/** The parts of a field: {all}, {every}, {from, to} or {value}; null if it has another form. */
function read(field, names) {
  const numbered = names.reduce((text, name, at) => text.replace(new RegExp(`\\b${name}\\b`, "g"), String(at + (names.length === 12 ? 1 : 0))), field.toLowerCase());
  const parts = numbered.split(",").map((part) => {
    if (part === "*" || part === "?") return { all: true };
    const step = /^\*\/(\d+)$/.exec(part);
    if (step) return Number(step[1]) === 1 ? { all: true } : { every: Number(step[1]) };
    const range = /^(\d+)-(\d+)$/.exec(part);
    if (range) return { from: Number(range[1]), to: Number(range[2]) };
    return /^\d+$/.test(part) ? { value: Number(part) } : null;
  });
  return parts.includes(null) ? null : parts;
}

const isAll = (parts) => parts.length === 1 && parts[0].all;
const values = (parts) => (parts.every((part) => part.value !== undefined) ? parts.map((part) => part.value).sort((one, other) => one - other) : null);

function times(minutes, hours) {
  const minute = values(minutes);
  const hour = values(hours);
  if (isAll(hours)) {
    if (isAll(minutes)) return "every minute";
    if (minutes.length === 1 && minutes[0].every) return `every ${minutes[0].every} minutes`;
    if (minute?.length === 1 && minute[0] === 0) return "every hour";
    return minute ? `every hour at ${list(minute.map((value) => `:${two(value)}`))}` : null;
  }
  if (hours.length === 1 && hours[0].every && minute?.length === 1) return `every ${hours[0].every} hours at :${two(minute[0])}`;
  if (minute && hour && minute.length * hour.length <= 6) {
    return `at ${list(hour.flatMap((one) => minute.map((other) => `${two(one)}:${two(other)}`)))}`;
  }
  const span = hours.length === 1 && hours[0].from !== undefined ? hours[0] : hour?.length === 1 ? { from: hour[0], to: hour[0] } : null;
  if (!span) return null;
  const during = `from ${two(span.from)}:00 to ${two(span.to)}:59`;
  if (isAll(minutes)) return `every minute ${during}`;
  if (minutes.length === 1 && minutes[0].every) return `every ${minutes[0].every} minutes ${during}`;
  if (minute?.length === 1) return `every hour from ${two(span.from)}:${two(minute[0])} to ${two(span.to)}:${two(minute[0])}`;
  return null;
}

function named(parts, names) {
  const words = parts.map((part) => {
    if (part.value !== undefined) return names[part.value];
    return part.from !== undefined ? `${names[part.from]} to ${names[part.to]}` : undefined;
  });
  return words.every(Boolean) ? list(words) : null;
}

export function cronInWords(cron) {
  const fields = (MACROS[cron.trim().toLowerCase()] ?? cron).trim().split(/\s+/);
  if (fields.length !== 5) return null;
  const [minutes, hours, days, months, weekdays] = fields.map((field, at) => read(field, at === 3 ? SHORT_MONTHS : at === 4 ? SHORT_DAYS : []));
  if (!minutes || !hours || !days || !months || !weekdays) return null;
  const time = times(minutes, hours);
  if (!time) return null;
  const words = [];
  const dates = values(days);
  if (!isAll(days)) {
    if (!dates) return null;
    words.push(`on the ${list(dates.map(ordinal))}`);
  }
  if (!isAll(weekdays)) {
    const week = named(weekdays, DAYS);
    if (!week) return null;
    words.push(isAll(days) ? (weekdays.length === 1 && weekdays[0].from !== undefined ? week : `on ${week}`) : `or on ${week}`);
  }
  if (!isAll(months)) {
    const year = named(months, MONTHS);
    if (!year) return null;
    words.push(`in ${year}`);
  } else if (!isAll(days)) words.push("of each month");
  const when = words.join(" ");
  if (!when) return time.startsWith("at ") ? `every day ${time}` : time;
  return time.startsWith("at ") ? `${when} ${time}` : `${time}, ${when}`;
}

// JSON as text: payloads are shown as the bytes that were pushed. A parser would change 1e999, large integers and duplicate keys.
//
//   member(text, "task")        the text of a member of an object, undefined if there is none (the last one of a name counts)
//   elements(text)              the texts of an array's elements
//   indented(text)              [{text, key}]: the same tokens on lines of their own, key: whether it is the name of a member
//   compact(text, limit)        on one line, at most so many characters
//
// `text` is valid JSON, as the API answers it; whatever is not comes back unchanged.

const SPACE = /[ \t\r\n]*/y;
const SCALAR = /[^\s,\]}]*/y;
const INSIDE = /["{}[\]]/g;

function skip(pattern, text, at) {
  pattern.lastIndex = at;
  pattern.exec(text);
  return pattern.lastIndex;
}

function endOfString(text, at) {
  for (let end = text.indexOf('"', at + 1); end > 0; end = text.indexOf('"', end + 1)) {
    let slashes = 0;
    while (text[end - 1 - slashes] === "\\") slashes += 1;
    if (slashes % 2 === 0) return end + 1;
  }
  return text.length;
}

function endOfValue(text, at) {
  if (text[at] === '"') return endOfString(text, at);
  if (text[at] !== "{" && text[at] !== "[") return skip(SCALAR, text, at);
  let depth = 0;
  INSIDE.lastIndex = at;
  for (let found = INSIDE.exec(text); found; found = INSIDE.exec(text)) {
    if (found[0] === '"') INSIDE.lastIndex = endOfString(text, found.index);
    else depth += found[0] === "{" || found[0] === "[" ? 1 : -1;
    if (depth === 0) return found.index + 1;
  }
  return text.length;
}

/** Calls `each(name, value)` for each member of an object, or each element of an array (its name is then null). */
function walk(text, each) {
  const isObject = text[skip(SPACE, text, 0)] === "{";
  let at = skip(SPACE, text, skip(SPACE, text, 0) + 1);
  while (at < text.length && text[at] !== "}" && text[at] !== "]") {
    let name = null;
    if (isObject) {
      const end = endOfString(text, at);
      name = JSON.parse(text.slice(at, end));
      at = skip(SPACE, text, skip(SPACE, text, end) + 1);
    }
    const end = endOfValue(text, at);
    each(name, text.slice(at, end));
    at = skip(SPACE, text, end);
    if (text[at] === ",") at = skip(SPACE, text, at + 1);
  }
}

export function member(text, wanted) {
  let found;
  walk(text, (name, value) => {
    if (name === wanted) found = value;
  });
  return found;
}

export function elements(text) {
  const found = [];
  walk(text, (_, value) => found.push(value));
  return found;
}

const TOKEN = /"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s"{}[\],:]+/g;

export function indented(text) {
  const parts = [];
  const add = (more, key = false) => {
    const last = parts[parts.length - 1];
    if (last && !last.key && !key) last.text += more;
    else parts.push({ text: more, key });
  };
  const tokens = text.match(TOKEN) ?? [];
  let depth = 0;
  const line = () => `\n${"  ".repeat(Math.min(depth, 40))}`;
  tokens.forEach((token, at) => {
    const before = tokens[at - 1];
    if (token === "}" || token === "]") {
      depth -= 1;
      add(before === "{" || before === "[" ? token : line() + token);
      return;
    }
    if (before === "{" || before === "[" || before === ",") add(line());
    if (token === "{" || token === "[") depth += 1;
    add(token === ":" ? ": " : token, token[0] === '"' && tokens[at + 1] === ":");
  });
  return parts;
}

export function compact(text, limit) {
  // White space within strings stays: only line breaks between tokens matter here, and JSON strings have none.
  const line = text.slice(0, limit * 4).replace(/\s*[\r\n]\s*/g, "");
  return line.length > limit ? `${line.slice(0, limit)}…` : line;
}

"""What a request may say about a task or a poll, and how it is read. Wrong values are `BadOption`, naming the option."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlencode

import msgspec

from registry.duration import NUMBER, milliseconds
from registry.errors import BadBody, BadOption
from registry.http.json_check import MAX_DEPTH, BadJson, check_json
from registry.http.wire import (
    ExactFloat,
    cut_bytes,
    duration_ms,
    moment,
    one_of,
    option_pairs,
    options,
    seconds,
    text,
    whole,
)

Header = Callable[[bytes], "bytes | None"]

YEAR = 366 * 86_400
WEEK = 7 * 86_400
RESULT_FOR_PREFER = 60
MOST_AT_ONCE = 1000
# Whole numbers up to this are the same in every program that reads JSON.
EXACT = 2**53

_LEASE = re.compile(rb"[A-Za-z0-9_-]{1,160}")
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_PREFER_WAIT = re.compile(rf"(?:^|[,;\s])wait\s*=\s*\"?({NUMBER})\"?(?=$|[,;\s])", re.IGNORECASE | re.ASCII)

lease_length = seconds(0.1, 43_200)


def _lease_or_default(name: str, value: str) -> float:
    # Present but empty: leased, as long as the task or the queue says.
    return lease_length(name, value) if value else 0.0


def wait_length(name: str, value: str) -> float:
    """A reader of how long to wait, in seconds. However long: whoever waits caps it."""
    ms = duration_ms(value)
    if ms is None:
        raise BadOption(f"The option {name!r} is a number of seconds, 0 or more, not {value[:40]!r}.")
    return min(ms / 1000, YEAR)


PUSH_OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "delay": seconds(0, YEAR),
    "at": moment,
    "priority": whole(0, 9),
    "ttl": seconds(0.001, YEAR),
    "attempts": whole(1, 1000),
    "backoff": seconds(0, 3600),
    "lease": lease_length,
    "key": text(1, 255),
    "result": seconds(0, WEEK),
}
PUSH_MANY_OPTIONS = {name: read for name, read in PUSH_OPTIONS.items() if name != "key"}
POP_OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "wait": wait_length,
    "lease": _lease_or_default,
    "ack": text(1, 170),
    "worker": text(1, 255),
}
POP_MANY_OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "count": whole(1, 100),
    "wait": wait_length,
    "lease": _lease_or_default,
    "order": one_of("strict", "fair"),
    "worker": text(1, 255),
}
RELEASE_OPTIONS: dict[str, Callable[[str, str], Any]] = {"delay": seconds(0, YEAR)}
EXTEND_OPTIONS: dict[str, Callable[[str, str], Any]] = {"lease": lease_length}


def ms(duration: float) -> int:
    """Seconds that a reader gave, which are whole ms, as ms."""
    return round(duration * 1000)


def idempotency_key(header: Header) -> str | None:
    """The request's Idempotency-Key, quotes of a structured field taken off."""
    value = header(b"idempotency-key")
    if value is None:
        return None
    key = value.decode("latin-1").strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not _KEY.fullmatch(key):
        raise BadOption("The header Idempotency-Key is 1 to 255 printable ASCII characters.")
    return key


def fingerprint(query: bytes, *more: bytes, but: Collection[str] = ()) -> str:
    """What makes two requests the same: their options in any order, those of ``but`` left out, and their bodies."""
    digest = hashlib.sha256()
    for name, value in sorted(option_pairs(query)):
        if name not in but:
            digest.update(b"%b=%b\n" % (name.encode(), value.encode()))
    for part in more:
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:24]


def prefer_wait(header: Header) -> float | None:
    """The N of ``Prefer: wait=N``, seconds. A preference that cannot be read is no preference (RFC 7240)."""
    value = header(b"prefer")
    if value is None:
        return None
    found = _PREFER_WAIT.search(value.decode("latin-1"))
    return min((milliseconds(found[1]) or 0) / 1000, YEAR) if found else None


def push_options(
    query: bytes, header: Header, body: bytes, known: dict[str, Callable[[str, str], Any]] = PUSH_OPTIONS
) -> dict[str, Any]:
    """The options of a push as ``push.lua`` reads them; empty for a plain one."""
    trace = header(b"traceparent")
    if not query and trace is None and header(b"prefer") is None and header(b"idempotency-key") is None:
        return {}
    said = options(query, known)
    if "delay" in said and "at" in said:
        raise BadOption("The options 'delay' and 'at' exclude each other.")
    if "ttl" in said and said["ttl"] <= said.get("delay", 0.0):
        raise BadOption(
            "The option 'ttl' is not longer than 'delay': the task would expire before it is due."
        )
    packed: dict[str, Any] = {}
    if said.get("delay"):
        packed["d"] = ms(said["delay"])
    if "at" in said:
        packed["at"] = ms(said["at"])
    if said.get("priority"):
        packed["p"] = said["priority"]
    for name, short in (("ttl", "x"), ("lease", "l"), ("result", "r")):
        if said.get(name):
            packed[short] = ms(said[name])
    if "backoff" in said:
        packed["b"] = ms(said["backoff"])
    if "attempts" in said:
        packed["n"] = said["attempts"]
    if "key" in said:
        packed["k"] = said["key"]
    if trace is not None and re.fullmatch(rb"[\x20-\x7e]{1,512}", trace):
        packed["tp"] = trace.decode()
    if prefer_wait(header) is not None:
        packed["w"] = True
        packed["r"] = max(packed.get("r", 0), RESULT_FOR_PREFER * 1000)
    key = idempotency_key(header)
    if key is not None:
        packed["ik"] = key
        packed["ih"] = fingerprint(query, body, b"w" if "w" in packed else b"")
    return packed


def payloads(header: Header, body: bytes) -> list[bytes]:
    """The payloads of a batch, each as its own bytes: a JSON array, or a value a line."""
    kind = (header(b"content-type") or b"").split(b";")[0].strip().lower()
    if kind in (b"application/x-ndjson", b"application/ndjson", b"application/jsonl"):
        found = []
        at = 0
        for line in body.split(b"\n"):
            if line.strip(b" \t\r"):
                try:
                    check_json(line)
                except BadJson as error:
                    raise BadJson(at + error.position, error.reason, error.code) from None
                found.append(line.strip(b" \t\r"))
            at += len(line) + 1
    else:
        # The array around them is not a task's own.
        check_json(body, MAX_DEPTH + 1)
        found = split_array(body)
    if not 1 <= len(found) <= MOST_AT_ONCE:
        raise BadBody(f"A batch has 1 to {MOST_AT_ONCE} tasks; this one has {len(found)}.")
    return found


def split_array(body: bytes) -> list[bytes]:
    """The elements of a JSON array as the bytes they are. ``body`` is known to be JSON."""
    if body.lstrip(b" \t\r\n")[:1] != b"[":
        raise BadBody("The body of a batch is a JSON array of tasks, or application/x-ndjson.")
    try:
        return [bytes(raw) for raw in msgspec.json.decode(body, type=list[msgspec.Raw])]
    except (msgspec.DecodeError, RecursionError):
        return _split_slowly(body)


_MEMBER = re.compile(rb'("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*(.*)', re.DOTALL)
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def _split_slowly(body: bytes) -> list[bytes]:
    # For what msgspec refuses although it is JSON, such as a lone surrogate: cut at the commas of the first level.
    depth, start, found = 0, 0, []
    for token in _TOKEN.finditer(body):
        char = token[0]
        if char in b"[{":
            depth += 1
            if depth == 1:
                start = token.end()
        elif char in b"]}" or (char == b"," and depth == 1):
            if depth == 1:
                element = body[start : token.start()].strip(b" \t\r\n")
                if element:
                    found.append(element)
                start = token.end()
            depth -= char in b"]}"
    return found


def json_object(body: bytes, known: tuple[str, ...] | None) -> dict[str, Any]:
    """A body that is empty or a JSON object, with these members only; None for any."""
    if not body.strip(b" \t\r\n"):
        return {}
    check_json(body)
    value = json.loads(body, parse_int=number, parse_float=ExactFloat.read)
    if not isinstance(value, dict):
        raise BadBody("The body of this request is a JSON object.")
    for name in value:
        if known is not None and name not in known:
            raise BadOption(f"There is no field {name[:80]!r} here; this request takes: {', '.join(known)}.")
    return value


def number(digits: str) -> int | float:
    """What ``json.loads`` takes as ``parse_int``: the interpreter refuses to read an integer of thousands of digits."""
    # Nor does it keep the sign of -0.
    return int(digits) if len(digits) < 300 and digits != "-0" else ExactFloat.read(digits)


def lease_id(raw: bytes, what: str = "The last part of the path") -> bytes:
    """A lease id, or `BadOption` for what certainly is none; ``what`` is where it stands."""
    if not _LEASE.fullmatch(raw):
        raise BadOption(f"{what} is no lease id: that is the text which a pop gave as lease.")
    return raw


# Limits of an error's fields, in bytes of UTF-8; a trace keeps its end, where the cause stands.
ERROR_FIELDS = {"type": 100, "message": 1000, "trace": -8000}
# Of the message of a holder that is still at it.
PROGRESS_BYTES = 1000


def shortened(text: str, most: int) -> str:
    """Text cut to so many bytes, its end where ``most`` is negative. Half of a character (a lone surrogate) is a question mark."""
    # No character has less than a byte: what is further off is not looked at.
    near = text[most:] if most < 0 else text[:most]
    return cut_bytes(near.encode("utf-8", "replace"), most).decode()


def failing(said: dict[str, Any]) -> tuple[dict[str, Any] | None, int | None, bool]:
    """``error``, ``delay`` and ``retry`` of a fail, checked. A longer field of the error is cut, and ``truncated`` says so."""
    error = said.get("error")
    if error is not None:
        if isinstance(error, str):
            error = {"message": error}
        if not isinstance(error, dict) or not all(
            k in ERROR_FIELDS and (v is None or isinstance(v, str)) for k, v in error.items()
        ):
            raise BadOption("The field 'error' is an object with the texts type, message and trace.")
        told = {k: v for k in ERROR_FIELDS if (v := error.get(k))}
        error = {k: shortened(v, ERROR_FIELDS[k]) for k, v in told.items()}
        if any(len(error[k]) < len(v) for k, v in told.items()):
            error["truncated"] = True
    delay = said.get("delay")
    delay_ms = milliseconds(delay) if isinstance(delay, int | float) else None
    if delay is not None and (delay_ms is None or delay_ms > YEAR * 1000):
        raise BadOption(f"The field 'delay' is a number of seconds from 0 to {YEAR}.")
    retry = True if said.get("retry") is None else said["retry"]
    if not isinstance(retry, bool):
        raise BadOption("The field 'retry' is true or false.")
    return error or None, delay_ms, retry


def is_json(body: bytes) -> bool:
    """Whether these bytes are JSON."""
    try:
        check_json(body)
    except BadBody:
        return False
    return True


def quoted(name: bytes) -> str:
    """A name as a cursor: any byte of it survives the way through a query."""
    return quote_from_bytes(name, safe="")


def unquoted(cursor: str) -> bytes:
    """The name that `quoted` made a cursor of."""
    return unquote_to_bytes(cursor)


def member(body: bytes, name: str) -> bytes | None:
    """The bytes of one member of a JSON object, as they are; None when it is not there."""
    try:
        found: bytes | None = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get(name)
    except (msgspec.DecodeError, RecursionError):
        # JSON nonetheless, with a lone surrogate somewhere.
        members = [match for piece in _split_slowly(body) if (match := _MEMBER.match(piece))]
        found = {json.loads(match[1]): match[2] for match in members}.get(name)
    return None if found is None else bytes(found)


def elements(body: bytes, name: str) -> list[bytes]:
    """The bytes of each element of an array that is a member of a JSON object; none where it is not there."""
    array = member(body, name)
    return [] if array is None else split_array(array)


def schedule_options(said: Any) -> tuple[dict[str, str | int | float], dict[str, Any]]:
    """The push options of a schedule, members of an object: as they are kept and shown, and as ``push.lua`` reads them."""
    if not isinstance(said, dict):
        raise BadOption("The field 'options' is an object.")
    if "at" in said:
        raise BadOption("The option 'at' makes no sense on a schedule.")
    kept: dict[str, str | int | float] = {}
    texts = {}
    for name, value in said.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadOption(f"The option {name[:80]!r} is a text or a number.")
        texts[name] = value.text if isinstance(value, ExactFloat) else str(value)
        # A number that few programs can hold is kept as it was written.
        plain = float(value) if isinstance(value, float) else value
        kept[name] = plain if isinstance(plain, str) or abs(plain) <= EXACT else texts[name]
        try:
            f"{name}{texts[name]}".encode()
        except UnicodeEncodeError:
            raise BadOption(
                f"The option {name[:80]!r} holds half of a character (a lone surrogate)."
            ) from None
    return kept, push_options(urlencode(texts).encode(), lambda _: None, b"")

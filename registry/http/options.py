"""The options and bodies of requests for tasks and polls, and how they are parsed. A wrong value raises `BadOption`, naming it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlencode

from registry.duration import NUMBER, milliseconds
from registry.errors import BadBody, BadOption
from registry.http.codec import (
    ACCEPTED,
    ExactFloat,
    accepts,
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
from registry.http.json_check import MAX_DEPTH, PIECE, BadJson, check_json, checking
from registry.http.json_cut import Part, Payload
from registry.http.trace_context import option_traceparent, option_tracestate, trace_of
from registry.http.turns import Steps
from registry.model import Error, ExtendOptions, FailOptions, PushOptions
from registry.queue.names import MAX_NAME_BYTES

Header = Callable[[bytes], "bytes | None"]

PLAIN_PUSH = PushOptions()

YEAR = 366 * 86_400
WEEK = 7 * 86_400
RESULT_FOR_PREFER = 60
MAX_PER_BATCH = 1000
# Every program that reads JSON can hold whole numbers up to this.
MAX_EXACT_INT = 2**53

MAX_LEASE_ID = 160
_LEASE = re.compile(rb"[A-Za-z0-9_-]{1,%d}" % MAX_LEASE_ID)
_QUOTED_LEASE = re.compile(rb'"([A-Za-z0-9_-]{1,%d})"' % MAX_LEASE_ID)
# An array of nothing but leases as a pop gave them, and the longest that is matched, bytes.
_PLAIN_LEASES = re.compile(rb"\[(?:[ \t\r\n]*+%b[ \t\r\n]*+[,\]])++" % _QUOTED_LEASE.pattern)
MAX_PLAIN_LEASES = MAX_PER_BATCH * (MAX_LEASE_ID + 4)
# Bytes of a request's entries that are parsed in one turn.
BYTES_PER_TURN = 256 * 1024
_KEY = re.compile(r"[\x20-\x7e]{1,255}")
_PREFER_WAIT = re.compile(rf"(?:^|[,;\s])wait\s*=\s*\"?({NUMBER})\"?(?=$|[,;\s])", re.IGNORECASE | re.ASCII)

lease_length = seconds(0.1, 43_200)
# The names of queues and schedules, as JSON Schema; `registry.queue.names` checks them.
NAME = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_NAME_BYTES,
    "pattern": r"^(?!\.{1,2}$)[^\x00-\x1f\x7f-\x9f/{}]+$",
}


def _lease_or_default(name: str, value: str) -> float:
    # Present but empty: leased, for the time that the task or the queue sets.
    return lease_length(name, value) if value else 0.0


accepts(_lease_or_default, {"anyOf": [ACCEPTED[lease_length], {"type": "string", "maxLength": 0}]})


def wait_length(name: str, value: str) -> float:
    """A reader of how long to wait, in seconds. More than a year is read as a year; the caller caps the wait."""
    ms = duration_ms(value)
    if ms is None:
        raise BadOption(f"The option {name!r} must be a number of seconds, 0 or more, not {value[:40]!r}.")
    return min(ms / 1000, YEAR)


accepts(wait_length, {"type": "number", "minimum": 0})


def _lease_in_query(name: str, value: str) -> bytes:
    return lease_id(value.encode(), f"The option {name!r}")


accepts(
    _lease_in_query,
    {"type": "string", "minLength": 1, "maxLength": MAX_LEASE_ID, "pattern": "^[A-Za-z0-9_-]+$"},
)

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
# What the options of a schedule may name; its tasks go on with one trace.
SCHEDULED_OPTIONS = {
    **{name: read for name, read in PUSH_OPTIONS.items() if name != "at"},
    "traceparent": option_traceparent,
    "tracestate": option_tracestate,
}
PUSH_MANY_OPTIONS = {name: read for name, read in PUSH_OPTIONS.items() if name != "key"}
POP_OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "wait": wait_length,
    "lease": _lease_or_default,
    "ack": _lease_in_query,
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
    """Seconds as ms. Readers return whole ms."""
    return round(duration * 1000)


def idempotency_key(header: Header) -> str | None:
    """The request's Idempotency-Key without the quotes of a structured field, or None. Raises `BadOption`."""
    value = header(b"idempotency-key")
    if value is None:
        return None
    key = value.decode("latin-1").strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not _KEY.fullmatch(key):
        raise BadOption("The header Idempotency-Key must be 1 to 255 printable ASCII characters.")
    return key


def fingerprint(query: bytes, *more: bytes, ignoring: Collection[str] = ()) -> str:
    """A hash that is equal for equal requests: of the options in any order, without those in ``ignoring``, and of ``more``."""
    digest = hashlib.sha256()
    for name, value in sorted(option_pairs(query)):
        if name not in ignoring:
            digest.update(b"%b=%b\n" % (name.encode(), value.encode()))
    for part in more:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()[:24]


def prefer_wait(header: Header) -> float | None:
    """The N of ``Prefer: wait=N`` in seconds, or None. A preference that cannot be read is ignored (RFC 7240)."""
    value = header(b"prefer")
    if value is None:
        return None
    found = _PREFER_WAIT.search(value.decode("latin-1"))
    return min((milliseconds(found[1]) or 0) / 1000, YEAR) if found else None


def push_options(given: Mapping[str, Any], header: Header, query: bytes, body: bytes) -> PushOptions | None:
    """The options of a push, None for a plain one. ``given``: the parsed options of the query. Raises `BadOption`."""
    if (
        not given
        and header(b"traceparent") is None
        and header(b"prefer") is None
        and header(b"idempotency-key") is None
    ):
        return None
    if "delay" in given and "at" in given:
        raise BadOption("The options 'delay' and 'at' cannot be combined.")
    if "ttl" in given and given["ttl"] <= given.get("delay", 0.0):
        raise BadOption(
            "The option 'ttl' must be longer than 'delay': otherwise the task would expire before it is due."
        )
    awaited = prefer_wait(header) is not None
    keep_result = ms(given.get("result", 0.0))
    if awaited:
        keep_result = max(keep_result, RESULT_FOR_PREFER * 1000)
    key = idempotency_key(header)
    traceparent, tracestate = trace_of(header)
    found = PushOptions(
        delay=ms(given.get("delay", 0.0)) or None,
        due_at=ms(given["at"]) if "at" in given else None,
        priority=given.get("priority", 0),
        ttl=ms(given["ttl"]) if "ttl" in given else None,
        lease_length=ms(given["lease"]) if "lease" in given else None,
        keep_result=keep_result or None,
        backoff=ms(given["backoff"]) if "backoff" in given else None,
        attempts=given.get("attempts"),
        key=given.get("key"),
        traceparent=traceparent,
        tracestate=tracestate,
        awaited=awaited,
        idempotency_key=key,
        fingerprint=None if key is None else fingerprint(query, body, b"w" if awaited else b""),
    )
    return None if found == PLAIN_PUSH else found


def payloads(header: Header, body: bytes) -> Steps[list[Payload]]:
    """The payloads of a batch, each as its original bytes. The body is a JSON array, or has one value per line."""
    kind = (header(b"content-type") or b"").split(b";")[0].strip().lower()
    if kind in (b"application/x-ndjson", b"application/ndjson", b"application/jsonl"):
        found = yield from _lines(body)
    else:
        # The array around the tasks adds a level that is not a task's own.
        array = Part.of(body, (yield from checking(body, MAX_DEPTH + 1)))
        if array.kind != b"[":
            raise BadBody(
                "The body of a batch must be a JSON array of tasks, or one per line as application/x-ndjson."
            )
        yield
        found = [part.payload() for part in (yield from array.elements(MAX_PER_BATCH))]
    if not 1 <= len(found) <= MAX_PER_BATCH:
        has = f"at least {MAX_PER_BATCH + 1}" if found else "none"
        raise BadBody(f"A batch must have 1 to {MAX_PER_BATCH} tasks; this one has {has}.")
    return found


_SPACE = re.compile(rb"[ \t\r\n]*+")


def _lines(body: bytes) -> Steps[list[Payload]]:
    found: list[Payload] = []
    at = read = 0
    while len(found) <= MAX_PER_BATCH:
        # White space and empty lines, then a line.
        start = _SPACE.match(body, at, at + BYTES_PER_TURN).end()  # type: ignore[union-attr]
        end = body.find(b"\n", start)
        line = body[start : end if end >= 0 else len(body)].rstrip(b" \t\r")
        if line and start < at + BYTES_PER_TURN:
            try:
                if len(line) > PIECE:
                    yield from checking(line)
                else:
                    check_json(line)
            except BadJson as error:
                raise BadJson(start + error.position, error.reason, error.code) from None
            found.append(line)
            start += len(line)
        elif start == len(body):
            break
        read += start - at
        at = start
        if read > BYTES_PER_TURN:
            read = 0
            yield
    return found


def members(body: bytes, *names: str) -> Steps[dict[str, Part]]:
    """The members of a body that is empty or a JSON object, with these names only."""
    if not body.strip(b" \t\r\n"):
        return {}
    whole = Part.of(body, (yield from checking(body)))
    if whole.kind != b"{":
        raise BadBody("The body of this request must be a JSON object.")
    yield
    return (yield from whole.members(*names))


def no_members(body: bytes, sentence: str) -> Steps[None]:
    """Check that a body is empty or an empty object; otherwise raise `BadOption` with ``sentence``."""
    try:
        yield from members(body)
    except BadOption:
        raise BadOption(sentence) from None


def lease_id(raw: bytes, what: str = "The last part of the path") -> bytes:
    """Check the form of a lease id; raise `BadOption` if it cannot be one. ``what`` says where it stands in the request."""
    if not _LEASE.fullmatch(raw):
        raise BadOption(f"{what} is not a lease id: use the lease that the pop returned.")
    return raw


# Limits of an error's fields, in bytes of UTF-8; a trace keeps its end, where the cause stands.
ERROR_FIELDS = {"type": 100, "message": 1000, "trace": -8000}
# The longest progress message, bytes of UTF-8.
PROGRESS_BYTES = 1000


def shortened(text: str, limit: int) -> str:
    """The first ``limit`` bytes of a text, or the last ``-limit`` if it is negative. A lone surrogate becomes a question mark."""
    # A character has at least one byte, so no more than ``limit`` characters can be needed.
    near = text[limit:] if limit < 0 else text[:limit]
    return cut_bytes(near.encode("utf-8", "replace"), limit).decode()


def fail_options(given: dict[str, Part]) -> Steps[FailOptions]:
    """``error``, ``delay`` and ``retry`` of a fail, checked. A field of the error that is too long is cut and sets ``truncated``."""
    delay = given["delay"].value("delay") if "delay" in given else None
    delay_ms = milliseconds(delay) if isinstance(delay, int | float) else None
    if delay is not None and (delay_ms is None or delay_ms > YEAR * 1000):
        raise BadOption(f"The field 'delay' must be a number of seconds from 0 to {YEAR}.")
    retry = given["retry"].value("retry") if "retry" in given else None
    if retry is not None and not isinstance(retry, bool):
        raise BadOption("The field 'retry' must be true or false.")
    error = (yield from _error(given["error"])) if "error" in given else None
    return FailOptions(error=error, delay=delay_ms, no_retry=retry is False)


def _error(part: Part) -> Steps[Error | None]:
    if _absent(part):
        return None
    try:
        if part.kind == b'"':
            fields = {"message": part}
        else:
            fields = yield from part.members(*ERROR_FIELDS)
        texts = [(k, _text(field, ERROR_FIELDS[k])) for k, field in fields.items() if not _absent(field)]
    except (BadOption, BadBody):
        raise BadOption(
            "The field 'error' must be an object with the strings type, message and trace."
        ) from None
    error = Error(
        **{name: text for name, (text, _) in texts if text}, truncated=any(is_cut for _, (_, is_cut) in texts)
    )
    return None if error == Error() else error


def _absent(part: Part) -> bool:
    return part.kind == b"n"


def _text(part: Part, limit: int) -> tuple[str, bool]:
    """A text cut like by `shortened`, and whether it was cut."""
    if part.kind != b'"':
        raise BadOption("A string was expected.")
    text, more = part.text(abs(limit), from_end=limit < 0)
    cut = shortened(text, limit)
    return cut, more or len(cut) < len(text)


def extend_options(given: dict[str, Part]) -> ExtendOptions:
    """The progress and the message of an extend; a message that is too long is cut."""
    done = given["progress"].value("progress") if "progress" in given else None
    if done is not None and (
        isinstance(done, bool) or not isinstance(done, int | float) or not -1e15 < done < 1e15
    ):
        raise BadOption("The field 'progress' must be a number.")
    message = given.get("message")
    if message is None or _absent(message):
        text = None
    elif message.kind != b'"':
        raise BadOption("The field 'message' must be a string.")
    else:
        text = _text(message, PROGRESS_BYTES)[0]
    return ExtendOptions(progress=None if done is None else float(done), message=text)


# A lease and its result or None; a lease and how its attempt failed.
Acked = tuple[bytes, Part | None]
Failed = tuple[bytes, FailOptions]


def settle_entries(body: bytes) -> Steps[tuple[list[Acked], list[Failed]]]:
    """The acks and the fails of a body. Raises `BadOption` and `BadBody`."""
    fields = yield from members(body, "acks", "fails")
    if any(part.kind != b"[" for part in fields.values()):
        raise BadOption("The fields 'acks' and 'fails' must be arrays.")
    acks: list[Acked] = []
    fails: list[Failed] = []
    entries: dict[str, list[Part]] = {"acks": [], "fails": []}
    for name, part in fields.items():
        yield
        if name == "acks" and (plain := _plain_leases(part)):
            acks = [(lease, None) for lease in plain]
        else:
            entries[name] = yield from part.elements(MAX_PER_BATCH)
    if len(acks) + sum(map(len, entries.values())) > MAX_PER_BATCH:
        raise BadBody(f"At most {MAX_PER_BATCH} leases can be settled at once.")
    read = 0
    for name, parts in entries.items():
        for part in parts:
            read += len(part)
            if read > BYTES_PER_TURN:
                read = 0
                yield
            if name == "acks":
                acks.append((yield from _ack_of(part)))
            else:
                fails.append((yield from _fail_of(part)))
    return acks, fails


def _plain_leases(part: Part) -> list[bytes]:
    """The leases of an array that holds nothing else, as nearly all do; empty for any other array."""
    # Cut one by one, a hundred leases cost as much as the rest of their batch.
    if len(part) > MAX_PLAIN_LEASES:
        return []
    raw = part.whole()
    return _QUOTED_LEASE.findall(raw) if _PLAIN_LEASES.fullmatch(raw) else []


def _ack_of(part: Part) -> Steps[Acked]:
    if part.kind == b'"':
        return _lease_of(part, "An element of 'acks'"), None
    fields = yield from _entry(
        part, 'An element of "acks" must be a lease or an object with lease and result.', "result"
    )
    result = fields.get("result")
    lease = _lease_of(fields["lease"], "A lease in 'acks'")
    return lease, None if result is None or _absent(result) else result


def _fail_of(part: Part) -> Steps[Failed]:
    wrong = 'An element of "fails" must be an object with lease, error, delay and retry.'
    fields = yield from _entry(part, wrong, "error", "delay", "retry")
    return _lease_of(fields["lease"], "A lease in 'fails'"), (yield from fail_options(fields))


def _entry(part: Part, wrong: str, *names: str) -> Steps[dict[str, Part]]:
    try:
        fields = yield from part.members("lease", *names)
    except (BadOption, BadBody):
        raise BadOption(wrong) from None
    if "lease" not in fields or fields["lease"].kind != b'"':
        raise BadOption(wrong)
    return fields


def _lease_of(part: Part, what: str) -> bytes:
    # Fast path: a batch has hundreds of leases, and nearly all come unchanged from a pop.
    plain = _QUOTED_LEASE.fullmatch(part.payload()) if len(part) <= MAX_LEASE_ID + 2 else None
    if plain is not None:
        return bytes(plain[1])
    return lease_id(_text(part, MAX_LEASE_ID + 1)[0].encode(), what)


def is_json(body: bytes) -> bool:
    """Whether these bytes are JSON."""
    try:
        check_json(body)
    except BadBody:
        return False
    return True


def encode_cursor(name: bytes) -> str:
    """A name as a cursor, in which every byte survives a query."""
    return quote_from_bytes(name, safe="")


def decode_cursor(cursor: str) -> bytes:
    """The name in a cursor that `encode_cursor` made."""
    return unquote_to_bytes(cursor)


def schedule(body: bytes) -> Steps[dict[str, Any]]:
    """The members of a schedule: its task as the original bytes, the others as values, because they are short."""
    fields: dict[str, Any] = {}
    names = ("cron", "timezone", "queue", "task", "options", "missed", "paused")
    for name, part in (yield from members(body, *names)).items():
        fields[name] = part.whole() if name == "task" else part.value(name)
    fields.setdefault("task", None)
    return fields


def schedule_options(given: Any) -> tuple[dict[str, str | int | float], PushOptions]:
    """The push options of a schedule, twice: as they are stored and shown, and parsed. Raises `BadOption`."""
    if not isinstance(given, dict):
        raise BadOption("The field 'options' must be an object.")
    if "at" in given:
        raise BadOption("The option 'at' cannot be used in a schedule.")
    kept: dict[str, str | int | float] = {}
    texts = {}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadOption(f"The option {name[:80]!r} must be a string or a number.")
        if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_INT:
            value = int(value)
        texts[name] = value.text if isinstance(value, ExactFloat) else str(value)
        # A number that few programs can hold is kept as it was written.
        plain = float(value) if isinstance(value, float) else value
        kept[name] = plain if isinstance(plain, str) or abs(plain) <= MAX_EXACT_INT else texts[name]
        try:
            f"{name}{texts[name]}".encode()
        except UnicodeEncodeError:
            raise BadOption(
                f"The option {name[:80]!r} contains a lone surrogate (half of a character)."
            ) from None
    parsed = options(urlencode(texts).encode(), SCHEDULED_OPTIONS)
    trace = {
        name.encode(): parsed.pop(name).encode() for name in ("traceparent", "tracestate") if name in parsed
    }
    if b"tracestate" in trace and b"traceparent" not in trace:
        raise BadOption("The option 'tracestate' needs a 'traceparent'.")
    return kept, push_options(parsed, trace.get, b"", b"") or PLAIN_PUSH

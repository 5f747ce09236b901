"""Converts between HTTP and the domain: names from paths, options from queries, answers, and the table from error to status."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from msgspec import Struct
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry import errors
from registry.duration import milliseconds
from registry.model.tokens import mask_tokens
from registry.queue.delivery import Delivery

log = Logger()

Reader = TypeVar("Reader", bound=Callable[[str, str], Any])

JSON = (b"Content-Type", b"application/json; charset=utf-8")
NO_STORE = (b"Cache-Control", b"no-store")
# Headers of every answer; nosniff keeps a browser from showing a payload as a page.
COMMON = (JSON, NO_STORE, (b"X-Content-Type-Options", b"nosniff"))


class WrongMethod(errors.RegistryError):
    """The path exists, but does not take this method."""

    code = "method_not_allowed"

    def __init__(self, allowed: Iterable[bytes]) -> None:
        # HEAD is left out: clients do not need to see it.
        self.allowed = ", ".join(sorted(method.decode() for method in allowed if method != b"HEAD"))
        super().__init__(f"This path allows only {self.allowed}.")


STATUS: tuple[tuple[type[errors.RegistryError], int], ...] = (
    (errors.BadName, 400),
    (errors.BadOption, 400),
    (errors.BadBody, 400),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (WrongMethod, 405),
    (errors.Conflict, 409),
    (errors.TooLarge, 413),
    (errors.KeyReused, 422),
    (errors.QueueFull, 429),
    (errors.Unavailable, 503),
)


class Answer(Struct, eq=False):
    """A response: ``status``, the body's bytes, headers beside the common ones.

    ``deliveries``: the tasks that this answer hands over, leased or not; the writer of the answer confirms them or puts them back.
    ``code``: of an error. ``media``: the Content-Type, b"" for JSON; with one, ``cache`` is the Cache-Control.
    """

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    deliveries: tuple[Delivery, ...] = ()
    code: str = ""
    media: bytes = b""
    cache: bytes = b"no-store"


def json_answer(status: int, value: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    """An answer whose body is this value."""
    return Answer(status, dumps(value), tuple(headers))


class Raw(bytes):
    """Bytes that are JSON already and go into an answer as they are."""


class ExactFloat(float):
    """A number of a request, written into answers exactly as it came: ``1e999`` is JSON, but no float can hold it."""

    text = ""

    @classmethod
    def read(cls, text: str) -> ExactFloat:
        """Parse a number; for ``json.loads`` as ``parse_float``."""
        number = cls(text)
        number.text = text
        return number

    def __repr__(self) -> str:
        return self.text


def dumps(value: Any) -> bytes:
    """Encode as JSON; `Raw` bytes are inserted untouched, other bytes are text in UTF-8."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, Mapping):
        return b"{" + b",".join(dumps(k) + b":" + dumps(v) for k, v in value.items()) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(dumps(v) for v in value) + b"]"
    if isinstance(value, ExactFloat):
        return value.text.encode()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return json.dumps(value).encode()


def cut_bytes(text: bytes, limit: int) -> bytes:
    """The first ``limit`` bytes of UTF-8 text, or the last ``-limit`` if it is negative; a character that is split is dropped."""
    if len(text) <= abs(limit):
        return text
    at = limit if limit >= 0 else len(text) + limit
    # A character has at most four bytes.
    for _ in range(3):
        if not 0 < at < len(text) or text[at] & 0xC0 != 0x80:
            break
        at += 1 if limit < 0 else -1
    return text[at:] if limit < 0 else text[:at]


def error_answer(status: int, code: str, sentence: str, retry_after: int = 0, **more: Any) -> Answer:
    """An error answer, ``retry_after`` in seconds; all errors have this shape."""
    headers = ((b"Retry-After", b"%d" % retry_after),) if retry_after else ()
    answer = json_answer(status, {"error": mask_tokens(sentence), "code": code, **more}, headers)
    answer.code = code
    return answer


def error_to_answer(error: errors.RegistryError) -> Answer:
    """The answer for an error of the domain."""
    status = next((s for kind, s in STATUS if isinstance(error, kind)), 500)
    retry_after = error.retry_after
    if retry_after:
        # Add jitter, so that clients refused together do not retry together.
        retry_after += random.randrange(0, 4)
    more = {"outcome": error.outcome} if isinstance(error, errors.Unavailable) else {}
    answer = error_answer(status, error.code, str(error), retry_after, **more)
    if isinstance(error, WrongMethod):
        answer.headers += ((b"Allow", error.allowed.encode()),)
    return answer


def failure_answer(failure: Failure) -> Answer:
    """The answer for a failure. An unexpected one is logged, and the answer carries its incident id."""
    error = failure.value
    if isinstance(error, errors.RegistryError):
        return error_to_answer(error)
    incident = os.urandom(6).hex()
    log.failure("incident {incident}: a request failed", failure, incident=incident)
    return error_answer(
        500,
        "internal_error",
        f"Internal error. See incident {incident} in the log.",
        incident=incident,
    )


def retry_after_seconds() -> int:
    """Seconds after which a poller should ask again when the daemon stops; random, because all pollers are answered at once."""
    return random.randint(1, 3)


def name_from(raw: bytes) -> bytes:
    """A queue's name from its path segment, percent-decoded once. Raises `BadName` for a malformed escape.

    `registry.queue.names` checks which names are valid.
    """
    if b"%" not in raw:
        return raw
    if re.search(rb"%(?![0-9A-Fa-f]{2})", raw):
        raise errors.BadName(
            "The queue name in the path contains a % that is not followed by two hexadecimal digits."
        )
    return unquote_to_bytes(raw)


def names_from(raw: bytes) -> list[bytes]:
    """The queues' names from a path segment that names several, with commas between them. Raises `BadName`."""
    return [name_from(part) for part in raw.split(b",")]


def option_pairs(query: bytes) -> list[tuple[str, str]]:
    """The options of a query, in order. Raises `BadOption` for one that is given twice or is not UTF-8."""
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    for part in query.split(b"&"):
        if not part:
            continue
        name, _, value = part.partition(b"=")
        raw = unquote_to_bytes(name.replace(b"+", b" "))
        key = raw.decode("utf-8", "backslashreplace")
        try:
            raw.decode()
            text = unquote_to_bytes(value.replace(b"+", b" ")).decode()
        except UnicodeDecodeError:
            raise errors.BadOption(f"The option {key[:80]!r} is not valid UTF-8.") from None
        if key in seen:
            raise errors.BadOption(f"The option {key[:80]!r} is given twice.")
        seen.add(key)
        pairs.append((key, text))
    return pairs


def options(query: bytes, readers: Mapping[str, Callable[[str, str], Any]]) -> dict[str, Any]:
    """The options of a query, each parsed by its reader ``(name, text) -> value``. An unknown one raises `BadOption`."""
    if not query:
        return {}
    values: dict[str, Any] = {}
    for key, text in option_pairs(query):
        read = readers.get(key)
        if read is None:
            takes = ", ".join(sorted(readers)) or "none"
            raise errors.BadOption(f"Unknown option {key[:80]!r}; this request accepts: {takes}.")
        values[key] = read(key, text)
    return values


def duration_ms(text: str) -> int | None:
    """A duration in a query as ms, or None if it is not one. A plus that was sent unescaped arrives as a blank and is restored."""
    return milliseconds(re.sub(r"(?<=[eE]) (?=\d)", "+", text))


# What each reader of an option accepts, as JSON Schema; the OpenAPI document shows it.
ACCEPTED: dict[Callable[[str, str], Any], dict[str, Any]] = {}


def accepts(reader: Reader, schema: dict[str, Any]) -> Reader:
    """Note what a reader accepts, and return the reader."""
    ACCEPTED[reader] = schema
    return reader


def seconds(low: float, high: float) -> Callable[[str, str], float]:
    """A reader of durations in seconds, whole ms, within bounds."""

    def read(name: str, text: str) -> float:
        ms = duration_ms(text)
        if ms is None or not low * 1000 <= ms <= high * 1000:
            raise errors.BadOption(
                f"The option {name!r} must be a number of seconds from {low:.15g} to {high:.15g}, not {text[:40]!r}."
            )
        return ms / 1000

    # The bounds hold for the rounded value, so less than a ms below the lower one is accepted.
    least = {"exclusiveMinimum": round(low - 0.001, 3)} if low else {"minimum": 0}
    return accepts(read, {"type": "number", **least, "maximum": high})


def whole(low: int, high: int) -> Callable[[str, str], int]:
    """A reader of whole numbers within bounds."""

    def read(name: str, text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 12 or not low <= int(text) <= high:
            raise errors.BadOption(
                f"The option {name!r} must be a whole number from {low} to {high}, not {text[:40]!r}."
            )
        return int(text)

    return accepts(read, {"type": "integer", "minimum": low, "maximum": high})


def one_of(*words: str) -> Callable[[str, str], str]:
    """A reader of one word out of a few."""

    def read(name: str, text: str) -> str:
        if text not in words:
            raise errors.BadOption(
                f"The option {name!r} must be one of {', '.join(words)}, not {text[:40]!r}."
            )
        return text

    return accepts(read, {"type": "string", "enum": list(words)})


def text(low: int, high: int) -> Callable[[str, str], str]:
    """A reader of text of that many bytes, without control characters."""

    def read(name: str, value: str) -> str:
        if not low <= len(value.encode()) <= high or any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise errors.BadOption(
                f"The option {name!r} must be text of {low} to {high} bytes without control characters."
            )
        return value

    # JSON Schema counts characters, not bytes.
    schema = {"type": "string", "maxLength": high, "pattern": r"^[^\x00-\x1f\x7f]*$"}
    return accepts(read, {**schema, "minLength": low} if low else schema)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def moment(name: str, value: str) -> float:
    """A reader of RFC 3339 times, as seconds since 1970, rounded up to the ms."""
    # A plus that was sent unescaped in the query arrives as a blank.
    value = re.sub(r" (\d\d:\d\d)\Z", r"+\1", value)
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", value):
            raise ValueError
        # Convert to UTC inside the try: an offset can move the last hours of the calendar past its end.
        at = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise errors.BadOption(
            f"The option {name!r} must be a time like 2026-01-31T12:00:00Z, not {value[:40]!r}."
        ) from None
    return -((_EPOCH - at) // _MS) / 1000


accepts(moment, {"type": "string", "format": "date-time"})

"""Between bytes and meaning: names from paths, options from queries, answers, and the one table from error to status."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.logger import Logger
from twisted.python.failure import Failure

from registry import errors
from registry.duration import milliseconds
from registry.queue.delivery import Delivery

log = Logger()

JSON = (b"Content-Type", b"application/json; charset=utf-8")
NO_STORE = (b"Cache-Control", b"no-store")
# What every answer carries; a browser must not take a payload for a page.
COMMON = (JSON, NO_STORE, (b"X-Content-Type-Options", b"nosniff"))


class WrongMethod(errors.RegistryError):
    """This path is there, but not for this method."""

    code = "method_not_allowed"

    def __init__(self, allowed: Iterable[bytes]) -> None:
        # HEAD is nothing that a client has to be told of.
        self.allowed = ", ".join(sorted(method.decode() for method in allowed if method != b"HEAD"))
        super().__init__(f"This path takes {self.allowed}.")


STATUS: tuple[tuple[type[errors.RegistryError], int], ...] = (
    (errors.BadName, 400),
    (errors.BadOption, 400),
    (errors.BadBody, 400),
    (errors.NotFound, 404),
    (WrongMethod, 405),
    (errors.Conflict, 409),
    (errors.TooLarge, 413),
    (errors.KeyReused, 422),
    (errors.QueueFull, 429),
    (errors.Unavailable, 503),
)


class Answer:
    """A response: ``status``, the body's bytes, headers beside the common ones.

    ``taken``: the tasks that this answer hands over without lease or under one; whoever writes it confirms or puts them back.
    """

    __slots__ = ("body", "headers", "status", "taken")

    def __init__(
        self,
        status: int,
        body: bytes,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        taken: tuple[Delivery, ...] = (),
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.taken = taken


def json_answer(status: int, value: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
    """An answer whose body is this value."""
    return Answer(status, dumps(value), tuple(headers))


class Raw(bytes):
    """Bytes that are JSON already and go into an answer as they are."""


class ExactFloat(float):
    """A number of a request that goes into an answer as it was written: ``1e999`` is JSON, and no float tells it."""

    text = ""

    @classmethod
    def read(cls, text: str) -> ExactFloat:
        """What ``json.loads`` takes as ``parse_float``."""
        number = cls(text)
        number.text = text
        return number

    def __repr__(self) -> str:
        return self.text


def dumps(value: Any) -> bytes:
    """JSON, in which `Raw` bytes stand untouched. Other bytes are text in UTF-8."""
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


def cut_bytes(text: bytes, most: int) -> bytes:
    """At most so many bytes from the beginning, or, where ``most`` is negative, from the end; of UTF-8 whole characters."""
    if len(text) <= abs(most):
        return text
    at = most if most >= 0 else len(text) + most
    # A character has four bytes at most.
    for _ in range(3):
        if not 0 < at < len(text) or text[at] & 0xC0 != 0x80:
            break
        at += 1 if most < 0 else -1
    return text[at:] if most < 0 else text[:at]


def error_answer(status: int, code: str, sentence: str, retry_after: int = 0, **more: Any) -> Answer:
    """The shape of every refusal."""
    headers = ((b"Retry-After", b"%d" % retry_after),) if retry_after else ()
    return json_answer(status, {"error": sentence, "code": code, **more}, headers)


def error_to_answer(error: errors.RegistryError) -> Answer:
    """What an error of the domain is on the wire."""
    status = next((s for kind, s in STATUS if isinstance(error, kind)), 500)
    retry_after = error.retry_after
    if retry_after:
        # Spread, so that those refused together do not come back together.
        retry_after += random.randrange(0, 4)
    more = {"outcome": error.outcome} if isinstance(error, errors.Unavailable) else {}
    answer = error_answer(status, error.code, str(error), retry_after, **more)
    if isinstance(error, WrongMethod):
        answer.headers += ((b"Allow", error.allowed.encode()),)
    return answer


def failure_answer(failure: Failure) -> Answer:
    """What a failure is on the wire. One that nobody foresaw is logged, and its incident id told."""
    error = failure.value
    if isinstance(error, errors.RegistryError):
        return error_to_answer(error)
    incident = os.urandom(6).hex()
    log.failure("incident {incident}: a request failed", failure, incident=incident)
    return error_answer(
        500,
        "internal_error",
        f"Something went wrong here; the log tells more under incident {incident}.",
        incident=incident,
    )


def retry_after_seconds() -> int:
    """Seconds after which a poller of a daemon that stops should ask again: spread, for they are all told at once."""
    return random.randint(1, 3)


def name_from(raw: bytes) -> bytes:
    """A queue's name from its segment of the path: percent-decoded once. The queues check what it may hold."""
    if b"%" not in raw:
        return raw
    if re.search(rb"%(?![0-9A-Fa-f]{2})", raw):
        raise errors.BadName(
            "A queue's name in the path has a % that is not followed by two hexadecimal digits."
        )
    return unquote_to_bytes(raw)


def option_pairs(query: bytes) -> list[tuple[str, str]]:
    """The options of a query, in order; each at most once."""
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
            raise errors.BadOption(f"The option {key[:80]!r} is not UTF-8.") from None
        if key in seen:
            raise errors.BadOption(f"The option {key[:80]!r} is given twice.")
        seen.add(key)
        pairs.append((key, text))
    return pairs


def options(query: bytes, known: Mapping[str, Callable[[str, str], Any]]) -> dict[str, Any]:
    """The options of a query, each read by its own reader ``(name, text) -> value``; an unknown one is `BadOption`."""
    if not query:
        return {}
    values: dict[str, Any] = {}
    for key, text in option_pairs(query):
        read = known.get(key)
        if read is None:
            takes = ", ".join(sorted(known)) or "none"
            raise errors.BadOption(f"There is no option {key[:80]!r} here; this request takes: {takes}.")
        values[key] = read(key, text)
    return values


def duration_ms(text: str) -> int | None:
    """The ms of a duration in a query, None for what is none. A plus that was not escaped has become a blank on its way."""
    return milliseconds(re.sub(r"(?<=[eE]) (?=\d)", "+", text))


def seconds(low: float, high: float) -> Callable[[str, str], float]:
    """A reader of durations in seconds, whole ms, within bounds."""

    def read(name: str, text: str) -> float:
        ms = duration_ms(text)
        if ms is None or not low * 1000 <= ms <= high * 1000:
            raise errors.BadOption(
                f"The option {name!r} is a number of seconds from {low:.15g} to {high:.15g}, not {text[:40]!r}."
            )
        return ms / 1000

    return read


def whole(low: int, high: int) -> Callable[[str, str], int]:
    """A reader of whole numbers within bounds."""

    def read(name: str, text: str) -> int:
        if not text.isascii() or not text.isdigit() or len(text) > 12 or not low <= int(text) <= high:
            raise errors.BadOption(
                f"The option {name!r} is a whole number from {low} to {high}, not {text[:40]!r}."
            )
        return int(text)

    return read


def one_of(*words: str) -> Callable[[str, str], str]:
    """A reader of one word out of a few."""

    def read(name: str, text: str) -> str:
        if text not in words:
            raise errors.BadOption(f"The option {name!r} is one of {', '.join(words)}, not {text[:40]!r}.")
        return text

    return read


def text(low: int, high: int) -> Callable[[str, str], str]:
    """A reader of text of so many bytes, without control characters."""

    def read(name: str, value: str) -> str:
        if not low <= len(value.encode()) <= high or any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise errors.BadOption(
                f"The option {name!r} is text of {low} to {high} bytes without control characters."
            )
        return value

    return read


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def moment(name: str, value: str) -> float:
    """A reader of RFC 3339 times, as seconds since 1970, rounded up to the ms."""
    # A plus that was not escaped has become a blank on its way through the query.
    value = re.sub(r" (\d\d:\d\d)\Z", r"+\1", value)
    try:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", value):
            raise ValueError
        # In UTC already here: a time zone may carry the last hours of the calendar past its end.
        at = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise errors.BadOption(
            f"The option {name!r} is a time like 2026-01-31T12:00:00Z, not {value[:40]!r}."
        ) from None
    return -((_EPOCH - at) // _MS) / 1000

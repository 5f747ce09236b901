"""Cuts JSON into members, elements and texts, each as its original bytes, without building the values inside.

A value may be many times as large in memory as on the wire: an empty list takes 56 bytes instead of two. So only values
that are known to be short are built. msgspec cuts a short one, one level at a time, and skips everything else. A long one is
cut one member or element at a time, with the help of the places at which it was divided when it was checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from registry.errors import BadBody, BadOption
from registry.http.codec import ExactFloat
from registry.http.json_check import PIECE, SPACE, Places
from registry.http.json_faults import STRING, escapes_before, not_in_escape
from registry.http.turns import Steps

# The longest value that is built, bytes; only texts may be longer.
MAX_BUILT = 16 * 1024
# The most bytes of one character: a surrogate pair as two escapes.
MAX_CHARACTER_BYTES = 12
# How many members or elements are cut in a step, and of how many bytes together.
CUTS_A_STEP = 256
# How often the few names of an object may be repeated, all together, in a body that is long.
MAX_MEMBERS = 100
# Characters of a name that are looked at; all names are shorter.
MAX_NAME = 256

_UNKNOWN = "unknown field `"


# Bytes, or a view of a part of the body.
Payload = bytes | memoryview


class Part:
    """A JSON value, checked but not built. ``raw`` has no white space around it.

    ``places``: see `registry.http.json_check.checking`; ``at``: where in the body it begins; ``depth``: how many containers it is in.
    """

    __slots__ = ("_at", "_depth", "_places", "_raw")

    def __init__(
        self, raw: Payload | msgspec.Raw, places: Places | None = None, at: int = 0, depth: int = 0
    ) -> None:
        self._raw = raw
        self._places = places
        self._at = at
        self._depth = depth

    @classmethod
    def of(cls, body: bytes, places: Places | None) -> Part:
        """A whole body; ``places`` is what `registry.http.json_check.checking` returned for it."""
        at = _skip_space(body, 0)
        end = len(body)
        while body[end - 1] in SPACE:
            end -= len(window := body[max(at, end - PIECE) : end]) - len(window.rstrip(SPACE))
        return cls(memoryview(body)[at:end], places, at)

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def kind(self) -> bytes:
        """The first byte, which shows whether this is an object, an array, a text or something else."""
        return bytes(memoryview(self._raw)[:1])

    def whole(self) -> bytes:
        """The original bytes."""
        return bytes(self._raw)

    def payload(self) -> Payload:
        """The original bytes, not copied."""
        return memoryview(self._raw)

    def members(self, *names: str) -> Steps[dict[str, Part]]:
        """The members of an object by name; of two with the same name, the last counts.

        Raises `BadOption` for a name that is not in ``names``, and `BadBody` for what is not an object.
        """
        if self.kind != b"{":
            raise BadBody("The body of this request must be a JSON object.")
        if self._places is not None:
            return (yield from self._members(self._places, names))
        try:
            found = _object(names)(self._raw)
        except msgspec.ValidationError as error:
            message = str(error)
            at = message.find(_UNKNOWN) + len(_UNKNOWN)
            raise _unknown(message[at:].rpartition("`")[0], names) from None
        parts = zip(names, msgspec.structs.astuple(found), strict=True)
        return {name: Part(raw) for name, raw in parts if raw is not None}

    def elements(self, limit: int) -> Steps[list[Part]]:
        """The first elements of an array, at most ``limit`` + 1 of them."""
        if self._places is not None:
            return (yield from self._elements(self._places, limit))
        found = []
        for raw in msgspec.structs.astuple(_array(limit + 1)(self._raw)):
            if raw is None:
                break
            found.append(Part(raw))
        return found

    def _members(self, places: Places, names: tuple[str, ...]) -> Steps[dict[str, Part]]:
        body, depth = places.body, self._depth + 1
        found: dict[str, Part] = {}
        at = _skip_space(body, self._at + 1)
        count, stop = 0, at + PIECE
        while body[at] != ord("}"):
            # A name that is longer than this is not in ``names``.
            key = STRING.match(body, at, at + PIECE)
            name = Part(memoryview(body)[at : key.end() if key else at + PIECE]).text(MAX_NAME)[0]
            if key is None or name not in names:
                raise _unknown(name, names)
            at = _skip_space(body, _skip_space(body, key.end()) + 1)
            end = places.end_of(at, depth)
            found[name] = Part(memoryview(body)[at:end], places, at, depth)
            at = _after_comma(body, end)
            count += 1
            if count > MAX_MEMBERS:
                raise BadBody(f"An object in the body of this request has more than {MAX_MEMBERS} members.")
            if count % CUTS_A_STEP == 0 or at > stop:
                stop = at + PIECE
                yield
        return found

    def _elements(self, places: Places, limit: int) -> Steps[list[Part]]:
        body, depth = places.body, self._depth + 1
        found: list[Part] = []
        at = _skip_space(body, self._at + 1)
        stop = at + PIECE
        while body[at] != ord("]") and len(found) <= limit:
            end = places.end_of(at, depth)
            found.append(Part(memoryview(body)[at:end], places, at, depth))
            at = _after_comma(body, end)
            if len(found) % CUTS_A_STEP == 0 or at > stop:
                stop = at + PIECE
                yield
        return found

    def value(self, name: str) -> Any:
        """The value as a Python object, floats as `ExactFloat`. Raises `BadOption`, naming the field ``name``, if it is too long."""
        if len(self) > MAX_BUILT:
            raise BadOption(f"The field {name!r} is larger than the limit of {MAX_BUILT} bytes.")
        return load(self.whole())

    def text(self, limit: int, from_end: bool = False) -> tuple[str, bool]:
        """The first ``limit`` characters of a text, or with ``from_end`` the last, and whether there are more."""
        bound = MAX_CHARACTER_BYTES * (limit + 2)
        raw = memoryview(self._raw)
        if len(raw) <= bound:
            part = bytes(raw)
        elif from_end:
            start = len(raw) - bound
            before = bytes(raw[start - 6 : start + 6])
            if escapes_before(raw, start):
                start += 1
            else:
                # Six bytes before, an escape of six bytes may begin.
                at = before.rfind(b"\\", 1, 6)
                if at >= 0 and before[at + 1 : at + 2] == b"u" and escapes_before(raw, start - 6 + at + 1):
                    start += at
            part = b'"' + bytes(raw[start:])
        else:
            part = bytes(raw[: bound + 6])
            # Without an escape that is cut off by the end.
            part = part[: not_in_escape(part, bound)] + b'"'
        text: str = json.loads(part.decode("utf-8", "ignore"))
        cut = text[-limit:] if from_end else text[:limit]
        return cut, len(text) > limit


def _unknown(name: str, names: tuple[str, ...]) -> BadOption:
    return BadOption(f"Unknown field {name[:80]!r}; this request accepts: {', '.join(names)}.")


def _skip_space(body: bytes, at: int) -> int:
    while body[at] in SPACE:
        window = body[at : at + PIECE]
        at += len(window) - len(window.lstrip(SPACE))
    return at


def _after_comma(body: bytes, at: int) -> int:
    """The next member or element behind the one that ends at ``at``, or the closing bracket."""
    at = _skip_space(body, at)
    return _skip_space(body, at + 1) if body[at] == ord(",") else at


@lru_cache(maxsize=32)
def _object(names: tuple[str, ...]) -> Callable[[Any], Any]:
    fields = [(name, msgspec.Raw, None) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("Object", fields, forbid_unknown_fields=True)).decode


@lru_cache(maxsize=8)
def _array(limit: int) -> Callable[[Any], Any]:
    # A list would be built whole before it could be counted; a struct has only so many fields, and skips further elements.
    fields = [(f"element{n}", msgspec.Raw, None) for n in range(limit)]
    return msgspec.json.Decoder(msgspec.defstruct("Array", fields, array_like=True)).decode


def load(raw: bytes) -> Any:
    """Parse a short JSON text."""
    return json.loads(raw, parse_int=_number, parse_float=ExactFloat.read)


def _number(digits: str) -> int | float:
    # The interpreter refuses to read an integer of thousands of digits, and does not keep the sign of -0.
    return int(digits) if len(digits) < 300 and digits != "-0" else ExactFloat.read(digits)

"""Cuts JSON into its members, elements and texts, each as the bytes that came, and builds nothing of what is inside.

What a client sends may be many times as large in memory as on the wire: an empty list is two bytes there and 56 here. So
a body is cut a level at a time by msgspec, which skips what it is not asked for, and only what is known to be short is built.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from registry.errors import BadBody, BadOption
from registry.http.codec import ExactFloat
from registry.http.json_check import mark, not_in_escape, unmark

# Bytes of a value that is built whole; only texts may be longer.
MAX_BUILT = 16 * 1024
# A character takes at most so many bytes: two escapes of a surrogate.
MOST_A_CHARACTER = 12

_UNKNOWN = "unknown field `"


# Bytes that are a part of others.
Payload = bytes | memoryview


class Part:
    """A JSON value, checked and not built. ``raw`` has no white space around it; ``marked``: it was put through `mark`."""

    __slots__ = ("_marked", "_raw")

    def __init__(self, raw: bytes | msgspec.Raw, marked: bool) -> None:
        self._raw = raw
        self._marked = marked

    @classmethod
    def of(cls, body: bytes, checked: bytes) -> Part:
        """The whole of a body, and what `registry.http.json_check.checking` made of it."""
        return cls(checked.strip(b" \t\r\n"), checked is not body)

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def kind(self) -> bytes:
        """The first byte: it tells objects, arrays, texts and the others from each other."""
        return bytes(memoryview(self._raw)[:1])

    def whole(self) -> bytes:
        """The bytes that came."""
        raw = bytes(self._raw)
        return unmark(raw) if self._marked else raw

    def payload(self) -> Payload:
        """The same, and not copied where that can be."""
        return self.whole() if self._marked else memoryview(self._raw)

    def members(self, *names: str) -> dict[str, Part]:
        """The members of an object by name, of which only these may be there. The last of two with one name counts."""
        try:
            found = _object(names)(self._raw)
        except msgspec.ValidationError as error:
            at = str(error).find(_UNKNOWN)
            if at < 0:
                raise BadBody("The body of this request is a JSON object.") from None
            unknown = str(error)[at + len(_UNKNOWN) :].rpartition("`")[0]
        except UnicodeDecodeError as error:
            # A name with marks in it, which is none of these.
            unknown = unmark(error.object).decode("utf-8", "backslashreplace")
        else:
            parts = zip(names, msgspec.structs.astuple(found), strict=True)
            return {name: Part(raw, self._marked) for name, raw in parts if raw is not None}
        raise BadOption(f"There is no field {unknown[:80]!r} here; this request takes: {', '.join(names)}.")

    def elements(self, most: int) -> list[Part]:
        """The first elements of an array, one more than ``most`` of them at the most."""
        found = []
        for raw in msgspec.structs.astuple(_array(most + 1)(self._raw)):
            if raw is None:
                break
            found.append(Part(raw, self._marked))
        return found

    def value(self, name: str) -> Any:
        """What it is in Python; ``name`` is its field's. Floats are `ExactFloat`."""
        if len(self) > MAX_BUILT:
            raise BadOption(f"The field {name!r} is over the limit of {MAX_BUILT} bytes.")
        return load(self.whole())

    def text(self, most: int, from_end: bool = False) -> tuple[str, bool]:
        """The first or the last characters of a text, ``most`` of them, and whether there are more."""
        bound = MOST_A_CHARACTER * (most + 2)
        if len(self) <= bound:
            raw = self.whole()
        elif from_end:
            raw = b'"' + self._end(bound)
        else:
            raw = self._start(bound) + b'"'
        text: str = json.loads(raw.decode("utf-8", "ignore"))
        cut = text[-most:] if from_end else text[:most]
        return cut, len(text) > most

    def _start(self, size: int) -> bytes:
        raw = bytes(memoryview(self._raw)[:size])
        if not self._marked:
            raw = mark(raw)
        # An escape that goes on behind the end is left out.
        last = max(raw.rfind(first, size - 6) for first in (b"\\", b"\xfd", b"\xfe"))
        if last >= 0 and size < last + (6 if raw[last + 1 : last + 2] == b"u" else 2):
            raw = raw[:last]
        return unmark(raw)

    def _end(self, size: int) -> bytes:
        raw = memoryview(self._raw)
        start = len(raw) - size
        if self._marked:
            return unmark(bytes(raw[not_in_escape(raw, start) :]))
        before = bytes(raw[:start])
        if _ends_in_escape(before):
            start -= 1
        at = before.rfind(b"\\", start - 5, start)
        if at >= 0 and raw[at + 1] == ord("u") and _ends_in_escape(before[: at + 1]):
            start = at + 6
        return bytes(raw[start:])


def _ends_in_escape(raw: bytes) -> bool:
    # The last of an odd number of backslashes is not escaped.
    return bool((len(raw) - len(raw.rstrip(b"\\"))) & 1)


@lru_cache(maxsize=32)
def _object(names: tuple[str, ...]) -> Callable[[Any], Any]:
    fields = [(name, msgspec.Raw, None) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("Object", fields, forbid_unknown_fields=True)).decode


@lru_cache(maxsize=8)
def _array(most: int) -> Callable[[Any], Any]:
    # A list would be built whole before anybody could count it; the fields of this end, and what follows is skipped.
    fields = [(f"element{n}", msgspec.Raw, None) for n in range(most)]
    return msgspec.json.Decoder(msgspec.defstruct("Array", fields, array_like=True)).decode


def load(raw: bytes) -> Any:
    """A short JSON text, built."""
    return json.loads(raw, parse_int=_number, parse_float=ExactFloat.read)


def _number(digits: str) -> int | float:
    # The interpreter refuses to read an integer of thousands of digits, and does not keep the sign of -0.
    return int(digits) if len(digits) < 300 and digits != "-0" else ExactFloat.read(digits)

"""Cuts JSON into members, elements and texts, each as its original bytes, without building the values inside.

A value may be many times as large in memory as on the wire: an empty list takes 56 bytes instead of two. So msgspec cuts
a body one level at a time and skips everything else, and only values that are known to be short are built.
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

# The longest value that is built, bytes; only texts may be longer.
MAX_BUILT = 16 * 1024
# The most bytes of one character: a surrogate pair as two escapes.
MAX_CHARACTER_BYTES = 12

_UNKNOWN = "unknown field `"


# Bytes, or a view of a part of the body.
Payload = bytes | memoryview


class Part:
    """A JSON value, checked but not built. ``raw`` has no white space around it; ``marked``: `mark` was applied to it."""

    __slots__ = ("_marked", "_raw")

    def __init__(self, raw: bytes | msgspec.Raw, marked: bool) -> None:
        self._raw = raw
        self._marked = marked

    @classmethod
    def of(cls, body: bytes, checked: bytes) -> Part:
        """A whole body; ``checked`` is what `registry.http.json_check.checking` returned for it."""
        return cls(checked.strip(b" \t\r\n"), checked is not body)

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def kind(self) -> bytes:
        """The first byte, which shows whether this is an object, an array, a text or something else."""
        return bytes(memoryview(self._raw)[:1])

    def whole(self) -> bytes:
        """The original bytes."""
        raw = bytes(self._raw)
        return unmark(raw) if self._marked else raw

    def payload(self) -> Payload:
        """The original bytes, not copied if possible."""
        return self.whole() if self._marked else memoryview(self._raw)

    def members(self, *names: str) -> dict[str, Part]:
        """The members of an object by name; of two with the same name, the last counts.

        Raises `BadOption` for a name that is not in ``names``, and `BadBody` for what is not an object.
        """
        try:
            found = _object(names)(self._raw)
        except msgspec.ValidationError as error:
            at = str(error).find(_UNKNOWN)
            if at < 0:
                raise BadBody("The body of this request must be a JSON object.") from None
            unknown = str(error)[at + len(_UNKNOWN) :].rpartition("`")[0]
        except UnicodeDecodeError as error:
            # A name that contains marks is not in ``names``.
            unknown = unmark(error.object).decode("utf-8", "backslashreplace")
        else:
            parts = zip(names, msgspec.structs.astuple(found), strict=True)
            return {name: Part(raw, self._marked) for name, raw in parts if raw is not None}
        raise BadOption(f"Unknown field {unknown[:80]!r}; this request accepts: {', '.join(names)}.")

    def elements(self, most: int) -> list[Part]:
        """The first elements of an array, at most ``most`` + 1 of them."""
        found = []
        for raw in msgspec.structs.astuple(_array(most + 1)(self._raw)):
            if raw is None:
                break
            found.append(Part(raw, self._marked))
        return found

    def value(self, name: str) -> Any:
        """The value as a Python object, floats as `ExactFloat`. Raises `BadOption`, naming the field ``name``, if it is too long."""
        if len(self) > MAX_BUILT:
            raise BadOption(f"The field {name!r} is larger than the limit of {MAX_BUILT} bytes.")
        return load(self.whole())

    def text(self, most: int, from_end: bool = False) -> tuple[str, bool]:
        """The first ``most`` characters of a text, or with ``from_end`` the last, and whether there are more."""
        bound = MAX_CHARACTER_BYTES * (most + 2)
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
        # Drop an escape that is cut off by the end.
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
    # The last of an odd number of backslashes begins an escape.
    return bool((len(raw) - len(raw.rstrip(b"\\"))) & 1)


@lru_cache(maxsize=32)
def _object(names: tuple[str, ...]) -> Callable[[Any], Any]:
    fields = [(name, msgspec.Raw, None) for name in names]
    return msgspec.json.Decoder(msgspec.defstruct("Object", fields, forbid_unknown_fields=True)).decode


@lru_cache(maxsize=8)
def _array(most: int) -> Callable[[Any], Any]:
    # A list would be built whole before it could be counted; a struct has only so many fields, and skips further elements.
    fields = [(f"element{n}", msgspec.Raw, None) for n in range(most)]
    return msgspec.json.Decoder(msgspec.defstruct("Array", fields, array_like=True)).decode


def load(raw: bytes) -> Any:
    """Parse a short JSON text."""
    return json.loads(raw, parse_int=_number, parse_float=ExactFloat.read)


def _number(digits: str) -> int | float:
    # The interpreter refuses to read an integer of thousands of digits, and does not keep the sign of -0.
    return int(digits) if len(digits) < 300 and digits != "-0" else ExactFloat.read(digits)

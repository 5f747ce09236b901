"""Masks the numbers and the quoted parts of error messages, so that the same error of different tasks is the same text."""

from __future__ import annotations

import re
from functools import lru_cache

# How much of a message is compared, and how much of the masked one is kept, characters.
COMPARED, KEPT = 1000, 300
# They replace a number, and the text between quotes.
NUMBER, QUOTED = "#", "…"

_QUOTES = (('"', '"'), ("'", "'"), ("`", "`"), ("“", "”"), ("‘", "’"), ("„", "“"), ("«", "»"))
# An apostrophe within a word opens and closes nothing, as in: can't open 'x'.
_QUOTED = "|".join(
    rf"(?<!\w){a}(?:[^{b}\\\n]++|\\.)*+{b}(?!\w)" if a == "'" else rf"{a}(?:[^{b}\\\n]++|\\.)*+{b}"
    for a, b in _QUOTES
)
# An id in hexadecimal digits, with or without hyphens, has a digit; a word of such letters is no id.
_HEX = "|".join(
    (
        r"\b0[xX][0-9a-fA-F]+\b",
        r"\b(?=[a-fA-F-]{0,35}\d)[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b",
        r"\b(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}\b",
    )
)
_NUMBER = r"(?:(?<![\w.])[-+])?\d+(?:[.,:_]\d+)*(?:[eE][-+]?\d+)?"
_MASKED = re.compile(f"({_QUOTED})|{_HEX}|{_NUMBER}")


def _replace(match: re.Match[str]) -> str:
    quoted: str | None = match[1]
    return NUMBER if quoted is None else f"{quoted[0]}{QUOTED}{quoted[-1]}"


@lru_cache(maxsize=4096)
def mask(message: str) -> str:
    """The message with ``#`` for each number and id, and ``…`` for what stands in quotes; cut if it is long."""
    masked = _MASKED.sub(_replace, message[:COMPARED])
    return masked if len(masked) <= KEPT else masked[:KEPT] + QUOTED

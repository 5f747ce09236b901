"""Text from elsewhere, made safe to show: names, payloads and error texts are written by strangers.

A terminal obeys control characters: an escape sequence in a payload could hide a line, rename the window or type for the user.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

# C0 and C1 controls, DEL, line and paragraph separators, what changes the direction of text, and halves of characters.
_UNSAFE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
_HOSTILE = re.compile(f"[{_UNSAFE}]")
# In JSON text, controls below 0x20 can only be white space between values.
_HOSTILE_IN_JSON = re.compile(f"[{_UNSAFE}]".replace("\x00-\x1f", ""))
_NEWLINES = re.compile("[\t\r\n]+")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def clean(text: object) -> str:
    r"""The text on one line, with each control character spelt out: ``\x1b`` for an escape."""
    return _HOSTILE.sub(_escaped, str(text))


def clean_json(text: str, lines: bool = False) -> str:
    r"""JSON text that means the same: nothing is decoded, control characters become ``\u009b``. On one line, unless ``lines``."""
    text = text.replace("\r", "") if lines else _NEWLINES.sub("", text)
    return _HOSTILE_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def compact(value: Any, limit: int = 0) -> str:
    """A decoded JSON value as text on one line, cut to ``limit`` characters (0: whole)."""
    text = clean_json(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))
    return cut(text, limit)


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters of a text, the last one … if it was longer (0: whole)."""
    return text if not limit or len(text) <= limit else f"{text[: limit - 1]}…"


def moment(text: str | None) -> str:
    """A time of the API (RFC 3339) as a person reads it, in UTC, to the second; "" for none."""
    if not text:
        return ""
    return clean(text).replace("T", " ").partition(".")[0].removesuffix("Z")


def duration(seconds: float | None) -> str:
    """A duration in the two largest units: ``4 s``, ``3 min 20 s``, ``2 d 5 h``; "" for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds % 1 else f"{seconds:.0f} s"
    left, parts = round(seconds), list[str]()
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        if left >= length or (unit == "s" and not parts):
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts[:2])


def since(text: str | None) -> str:
    """How long ago a time of the API was."""
    if not text:
        return ""
    try:
        then = datetime.fromisoformat(text)
    except ValueError:
        return clean(text)
    return duration(max(0.0, (datetime.now(UTC) - then).total_seconds()))


def count(number: int, one: str, many: str = "") -> str:
    """``1 task``, ``1,200 tasks``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"

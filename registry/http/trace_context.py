"""The headers ``traceparent`` and ``tracestate`` (W3C Trace Context), which travel with a task unchanged.

As the recommendation demands, a malformed ``traceparent`` is ignored together with its ``tracestate``, and a malformed
``tracestate`` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from registry.errors import BadOption
from registry.http.codec import accepts

# The longest that is kept, bytes. A longer tracestate loses entries from its end, the oldest ones.
LONGEST = 512
MAX_ENTRIES = 32
# Version 00, and later ones, which may have more fields. Version ff does not exist, and no id has only zeros.
_IDS = r"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
TRACEPARENT = rf"00{_IDS}|(?!00|ff)[0-9a-f]{{2}}{_IDS}(?:-[\x20-\x7e]*)?"
_ENTRY = r"[ \t]*(?:[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256})?[ \t]*"
_is_traceparent = re.compile(TRACEPARENT).fullmatch
_is_entry = re.compile(_ENTRY).fullmatch


def traceparent_of(value: bytes | None) -> str | None:
    """The header ``traceparent``, None if it is missing or malformed."""
    text = "" if value is None else value.decode("latin-1")
    return text if len(text) <= LONGEST and _is_traceparent(text) else None


def tracestate_of(value: bytes | None) -> str | None:
    """The header ``tracestate``, None if it is missing, empty or malformed; cut if it is long."""
    text = "" if value is None else value.decode("latin-1").strip(" \t")
    if len(text) > LONGEST:
        text = text[: LONGEST + 1].rpartition(",")[0]
    entries = text.split(",")
    if not text.strip(" \t,") or len(entries) > MAX_ENTRIES or not all(map(_is_entry, entries)):
        return None
    return text


def trace_of(header: Callable[[bytes], bytes | None]) -> tuple[str | None, str | None]:
    """The two headers of a request, as they travel with its task."""
    parent = traceparent_of(header(b"traceparent"))
    return parent, None if parent is None else tracestate_of(header(b"tracestate"))


def option_traceparent(name: str, value: str) -> str:
    """A reader of the option of a schedule."""
    if traceparent_of(value.encode("utf-8", "replace")) is None:
        raise BadOption(f"The option {name!r} is not a traceparent of W3C Trace Context: {value[:80]!r}.")
    return value


def option_tracestate(name: str, value: str) -> str:
    """A reader of the option of a schedule."""
    if len(value) > LONGEST or tracestate_of(value.encode("utf-8", "replace")) is None:
        raise BadOption(f"The option {name!r} is not a tracestate of W3C Trace Context: {value[:80]!r}.")
    return value


accepts(
    option_traceparent,
    {"type": "string", "maxLength": LONGEST, "pattern": rf"^(?:{TRACEPARENT})$"},
)
accepts(
    option_tracestate,
    {
        "type": "string",
        "maxLength": LONGEST,
        "pattern": r"^[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]$",
    },
)

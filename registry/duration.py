"""Parse durations: seconds as any decimal number that programs print, rounded up to whole milliseconds."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

# Larger than every limit that durations are checked against, ms.
FOREVER_MS = 10**15

# No 64-bit number is printed with a longer exponent, and no mantissa in a request is long enough to offset one.
MAX_EXPONENT_DIGITS = 9
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_NUMBER = re.compile(NUMBER, re.ASCII)


def milliseconds(seconds: str | float) -> int | None:
    """Seconds as whole ms, at most `FOREVER_MS`. None for anything else: a sign, ``nan``, ``inf``, an underscore.

    A float is read by its ``repr``: 0.1 is 100 ms, although its binary value is slightly more.
    """
    text = seconds if isinstance(seconds, str) else repr(seconds)
    if len(text) < 12 and text.isascii() and text.isdigit():
        return int(text) * 1000
    if not _NUMBER.fullmatch(text):
        return None
    mantissa, _, exponent = text.lower().partition("e")
    if not mantissa.strip("0."):
        return 0
    negative, power = exponent.startswith("-"), exponent.lstrip("+-").lstrip("0")
    if len(power) > MAX_EXPONENT_DIGITS:
        return 1 if negative else FOREVER_MS
    shifted = 3 + (-int(power or 0) if negative else int(power or 0))
    value = Decimal(f"{mantissa}e{shifted}")
    if value >= FOREVER_MS:
        return FOREVER_MS
    return int(value.to_integral_value(rounding=ROUND_CEILING))

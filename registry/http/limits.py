"""The limits of a connection, and the refusals for clients that exceed them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from registry.errors import Overloaded
from registry.http.validation import Refusal

# The longest request line or header, bytes; all headers together, bytes; and the most headers.
MAX_LINE = 16_384
MAX_HEADERS_SIZE = 32_768
MAX_HEADERS = 500
# Bytes that may wait behind the current request; above that, reading stops.
MAX_PIPELINED = 65_536
# A connection yields to the others after this many requests or seconds.
MAX_REQUESTS_PER_TURN = 8
SECONDS_PER_TURN = 0.01
# Bytes of answers not yet sent to their clients, over all connections.
MAX_UNSENT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one connection; seconds, bytes, bytes per second."""

    idle_seconds: float = 75.0  # longer than the 60 s after which load balancers drop an idle connection
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    body_rate: float = 65536.0
    linger_seconds: float = 5.0
    linger_bytes: int = 16 * 1024 * 1024
    drain_seconds: int = 20
    abort_seconds: float = 15.0
    goodbye_seconds: float = 1.0
    tick_seconds: float = 1.0  # how often deadlines are checked


def line_too_long() -> Refusal:
    return Refusal(414, "target_too_long", f"The request line is longer than {MAX_LINE} bytes.")


def headers_too_large() -> Refusal:
    return Refusal(431, "headers_too_large", f"The headers are larger than {MAX_HEADERS_SIZE} bytes.")


def header_too_long() -> Refusal:
    return Refusal(431, "headers_too_large", f"A header is longer than {MAX_LINE} bytes.")


def too_many_headers() -> Refusal:
    return Refusal(431, "headers_too_large", f"There are more than {MAX_HEADERS} headers.")


def too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body is larger than the limit of {limit} bytes.")


def too_many_answers() -> Overloaded:
    return Overloaded("Too many answers are waiting for their clients to read them; try again in a moment.")


def too_many_bodies() -> Refusal:
    return Refusal(
        503,
        "overloaded",
        "Too many large request bodies are being received; try again in a moment.",
        [(b"Retry-After", b"%d" % random.randint(1, 5))],
        outcome="not_applied",
    )

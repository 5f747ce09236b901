"""Every bound of a connection, and what a client is told that exceeds it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from registry.errors import Overloaded
from registry.http.validation import Refusal

# Bytes of a request line, of one header, and of all headers; and how many headers.
MAX_LINE = 16_384
MAX_HEADERS_SIZE = 32_768
MAX_HEADERS = 500
# Bytes that may wait behind a request under way; above it nothing is read.
MAX_PIPELINED = 65_536
# Requests of one connection, and seconds, before the others' turn.
MAX_A_TURN = 8
SECONDS_A_TURN = 0.01
# Of answers that their clients have not taken yet, all connections together, bytes.
MAX_UNSENT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection; seconds, bytes, bytes per second."""

    idle_seconds: float = 75.0  # longer than the 60 s after which load balancers let a connection go
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    body_rate: float = 65536.0
    linger_seconds: float = 5.0
    linger_bytes: int = 16 * 1024 * 1024
    drain_seconds: int = 20
    abort_seconds: float = 15.0
    goodbye_seconds: float = 1.0
    tick_seconds: float = 1.0  # how often deadlines are looked at


def line_too_long() -> Refusal:
    return Refusal(414, "target_too_long", f"The request line is over {MAX_LINE} bytes.")


def headers_too_large() -> Refusal:
    return Refusal(431, "headers_too_large", f"The headers are over {MAX_HEADERS_SIZE} bytes.")


def header_too_long() -> Refusal:
    return Refusal(431, "headers_too_large", f"A header is over {MAX_LINE} bytes.")


def too_many_headers() -> Refusal:
    return Refusal(431, "headers_too_large", f"There are more than {MAX_HEADERS} headers.")


def too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body is over the limit of {limit} bytes.")


def too_many_answers() -> Overloaded:
    return Overloaded("Too many answers wait for their clients to read them; try again.")


def too_many_bodies() -> Refusal:
    return Refusal(
        503,
        "overloaded",
        "Too many large bodies are on their way; try again.",
        [(b"Retry-After", b"%d" % random.randint(1, 5))],
        outcome="not_applied",
    )

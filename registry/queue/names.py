"""Names of queues and ids of tasks and leases."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from functools import lru_cache

from registry.errors import BadName

MAX_NAME_BYTES = 255
# Matches most names and no forbidden one, so one test is enough for them.
_PLAIN = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_:.@+-]{0,254}")
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f/{}]")


@lru_cache(maxsize=4096)
def check_name(name: bytes) -> bytes:
    """Return the name, or raise `BadName`. UTF-8, 1 to 255 bytes, no control characters, ``/``, ``{``, ``}``, not ``.`` or ``..``.

    With a brace, a name could look like one of the registry's own keys.
    """
    if _PLAIN.fullmatch(name):
        return name
    if not 1 <= len(name) <= MAX_NAME_BYTES:
        raise BadName(f"A queue name must have 1 to {MAX_NAME_BYTES} bytes; this one has {len(name)}.")
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as e:
        raise BadName(f"A queue name must be UTF-8; this one is invalid at byte {e.start}.") from None
    if _FORBIDDEN.search(text):
        raise BadName("A queue name cannot contain control characters or any of / { }.")
    if text in (".", ".."):
        raise BadName('A queue cannot be named "." or "..".')
    return name


class Ids:
    """Makes ids of letters and digits that are unique across processes and ordered by time.

    ``tail()`` returns the last 10 characters of a new task's id: a counter with a random start. ``nonce()`` returns 128 random bits
    in hexadecimal; the id of a lease is the id of its task and a nonce.

    A task's id has 24 characters. Its head is made in Redis, from the time of the push: 11 hexadecimal digits of ms and
    3 of µs.
    """

    def __init__(self) -> None:
        # A random start in the lower half of the range: the upper half is left to count.
        count = itertools.count(int.from_bytes(os.urandom(5), "big") >> 1)
        self.tail: Callable[[], bytes] = map(b"%010x".__mod__, count).__next__
        self.nonce: Callable[[], bytes] = itertools.chain.from_iterable(iter(_nonces, None)).__next__


def _nonces() -> list[bytes]:
    # One call to the operating system makes 256 nonces.
    random = os.urandom(4096).hex().encode()
    return [random[at : at + 32] for at in range(0, len(random), 32)]


def is_foreign(task_id: bytes) -> bool:
    """Whether another program pushed this task, so that its payload may not be JSON."""
    return task_id[11:12] == b"A"


def pushed_at_ms(task_id: bytes) -> int | None:
    """When a task was pushed, in ms, from its id; None if the id does not begin with a time."""
    try:
        return int(task_id[:11], 16)
    except ValueError:
        return None

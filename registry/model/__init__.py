"""The records of the registry: what is stored of a task, and the options of requests about it.

The Lua scripts call the same fields by one or two letters. This module has both names of each field, in the same order
as the catalogue at the top of ``redis/lua/base.lua``, which explains the fields; ``tests/test_records.py`` compares the two.
All other Python code uses the long names. A field that has its default is not written.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw, Struct, field, msgpack

# A point in time or a duration. The scripts write whole numbers; records of early versions contain fractions.
Ms = int | float
# Lua cannot tell an empty table from an empty array: an empty record arrives as an empty list.
Empty = list[Any]


class Error(Struct, frozen=True, omit_defaults=True, gc=False):
    """How an attempt failed, as its worker reported it. ``truncated``: one of the texts was cut."""

    type: str | None = None
    message: str | None = None
    trace: str | None = None
    truncated: bool = False


class Lease(Struct, frozen=True, omit_defaults=True, gc=False):
    """A lease and its holder. ``answers``: the answers to the same Idempotency-Key that contained this lease."""

    id: str = field(name="i", default="")
    length: Ms | None = field(name="l", default=None)
    granted_at: Ms | None = field(name="f", default=None)
    worker: str | None = field(name="w", default=None)
    hidden: bool = field(name="h", default=False)
    answers: list[str] | None = field(name="k", default=None)
    memory: str | None = field(name="m", default=None)


class Attempt(Struct, frozen=True, omit_defaults=True, gc=False):
    """A finished attempt in the history of its task."""

    number: int = field(name="a", default=0)
    worker: str | None = field(name="w", default=None)
    leased_at: Ms | None = field(name="f", default=None)
    ended_at: Ms | None = field(name="t", default=None)
    reason: str | None = field(name="r", default=None)
    error: Error | Empty | str | None = field(name="e", default=None)
    result: str | None = field(name="v", default=None)


class Task(Struct, frozen=True, omit_defaults=True, gc=False):
    """What is stored of a task besides its id and its payload. A plain task, pushed without options, has all defaults.

    ``state`` is one of `STATES`. ``result`` is what `text_of` takes.
    """

    state: str = field(name="s", default="r")
    # From its push
    priority: int = field(name="p", default=0)
    attempts: int | None = field(name="n", default=None)
    backoff: Ms | None = field(name="b", default=None)
    lease_length: Ms | None = field(name="l", default=None)
    key: str | None = field(name="k", default=None)
    keep_result: Ms | None = field(name="r", default=None)
    traceparent: str | None = field(name="tp", default=None)
    tracestate: str | None = field(name="ts", default=None)
    awaited: bool = field(name="w", default=False)
    expires_at: Ms | None = field(name="x", default=None)
    idempotent: bool = field(name="i", default=False)
    # Its course so far
    attempt: int = field(name="a", default=0)
    generation: int = field(name="g", default=0)
    first_attempts: int | None = field(name="nn", default=None)
    lapses: int = field(name="q", default=0)
    due_at: Ms | None = field(name="du", default=None)
    ready_since: Ms | None = field(name="rs", default=None)
    at_head: bool = field(name="rh", default=False)
    lease: Lease | None = field(name="o", default=None)
    last_lease: str | None = field(name="ll", default=None)
    progress: int | float | None = field(name="pr", default=None)
    message: str | None = field(name="pm", default=None)
    cancelled: bool = field(name="c", default=False)
    history: list[Attempt] = field(name="h", default_factory=list)
    # How it ended
    reason: str | None = field(name="y", default=None)
    error: Error | Empty | str | None = field(name="er", default=None)
    ended_at: Ms | None = field(name="z", default=None)
    result: Raw = field(name="v", default=Raw())
    kept_until: Ms | None = field(name="ku", default=None)
    unkept: bool = field(name="u", default=False)


class Retention(Struct, frozen=True, omit_defaults=True, gc=False):
    """How long a queue keeps done and dead tasks, s, and at most how many of each."""

    done: int | float | None = None
    done_max: int | None = None
    dead: int | float | None = None
    dead_max: int | None = None


class Policy(Struct, frozen=True, omit_defaults=True, gc=False):
    """The rules of a queue; durations in seconds, ``paused_until`` in ms."""

    paused: bool | None = None
    max_length: int | None = None
    lease: int | float | None = None
    attempts: int | None = None
    backoff: int | float | None = None
    ttl: int | float | None = None
    rate: int | float | None = None
    concurrency: int | None = None
    max_run: int | float | None = None
    poison: int | None = None
    retention: Retention | Empty | None = None
    paused_until: Ms | None = None


class PushOptions(Struct, frozen=True, omit_defaults=True, gc=False):
    """The options of a push; durations in ms. ``awaited``: the client that pushed it waits for its end."""

    delay: Ms | None = field(name="d", default=None)
    due_at: Ms | None = field(name="at", default=None)
    priority: int = field(name="p", default=0)
    ttl: Ms | None = field(name="x", default=None)
    lease_length: Ms | None = field(name="l", default=None)
    keep_result: Ms | None = field(name="r", default=None)
    backoff: Ms | None = field(name="b", default=None)
    attempts: int | None = field(name="n", default=None)
    key: str | None = field(name="k", default=None)
    traceparent: str | None = field(name="tp", default=None)
    tracestate: str | None = field(name="ts", default=None)
    awaited: bool = field(name="w", default=False)
    idempotency_key: str | None = field(name="ik", default=None)
    fingerprint: str | None = field(name="ih", default=None)


class PopOptions(Struct, frozen=True, omit_defaults=True, gc=False):
    """The options of a pop. ``poll``: the serial number of a worker's new poll; ``answer``: the nonce that identifies it;
    ``owner``: the name of the token it was made with.

    For several queues: up to ``count`` tasks from ``queues``, whose keys the store adds; in turn beginning at index
    ``start``, or in the given order where ``start`` is None.
    """

    leased: bool = field(name="l", default=False)
    count: int | None = field(name="c", default=None)
    start: int | None = field(name="s", default=None)
    worker: str | None = field(name="w", default=None)
    idempotency_key: str | None = field(name="ik", default=None)
    fingerprint: str | None = field(name="ih", default=None)
    answer: str | None = field(name="k", default=None)
    poll: str | None = field(name="n", default=None)
    queues: list[str] | None = field(name="q", default=None)
    owner: str | None = field(name="o", default=None)
    only_repeat: bool = field(name="z", default=False)


class FailOptions(Struct, frozen=True, omit_defaults=True, gc=False):
    """The options of a fail. ``delay`` replaces the backoff, ms."""

    error: Error | None = field(name="e", default=None)
    delay: Ms | None = field(name="d", default=None)
    no_retry: bool = field(name="n", default=False)


class ExtendOptions(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the holder of a lease reports about its work so far."""

    progress: float | None = field(name="p", default=None)
    message: str | None = field(name="m", default=None)


class PolicyChange(Struct, frozen=True, omit_defaults=True, gc=False):
    """Rules to set and to reset, and a pause in ms; or where to continue the work of an earlier change of the retention."""

    set: dict[str, Any] | None = None
    reset: list[str] | None = None
    pause: Ms | None = field(name="p", default=None)
    trim_only: bool = field(name="t", default=False)
    dead_from: str | None = field(name="x", default=None)
    only_shorter: bool = field(name="y", default=False)


class Schedule(Struct, gc=False):
    """A schedule, as it is stored. The scripts do not look into it; all fields are written.

    ``last``: the last tick that was pushed. ``options``: the push options as given; ``push``: the same, parsed.
    """

    missed_count: int = 0
    last: int | None = None
    cron: str = ""
    timezone: str = "UTC"
    queue: str = ""
    task: bytes = b""
    options: dict[str, Any] = field(default_factory=dict)
    push: PushOptions = field(name="packed", default=PushOptions())
    missed: str = "skip"
    paused: bool = False


# The states of a task by the letter that the scripts use, and the letters by state.
STATES: Final = {"r": "ready", "d": "delayed", "l": "leased", "x": "dead", "e": "done"}
LETTERS: Final = {name: letter for letter, name in STATES.items()}


class Code:
    """The first element of a script's reply. The others are described at the top of each Lua file."""

    OK: Final = 0
    NOTHING: Final = 1
    AGAIN: Final = 2
    HELD_BACK: Final = 3
    LEASE_REQUIRED: Final = 4
    KEY_REUSED: Final = 5
    WRONG_TYPE: Final = 6
    REDIS_FULL: Final = 7
    REFUSED: Final = 8
    QUEUE_FULL: Final = 9
    KEY_TAKEN: Final = 10
    NOT_JSON: Final = 11
    EXPIRES_FIRST: Final = 12
    PARTS_GONE: Final = 13


PLAIN: Final = Task()
NO_RULES: Final = Policy()
_EMPTY = b"\x90"
_task = msgpack.Decoder(Task).decode
_policy = msgpack.Decoder(Policy).decode
# The reverse of `msgpack.encode` for a Schedule.
decode_schedule = msgpack.Decoder(Schedule).decode


def decode_task(encoded: bytes | None) -> Task:
    """Decode a task as the scripts store it; None and an empty table mean a plain task."""
    return _task(encoded) if encoded and encoded != _EMPTY else PLAIN


def decode_policy(encoded: bytes | None) -> Policy:
    """Decode the rules of a queue as the scripts store them; None and an empty table mean no rules."""
    return _policy(encoded) if encoded and encoded != _EMPTY else NO_RULES


def text_of(raw: Raw) -> bytes:
    """The bytes of a string that a script packed; empty for none. They are neither decoded nor checked."""
    packed = memoryview(raw)
    if not packed or packed[0] == 0xC0:
        return b""
    # A short string has its length in the first byte; the others have it in the next 1, 2 or 4 bytes.
    return bytes(packed[{0xD9: 2, 0xC4: 2, 0xDA: 3, 0xC5: 3, 0xDB: 5, 0xC6: 5}.get(packed[0], 1) :])

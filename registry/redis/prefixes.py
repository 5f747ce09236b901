"""Finds registries on one Redis whose prefixes overlap: they take each other's tasks.

With KEY_PREFIX=stage: the queue "mail" is the list "stage:mail", which without a prefix is the queue "stage:mail". Each
registry with a prefix records it in a sorted set among the keys of the one without, which all of them read:

    {registry}prefixes   prefix -> when it was used last, ms; gone ten minutes after the last use

The registry without a prefix is recognised by its schema key, so it needs no entry there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import inlineCallbacks
from txredisapi import ResponseError

from registry.errors import RegistryError
from registry.redis.faults import ScriptError
from registry.redis.keys import PREFIXES, UNPREFIXED_SCHEMA

LIFE_MS = 600_000


def overlap(one: bytes, other: bytes) -> bool:
    """Whether a queue of one prefix can have the same key as a queue of the other."""
    return one != other and (one.startswith(other) or other.startswith(one))


def warning(ours: bytes, other: bytes) -> str:
    """The warning about two prefixes that overlap."""
    # The name that the queue "mail" of the longer prefix has in the registry with the shorter one.
    longer, shorter = sorted((ours, other), key=len, reverse=True)
    named = (longer[len(shorter) :] + b"mail").decode("utf-8", "replace")
    return (
        f"Another registry uses this Redis with {_shown(other)}, and this one with {_shown(ours)}: they take each other's "
        f'tasks, because the queue "mail" of one is the queue "{named}" of the other. Give each a KEY_PREFIX that '
        "is not the beginning of another's, or its own database."
    )


def _shown(prefix: bytes) -> str:
    return f'KEY_PREFIX "{prefix.decode("utf-8", "replace")}"' if prefix else "no KEY_PREFIX"


@inlineCallbacks
def find_overlaps(command: Callable[..., Any], prefix: bytes, now_ms: int) -> Any:
    """Record our own prefix, and fire with a warning for each other one that overlaps with it.

    ``command``: sends one command to Redis. A Redis user without rights to these keys gets no warnings, and no error.
    """
    others: set[bytes] = set()
    try:
        others.update((yield command(b"ZRANGEBYSCORE", PREFIXES, now_ms - LIFE_MS, b"+inf")))
        if prefix and (yield command(b"EXISTS", UNPREFIXED_SCHEMA)):
            others.add(b"")
        if prefix:
            yield command(b"ZADD", PREFIXES, now_ms, prefix)
            yield command(b"ZREMRANGEBYSCORE", PREFIXES, b"-inf", now_ms - LIFE_MS)
            yield command(b"PEXPIRE", PREFIXES, LIFE_MS)
    except (ResponseError, RegistryError, ScriptError):
        pass  # a user with other rights, a full Redis, somebody else's key
    return [warning(prefix, other) for other in sorted(others) if overlap(prefix, other)]

"""What the scripts answer, in the words of the domain."""

from __future__ import annotations

from typing import Any

from registry.errors import BadOption, Conflict, KeyReused, QueueFull, RedisUnavailable
from registry.model import Code
from registry.redis.store import refusal


class Pushed:
    """The answer to a push: ``id``, whether an equal ``key`` was there (duplicate), or the same request before (replayed)."""

    __slots__ = ("duplicate", "id", "replayed")

    def __init__(self, task_id: bytes, how: int = 0) -> None:
        self.id = task_id
        self.duplicate = how in (1, 3)
        self.replayed = how in (2, 3)


class Taken:
    """A task under a lease: ``payload`` is the bytes that were pushed, ``lease_ms`` the length of the lease.

    ``leased``: its holder asked for the lease; else it is the hidden one of a hand-over. ``replayed``: given before to the
    same request. ``holders``: how many answers carry it.
    """

    __slots__ = (
        "answer", "attempt", "holders", "id", "lease", "lease_ms", "leased", "name", "payload", "raw", "replayed", "traceparent",
    )  # fmt: skip

    def __init__(self, name: bytes, nonce: bytes, leased: bool, reply: list[Any]) -> None:
        self.name = name
        self.id, self.payload, self.attempt, self.raw, self.lease_ms, self.traceparent = reply[1:7]
        self.leased = leased
        self.replayed = len(reply) > 7 and reply[7] == 1
        self.lease = self.id + b"-" + (reply[9] if self.replayed else nonce)
        # A put-back names the answer it belongs to, so that it takes nothing from another answer to the same request.
        self.answer = nonce
        self.holders = 1


def denied(reply: list[Any]) -> Exception:
    """The error that a script's code stands for."""
    code = reply[0]
    if code == Code.LEASE_REQUIRED:
        return Conflict("lease_required", "This queue limits how many run at once: pop with lease=.")
    if code == Code.KEY_REUSED:
        return KeyReused("This Idempotency-Key came before with another body or other options.")
    if code == Code.WRONG_TYPE:
        return Conflict("wrong_type", "The key of this queue's name holds something else than a list.")
    if code == Code.QUEUE_FULL:
        return QueueFull(f"The queue is full: it may hold {reply[1]} tasks.")
    if code == Code.EXPIRES_FIRST:
        ttl, delay = (f"{ms / 1000:.15g} s" for ms in reply[1:3])
        return BadOption(
            f"The option 'ttl', the push's own or the queue's, is {ttl}: it is over before the task is due in {delay}."
        )
    if code == Code.PARTS_GONE:
        return RedisUnavailable("Redis no longer had all parts of this batch when the last one had come.")
    if code in (Code.REDIS_FULL, Code.REFUSED):
        return refusal(reply[1].decode("utf-8", "replace"))
    return BadOption(f"The request was refused ({code}).")

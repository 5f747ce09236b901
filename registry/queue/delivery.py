"""The replies of the push and pop scripts as objects."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Pushed(Struct, frozen=True, gc=False):
    """The result of a push. ``duplicate``: a task with the same ``key`` exists. ``replayed``: the same request came before."""

    id: bytes
    duplicate: bool = False
    replayed: bool = False


class Delivery:
    """A task under a lease. ``payload``: the bytes that were pushed. ``lease_ms``: the length of the lease.

    ``leased``: the client asked for the lease; if False, it is the internal lease of a hand-over. ``replayed``: the same
    request got it before. ``holders``: how many answers contain it.
    """

    __slots__ = (
        "answer", "attempt", "holders", "id", "lease", "lease_ms", "leased", "name", "payload", "replayed", "traceparent",
    )  # fmt: skip

    def __init__(self, name: bytes, nonce: bytes, leased: bool, reply: list[Any]) -> None:
        self.name = name
        self.id, self.payload, self.attempt, _, self.lease_ms, self.traceparent = reply[1:7]
        self.leased = leased
        self.replayed = len(reply) > 7 and reply[7] == 1
        self.lease = self.id + b"-" + (reply[9] if self.replayed else nonce)
        # A put-back names its answer, so that it does not take the task from another answer to the same request.
        self.answer = nonce
        self.holders = 1

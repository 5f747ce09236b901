"""What the scripts answer, in the words of the domain."""

from __future__ import annotations

from typing import Any


class Pushed:
    """The answer to a push: ``id``, whether an equal ``key`` was there (duplicate), or the same request before (replayed)."""

    __slots__ = ("duplicate", "id", "replayed")

    def __init__(self, task_id: bytes, how: int = 0) -> None:
        self.id = task_id
        self.duplicate = how in (1, 3)
        self.replayed = how in (2, 3)


class Delivery:
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

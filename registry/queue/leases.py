"""What the holder of a lease can say: done, failed, given back, still at it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from registry.errors import Conflict
from registry.queue.names import check_name
from registry.queue.queues import Queues
from registry.queue.taken import denied
from registry.redis.store import encode_options

LEASE_LOST = "lease_lost"


class Leases:
    """Acks, fails, releases and extensions, each an entry of a group commit.

    A lease that is no longer held is `Conflict` with code ``lease_lost``: stop the work and forget it.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    def _say(self, verb: str, name: bytes, lease: bytes, *more: bytes) -> Deferred[list[Any]]:
        check_name(name)
        return self._queues.ask(verb, self._queues.store.of_lease(name, lease, *more)).addCallback(_held)

    def ack(self, name: bytes, lease: bytes, result: bytes = b"") -> Deferred[str]:
        """The work is done; ``result`` is JSON or empty. Fires with ``done``, or ``late`` when the lease had run out."""
        return self._say("ack", name, lease, result).addCallback(lambda reply: str(reply[1], "ascii"))

    def fail(
        self,
        name: bytes,
        lease: bytes,
        error: dict[str, str] | None = None,
        delay_ms: int | None = None,
        retry: bool = True,
    ) -> Deferred[str]:
        """The attempt failed; fires with the state of the task now: ``ready``, ``delayed`` or ``dead``."""
        said: dict[str, Any] = {"e": error} if error else {}
        if delay_ms is not None:
            said["d"] = delay_ms
        if not retry:
            said["n"] = True
        packed = encode_options(said) or b"\x80"
        d = self._say("fail", name, lease, packed)
        return d.addCallback(lambda reply: str(reply[1], "ascii"))

    def release(self, name: bytes, lease: bytes, delay_ms: int = 0) -> Deferred[None]:
        """Give the task back, the attempt not counted."""
        return self._say("release", name, lease, b"%d" % delay_ms).addCallback(lambda _: None)

    def extend(
        self,
        name: bytes,
        lease: bytes,
        length_ms: int = 0,
        progress: float | None = None,
        message: str | None = None,
    ) -> Deferred[tuple[int, bool]]:
        """More time; fires with the length of the lease from now in ms, and whether the task was cancelled."""
        told: dict[str, Any] = {}
        if progress is not None:
            told["p"] = progress
        if message is not None:
            told["m"] = message
        d = self._say("extend", name, lease, b"%d" % length_ms, encode_options(told))
        return d.addCallback(lambda reply: (int(reply[1]), bool(reply[2])))


def _held(reply: list[Any]) -> list[Any]:
    if reply[0] == 1:
        raise Conflict(LEASE_LOST, "This lease is no longer held: stop the work and forget the task.")
    if reply[0]:
        raise denied(reply)
    return reply

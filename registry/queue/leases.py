"""The operations of a lease holder: ack, fail, release and extend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import Deferred

from registry.errors import Conflict
from registry.model import Code, ExtendOptions, FailOptions
from registry.queue.batching import LARGE
from registry.queue.names import check_name
from registry.queue.promise import Gathering, Receiver
from registry.queue.queues import Queues
from registry.redis.faults import error_from_reply
from registry.redis.store import encode_options

LEASE_LOST = "lease_lost"
# Stored instead of a result that is too large to keep. No JSON text begins with this byte.
TOO_LARGE = b"\xff"


class Leases:
    """Acks, fails, releases and extensions, each an entry of a group commit.

    A lease that is no longer held raises `Conflict` with code ``lease_lost``: the worker must stop and drop the task.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    def _ask(self, verb: str, name: bytes, lease: bytes, *more: bytes) -> Deferred[list[Any]]:
        check_name(name)
        return self._queues.ask(verb, self._queues.store.of_lease(name, lease, *more))

    def ack(self, name: bytes, lease: bytes, result: bytes = b"") -> Deferred[str]:
        """The task succeeded. ``result`` is JSON, empty or `TOO_LARGE`. Fires with ``done``, or ``late`` if the lease had expired."""
        check_name(name)
        return self._queues.ask("ack", self._queues.store.ack(name, lease, result)).addCallback(status)

    def ack_for(self, receiver: Receiver, name: bytes, lease: bytes, result: bytes = b"") -> None:
        """Like `ack`, but ``receiver`` receives the raw reply, which `status` reads."""
        check_name(name)
        entry = self._queues.store.ack(name, lease, result)
        entry.reply = receiver
        self._queues.carry("ack", entry)

    def fail(
        self,
        name: bytes,
        lease: bytes,
        options: FailOptions,
    ) -> Deferred[str]:
        """The attempt failed. Fires with the new state of the task: ``ready``, ``delayed`` or ``dead``."""
        return self._ask("fail", name, lease, msgpack.encode(options)).addCallback(status)

    def settle(
        self,
        name: bytes,
        acks: Sequence[tuple[bytes, bytes]],
        fails: Sequence[tuple[bytes, FailOptions]],
    ) -> Deferred[list[str]]:
        """Many acks (lease, result) and fails (lease, options). Fires with the status of each, in order.

        The status of a lease that is no longer held is ``lease_lost``. Any other error of one entry fails the whole call.
        """
        check_name(name)
        count = len(acks) + len(fails)
        settled: Deferred[list[Any]] = Deferred()
        if not count:
            settled.callback([])
        store = self._queues.store
        entries = [("ack", store.ack(name, lease, result)) for lease, result in acks]
        entries += [
            ("fail", store.of_lease(name, lease, msgpack.encode(options))) for lease, options in fails
        ]
        # Entries keep the order of the request, even if it names a lease twice.
        large = max([entry.size for _, entry in entries], default=0) > LARGE
        gathering = Gathering(count, settled)
        for at, (verb, entry) in enumerate(entries):
            entry.reply = gathering.part(at)
            self._queues.carry(verb, entry, large)
        return settled.addCallback(lambda replies: [_status_or_lost(reply) for reply in replies])

    def release(self, name: bytes, lease: bytes, delay_ms: int = 0) -> Deferred[None]:
        """Return the task to its queue without counting the attempt, after ``delay_ms``."""
        d = self._ask("release", name, lease, b"%d" % delay_ms).addCallback(_checked)
        return d.addCallback(lambda _: None)

    def extend(
        self,
        name: bytes,
        lease: bytes,
        length_ms: int = 0,
        options: ExtendOptions | None = None,
    ) -> Deferred[tuple[int, bool]]:
        """Extend the lease. Fires with its length from now in ms, and whether the task was cancelled."""
        encoded = encode_options(options)
        d = self._ask("extend", name, lease, b"%d" % length_ms, encoded).addCallback(_checked)
        return d.addCallback(lambda reply: (int(reply[1]), bool(reply[2])))


def status(reply: list[Any]) -> str:
    """The status of an acked or failed task, from the reply of the script. A lost lease raises `Conflict`."""
    return str(_checked(reply)[1], "ascii")


def _status_or_lost(reply: list[Any]) -> str:
    return LEASE_LOST if reply[0] == Code.NOTHING else status(reply)


def _checked(reply: list[Any]) -> list[Any]:
    if reply[0] == Code.NOTHING:
        raise Conflict(LEASE_LOST, "This lease is no longer held: stop the work and forget the task.")
    if reply[0]:
        raise error_from_reply(reply)
    return reply

"""The hand-over of a task: from taking it out of its queue until its answer has been sent.

A confirm ends the task, a put-back returns it to the head of its queue, a burial makes it dead. Each names its own
record in Redis, and does nothing if that record is gone. So it is safe to send again what got no reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import Unavailable
from registry.queue.delivery import Delivery
from registry.queue.wait_lists import WaitLists
from registry.redis.store import Entry, Store, entry_of

log = Logger()

# Confirms are gathered for this long, s. No client waits for them; they must be sent within 0.1 s.
CONFIRM_SECONDS = 0.02
# One entry of a call confirms at most this many leases of a queue.
MAX_CONFIRMED = 100
# At most this many confirms and put-backs are kept while Redis is away; a hand-over that is not settled expires by itself.
MAX_UNSETTLED = 100_000


class Queues(Protocol):
    """The part of `Queues` that this module uses."""

    store: Store
    wait_lists: WaitLists
    later: Callable[..., Any]

    def carry(self, verb: str, entry: Entry) -> None: ...


class Handover:
    """The hand-overs of this process."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._confirming: dict[bytes, list[bytes]] = {}
        self._unsettled: list[tuple[str, Entry]] = []

    @property
    def gathering(self) -> bool:
        """Whether confirms wait to be sent."""
        return bool(self._confirming)

    def confirm(self, delivery: Delivery) -> None:
        """The answer with this task has been written: the task is done."""
        if not self._confirming:
            self._queues.later(CONFIRM_SECONDS, self._send_confirms)
        leases = self._confirming.get(delivery.name)
        if leases is None:
            leases = self._confirming[delivery.name] = []
        leases.append(delivery.lease)

    def _send_confirms(self) -> None:
        confirming, self._confirming = self._confirming, {}
        for name, leases in confirming.items():
            for at in range(0, len(leases), MAX_CONFIRMED):
                together = b" ".join(leases[at : at + MAX_CONFIRMED])
                self._settle("confirm", self._queues.store.of_lease(name, together))

    def put_back(self, delivery: Delivery) -> None:
        """The client disconnected before it had this task: return it to the head of its queue without counting the attempt."""
        queues, name = self._queues, delivery.name
        delivery.holders -= 1
        if delivery.holders <= 0:
            entry = queues.store.of_lease(name, delivery.lease, delivery.answer)
            self._settle("putback", entry, lambda: queues.wait_lists.wake(name))

    def bury(self, delivery: Delivery, reason: bytes) -> None:
        """This task cannot be given to any worker: make it dead, with ``reason``."""
        self._settle("bury", self._queues.store.of_lease(delivery.name, delivery.lease, reason))

    def _settle(self, verb: str, entry: Entry, then: Callable[[], None] | None = None) -> None:
        entry.reply = PendingSettle(self, verb, entry, then)
        self._queues.carry(verb, entry)

    def not_settled(self, verb: str, again: tuple[bytes, bytes], failure: Failure) -> None:
        """A call was not applied, or its outcome is unknown: keep it for `settle_again`, or log why it was refused."""
        if failure.check(Unavailable) and len(self._unsettled) < MAX_UNSETTLED:
            self._unsettled.append((verb, entry_of(*again)))
        else:
            log.failure("a {verb} was refused", failure, verb=verb)

    def settle_again(self) -> bool:
        """Send the kept calls again. Returns whether there were any."""
        unsettled, self._unsettled = self._unsettled, []
        for verb, entry in unsettled:
            self._settle(verb, entry)
        return bool(unsettled)


class PendingSettle:
    """A confirm, a put-back or a burial on its way."""

    __slots__ = ("again", "handover", "then", "verb")

    def __init__(self, handover: Handover, verb: str, entry: Entry, then: Callable[[], None] | None) -> None:
        self.handover = handover
        self.verb = verb
        self.again = (entry.key, entry.args)
        self.then = then

    def callback(self, reply: list[Any]) -> None:
        if self.then is not None:
            self.then()

    def errback(self, failure: Failure) -> None:
        self.handover.not_settled(self.verb, self.again, failure)

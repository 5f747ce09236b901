"""What operators tell workers: to take nothing new (quiet), to end (stop), or to work as ever (run), which is no order.

Orders are in Redis; each process reads them again when a notice says so, and about once a second in case that was lost. A worker
learns of its order from the answers that it gets. Whether it obeys or not, its polls get no task as long as the order stands: they
wait out their time, or until the order changes. A repeat of an earlier poll still gets the leases that it has missed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from registry.errors import Unavailable
from registry.model import decode_task
from registry.queue.workers import Workers
from registry.redis.faults import error_from_reply
from registry.redis.store import Entry, Store

# How long an order stands, s. A worker that was stopped may come back under the same name.
STANDS_SECONDS = {"quiet": 86_400, "stop": 3600}
ORDERS = ("run", *STANDS_SECONDS)
# A poll of a worker that is to stop is answered after so long at the latest, s: not at once, for it may not obey.
STOP_SECONDS = 1.0


class Orders:
    """The orders that stand. ``standing``: by worker, quiet or stop; always the same dict. ``until``: when each ends, ms."""

    def __init__(
        self,
        store: Store,
        workers: Workers,
        later: Callable[..., Any],
        ask: Callable[[str, Entry], Deferred[Any]],
    ) -> None:
        self._store = store
        self._workers = workers
        self._later = later
        self._ask = ask
        self.standing: dict[str, str] = {}
        self.until: dict[str, int] = {}
        self._held: dict[str, list[Deferred[None]]] = {}
        self._reads = self._newest = 0

    @inlineCallbacks
    def give(self, worker: str, order: str) -> Any:
        """Give an order; fires with whether that changed anything, once it is in force here."""
        length = STANDS_SECONDS.get(order, 0) * 1000
        reply = yield self._ask("order", self._store.order(worker, order, length))
        if reply[0]:
            raise error_from_reply(reply)
        try:
            yield self.read()
        except Unavailable:
            # It is given, and read again within a second.
            pass
        return bool(reply[1])

    @inlineCallbacks
    def read(self) -> Any:
        """Read the orders from Redis. Fires when those of now, or later ones, are in force here."""
        self._reads += 1
        number = self._reads
        found = yield self._store.orders()
        if number < self._newest:
            # A later read was answered first.
            return
        self._newest = number
        before = dict(self.standing)
        self.standing.clear()
        self.standing.update((worker, order) for order, worker, _ in found)
        self.until = {worker: until for _, worker, until in found}
        for worker in before.keys() | self.standing.keys():
            order = self.standing.get(worker)
            if order != before.get(worker):
                if order is not None:
                    self._workers.end_polls(worker)
                for one in list(self._held.pop(worker, [])):
                    one.callback(None)

    def hold(self, worker: str, wait: float) -> Deferred[None]:
        """Fires when a poll of a worker with an order is to be answered. Cancel it when the client has disconnected."""
        if self.standing.get(worker) == "stop":
            wait = min(wait, STOP_SECONDS)
        if wait <= 0 or worker not in self.standing:
            return succeed(None)
        held: Deferred[None] = Deferred(lambda _: None)
        polls = self._held.setdefault(worker, [])
        polls.append(held)
        timer = self._later(wait, held.callback, None)

        def ended(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            if held in polls:
                polls.remove(held)
            if not polls and self._held.get(worker) is polls:
                del self._held[worker]
            return result

        return held.addBoth(ended)

    def end_all(self) -> None:
        """The daemon stops: end the polls that are held."""
        held, self._held = self._held, {}
        for polls in held.values():
            for one in list(polls):
                one.callback(None)

    @inlineCallbacks
    def of_holder(self, name: bytes, lease: bytes) -> Any:
        """Fires with the worker that holds this lease if it has an order, else with None."""
        try:
            task = decode_task((yield self._store.record(name, lease.partition(b"-")[0])))
        except Unavailable:
            return None
        held = task.lease
        if held is None or held.id.encode() != lease or held.worker not in self.standing:
            return None
        return held.worker

"""Tells workers the orders that operators gave them, on each answer, and keeps new tasks from those that are to take none.

``Registry-Worker: quiet`` means: take nothing new, but go on asking. ``Registry-Worker: stop`` means: finish, and end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import stopping
from registry.http.codec import Answer
from registry.http.request import Request
from registry.model import PopOptions
from registry.queue.promise import as_deferred
from registry.queue.queues import Queues

HEADER = b"Registry-Worker"


class Orders:
    """The orders of one process. ``standing``: by worker; almost always empty, so that nothing is looked up."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._orders = queues.orders
        self.standing = queues.orders.standing

    def pop(
        self,
        ask: Callable[[float, PopOptions], Deferred[Any]],
        wait: float,
        options: PopOptions,
        nothing: Any,
    ) -> Deferred[Any]:
        """The result of ``ask(wait, options)``; of a worker with an order, ``nothing`` when its time is up or the order changes."""
        if options.worker not in self.standing:
            return ask(wait, options)
        return self._hold(ask, wait, options, nothing)

    @inlineCallbacks
    def _hold(
        self,
        ask: Callable[[float, PopOptions], Deferred[Any]],
        wait: float,
        options: PopOptions,
        nothing: Any,
    ) -> Any:
        if self._queues.draining:
            raise stopping()
        if options.idempotency_key is not None:
            # Its leases may be on an answer that was lost.
            found = yield ask(0.0, replace(options, only_repeat=True))
            if found:
                return found
        yield self._orders.hold(options.worker or "", wait)
        return nothing

    def add_order(self, answer: Answer, worker: str) -> Answer:
        """The answer to this worker, with its order."""
        order = self.standing.get(worker)
        if order is None:
            return answer
        others = tuple(pair for pair in answer.headers if pair[0] not in (HEADER, b"Retry-After"))
        headers = (*others, (HEADER, order.encode()))
        return Answer(answer.status, answer.body, headers, answer.deliveries)

    @inlineCallbacks
    def told_holder(self, verb: Callable[[Request], Any], request: Request) -> Any:
        """The answer of a verb about a lease, with the order to the worker that holds it."""
        worker = yield self._orders.of_holder(request.name, bytes(request.segments[1]))
        answer = yield as_deferred(verb(request))
        return answer if worker is None else self.add_order(answer, worker)

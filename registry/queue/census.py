"""What all queues hold together, by the labels of `tally`: read for a scrape, and not again before that has paid."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from registry.queue.inspector import Inspector, QueueView, is_paused
from registry.queue.queues import Queues
from registry.queue.tally import label_of

STATES = ("ready", "delayed", "leased", "dead", "done")
# Reading a hundred thousand queues takes seconds of Redis's time. The next reading begins when at least this many times the time of
# the last one has passed.
REST = 20


class Totals:
    """The queues of one label. ``oldest_ms``: since when the oldest task is ready; None for no task, or a raw element.

    ``paused``: the ready tasks of those that are paused.
    """

    __slots__ = ("held", "oldest_ms", "paused", "pollers")

    def __init__(self) -> None:
        self.held = [0] * len(STATES)
        self.oldest_ms: int | None = None
        self.pollers = self.paused = 0

    def add(self, other: Totals) -> None:
        """Add the queues of another label."""
        self.held = [a + b for a, b in zip(self.held, other.held, strict=True)]
        known = [at for at in (self.oldest_ms, other.oldest_ms) if at is not None]
        self.oldest_ms = min(known) if known else None
        self.pollers += other.pollers
        self.paused += other.paused


class Census:
    """Reads what all queues hold. Requests at the same time share one reading."""

    def __init__(
        self, queues: Queues, inspector: Inspector, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._queues = queues
        self._inspector = inspector
        self._now = now
        self._last: dict[bytes, Totals] = {}
        self._next_at = -1.0
        self._waiting: list[Deferred[dict[bytes, Totals]]] | None = None

    def read(self) -> Deferred[dict[bytes, Totals]]:
        """Fires with the `Totals` by label. Fails with `Unavailable` while Redis is away."""
        found: Deferred[dict[bytes, Totals]] = Deferred()
        if self._waiting is not None:
            self._waiting.append(found)
        elif self._now() < self._next_at and self._queues.store.ready:
            found.callback(self._last)
        else:
            self._waiting = [found]
            self._read(self._now()).addBoth(self._tell)
        return found

    def _tell(self, result: dict[bytes, Totals] | Failure) -> None:
        waiting, self._waiting = self._waiting or [], None
        for one in waiting:
            one.errback(Failure(result.value)) if isinstance(result, Failure) else one.callback(result)

    @inlineCallbacks
    def _read(self, began: float) -> Any:
        totals: dict[bytes, Totals] = {}

        def of(name: bytes) -> Totals:
            label = label_of(name)
            found = totals.get(label)
            if found is None:
                found = totals[label] = Totals()
            return found

        def add(view: QueueView) -> None:
            one = Totals()
            one.held = [getattr(view, state) for state in STATES]
            one.oldest_ms = view.oldest_ms
            one.paused = view.ready if is_paused(view.policy, now_ms) else 0
            of(view.name).add(one)

        now_ms = self._queues.store.now_ms()
        names = yield self._inspector.names(b"")
        yield self._inspector.each_count(list(names), add, names)
        for name, count in (yield self._queues.heartbeat.pollers()).items():
            of(name).pollers += count
        now = self._now()
        self._last, self._next_at = totals, now + REST * (now - began)
        return totals

"""Periodic chores: moving tasks whose time has come, and finding what a lost notice would have reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from registry.errors import Unavailable
from registry.queue.queues import Queues
from registry.queue.schedules import Schedules
from registry.redis.store import Store

log = Logger()

SWEEP_SECONDS = 0.4
RECHECK_SECONDS = 0.8
BEAT_SECONDS = 2.0
# An order to a worker is in force everywhere within a second, even if its notice was lost.
ORDERS_SECONDS = 0.8
WATCH_SECONDS = 2.0
TICK_SECONDS = 1.0
# Another registry on this Redis whose prefix overlaps is detected within this time.
NEIGHBOUR_SECONDS = 60.0
# The resolution of the time at which a token was last used, s.
USED_SECONDS = 3.0
# How often each process adds what it has counted to what the charts show.
STATS_SECONDS = 5.0
# Limits of one sweep: queues, and moves of each kind per queue. Other clients of Redis then wait a few ms at most.
QUEUES_PER_SWEEP = 100
MOVES_PER_QUEUE = 200
# Queue names in one EXISTS; each has two lists.
NAMES_PER_CHECK = 500


class Sweeper:
    """Sweeps the store, and checks about once a second whether tasks wait in queues with parked pollers.

    Every daemon does both; a sweep finds nothing to do if another daemon has just swept.
    """

    def __init__(
        self,
        store: Store,
        queues: Queues,
        schedules: Schedules,
        clock: IReactorTime,
        neighbours: Callable[[], Deferred[None]] = lambda: succeed(None),
        note_used: Callable[[], Deferred[None]] = lambda: succeed(None),
        write_stats: Callable[[], Deferred[None]] = lambda: succeed(None),
    ) -> None:
        self._write_stats = write_stats
        self._neighbours = neighbours
        self._note_used = note_used
        self._schedules = schedules
        self._store = store
        self._queues = queues
        self._clock = clock
        self._calls: list[LoopingCall] = []
        self._checks = 0
        self._gap: Any = None

    def start(self) -> None:
        """Start all chores; each runs for the first time at once."""
        chores = (
            (SWEEP_SECONDS, self.sweep),
            (RECHECK_SECONDS, self.recheck),
            (BEAT_SECONDS, self._queues.heartbeat.beat),
            (ORDERS_SECONDS, self._queues.orders.read),
            (WATCH_SECONDS, self._store.check_keys),
            (TICK_SECONDS, self._schedules.tick),
            (NEIGHBOUR_SECONDS, self._neighbours),
            (USED_SECONDS, self._note_used),
            (STATS_SECONDS, self._write_stats),
        )
        for seconds, chore in chores:
            call = LoopingCall(self._guarded, chore)
            call.clock = self._clock
            self._calls.append(call)
            call.start(seconds, now=True)

    def stop(self) -> None:
        """Stop all chores, without waiting for a sweep in flight."""
        for call in self._calls:
            if call.running:
                call.stop()
        self._calls.clear()
        if self._gap is not None and self._gap.active():
            self._gap.cancel()

    def _guarded(self, chore: Any) -> Deferred[None]:
        d: Deferred[None] = chore() if self._store.ready else Deferred()
        if not self._store.ready:
            d.callback(None)

        def failed(failure: Any) -> None:
            if not failure.check(Unavailable):
                log.failure("a periodic chore failed", failure)

        return d.addErrback(failed)

    def sweep(self) -> Deferred[None]:
        """Sweep until nothing is due."""
        if self._queues.handover.settle_again():
            # Redis refused these a moment ago. Apply them before a sweep lets a confirmed hand-over expire.
            return succeed(None)

        died = self._queues.tally.died

        def swept(reply: list[int]) -> Deferred[None] | None:
            queues, moves = reply
            if queues >= QUEUES_PER_SWEEP or moves >= MOVES_PER_QUEUE:
                return self._store.sweep(QUEUES_PER_SWEEP, MOVES_PER_QUEUE, died).addCallback(swept)
            return None

        return self._store.sweep(QUEUES_PER_SWEEP, MOVES_PER_QUEUE, died).addCallback(swept)

    @inlineCallbacks
    def recheck(self) -> Any:
        """Wake a poller of each queue that has parked pollers and a list with elements; names are checked in bounded pieces.

        Each look checks the list of priority 0, to which other programs push, and one other priority in rotation, in case a notice
        was lost.
        """
        names = self._queues.wait_lists.names()
        self._checks += 1
        priority = self._checks % 9 + 1
        pieces = -(-len(names) // NAMES_PER_CHECK)
        for at in range(0, len(names), NAMES_PER_CHECK):
            yield self._check(names[at : at + NAMES_PER_CHECK], priority)
            if at + NAMES_PER_CHECK < len(names):
                # A pause lets other clients run; the pieces are spread over most of the interval.
                gap: Deferred[None] = Deferred()
                self._gap = self._clock.callLater(RECHECK_SECONDS * 0.75 / pieces, gap.callback, None)
                yield gap

    def _check(self, names: list[bytes], priority: int) -> Deferred[None]:
        def counted(count: int) -> Deferred[Any] | None:
            if not count:
                return None
            if len(names) <= 8:
                for name in names:
                    self._queues.wait_lists.wake(name, wake_next=True)
                return None
            half = len(names) // 2
            halves = [self._check(names[:half], priority), self._check(names[half:], priority)]
            return DeferredList(halves, consumeErrors=True)

        return self._store.any_waiting(names, priority).addCallback(counted)

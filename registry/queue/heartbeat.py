"""What each daemon tells the others: how many pollers are parked at which queues, and which were polled last. Any of them answers
for all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import inlineCallbacks

from registry.queue.wait_lists import WaitLists
from registry.redis.store import Store

LIFE_MS = 6000
# Of a daemon with pollers at more queues, this many are in its beat.
MOST_NAMES = 5000
# Of the queues that a daemon has seen polled, the last so many are in its beat.
MOST_POLLED = 300


class Heartbeat:
    """This daemon's beat, and what all beats say together. ``last_polls``: when each queue was polled here, s, the latest last."""

    def __init__(
        self,
        store: Store,
        wait_lists: WaitLists,
        last_polls: OrderedDict[bytes, float],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._wait_lists = wait_lists
        self._last = last_polls
        self._now = now

    def _mine(self) -> Iterator[tuple[bytes, int]]:
        for name, wait_list in self._wait_lists.lists.items():
            if wait_list.parked:
                yield name, len(wait_list)

    def _last_polls(self) -> dict[bytes, int]:
        """When the queues polled here were polled last, in Redis's time, ms."""
        now, now_ms = self._now(), self._store.now_ms()
        latest = islice(reversed(self._last.items()), MOST_POLLED)
        return {name: now_ms - int((now - at) * 1000) for name, at in latest}

    @inlineCallbacks
    def beat(self) -> Any:
        """Tell; a daemon that nobody has polled yet has nothing to tell."""
        polled = self._last_polls()
        if not polled:
            return
        beat = [list(islice(self._mine(), MOST_NAMES)), list(polled.items())]
        yield self._store.beat(msgpack.encode(beat), LIFE_MS)

    @inlineCallbacks
    def _others(self) -> Any:
        return [msgpack.decode(beat) for beat in (yield self._store.other_beats())]

    @inlineCallbacks
    def pollers(self) -> Any:
        """Fires with parked pollers by queue, over all daemons; this one's as they are now."""
        total = dict(self._mine())
        for parked, _ in (yield self._others()):
            for name, count in parked:
                total[name] = total.get(name, 0) + count
        return total

    @inlineCallbacks
    def silent_ms(self, name: bytes) -> Any:
        """Fires with how long ago this queue was polled anywhere, at least; None when that is not known."""
        now_ms, here = self._store.now_ms(), self._last.get(name)
        known = [] if here is None else [int((self._now() - here) * 1000)]
        at_least = []
        for _, polled in (yield self._others()):
            found = [at for other, at in polled if other == name]
            known += [now_ms - at for at in found]
            if not found and len(polled) >= MOST_POLLED:
                # It was polled there before all that are in the beat, or never.
                at_least.append(now_ms - polled[-1][1])
        return max(0, min(known + at_least)) if known else None

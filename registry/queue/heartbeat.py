"""What each daemon tells the others: its parked pollers by queue, and the queues polled last. So any daemon can answer for all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import Deferred, inlineCallbacks, succeed

from registry.queue.roster import Roster
from registry.queue.wait_lists import WaitLists
from registry.redis.store import Store

LIFE_MS = 6000
# A beat contains at most this many queues with parked pollers.
MAX_NAMES = 5000
# A beat contains at most this many of the queues that were polled last.
MAX_POLLED = 300


class Heartbeat:
    """Sends the beat of this daemon and combines all beats. ``last_polls``: when each queue was polled here, s, latest last."""

    def __init__(
        self,
        store: Store,
        wait_lists: WaitLists,
        last_polls: OrderedDict[bytes, float],
        now: Callable[[], float],
        roster: Roster,
    ) -> None:
        self._store = store
        self._wait_lists = wait_lists
        self._last = last_polls
        self._now = now
        self._roster = roster
        # Called with each beat: sends what the other processes of this daemon need to answer for all of them.
        self.share: Callable[[], Deferred[None]] = lambda: succeed(None)

    def _parked_here(self) -> Iterator[tuple[bytes, int]]:
        for name, wait_list in self._wait_lists.lists.items():
            if wait_list.parked:
                yield name, len(wait_list)

    def _last_polls(self) -> dict[bytes, int]:
        """When each queue was last polled here, in Redis's time, ms; only the latest `MAX_POLLED`."""
        now, now_ms = self._now(), self._store.now_ms()
        latest = islice(reversed(self._last.items()), MAX_POLLED)
        return {name: now_ms - int((now - at) * 1000) for name, at in latest}

    @inlineCallbacks
    def beat(self) -> Any:
        """Send the beat; a process that knows of no poll and no worker sends none."""
        yield self.share()
        polled = self._last_polls()
        if not polled and not self._roster.has_counts():
            return
        beat = [list(islice(self._parked_here(), MAX_NAMES)), list(polled.items())]
        yield self._store.beat(msgpack.encode(beat), LIFE_MS)
        yield self._roster.beat(LIFE_MS)

    @inlineCallbacks
    def _other_beats(self) -> Any:
        return [msgpack.decode(beat) for beat in (yield self._store.other_beats())]

    @inlineCallbacks
    def pollers(self) -> Any:
        """Fires with the number of parked pollers by queue, over all daemons; the numbers of this one are current."""
        total = dict(self._parked_here())
        for parked, _ in (yield self._other_beats()):
            for name, count in parked:
                total[name] = total.get(name, 0) + count
        return total

    @inlineCallbacks
    def last_polls(self) -> Any:
        """Fires with when each queue was polled last, ms, over all daemons, as far as that is known."""
        now, now_ms = self._now(), self._store.now_ms()
        found = {name: now_ms - int((now - at) * 1000) for name, at in self._last.items()}
        for _, polled in (yield self._other_beats()):
            for name, at in polled:
                found[name] = max(at, found.get(name, 0))
        return found

    @inlineCallbacks
    def silent_ms(self, name: bytes) -> Any:
        """Fires with how long ago, in ms, any daemon polled this queue, as a lower bound; None if no daemon reports a poll."""
        now_ms, polled_here = self._store.now_ms(), self._last.get(name)
        ages = [] if polled_here is None else [int((self._now() - polled_here) * 1000)]
        lower_bounds = []
        for _, polled in (yield self._other_beats()):
            found = [at for other, at in polled if other == name]
            ages += [now_ms - at for at in found]
            if not found and len(polled) >= MAX_POLLED:
                # That daemon polled it before all queues in its beat, or never.
                lower_bounds.append(now_ms - polled[-1][1])
        return max(0, min(ages + lower_bounds)) if ages else None

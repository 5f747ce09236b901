"""What this process has done since its start, in numbers, for `registry.metrics`.

The busy path counts here, once for each group of replies. So this module holds plain numbers and lists; the objects that a
scrape needs are made by the scrape.

A queue is counted under its label: its name, or ``family:*`` for a name with a colon. There are `MAX_QUEUES` labels, first come,
first served, each for the life of the process; all other queues are counted together as `OTHER`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from registry.histogram import Histogram
from registry.queue.names import pushed_at_ms

MAX_QUEUES = 200
OTHER = b"other"
# The labels of this many keys are remembered.
MAX_REMEMBERED = 4096

# Upper bounds of the buckets, ms; from a hand-over at once to a task that ran for a day.
LENGTHS_MS = (
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000, 21_600_000, 86_400_000,
)  # fmt: skip
# Upper bounds of the buckets, s.
ROUND_TRIPS = (0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Entries in one call.
GROUP_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


def label_of(name: bytes) -> bytes:
    """The label of a queue, as long as there is room for it."""
    family, colon, _ = name.partition(b":")
    return family + b":*" if colon else name


class Store(Protocol):
    """The part of the store that this module uses."""

    @property
    def colons(self) -> int: ...

    def now_ms(self) -> int: ...

    def name_of(self, key: bytes) -> bytes: ...

    def queue_of(self, entry: Any) -> bytes: ...


class QueueCounts:
    """The numbers of one label. ``since_ms``: when it was counted first, in Redis's time.

    ``pushed``: tasks pushed here; ``started``: handed out; ``done``, ``dead``: ended; ``failed``: attempts that workers
    reported as failed.
    """

    __slots__ = ("dead", "done", "failed", "pushed", "since_ms", "started")

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.pushed = self.started = self.done = self.dead = self.failed = 0


# Stands for the numbers of the key before the first one.
_NOBODY = QueueCounts(0)


class Tally:
    """``waits``: how long each task was ready before it was handed out, ms; ``runs``: from there to its ack, for leased ones."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._now_ms = store.now_ms
        self._colons = store.colons
        self.queues: dict[bytes, QueueCounts] = {}  # by label
        self._by_key: dict[
            bytes, QueueCounts
        ] = {}  # by the key of an entry, or its beginning up to the colon
        self.waits = Histogram(LENGTHS_MS)
        self.runs = Histogram(LENGTHS_MS)
        self.round_trips = Histogram(ROUND_TRIPS)
        self._sizes: dict[int, int] = {}  # the number of groups by their number of entries
        self._counters: dict[str, Callable[[Sequence[Any], Sequence[Any]], None]] = {
            "push": self._count_pushes,
            "pop": self._count_pops,
            "popmany": self._count_pops_of_many,
            "ack": self._count_acks,
            "confirm": self._count_confirms,
            "fail": self._count_fails,
            "schedule": self._count_ticks,
        }

    @property
    def group_sizes(self) -> Histogram:
        """How many entries each group had."""
        sizes = Histogram(GROUP_SIZES)
        for size, count in self._sizes.items():
            sizes.add(size, count)
        return sizes

    def of(self, name: bytes) -> QueueCounts:
        """The numbers of the label under which this queue is counted."""
        return self.of_label(label_of(name))

    def of_label(self, label: bytes) -> QueueCounts:
        """The numbers of this label, or of `OTHER` where there is no room for it."""
        found = self.queues.get(label)
        if found is None:
            if len(self.queues) >= MAX_QUEUES:
                label = OTHER
                found = self.queues.get(OTHER)
            if found is None:
                found = self.queues[label] = QueueCounts(self._now_ms())
        return found

    def _of_entry(self, entry: Any) -> QueueCounts:
        # A queue that was made for one request (its name has a colon) does not come again, but its family does.
        key: bytes = entry.key
        at = key.find(b":")
        if self._colons:
            # Behind those of the prefix.
            for _ in range(self._colons):
                at = key.find(b":", at + 1)
        if at > 0:
            key = key[:at]
        found = self._by_key.get(key)
        if found is None:
            found = self.of(self._store.queue_of(entry))
            if len(self._by_key) >= MAX_REMEMBERED:
                self._by_key.clear()
            self._by_key[key] = found
        return found

    def replied(self, verb: str, entries: Sequence[Any], replies: Sequence[Any], seconds: float) -> None:
        """Redis has answered a group, ``seconds`` after it was sent."""
        trips, size = self.round_trips, len(entries)
        trips.counts[bisect_left(ROUND_TRIPS, seconds)] += 1
        trips.total += seconds
        self._sizes[size] = self._sizes.get(size, 0) + 1
        count = self._counters.get(verb)
        if count is not None:
            count(entries, replies)

    def died(self, name: bytes, count: int) -> None:
        """So many tasks of this queue have become dead."""
        self.of(name).dead += count

    # Neighbours in a group mostly ask the same queue, and its key is then the same object.

    def _count_pushes(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        by_key, last, found = self._by_key, None, _NOBODY
        for entry, reply in zip(entries, replies, strict=True):
            if not reply[0] and len(reply) == 2:
                key = entry.key
                if key is not last:
                    found = by_key.get(key) or self._of_entry(entry)
                    last = key
                found.pushed += 1

    # A tick that only changes the schedule has a reply of one element.
    _count_ticks = _count_pushes

    def _count_pops(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        by_key, now, waits = self._by_key, self._now_ms(), self.waits
        counts, bounds, total = waits.counts, waits.bounds, waits.total
        last, found = None, _NOBODY
        stamp, wait, bucket = b"", 0, 0
        for entry, reply in zip(entries, replies, strict=True):
            if reply[0]:
                continue
            since = reply[4]
            if not since:
                # Ready since its push, which its id tells. Tasks that were pushed together have the same time.
                pushed = reply[1][:11]
                if pushed != stamp:
                    stamp = pushed
                    wait = max(0, now - (pushed_at_ms(pushed) or now))
                    bucket = bisect_left(bounds, wait)
                counts[bucket] += 1
                total += wait
            elif since > 0:
                waited = max(0, now - since)
                counts[bisect_left(bounds, waited)] += 1
                total += waited
            elif len(reply) > 7:
                # The same lease as before, for a repeated request.
                continue
            key = entry.key
            if key is not last:
                found = by_key.get(key) or self._of_entry(entry)
                last = key
            found.started += 1
        waits.total = total

    def _count_pops_of_many(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        now = self._now_ms()
        for reply in replies:
            for one in reply[1:] if not reply[0] else ():
                since = one[4] or pushed_at_ms(one[1]) or 0
                if since > 0:
                    self.waits.add(max(0, now - since))
                elif one[7]:
                    continue
                self.of(self._store.name_of(one[8])).started += 1

    def _count_acks(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        by_key, runs = self._by_key, self.runs
        counts, bounds, total = runs.counts, runs.bounds, runs.total
        last, found = None, _NOBODY
        for entry, reply in zip(entries, replies, strict=True):
            # A repeated ack has no third element.
            if not reply[0] and len(reply) > 2:
                run = reply[2]
                if run >= 0:
                    counts[bisect_left(bounds, run)] += 1
                    total += run
                key = entry.key
                if key is not last:
                    found = by_key.get(key) or self._of_entry(entry)
                    last = key
                found.done += 1
        runs.total = total

    def _count_confirms(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        for entry, reply in zip(entries, replies, strict=True):
            if len(reply) == 1:
                # An entry names several leases, with spaces between them; the reply says how many of them were gone.
                ended: int = entry.args.count(b" ") + 1 - reply[0]
                (self._by_key.get(entry.key) or self._of_entry(entry)).done += ended

    def _count_fails(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        for entry, reply in zip(entries, replies, strict=True):
            if not reply[0]:
                (self._by_key.get(entry.key) or self._of_entry(entry)).failed += 1

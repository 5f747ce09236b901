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

MAX_QUEUES = 200
OTHER = b"other"
# The label of so many keys is remembered.
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

    def now_ms(self) -> int: ...

    def name_of(self, key: bytes) -> bytes: ...

    def queue_of(self, entry: Any) -> bytes: ...

    def family_of(self, entry: Any) -> bytes: ...


class QueueCounts:
    """The numbers of one label. ``since_ms``: when it was counted first, in Redis's time.

    ``pushed``: tasks pushed here; ``started``: handed out; ``done``, ``dead``: ended; ``failed``: attempts that workers
    reported as failed.
    """

    __slots__ = ("dead", "done", "failed", "pushed", "since_ms", "started")

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.pushed = self.started = self.done = self.dead = self.failed = 0


class Tally:
    """``waits``: how long each task was ready before it was handed out, ms; ``runs``: from there to its ack, for leased ones."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._now_ms = store.now_ms
        self.queues: dict[bytes, QueueCounts] = {}  # by label
        self._by_key: dict[
            bytes, QueueCounts
        ] = {}  # by the key of an entry, or its beginning up to the colon
        self.waits = Histogram(LENGTHS_MS)
        self.runs = Histogram(LENGTHS_MS)
        self.round_trips = Histogram(ROUND_TRIPS)
        self.group_sizes = Histogram(GROUP_SIZES)
        self._counters: dict[str, Callable[[Sequence[Any], Sequence[Any]], None]] = {
            "push": self._count_pushes,
            "pop": self._count_pops,
            "popmany": self._count_pops_of_many,
            "ack": self._count_acks,
            "confirm": self._count_confirms,
            "fail": self._count_fails,
            "schedule": self._count_ticks,
        }

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
        key = self._store.family_of(entry) or entry.key
        found = self._by_key.get(key)
        if found is None:
            found = self.of(self._store.queue_of(entry))
            if len(self._by_key) >= MAX_REMEMBERED:
                self._by_key.clear()
            self._by_key[key] = found
        return found

    def replied(self, verb: str, entries: Sequence[Any], replies: Sequence[Any], seconds: float) -> None:
        """Redis has answered a group, ``seconds`` after it was sent."""
        self.round_trips.add(seconds)
        self.group_sizes.add(len(entries))
        count = self._counters.get(verb)
        if count is not None:
            count(entries, replies)

    def died(self, name: bytes, count: int) -> None:
        """So many tasks of this queue have become dead."""
        self.of(name).dead += count

    def _count_pushes(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        by_key = self._by_key
        for entry, reply in zip(entries, replies, strict=True):
            if not reply[0] and len(reply) == 2:
                (by_key.get(entry.key) or self._of_entry(entry)).pushed += 1

    # A tick that only changes the schedule has a reply of one element.
    _count_ticks = _count_pushes

    def _count_pops(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        by_key, now, waits = self._by_key, self._now_ms(), self.waits
        counts, bounds = waits.counts, waits.bounds
        for entry, reply in zip(entries, replies, strict=True):
            if not reply[0]:
                # When it became ready; 0 means at its push, which its id tells.
                since = reply[4] or int(reply[1][:11], 16)
                if since > 0:
                    wait = now - since if since < now else 0
                    counts[bisect_left(bounds, wait)] += 1
                    waits.total += wait
                elif len(reply) > 7:
                    # The same lease as before, for a repeated request.
                    continue
                (by_key.get(entry.key) or self._of_entry(entry)).started += 1

    def _count_pops_of_many(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        now = self._now_ms()
        for reply in replies:
            for one in reply[1:] if not reply[0] else ():
                since = one[4] or int(one[1][:11], 16)
                if since > 0:
                    self.waits.add(max(0, now - since))
                elif one[7]:
                    continue
                self.of(self._store.name_of(one[8])).started += 1

    def _count_acks(self, entries: Sequence[Any], replies: Sequence[Any]) -> None:
        by_key, runs = self._by_key, self.runs
        counts, bounds = runs.counts, runs.bounds
        for entry, reply in zip(entries, replies, strict=True):
            # A repeated ack has no third element.
            if not reply[0] and len(reply) > 2:
                run = reply[2]
                if run >= 0:
                    counts[bisect_left(bounds, run)] += 1
                    runs.total += run
                (by_key.get(entry.key) or self._of_entry(entry)).done += 1

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

"""What this process has done since its start, in numbers, for `registry.metrics`.

The busy path counts here, once for each group of replies. So this module holds plain numbers and lists; the objects that a
scrape needs are made by the scrape.

A queue is counted under its label: its name, or ``family:*`` for a name with a colon. There are `MAX_QUEUES` labels, first come,
first served, each for the life of the process; all other queues are counted together as `OTHER`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Protocol

from registry.histogram import Histogram
from registry.queue.names import pushed_at_ms
from registry.queue.worker_counts import WorkerCounts

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

    def name_of_bulk(self, key: bytes) -> bytes: ...


class QueueCounts:
    """The numbers of one label. ``since_ms``: when it was counted first, in Redis's time.

    ``pushed``: tasks pushed here; ``started``: handed out; ``done``, ``dead``: ended; ``poison``: of the dead, those on which
    several workers died; ``failed``: attempts that workers reported as failed.
    """

    __slots__ = ("dead", "done", "failed", "poison", "pushed", "since_ms", "started")

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.pushed = self.started = self.done = self.dead = self.poison = self.failed = 0


_KEY = attrgetter("key")
# Elements of replies.
_FIRST, _THIRD, _SINCE, _LIST = map(itemgetter, (0, 2, 4, 8))


class Tally:
    """``waits``: how long each task was ready before it was handed out, ms; ``runs``: from there to its ack, for leased ones."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._now_ms = store.now_ms
        self._colons = store.colons
        self.queues: dict[bytes, QueueCounts] = {}  # by label
        self.workers = WorkerCounts()
        # By the key of an entry, or its beginning up to the colon.
        self._by_family: dict[bytes, QueueCounts] = {}
        self.waits = Histogram(LENGTHS_MS)
        self.runs = Histogram(LENGTHS_MS)
        self.round_trips = Histogram(ROUND_TRIPS)
        self._sizes: dict[int, int] = {}  # the number of groups by their number of entries
        self._counters: dict[str, Callable[[Sequence[Any], list[Any]], None]] = {
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

    def _count(self, kind: str, entries: Sequence[Any]) -> None:
        """Add one to a number of the queue of each entry."""
        keys = list(map(_KEY, entries))
        # Most groups ask one queue.
        if keys.count(keys[0]) == len(keys):
            groups: Iterable[tuple[bytes, int]] = ((self._family(keys[0]), len(keys)),)
        else:
            groups = Counter(map(self._family, keys)).items()
        for family, count in groups:
            found = self._by_family.get(family) or self._learn(family, entries)
            setattr(found, kind, getattr(found, kind) + count)

    def _family(self, key: bytes) -> bytes:
        # A queue that was made for one request (its name has a colon) does not come again, but its family does.
        if not self._colons:
            return key.partition(b":")[0]
        # Behind those of the prefix.
        return b":".join(key.split(b":", self._colons + 1)[: self._colons + 1])

    def _learn(self, family: bytes, entries: Sequence[Any]) -> QueueCounts:
        entry = next(entry for entry in entries if self._family(entry.key) == family)
        found = self.of(self._store.queue_of(entry))
        if len(self._by_family) >= MAX_REMEMBERED:
            self._by_family.clear()
        self._by_family[family] = found
        return found

    def replied(self, verb: str, entries: Sequence[Any], replies: list[Any], seconds: float) -> None:
        """Redis has answered a group, ``seconds`` after it was sent."""
        size = len(entries)
        self.round_trips.extend((seconds,))
        self._sizes[size] = self._sizes.get(size, 0) + 1
        count = self._counters.get(verb)
        if count is not None:
            count(entries, replies)

    def died(self, name: bytes, count: int, poisoned: int) -> None:
        """So many tasks of this queue have become dead, ``poisoned`` of them as poison."""
        found = self.of(name)
        found.dead += count
        found.poison += poisoned

    # Most of the work on a group is done for all its entries together: a loop would cost more than the rest of a request.

    def _count_pushes(self, entries: Sequence[Any], replies: list[Any]) -> None:
        first = replies[0]
        if first[0] or len(first) != 2 or replies.count(first) < len(replies):
            entries = [
                e for e, reply in zip(entries, replies, strict=True) if not reply[0] and len(reply) == 2
            ]
        if entries:
            self._count("pushed", entries)

    # A tick that only changes the schedule has a reply of one element.
    _count_ticks = _count_pushes

    def _count_pops(self, entries: Sequence[Any], replies: list[Any]) -> None:
        if any(map(_FIRST, replies)):
            entries = [entry for entry, reply in zip(entries, replies, strict=True) if not reply[0]]
            replies = [reply for reply in replies if not reply[0]]
        if any(map(_SINCE, replies)):
            starts = [self._is_start(reply) for reply in replies]
            entries = [entry for entry, is_start in zip(entries, starts, strict=True) if is_start]
        else:
            self._add_waits([reply[1][:11] for reply in replies])
        if entries:
            self._count("started", entries)

    def _add_waits(self, stamps: list[bytes]) -> None:
        """Count the waits of tasks that were ready since their push; ``stamps``: the beginnings of their ids, which tell the time."""
        now = self._now_ms()
        # Tasks that were pushed together have the same.
        for stamp, count in Counter(stamps).items():
            self.waits.add(max(0, now - (pushed_at_ms(stamp) or now)), count)

    def _is_start(self, reply: list[Any]) -> bool:
        """Count the wait of a task that was handed out; whether it was, and not just shown again to a repeated request."""
        since = reply[4]
        if not since:
            self._add_waits([reply[1][:11]])
        elif since > 0:
            self.waits.add(max(0, self._now_ms() - since))
        else:
            return len(reply) < 8 or not reply[7]
        return True

    def _count_pops_of_many(self, entries: Sequence[Any], replies: list[Any]) -> None:
        for reply in replies:
            if not reply[0]:
                ones = reply[1:]
                if any(map(_SINCE, ones)):
                    ones = [one for one in ones if self._is_start(one)]
                else:
                    self._add_waits([one[1][:11] for one in ones])
                for key, count in Counter(map(_LIST, ones)).items():
                    self.of(self._store.name_of(key)).started += count

    def _count_acks(self, entries: Sequence[Any], replies: list[Any]) -> None:
        # A repeated ack has no third element.
        lengths = set(map(len, replies))
        if any(map(_FIRST, replies)) or min(lengths) < 3:
            entries = [
                e for e, reply in zip(entries, replies, strict=True) if not reply[0] and len(reply) > 2
            ]
            replies = [reply for reply in replies if not reply[0] and len(reply) > 2]
        if entries:
            runs = list(map(_THIRD, replies))
            self.runs.extend(runs if min(runs) >= 0 else [run for run in runs if run >= 0])
            self._count("done", entries)
            if max(lengths) > 3:
                self._count_workers("done", entries, replies, 3)

    def _count_workers(self, kind: str, entries: Sequence[Any], replies: list[Any], at: int) -> None:
        """Count the entries whose reply names their worker, at index ``at``."""
        by_key: dict[bytes, list[bytes]] = {}
        for entry, reply in zip(entries, replies, strict=True):
            if len(reply) > at:
                by_key.setdefault(entry.key, []).append(reply[at])
        for key, workers in by_key.items():
            label = label_of(self._store.name_of_bulk(key))
            for worker, count in Counter(workers).items():
                self.workers.add(worker.decode("utf-8", "replace"), label, **{kind: count})

    def _count_confirms(self, entries: Sequence[Any], replies: list[Any]) -> None:
        for entry, reply in zip(entries, replies, strict=True):
            if len(reply) == 1:
                # An entry names several leases, with spaces between them; the reply says how many of them were gone.
                ended: int = entry.args.count(b" ") + 1 - reply[0]
                family = self._family(entry.key)
                (self._by_family.get(family) or self._learn(family, entries)).done += ended

    def _count_fails(self, entries: Sequence[Any], replies: list[Any]) -> None:
        failed = [entry for entry, reply in zip(entries, replies, strict=True) if not reply[0]]
        if failed:
            self._count("failed", failed)
            self._count_workers("failed", failed, [reply for reply in replies if not reply[0]], 2)

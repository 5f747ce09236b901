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

from registry.histogram import Histogram, sum_of
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
    several workers died; ``failed``: attempts that workers reported as failed. ``waits``: how long each task was ready before it
    was handed out, ms; ``runs``: from there to its ack, for leased ones.
    """

    __slots__ = ("dead", "done", "failed", "poison", "pushed", "runs", "since_ms", "started", "waits")

    def __init__(self, since_ms: int) -> None:
        self.since_ms = since_ms
        self.pushed = self.started = self.done = self.dead = self.poison = self.failed = 0
        self.waits = Histogram(LENGTHS_MS)
        self.runs = Histogram(LENGTHS_MS)


_KEY = attrgetter("key")
# Elements of replies.
_FIRST, _THIRD, _SINCE, _LIST = map(itemgetter, (0, 2, 4, 8))


class Tally:
    """Counts what Redis answers. ``queues``: by label."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._now_ms = store.now_ms
        self._colons = store.colons
        self.queues: dict[bytes, QueueCounts] = {}
        self.workers = WorkerCounts()
        # By the key of an entry, or its beginning up to the colon.
        self._by_family: dict[bytes, QueueCounts] = {}
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
    def waits(self) -> Histogram:
        """The waits in all queues."""
        return sum_of([one.waits for one in self.queues.values()], LENGTHS_MS)

    @property
    def runs(self) -> Histogram:
        """The runs of all queues."""
        return sum_of([one.runs for one in self.queues.values()], LENGTHS_MS)

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

    def _count(self, kind: str, entries: Sequence[Any]) -> list[bytes]:
        """Add one to a number of the queue of each entry. Returns the family of each, or one if it is that of all."""
        keys = list(map(_KEY, entries))
        # Most groups ask one queue.
        if keys.count(keys[0]) == len(keys):
            families = [self._family(keys[0])]
            groups: Iterable[tuple[bytes, int]] = ((families[0], len(keys)),)
        else:
            families = list(map(self._family, keys))
            groups = Counter(families).items()
            if len(groups) == 1:
                families = families[:1]
        for family, count in groups:
            found = self._by_family.get(family) or self._learn(family, entries)
            setattr(found, kind, getattr(found, kind) + count)
        return families

    def _counts_of(self, families: list[bytes], entries: Sequence[Any]) -> list[QueueCounts]:
        return [self._by_family.get(family) or self._learn(family, entries) for family in families]

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
        """``count`` tasks of this queue have become dead, ``poisoned`` of them as poison."""
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
        since_push = not any(map(_SINCE, replies))
        if not since_push:
            entries = [e for e, reply in zip(entries, replies, strict=True) if _is_start(reply)]
            replies = list(filter(_is_start, replies))
        if entries:
            families = self._count("started", entries)
            self._add_waits(self._counts_of(families, entries), replies, since_push)

    def _add_waits(self, of: list[QueueCounts], replies: list[Any], since_push: bool) -> None:
        """Count the wait of each started task; ``of``: for whom, one for all or each. ``since_push``: all waited since then."""
        now = self._now_ms()
        if since_push:
            # Tasks that were pushed together have the same beginning of their ids, which tells the time.
            stamps = [reply[1][:11] for reply in replies]
            if len(of) == 1:
                for stamp, count in Counter(stamps).items():
                    of[0].waits.add(max(0, now - (pushed_at_ms(stamp) or now)), count)
                return
            waits = {stamp: max(0, now - (pushed_at_ms(stamp) or now)) for stamp in set(stamps)}
            for one, stamp in zip(of, stamps, strict=True):
                one.waits.extend((waits[stamp],))
            return
        for one, reply in zip(of if len(of) > 1 else of * len(replies), replies, strict=True):
            since = reply[4] or pushed_at_ms(reply[1][:11]) or now
            # An element of another program does not tell since when it was ready.
            if since > 0:
                one.waits.add(max(0, now - since))

    def _count_pops_of_many(self, entries: Sequence[Any], replies: list[Any]) -> None:
        for reply in replies:
            if not reply[0]:
                ones = reply[1:]
                since_push = not any(map(_SINCE, ones))
                if not since_push:
                    ones = list(filter(_is_start, ones))
                lists = list(map(_LIST, ones))
                counts = {key: self.of(self._store.name_of(key)) for key in set(lists)}
                for key, count in Counter(lists).items():
                    counts[key].started += count
                if ones:
                    self._add_waits([counts[key] for key in lists], ones, since_push)

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
            of = self._counts_of(self._count("done", entries), entries)
            if len(of) == 1:
                of[0].runs.extend(runs if min(runs) >= 0 else [run for run in runs if run >= 0])
            else:
                for one, run in zip(of, runs, strict=True):
                    if run >= 0:
                        one.runs.extend((run,))
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


def _is_start(reply: list[Any]) -> bool:
    """Whether a task was handed out, and not just shown again to a repeated request."""
    return reply[4] >= 0 or len(reply) < 8 or not reply[7]

"""What the charts show: what happened in each step of time, kept in Redis for all daemons together.

Each process adds what it has counted since it last did (`registry.queue.tally`) to the current step of each length. So the numbers
of processes and daemons add up, and a restart loses nothing that was added. A call is numbered, and sent again until it is answered:
Redis carries out each number once. A daemon that has nothing to add says so, and a step of which nobody said anything is a gap: no
daemon ran, or Redis was away.

The labels are those of the tally, which are bounded in number for each process, and the script bounds them for each step.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from twisted.internet.defer import DeferredLock, inlineCallbacks

from registry.errors import RegistryError, Unavailable
from registry.histogram import quantile
from registry.queue.census import Census, Totals
from registry.queue.queues import Queues
from registry.queue.sights import Sights
from registry.queue.sweeper import STATS_SECONDS
from registry.queue.tally import LENGTHS_MS, OTHER, QueueCounts, label_of

Numbers = dict[int, int]

# What an index of the stored numbers means. The first ones are attributes of `QueueCounts`.
COUNTED = ("pushed", "started", "done", "failed", "dead")
OLDEST, READY = len(COUNTED), len(COUNTED) + 1  # the age of the oldest ready task, ms; ready tasks
BUCKETS = len(LENGTHS_MS) + 1
WAITS, RUNS = 8, 32  # the first buckets of the waits and of the runs
ALL = b""  # the label of all queues together

# A call adds to at most this many labels: Redis is busy for about a ms.
LABELS_PER_CALL = 5
# A request for the charts first adds what this process has counted, unless it did so within this time, s.
FRESH_SECONDS = 1.0
# All queues are looked at this often, s, but not again before this many times the time has passed that the last look took.
LOOK_SECONDS, REST = 10.0, 50
# Rates are of the last minute, in steps of this length, s.
RATE_STEP, RATE_STEPS = 10, 6


class Range(NamedTuple):
    """A range: its number of points, and the seconds between them."""

    step: int
    points: int


RANGES = {
    "15m": Range(10, 90),
    "1h": Range(60, 60),
    "6h": Range(300, 72),
    "24h": Range(900, 96),
    "7d": Range(7200, 84),
}
# The length of each step and how long it is kept, s.
_LENGTHS = [part for step, points in RANGES.values() for part in (step, step * (points + 2))]


@dataclass(slots=True)
class Point:
    """A step that began at ``at``, s since 1970. ``numbers``: None for a gap, and where the queue's own are unknown.

    ``looked``: somebody looked at all queues in this step.
    """

    at: int
    numbers: Numbers | None
    looked: bool = False

    def count(self, kind: str) -> int | None:
        """How often it happened, None for a gap."""
        return None if self.numbers is None else self.numbers.get(COUNTED.index(kind), 0)

    def quantile(self, first: int, share: float) -> float | None:
        """This share of the waits (``first`` is `WAITS`) or runs (`RUNS`) was shorter, s; None where there was none."""
        if self.numbers is None:
            return None
        counts = [self.numbers.get(first + bucket, 0) for bucket in range(BUCKETS)]
        found = quantile(LENGTHS_MS, counts, share)
        return None if found is None else found / 1000

    @property
    def oldest(self) -> float | None:
        """The largest age of a ready task that was seen, s; None where none was."""
        ms = (self.numbers or {}).get(OLDEST)
        return None if ms is None else ms / 1000

    @property
    def ready(self) -> int | None:
        """The largest number of ready tasks that was seen; None where nobody looked."""
        return self.numbers.get(READY, 0) if self.numbers is not None and self.looked else None


@dataclass(slots=True)
class Chart:
    """``counted_as``: the label whose numbers the points have, None for all queues. ``final_until``: what happened before this
    time, ms, is in the points; later ones may still grow. ``marks``: what was first seen, and when, ms."""

    step: int
    counted_as: bytes | None
    points: list[Point]
    final_until: int
    marks: list[tuple[int, str]]


@dataclass(slots=True)
class Hour:
    """The last hour of a queue, a minute a point, and its last minute. Rates are per second, None while they are unknown."""

    points: list[Point]
    rates: dict[str, float | None] = field(default_factory=dict)


class _Call(NamedTuple):
    """What is to be added. ``at``: when it was counted, monotonic, s."""

    number: int
    at: float
    numbers: dict[bytes, Numbers]


class Stats:
    """Adds what this process counts, and reads what all have added."""

    def __init__(
        self, queues: Queues, census: Census, sights: Sights, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = queues.store
        self._tally = queues.tally
        self._census = census
        self._sights = sights
        self._now = now
        self._lock = DeferredLock()
        self._added: dict[bytes, tuple[int, ...]] = {}  # label -> what was added, or is in a call
        self._calls: list[_Call] = []  # not answered yet
        self._number = 0
        self._wrote_at = -1.0
        self._look_at = 0.0
        self._looked: dict[bytes, Numbers] = {}

    # Writing

    def write(self) -> Any:
        """Add what was counted since the last call. Fires when Redis has it; fails with `Unavailable`, and is then repeated."""
        return self._lock.run(self._write)

    @inlineCallbacks
    def _write(self) -> Any:
        yield self._look()
        if not self._calls:
            # While calls are waiting, the rest waits in the tally.
            self._collect()
        while self._calls:
            call = self._calls[0]
            age_ms = int((self._now() - call.at) * 1000)
            try:
                yield self._store.add_stats(call.number, age_ms, _LENGTHS, call.numbers)
            except Unavailable:
                raise
            except Exception:
                # Redis would refuse it each time.
                del self._calls[0]
                raise
            del self._calls[0]
        self._wrote_at = self._now()
        yield self._sights.write()

    def _collect(self) -> None:
        changed: dict[bytes, Numbers] = {}
        everything: Numbers = {}
        for label, counts in self._tally.queues.items():
            flat = _flat(counts)
            before = self._added.get(label)
            if flat == before:
                continue
            self._added[label] = flat
            numbers = _difference(flat, before)
            if numbers:
                changed[label] = numbers
                for index, number in numbers.items():
                    everything[index] = everything.get(index, 0) + number
        looked, self._looked = self._looked, {}
        for label, numbers in looked.items():
            (everything if label == ALL else changed.setdefault(label, {})).update(numbers)
        if everything:
            changed[ALL] = everything
        labels = list(changed)
        now = self._now()
        for at in range(0, len(labels), LABELS_PER_CALL):
            self._number += 1
            piece = {label: changed[label] for label in labels[at : at + LABELS_PER_CALL]}
            self._calls.append(_Call(self._number, now, piece))
        if not labels:
            self._calls.append(_Call(0, now, {}))

    @inlineCallbacks
    def _look(self) -> Any:
        """See how many tasks are ready and how old the oldest is, if no other daemon has just done so."""
        began = self._now()
        if began < self._look_at:
            return
        self._look_at = began + LOOK_SECONDS
        if not (yield self._store.may_look(int(LOOK_SECONDS * 900))):
            return
        totals: dict[bytes, Totals] = yield self._census.read()
        took = self._now() - began
        if took * REST > LOOK_SECONDS:
            self._look_at = began + took * REST
            yield self._store.rest_from_looking(int(took * REST * 900))
        now_ms = self._store.now_ms()
        known = self._tally.queues
        self._looked = {ALL: {READY: 0}}
        # The fullest first: there may be more of them than labels.
        for label, one in sorted(totals.items(), key=lambda pair: -sum(pair[1].held)):
            self._tally.of_label(label)
            for name in (ALL, label if label in known else OTHER):
                numbers = self._looked.setdefault(name, {READY: 0})
                numbers[READY] += one.held[0]
                if one.oldest_ms is not None:
                    numbers[OLDEST] = max(numbers.get(OLDEST, 0), now_ms - one.oldest_ms)

    # Reading

    @inlineCallbacks
    def chart(self, name: str, queue: bytes | None) -> Any:
        """Fires with the `Chart` of one of `RANGES`, of one queue or of all; the last point is of the step that has not ended yet."""
        yield self._write_if_old()
        step, count = RANGES[name]
        now_ms = self._store.now_ms()
        label = None if queue is None else label_of(queue)
        steps = _steps(step, count, now_ms)
        rows = yield self._store.stats(steps, [ALL] if label is None else [ALL, label, OTHER])
        if label is None:
            points = [Point(at, row[0], _looked(row[0])) for (_, at), row in zip(steps, rows, strict=True)]
        else:
            points = _points(steps, [(row[0], row[1], row[2]) for row in rows])
            if not _is_known([row[1] for row in rows]) and any(row[2] is not None for row in rows):
                label = OTHER
        begin = steps[0][1] * 1000
        marks = [one for one in (yield self._sights.read(label)) if one[0] >= begin]
        return Chart(step, label, points, now_ms - int(STATS_SECONDS * 2000), marks)

    @inlineCallbacks
    def hours(self, queues: Iterable[bytes]) -> Any:
        """Fires with the `Hour` of each of these queues, by name; a family may be among them by its label."""
        labels = {name: label_of(name) for name in queues}
        # What is counted with its family, or with others, has no numbers of its own.
        own = sorted({label for name, label in labels.items() if name == label})
        yield self._write_if_old()
        now_ms = self._store.now_ms()
        minutes = _steps(*RANGES["1h"], now_ms)
        # The steps of the last minute that have ended, and were added.
        rate_steps = _steps(RATE_STEP, RATE_STEPS, now_ms - RATE_STEP * 1000)
        found = yield self._store.stats([*minutes, *rate_steps], [ALL, OTHER, *own])
        hours: dict[bytes, Hour] = {}
        for name, label in labels.items():
            if name != label:
                hours[name] = Hour([Point(at, None) for _, at in minutes])
                continue
            column = 2 + own.index(label)
            rows = [(row[0], row[column], row[1]) for row in found]
            points = _points([*minutes, *rate_steps], rows)
            hours[name] = Hour(points[: len(minutes)], _rates(points[len(minutes) :]))
        return hours

    @inlineCallbacks
    def _write_if_old(self) -> Any:
        if self._now() > self._wrote_at + FRESH_SECONDS:
            # The reading says why if Redis is away.
            with contextlib.suppress(RegistryError):
                yield self.write()


def _flat(counts: QueueCounts) -> tuple[int, ...]:
    return (
        counts.pushed,
        counts.started,
        counts.done,
        counts.failed,
        counts.dead,
        *counts.waits.counts,
        *counts.runs.counts,
    )


_INDEXES = (*range(len(COUNTED)), *range(WAITS, WAITS + BUCKETS), *range(RUNS, RUNS + BUCKETS))


def _difference(flat: tuple[int, ...], before: tuple[int, ...] | None) -> Numbers:
    if before is None:
        return {index: now for index, now in zip(_INDEXES, flat, strict=True) if now}
    pairs = zip(_INDEXES, flat, before, strict=True)
    return {index: now - then for index, now, then in pairs if now != then}


def _steps(step: int, count: int, now_ms: int) -> list[tuple[int, int]]:
    """The last steps of this length up to now: their length and their begin, s."""
    last = now_ms // 1000 // step * step
    return [(step, last - back * step) for back in reversed(range(count))]


def _looked(numbers: Mapping[int, int] | None) -> bool:
    return numbers is not None and READY in numbers


def _is_known(numbers: Sequence[Numbers | None]) -> bool:
    return any(one is not None for one in numbers)


def _points(
    steps: Sequence[tuple[int, int]], rows: Sequence[tuple[Numbers | None, Numbers | None, Numbers | None]]
) -> list[Point]:
    """The points of a label, from the numbers of all queues, of the label, and of the queues that have no label of their own."""
    known = _is_known([own for _, own, _ in rows])
    points = []
    for (_, at), (everything, own, other) in zip(steps, rows, strict=True):
        if own is None and everything is not None and (known or other is None):
            own = {}
        points.append(Point(at, None if everything is None else own, _looked(everything)))
    return points


def _rates(points: Sequence[Point]) -> dict[str, float | None]:
    rates: dict[str, float | None] = {}
    for kind in COUNTED:
        counts = [count for point in points if (count := point.count(kind)) is not None]
        rates[kind] = round(sum(counts) / (len(counts) * RATE_STEP), 3) if counts else None
    return rates

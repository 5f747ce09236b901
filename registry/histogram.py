"""Counts of values in buckets, cheap enough for the busy path."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

# Values are sorted into buckets when this many have been added: sorting a thousand costs less than finding a bucket for each.
MAX_PENDING = 1024


class Histogram:
    """How many values were in each bucket; `counts` and `total` include every value added so far."""

    __slots__ = ("_counts", "_pending", "_total", "bounds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self._total: float = 0
        self._pending: list[float] = []

    def add(self, value: float, times: int = 1) -> None:
        """Count a value ``times`` times."""
        self._counts[bisect_left(self.bounds, value)] += times
        self._total += times * value

    def extend(self, values: Iterable[float]) -> None:
        """Count these values."""
        self._pending += values
        if len(self._pending) >= MAX_PENDING:
            self._sort()

    def merge(self, other: Histogram) -> None:
        """Count what the other one has counted; both have the same bounds."""
        self._counts = [a + b for a, b in zip(self._counts, other.counts, strict=True)]
        self._total += other.total

    def _sort(self) -> None:
        if not self._pending:
            return
        values, self._pending = sorted(self._pending), []
        self._total += sum(values)
        start = 0
        for at, bound in enumerate(self.bounds):
            end = bisect_right(values, bound, start)
            self._counts[at] += end - start
            start = end
        self._counts[-1] += len(values) - start

    @property
    def counts(self) -> list[int]:
        """How many values were at most ``bounds[i]`` and above the bound before it; the last: above all bounds."""
        self._sort()
        return self._counts

    @property
    def total(self) -> float:
        """The sum of all values."""
        self._sort()
        return self._total


def sum_of(several: Iterable[Histogram], bounds: Sequence[float]) -> Histogram:
    """What all of them have counted; they have these bounds."""
    whole = Histogram(bounds)
    for one in several:
        whole.merge(one)
    return whole


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value below which this ``share`` of the values is, as far as their buckets tell; None where nothing was counted.

    Within a bucket the values are taken to be spread evenly; those above all bounds count as the last bound.
    """
    rank = share * sum(counts)
    if not rank:
        return None
    low, before = 0.0, 0
    for bound, count in zip(bounds, counts, strict=False):
        if count and before + count >= rank:
            return low + (bound - low) * (rank - before) / count
        low, before = bound, before + count
    return low

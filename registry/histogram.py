"""Counts of values in buckets, cheap enough for the busy path."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

# Values are sorted into buckets when so many have come: sorting a thousand costs less than finding a bucket for each.
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

    def _sort(self) -> None:
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

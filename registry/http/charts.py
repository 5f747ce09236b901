"""What charts draw: the points of a range of time, for all queues or one, and the last hour of each queue in a list."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.http.codec import json_answer, one_of, text
from registry.http.request import Options, Request
from registry.http.rows import rfc3339
from registry.queue.names import check_name
from registry.queue.stats import COUNTED, RANGES, RUNS, WAITS, Chart, Hour, Point, Stats

DEFAULT_RANGE = "1h"
STATS_OPTIONS: Options = {"range": one_of(*RANGES), "queue": text(1, 255)}


class Charts:
    """Answers with what `Stats` has."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats

    @inlineCallbacks
    def stats(self, request: Request) -> Any:
        """The points of a range of time; ``request`` is a `Request`."""
        given = request.options
        name, queue = given.get("range", DEFAULT_RANGE), given.get("queue")
        chart: Chart = yield self._stats.chart(name, None if queue is None else check_name(queue.encode()))
        counted_as = chart.counted_as
        answer = {
            "range": name,
            "step": chart.step,
            "queue": queue,
            "counted_as": None if counted_as is None else counted_as.decode("utf-8", "replace"),
            "points": [point_row(point) for point in chart.points],
            "totals": {kind: _sum(chart.points, kind) for kind in COUNTED},
            "marks": [{"at": rfc3339(at), "text": text} for at, text in chart.marks],
            "final_until": rfc3339(chart.final_until),
        }
        return json_answer(200, answer)

    @inlineCallbacks
    def add_to(self, rows: list[dict[str, Any]]) -> Any:
        """Add its last hour and its rates to each row of a list of queues."""
        hours: dict[bytes, Hour] = yield self._stats.hours([row["name"].encode() for row in rows])
        for row in rows:
            hour = hours[row["name"].encode()]
            row["rates"] = hour.rates
            row["last_hour"] = {
                **{kind: _sum(hour.points, kind) for kind in COUNTED},
                "step": RANGES["1h"].step,
                "ready": [point.ready for point in hour.points],
            }


def point_row(point: Point) -> dict[str, Any]:
    """A point as the API shows it."""
    quantiles = {
        f"{kind}_{name}": _rounded(point.quantile(first, share))
        for kind, first in (("wait", WAITS), ("run", RUNS))
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    return {
        "at": rfc3339(point.at * 1000),
        **{kind: point.count(kind) for kind in COUNTED},
        **quantiles,
        "oldest_age": point.oldest,
        "ready": point.ready,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _sum(points: list[Point], kind: str) -> int | None:
    """How often it happened in all points together; None where all of them are gaps."""
    counts = [count for point in points if (count := point.count(kind)) is not None]
    return sum(counts) if counts else None

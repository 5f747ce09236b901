"""The page that Prometheus scrapes: ``GET /metrics``. docs/monitoring.md says what each metric means.

The busy path counts plain numbers (`registry.queue.tally`, `registry.http.server`, `registry.stalls`); the objects of
prometheus_client are made here, for each scrape, a metric in a turn of the reactor.

Where several processes are one daemon, each shares its numbers with the others through Redis, with its heartbeat and before a
scrape, and the one that is scraped answers with the sum of what was shared. So the sum never goes back, whichever process answers.
The successor of a process that ended continues its numbers, because a counter that goes back looks like a restart to Prometheus.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import msgpack
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from twisted.internet.defer import inlineCallbacks

from registry import __version__
from registry.errors import Unavailable
from registry.histogram import Histogram
from registry.queue.census import STATES, Census, Totals
from registry.queue.queues import Queues
from registry.queue.tally import MAX_QUEUES, OTHER
from registry.redis.presence import Health

# The numbers of the processes of a daemon are kept this long in Redis after the last of them has shared its own, s.
SHARED_SECONDS = 3600
# Tokens on the page: those that expire first, but not those that expired longer ago than this, s.
MAX_TOKENS, EXPIRED_SECONDS = 100, 7 * 86_400.0
# The endpoints whose answer 202 is a poll without a task.
POLLS = ("pop", "pop_many")

# What was counted: a metric and the values of its labels -> number. The numbers of several processes are added.
Numbers = defaultdict[tuple[str | int, ...], float]


class Sources(NamedTuple):
    """What the page shows besides the queues. ``answered()``: route, endpoint, status and count of answers.

    ``refused``: answers of 400 and above, by the code of the error. ``connections()``: how many are open. ``expiries()``: names of
    tokens, and when they expire, s since 1970. ``is_anonymous()``: everybody in the network may do everything.
    """

    answered: Callable[[], Iterable[tuple[str, str, int, int]]]
    refused: Mapping[str, int]
    connections: Callable[[], int]
    lags: Histogram
    expiries: Callable[[], list[tuple[str, float]]]
    is_anonymous: Callable[[], bool]


class Metrics:
    """Makes the page. ``daemon``: an id that all processes of this daemon have, "" for one alone; ``slot``: its number."""

    def __init__(
        self,
        queues: Queues,
        census: Census,
        sources: Sources,
        daemon: str = "",
        slot: int = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._queues = queues
        self._store = queues.store
        self._census = census
        self._sources = sources
        self._daemon = daemon
        self._slot = slot
        self._now = now
        self._before: Numbers | None = (
            None if daemon else _no_numbers()
        )  # of the former processes in this slot
        self._before_since: dict[str, int] = {}
        self._shared: dict[int, bytes] = {}

    @inlineCallbacks
    def page(self) -> Any:
        """Fires with the page as bytes. What only Redis knows is missing while Redis is away."""
        totals: dict[bytes, Totals] | None = None
        health: Health | None = None
        try:
            health = yield self._store.health()
            totals = yield self._census.read()
        except Unavailable:
            pass
        if totals is not None:
            # The fullest first: there may be more of them than labels.
            for label in sorted(totals, key=lambda label: -sum(totals[label].held)):
                self._queues.tally.of_label(label)
        numbers, since = yield self._numbers()
        labels = sorted(since, key=lambda label: (label == OTHER.decode(), since[label], label))[:MAX_QUEUES]
        page = []
        for family in self._families(numbers, set(labels), totals, health):
            page.append(generate_latest(_One(family)))
            yield self._queues.turn(None)
        return b"".join(page)

    # Sums over processes

    def _own(self) -> tuple[Numbers, dict[str, int]]:
        """The numbers of this process and its predecessors, and since when each label of a queue is known, ms."""
        numbers = _no_numbers()
        _add(numbers, self._before or {})
        since = dict(self._before_since)
        for name, counts in self._queues.tally.queues.items():
            label = name.decode("utf-8", "replace")
            since[label] = min(since.get(label, counts.since_ms), counts.since_ms)
            for kind in ("pushed", "started", "done", "dead", "poison", "failed"):
                numbers["queue", kind, label] += getattr(counts, kind)
        for path, verb, status, count in self._sources.answered():
            numbers["answered", path, verb, status] += count
        for code, count in self._sources.refused.items():
            numbers["refused", code] += count
        for kind, histogram in self._histograms().items():
            for at, count in enumerate(histogram.counts):
                numbers["bucket", kind, at] += count
            numbers["total", kind] += histogram.total
        return numbers, since

    def _histograms(self) -> dict[str, Histogram]:
        tally = self._queues.tally
        return {
            "wait": tally.waits,
            "run": tally.runs,
            "round_trip": tally.round_trips,
            "group": tally.group_sizes,
            "lag": self._sources.lags,
        }

    def _current(self) -> Numbers:
        """What a successor does not continue."""
        current = _no_numbers()
        current["parked",] = self._queues.wait_lists.parked
        current["connections",] = self._sources.connections()
        return current

    @inlineCallbacks
    def share(self) -> Any:
        """Share the numbers of this process with the others of its daemon. Does nothing for one process alone."""
        if not self._daemon:
            return
        if self._before is None:
            self._shared = yield self._store.shared(self._daemon)
            former = self._shared.get(self._slot)
            if self._before is None:
                self._before, self._before_since, _ = _decode(former) if former else (_no_numbers(), {}, None)
        encoded = _encode(*self._own(), self._current())
        yield self._store.share(self._daemon, self._slot, encoded, SHARED_SECONDS)
        self._shared[self._slot] = encoded

    @inlineCallbacks
    def _numbers(self) -> Any:
        if not self._daemon:
            numbers, since = self._own()
            _add(numbers, self._current())
            return numbers, since
        try:
            yield self.share()
            self._shared = yield self._store.shared(self._daemon)
        except Unavailable:
            # What was shared last: less would look like a restart.
            self._shared = self._shared or {self._slot: _encode(*self._own(), self._current())}
        sums = _no_numbers()
        earliest: dict[str, int] = {}
        for encoded in self._shared.values():
            numbers, since, current = _decode(encoded)
            _add(sums, numbers)
            _add(sums, current)
            for label, at in since.items():
                earliest[label] = min(earliest.get(label, at), at)
        return sums, earliest

    # The page

    def _families(
        self,
        numbers: Numbers,
        labels: set[str],
        totals: dict[bytes, Totals] | None,
        health: Health | None,
    ) -> Iterator[Metric]:
        build = GaugeMetricFamily("registry_build_info", "The version of the registry.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        if totals is not None:
            yield from self._held(totals, labels)
        yield from _queue_counters(numbers, labels)
        yield self._histogram(numbers, "wait", "task_wait_seconds", "From ready to handed out.", 1000)
        yield self._histogram(numbers, "run", "task_run_seconds", "From a lease to its ack.", 1000)
        yield from _requests(numbers)
        yield _gauge(
            "polls_parked", "Places of waiting polls, one for each queue of a poll.", numbers["parked",]
        )
        yield _gauge("http_connections", "Open connections of clients.", numbers["connections",])
        yield self._histogram(numbers, "lag", "reactor_lag_seconds", "How late a timer of 0.1 s was.")
        yield self._histogram(numbers, "group", "redis_group_size", "Requests in one call to Redis.")
        yield self._histogram(
            numbers, "round_trip", "redis_round_trip_seconds", "From a call to Redis to its reply."
        )
        yield _gauge("redis_up", "1 while Redis answers, else 0.", int(health is not None))
        if health is not None:
            yield _gauge("redis_memory_bytes", "Memory that Redis uses.", health.used)
            yield _gauge("redis_memory_limit_bytes", "Redis's maxmemory, 0 for none.", health.limit)
            yield _gauge(
                "redis_persisting", "0 when Redis could not write to its disk, else 1.", health.persists
            )
        yield self._tokens()
        yield _gauge(
            "anonymous", "1 while everybody in the network may do everything.", self._sources.is_anonymous()
        )

    def _held(self, totals: dict[bytes, Totals], labels: set[str]) -> Iterator[Metric]:
        tasks = GaugeMetricFamily("registry_tasks", "Tasks by state.", labels=["queue", "state"])
        oldest = GaugeMetricFamily(
            "registry_oldest_ready_seconds", "Age of the oldest ready task, 0 for none.", labels=["queue"]
        )
        pollers = GaugeMetricFamily(
            "registry_pollers", "Waiting polls, of all daemons on this Redis.", labels=["queue"]
        )
        paused = GaugeMetricFamily("registry_paused_tasks", "Ready tasks in paused queues.", labels=["queue"])
        # A label that holds nothing now is shown with zeros, so that an alert sees the difference.
        by_label = {label: Totals() for label in labels}
        for name, one in totals.items():
            label = _shown(name.decode("utf-8", "replace"), labels)
            by_label.setdefault(label, Totals()).add(one)
        now_ms = self._store.now_ms()
        for label, one in by_label.items():
            for state, count in zip(STATES, one.held, strict=True):
                tasks.add_metric([label, state], count)
            oldest.add_metric([label], 0 if one.oldest_ms is None else max(0, now_ms - one.oldest_ms) / 1000)
            pollers.add_metric([label], one.pollers)
            paused.add_metric([label], one.paused)
        yield from (tasks, oldest, pollers, paused)

    def _histogram(self, numbers: Numbers, kind: str, name: str, text: str, unit: int = 1) -> Metric:
        """``unit``: how many of the counted values are one of the metric."""
        bounds = self._histograms()[kind].bounds
        buckets, count = [], 0.0
        for at, bound in enumerate(bounds):
            count += numbers["bucket", kind, at]
            buckets.append((str(bound / unit), count))
        buckets.append(("+Inf", count + numbers["bucket", kind, len(bounds)]))
        family = HistogramMetricFamily(f"registry_{name}", text)
        family.add_metric([], buckets, numbers["total", kind] / unit)
        return family

    def _tokens(self) -> Metric:
        family = GaugeMetricFamily(
            "registry_token_expires_timestamp_seconds",
            "When a token expires, in seconds since 1970; the first hundred.",
            labels=["token"],
        )
        known = [one for one in self._sources.expiries() if one[1] > self._now() - EXPIRED_SECONDS]
        for name, at in known[:MAX_TOKENS]:
            family.add_metric([name], at)
        return family


def _queue_counters(numbers: Numbers, labels: set[str]) -> Iterator[Metric]:
    def counter(name: str, text: str, outcomes: Mapping[str, str], *more: str) -> Metric:
        family = CounterMetricFamily(f"registry_{name}", text, labels=["queue", *more])
        for kind, outcome in outcomes.items():
            sums = dict.fromkeys(labels, 0.0)
            for key, count in numbers.items():
                if key[:2] == ("queue", kind):
                    label = _shown(str(key[2]), labels)
                    sums[label] = sums.get(label, 0) + count
                elif kind == "dead" and key[:2] == ("queue", "poison"):
                    # They are among the dead, and have an outcome of their own.
                    label = _shown(str(key[2]), labels)
                    sums[label] = sums.get(label, 0) - count
            for label, count in sums.items():
                family.add_metric([label, outcome] if more else [label], count)
        return family

    yield counter("tasks_pushed", "Tasks that were pushed.", {"pushed": ""})
    yield counter("tasks_started", "Tasks that were handed out, once for each attempt.", {"started": ""})
    ends = {"done": "done", "dead": "dead", "poison": "poison"}
    yield counter("tasks_ended", "Tasks that are done or became dead.", ends, "outcome")
    yield counter("attempts_failed", "Attempts that a worker reported as failed.", {"failed": ""})


def _requests(numbers: Numbers) -> Iterator[Metric]:
    answered = CounterMetricFamily(
        "registry_http_requests",
        "Answers by route, endpoint and status; route and endpoint are empty for unknown paths.",
        labels=["route", "endpoint", "status"],
    )
    refused = CounterMetricFamily(
        "registry_refused", "Answers of 400 and above, by the code of the error.", labels=["reason"]
    )
    empty = 0.0
    for key, count in numbers.items():
        if key[0] == "answered":
            _, path, verb, status = key
            answered.add_metric([str(path), str(verb), str(status)], count)
            if verb in POLLS and status == 202:
                empty += count
        elif key[0] == "refused":
            refused.add_metric([str(key[1]) or "unknown"], count)
    yield answered
    yield refused
    polls = CounterMetricFamily("registry_polls_empty", "Polls that were answered without a task.")
    polls.add_metric([], empty)
    yield polls


def _no_numbers() -> Numbers:
    return defaultdict(int)


def _add(numbers: Numbers, others: Mapping[tuple[str | int, ...], float]) -> None:
    for key, count in others.items():
        numbers[key] += count


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"registry_{name}", text, value=value)


def _shown(label: str, labels: set[str]) -> str:
    return label if label in labels else OTHER.decode()


def _encode(numbers: Numbers, since: dict[str, int], current: Numbers) -> bytes:
    return msgpack.encode((list(numbers.items()), since, list(current.items())))


def _decode(encoded: bytes) -> tuple[Numbers, dict[str, int], Numbers]:
    numbers, since, current = msgpack.decode(encoded)
    return _numbers_of(numbers), since, _numbers_of(current)


def _numbers_of(pairs: list[Any]) -> Numbers:
    numbers = _no_numbers()
    numbers.update((tuple(key), count) for key, count in pairs)
    return numbers


class _One(Collector):
    """A collector of one metric. There are no others, so nothing registers itself in the registry of the whole process."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family

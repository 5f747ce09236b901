"""What charts show, below HTTP: nothing is counted twice, the room is bounded, and a wrong clock does no harm."""

from __future__ import annotations

import random
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from registry.errors import RedisUnavailable
from registry.histogram import Histogram, quantile, sum_of
from registry.queue.census import Totals
from registry.queue.sights import Sights, version_of
from registry.queue.stats import ALL, OLDEST, RANGES, READY, WAITS, Stats
from registry.queue.tally import LENGTHS_MS, MAX_QUEUES, OTHER, Tally
from registry.redis.stats_store import MAX_SIGHTS
from tests.bench import Bench

LENGTHS = [part for step, points in RANGES.values() for part in (step, step * points)]


class Counted:
    """The store and the tally of a process, as `Stats` finds them in its queues."""

    def __init__(self, store: Any) -> None:
        self.store, self.tally = store, Tally(store)


class Looked:
    """A census that has read this."""

    def __init__(self, **ready: int) -> None:
        self.totals: dict[bytes, Totals] = {}
        for name, count in ready.items():
            one = self.totals[name.encode()] = Totals()
            one.held[0] = count

    def read(self) -> Deferred[dict[bytes, Totals]]:
        return succeed(self.totals)


def stats_of(store: Any, looked: Looked | None = None) -> tuple[Stats, Tally]:
    queues: Any = Counted(store)
    census: Any = looked or Looked()
    return Stats(queues, census, Sights(store, {})), queues.tally


async def kept(bench: Bench, label: bytes, length: int = 7200) -> dict[int, int]:
    """The sums of a label over all steps of this length."""
    sums: dict[int, int] = {}
    for key in bench.server.command("KEYS", f"{{registry}}stats:{length}:*"):
        at = int(key.rsplit(b":", 1)[1])
        for index, number in ((await bench.store.stats([(length, at)], [label]))[0][0] or {}).items():
            sums[index] = sums.get(index, 0) + number
    return sums


@pytest.mark.every_redis
async def test_a_call_that_is_repeated_counts_once_and_the_largest_of_a_gauge_counts(bench: Bench) -> None:
    def add(number: int, **numbers: int) -> Any:
        mail = {0: numbers["pushed"], READY: numbers["ready"]}
        return bench.store.add_stats(number, 0, LENGTHS, {b"mail": mail, ALL: mail})

    assert await add(1, pushed=2, ready=5) == 1
    assert await add(1, pushed=2, ready=5) == 0
    assert await add(2, pushed=3, ready=4) == 1
    assert await add(1, pushed=2, ready=5) == 0
    for step, _ in RANGES.values():
        assert await kept(bench, b"mail", step) == {0: 5, READY: 5}
    # Another process has numbers of its own.
    bench.store.process = b"another"
    assert await add(1, pushed=4, ready=1) == 1
    assert await kept(bench, ALL) == {0: 9, READY: 5}


@pytest.mark.every_redis
async def test_what_was_counted_a_while_ago_belongs_to_that_time_and_all_of_it_expires(bench: Bench) -> None:
    await bench.store.add_stats(1, 60_000, LENGTHS, {ALL: {0: 1}})
    await bench.store.add_stats(0, 0, LENGTHS, {})
    begins = sorted(
        int(key.rsplit(b":", 1)[1]) for key in bench.server.command("KEYS", "{registry}stats:10:*")
    )
    assert begins[-1] - begins[0] in (60, 70)
    assert await bench.store.stats([(10, begins[-1])], [ALL]) == [[{}]]
    for key in bench.server.command("KEYS", "{registry}stats:*"):
        assert bench.server.command("TTL", key) > 0, key


@pytest.mark.every_redis
async def test_ten_thousand_queues_take_bounded_room(bench: Bench) -> None:
    """Two hundred keep their names, in each process and in each step over all processes; the rest is one."""
    for half in range(2):
        bench.store.process = b"%d" % half
        stats, tally = stats_of(bench.store)
        for number in range(5000):
            counts = tally.of(b"queue%d" % (number + half * 5000))
            counts.pushed += 1
            for ms in (1, 300, 7000):
                counts.waits.add(ms)
        await stats.write()
    keys = bench.server.command("KEYS", "{registry}stats:7200:*")
    assert len(keys) in (1, 2)
    assert all(bench.server.command("HLEN", key) <= MAX_QUEUES + 2 + 1 for key in keys)
    everything = await kept(bench, ALL)
    assert everything[0] == 10_000 and everything[WAITS] == 10_000
    assert (await kept(bench, b"queue7"))[0] == 1
    assert (await kept(bench, OTHER))[0] == 10_000 - MAX_QUEUES
    [size] = {len(bench.server.command("DUMP", key)) for key in keys[:1]}
    assert size < 20_000


@pytest.mark.every_redis
async def test_the_first_sights_are_bounded_and_keep_their_time(bench: Bench) -> None:
    await bench.store.add_sights({b"a/1 q": 1000})
    await bench.store.add_sights({b"a/1 q": 2000, b"a/2 q": 3000})
    assert await bench.store.sights() == {b"a/1 q": 1000, b"a/2 q": 3000}
    await bench.store.add_sights({b"b/%d q" % number: 4000 + number for number in range(MAX_SIGHTS)})
    found = await bench.store.sights()
    assert len(found) == MAX_SIGHTS and b"a/2 q" not in found


class Flaky:
    """A store whose calls fail before or after they were carried out, as ``outcomes`` say: lost, unknown, or ok."""

    process, colons = b"p", 0

    def __init__(self, *outcomes: str) -> None:
        self.outcomes = list(outcomes)
        self.sums: dict[bytes, dict[int, int]] = {}
        self.last = 0

    def now_ms(self) -> int:
        return 1_700_000_000_000

    def may_look(self, ms: int) -> Deferred[bool]:
        return succeed(True)

    def add_stats(self, number: int, age_ms: int, lengths: Any, numbers: Any) -> Deferred[Any]:
        outcome = self.outcomes.pop(0) if self.outcomes else "ok"
        if outcome != "lost" and number > self.last:
            self.last = number
            for label, one in numbers.items():
                sums = self.sums.setdefault(label, {})
                for index, count in one.items():
                    sums[index] = sums.get(index, 0) + count
        return succeed(1) if outcome == "ok" else fail(RedisUnavailable("Redis is away."))


@pytest.mark.parametrize(
    "outcomes", [("lost", "lost"), ("unknown", "unknown"), ("unknown", "lost"), ("ok", "unknown")]
)
def test_what_redis_did_not_answer_is_sent_again_and_counts_once(outcomes: tuple[str, ...]) -> None:
    store = Flaky(*outcomes)
    stats, tally = stats_of(store, Looked(mail=3))
    for _ in range(4):
        tally.of(b"mail").pushed += 1
        tally.of(b"mail").runs.extend((7, 8))
        stats.write().addErrback(lambda failure: failure.trap(RedisUnavailable))
    stats.write()
    stats.write()
    mail = store.sums[b"mail"]
    assert mail[0] == 4 and store.sums[ALL][0] == 4
    assert sum(count for index, count in mail.items() if index >= WAITS) == 8
    assert mail[READY] == 3 and OLDEST not in mail


def test_a_percentile_is_in_the_bucket_of_the_real_one_also_over_merged_histograms() -> None:
    numbers = random.Random(7)
    for size in (1, 2, 10, 1000):
        values = [numbers.lognormvariate(6, 3) for _ in range(size)]
        parts = [Histogram(LENGTHS_MS), Histogram(LENGTHS_MS)]
        for value in values:
            numbers.choice(parts).add(value)
        whole = sum_of(parts, LENGTHS_MS)
        for share in (0.5, 0.99):
            real = sorted(values)[max(0, -(-int(share * 1000) * size // 1000) - 1)]
            found = quantile(LENGTHS_MS, whole.counts, share)
            bounds = (0, *LENGTHS_MS)
            at = next((n for n, bound in enumerate(LENGTHS_MS) if real <= bound), None)
            assert found is not None
            if at is None:
                assert found == LENGTHS_MS[-1]
            else:
                assert bounds[at] <= found <= bounds[at + 1], (size, share, real)
    assert quantile(LENGTHS_MS, [0] * (len(LENGTHS_MS) + 1), 0.5) is None
    assert quantile((10, 20), [0, 4, 0], 0.5) == 15 and quantile((10, 20), [0, 0, 1], 0.5) == 20


@pytest.mark.parametrize(
    ("agent", "version"),
    [
        (b"mailer/2.4.1", "mailer/2.4.1"),
        (b"mailer/2.4.1 (linux; x86_64) python-requests/2.32", "mailer/2.4.1"),
        (b"mailer/v3-rc1", "mailer/v3-rc1"),
        (b"mailer", None),
        (b"mailer/", None),
        (b"mailer/main", None),
        (b"mailer 2.4.1", None),
        (b"", None),
        (b"\xff\x00/1", None),
        (b"m" * 300 + b"/1", None),
        *(
            (agent, None)
            for agent in (
                b"curl/8.5.0",
                b"python-requests/2.32.0",
                b"node",
                b"Go-http-client/1.1",
                b"axios/1.7.2",
            )
        ),
        *(
            (agent, None)
            for agent in (
                b"Python-urllib/3.11",
                b"okhttp/4.12",
                b"Mozilla/5.0 (X11)",
                b"Python/3.11 aiohttp/3.9",
            )
        ),
    ],
)
def test_a_version_is_what_somebody_named(agent: bytes, version: str | None) -> None:
    assert version_of(agent) == version

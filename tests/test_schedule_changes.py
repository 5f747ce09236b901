"""What a schedule is while it is changed: a tick that is due when it is put again, pushes beside each other, times of day.

No chore runs here but those that a test asks for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from registry.errors import BadOption, NotFound, QueueFull
from registry.model import PushOptions
from registry.queue.operations import Operations
from registry.queue.queues import Queues
from registry.queue.schedules import Schedules, check, ticks
from tests.bench import Bench

pytestmark = pytest.mark.every_redis
NIGHTLY: dict[str, Any] = {"cron": "0 3 * * *", "queue": "old", "task": b"1"}


class World:
    """The schedules of two daemons on one Redis."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.queues = Queues(bench.store, reactor.callLater, lambda _: True)  # type: ignore[attr-defined]
        self.one, self.two = Schedules(self.queues), Schedules(self.queues)

    def due(self, at: int | None = None) -> int:
        """The tick of ``nightly`` is due: since a second, or since ``at``."""
        at = self.bench.now() - 1000 if at is None else at
        self.bench.server.command("ZADD", "{registry}ticks", at, "nightly")
        return at

    def raw(self) -> tuple[Any, Any]:
        """What Redis holds of it."""
        command = self.bench.server.command
        return command("HGET", "{registry}schedules", "nightly"), command(
            "ZSCORE", "{registry}ticks", "nightly"
        )

    def payloads(self, queue: str) -> list[Any]:
        """The tasks that were pushed to a queue, the oldest first."""
        command = self.bench.server.command
        return [
            command("HGET", f"{{{queue}}}t", element[1:25]) for element in command("LRANGE", queue, 0, -1)
        ][::-1]


@pytest.fixture
def world(bench: Bench) -> World:
    return World(bench)


@pytest_twisted.ensureDeferred
async def test_a_put_that_changes_nothing_changes_nothing(world: World) -> None:
    for said in (
        NIGHTLY,
        {**NIGHTLY, "options": {"delay": 0.5}, "push": PushOptions(delay=500), "paused": True},
    ):
        shown = await world.one.put(b"nightly", said)
        before = world.raw()
        assert await world.two.put(b"nightly", {**said, "timezone": "UTC", "missed": "skip"}) == shown
        assert world.raw() == before


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(
    "again", [{}, {"task": b"2"}, {"queue": "new"}, {"cron": "0 0 1 1 *"}, {"paused": True}]
)
async def test_a_tick_that_is_due_is_pushed_before_its_schedule_is_put_again(
    world: World, again: dict[str, Any]
) -> None:
    await world.one.put(b"nightly", NIGHTLY)
    at = world.due()
    shown = await world.one.put(b"nightly", {**NIGHTLY, **again})
    assert world.payloads("old") == [b"1"]
    assert (shown["last_ms"], shown["missed_count"]) == (at, 0)
    assert shown["next_ms"] is None if again.get("paused") else shown["next_ms"] > world.bench.now() - 1000
    await world.one.tick()
    assert world.payloads("old") == [b"1"] and world.payloads("new") == []


@pytest_twisted.ensureDeferred
async def test_missed_ticks_are_counted_by_a_put_too(world: World) -> None:
    await world.one.put(b"nightly", {**NIGHTLY, "cron": "0 * * * *"})
    hour = world.bench.now() // 3_600_000 * 3_600_000
    world.due(hour - 5 * 3_600_000)
    shown = await world.one.put(b"nightly", {**NIGHTLY, "cron": "0 0 1 1 *"})
    # That of this hour may be in time.
    assert shown["missed_count"] + len(world.payloads("old")) == 6


@pytest_twisted.ensureDeferred
async def test_a_due_tick_that_its_queue_refuses_is_pushed_for_the_schedule_that_replaces_it(
    world: World,
) -> None:
    await world.one.put(b"nightly", NIGHTLY)
    await Operations(world.queues, None).set_policy(b"old", {"max_length": 0})  # type: ignore[arg-type]
    at = world.due()
    shown = await world.one.put(b"nightly", {**NIGHTLY, "queue": "new", "task": b"2"})
    assert shown["next_ms"] == at
    await world.one.tick()
    assert world.payloads("new") == [b"2"]


@pytest_twisted.ensureDeferred
async def test_two_that_see_a_tick_at_once_push_it_once(world: World) -> None:
    await world.one.put(b"nightly", NIGHTLY)
    world.due()
    await gatherResults([one.tick() for one in (world.one, world.two) for _ in range(3)])
    assert world.payloads("old") == [b"1"]


@pytest_twisted.ensureDeferred
async def test_a_put_and_a_chore_at_once_push_it_once(world: World) -> None:
    await world.one.put(b"nightly", NIGHTLY)
    world.due()
    await gatherResults(
        [
            world.one.put(b"nightly", {**NIGHTLY, "task": b"2"}),
            world.two.tick(),
            world.two.put(b"nightly", NIGHTLY),
        ]
    )
    assert world.payloads("old") in ([b"1"], [b"2"])


@pytest_twisted.ensureDeferred
async def test_a_schedule_that_was_dropped_meanwhile_is_not_pushed(world: World) -> None:
    await world.one.put(b"nightly", NIGHTLY)
    packed, _ = world.raw()
    at = world.due()
    await world.one.drop(b"nightly")
    assert world.raw() == (None, None)
    assert await world.one._pass(b"nightly", packed, at, world.bench.now()) is None
    assert world.payloads("old") == []
    with pytest.raises(NotFound):
        await world.one.run(b"nightly")


@pytest_twisted.ensureDeferred
async def test_a_refused_push_moves_no_schedule_on(world: World) -> None:
    await world.one.put(b"nightly", NIGHTLY)
    await Operations(world.queues, None).set_policy(b"old", {"max_length": 0})  # type: ignore[arg-type]
    at = world.due()
    before = world.raw()
    with pytest.raises(QueueFull):
        await world.one._pass(b"nightly", before[0], at, world.bench.now())
    assert world.raw() == before


@pytest_twisted.ensureDeferred
async def test_a_paused_schedule_waits_until_it_goes_on(world: World) -> None:
    shown = await world.one.put(b"nightly", {**NIGHTLY, "paused": True})
    assert shown["next_ms"] is None and shown["paused"]
    assert await world.two.get(b"nightly") == shown
    await world.one.tick()
    assert world.payloads("old") == []
    assert not (await world.one.run(b"nightly")).duplicate
    assert world.payloads("old") == [b"1"]
    shown = await world.one.put(b"nightly", {**NIGHTLY, "cron": "* * * * *"})
    assert -5_000 < shown["next_ms"] - world.bench.now() <= 60_000


@pytest_twisted.ensureDeferred
async def test_a_next_tick_that_is_too_late_is_reported_right_and_mended(world: World) -> None:
    right = (await world.one.put(b"nightly", NIGHTLY))["next_ms"]
    world.due(right + 86_400_000)
    assert (await world.one.get(b"nightly"))["next_ms"] == right
    await world.two.tick()
    assert int(world.raw()[1]) == right


@pytest_twisted.ensureDeferred
async def test_a_clock_that_went_back_is_noticed_for_all_schedules_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.queue.schedules.ALIGNED_PER_CHORE", 2)
    names = [b"n%d" % n for n in range(5)]
    now = world.bench.now()
    right = [(await world.one.put(name, NIGHTLY))["next_ms"] for name in names]
    world.bench.store.set_clock(now + 2 * 86_400_000)
    await world.one.tick()
    scores = world.bench.server.command("ZRANGE", "{registry}ticks", 0, -1, "WITHSCORES")[1::2]
    assert min(map(int, scores)) > now + 2 * 86_400_000
    world.bench.store.set_clock(world.bench.now())
    await world.one.tick()
    scores = world.bench.server.command("ZRANGE", "{registry}ticks", 0, -1, "WITHSCORES")[1::2]
    assert list(map(int, scores)) == right


# Times of day, as the documentation tells them


def times(cron: str, zone: str, after: str, count: int) -> list[str]:
    start = int(datetime.fromisoformat(after).timestamp() * 1000)
    found = ticks(cron, zone, start)
    return [datetime.fromtimestamp(next(found) / 1000, UTC).strftime("%m-%d %H:%M") for _ in range(count)]


@pytest.mark.parametrize(
    ("cron", "after", "told"),
    [
        # In Vienna 02:00 to 03:00 does not exist on March 29, 2026: 01:00 UTC is 03:00. A time of day in it runs at its end, once.
        ("30 2 * * *", "2026-03-28T12:00Z", ["03-29 01:00", "03-30 00:30"]),
        ("0,15,30 2 * * *", "2026-03-28T12:00Z", ["03-29 01:00", "03-30 00:00"]),
        ("0 2-4 * * *", "2026-03-28T12:00Z", ["03-29 01:00", "03-29 02:00", "03-30 00:00"]),
        # With a star in minute or hour it is not made up for.
        ("*/30 2 * * *", "2026-03-28T12:00Z", ["03-30 00:00", "03-30 00:30"]),
        ("30 * * * *", "2026-03-29T00:00Z", ["03-29 00:30", "03-29 01:30"]),
        # 02:00 to 03:00 comes twice on October 25: from 00:00 and from 01:00 UTC. A time of day in it runs the first time.
        ("30 2 * * *", "2026-10-24T12:00Z", ["10-25 00:30", "10-26 01:30"]),
        # With a star it runs both times.
        (
            "*/30 2 * * *",
            "2026-10-24T12:00Z",
            ["10-25 00:00", "10-25 00:30", "10-25 01:00", "10-25 01:30", "10-26 01:00"],
        ),
        ("0 * * * *", "2026-10-24T23:30Z", ["10-25 00:00", "10-25 01:00", "10-25 02:00"]),
        # Asked in the second of these hours, the first one's time is over.
        ("30 2 * * *", "2026-10-25T01:10Z", ["10-26 01:30"]),
    ],
)
def test_the_hour_that_is_left_out_and_the_one_that_comes_twice(
    cron: str, after: str, told: list[str]
) -> None:
    assert times(cron, "Europe/Vienna", after, len(told)) == told


@pytest.mark.parametrize(
    "zone", ["Europe/Vienna", "America/New_York", "Australia/Lord_Howe", "Africa/Casablanca", "UTC"]
)
@pytest.mark.parametrize("cron", ["30 2 * * *", "*/20 2 * * *", "0 * * * *", "15,45 1-3 * * *"])
def test_every_tick_comes_after_the_moment_it_was_asked_for(zone: str, cron: str) -> None:
    for month in (3, 4, 10, 11):
        begin = int(datetime(2026, month, 1, tzinfo=UTC).timestamp() * 1000)
        for half_hour in range(0, 31 * 48, 7):
            asked = begin + half_hour * 1_800_000
            assert next(ticks(cron, zone, asked)) > asked


@pytest.mark.parametrize(
    "cron", ["0 0 31 2 *", "0 0 30 2 *", "5 4 31 4,6,9,11 *", "0 0 */30 2 MON#5", "* * 31 feb *"]
)
def test_a_cron_that_never_comes_is_reported_as_such(cron: str) -> None:
    with pytest.raises(BadOption, match="'cron' never matches"):
        check({**NIGHTLY, "cron": cron}, 1_800_000_000_000)


@pytest.mark.parametrize(
    "cron",
    ["0 0 31 13 *", "61 0 31 2 *", "0 0 32 2 *", "0 0 31 2 8", "1," * 200 + "1 * * * *", "\ud800 * * * *"],
)
def test_a_cron_that_is_none_is_reported_otherwise(cron: str) -> None:
    with pytest.raises(BadOption, match="five fields"):
        check({**NIGHTLY, "cron": cron}, 1_800_000_000_000)


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 0 * 2 MON#5", "0 0 30 2 1", "0 0 29-31 2 *", "0 0 L 2 *"])
def test_a_cron_that_comes_seldom_is_one(cron: str) -> None:
    check({**NIGHTLY, "cron": cron}, 1_800_000_000_000)

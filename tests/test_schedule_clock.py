"""Schedules when Redis's clock is wrong for a while or is set back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.live import Daemon, wait_until
from tests.talk import ask, counts, fresh, running
from tests.test_schedules import get, next_tick, put
from tests.wrong_clock import ShiftedRedis, shifted_redis

pytestmark = pytest.mark.every_redis
HOUR, DAY = 3600, 86_400
# A minute, in the middle of a day and of an hour, that is 0 in every timezone of full hours.
NOON = int(datetime(2026, 6, 10, 12, 30, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def redis(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShiftedRedis]:
    with shifted_redis(redis_binary, tmp_path_factory.mktemp("clock"), NOON) as server:
        yield server


@pytest.fixture(scope="module")
def served(redis: ShiftedRedis) -> Iterator[Daemon]:
    with running(redis) as one:
        yield one


def at(served: Daemon, name: str) -> float:
    """When the schedule comes next, as its users see it."""
    return datetime.fromisoformat(get(served, name)["next_at"]).timestamp()


def set_clock(served: Daemon, redis: ShiftedRedis, second: float) -> None:
    """Set the clock, and wait until the daemon knows: a new schedule then comes at the next minute."""
    redis.shift_to(second)

    def knows() -> bool:
        name = fresh("clock")
        put(served, name, cron="* * * * *", queue=name, task=1)
        told = at(served, name)
        ask(served, "DELETE", f"/api/schedules/{name}").ok()
        return told == redis.now() // 60 * 60 + 60

    wait_until(knows, 5)


def test_a_clock_that_was_a_day_ahead_for_a_moment_makes_no_schedule_sleep(
    served: Daemon, redis: ShiftedRedis, q: str
) -> None:
    set_clock(served, redis, NOON + 5)
    put(served, q, cron="* * * * *", queue=q, task=1)
    set_clock(served, redis, NOON + 10 + DAY)
    wait_until(lambda: next_tick(redis, q) / 1000 > NOON + DAY, 5)
    set_clock(served, redis, NOON + 15)
    wait_until(lambda: next_tick(redis, q) / 1000 == NOON + 60, 5)
    # Nor does it lose the tick that it is there for.
    before = sum(counts(served, q).values())
    set_clock(served, redis, NOON + 61)
    wait_until(lambda: sum(counts(served, q).values()) == before + 1, 5)
    assert next_tick(redis, q) / 1000 == NOON + 120
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_a_clock_that_is_set_back_an_hour_has_that_hour_again(
    served: Daemon, redis: ShiftedRedis, q: str
) -> None:
    set_clock(served, redis, NOON + 2 * HOUR - 30)
    put(served, q, cron="* * * * *", queue=q, task=1)
    for hour in (2, 1):
        set_clock(served, redis, NOON + hour * HOUR - 30)
        wait_until(lambda hour=hour: next_tick(redis, q) / 1000 == NOON + hour * HOUR, 5)  # type: ignore[misc]
        set_clock(served, redis, NOON + hour * HOUR + 1)
        wait_until(lambda hour=hour: sum(counts(served, q).values()) == 3 - hour, 5)  # type: ignore[misc]
    assert get(served, q)["missed_count"] == 0
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_a_clock_that_is_set_back_an_hour_has_the_only_tick_of_that_hour_again(
    served: Daemon, redis: ShiftedRedis, q: str
) -> None:
    full = NOON + 5 * HOUR + HOUR // 2
    set_clock(served, redis, full - 30)
    put(served, q, cron="0 * * * *", queue=q, task=1)
    for time in (1, 2):
        wait_until(lambda: next_tick(redis, q) / 1000 == full, 5)
        set_clock(served, redis, full + 1)
        wait_until(lambda time=time: counts(served, q) == {"ready": time}, 5)  # type: ignore[misc]
        set_clock(served, redis, full + 30 - HOUR)
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_a_tick_that_came_early_is_not_pushed_again_when_the_clock_comes_back(
    served: Daemon, redis: ShiftedRedis, q: str
) -> None:
    set_clock(served, redis, NOON + 3 * HOUR - 40)
    put(served, q, cron="* * * * *", queue=q, task=1)
    set_clock(served, redis, NOON + 3 * HOUR + 1)
    wait_until(lambda: counts(served, q) == {"ready": 1}, 5)
    set_clock(served, redis, NOON + 3 * HOUR - 40)
    wait_until(lambda: next_tick(redis, q) / 1000 == NOON + 3 * HOUR, 5)
    set_clock(served, redis, NOON + 3 * HOUR + 1)
    wait_until(lambda: next_tick(redis, q) / 1000 == NOON + 3 * HOUR + 60, 5)
    assert counts(served, q) == {"ready": 1}
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_a_daemon_that_starts_after_the_clock_came_back_mends_it(redis: ShiftedRedis, q: str) -> None:
    redis.shift_to(NOON + 4 * HOUR)
    with running(redis) as one:
        put(one, q, cron="*/10 * * * *", queue=q, task=1, missed="once")
        redis.shift_to(NOON + 4 * HOUR + DAY)
        wait_until(lambda: next_tick(redis, q) / 1000 > NOON + DAY, 5)
    redis.shift_to(NOON + 4 * HOUR + 20)
    with running(redis) as one:
        assert at(one, q) == NOON + 4 * HOUR + 600
        wait_until(lambda: next_tick(redis, q) / 1000 == NOON + 4 * HOUR + 600, 5)
        ask(one, "DELETE", f"/api/schedules/{q}").ok()

"""What charts show when Redis's clock is set, and when Redis was away."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.live import Daemon, wait_until
from tests.talk import ask, fresh, pushed, running
from tests.wrong_clock import ShiftedRedis, shifted_redis

# The middle of a step of each length but the shortest.
NOON = int(datetime(2026, 6, 10, 12, 7, 30, tzinfo=UTC).timestamp())
HOUR = 3600


@pytest.fixture(scope="module")
def redis(redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShiftedRedis]:
    with shifted_redis(redis_binary, tmp_path_factory.mktemp("clock"), NOON) as server:
        yield server


@pytest.fixture(scope="module")
def served(redis: ShiftedRedis) -> Iterator[Daemon]:
    with running(redis) as one:
        yield one


def points(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(daemon, "GET", f"/api/stats?range=24h&queue={name}").ok()["points"]
    return found


def hours_of(daemon: Daemon, name: str) -> dict[int, int]:
    """How many tasks were pushed, by how many hours the step began after noon's; only where there were some."""
    first = NOON // 900 * 900
    return {
        round((datetime.fromisoformat(point["at"]).timestamp() - first) / HOUR): point["pushed"]
        for point in points(daemon, name)
        if point["pushed"]
    }


def test_a_clock_that_is_set_forward_leaves_a_gap_and_back_again_loses_nothing(
    served: Daemon, redis: ShiftedRedis
) -> None:
    name = fresh("clock")
    pushed(served, name, 1)
    wait_until(lambda: hours_of(served, name) == {0: 1}, 15)
    redis.shift_to(NOON + 2 * HOUR)
    pushed(served, name, 2)
    wait_until(lambda: hours_of(served, name) == {0: 1, 2: 1}, 15)
    found = points(served, name)
    assert all(point["pushed"] is None for point in found[-8:-1]), "the daemon did not run then"
    redis.shift_to(NOON + HOUR)
    pushed(served, name, 3)
    wait_until(lambda: hours_of(served, name) == {0: 1, 1: 1}, 15)
    redis.shift_to(NOON + 2 * HOUR)
    wait_until(lambda: hours_of(served, name) == {0: 1, 1: 1, 2: 1}, 15)


def test_what_was_counted_before_redis_went_is_there_once_when_it_is_back(
    served: Daemon, redis: ShiftedRedis
) -> None:
    name = fresh("away")
    for number in range(3):
        pushed(served, name, number)
    redis.pause()
    assert ask(served, "GET", "/api/stats").status == 503
    redis.resume()
    served.redis_ready()
    wait_until(lambda: sum(hours_of(served, name).values()) == 3, 15)
    pushed(served, name, 4)
    wait_until(lambda: sum(hours_of(served, name).values()) == 4, 15)

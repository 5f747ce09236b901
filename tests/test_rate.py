"""The rate of a queue: never exceeded in any second, and fully used while there is work and a poller."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from msgspec import msgpack

from registry.model import PopOptions
from registry.redis.store import encode_options
from tests.live import Daemon, RedisServer
from tests.memory import Memory, World
from tests.straight import Driver
from tests.talk import Asked, ask, fresh, leased, policy, pop, pushed, task

LEASED = encode_options({"l": True})


@pytest.fixture
def driver(module_redis: RedisServer) -> Iterator[Driver]:
    one = Driver(module_redis)
    one.reset()
    yield one
    one.stop()


class Queue:
    """A limited queue with work for long, and when its tasks were started."""

    def __init__(self, driver: Driver, rate: float, tasks: int = 2_000) -> None:
        self.driver, self.rate = driver, rate
        self.name = fresh().encode()
        self.starts: list[int] = []
        self.most = math.ceil(rate)
        self.set(rate=rate)
        tails = [b"%010x" % n for n in range(tasks)]
        for at in range(0, tasks, 1_000):
            some = tails[at : at + 1_000]
            driver.call("pushmany", driver.store.push_many(self.name, some, [b"1"] * len(some), b""))

    def set(self, **rules: float) -> None:
        self.driver.say("policy", self.name, msgpack.encode({"set": rules, "reset": []}))

    def ask(self, pollers: int = 1, many: bool = False) -> int:
        """So many ask at once; how long to wait when one of them got nothing, else 0."""
        store, now = self.driver.store, self.driver.now
        if many:
            reply = self.driver.call(
                "popmany", store.pop_many([self.name], b"n%d" % now, 0, PopOptions(count=pollers))
            )[0]
            if reply[0] == 0:
                self.starts += [now] * (len(reply) - 1)
                return 0
            assert reply[:2] == [3, b"rate_limited"] and reply[3:] == [self.name]
            return int(reply[2])
        entries = [store.pop(self.name, b"%d" % n, 0, LEASED) for n in range(pollers)]
        replies = self.driver.call("pop", *entries)
        self.starts += [now] * sum(reply[0] == 0 for reply in replies)
        waits = [reply[2] for reply in replies if reply[0] == 3]
        assert all(wait > 0 for wait in waits)
        return max(waits, default=0)

    def never_exceeds(self) -> None:
        # A fraction in longer than a second: no second has more than the next whole number.
        stretch = self.most * 1_000 / self.rate
        assert stretch >= 1_000
        for first, beyond in zip(self.starts, self.starts[self.most :], strict=False):
            assert beyond - first >= stretch


@pytest.mark.every_redis
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("rate", [0.3, 1, 1.5, 7, 7.9, 99.9, 400])
def test_all_of_the_rate_is_handed_out_and_never_more(driver: Driver, rate: float, many: bool) -> None:
    queue, began = Queue(driver, rate), driver.now
    chance = random.Random(7)
    while len(queue.starts) < min(20 * rate + 12, 1_500):
        wait = queue.ask(chance.choice([1, 1, 3, 40]), many)
        # A poller looks again when it was told to, and a little later than that.
        driver.set_clock(driver.now + wait + chance.choice([0, 0, 1, 2]))
    queue.never_exceeds()
    # Each stretch after the first begins with the start that could not be in the one before.
    stretches = (len(queue.starts) - 1) // queue.most
    last = queue.starts[stretches * queue.most]
    assert stretches * queue.most / rate >= 0.95 * (last - began) / 1_000


@pytest.mark.every_redis
@pytest.mark.parametrize("rate", [2.5, 20, 150])
def test_a_burst_after_some_quiet_exceeds_it_neither(driver: Driver, rate: float) -> None:
    queue, chance = Queue(driver, rate), random.Random(3)
    while len(queue.starts) < min(30 * rate, 1_500):
        queue.ask(chance.choice([1, 2, 100]))
        driver.set_clock(driver.now + chance.choice([1, 3, 50, 333, 901]))
    queue.never_exceeds()


@pytest.mark.every_redis
def test_what_is_kept_of_a_large_rate_is_small(driver: Driver) -> None:
    queue = Queue(driver, 1_000_000, 4_000)
    for _ in range(300):
        queue.ask(10)
        driver.set_clock(driver.now + 7)
    kept = driver.redis("HGET", b"{%b}n" % queue.name, "starts")
    assert len(queue.starts) == 3_000
    assert len(kept) < 1_500
    queue.set(rate=1)
    assert queue.ask() > 900


@pytest.mark.every_redis
def test_a_rate_that_is_changed_counts_what_has_started(driver: Driver) -> None:
    queue = Queue(driver, 10)
    queue.ask(10)
    assert queue.ask() == 1_000
    queue.set(rate=4)
    # Seven of the ten must be out of the second.
    driver.set_clock(driver.now + 400)
    assert queue.ask() == 600
    queue.set(rate=12)
    assert queue.ask(2) == 0
    assert queue.ask() == 600


@pytest.mark.every_redis
def test_a_clock_that_was_set_back_stops_nobody(driver: Driver) -> None:
    queue = Queue(driver, 2)
    queue.ask(2)
    driver.set_clock(driver.now - 3_600_000)
    assert queue.ask(2) == 0
    assert queue.ask() == 1_000


@pytest.mark.every_redis
def test_nothing_is_kept_of_a_rate_that_was_reset(driver: Driver) -> None:
    queue = Queue(driver, 2)
    queue.set(lease=30)
    queue.ask()
    driver.say("policy", queue.name, msgpack.encode({"set": {}, "reset": ["rate"]}))
    assert driver.redis("EXISTS", b"{%b}n" % queue.name) == 0


# Parked pollers


class Limited(Memory):
    """A store whose queue lets nothing start before a moment of the clock."""

    world: World
    opens = 0.0

    def _pop(self, name: bytes, nonce: bytes) -> list[Any]:
        left = self.opens - self.world.clock.seconds()
        if left > 0:
            return [3, b"rate_limited", math.ceil(left * 1_000)]
        return super()._pop(name, nonce)


@pytest.fixture
def world() -> World:
    one = World()
    store = Limited()
    store.world, one.store = one, store
    one.queues.store = store  # type: ignore[assignment]
    return one


def test_a_parked_poller_looks_when_the_rate_lets_it(world: World) -> None:
    world.store.opens = 0.7  # type: ignore[attr-defined]
    polls = world.parked(3)
    for payload in (b"1", b"2", b"3", b"4"):
        world.store.put(b"q", payload)
    asked = world.pops()
    world.turn(0.69)
    assert (world.pops(), [poll.got for poll in polls]) == (asked, [...] * 3)
    world.turn(0.011)
    # The first that is served wakes the next, and so on.
    assert [poll.got for poll in polls] == [b"1", b"2", b"3"]
    for poll in polls:
        world.queues.handover.confirm(poll.taken)
    world.turn(1)
    assert world.nothing_left()


def test_it_looks_sooner_when_that_is_sooner_and_again_when_it_was_too_early(world: World) -> None:
    world.store.opens = 5.0  # type: ignore[attr-defined]
    [poll] = world.parked(1)
    world.store.put(b"q", b"1")
    world.store.opens = 0.5  # type: ignore[attr-defined]
    world.queues.wait_lists.wake(b"q")
    world.turn()
    world.store.opens = 0.8  # type: ignore[attr-defined]
    world.turn(0.5)
    assert poll.waits
    world.turn(0.31)
    assert poll.got == b"1"


def test_of_those_that_have_gone_nothing_is_left(world: World) -> None:
    world.store.opens = 500.0  # type: ignore[attr-defined]
    polls = world.parked(2)
    world.pop(wait=0)
    world.turn()
    for poll in polls:
        poll.hang_up()
    world.turn()
    assert world.nothing_left()


# Real daemons


@pytest.mark.parametrize("rate", [8, 2.5])
def test_pollers_of_two_daemons_share_it(pair: tuple[Daemon, Daemon], q: str, rate: float) -> None:
    policy(pair[0], q, rate=rate)
    count = 20 if rate > 5 else 9
    ids = ask(pair[0], "PUT", f"/api/pushTasks/{q}", list(range(count))).ok()["ids"]
    half = count // 2
    polls = [Asked(pair[n % 2], "GET", f"/api/popTask/{q}?wait=20&lease=60") for n in range(half)]
    many = [
        Asked(pair[n % 2], "GET", f"/api/popTasks/{fresh()},{q}?wait=20&lease=60")
        for n in range(count - half)
    ]
    for poll in [*polls, *many]:
        assert poll.answer(20).status == 200
    starts = sorted(datetime.fromisoformat(task(pair[0], q, one)["leased_at"]).timestamp() for one in ids)
    most = math.ceil(rate)
    for first, beyond in zip(starts, starts[most:], strict=False):
        assert beyond - first >= most / rate - 0.0005


def test_why_tells_of_it_while_it_holds_back(served: Daemon, q: str) -> None:
    policy(served, q, rate=0.5)
    pushed(served, q)
    other = pushed(served, q)

    def codes() -> set[str]:
        return {
            reason["code"]
            for reason in ask(served, "GET", f"/api/queues/{q}/tasks/{other}/why").ok()["reasons"]
        }

    assert "rate_limited" not in codes()
    leased(served, q)
    assert "rate_limited" in codes()
    assert pop(served, q).status == 202
    assert leased(served, q, "wait=10&lease=30")["id"] == other

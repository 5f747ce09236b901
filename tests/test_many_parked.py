"""Many parked polls must not slow others down: the chores handle them in bounded pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from registry.errors import Overloaded
from registry.model import PopOptions
from registry.queue import sweeper, wait_lists
from registry.queue.sweeper import RECHECK_SECONDS, Sweeper
from tests.live import Daemon, RedisServer, wait_until
from tests.memory import Memory, World
from tests.talk import Asked, ask, fresh, leased

COUNT, A_PIECE = 600, 50


class Looked(Memory):
    """Tells which lists it was asked for, and when."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.looks: list[tuple[float, list[bytes], int]] = []
        self._world = world

    def any_waiting(self, names: Sequence[bytes], priority: int) -> Deferred[int]:
        self.looks.append((self._world.clock.seconds(), list(names), priority))
        return succeed(sum(bool(self.lists.get(name)) for name in names))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(sweeper, "NAMES_PER_CHECK", A_PIECE)
    monkeypatch.setattr(wait_lists, "WAKES_PER_TURN", A_PIECE)
    return World()


def park(world: World) -> list[bytes]:
    names = [b"%d" % at for at in range(COUNT)]
    for name in names:
        world.pop(name, 50)
    world.turn()
    while world.queues.wait_lists.parked < COUNT:
        world.turn()
    return names


def test_the_look_for_raw_elements_is_spread_over_its_time(world: World) -> None:
    world.store = looked = Looked(world)
    world.queues.store = looked  # type: ignore[assignment]
    names = park(world)
    chores = Sweeper(looked, world.queues, None, world.clock)  # type: ignore[arg-type]
    began, over = world.clock.seconds(), chores.recheck()
    assert len(looked.looks) == 1
    while not over.called:
        world.clock.advance(0.001)
    assert [name for _, some, _ in looked.looks for name in some] == names
    assert {len(some) for _, some, _ in looked.looks} == {A_PIECE}
    times = [at for at, _, _ in looked.looks]
    assert len(set(times)) == len(times)
    assert RECHECK_SECONDS / 2 < world.clock.seconds() - began <= RECHECK_SECONDS
    chores.stop()


def test_a_look_that_finds_something_wakes_its_pollers_and_goes_on(world: World) -> None:
    world.store = looked = Looked(world)
    world.queues.store = looked  # type: ignore[assignment]
    names = park(world)
    for name in (names[7], names[-1]):
        looked.put(name, b"1")
    over = Sweeper(looked, world.queues, None, world.clock).recheck()  # type: ignore[arg-type]
    while not over.called:
        world.clock.advance(0.01)
    world.turn()
    assert world.queues.wait_lists.parked == COUNT - 2


def test_each_priority_has_its_turn(world: World) -> None:
    world.store = looked = Looked(world)
    world.queues.store = looked  # type: ignore[assignment]
    world.parked(1)
    chores = Sweeper(looked, world.queues, None, world.clock)  # type: ignore[arg-type]
    for _ in range(9):
        assert chores.recheck().called
    assert sorted(priority for _, _, priority in looked.looks) == list(range(1, 10))


def test_a_stop_in_the_middle_leaves_nothing_behind(world: World) -> None:
    world.store = looked = Looked(world)
    world.queues.store = looked  # type: ignore[assignment]
    park(world)
    before = len(world.clock.getDelayedCalls())
    chores = Sweeper(looked, world.queues, None, world.clock)  # type: ignore[arg-type]
    chores.recheck()
    assert len(world.clock.getDelayedCalls()) == before + 1
    chores.stop()
    assert len(world.clock.getDelayedCalls()) == before


def test_all_are_asked_again_some_in_each_turn(world: World) -> None:
    park(world)
    later: list[Any] = []
    world.queues.wait_lists.later = lambda seconds, f, *args: later.append((f, args))
    world.queues.wait_lists.wake_all()
    pieces = []
    while True:
        pieces.append(sum(one.in_flight for one in world.queues.wait_lists.lists.values()))
        if not later:
            break
        [(f, args)] = later
        later.clear()
        f(*args)
    assert pieces == list(range(A_PIECE, COUNT + 1, A_PIECE))
    world.turn()
    assert world.queues.wait_lists.parked == COUNT


def test_the_places_of_a_process_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_lists, "MAX_PARKED", 10)
    polls = [world.pop(b"%d" % at) for at in range(8)]
    world.turn()
    many = world.queues.polls.pop_many([b"a", b"b", b"c"], 10, 0, PopOptions())
    failures: list[Any] = []
    many.addErrback(failures.append)
    assert failures[0].check(Overloaded)
    polls += [world.pop(b"%d" % at) for at in (8, 9)]
    world.turn()
    over, at_once = world.pop(b"10"), world.pop(b"11", 0)
    world.turn()
    assert isinstance(over.got, Overloaded) and at_once.got is None
    polls[0].hang_up()
    again = world.pop(b"12")
    world.turn()
    assert again.waits and world.queues.wait_lists.parked == 10


def calls(redis: RedisServer, command: str) -> int:
    """How often this command was carried out, by scripts too."""
    stats = redis.command("INFO", "commandstats").decode()
    counts = [line for line in stats.splitlines() if line.startswith(f"cmdstat_{command}:")]
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in counts)


def looks(redis: RedisServer) -> list[int]:
    """How many keys each of the last looks for raw elements asked for."""
    log = redis.command("SLOWLOG", "GET", 100)
    # The log has 32 words of a command: the last one tells how many more there were.
    commands = [entry[3] for entry in log]
    return [int(words[31].split()[1][1:]) for words in commands if words[0] == b"EXISTS" and len(words) == 32]


@pytest.mark.every_redis
def test_many_names_that_are_only_polled(served: Daemon, module_redis_process: RedisServer) -> None:
    """They are listed without asking Redis what they hold, and a task for the last of them is served."""
    q = fresh()
    names = [[f"{q}:{row}-{at}" for at in range(100)] for row in range(30)]
    polls = [Asked(served, "GET", f"/api/popTasks/{','.join(some)}?wait=30") for some in names]
    wait_until(lambda: ask(served, "GET", f"/api/queues/{names[-1][-1]}").json["pollers"] == 1)
    assert all(poll.waits(0.01) for poll in polls)
    holds = fresh()
    ask(served, "PUT", f"/api/pushTask/{holds}", 1).ok()
    redis = module_redis_process
    before = calls(redis, "evalsha"), calls(redis, "llen")
    first = ask(served, "GET", "/api/queues?limit=1&sort=ready").ok()
    assert [row["name"] for row in first["queues"]] == [holds] and first["cursor"]
    family = ask(served, "GET", "/api/queues?family=:&search=" + q).ok()["queues"]
    assert [(row["name"], row["pollers"], row["queues"]) for row in family] == [(f"{q}:*", 3000, 3000)]
    # Sweeps, and one call for the queue that holds something.
    assert calls(redis, "evalsha") - before[0] < 25
    assert calls(redis, "llen") - before[1] < 1000
    redis.command("CONFIG", "SET", "slowlog-log-slower-than", 0)
    try:
        assert max(wait_until(lambda: looks(redis))) <= 1000
    finally:
        redis.command("CONFIG", "SET", "slowlog-log-slower-than", 10_000)
    redis.command("LPUSH", names[0][99], "7")
    redis.command("LPUSH", names[29][0], "8")
    assert [one["task"] for one in polls[0].answer().ok()["tasks"]] == [7]
    assert [one["task"] for one in polls[29].answer().ok()["tasks"]] == [8]
    for poll in polls[1:29]:
        poll.hang_up()
    assert leased(served, holds)["task"] == 1

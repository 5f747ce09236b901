"""First in, first out: the order of the pushes, also for equal times and across daemons."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import ensureDeferred

from registry.redis.store import encode_options
from tests.bench import Bench
from tests.live import Daemon, RedisServer
from tests.talk import ask, becomes, counts, fresh, retry

COUNT = 60


class Producers:
    """A producer at each of two daemons, over connections that are kept; what they push is numbered."""

    def __init__(self, pair: tuple[Daemon, Daemon]) -> None:
        self.pair = pair
        self.connections = [http.client.HTTPConnection("127.0.0.1", one.port, timeout=10) for one in pair]
        self.pushed = 0

    def push(self, name: str, count: int = COUNT, query: str = "", batch: int = 1) -> None:
        """Push by turns, each after the answer to the one before."""
        for turn in range(count // batch):
            tasks = list(range(self.pushed, self.pushed + batch))
            verb, body = ("pushTask", str(tasks[0])) if batch == 1 else ("pushTasks", json.dumps(tasks))
            connection = self.connections[turn % 2]
            connection.request("PUT", f"/api/{verb}/{name}?{query}", body.encode())
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer
            self.pushed += batch

    def hold(self, name: str, lease: float) -> list[dict[str, Any]]:
        """All that is ready, under leases that were given in one moment."""
        path = f"/api/popTasks/{name}?wait=0&count=100&lease={lease}"
        held: list[dict[str, Any]] = ask(self.pair[0], "GET", path).json["tasks"]
        return held

    def in_order(self, name: str) -> None:
        found: list[Any] = []
        while some := self.hold(name, 60):
            found += [one["task"] for one in some]
        assert found == list(range(self.pushed))


@pytest.fixture
def producers(pair: tuple[Daemon, Daemon]) -> Iterator[Producers]:
    one = Producers(pair)
    yield one
    for connection in one.connections:
        connection.close()


def moment(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_tasks_due_at_one_moment(producers: Producers, q: str) -> None:
    # More than one sweep takes out of a queue at once.
    producers.push(q, 450, f"at={moment(2)}", batch=5)
    becomes(producers.pair[0], q, 20, ready=450)
    producers.in_order(q)


def test_tasks_of_a_higher_priority_due_at_one_moment(producers: Producers, q: str) -> None:
    producers.push(q, COUNT, f"priority=3&attempts=2&at={moment(2)}")
    becomes(producers.pair[0], q, 10, ready=COUNT)
    producers.in_order(q)


@pytest.mark.parametrize("query", ["", "priority=4"])
def test_leases_that_lapse_at_one_moment(producers: Producers, q: str, query: str) -> None:
    producers.push(q, COUNT, query)
    assert [one["task"] for one in producers.hold(q, 0.2)] == list(range(COUNT))
    becomes(producers.pair[0], q, 5, ready=COUNT)
    producers.in_order(q)


def test_fails_that_wait_for_one_moment(producers: Producers, q: str) -> None:
    producers.push(q)
    held = producers.hold(q, 30)
    random.Random(1).shuffle(held)
    fails = [{"lease": one["lease"], "delay": 0.3} for one in held]
    ask(producers.pair[0], "POST", f"/api/ackTasks/{q}", {"fails": fails}).ok()
    becomes(producers.pair[0], q, 5, ready=COUNT)
    producers.in_order(q)


def dead(producers: Producers, q: str) -> None:
    """All of a queue die in one moment, in any order."""
    held = producers.hold(q, 30)
    random.Random(2).shuffle(held)
    fails = [{"lease": one["lease"], "retry": False} for one in held]
    ask(producers.pair[0], "POST", f"/api/ackTasks/{q}", {"fails": fails}).ok()
    assert counts(producers.pair[0], q) == {"dead": len(held)}


def test_a_bulk_retry_of_what_died_at_one_moment(producers: Producers, q: str) -> None:
    producers.push(q)
    dead(producers, q)
    assert retry(producers.pair[1], q)["count"] == COUNT
    producers.in_order(q)


def test_a_move_keeps_the_order(producers: Producers, q: str) -> None:
    names = {state: fresh() for state in ("ready", "delayed", "dead")}
    for state, name in names.items():
        producers.pushed = 0
        producers.push(name, COUNT, f"at={moment(2)}" if state == "delayed" else "")
        if state == "dead":
            dead(producers, name)
        to = fresh()
        moved = ask(producers.pair[1], "POST", f"/api/queues/{name}/move?to={to}&state={state}").ok()
        assert moved["count"] == COUNT
        if state == "dead":
            retry(producers.pair[1], to)
        becomes(producers.pair[0], to, 8, ready=COUNT)
        producers.in_order(to)


@pytest.mark.every_redis
def test_ids_are_in_the_order_of_the_pushes(producers: Producers, q: str) -> None:
    ids = []
    for n in range(100):
        connection = producers.connections[n % 2]
        if n % 5:
            connection.request("PUT", f"/api/pushTask/{q}?key={n}", b"1")
            ids.append(json.loads(connection.getresponse().read())["id"])
        else:
            connection.request("PUT", f"/api/pushTasks/{q}", b"[1,2,3]")
            ids += json.loads(connection.getresponse().read())["ids"]
    assert ids == sorted(ids) and len(set(ids)) == len(ids)


# Daemons whose clocks differ


@pytest.fixture
def other(module_redis: RedisServer) -> Iterator[Bench]:
    """Another daemon's store, whose clock is slow."""
    one = Bench(module_redis)
    pytest_twisted.blockon(ensureDeferred(one.start()))
    one.store.set_clock(one.store.now_ms() - 900)
    yield one
    pytest_twisted.blockon(ensureDeferred(one.stop()))


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_a_daemon_whose_clock_is_slow_goes_before_nobody(bench: Bench, other: Bench) -> None:
    due = bench.now() + 100
    for n in range(20):
        await (bench, other)[n % 2].push((b"q", b"%d" % n), options={"at": due})
    time.sleep(0.15)
    await bench.sweep()
    assert bench.payloads(b"q") == [b"%d" % n for n in range(20)]


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_raw_elements_whose_leases_lapse_at_one_moment_keep_their_order(bench: Bench) -> None:
    bench.redis("LPUSH", "q", *[b"%d" % n for n in range(20)])
    pops = [bench.store.pop(b"q", bench.ids.nonce(), 1, encode_options({"l": True})) for _ in range(20)]
    assert [reply[2] for reply in await bench.call("pop", pops)] == [b"%d" % n for n in range(20)]
    time.sleep(0.01)
    await bench.sweep()
    assert bench.payloads(b"q") == [b"%d" % n for n in range(20)]


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_put_backs_of_one_moment_keep_their_order(bench: Bench, other: Bench) -> None:
    for n in range(20):
        await (bench, other)[n % 2].push((b"q", b"%d" % n))
    held = [lease for lease, *_ in await bench.pop(*[b"q"] * 20)]
    assert held == sorted(held)
    await bench.put_back(*[(b"q", lease) for lease in held])
    assert bench.payloads(b"q") == [b"%d" % n for n in range(20)]

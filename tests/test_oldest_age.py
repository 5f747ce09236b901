"""The age of a queue: for how long its oldest ready task has been ready."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from registry.redis.store import encode_options
from tests.live import Daemon, RedisServer
from tests.straight import Driver, wait
from tests.talk import ask, becomes, cancel, pushed, queue, task

LEASED = encode_options({"l": True})


class Queue:
    """A queue, and since when each of its ready tasks is ready."""

    def __init__(self, driver: Driver, name: bytes = b"q") -> None:
        self.driver, self.name = driver, name
        self.ready: dict[bytes, int] = {}
        # Lease -> its end, its task
        self.held: dict[bytes, tuple[int, bytes]] = {}
        self.lapsed: set[bytes] = set()
        self.delayed: dict[bytes, int] = {}
        self.dead: list[bytes] = []
        self.count = 0

    def push(self, **options: int) -> bytes:
        self.count += 1
        entry = self.driver.store.push(self.name, b"%010x" % self.count, b"1", encode_options(options))
        reply = self.driver.call("push", entry)[0]
        task_id: bytes = reply[1] + b"%010x" % self.count
        if "d" in options:
            self.delayed[task_id] = self.driver.now + options["d"]
        else:
            self.ready[task_id] = self.driver.now
        return task_id

    def pop(self, length: int = 1_000_000, count: int = 1, leased: bool = True) -> list[bytes]:
        """The leases, in the order of the tasks."""
        nonces = [b"%032x" % random.getrandbits(128) for _ in range(count)]
        store, options = self.driver.store, LEASED if leased else b""
        replies = self.driver.call("pop", *[store.pop(self.name, nonce, length, options) for nonce in nonces])
        given = []
        for nonce, reply in zip(nonces, replies, strict=True):
            if reply[0] == 0:
                given.append(reply[1] + b"-" + nonce)
                self.held[given[-1]] = (self.driver.now + length, reply[1])
                self.ready.pop(reply[1], None)
        return given

    def say(self, verb: str, lease: bytes, *more: bytes) -> bytes:
        reply = self.driver.say(verb, self.name, lease, *more)
        assert reply[0] == 0, (verb, reply)
        return self.held.pop(lease)[1]

    def release(self, lease: bytes) -> None:
        self.ready[self.say("release", lease, b"0")] = self.driver.now

    def put_back(self, lease: bytes) -> None:
        self.ready[self.say("putback", lease, b"")] = self.driver.now

    def fail(self, lease: bytes) -> None:
        self.ready[self.say("fail", lease, encode_options({"d": 0}))] = self.driver.now

    def die(self, lease: bytes) -> None:
        self.dead.append(self.say("fail", lease, encode_options({"n": True})))

    def revive(self, task_id: bytes) -> None:
        assert self.driver.say("retry", self.name, task_id, b"")[0] == 0
        self.dead.remove(task_id)
        self.ready[task_id] = self.driver.now

    def run(self, task_id: bytes) -> None:
        assert self.driver.say("run", self.name, task_id)[0] == 0
        del self.delayed[task_id]
        self.ready[task_id] = self.driver.now

    def cancel(self, task_id: bytes) -> None:
        assert self.driver.say("cancel", self.name, task_id)[0] == 0
        del self.ready[task_id]

    def pass_time(self, ms: int) -> None:
        now = self.driver.now + ms
        self.driver.set_clock(now)
        self.driver.sweep()
        for task_id in [one for one, at in self.delayed.items() if at <= now]:
            del self.delayed[task_id]
            self.ready[task_id] = now
        for lease, (ends, task_id) in list(self.held.items()):
            if ends <= now:
                del self.held[lease]
                if task_id in self.lapsed:
                    raise AssertionError("a second lapse waits for a backoff of its own")
                self.lapsed.add(task_id)
                self.ready[task_id] = now

    def oldest(self) -> int | None:
        found: int | None = wait(self.driver.store.counts([self.name]))[0].oldest_ms
        return found

    def tells_the_oldest(self) -> None:
        assert self.oldest() == min(self.ready.values(), default=None)


@pytest.fixture
def q(module_redis: RedisServer) -> Iterator[Queue]:
    driver = Driver(module_redis)
    driver.reset()
    yield Queue(driver)
    driver.stop()


def step(q: Queue, chance: random.Random) -> None:
    """Something that happens to a queue."""
    held = chance.sample(list(q.held), chance.randint(0, len(q.held)))
    match chance.randrange(13):
        case 0 | 1:
            q.push()
        case 2:
            q.push(p=chance.choice([1, 9]))
        case 3:
            q.push(d=40)
        case 4:
            q.pop(count=chance.choice([1, 3, 30]), leased=chance.random() < 0.7)
        case 5:
            q.pass_time(chance.choice([1, 20, 50]))
        case 6:
            for lease in held:
                q.release(lease)
        case 7:
            for lease in sorted(held, reverse=True):
                q.put_back(lease)
        case 8 if held:
            q.fail(held[0])
        case 9 if held:
            q.die(held[0])
        case 10 if q.ready:
            q.cancel(chance.choice(list(q.ready)))
        case 11 if q.dead:
            q.revive(q.dead[0])
        case 12 if q.delayed:
            q.run(next(iter(q.delayed)))


@pytest.mark.every_redis
@pytest.mark.parametrize("seed", range(4))
def test_it_is_that_of_the_oldest_whatever_happens_to_the_others(q: Queue, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(220):
        step(q, chance)
        q.driver.set_clock(q.driver.now + 1)
        q.tells_the_oldest()


@pytest.mark.every_redis
@pytest.mark.parametrize("count", [1, 2, 3, 7, 300])
@pytest.mark.parametrize("behind", [0, 1, 5])
def test_behind_those_that_were_given_back_stands_one_that_waits_for_longer(
    q: Queue, count: int, behind: int
) -> None:
    for _ in range(count):
        q.push()
    leases = [lease for _ in range(0, count, 100) for lease in q.pop(count=100)]
    assert len(leases) == count
    for _ in range(behind):
        q.pass_time(1_000)
        q.push()
    for lease in leases:
        q.pass_time(7)
        q.release(lease)
    q.pass_time(100)
    q.tells_the_oldest()
    # The one that was given back first is the last of them.
    for task_id in sorted(q.ready, key=q.ready.__getitem__)[: min(count // 2, 90)]:
        q.cancel(task_id)
        q.tells_the_oldest()


@pytest.mark.every_redis
def test_leases_that_lapse_together_are_ready_from_then_on(q: Queue) -> None:
    for _ in range(150):
        q.push()
    q.pop(500, 100)
    q.pop(500, 50)
    q.pass_time(400)
    q.push()
    q.tells_the_oldest()
    q.pass_time(200)
    q.tells_the_oldest()
    q.pop(count=100)
    q.pop(count=50)
    q.tells_the_oldest()


@pytest.mark.every_redis
def test_what_is_put_back_became_ready_then(q: Queue) -> None:
    q.push()
    for leased_ in (False, True, False):
        q.pass_time(100)
        [lease] = q.pop(leased=leased_)
        assert q.oldest() is None
        q.put_back(lease)
        q.tells_the_oldest()


@pytest.mark.every_redis
def test_a_raw_element_and_tombstones_have_no_age(q: Queue) -> None:
    q.driver.redis("LPUSH", "q", "1")
    q.push()
    assert q.oldest() is None
    assert q.driver.call("pop", q.driver.store.pop(b"q", b"0" * 32, 1_000, b""))[0][4] == -1
    q.tells_the_oldest()
    [lease] = q.pop()
    q.driver.redis("LPUSH", "q", "2")
    q.release(lease)
    q.tells_the_oldest()
    for task_id in list(q.ready):
        q.cancel(task_id)
    q.driver.redis("DEL", "q")
    q.driver.redis("HDEL", "{q}n", "s0")
    ids = [q.push() for _ in range(40)]
    for task_id in ids:
        q.cancel(task_id)
    assert q.oldest() is None


def test_over_http_it_counts_from_when_a_delay_was_due(served: Daemon) -> None:
    name = "ages"
    task_id = pushed(served, name, "late", "delay=1.5")
    assert queue(served, name)["oldest_age"] is None
    becomes(served, name, 10, ready=1)
    row = queue(served, name)
    listed = ask(served, "GET", f"/api/queues?search={name}").ok()["queues"][0]
    made = datetime.fromisoformat(task(served, name, task_id)["pushed_at"]).timestamp()
    assert 0 <= row["oldest_age"] <= listed["oldest_age"] <= time.time() - made - 1.5
    cancel(served, name, task_id)
    assert queue(served, name)["oldest_age"] is None

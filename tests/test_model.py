"""The scripts against a plain Python model: whatever is said in whatever order, Redis holds what the model holds.

Time stands still between the steps: the scripts' only clock, Redis ``TIME``, is replaced by two keys.
REGISTRY_TEST_MODEL_EXAMPLES says how many stories are told.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import msgpack

from registry.redis.store import encode_options
from tests.live import RedisServer
from tests.model import ACK_FOR, DAY, HANDOVER, HOUR, Queue, Task
from tests.straight import Driver, compare

QUEUES = (b"a", b"b")
Pair = tuple[bytes, bytes]
# Shrinking a failure takes minutes; without it the steps that failed are told as they were.
PHASES = (Phase.generate,) if os.environ.get("REGISTRY_TEST_MODEL_QUICK") else (Phase.generate, Phase.shrink)
EXAMPLES = int(os.environ.get("REGISTRY_TEST_MODEL_EXAMPLES", "150"))

DRIVER: list[Driver] = []
queues = st.sampled_from(QUEUES)
picks = st.integers(0, 999)


class Scripts(RuleBasedStateMachine):
    """Each rule says one thing to the scripts and to the model, and compares the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = DRIVER[-1]
        self.driver.reset()
        self.store = self.driver.store
        self.queues = {name: Queue() for name in QUEUES}
        self.count = itertools.count(1)
        self.raw_ids: set[bytes] = set()
        self.given: list[tuple[bytes, bytes]] = []

    @property
    def now(self) -> int:
        return self.driver.now

    def find(self, name: bytes, task_id: bytes) -> Task | None:
        return self.queues[name].tasks.get(task_id)

    def a_lease(self, pick: int) -> Pair:
        """Mostly one that is held, or has just run out; now and then any that ever was, or of the other queue."""
        held = [(name, t.lease) for name, q in self.queues.items() for t in q.of("l") if t.lease is not None]
        ran_out = [(name, t.lapsed) for name, q in self.queues.items() for t in q.tasks.values() if t.lapsed]
        strays = [*self.given[-6:], *((QUEUES[name == QUEUES[0]], lease) for name, lease in held[:1])]
        return _picked([*held, *ran_out], strays or [(b"a", b"%024x-%032x" % (0, 0))], pick)

    def a_task(self, pick: int, states: str) -> Pair:
        """Mostly one in one of these states; now and then any, or one that is not there."""
        every = [(name, t) for name, q in self.queues.items() for t in q.tasks.values()]
        fit = [(name, t.id) for name, t in every if t.state in states]
        return _picked(fit, [*((name, t.id) for name, t in every), (b"b", b"%024x" % 1)], pick)

    # Pushing

    @rule(
        name=queues,
        priority=st.sampled_from([0, 0, 0, 3, 9]),
        key=st.sampled_from([None, None, "k", "l"]),
        delay=st.sampled_from([None, None, None, 500, 60_000]),
        ttl=st.sampled_from([None, None, None, 700, 50_000]),
        attempts=st.sampled_from([None, None, 1, 2]),
        backoff=st.sampled_from([None, None, 0, 400]),
        result=st.sampled_from([None, None, 5_000]),
    )
    def push(
        self,
        name: bytes,
        priority: int,
        key: str | None,
        delay: int | None,
        ttl: int | None,
        attempts: int | None,
        backoff: int | None,
        result: int | None,
    ) -> Any:
        said = {
            "p": priority or None,
            "k": key,
            "d": delay,
            "x": ttl,
            "n": attempts,
            "b": backoff,
            "r": result,
        }
        options = {short: value for short, value in said.items() if value is not None}
        self._push(name, options)

    @rule(name=queues)
    def push_plain(self, name: bytes) -> None:
        self._push(name, {})

    def _push(self, name: bytes, options: dict[str, Any]) -> None:
        queue, n = self.queues[name], next(self.count)
        task = Task(b"%024x" % n, b'{"n":%d}' % n)
        entry = self.store.push(name, task.id, task.payload, encode_options(options))
        reply = self.driver.call("push", entry)[0]
        key = options.get("k")
        other = queue.tasks[queue.keys[key]] if key in queue.keys else None
        if other is not None:
            over = other.state in "rd" and other.expires is not None and other.expires <= self.now
            if not over:
                assert reply == [0, other.id, 1]
                return
        if queue.length() >= queue.policy.get("max_length", 1_000_000):
            assert reply == [9, queue.policy["max_length"]]
            return
        assert reply == [0]
        queue.enter(self.now, task, options)

    @rule(name=queues, size=st.integers(1, 4), priority=st.sampled_from([0, 3]))
    def push_many(self, name: bytes, size: int, priority: int) -> None:
        queue = self.queues[name]
        numbers = [next(self.count) for _ in range(size)]
        batch = [Task(b"%024x" % n, b'{"n":%d}' % n) for n in numbers]
        options = {"p": priority} if priority else {}
        ids, payloads = [t.id for t in batch], [t.payload for t in batch]
        entry = self.store.push_many(name, ids, payloads, encode_options(options))
        reply = self.driver.call("pushmany", entry)[0]
        if queue.length() + size > queue.policy.get("max_length", 1_000_000):
            assert reply == [9, queue.policy["max_length"]]
            return
        assert reply == [0]
        for task in batch:
            queue.enter(self.now, task, options)

    @rule(name=queues)
    def push_raw(self, name: bytes) -> None:
        """Another program's."""
        payload = b'{"raw":%d}' % next(self.count)
        self.driver.redis("LPUSH", name, payload)
        self.queues[name].ready[0].append(payload)

    # Popping

    def _given(self, queue: Queue, task: Task, found: list[Any], nonce: bytes) -> None:
        """Compare a task that was given with the model's."""
        if not task.id:
            task.id = found[1]
            assert len(task.id) == 24 and task.id not in queue.tasks and task.id not in self.raw_ids
            self.raw_ids.add(task.id)
            del queue.tasks[task.payload]
            queue.tasks[task.id] = task
        attempt = task.attempt + 1 if task.plain else task.attempt
        assert found[:4] == [0, task.id, task.payload, attempt]
        assert found[5] == task.ends - self.now
        task.lease = task.id + b"-" + nonce
        self.given.append((next(n for n in QUEUES if self.queues[n] is queue), task.lease))

    def _nonce(self) -> bytes:
        # An element of another program gets its id from the beginning of the nonce.
        return b"%09x" % next(self.count) + b"0" * 23

    @rule(name=queues, leased=st.booleans(), lease_ms=st.sampled_from([0, 300, 5_000, 50_000]))
    def pop(self, name: bytes, leased: bool, lease_ms: int) -> None:
        queue = self.queues[name]
        length = lease_ms if leased else HANDOVER
        nonce = self._nonce()
        options = {"l": True, "w": "worker"} if leased else {}
        expected = queue.take(self.now, leased, length)
        while True:
            entry = self.store.pop(name, nonce, length, encode_options(options))
            reply = self.driver.call("pop", entry)[0]
            if reply != [2]:
                break
        if isinstance(expected, int):
            assert reply[0] == expected, (reply, expected)
            return
        self._given(queue, expected, reply, nonce)

    @rule(name=queues, count=st.integers(2, 5))
    def pop_plain_together(self, name: bytes, count: int) -> None:
        """Several clients' pops without lease in one call."""
        queue = self.queues[name]
        nonces = [self._nonce() for _ in range(count)]
        replies = self.driver.call("pop", *[self.store.pop(name, n, HANDOVER, b"") for n in nonces])
        for nonce, reply in zip(nonces, replies, strict=True):
            expected = queue.take(self.now, False, HANDOVER)
            if isinstance(expected, int):
                assert reply[0] in (expected, 2)
            else:
                self._given(queue, expected, reply, nonce)

    @rule(
        names=st.permutations(QUEUES),
        count=st.integers(1, 4),
        start=st.sampled_from([None, 0, 1]),
    )
    def pop_many(self, names: list[bytes], count: int, start: int | None) -> None:
        nonce = self._nonce()
        options = {"c": count} if start is None else {"c": count, "s": start}
        expected: list[tuple[bytes, Task]] = []
        over: set[bytes] = set()
        code, at = 1, start or 0
        while len(over) < len(names) and len(expected) < count:
            name = names[at % len(names)]
            if name in over:
                at += 1
                continue
            task = self.queues[name].take(self.now, True, 4_000)
            if isinstance(task, int):
                over.add(name)
                code = task if task != 1 else code
            else:
                expected.append((name, task))
                at += start is not None
        while True:
            reply = self.driver.call("popmany", self.store.pop_many(names, nonce, 4_000, options))[0]
            if reply != [2]:
                break
        if not expected:
            assert reply[0] == code
            return
        assert reply[0] == 0 and [one[8] for one in reply[1:]] == [name for name, _ in expected]
        for (name, task), found in zip(expected, reply[1:], strict=True):
            self._given(self.queues[name], task, found, nonce)

    # What holders say

    @rule(pick=picks)
    def ack(self, pick: int) -> None:
        name, lease = self.a_lease(pick)
        queue = self.queues[name]
        task = queue.held(lease)
        if task is not None and task.hidden:
            return  # nobody was told this lease
        reply = self.driver.say("ack", name, lease, b'{"ok":1}')
        if task is not None:
            assert reply == [0, b"done"]
            queue.finish(task, self.now, False)
            queue.acked[lease] = self.now + ACK_FOR
            return
        if lease in queue.acked:
            assert reply == [0, b"done"]
            return
        task = queue.tasks.get(lease.split(b"-")[0])
        if task is None or task.lapsed != lease or task.state in "le" or task.reason == "cancelled":
            assert reply == [1]
            return
        assert reply == [0, b"late"]
        if task.state == "r":
            queue.leave_ready(task)
        queue.finish(task, self.now, False)
        queue.acked[lease] = self.now + ACK_FOR

    @rule(pick=picks, delay=st.sampled_from([None, None, 0, 800]), again=st.booleans())
    def fail(self, pick: int, delay: int | None, again: bool) -> None:
        name, lease = self.a_lease(pick)
        queue = self.queues[name]
        task = queue.held(lease)
        if task is not None and task.hidden:
            return
        said: dict[str, Any] = {"e": {"message": "no"}}
        if delay is not None:
            said["d"] = delay
        if not again:
            said["n"] = True
        reply = self.driver.say("fail", name, lease, encode_options(said))
        if task is None:
            assert reply == [1]
            return
        task.lapsed = None
        wait = delay if delay is not None else task.backoff_ms()
        if task.marked or not again or task.attempt >= task.attempts:
            assert reply == [0, b"dead"]
            queue.bury(task, "cancelled" if task.marked else "failed", self.now)
        elif wait:
            assert reply == [0, b"delayed"]
            queue.make_delayed(task, self.now + wait)
        else:
            assert reply == [0, b"ready"]
            queue.make_ready(task, head=False)

    @rule(pick=picks, delay=st.sampled_from([0, 0, 900]))
    def release(self, pick: int, delay: int) -> None:
        name, lease = self.a_lease(pick)
        queue = self.queues[name]
        task = queue.held(lease)
        if task is not None and task.hidden:
            return
        reply = self.driver.say("release", name, lease, b"%d" % delay)
        if task is None:
            assert reply == [1]
            return
        assert reply == [0]
        task.attempt, task.lapsed = task.attempt - 1, None
        if task.marked:
            queue.bury(task, "cancelled", self.now)
        elif delay:
            queue.make_delayed(task, self.now + delay)
        else:
            queue.make_ready(task, head=True)

    @rule(pick=picks, length=st.sampled_from([200, 20_000]))
    def extend(self, pick: int, length: int) -> None:
        name, lease = self.a_lease(pick)
        task = self.queues[name].held(lease)
        if task is not None and task.hidden:
            return
        reply = self.driver.say("extend", name, lease, b"%d" % length, b"")
        if task is None or task.ends <= self.now:
            assert reply == [1]
            return
        assert reply == [0, length, int(task.marked)]
        task.ends = self.now + length

    @rule(pick=picks)
    def confirm(self, pick: int) -> None:
        name, lease = self.a_lease(pick)
        queue = self.queues[name]
        task = queue.held(lease)
        if task is not None and not task.hidden:
            return  # only the end of an answer without lease is confirmed
        reply = self.driver.say("confirm", name, lease)
        assert reply == [0 if task is not None else 1]
        if task is not None:
            queue.finish(task, self.now, True)

    @rule(pick=picks)
    def put_back(self, pick: int) -> None:
        name, lease = self.a_lease(pick)
        queue = self.queues[name]
        task = queue.held(lease)
        reply = self.driver.say("putback", name, lease, b"")
        assert reply == [0 if task is not None else 1]
        if task is None:
            return
        if not task.plain:
            task.attempt -= 1
        if task.marked:
            queue.bury(task, "cancelled", self.now)
        else:
            queue.make_ready(task, head=True)

    # What operators say

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        name, task_id = self.a_task(pick, "rdlxe")
        queue, task = self.queues[name], self.find(name, task_id)
        if task is not None and task.state == "l" and task.plain:
            return  # between two states: proven where its moments can be told apart
        reply = self.driver.say("cancel", name, task_id)
        if task is None:
            assert reply == [1]
        elif task.state in "xe":
            assert reply == [0, b"removed"]
            del queue.tasks[task_id]
        elif task.state == "l":
            assert reply == [0, b"marked"]
            task.marked = True
        else:
            assert reply == [0, b"cancelled"]
            if task.state == "r":
                queue.leave_ready(task)
            queue.bury(task, "cancelled", self.now)

    @rule(pick=picks)
    def retry(self, pick: int) -> None:
        name, task_id = self.a_task(pick, "x")
        queue, task = self.queues[name], self.find(name, task_id)
        reply = self.driver.say("retry", name, task_id)
        if task is None or task.state != "x":
            assert reply == [1]
            return
        if task.key is not None and queue.keys.get(task.key, task_id) != task_id:
            assert reply == [10]
            return
        assert reply == [0]
        if task.key is not None:
            queue.keys[task.key] = task_id
        task.granted = task.granted or task.attempts
        task.attempts = task.attempt + task.granted
        task.expires = task.lapsed = task.reason = None
        task.marked, task.lapses = False, 0
        queue.make_ready(task, head=False)

    @rule(pick=picks)
    def run(self, pick: int) -> None:
        name, task_id = self.a_task(pick, "d")
        queue, task = self.queues[name], self.find(name, task_id)
        reply = self.driver.say("run", name, task_id)
        if task is None:
            assert reply == [1]
        elif task.state != "d":
            assert reply[0] == 2
        else:
            assert reply == [0]
            queue.make_ready(task, head=False)

    @rule(names=st.permutations(QUEUES), state=st.sampled_from(["ready", "ready", "delayed", "dead"]))
    def move(self, names: list[bytes], state: str) -> None:
        name, to = names
        reply = self.driver.say("move", name, to, state.encode(), b"1000", b"0")
        moved, skipped = self.queues[name].move(self.queues[to], state)
        assert reply == [0, moved, skipped, 0]

    @rule(name=queues)
    def purge(self, name: bytes) -> None:
        assert self.driver.say("purge", name, b"1000") == [0, self.queues[name].purge(), 0]

    @rule(
        name=queues,
        rules=st.sampled_from([{}, {}, {"paused": True}, {"concurrency": 1}, {"max_length": 3}]),
    )
    def policy(self, name: bytes, rules: dict[str, Any]) -> None:
        reset = ["paused", "concurrency", "max_length"]
        packed = msgpack.encode({"set": rules, "reset": [one for one in reset if one not in rules]})
        reply = self.driver.say("policy", name, packed)
        assert (msgpack.decode(reply[1]) or {}) == rules
        self.queues[name].policy = rules

    # Time

    @rule(ms=st.sampled_from([1, 150, 450, 1_000, 12_000, 70_000, HOUR + 1, 40 * DAY]))
    def time_passes(self, ms: int) -> None:
        self.driver.set_clock(self.now + ms)

    @rule()
    def sweep(self) -> None:
        self.driver.sweep()
        for queue in self.queues.values():
            queue.sweep(self.now)

    @precondition(lambda self: any(queue.of("l") for queue in self.queues.values()))
    @rule()
    def the_next_lease_ends(self) -> None:
        ends = min(task.ends for queue in self.queues.values() for task in queue.of("l"))
        self.driver.set_clock(max(self.now, ends))
        self.sweep()

    # What must hold after every step

    @invariant()
    def redis_holds_what_the_model_holds(self) -> None:
        for name, queue in self.queues.items():
            compare(self.driver, name, queue)

    def teardown(self) -> None:
        """Once everything has been said, time clears the rest: no key stays."""
        for name, queue in self.queues.items():
            self.driver.say("policy", name, msgpack.encode({"set": {}, "reset": list(queue.policy)}))
            queue.policy = {}
            for task in queue.of("l"):
                self.driver.say("bury", name, task.lease or b"", b"over")
        for name in self.queues:
            while self.driver.say("purge", name, b"1000")[2]:
                pass
        for days in (1, 60):
            self.driver.set_clock(self.now + days * DAY)
            self.driver.sweep()
        assert set(self.driver.redis("KEYS", "*")) == {b"clock:s", b"clock:us"}


def _picked(likely: list[Pair], others: list[Pair], pick: int) -> Pair:
    if pick % 8 == 0 or not likely:
        return others[pick // 8 % len(others)]
    return likely[pick % len(likely)]


@pytest.fixture
def driver(module_redis: RedisServer) -> Iterator[Driver]:
    one = Driver(module_redis)
    DRIVER.append(one)
    try:
        yield one
    finally:
        DRIVER.pop()
        one.stop()


@pytest.mark.every_redis
@pytest.mark.timeout(600)
def test_the_scripts_do_what_the_model_does(driver: Driver) -> None:
    run_state_machine_as_test(
        Scripts,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=PHASES,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )

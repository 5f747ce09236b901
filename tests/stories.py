"""Hypothesis rules that drive the scripts and their model alike: clients that push and pop."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from registry.model import PopOptions
from registry.redis.store import encode_options
from tests.model import HANDOVER, HOUR, Aside, Queue, Task
from tests.straight import Driver

QUEUES = (b"a", b"b")
Pair = tuple[bytes, bytes]

DRIVER: list[Driver] = []
queues = st.sampled_from(QUEUES)
picks = st.integers(0, 999)


class Clients(RuleBasedStateMachine):
    """Pushes and pops. Each rule says one thing to the scripts and to the model, and compares the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = DRIVER[-1]
        self.driver.reset()
        self.store = self.driver.store
        self.queues = {name: Queue() for name in QUEUES}
        self.count = itertools.count(1)
        self.raw_ids: set[bytes] = set()
        self.given: list[tuple[bytes, bytes]] = []
        # What is set aside: the queue, the operation's number, its list and what could not come back.
        self.asides: list[tuple[bytes, int, dict[str, list[Aside]]]] = []

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
        tail, payload = b"%010x" % n, b'{"n":%d}' % n
        entry = self.store.push(name, tail, payload, encode_options(options))
        reply = self.driver.call("push", entry)[0]
        if options.get("x", HOUR) <= options.get("d", 0):
            assert reply == [12, options["x"], options["d"]]
            return
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
        assert reply == [0, b"%011x000" % self.now]
        queue.enter(self.now, Task(reply[1] + tail, payload), options)

    @rule(name=queues, size=st.integers(1, 4), priority=st.sampled_from([0, 3]))
    def push_many(self, name: bytes, size: int, priority: int) -> None:
        queue = self.queues[name]
        numbers = [next(self.count) for _ in range(size)]
        tails, payloads = [b"%010x" % n for n in numbers], [b'{"n":%d}' % n for n in numbers]
        options = {"p": priority} if priority else {}
        entry = self.store.push_many(name, tails, payloads, encode_options(options))
        reply = self.driver.call("pushmany", entry)[0]
        if queue.length() + size > queue.policy.get("max_length", 1_000_000):
            assert reply == [9, queue.policy["max_length"]]
            return
        assert reply == [0, b"%011x000" % self.now]
        for tail, payload in zip(tails, payloads, strict=True):
            queue.enter(self.now, Task(reply[1] + tail, payload), options)

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
        return b"%05x" % next(self.count) + b"0" * 27

    @rule(
        name=queues,
        leased=st.booleans(),
        lease_ms=st.sampled_from([0, 300, 5_000, 50_000]),
        worker=st.sampled_from(["", "w1", "w2", "w3"]),
    )
    def pop(self, name: bytes, leased: bool, lease_ms: int, worker: str) -> None:
        queue = self.queues[name]
        length = lease_ms if leased else HANDOVER
        nonce = self._nonce()
        options = {"l": True, "w": worker} if leased else {}
        if not worker:
            options.pop("w", None)
        expected = queue.take(self.now, leased, length, worker)
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
        options = PopOptions(count=count, start=start)
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


def _picked(likely: list[Pair], others: list[Pair], pick: int) -> Pair:
    if pick % 8 == 0 or not likely:
        return others[pick // 8 % len(others)]
    return likely[pick % len(likely)]

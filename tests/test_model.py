"""The scripts against a plain Python model: whatever is said in whatever order, Redis holds what the model holds.

Time stands still between the steps: the scripts' only clock, Redis ``TIME``, is replaced by two keys.
REGISTRY_TEST_MODEL_EXAMPLES says how many stories are told.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from msgspec import msgpack

from registry.redis.store import encode_options
from tests.live import RedisServer
from tests.model import ACK_FOR, DAY, HOUR, Aside
from tests.stories import DRIVER, QUEUES, Clients, picks, queues
from tests.straight import Driver, compare

# Shrinking a failure takes minutes; without it the steps that failed are told as they were.
PHASES = (Phase.generate,) if os.environ.get("REGISTRY_TEST_MODEL_QUICK") else (Phase.generate, Phase.shrink)
EXAMPLES = int(os.environ.get("REGISTRY_TEST_MODEL_EXAMPLES", "150"))


class Scripts(Clients):
    """What holders and operators say besides, and time."""

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
            assert reply[:2] == [0, b"late" if task.ends <= self.now else b"done"] and reply[2] >= 0
            assert reply[3:] == ([task.worker.encode()] if task.worker else [])
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
        assert reply[:2] == [0, b"late"] and reply[2] >= -1
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
        if task is None or task.ends <= self.now:
            assert reply == [1]
            return
        task.lapsed = None
        worker = [task.worker.encode()] if task.worker else []
        wait = delay if delay is not None else task.backoff_ms()
        if task.marked or not again or task.attempt >= task.attempts:
            assert reply == [0, b"dead", *worker]
            queue.bury(task, "cancelled" if task.marked else "failed", self.now)
        elif wait:
            assert reply == [0, b"delayed", *worker]
            queue.make_delayed(task, self.now + wait)
        else:
            assert reply == [0, b"ready", *worker]
            queue.make_ready(task, head=False)

    @rule(pick=picks, delay=st.sampled_from([0, 0, 900]))
    def release(self, pick: int, delay: int) -> None:
        name, lease = self.a_lease(pick)
        queue = self.queues[name]
        task = queue.held(lease)
        if task is not None and task.hidden:
            return
        reply = self.driver.say("release", name, lease, b"%d" % delay)
        if task is None or task.ends <= self.now:
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
            # From now on it is known since when it is ready.
            task.plain = False
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
        reply = self.driver.say("retry", name, task_id, b"")
        if task is None or task.state != "x":
            assert reply == [1]
            return
        if task.key is not None and queue.keys.get(task.key, task_id) != task_id:
            assert reply == [10]
            return
        assert reply == [0, (task.key or "").encode()]
        if task.key is not None:
            queue.keys[task.key] = task_id
        task.granted = task.granted or task.attempts
        task.attempts = task.attempt + task.granted
        task.expires = task.reason = None
        task.marked, task.lapses = False, 0
        task.died_on_it = set()
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

    @rule(name=queues, keeps=st.sampled_from([True, True, False]))
    def purge(self, name: bytes, keeps: bool) -> None:
        serial, aside = next(self.count), self.queues[name].purge()
        reply = self.driver.say("purge", name, b"1000  %d:0" % serial if keeps else b"1000")
        assert reply[:3] == [0, len(aside), 0]
        if keeps:
            self.asides.append((name, serial, {"0": aside, "left": []}))

    # What they take back

    @rule(pick=picks, state=st.sampled_from("rdx"))
    def delete_and_set_aside(self, pick: int, state: str) -> None:
        name, task_id = self.a_task(pick, state)
        serial, task = next(self.count), self.find(name, task_id)
        if task is not None and task.state == "l" and task.plain:
            return  # as above
        reply = self.driver.say("delete", name, task_id, b"%b %d:0" % (state.encode(), serial))
        fits = task is not None and task.state == state
        assert reply[:3] == [0, int(fits), 1]
        if task is not None and fits:
            aside = [self.queues[name].delete(task)]
            self.asides.append((name, serial, {"0": aside, "left": []}))

    def kept(self) -> list[tuple[bytes, int, str, dict[str, list[Aside]]]]:
        """The lists that an undo finds."""
        return [(name, n, at, lists) for name, n, lists in self.asides for at in lists if lists[at]]

    @precondition(lambda self: self.kept())
    @rule(pick=picks, most=st.sampled_from([1, 1000, 1000]))
    def undo(self, pick: int, most: int) -> None:
        kept = self.kept()
        name, serial, number, lists = kept[-1 - pick % min(3, len(kept))]
        waits, reasons, came = lists[number], Counter[bytes](), 0
        most = min(most, len(waits))
        for _ in range(most):
            aside = waits.pop()
            why = self.queues[name].bring_back(aside, self.now)
            if why is None:
                came += 1
            else:
                reasons[why.encode()] += 1
                lists["left"].insert(0, aside)
        reply = self.driver.say("undo", name, b"%d" % serial, number.encode(), b"%d" % most)
        assert reply[:3] == [0, came, int(bool(waits))]
        assert dict(zip(reply[3::2], reply[4::2], strict=True)) == reasons

    @rule(
        name=queues,
        rules=st.sampled_from(
            [{}, {}, {"paused": True}, {"concurrency": 1}, {"max_length": 3}, {"poison": 2}, {"poison": 1}]
        ),
    )
    def policy(self, name: bytes, rules: dict[str, Any]) -> None:
        reset = ["paused", "concurrency", "max_length", "poison"]
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
        # What is set aside lasts for minutes, of a clock that moves.
        left = {key for key in self.driver.redis("KEYS", "*") if not key.startswith(b"undo:{")}
        assert left == {b"clock:s", b"clock:us"}


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

"""Parked pollers: who is next, who keeps a place, and what becomes of those that hang up."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from registry.errors import BadName, RedisFull, RedisUnavailable, ShuttingDown
from registry.queue.queues import CONFIRM_SECONDS, HANDOVER_MS, Queues
from registry.redis.store import Entry
from tests.conftest import LoggedErrors

HEAD, TAIL = True, False


class Memory:
    """A store in memory. Calls wait for ``run`` and their answers for ``reply`` while ``slow``."""

    process = b"here"

    def __init__(self) -> None:
        self.ready = True
        self.slow = False
        self.lists: dict[bytes, deque[tuple[bytes, bytes, int]]] = {}
        self.held: dict[bytes, tuple[bytes, bytes, bytes, int]] = {}
        self.dead: list[tuple[bytes, bytes]] = []
        self.asked: list[tuple[str, int]] = []
        self.error: Exception | None = None
        self._sent: deque[tuple[str, Sequence[Any], Deferred[Any]]] = deque()
        self._done: deque[tuple[Any, Deferred[Any]]] = deque()
        self._raw = itertools.count()

    def now_ms(self) -> int:
        return 1_700_000_000_000

    # An entry carries what it asks as it is; its bytes are counted for the bounds.
    def push(self, name: bytes, task_id: bytes, payload: bytes, options: bytes) -> Entry:
        return Entry(name, (task_id, payload))  # type: ignore[arg-type]

    def pop(self, name: bytes, nonce: bytes, lease_ms: int, options: bytes) -> Entry:
        assert lease_ms == HANDOVER_MS
        return Entry(name, (nonce,))  # type: ignore[arg-type]

    def of_lease(self, name: bytes, lease: bytes, *more: bytes) -> Entry:
        return Entry(name, (lease, *more))  # type: ignore[arg-type]

    def call(self, verb: str, entries: Sequence[Any], *, bounded: bool) -> Deferred[list[Any]]:
        assert bounded == (verb in ("push", "pop"))
        answer: Deferred[list[Any]] = Deferred()
        self._sent.append((verb, entries, answer))
        self.asked.append((verb, len(entries)))
        if not self.slow:
            self.run()
            self.reply()
        return answer

    def run(self) -> None:
        """Redis carries out what was sent."""
        while self._sent:
            verb, entries, answer = self._sent.popleft()
            if self.error is not None:
                self._done.append((self.error, answer))
            else:
                self._done.append(([getattr(self, f"_{verb}")(e.key, *e.args) for e in entries], answer))

    def reply(self) -> None:
        """Its answers arrive."""
        while self._done:
            result, answer = self._done.popleft()
            answer.errback(result) if isinstance(result, Exception) else answer.callback(result)

    def put(
        self, name: bytes, payload: bytes, head: bool = TAIL, task: bytes = b"", attempt: int = 0
    ) -> None:
        """A task that comes from elsewhere; without an id it is another program's."""
        line = self.lists.setdefault(name, deque())
        (line.appendleft if head else line.append)((task, payload, attempt))

    def payloads(self, name: bytes) -> list[bytes]:
        return [payload for _, payload, _ in self.lists.get(name, ())]

    def _push(self, name: bytes, task: bytes, payload: bytes) -> list[Any]:
        self.put(name, payload, task=task)
        return [0]

    def _pop(self, name: bytes, nonce: bytes) -> list[Any]:
        line = self.lists.get(name)
        if not line:
            return [1]
        task, payload, attempt = line.popleft()
        raw = int(not task)
        task = task or b"%011xA%012x" % (self.now_ms(), next(self._raw))  # the A of what nobody checked
        self.held[task + b"-" + nonce] = (name, task, payload, attempt + 1)
        return [0, task, payload, attempt + 1, raw, HANDOVER_MS, False]

    def _confirm(self, name: bytes, lease: bytes) -> list[Any]:
        return [0] if self.held.pop(lease, None) else [1]

    def _putback(self, name: bytes, lease: bytes, *more: bytes) -> list[Any]:
        if lease not in self.held:
            return [1]
        _, task, payload, attempt = self.held.pop(lease)
        self.put(name, payload, HEAD, task, attempt - 1)
        return [0]

    def _bury(self, name: bytes, lease: bytes, reason: bytes) -> list[Any]:
        self.dead.append((self.held.pop(lease)[2], reason))
        return [0]


class World:
    """Queues over a `Memory`, on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Memory()
        self.queues = Queues(
            self.store,  # type: ignore[arg-type]
            self.clock.callLater,
            lambda b: b[:1] != b"?",
            self.clock.seconds,
        )

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        # Answers ask again: their questions go at the end of the next turn.
        for _ in range(10):
            self.clock.advance(0)

    def pop(self, name: bytes = b"q", wait: float = 10.0) -> Poll:
        return Poll(self, name, wait)

    def parked(self, count: int, name: bytes = b"q") -> list[Poll]:
        polls = [self.pop(name) for _ in range(count)]
        self.turn()
        assert self.queues.waiting.parked == count
        return polls

    def push(self, payload: bytes, name: bytes = b"q") -> Deferred[Any]:
        pushed = self.queues.push(name, payload)
        self.turn()
        return pushed

    def pops(self) -> int:
        """How many questions were asked so far."""
        return sum(count for verb, count in self.store.asked if verb == "pop")

    def settled(self) -> bool:
        return self.queues.settled

    def nothing_left(self) -> bool:
        waiting = self.queues.waiting
        return not waiting.lines and not waiting.parked and not self.clock.getDelayedCalls()


class Poll:
    """One pop; ``got`` is the payload, ``None`` for nothing, an exception, or ``...`` while it waits."""

    def __init__(self, world: World, name: bytes, wait: float) -> None:
        self.got: Any = ...
        self.taken: Any = None
        self.reply = world.queues.pop(name, wait)
        self.reply.addCallbacks(self._told, lambda failure: setattr(self, "got", failure.value))

    def _told(self, taken: Any) -> None:
        self.taken = taken
        self.got = taken and taken.payload

    @property
    def waits(self) -> bool:
        return self.got is ...

    def hang_up(self) -> None:
        self.reply.cancel()


@pytest.fixture
def world() -> World:
    return World()


def test_a_task_that_is_there_is_answered_at_once(world: World) -> None:
    world.push(b"1")
    poll = world.pop()
    world.turn()
    assert poll.got == b"1"
    assert poll.taken.attempt == 1
    assert world.nothing_left()


def test_an_idle_poller_asks_once_and_then_costs_nothing(world: World) -> None:
    [poll] = world.parked(1)
    asked = len(world.store.asked)
    world.turn(9.9)
    assert poll.waits
    assert len(world.store.asked) == asked == 1
    world.turn(0.2)
    assert poll.got is None
    assert len(world.store.asked) == asked
    assert world.nothing_left()


def test_no_wait_does_not_park(world: World) -> None:
    poll = world.pop(wait=0)
    world.turn()
    assert poll.got is None
    assert world.nothing_left()


def test_a_push_wakes_exactly_one_first_come_first_served(world: World) -> None:
    polls = world.parked(3)
    asked = world.pops()
    for at, payload in enumerate((b"1", b"2", b"3")):
        world.push(payload)
        assert [p.got for p in polls[: at + 1]] == [b"1", b"2", b"3"][: at + 1]
        assert all(p.waits for p in polls[at + 1 :])
        assert world.pops() == asked + at + 1
    assert world.nothing_left()


def test_newcomers_stand_behind_those_that_wait(world: World) -> None:
    [first] = world.parked(1)
    second = world.pop()
    world.turn()
    assert world.pops() == 1  # somebody found it empty already
    world.push(b"1")
    assert (first.got, second.got) == (b"1", ...)
    world.push(b"2")
    assert second.got == b"2"


def test_a_woken_poller_that_gets_nothing_keeps_its_place(world: World) -> None:
    first, second, third = world.parked(3)
    world.queues.wake(b"q")  # another daemon's worker was faster
    world.turn()
    assert first.waits
    assert world.queues.waiting.parked == 3
    world.push(b"1")
    assert (first.got, second.got, third.got) == (b"1", ..., ...)


def test_two_woken_pollers_that_get_nothing_return_in_their_order(world: World) -> None:
    polls = world.parked(4)
    world.store.slow = True
    world.queues.wake(b"q")
    world.turn()
    world.queues.wake(b"q")
    world.turn()
    late = world.pop()
    world.store.run()
    world.store.reply()
    world.store.slow = False
    world.turn()
    for at in range(5):
        world.push(b"%d" % at)
    assert [p.got for p in [*polls, late]] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_notice_wakes_one_after_another_until_one_gets_nothing(world: World) -> None:
    polls = world.parked(4)
    asked = world.pops()
    world.store.put(b"q", b"1")
    world.store.put(b"q", b"2")
    world.queues.wake(b"q", relay=True)
    world.turn()
    assert [p.got for p in polls] == [b"1", b"2", ..., ...]
    assert world.pops() == asked + 3
    assert world.queues.waiting.parked == 2


def test_a_push_that_comes_while_the_only_poller_asks_is_not_missed(world: World) -> None:
    world.store.slow = True
    poll = world.pop()
    world.turn()
    world.store.run()  # the poller's question finds nothing …
    world.store.put(b"q", b"1")
    world.queues.wake(b"q")  # … and the notice finds nobody parked
    world.store.slow = False
    world.store.reply()
    world.turn()
    assert poll.got == b"1"
    assert world.nothing_left()


def test_a_missed_waking_is_for_one_that_is_still_there(world: World) -> None:
    world.store.slow = True
    gone, there = world.pop(), world.pop()
    world.turn()
    world.store.run()
    world.store.put(b"q", b"1")
    world.queues.wake(b"q")
    gone.hang_up()
    world.store.slow = False
    world.store.reply()
    world.turn()
    assert isinstance(gone.got, CancelledError)
    assert there.got == b"1"
    assert world.nothing_left()


def test_one_that_hangs_up_while_parked_takes_nothing(world: World) -> None:
    polls = world.parked(5)
    for gone in (polls[0], polls[2], polls[4]):
        gone.hang_up()
    assert world.queues.waiting.parked == 2
    asked = world.pops()
    world.push(b"1")
    world.push(b"2")
    world.push(b"3")
    assert (polls[1].got, polls[3].got) == (b"1", b"2")
    assert world.pops() == asked + 2
    assert world.store.payloads(b"q") == [b"3"]
    assert world.nothing_left()


def test_one_that_hangs_up_while_it_asks_gets_its_task_put_back_at_the_head(world: World) -> None:
    world.store.slow = True
    for payload in (b"1", b"2"):
        world.store.put(b"q", payload, task=b"t" + payload)
    poll = world.pop()
    world.turn()
    poll.hang_up()
    world.store.run()
    assert world.store.payloads(b"q") == [b"2"]
    world.store.slow = False
    world.store.reply()
    world.turn()
    assert world.store.payloads(b"q") == [b"1", b"2"]
    assert world.store.held == {}
    again = world.pop()
    world.turn()
    assert (again.got, again.taken.attempt) == (b"1", 1)
    assert world.nothing_left()


def test_what_was_put_back_wakes_the_next(world: World) -> None:
    [waiting] = world.parked(1)
    other = world.pop(wait=5)
    world.store.slow = True
    world.store.put(b"q", b"1")
    world.queues.wake(b"q")
    world.turn()
    waiting.hang_up()
    world.store.slow = False
    world.store.run()
    world.store.reply()
    world.turn()
    assert other.got == b"1"
    assert world.nothing_left()


def test_time_that_is_up_while_asking_still_takes_the_answer(world: World) -> None:
    world.store.slow = True
    world.store.put(b"q", b"1")
    rich, poor = world.pop(wait=1), world.pop(b"empty", wait=1)
    world.turn()
    world.turn(2)
    assert (rich.got, poor.got) == (..., ...)
    world.store.run()
    world.store.reply()
    world.turn()
    assert (rich.got, poor.got) == (b"1", None)
    assert world.nothing_left()


def test_lines_of_short_lived_queues_are_not_kept(world: World) -> None:
    for at in range(50):
        name = b"queue_results:%d" % at
        [answered, timed_out, gone] = world.parked(3, name)
        world.push(b"1", name)
        gone.hang_up()
        world.turn(11)
        assert (answered.got, timed_out.got) == (b"1", None)
        assert world.nothing_left()


def test_many_that_come_and_go_do_not_grow_a_line(world: World) -> None:
    [stays] = world.parked(1)
    for _ in range(1000):
        world.pop().hang_up()
        world.turn()
    assert len(world.queues.waiting.lines[b"q"].parked) <= 4
    assert world.queues.waiting.parked == 1
    world.push(b"1")
    assert stays.got == b"1"


def test_a_confirm_is_gathered_and_out_within_a_tenth_of_a_second(world: World) -> None:
    for at in range(3):
        world.push(b"%d" % at)
    polls = [world.pop() for _ in range(3)]
    world.turn()
    for poll in polls:
        world.queues.confirm(poll.taken)
    assert not world.settled()
    assert len(world.store.held) == 3
    assert CONFIRM_SECONDS < 0.1
    world.turn(CONFIRM_SECONDS)
    assert world.store.held == {}
    assert world.store.asked[-1] == ("confirm", 3)
    assert world.settled()
    assert world.nothing_left()


def test_an_element_that_is_not_json_is_made_dead_and_the_next_one_served(
    world: World, logged_errors: LoggedErrors
) -> None:
    for payload in (b"?", b"??", b"1"):
        world.store.put(b"q", payload)
    poll = world.pop()
    world.turn()
    assert poll.got == b"1"
    assert world.store.dead == [(b"?", b"not_json"), (b"??", b"not_json")]
    ours = world.push(b"?mine")  # what came through the door was checked there
    del ours
    again = world.pop()
    world.turn()
    assert again.got == b"?mine"
    assert world.nothing_left()


def test_without_redis_a_new_pop_is_refused_and_a_parked_one_stays(world: World) -> None:
    [first, second] = world.parked(2)
    world.store.error = RedisUnavailable("gone", outcome="unknown")
    world.store.ready = False
    refused = world.pop()
    world.turn()
    assert isinstance(refused.got, RedisUnavailable)
    for _ in range(2):
        world.queues.wake_all()
        world.turn()
    assert (first.got, second.got) == (..., ...)
    world.store.error = None
    world.store.ready = True
    world.store.put(b"q", b"1")
    world.store.put(b"q", b"2")
    world.queues.redis_is_back()
    world.turn()
    assert (first.got, second.got) == (b"1", b"2")


def test_one_that_parked_without_asking_stays_when_its_first_question_finds_no_redis(world: World) -> None:
    [first] = world.parked(1)
    second = world.pop()  # behind the first, without a question of its own
    world.turn()
    first.hang_up()
    world.store.error = RedisUnavailable("gone", outcome="unknown")
    world.queues.wake(b"q")
    world.turn()
    assert second.waits
    world.store.error = None
    world.store.put(b"q", b"1")
    world.queues.redis_is_back()
    world.turn()
    assert second.got == b"1"


def test_a_parked_poller_answers_nothing_when_its_time_is_up_without_redis(world: World) -> None:
    [poll] = world.parked(1)
    world.store.error = RedisUnavailable("gone")
    world.queues.wake(b"q")
    world.turn()
    world.turn(11)
    assert poll.got is None
    assert world.nothing_left()


@pytest.mark.parametrize("verb", ["confirm", "putback"])
def test_what_found_no_redis_is_sent_again_when_it_is_back(world: World, verb: str) -> None:
    world.push(b"1")
    poll = world.pop()
    world.turn()
    world.store.error = RedisUnavailable("gone", outcome="unknown")
    if verb == "confirm":
        world.queues.confirm(poll.taken)
    else:
        world.queues.put_back(poll.taken)
    world.turn(1)
    world.store.error = None
    assert len(world.store.held) == 1
    world.queues.redis_is_back()
    world.turn()
    assert world.store.held == {}
    assert world.store.payloads(b"q") == ([] if verb == "confirm" else [b"1"])
    asked = len(world.store.asked)
    world.queues.redis_is_back()
    world.turn()
    assert len(world.store.asked) == asked


def test_a_refused_push_fails_alone(world: World) -> None:
    world.store._push = lambda *a: [7, b"OOM command not allowed"]  # type: ignore[method-assign]
    failed: list[Any] = []
    world.push(b"1").addErrback(lambda failure: failed.append(failure.value))
    assert isinstance(failed[0], RedisFull)
    assert world.store.payloads(b"q") == []


def test_a_bad_name_asks_nothing(world: World) -> None:
    for name in (
        b"",
        b".",
        b"..",
        b"a/b",
        b"a{b",
        b"a}b",
        b"a\nb",
        b"\x7f",
        b"\xff",
        b"x" * 256,
        b"\xc2\x85",
    ):
        with pytest.raises(BadName):
            world.queues.pop(name, 0)
        with pytest.raises(BadName):
            world.queues.push(name, b"1")
    assert not world.store.asked
    for name in (b"a", b"...", b" ", "zone:ünï-✓".encode(), b"x" * 255, b"a%2Fb", b"index"):
        world.push(b"1", name)
        assert world.store.payloads(name) == [b"1"]


def test_when_draining_parked_pollers_are_told_there_is_nothing_and_newcomers_refused(world: World) -> None:
    polls = world.parked(3)
    world.store.slow = True
    asking = world.pop(b"other")
    world.turn()
    world.queues.draining = True
    world.queues.end_polls()
    assert [p.got for p in polls] == [None] * 3
    assert not world.settled()
    late = world.pop()
    world.turn()
    assert isinstance(late.got, ShuttingDown)
    failed: list[Any] = []
    world.push(b"1").addErrback(lambda failure: failed.append(failure.value))
    assert isinstance(failed[0], ShuttingDown)
    world.store.run()
    world.store.reply()
    world.turn()
    assert asking.got is None
    assert world.settled()
    assert world.nothing_left()

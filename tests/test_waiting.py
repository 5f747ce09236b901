"""Parked pollers: which is next, which keeps its place, and what happens to those that hang up."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError

from registry.errors import Conflict
from registry.model import PushOptions
from tests.memory import World


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
    world.queues.wait_lists.wake(b"q")  # another daemon's worker was faster
    world.turn()
    assert first.waits
    assert world.queues.wait_lists.parked == 3
    world.push(b"1")
    assert (first.got, second.got, third.got) == (b"1", ..., ...)


def test_two_woken_pollers_that_get_nothing_return_in_their_order(world: World) -> None:
    polls = world.parked(4)
    world.store.slow = True
    world.queues.wait_lists.wake(b"q")
    world.turn()
    world.queues.wait_lists.wake(b"q")
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
    world.queues.wait_lists.wake(b"q", wake_next=True)
    world.turn()
    assert [p.got for p in polls] == [b"1", b"2", ..., ...]
    assert world.pops() == asked + 3
    assert world.queues.wait_lists.parked == 2


def test_a_parked_poller_asks_right_behind_a_push_of_this_process(world: World) -> None:
    first, second = world.parked(2)
    asked = world.pops()
    world.store.slow = True
    world.push(b"1")
    assert [verb for verb, _ in world.store.asked[-2:]] == ["push", "pop"]
    world.store.run()
    world.store.reply()
    assert [first.got, second.got] == [b"1", ...]
    world.turn()
    # The answer to the push wakes nobody else.
    assert world.pops() == asked + 1


def test_one_that_asked_behind_a_push_and_was_answered_before_it_is_woken_again(world: World) -> None:
    [poll] = world.parked(1)
    world.store.slow = True
    pushed = world.push(b"1")
    push, pop = world.store._sent
    world.store._sent.clear()
    # A push that Redis took for late is sent again, behind the question.
    for late in (pop, push):
        world.store._sent.append(late)
        world.store.run()
        world.store.reply()
        world.turn()
    assert pushed.called and poll.waits
    world.store.run()
    world.store.reply()
    assert poll.got == b"1"


def test_nobody_asks_early_past_one_that_asked_before(world: World) -> None:
    first, second = world.parked(2)
    world.store.slow = True
    world.queues.wait_lists.wake(b"q")
    world.turn()
    world.push(b"1")
    world.store.slow = False
    world.store.run()
    world.store.reply()
    world.turn()
    assert first.got == b"1" and second.waits


@pytest.mark.parametrize("early", [True, False])
def test_what_one_that_asks_is_refused_wakes_the_next(world: World, early: bool) -> None:
    """The first asks without a lease where one is required; the second may be served."""
    first, second = world.parked(2)
    world.store.slow = True
    if early:
        world.push(b"1")
    else:
        world.queues.wait_lists.wake(b"q")
        world.turn()
        world.store.put(b"q", b"1")
        world.queues.wait_lists.wake(b"q", wake_next=True)
    pop, world.store._pop = world.store._pop, lambda name, nonce: [4]  # type: ignore[method-assign]
    world.store.run()
    world.store._pop = pop  # type: ignore[method-assign]
    world.store.slow = False
    world.store.reply()
    world.turn()
    assert isinstance(first.got, Conflict)
    assert second.got == b"1"
    assert world.settled()


def test_nobody_asks_early_for_a_task_that_may_not_be_ready(world: World) -> None:
    [poll] = world.parked(1)
    asked = world.pops()
    world.store.slow = True
    for options in (
        PushOptions(delay=5000),
        PushOptions(due_at=1),
        PushOptions(key="a"),
        PushOptions(idempotency_key="b", fingerprint="c"),
    ):
        world.queues.push(b"q", b"1", options)
        world.turn()
    assert world.pops() == asked and poll.waits


def test_a_push_that_comes_while_the_only_poller_asks_is_not_missed(world: World) -> None:
    world.store.slow = True
    poll = world.pop()
    world.turn()
    world.store.run()  # the poller's question finds nothing …
    world.store.put(b"q", b"1")
    world.queues.wait_lists.wake(b"q")  # … and the notice finds nobody parked
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
    world.queues.wait_lists.wake(b"q")
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
    assert world.queues.wait_lists.parked == 2
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
    world.queues.wait_lists.wake(b"q")
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
    assert len(world.queues.wait_lists.lists[b"q"].parked) <= 4
    assert world.queues.wait_lists.parked == 1
    world.push(b"1")
    assert stays.got == b"1"

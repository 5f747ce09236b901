"""Queues in trouble: no Redis, refused calls, elements that are not JSON, shutdown; and gathered confirms."""

from __future__ import annotations

from typing import Any

import pytest

from registry.errors import BadName, RedisFull, RedisUnavailable, ShuttingDown
from registry.queue.batching import MAX_WAITING_BYTES
from registry.queue.handover import CONFIRM_SECONDS
from tests.conftest import LoggedErrors
from tests.memory import World


@pytest.fixture
def world() -> World:
    return World()


def test_a_confirm_is_gathered_and_out_within_a_tenth_of_a_second(world: World) -> None:
    for at in range(3):
        world.push(b"%d" % at)
    polls = [world.pop() for _ in range(3)]
    world.turn()
    for poll in polls:
        world.queues.handover.confirm(poll.taken)
    assert not world.settled()
    assert len(world.store.held) == 3
    assert CONFIRM_SECONDS < 0.1
    world.turn(CONFIRM_SECONDS)
    assert world.store.held == {}
    assert world.store.asked[-1] == ("confirm", 1)
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
    ours = world.push(b"?mine")  # what came over HTTP was checked there
    del ours
    again = world.pop()
    world.turn()
    assert again.got == b"?mine"
    assert world.nothing_left()


def gone(world: World, outcome: str = "not_applied") -> None:
    world.store.error = RedisUnavailable("gone", outcome=outcome)
    world.store.ready = False


def back(world: World) -> None:
    world.store.error = None
    world.store.ready = True
    world.queues.redis_is_back()
    world.turn()


def test_without_redis_new_pops_are_parked_behind_earlier_ones(world: World) -> None:
    polls = world.parked(2)
    gone(world, "unknown")
    polls.append(world.pop())
    elsewhere = world.pop(b"other")
    world.turn()
    for _ in range(2):
        world.queues.wait_lists.wake_all()
        world.turn()
    assert all(poll.waits for poll in [*polls, elsewhere])
    for at in range(3):
        world.store.put(b"q", b"%d" % at)
    world.store.put(b"other", b"3")
    back(world)
    assert [poll.got for poll in [*polls, elsewhere]] == [b"0", b"1", b"2", b"3"]


def test_without_redis_a_pop_that_does_not_wait_is_reported_at_once(world: World) -> None:
    gone(world)
    poll = world.pop(wait=0)
    world.turn()
    assert isinstance(poll.got, RedisUnavailable)
    assert world.nothing_left()


@pytest.mark.parametrize("outcome", ["not_applied", "unknown"])
def test_a_pop_that_outlives_its_wait_without_redis_is_reported_so(world: World, outcome: str) -> None:
    [parked] = world.parked(1)
    gone(world, outcome)
    poll = world.pop()
    world.turn(9.9)
    assert parked.waits and poll.waits
    gone(world)
    world.queues.wait_lists.wake_all()
    world.turn(0.2)
    # It did not ask, and there may be something; the other may have been given something.
    assert isinstance(parked.got, RedisUnavailable) and isinstance(poll.got, RedisUnavailable)
    assert (parked.got.outcome, poll.got.outcome) == ("not_applied", outcome)
    assert world.nothing_left()


def test_a_pop_whose_question_failed_is_reported_nothing_when_redis_was_back_before_its_end(
    world: World,
) -> None:
    gone(world)
    polls = [world.pop() for _ in range(3)]
    world.turn(5)
    back(world)
    assert all(poll.waits for poll in polls)
    world.turn(6)
    assert [poll.got for poll in polls] == [None] * 3
    assert world.nothing_left()


def test_a_pop_that_redis_refuses_waits_too(world: World) -> None:
    world.store.error = RedisUnavailable("Redis refused the request: NOREPLICAS")
    poll = world.pop()
    world.turn(5)
    assert poll.waits and world.pops() == 1
    world.turn(6)
    assert isinstance(poll.got, RedisUnavailable)
    assert world.nothing_left()


def test_a_poller_that_parked_without_asking_stays_when_its_first_question_finds_no_redis(
    world: World,
) -> None:
    [first] = world.parked(1)
    second = world.pop()  # behind the first, without a question of its own
    world.turn()
    first.hang_up()
    world.store.error = RedisUnavailable("gone", outcome="unknown")
    world.queues.wait_lists.wake(b"q")
    world.turn()
    assert second.waits
    world.store.error = None
    world.store.put(b"q", b"1")
    world.queues.redis_is_back()
    world.turn()
    assert second.got == b"1"


@pytest.mark.parametrize("verb", ["confirm", "putback"])
def test_what_found_no_redis_is_sent_again_when_it_is_back(world: World, verb: str) -> None:
    world.push(b"1")
    poll = world.pop()
    world.turn()
    world.store.error = RedisUnavailable("gone", outcome="unknown")
    if verb == "confirm":
        world.queues.handover.confirm(poll.taken)
    else:
        world.queues.handover.put_back(poll.taken)
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


def test_a_bad_name_sends_nothing(world: World) -> None:
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
            world.queues.polls.pop(name, 0)
        with pytest.raises(BadName):
            world.queues.push(name, b"1")
    assert not world.store.asked
    for name in (b"a", b"...", b" ", "zone:ünï-✓".encode(), b"x" * 255, b"a%2Fb", b"index"):
        world.push(b"1", name)
        assert world.store.payloads(name) == [b"1"]


def test_when_draining_parked_pollers_get_nothing_and_new_ones_are_refused(
    world: World,
) -> None:
    polls = world.parked(3)
    world.store.slow = True
    asking = world.pop(b"other")
    world.turn()
    world.queues.draining = True
    world.queues.polls.end_all()
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


@pytest.mark.parametrize("verb", ["confirm", "put_back"])
def test_hand_overs_of_an_overloaded_daemon_are_settled_later(world: World, verb: str) -> None:
    world.push(b"1")
    poll = world.pop()
    world.turn()
    world.queues.batching._bytes += MAX_WAITING_BYTES + 1
    getattr(world.queues.handover, verb)(poll.taken)
    world.turn(CONFIRM_SECONDS)
    assert world.store.held
    world.queues.batching._bytes -= MAX_WAITING_BYTES + 1
    assert world.queues.handover.settle_again()
    world.turn()
    assert world.store.held == {}

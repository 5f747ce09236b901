"""What goes up in place of a Deferred, and the Deferred that is made of it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from registry.errors import RedisUnavailable
from registry.queue.reply import Gathering, Reply, as_deferred


class Request:
    hung_up = 0

    def hang_up(self) -> None:
        self.hung_up += 1


def listened(reply: Reply) -> tuple[list[Any], list[Failure]]:
    told: list[Any] = []
    failed: list[Failure] = []
    reply.addCallbacks(told.append, failed.append)
    return told, failed


@pytest.mark.parametrize("first", ["told", "asked"])
def test_a_reply_tells_what_was_made_of_the_value_whichever_comes_first(first: str) -> None:
    reply = Reply(lambda value: value and value + 1)
    if first == "told":
        reply.callback(1)
        told, failed = listened(reply)
    else:
        told, failed = listened(reply)
        reply.callback(1)
    assert (told, failed) == ([2], [])


def test_a_reply_of_nothing_is_told_too() -> None:
    reply = Reply(lambda value: None)
    reply.callback(1)
    assert listened(reply) == ([None], [])


@pytest.mark.parametrize("first", ["told", "asked"])
def test_what_cannot_be_made_is_a_failure(first: str) -> None:
    reply = Reply(lambda value: 1 // value)
    if first == "told":
        reply.callback(0)
    told, failed = listened(reply)
    if first == "asked":
        reply.callback(0)
    assert not told
    assert failed[0].check(ZeroDivisionError)


def test_cancelling_hangs_up_and_nothing_after_the_answer() -> None:
    reply, request = Reply(lambda value: value), Request()
    reply.request = request
    reply.cancel()
    assert request.hung_up == 1
    reply.callback(1)
    reply.cancel()
    assert request.hung_up == 1


@pytest.mark.parametrize("ok", [True, False])
def test_a_deferred_that_was_cancelled_takes_no_answer_any_more(ok: bool) -> None:
    reply, request = Reply(lambda value: value), Request()
    reply.request = request
    failed: list[Failure] = []
    deferred: Deferred[Any] = as_deferred(reply).addErrback(failed.append)
    deferred.cancel()
    assert failed[0].check(CancelledError) and request.hung_up == 1
    # A push goes on, and is answered.
    if ok:
        reply.callback(1)
    else:
        reply.errback(Failure(RuntimeError()))
    assert len(failed) == 1


def test_many_replies_are_told_as_one_in_their_order_or_as_the_first_failure() -> None:
    for fails in (False, True):
        all_: Deferred[Any] = Deferred()
        gathering = Gathering(3, all_)
        told: list[Any] = []
        all_.addBoth(told.append)
        gathering.part(2).callback("c")
        if fails:
            gathering.part(0).errback(Failure(RuntimeError("first")))
            assert not told
            gathering.part(1).errback(Failure(RuntimeError("second")))
            assert [str(failure.value) for failure in told] == ["first"]
        else:
            gathering.part(0).callback("a")
            assert not told
            gathering.part(1).callback("b")
            assert told == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        (["not_applied", "not_applied"], "not_applied"),
        (["not_applied", None], "unknown"),
        ([None, "not_applied"], "unknown"),
        (["not_applied", "unknown"], "unknown"),
    ],
)
def test_a_failure_beside_what_was_carried_out_is_unknown(outcomes: list[str | None], told: str) -> None:
    all_: Deferred[Any] = Deferred()
    gathering = Gathering(2, all_)
    errors = [RedisUnavailable("gone", outcome) if outcome else None for outcome in outcomes]
    for at, error in enumerate(errors):
        if error is None:
            gathering.part(at).callback([0])
        else:
            gathering.part(at).errback(Failure(error))
    failures: list[Failure] = []
    all_.addErrback(failures.append)
    assert [getattr(failure.value, "outcome", None) for failure in failures] == [told]
    # Others may have been told the same error.
    assert [error.outcome for error in errors if error] == [outcome for outcome in outcomes if outcome]

"""Promises, and the Deferreds that are made of them."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from registry.errors import RedisUnavailable
from registry.queue.promise import Gathering, Promise, as_deferred


class Request:
    hung_up = 0

    def hang_up(self) -> None:
        self.hung_up += 1


def listened(promise: Promise) -> tuple[list[Any], list[Failure]]:
    told: list[Any] = []
    failed: list[Failure] = []
    promise.addCallbacks(told.append, failed.append)
    return told, failed


@pytest.mark.parametrize("first", ["told", "asked"])
def test_a_promise_tells_what_was_made_of_the_value_whichever_comes_first(first: str) -> None:
    promise = Promise(lambda value: value and value + 1)
    if first == "told":
        promise.callback(1)
        told, failed = listened(promise)
    else:
        told, failed = listened(promise)
        promise.callback(1)
    assert (told, failed) == ([2], [])


def test_a_promise_of_nothing_is_reported_too() -> None:
    promise = Promise(lambda value: None)
    promise.callback(1)
    assert listened(promise) == ([None], [])


@pytest.mark.parametrize("first", ["told", "asked"])
def test_what_cannot_be_made_is_a_failure(first: str) -> None:
    promise = Promise(lambda value: 1 // value)
    if first == "told":
        promise.callback(0)
    told, failed = listened(promise)
    if first == "asked":
        promise.callback(0)
    assert not told
    assert failed[0].check(ZeroDivisionError)


def test_cancelling_hangs_up_and_nothing_after_the_answer() -> None:
    promise, request = Promise(lambda value: value), Request()
    promise.request = request
    promise.cancel()
    assert request.hung_up == 1
    promise.callback(1)
    promise.cancel()
    assert request.hung_up == 1


@pytest.mark.parametrize("ok", [True, False])
def test_a_deferred_that_was_cancelled_takes_no_answer_any_more(ok: bool) -> None:
    promise, request = Promise(lambda value: value), Request()
    promise.request = request
    failed: list[Failure] = []
    deferred: Deferred[Any] = as_deferred(promise).addErrback(failed.append)
    deferred.cancel()
    assert failed[0].check(CancelledError) and request.hung_up == 1
    # A push goes on, and is answered.
    if ok:
        promise.callback(1)
    else:
        promise.errback(Failure(RuntimeError()))
    assert len(failed) == 1


def test_many_replies_are_reported_as_one_in_their_order_or_as_the_first_failure() -> None:
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

"""Group commit: what travels together, how much at once, and that each request gets its own reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from registry.errors import Overloaded, RedisUnavailable
from registry.queue.batching import MAX_BYTES, MAX_ENTRIES, MAX_WAITING_BYTES, Batching


class Entry:
    """A request of ``size`` bytes, which is never looked into."""

    def __init__(self, name: str, size: int = 10) -> None:
        self.name = name
        self.size = size
        self.reply: Deferred[Any] = Deferred()


class Wire:
    """Takes groups, and answers when told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.down = False
        self.sent: list[tuple[str, list[str]]] = []
        self.open: list[tuple[Sequence[Entry], Deferred[list[Any]]]] = []
        self.batching = Batching(self._send, self.clock.callLater)

    def _send(self, verb: str, entries: Sequence[Any]) -> Deferred[list[Any]]:
        self.sent.append((verb, [e.name for e in entries]))
        if self.down:
            return fail(RedisUnavailable("no connection"))
        answer: Deferred[list[Any]] = Deferred()
        self.open.append((entries, answer))
        return answer

    def add(self, verb: str, *entries: Entry) -> list[Deferred[Any]]:
        return [self.batching.add(verb, entry) for entry in entries]

    def idle(self) -> bool:
        return self.batching.idle

    def turn(self) -> None:
        """The reactor's turn is over."""
        self.clock.advance(0)

    def answer(self) -> None:
        """The oldest call under way is answered, each entry with its name."""
        entries, answer = self.open.pop(0)
        answer.callback([e.name for e in entries])


@pytest.fixture
def wire() -> Wire:
    return Wire()


def several(count: int, size: int = 10, prefix: str = "e") -> list[Entry]:
    return [Entry(f"{prefix}{i}", size) for i in range(count)]


def results(replies: list[Deferred[Any]]) -> list[Any]:
    """What has fired so far; None for what has not."""
    found: list[Any] = []
    for reply in replies:
        got: list[Any] = []
        reply.addBoth(got.append)
        found.append(got[0] if got else None)
    return found


def test_a_lone_request_goes_at_the_end_of_its_own_turn(wire: Wire) -> None:
    [reply] = wire.add("push", Entry("a"))
    assert not wire.sent
    wire.turn()
    assert wire.sent == [("push", ["a"])]
    assert not wire.idle()
    wire.answer()
    assert results([reply]) == ["a"]
    assert wire.idle()
    assert wire.clock.getDelayedCalls() == []


def test_requests_of_one_turn_travel_together_by_verb_and_in_order(wire: Wire) -> None:
    wire.add("push", Entry("p1"))
    wire.add("pop", Entry("o1"))
    wire.add("push", Entry("p2"))
    wire.add("pop", Entry("o2"))
    wire.turn()
    assert wire.sent == [("push", ["p1", "p2"]), ("pop", ["o1", "o2"])]


def test_each_entry_gets_its_own_reply(wire: Wire) -> None:
    replies = wire.add("push", *several(3))
    wire.turn()
    wire.answer()
    assert results(replies) == ["e0", "e1", "e2"]


def test_at_most_two_calls_are_under_way_and_newcomers_gather_behind_them(wire: Wire) -> None:
    for name in "abcd":
        wire.add("push", Entry(name))
        wire.turn()
    assert wire.sent == [("push", ["a"]), ("push", ["b"])]
    wire.answer()
    assert wire.sent[2:] == [("push", ["c", "d"])]
    wire.answer()
    wire.answer()
    assert len(wire.sent) == 3
    assert wire.idle()


def test_the_next_group_goes_out_before_the_answers_of_the_last_are_written(wire: Wire) -> None:
    seen: list[int] = []
    [first] = wire.add("push", Entry("a"))
    first.addCallback(lambda _: seen.append(len(wire.sent)))
    wire.turn()
    wire.add("push", Entry("b"))
    wire.turn()
    wire.add("push", Entry("c"))
    wire.turn()
    wire.answer()
    assert seen == [3]


def test_verbs_take_turns(wire: Wire) -> None:
    for name in "ab":
        wire.add("push", Entry(name))
        wire.turn()
    wire.add("push", *several(MAX_ENTRIES + 1))
    wire.add("pop", Entry("o"))
    wire.turn()
    for _ in range(3):
        wire.answer()
    assert [verb for verb, _ in wire.sent[2:]] == ["push", "pop", "push"]
    assert [len(names) for _, names in wire.sent[2:]] == [MAX_ENTRIES, 1, 1]


def test_a_call_holds_at_most_128_entries(wire: Wire) -> None:
    replies = wire.add("push", *several(300))
    wire.turn()
    assert [len(names) for _, names in wire.sent] == [128, 128]
    while wire.open:
        wire.answer()
    assert [len(names) for _, names in wire.sent] == [128, 128, 44]
    assert results(replies) == [f"e{i}" for i in range(300)]


def test_a_call_holds_at_most_a_mebibyte_and_a_larger_entry_travels_alone(wire: Wire) -> None:
    half = MAX_BYTES // 2
    large = Entry("large", 3 * MAX_BYTES)
    wire.add("push", Entry("a", half), Entry("b", half), Entry("c", 1), large, Entry("d"))
    wire.turn()
    while wire.open:
        wire.answer()
    assert [names for _, names in wire.sent] == [["a", "b"], ["c"], ["large"], ["d"]]


def test_past_a_bound_in_bytes_newcomers_are_refused_until_there_is_room(wire: Wire) -> None:
    large = MAX_WAITING_BYTES // 8
    for name in "ab":
        wire.add("push", Entry(name))
        wire.turn()
    waiting = wire.add("push", *several(9, large))
    wire.turn()
    with pytest.raises(Overloaded) as refused:
        wire.batching.add("pop", Entry("late"))
    assert refused.value.outcome == "not_applied"
    assert refused.value.retry_after
    while wire.open:
        wire.answer()
    assert results(waiting) == [f"e{i}" for i in range(9)]
    assert wire.idle()
    [reply] = wire.add("pop", Entry("again"))
    wire.turn()
    wire.answer()
    assert results([reply]) == ["again"]


def test_a_failed_call_fails_its_own_entries_and_the_next_goes_out(wire: Wire) -> None:
    lost = wire.add("push", Entry("a"), Entry("b"))
    wire.turn()
    wire.add("push", Entry("c"))
    wire.turn()
    later = wire.add("push", Entry("d"))
    wire.turn()
    wire.open.pop(0)[1].errback(RedisUnavailable("gone", outcome="unknown"))
    assert [failure.value.outcome for failure in results(lost)] == ["unknown"] * 2
    assert wire.sent[-1] == ("push", ["d"])
    wire.answer()
    wire.answer()
    assert results(later) == ["d"]
    assert wire.idle()


def test_a_thousand_groups_that_fail_at_once_leave_nothing_under_way(wire: Wire) -> None:
    """As when the connection goes with a backlog: every group behind the first ones fails as soon as it is sent."""
    replies = wire.add("ack", *[Entry(str(at)) for at in range(1000 * MAX_ENTRIES)])
    wire.turn()
    wire.down = True
    for _, answer in wire.open:
        answer.errback(RedisUnavailable("gone", outcome="unknown"))
    assert len(results(replies)) == len(replies)
    assert wire.idle()
    wire.down, wire.open = False, []
    [reply] = wire.add("ack", Entry("later"))
    wire.turn()
    wire.answer()
    assert results([reply]) == ["later"]


def test_put_backs_of_one_moment_travel_together(wire: Wire) -> None:
    wire.add("putback", *[Entry(str(at)) for at in range(3 * MAX_ENTRIES)])
    wire.turn()
    assert [len(names) for _, names in wire.sent] == [3 * MAX_ENTRIES]


def test_an_answer_of_the_wrong_length_is_nobodys(wire: Wire) -> None:
    replies = wire.add("push", Entry("a"), Entry("b"))
    wire.turn()
    wire.open.pop(0)[1].callback(["a"])
    assert [failure.value.outcome for failure in results(replies)] == ["unknown"] * 2
    assert wire.idle()


def test_a_request_made_from_within_an_answer_is_sent(wire: Wire) -> None:
    [reply] = wire.add("pop", Entry("a"))
    reply.addCallback(lambda _: wire.add("pop", Entry("b")))
    wire.turn()
    wire.answer()
    wire.turn()
    assert wire.sent == [("pop", ["a"]), ("pop", ["b"])]


def test_a_call_that_is_answered_wrongly_fails_each_of_its_requests(wire: Wire) -> None:
    class Told:
        """As little of a Deferred as the queues' own."""

        failures: list[Any]

        def __init__(self) -> None:
            self.failures = []

        def errback(self, failure: Any) -> None:
            self.failures.append(failure.check(RedisUnavailable))

    entries = several(3)
    for entry in entries:
        entry.reply = Told()  # type: ignore[assignment]
    wire.add("push", *entries)
    wire.turn()
    wire.open.pop()[1].callback([1])
    assert [entry.reply.failures for entry in entries] == [[RedisUnavailable]] * 3  # type: ignore[attr-defined]
    assert wire.idle()

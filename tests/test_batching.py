"""Group commit: which requests share a call, how many, and that each gets its own reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from registry.errors import Overloaded, RedisUnavailable
from registry.queue.batching import HELD_BYTES, LARGE, MAX_BYTES, MAX_ENTRIES, MAX_WAITING_BYTES, Batching


class Entry:
    """A request of ``size`` bytes, which is never looked into."""

    added_at: float
    until: float | None = None
    weight = 1

    def __init__(self, name: str, size: int = 10) -> None:
        self.name = name
        self.size = size
        self.reply: Deferred[Any] = Deferred()


HOLD = 5.0
GONE = RedisUnavailable("gone")


class Wire:
    """Takes groups, and answers when told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.down = False
        self.away: RedisUnavailable | None = None
        self.sent: list[tuple[str, list[str]]] = []
        self.open: list[tuple[Sequence[Entry], Deferred[list[Any]]]] = []
        self.batching = Batching(
            self._send, self.clock.callLater, lambda: self.away, HOLD, self.clock.seconds
        )

    def _send(self, verb: str, entries: Sequence[Any]) -> Deferred[list[Any]]:
        self.sent.append((verb, [e.name for e in entries]))
        if self.down or self.away:
            return fail(RedisUnavailable("no connection"))
        answer: Deferred[list[Any]] = Deferred()
        self.open.append((entries, answer))
        return answer

    def add(self, verb: str, *entries: Entry) -> list[Deferred[Any]]:
        for entry in entries:
            self.batching.add(verb, entry)
        return [entry.reply for entry in entries]

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


def test_a_small_request_does_not_wait_for_all_large_ones_before_it(wire: Wire) -> None:
    wire.add("push", *several(10, MAX_BYTES, "large"), Entry("small"))
    wire.turn()
    assert wire.sent == [("push", ["large0"]), ("push", ["small"])]


def test_entries_of_a_large_request_do_not_overtake_it(wire: Wire) -> None:
    wire.batching.add("ack", Entry("first", LARGE + 1))
    wire.batching.add("ack", Entry("second"), large=True)
    wire.turn()
    assert wire.sent == [("ack", ["first", "second"])]


def test_many_queues_count_as_many_requests(wire: Wire) -> None:
    """A call that asked 128 times a hundred queues would keep everybody else waiting for half a second."""
    entries = several(7)
    for entry, weight in zip(entries, (100, 100, 100, 100, 150, 300, 1), strict=True):
        entry.weight = weight
    wire.add("popmany", *entries)
    for _ in range(5):
        wire.turn()
        if wire.open:
            wire.answer()
    assert [group for _, group in wire.sent] == [["e0", "e1"], ["e2", "e3"], ["e4"], ["e5"], ["e6"]]


def test_each_entry_gets_its_own_reply(wire: Wire) -> None:
    replies = wire.add("push", *several(3))
    wire.turn()
    wire.answer()
    assert results(replies) == ["e0", "e1", "e2"]


def test_at_most_two_calls_are_in_flight_and_new_requests_wait_behind_them(wire: Wire) -> None:
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
    assert [names for _, names in wire.sent] == [["a", "b"], ["c", "d"], ["large"]]


def test_above_a_limit_in_bytes_new_requests_are_refused_until_there_is_room(wire: Wire) -> None:
    large = MAX_WAITING_BYTES // 8
    for name in "ab":
        wire.add("push", Entry(name))
        wire.turn()
    waiting = wire.add("push", *several(9, large))
    wire.turn()
    [refused] = errors(watched(wire.add("pop", Entry("late"))))
    assert isinstance(refused, Overloaded)
    assert refused.outcome == "not_applied"
    assert refused.retry_after
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


def test_a_reply_of_the_wrong_length_belongs_to_no_request(wire: Wire) -> None:
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


# While Redis is away


def watched(replies: list[Deferred[Any]]) -> list[list[Any]]:
    """For each of these a list that holds what it was told, once it was."""
    fates: list[list[Any]] = [[] for _ in replies]
    for reply, fate in zip(replies, fates, strict=True):
        reply.addBoth(fate.append)
    return fates


def errors(fates: list[list[Any]]) -> list[Any]:
    return [fate[0].value for fate in fates if fate]


def names(wire: Wire) -> list[tuple[str, list[str]]]:
    sent, wire.sent = wire.sent, []
    return sent


def back(wire: Wire) -> None:
    wire.away = None
    wire.batching.flush()


def test_changes_are_held_and_sent_in_order_when_redis_is_back(wire: Wire) -> None:
    wire.away = GONE
    replies = []
    for at in range(3):
        replies += wire.add("push", Entry(f"p{at}"))
        replies += wire.add("ack", Entry(f"a{at}"))
        wire.turn()
    fates = watched(replies)
    assert not wire.sent and not any(fates)
    late = watched(wire.add("push", Entry("late")))
    back(wire)
    assert names(wire) == [("push", ["p0", "p1", "p2", "late"]), ("ack", ["a0", "a1", "a2"])]
    wire.answer()
    wire.answer()
    assert fates == [["p0"], ["a0"], ["p1"], ["a1"], ["p2"], ["a2"]] and late == [["late"]]
    wire.turn()
    assert wire.idle() and wire.clock.getDelayedCalls() == []


def test_the_first_request_after_redis_is_back_goes_behind_held_ones(wire: Wire) -> None:
    wire.away = GONE
    wire.add("push", Entry("held"))
    wire.turn()
    wire.away = None
    wire.add("pop", Entry("pop"))
    wire.add("push", Entry("new"))
    wire.turn()
    assert names(wire) == [("push", ["held", "new"]), ("pop", ["pop"])]


def test_each_held_request_has_its_own_time_and_is_then_not_applied(wire: Wire) -> None:
    wire.away = GONE
    first = watched(wire.add("push", Entry("first")))
    wire.turn()
    wire.clock.advance(HOLD - 1)
    second = watched(wire.add("push", Entry("second")))
    wire.turn()
    wire.clock.advance(1)
    assert errors(first) == [GONE] and GONE.outcome == "not_applied" and second == [[]]
    wire.clock.advance(HOLD - 1)
    assert errors(second) == [GONE]
    assert not wire.sent and wire.idle() and wire.clock.getDelayedCalls() == []


def test_the_time_of_a_request_behind_a_hung_redis_counts_from_its_arrival(wire: Wire) -> None:
    for name in "ab":
        watched(wire.add("push", Entry(name)))
        wire.turn()
    early = watched(wire.add("push", Entry("early")))
    wire.turn()
    wire.clock.advance(2)
    late = watched(wire.add("push", Entry("late")))
    wire.turn()
    wire.clock.advance(1)
    wire.away = GONE
    for _, answer in wire.open:
        answer.errback(RedisUnavailable("no answer", outcome="unknown"))
    wire.clock.advance(HOLD - 3)
    assert errors(early) == [GONE] and late == [[]]
    wire.clock.advance(2)
    assert errors(late) == [GONE]
    assert wire.idle() and wire.clock.getDelayedCalls() == []


@pytest.mark.parametrize("verb", ["pop", "popmany", "confirm", "putback", "bury", "counts", "watch"])
def test_reads_and_entries_that_others_keep_are_not_held(wire: Wire, verb: str) -> None:
    wire.away = GONE
    replies = wire.add(verb, Entry("a"))
    wire.turn()
    assert results(replies)[0].check(RedisUnavailable)
    assert wire.idle() and wire.clock.getDelayedCalls() == []


def test_requests_sent_and_not_answered_are_unknown_and_never_sent_again(wire: Wire) -> None:
    replies = wire.add("push", Entry("a"))
    wire.turn()
    wire.away = GONE
    wire.open.pop()[1].errback(RedisUnavailable("lost", outcome="unknown"))
    assert results(replies)[0].value.outcome == "unknown"
    back(wire)
    assert names(wire) == [("push", ["a"])]


def test_requests_refused_by_a_redis_that_goes_away_are_sent_again_first(wire: Wire) -> None:
    replies: list[Any] = []
    for name in "abcd":
        replies += wire.add("push", Entry(name))
        wire.turn()
    assert names(wire) == [("push", ["a"]), ("push", ["b"])]
    wire.away = GONE
    wire.open.pop(0)[1].errback(RedisUnavailable("LOADING"))
    replies += wire.add("push", Entry("e"))
    wire.open.pop(0)[1].errback(RedisUnavailable("LOADING"))
    wire.turn()
    assert not any(watched(replies))
    back(wire)
    assert names(wire) == [("push", ["a", "b", "c", "d", "e"])]


def test_refusals_of_a_redis_that_stays_are_reported_at_once(wire: Wire) -> None:
    replies = wire.add("push", Entry("a"))
    wire.turn()
    wire.open.pop()[1].errback(RedisUnavailable("NOREPLICAS"))
    assert results(replies)[0].value.outcome == "not_applied"
    assert wire.idle()


def test_held_requests_are_bounded_in_bytes_and_the_last_are_refused(wire: Wire) -> None:
    wire.away = GONE
    large = MAX_WAITING_BYTES // 4
    first = watched(wire.add("push", *several(3, large)))
    wire.turn()
    assert not any(first)
    last = watched(wire.add("ack", *several(2, large, "over")))
    wire.turn()
    assert [error.__class__ for error in errors(last)] == [Overloaded] * 2
    assert errors(last)[0].outcome == "not_applied"
    back(wire)
    for _ in range(3):
        wire.answer()
    assert first == [["e0"], ["e1"], ["e2"]] and wire.idle()


def test_small_requests_count_with_their_overhead(wire: Wire) -> None:
    wire.away = GONE
    fits = MAX_WAITING_BYTES // (HELD_BYTES + 1)
    fates = watched(wire.add("push", *several(fits + 100, 1)))
    wire.turn()
    assert not any(fates[:fits])
    assert [error.__class__ for error in errors(fates[fits:])] == [Overloaded] * 100


def test_a_daemon_that_stops_holds_nothing(wire: Wire) -> None:
    wire.away = GONE
    before = wire.add("push", Entry("before"))
    wire.turn()
    wire.batching.stop_holding()
    after = wire.add("ack", Entry("after"))
    wire.turn()
    assert [got.type for got in results(before + after)] == [RedisUnavailable] * 2
    assert wire.idle() and wire.clock.getDelayedCalls() == []


def test_entries_a_script_had_no_time_for_go_first_in_the_next_call() -> None:
    wire = Wire()
    replies = wire.add("ack", *[Entry(str(n)) for n in range(5)])
    wire.turn()
    wire.add("ack", Entry("later"))
    wire.turn()
    entries, answer = wire.open[0]
    answer.callback([[0, entry.name] for entry in entries[:2]])
    wire.turn()
    assert [names for _, names in wire.sent] == [["0", "1", "2", "3", "4"], ["later"], ["2", "3", "4"]]
    assert [reply.called for reply in replies] == [True, True, False, False, False]
    wire.open[1][1].callback([[0]])
    wire.open[2][1].callback([[0]] * 3)
    assert [reply.result for reply in replies[2:]] == [[0]] * 3
    assert wire.idle()


@pytest.mark.parametrize(("verb", "count"), [("push", 1), ("ack", 0), ("ack", 3)])
def test_a_wrong_number_of_replies_is_a_failure(verb: str, count: int) -> None:
    wire = Wire()
    replies = wire.add(verb, Entry("a"), Entry("b"))
    wire.turn()
    wire.open[0][1].callback([[0]] * count)
    assert [failure.value.outcome for failure in results(replies)] == ["unknown"] * 2

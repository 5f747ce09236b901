"""Calls with large entries: how many are in flight, what goes between them, and how fast their bytes leave the process."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from registry.errors import RedisUnavailable
from registry.queue.batching import LARGE, MAX_BYTES
from registry.redis.protocol import LinkProtocol
from tests.test_batching import Entry, Wire, results, several


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.mark.parametrize("verb", ["push", "ack"])
def test_at_most_one_large_call_is_in_flight_whatever_its_verb(wire: Wire, verb: str) -> None:
    replies = wire.add("push", *several(2, MAX_BYTES, "p")) + wire.add(verb, *several(2, MAX_BYTES, "q"))
    wire.turn()
    for sent in range(1, 5):
        assert (len(wire.sent), len(wire.open)) == (sent, 1)
        wire.answer()
    assert sorted(results(replies)) == ["p0", "p1", "q0", "q1"]
    assert wire.idle()


def test_small_requests_that_waited_for_a_large_call_go_before_the_next_one(wire: Wire) -> None:
    wire.add("push", *several(5, MAX_BYTES, "large"))
    wire.add("push", Entry("early"))
    wire.turn()
    # Both places are taken now.
    wire.add("push", Entry("small"))
    wire.add("pop", Entry("other"))
    wire.turn()
    assert wire.sent == [("push", ["large0"]), ("push", ["early"])]
    wire.answer()
    wire.answer()
    wire.answer()
    assert wire.sent[2:] == [("push", ["small"]), ("pop", ["other"]), ("push", ["large1"])]


def test_small_requests_that_keep_coming_do_not_keep_large_ones_away(wire: Wire) -> None:
    wire.add("push", *several(3, MAX_BYTES, "large"))
    for n in range(20):
        wire.add("push", Entry(f"small{n}"))
        wire.turn()
        wire.answer()
    large = [at for at, (_, names) in enumerate(wire.sent) if names[0].startswith("large")]
    assert len(large) == 3
    assert max(large) <= 9


def test_large_calls_that_fail_leave_the_place_to_the_next(wire: Wire) -> None:
    replies = wire.add("push", *several(2, MAX_BYTES))
    wire.turn()
    wire.open.pop()[1].errback(RedisUnavailable("gone", "unknown"))
    wire.answer()
    assert [str(result) for result in results(replies)][1:] == ["e1"]
    wire.down = True
    replies = wire.add("push", *several(1000, LARGE + 1))
    wire.turn()
    assert all(reply.check(RedisUnavailable) for reply in results(replies))
    assert wire.idle()


def test_a_large_call_is_sent_when_the_one_before_it_fails_while_others_are_sent(wire: Wire) -> None:
    replies = wire.add("push", Entry("e0", MAX_BYTES)) + wire.add("ack", Entry("e1", MAX_BYTES))
    replies += wire.add("push", Entry("small"))
    send = wire.batching._send

    def lose(verb: str, entries: Sequence[Any]) -> Deferred[list[Any]]:
        """A write shows that the connection is lost; then there is a new one."""
        if entries[0].name != "small":
            return send(verb, entries)
        wire.open.pop()[1].errback(RedisUnavailable("gone", "unknown"))
        return fail(RedisUnavailable("gone"))

    wire.batching._send = lose
    wire.turn()
    assert [names for _, names in wire.sent] == [["e0"], ["e1"]]
    wire.answer()
    assert [str(result) for result in results(replies)][1] == "e1"


def test_large_entries_that_a_script_had_no_time_for_are_sent_again(wire: Wire) -> None:
    entries = several(3)
    for entry in entries:
        wire.batching.add("ack", entry, large=True)
    replies = [entry.reply for entry in entries]
    wire.turn()
    wire.open.pop()[1].callback([[0]])
    assert wire.sent[1:] == [("ack", ["e1", "e2"])]
    wire.open.pop()[1].callback([[1], [2]])
    assert results(replies) == [[0], [1], [2]]


class Link:
    """Takes no notice of its connection."""

    def connected(self, protocol: LinkProtocol) -> None: ...

    def lost(self, protocol: LinkProtocol, text: str) -> None: ...


def test_a_call_of_a_mebibyte_leaves_in_a_few_turns_of_the_reactor() -> None:
    """In each turn in between, the requests of other clients are read, which takes up to 14 ms."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    made: list[LinkProtocol] = []

    def make() -> LinkProtocol:
        made.append(LinkProtocol(Link()))  # type: ignore[arg-type]
        return made[0]

    with ours, theirs:
        theirs.setblocking(False)
        adopting: Any = reactor
        adopting.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, Factory.forProtocol(make))
        transport = made[0].transport
        left, turns = 8 * MAX_BYTES, 0
        made[0].send(b"x" * left).addErrback(lambda _: None)
        while left:
            turns += 1
            # As Redis does that reads faster than the reactor turns.
            with suppress(BlockingIOError):
                while left:
                    left -= len(theirs.recv(MAX_BYTES))
            transport.doWrite()
        transport.connectionLost(Failure(ConnectionDone()))
    # A kernel that permits no larger buffer takes 416 KiB in a turn.
    assert turns <= 26

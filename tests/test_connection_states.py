"""The states of a connection: order, deadlines, hang-ups, and the moment at which an answer has left."""

# mypy: allow-untyped-calls, disable-error-code="comparison-overlap,unreachable"

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError

from registry.errors import ShuttingDown
from registry.http.codec import Answer
from registry.http.limits import MAX_PIPELINED
from registry.http.parser import MAX_REMEMBERED, BlockReader
from tests.one_connection import POP, PUSH, Transport, World, answers, ask


@pytest.fixture
def world() -> World:
    return World()


# -- what is remembered


def test_heads_are_understood_once_and_forgotten(world: World) -> None:
    transport = world.connect()
    for _ in range(3):
        transport.protocol.dataReceived(POP)
    assert list(world.server.heads.remembered) == [POP]
    for i in range(MAX_REMEMBERED + 500):
        transport.protocol.dataReceived(ask("GET /api/popTask/q", f"X-Number: {i}"))
    assert len(world.server.heads.remembered) <= MAX_REMEMBERED
    assert len(answers(bytes(transport.out))) == MAX_REMEMBERED + 503


def test_a_head_in_pieces_is_read_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    feed = BlockReader.feed

    def counted(self: BlockReader, data: bytes) -> None:
        read.append(len(data))
        feed(self, data)

    monkeypatch.setattr(BlockReader, "feed", counted)
    request = ask("GET /api/popTask/q", *(f"X-{n}: {'x' * 100}" for n in range(200)))
    transport = world.connect()
    for at in range(len(request)):
        transport.protocol.dataReceived(request[at : at + 1])
    assert len(answers(bytes(transport.out))) == 1
    # Once as it came, and once whole.
    assert sum(read) <= 2 * len(request)


# -- one after the other


def test_a_request_behind_a_poll_waits_for_its_answer(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(POP + PUSH)
    assert world.verbs.asked == ["pop"]
    transport.protocol.dataReceived(POP)
    assert world.verbs.asked == ["pop"] and not transport.out
    world.verbs.later[0].callback(Answer(200, b"first"))
    assert world.verbs.asked == ["pop", "push"]
    world.verbs.later[1].callback(Answer(200, b"second"))
    world.verbs.later[2].callback(Answer(202, b"third"))
    assert [body for _, _, body in answers(bytes(transport.out))] == [b"first", b"second", b"third"]


def test_what_waits_behind_a_poll_is_bounded(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(POP)
    transport.protocol.dataReceived(PUSH * (MAX_PIPELINED // len(PUSH) + 1))
    assert not transport.reading
    world.verbs.later[0].callback(Answer(200, b"1"))
    assert transport.reading


def test_answers_of_a_group_leave_together(world: World) -> None:
    world.verbs.later = []
    transports = [world.connect() for _ in range(3)]
    for transport in transports:
        transport.protocol.dataReceived(POP)
    with world.server.corked():
        for waiting in world.verbs.later:
            waiting.callback(Answer(200, b"x", (), (object(),)))  # type: ignore[arg-type]
        assert not any(transport.out for transport in transports)
        transports[1].hang_up()
    assert [bool(transport.out) for transport in transports] == [True, False, True]
    assert len(world.verbs.delivered_) == 2 and len(world.verbs.lost_) == 1


# -- hanging up, and what has left


def test_a_hang_up_cancels_a_poll_and_no_push(world: World) -> None:
    world.verbs.later = []
    for request in (POP, PUSH):
        transport = world.connect()
        transport.protocol.dataReceived(request)
        transport.hang_up()
    assert world.verbs.cancelled == 1
    world.verbs.later[1].callback(Answer(200, b"{}"))
    assert not world.server.connections


def test_an_answer_that_comes_after_the_hang_up_is_lost(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(ask("POST /api/ackTask/q/a-b"))
    transport.hang_up()
    answer = Answer(200, b"1", (), (object(),))  # type: ignore[arg-type]
    world.verbs.later[0].callback(answer)
    assert world.verbs.lost_ == [answer]


def taking(world: World, transport: Transport) -> Answer:
    """A poll is answered while the kernel takes only ten bytes."""
    world.verbs.later = []
    transport.protocol.dataReceived(POP)
    transport.socket.room = 10  # type: ignore[attr-defined]
    answer = Answer(200, b"x" * 100, (), (object(),))  # type: ignore[arg-type]
    world.verbs.later[0].callback(answer)
    return answer


def test_an_answer_is_delivered_when_the_kernel_has_all_of_it(world: World) -> None:
    transport = world.connect()
    answer = taking(world, transport)
    transport.protocol.dataReceived(PUSH)
    assert not world.verbs.delivered_ and len(transport.out) == 10 and world.verbs.asked == ["pop"]
    transport.flush()
    assert world.verbs.delivered_ == [answer] and world.verbs.asked == ["pop", "push"]
    assert answers(bytes(transport.out))[0][2] == b"x" * 100
    assert transport.producer is None


def test_an_answer_is_lost_when_the_connection_is(world: World) -> None:
    transport = world.connect()
    answer = taking(world, transport)
    transport.hang_up()
    assert world.verbs.lost_ == [answer] and not world.verbs.delivered_


def test_a_client_that_takes_nothing_is_cut_off(world: World) -> None:
    transport = world.connect()
    answer = taking(world, transport)
    world.pass_time(20)
    assert not transport.ended
    world.pass_time(2)
    assert transport.ended == "aborted"
    transport.hang_up()
    assert world.verbs.lost_ == [answer]


# -- deadlines


def test_an_idle_connection_ends(world: World) -> None:
    transport = world.connect()
    world.pass_time(60)
    transport.protocol.dataReceived(PUSH)
    world.pass_time(75)
    assert not transport.ended
    world.pass_time(2)
    assert transport.ended == "closed"
    world.pass_time(20)
    assert transport.ended == "aborted"


@pytest.mark.parametrize(
    ("part", "seconds"), [(POP[:20], 10), (POP[:-2], 10), (PUSH[:-1], 30)], ids=["line", "head", "body"]
)
def test_a_request_that_does_not_come_to_its_end(world: World, part: bytes, seconds: int) -> None:
    transport = world.connect()
    half = len(part) // 2
    transport.protocol.dataReceived(part[:half])
    for at in range(half, len(part)):  # every byte comes, but late
        world.clock.advance(0.001)
        transport.protocol.dataReceived(part[at : at + 1])
    world.pass_time(seconds - 1)
    assert not transport.out
    world.pass_time(3)
    assert transport.out.startswith(b"HTTP/1.1 408 ")
    transport.hang_up()


def test_a_head_has_its_time_from_its_first_byte_however_long_the_connection_was_idle(world: World) -> None:
    transport = world.connect()
    transport.protocol.dataReceived(PUSH)
    world.pass_time(72)
    transport.protocol.dataReceived(POP[:20])
    world.pass_time(6)
    transport.protocol.dataReceived(POP[20:])
    assert [status for status, _, _ in answers(bytes(transport.out))] == [b"HTTP/1.1 200 OK"] * 2


def test_a_parked_poll_has_no_deadline_of_the_connection(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(POP)
    world.pass_time(200)
    assert not transport.ended
    world.verbs.later[0].callback(Answer(202, b"{}"))
    assert answers(bytes(transport.out))[0][0] == b"HTTP/1.1 202 Accepted"


def test_nothing_ticks_when_nobody_is_there(world: World) -> None:
    transport = world.connect()
    transport.hang_up()
    assert not world.clock.getDelayedCalls()


# -- the end


def test_draining_ends_what_is_idle_and_lets_the_rest_finish(world: World) -> None:
    world.verbs.later = []
    idle, parked = world.connect(), world.connect()
    parked.protocol.dataReceived(POP)
    world.server.drain()
    assert world.server.under_way and not idle.ended and not parked.ended
    world.verbs.later[0].callback(Answer(202, b"{}"))
    assert answers(bytes(parked.out))[0][1][b"connection"] == b"close"
    assert parked.ended == "closed"
    world.server.close_idle()
    assert idle.ended == "closed"


def test_what_fails_is_reported(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(PUSH)
    world.verbs.later[0].errback(ShuttingDown("The registry is stopping."))
    [(first, headers, body)] = answers(bytes(transport.out))
    assert first == b"HTTP/1.1 503 Service Unavailable" and headers[b"retry-after"].isdigit()
    assert json.loads(body)["code"] == "shutting_down"


# -- the log


def test_an_access_line_says_who_asked_what(world: World) -> None:
    long = "x" * 250
    transport = world.connect()
    transport.protocol.dataReceived(PUSH)
    transport.protocol.dataReceived(ask(f"GET /api/popTask/q?a={long}", 'User-Agent: a"b', "Referer: r"))
    transport.protocol.dataReceived(ask("GET /\x01\x7f"))
    world.clock.advance(1)
    lines = [re.sub(r"\[.*?\]|[\d.]+ms", "", line) for line in world.lines]
    assert len(lines) == 3
    assert lines[0].startswith('192.0.2.1 - -  "PUT /api/pushTask/q HTTP/1.1" 200 ')
    assert 'a\\"b' in lines[1] and long not in lines[1]
    assert lines[2].startswith('192.0.2.1 - -  "GET /\\x01\\x7f HTTP/1.1" 400 ')


COMBINED = re.compile(
    r'(\S+) - (\S+) \[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000)\] "((?:[^"\\]|\\.)*)" (\d{3}) (\d+|-) '
    r'"((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)" [\d.]+ms'
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=20), st.binary(max_size=300), st.binary(max_size=30))
def test_no_client_can_forge_an_access_line(method: bytes, target: bytes, agent: bytes) -> None:
    world = World()
    for line in (b"GET /" + target, method + b" " + target):
        request = line + b" HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + agent + b"\r\nReferer: " + agent
        transport = world.connect()
        transport.protocol.dataReceived(request + b"\r\n\r\n")
        transport.hang_up()
    world.access.flush()
    assert world.lines
    for logged in world.lines:
        assert COMBINED.fullmatch(logged), logged


def test_lines_wait_for_others_but_not_for_long(world: World) -> None:
    transport = world.connect()
    transport.protocol.dataReceived(PUSH + PUSH)
    assert not world.lines
    world.clock.advance(0.1)
    assert len(world.lines) == 2
    transport.protocol.dataReceived(PUSH)
    world.access.flush()
    assert len(world.lines) == 3


def test_a_poll_that_was_cancelled_says_nothing(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(POP)
    transport.hang_up()
    assert world.verbs.later[0].called
    world.verbs.later[0].addErrback(lambda f: f.trap(CancelledError))
    assert not transport.out and not world.lines

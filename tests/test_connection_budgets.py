"""Fairness between connections: turns, and memory for bodies and for answers."""

# mypy: allow-untyped-calls

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress

from registry.http.codec import Answer
from registry.http.connection import Connection
from registry.http.limits import MAX_REQUESTS_PER_TURN
from registry.http.parser import Heads
from registry.http.routes import Api
from registry.listening import ConnectionLimit
from tests.one_connection import LIMIT, POP, PUSH, Transport, World, answers, ask


@pytest.fixture
def world() -> World:
    return World()


def pushing(size: int) -> bytes:
    return ask("PUT /api/pushTask/q", f"Content-Length: {LIMIT}") + b"1" * size


def test_a_connection_has_a_few_requests_a_turn(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # A busy machine must not end a turn early.
    monkeypatch.setattr("registry.http.connection.SECONDS_PER_TURN", 100.0)
    greedy, other = world.connect(), world.connect()
    turns: list[Any] = []
    world.server.later = lambda seconds, f: turns.append(f)
    greedy.protocol.dataReceived(PUSH * 50)
    assert len(answers(bytes(greedy.out))) == MAX_REQUESTS_PER_TURN
    other.protocol.dataReceived(POP)
    assert len(answers(bytes(other.out))) == 1
    greedy.protocol.dataReceived(POP)
    assert len(answers(bytes(greedy.out))) == MAX_REQUESTS_PER_TURN
    for turn in range(2, 8):
        turns.pop()()
        assert len(answers(bytes(greedy.out))) == min(51, turn * MAX_REQUESTS_PER_TURN)
    assert world.verbs.asked[-1] == "pop"


def test_requests_behind_a_body_have_their_turns_too(world: World) -> None:
    transport = world.connect()
    transport.protocol.dataReceived(PUSH[:-1])
    transport.protocol.dataReceived(PUSH[-1:] + PUSH * 20)
    for _ in range(5):
        world.clock.advance(0)
    assert len(answers(bytes(transport.out))) == 21


def test_bodies_under_way_have_one_budget() -> None:
    world = World(max_body_bytes=300)
    first, second = world.connect(), world.connect()
    first.protocol.dataReceived(pushing(150))
    second.protocol.dataReceived(pushing(100))
    assert world.server.body_bytes == 250
    second.protocol.dataReceived(b"1" * 60)
    [(status, headers, body)] = answers(bytes(second.out))
    assert status == b"HTTP/1.1 503 Service Unavailable" and headers[b"connection"] == b"close"
    assert headers[b"retry-after"].isdigit()
    assert json.loads(body) == {
        "error": "Too many large request bodies are being received; try again in a moment.",
        "code": "overloaded",
        "outcome": "not_applied",
    }
    # What it had comes free at once, and the other one goes on.
    assert world.server.body_bytes == 150
    first.protocol.dataReceived(b"1" * (LIMIT - 150))
    assert len(answers(bytes(first.out))) == 1
    assert world.server.body_bytes == 0
    second.hang_up()
    assert world.server.body_bytes == 0


def test_a_body_that_is_cut_off_gives_its_bytes_back(world: World) -> None:
    transport = world.connect()
    transport.protocol.dataReceived(pushing(100))
    assert world.server.body_bytes == 100
    transport.hang_up()
    assert world.server.body_bytes == 0


def test_chunks_count_as_they_come(world: World) -> None:
    transport = world.connect()
    transport.protocol.dataReceived(ask("PUT /api/pushTask/q", "Transfer-Encoding: chunked") + b"3\r\n123")
    assert 0 < world.server.body_bytes < 20
    transport.protocol.dataReceived(b"\r\n0\r\n\r\n")
    assert world.server.body_bytes == 0
    assert "'123'" in answers(bytes(transport.out))[0][2].decode()


def test_nothing_is_begun_while_an_answer_waits(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(POP + PUSH * 3)
    transport.socket.room = 10  # type: ignore[attr-defined]
    world.verbs.later[0].callback(Answer(200, b"x" * 100))
    assert world.verbs.asked == ["pop"]
    assert world.server.unsent_bytes > 100
    transport.flush()
    assert world.server.unsent_bytes == 0
    assert world.verbs.asked == ["pop", "push"]


def test_a_cut_answer_gives_its_bytes_back(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(POP)
    transport.socket.room = 10  # type: ignore[attr-defined]
    world.verbs.later[0].callback(Answer(200, b"x" * 100))
    transport.hang_up()
    assert world.server.unsent_bytes == 0


@pytest.mark.parametrize("at", ["idle", "head", "body", "busy", "writing", "refused"])
def test_a_lost_connection_leaves_nothing_to_the_collector(world: World, at: str) -> None:
    world.verbs.later = []

    class Weak(Connection):
        """A connection that can be looked for."""

    transport = Transport(Weak(world.server))
    connection = weakref.ref(transport.protocol)
    data = {"head": POP[:20], "body": PUSH[:-1], "busy": POP, "writing": POP, "refused": b"x\r\n\r\n"}
    transport.protocol.dataReceived(data.get(at, b""))
    if at == "writing":
        transport.socket.room = 10  # type: ignore[attr-defined]
        world.verbs.later.pop().callback(Answer(200, b"x" * 100))
    gc.disable()
    try:
        transport.hang_up()
        world.verbs.later.clear()
        del transport.protocol
        transport.producer = None
        assert connection() is None
    finally:
        gc.enable()


def test_heads_share_what_they_have_in_common(world: World) -> None:
    """Ten thousand polls may wait, each of them at a queue of its own."""
    unused: Any = None
    api = Api(unused, unused, unused, unused, unused)
    heads = Heads(api.find, lambda name: True, lambda body: LIMIT)
    first, second = (heads.parse(ask(f"GET /api/popTask/results:{n}?wait=20&lease=5")) for n in "12")
    assert (first.name, second.name) == (b"results:1", b"results:2")
    assert first.options == {"wait": 20.0, "lease": 5.0}
    for shared in ("options", "query", "found", "method", "fields"):
        assert getattr(first, shared) is getattr(second, shared), shared
    acks = [heads.parse(ask(f"POST /api/ackTask/{q}/{lease}")) for q in "ab" for lease in ("1-2", "3-4")]
    assert [ack.segments for ack in acks] == [(b"a", b"1-2"), (b"a", b"3-4"), (b"b", b"1-2"), (b"b", b"3-4")]
    assert len({id(ack.options) for ack in acks}) == len({id(ack.found) for ack in acks}) == 1


def test_answers_that_nobody_reads_have_one_budget(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.http.connection.MAX_UNSENT_BYTES", 200)
    world.verbs.later = []
    transports = [world.connect() for _ in range(2)]
    transports[0].protocol.dataReceived(POP)
    transports[0].socket.room = 10  # type: ignore[attr-defined]
    world.verbs.later.pop().callback(Answer(200, b"x" * 300))
    transports[1].protocol.dataReceived(POP)
    [(status, headers, body)] = answers(bytes(transports[1].out))
    assert status == b"HTTP/1.1 503 Service Unavailable" and headers[b"retry-after"].isdigit()
    assert json.loads(body)["code"] == "overloaded" and json.loads(body)["outcome"] == "not_applied"
    assert b"connection" not in headers
    transports[0].flush()
    transports[1].protocol.dataReceived(POP)
    assert len(world.verbs.later) == 1


def test_of_one_address_so_many_connections_are_let_in(world: World) -> None:
    server = world.server
    bounded = ConnectionLimit(server, server.by_address, 5, 2)
    here, there = (IPv4Address("TCP", host, 7) for host in ("192.0.2.1", "192.0.2.2"))
    mine = [Transport(bounded.buildProtocol(here)) for _ in range(3)]
    assert b"overloaded" in mine[2].out and mine[2].ended == "closed"
    assert not mine[1].out
    assert not Transport(bounded.buildProtocol(there)).out
    mine[0].hang_up()
    assert not Transport(bounded.buildProtocol(here)).out
    # A trusted proxy has the connections of many clients.
    spared = ConnectionLimit(server, server.by_address, 9, 2, {"192.0.2.1"}.__contains__)
    more = [Transport(spared.buildProtocol(here)) for _ in range(2)]
    assert not any(one.out for one in more)
    for one in more:
        one.hang_up()
    # Those of unix sockets have no address, and all together have the other limit.
    sockets = [Transport(bounded.buildProtocol(UNIXAddress(None))) for _ in range(3)]
    assert [bool(one.out) for one in sockets] == [False, False, True]

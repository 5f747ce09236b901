"""Requests in pieces, or behind other bytes, get the same answers as whole single requests."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed
from twisted.internet.threads import deferToThread

from registry.http.codec import Answer
from registry.http.limits import MAX_HEADERS_SIZE, MAX_LINE, MAX_PIPELINED
from registry.http.parser import Found
from registry.http.request import Match
from registry.http.routes import Api
from tests.conftest import LoggedErrors
from tests.http_server import Server, serve, until
from tests.http_server import ask as ask_server
from tests.one_connection import POP, PUSH, Transport, World, answers, ask
from tests.test_connection_answers import KINDS, connect


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(name="server")
def running_server() -> Iterator[Server]:
    yield from serve()


CHUNKED = ask("PUT /api/pushTask/q", "Transfer-Encoding: chunked")
STREAMS = {
    "an empty line between two": PUSH + b"\r\n" + POP,
    "an empty line first": b"\r\n" + PUSH,
    "chunks": CHUNKED + b"3;a=b\r\n123\r\n1\r\n4\r\n0\r\nX: 1\r\n\r\n" + POP,
    "a body that is expected": ask("PUT /api/pushTask/q", "Expect: 100-continue", body=b"[1]") + POP,
    "the longest header": ask("GET /api/popTask/q", "X: " + "a" * (MAX_LINE - 3)) + POP,
    "a header a byte too long": ask("GET /api/popTask/q", "X: " + "a" * (MAX_LINE - 2)),
    "a header of blanks": ask("GET /api/popTask/q", "X:" + " " * (MAX_LINE - 1) + "a"),
    "two empty lines": b"\r\n\r\n" + PUSH,
    "a CR before a request": b"\r" + PUSH,
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_stream_cut_at_any_byte_is_answered_as_when_it_is_whole(stream: bytes) -> None:
    def said(*pieces: bytes) -> list[Any]:
        world = World()
        transport = world.connect()
        for piece in pieces:
            transport.protocol.dataReceived(piece)
            world.clock.advance(0)
        found = answers(bytes(transport.out))
        transport.hang_up()
        assert world.server.body_bytes == 0
        world.access.flush()
        without_100 = [one for one in found if b" 100 " not in one[0]]
        assert len(world.lines) == len(without_100)
        return without_100

    whole = said(stream)
    assert whole
    short = len(stream) < 1000
    for at in range(1, len(stream)) if short else (5, 20, 100, MAX_LINE, len(stream) - 5, len(stream) - 1):
        assert said(stream[:at], stream[at:]) == whole, at
    if short:
        assert said(*(stream[at : at + 1] for at in range(len(stream)))) == whole


def test_no_answer_overtakes_the_word_to_go_on(world: World) -> None:
    transport = world.connect()

    def keeps(data: bytes) -> None:
        transport.buffered += data

    transport.write = keeps  # type: ignore[method-assign]
    request = ask("PUT /api/pushTask/q", "Expect: 100-continue", body=b"[1]")
    transport.protocol.dataReceived(request[:-3])
    transport.protocol.dataReceived(request[-3:])
    transport.flush()
    statuses = [status for status, _, _ in answers(bytes(transport.out))]
    assert statuses == [b"HTTP/1.1 100 Continue", b"HTTP/1.1 200 OK"]


def test_chunks_have_few_extensions(world: World) -> None:
    transport = world.connect()
    transport.protocol.dataReceived(CHUNKED)
    for _ in range(MAX_HEADERS_SIZE // 900 + 1):
        transport.protocol.dataReceived(b"1;" + b"x" * 900 + b"\r\n1\r\n")
    [(status, _, _)] = answers(bytes(transport.out))
    assert status == b"HTTP/1.1 400 Bad Request"


def test_a_poll_holds_nothing_of_the_budget_for_bodies(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    request = ask("POST /api/popTask/q", body=b"x" * 100)
    transport.protocol.dataReceived(request[:-1])
    assert world.server.body_bytes > 0
    transport.protocol.dataReceived(request[-1:])
    assert len(world.verbs.later) == 1 and world.server.body_bytes == 0


# -- clients that send more than is read


@KINDS
@pytest.mark.parametrize("first", [b"", ask_server("GET /slow HTTP/1.1")], ids=["first", "behind a push"])
@pytest_twisted.ensureDeferred
async def test_a_poll_ends_with_its_client_however_much_is_behind_it(
    server: Server, kind: str, first: bytes, tmp_path: Path
) -> None:
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    behind = ask_server("GET /a HTTP/1.1") * (2 * MAX_PIPELINED // 30)
    sending = deferToThread(connection.sendall, first + ask_server("GET /park HTTP/1.1") + behind)
    sending.addErrback(lambda _: None)
    await until(lambda: any(one._paused for one in server.factory.connections))
    if first:
        server.root.reply(server.root.parked[0], b"{}")
        await until(lambda: len(server.root.parked) == 2)
    connection.close()
    await until(lambda: not server.factory.connections, 5)
    await sending
    assert server.root.parked[-1].answer.called
    if listening is not None:
        await listening.stopListening()


def test_a_refusal_behind_much_else_reads_on_so_that_it_is_seen(world: World) -> None:
    world.verbs.later = []
    transport = world.connect()
    transport.protocol.dataReceived(PUSH)
    transport.protocol.dataReceived(b"BREW / HTTP/1.1\r\n\r\n" + b"x" * MAX_PIPELINED)
    assert not transport.reading
    world.verbs.later[0].callback(Answer(200, b"{}"))
    assert len(answers(bytes(transport.out))) == 2
    assert transport.reading


# -- verbs that do what no verb should


def asking(world: World, verb: Any) -> Transport:
    world.server.heads._find = lambda head: Found(verb)
    transport = world.connect()
    transport.protocol.dataReceived(POP)
    return transport


LOST = (object(),)
ODD: dict[str, Any] = {
    "nothing": None,
    "a text": "200",
    "no body": Answer(200, None),  # type: ignore[arg-type]
    "a body of text": Answer(200, "x"),  # type: ignore[arg-type]
    "a status that is none": Answer(777, b""),
    "a header of text": Answer(200, b"", (("a", "b"),), LOST),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_answer_that_is_none_is_500(
    world: World, logged_errors: LoggedErrors, odd: Any, later: bool
) -> None:
    transport = asking(world, lambda request: succeed(odd) if later else odd)
    [(status, _, body)] = answers(bytes(transport.out))
    assert status == b"HTTP/1.1 500 Internal Server Error"
    assert json.loads(body)["code"] == "internal_error"
    assert len(logged_errors.flush()) == 1
    assert len(world.verbs.lost_) == (1 if getattr(odd, "deliveries", ()) else 0)
    # The connection lives on.
    world.server.heads._find = world.verbs.find
    transport.protocol.dataReceived(PUSH)
    assert len(answers(bytes(transport.out))) == 2


def test_a_client_told_to_come_back_is_told_once(world: World) -> None:
    waiting: Deferred[Answer] = Deferred()
    transport = asking(world, lambda request: waiting)
    world.server.drain()
    waiting.callback(Answer(202, b"{}", ((b"Retry-After", b"1"),)))
    [(_, headers, _)] = answers(bytes(transport.out))
    assert headers[b"retry-after"] == b"1" and headers[b"connection"] == b"close"


# -- the log


def test_every_request_whose_head_came_leaves_one_line(world: World) -> None:
    for part in (PUSH[:-1], POP[:20]):
        transport = world.connect()
        transport.protocol.dataReceived(part)
        if part in POP:
            world.pass_time(12)
        transport.hang_up()
    world.access.flush()
    assert len(world.lines) == 2
    assert '"PUT /api/pushTask/q HTTP/1.1" 499 -' in world.lines[1 - ("499" in world.lines[0])]
    assert any(f'"{POP[:20].decode()}" 408 ' in line for line in world.lines)


def test_a_line_tells_how_much_of_a_body_was_sent(world: World) -> None:
    for line in ("HEAD /api/queues", "HEAD\t/"):
        transport = world.connect()
        transport.protocol.dataReceived(ask(line))
        transport.protocol.dataReceived(ask("HEAD /api/queues", host="Host: a..b"))
    world.access.flush()
    told = [re.sub(r".*\" (\d{3} \S+) .*", r"\1", line) for line in world.lines]
    assert told[:2] == ["200 -", "400 -"] and re.fullmatch(r"400 \d+", told[2])


def test_a_route_whose_options_cannot_be_read_is_500(
    world: World, logged_errors: LoggedErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Match, query: bytes) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(Match, "options", fails)
    unused: Any = None
    world.server.heads._find = Api(unused, unused, unused, unused, unused).find
    transport = world.connect()
    transport.protocol.dataReceived(POP)
    assert answers(bytes(transport.out))[0][0] == b"HTTP/1.1 500 Internal Server Error"
    assert len(logged_errors.flush(RuntimeError)) == 1

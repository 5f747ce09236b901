"""Bodies that are too large, clients that are too slow, connections that have to end."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from registry.http.limits import Limits
from tests.http_server import KIB, LIMIT, POST, Server, ask, pause, read_all, serve, split, until


@pytest.fixture(name="server")
def running_server() -> Iterator[Server]:
    yield from serve()


@pytest_twisted.ensureDeferred
async def test_expect_is_answered_when_the_body_fits(server: Server) -> None:
    answer = await server.talk(
        ask("POST /last HTTP/1.1", "Connection: close", "Content-Length: 3", "Expect: 100-continue"),
        0.05,
        b"abc",
    )
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


@pytest_twisted.ensureDeferred
async def test_too_large_is_seen_by_a_client_that_sends_everything_first(server: Server) -> None:
    size = 8 * KIB * KIB
    for _ in range(5):
        answer = await server.talk(ask(POST, f"Content-Length: {size}", body=b"a" * size))
        assert split(answer)[0] == 413
    assert server.root.seen == []


@pytest_twisted.ensureDeferred
async def test_too_large_is_answered_before_the_body_comes(server: Server) -> None:
    def client() -> tuple[bytes, bytes]:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(ask(POST, f"Content-Length: {LIMIT + 1}"))
            first = connection.recv(65536)
            return first, read_all(connection)

    first, rest = await deferToThread(client)
    assert split(first + rest)[0] == 413


@pytest_twisted.ensureDeferred
async def test_lingering_ends() -> None:
    server = Server(Limits(linger_seconds=0.2, linger_bytes=1000, abort_seconds=0.2, tick_seconds=0.05))
    try:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(ask(POST, f"Content-Length: {LIMIT + 1}"))
        await until(lambda: server.logged)
        assert server.factory.connections
        await until(lambda: not server.factory.connections, 5)
        client.close()
        long = await server.talk(ask(POST, f"Content-Length: {LIMIT + 1}", body=b"a" * 900))
        assert split(long)[0] == 413
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_lingering_ends_after_enough_bytes() -> None:
    server = Server(Limits(linger_seconds=60, linger_bytes=100_000, tick_seconds=0.05))
    try:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(ask(POST, f"Content-Length: {10**9}"))
        await until(lambda: server.logged)
        assert server.factory.connections
        client.sendall(b"a" * 200_000)
        await until(lambda: not server.factory.connections, 5)
        client.close()
    finally:
        await server.stop()


# -- deadlines


# The deadlines of a head and of a body alone, then those of an idle connection as well.
STRICT = Limits(head_seconds=0.3, body_seconds=0.3, body_rate=1e6, linger_seconds=0.2, tick_seconds=0.05)
QUICK = Limits(
    idle_seconds=0.6, head_seconds=0.3, body_seconds=0.3, body_rate=1e6, linger_seconds=0.2, tick_seconds=0.05
)
SLOW = {
    "nothing at all": ((), None),
    "headers one byte at a time": ((b"GET / HT", 0.15, b"T", 0.15, b"P", 0.15, b"/1", 0.15, b".1"), 408),
    "headers that stop": ((b"GET / HTTP/1.1\r\nHost: loc",), 408),
    "body that stops": ((ask(POST, "Content-Length: 3", body=b"a"),), 408),
    "body one byte at a time": (
        (ask(POST, "Content-Length: 9", body=b"a"), 0.15, b"a", 0.15, b"a", 0.15, b"a", 0.15, b"a"),
        408,
    ),
    "chunks that stop": ((ask(POST, "Transfer-Encoding: chunked", body=b"3\r\nab"),), 408),
    "nothing after a request": ((ask("GET /a HTTP/1.1"),), 200),
    "an empty line after a request": ((ask("GET /a HTTP/1.1"), 0.05, b"\r\n"), 200),
}


@pytest.mark.parametrize(("pieces", "status"), SLOW.values(), ids=SLOW)
@pytest_twisted.ensureDeferred
async def test_slow_clients_end(pieces: tuple[bytes | float, ...], status: int | None) -> None:
    server = Server(STRICT if status == 408 else QUICK)
    try:
        answer = await server.talk(*pieces)
        if status is None:
            assert answer == b""
        else:
            assert split(answer)[0] == status
            assert answer.count(b"HTTP/1.1 ") == 1
        await until(lambda: not server.factory.connections)
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_parked_request_has_no_deadline_and_the_connection_is_idle_afterwards() -> None:
    server = Server(QUICK)
    try:
        reading = server.talk(ask("GET /a HTTP/1.1") + ask("GET /park HTTP/1.1"))
        await until(lambda: server.root.parked)
        await pause(1.0)
        server.root.reply(server.root.parked[0], b"{}")
        answer = await reading
        assert answer.count(b"HTTP/1.1 200 OK") == 2
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_a_body_may_take_as_long_as_its_size_needs() -> None:
    server = Server(Limits(body_seconds=0.1, body_rate=100.0, tick_seconds=0.05))
    try:
        answer = await server.talk(
            ask("POST /last HTTP/1.1", "Connection: close", "Content-Length: 100", body=b"a"), 0.4, b"a" * 99
        )
        assert split(answer)[0] == 200
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_sockets_are_watched(server: Server) -> None:
    client = socket.create_connection(("127.0.0.1", server.port))
    await until(lambda: server.factory.connections)
    (channel,) = server.factory.connections
    handle = channel.transport.getHandle()  # type: ignore[union-attr]
    assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
    assert [handle.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [30, 10, 3, 30_000]
    client.close()


@pytest_twisted.ensureDeferred
async def test_draining_ends_idle_connections_and_closes_the_others_after_their_answer(
    server: Server,
) -> None:
    idle = server.talk()
    busy = server.talk(ask("GET /park HTTP/1.1"))
    await until(lambda: server.root.parked and len(server.factory.connections) == 2)
    server.factory.drain()
    server.factory.close_idle()
    assert await idle == b""
    assert server.factory.under_way
    server.root.reply(server.root.parked[0], b"{}")
    status, headers, body = split(await busy)
    assert (status, headers["connection"], body) == (200, "close", b"{}")


@pytest_twisted.ensureDeferred
async def test_a_slow_request_leaves_the_next_one_its_time() -> None:
    """The deadline of one request's head is not kept for the pause after its answer."""
    server = Server(Limits(idle_seconds=30, head_seconds=0.3, tick_seconds=0.05))
    try:
        halves = ask("GET /a HTTP/1.1")
        answer = await server.talk(
            halves[:9], 0.1, halves[9:], 0.6, ask("GET /last HTTP/1.1", "Connection: close")
        )
        assert answer.count(b"HTTP/1.1 200 OK") == 2
    finally:
        await server.stop()

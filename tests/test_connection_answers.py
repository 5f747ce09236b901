"""Answers over TCP, a unix socket and TLS: reported when their bytes are in the kernel, or never will be."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.threads import deferToThread

from registry.http.limits import Limits
from tests.http_server import KIB, Server, ask, pause, reactor, read_all, serve, until


@pytest.fixture(name="server")
def running_server() -> Iterator[Server]:
    yield from serve()


def connect(server: Server, kind: str, tmp_path: Path) -> tuple[Any, Callable[[], socket.socket]]:
    """Listen in another way: return the port and a function that connects (blocking)."""
    if kind == "tcp":
        return None, lambda: socket.create_connection(("127.0.0.1", server.port), timeout=10)
    if kind == "unix":
        path = str(tmp_path / "s")

        def dial() -> socket.socket:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(10)
            client.connect(path)
            return client

        return reactor.listenUNIX(path, server.factory), dial
    listening = reactor.listenSSL(
        0, server.factory, PrivateCertificate.loadPEM(pem()).options(), interface="127.0.0.1"
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def dial_tls() -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", listening.getHost().port), timeout=10)
        return context.wrap_socket(plain)

    return listening, dial_tls


def pem() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


KINDS = pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])
CLOSE = "Connection: close"


@KINDS
@pytest.mark.parametrize("close", [False, True], ids=["persistent", "close"])
@pytest_twisted.ensureDeferred
async def test_small_answers_are_delivered(server: Server, kind: str, close: bool, tmp_path: Path) -> None:
    listening, dial = connect(server, kind, tmp_path)

    def client() -> bytes:
        with dial() as connection:
            received = b""
            for _ in range(1 if close else 3):
                connection.sendall(ask("GET /a HTTP/1.1", *([CLOSE] if close else [])))
                received += connection.recv(65536)
            # Pipelined: three answers, of which the last ends the connection.
            if not close:
                connection.sendall(ask("GET /b HTTP/1.1") * 2 + ask("GET /a HTTP/1.1", CLOSE))
            return received + read_all(connection)

    answer = await deferToThread(client)
    await until(lambda: len(server.root.outcomes) == (1 if close else 6))
    assert server.root.outcomes == ["left"] * len(server.root.outcomes)
    assert answer.count(b"HTTP/1.1 200 OK") == len(server.root.outcomes)
    await until(lambda: not server.factory.connections)
    if listening is not None:
        await listening.stopListening()


@KINDS
@pytest.mark.parametrize("close", [False, True], ids=["persistent", "close"])
@pytest_twisted.ensureDeferred
async def test_an_answer_is_not_delivered_before_the_client_reads(
    server: Server, kind: str, close: bool, tmp_path: Path
) -> None:
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.sendall(ask("GET /large HTTP/1.1", *([CLOSE] if close else [])))
    await until(lambda: server.logged)
    await pause(0.3)
    assert server.root.outcomes == []
    if not close:
        # The connection works on afterwards, and begins nothing before.
        connection.sendall(ask("GET /large HTTP/1.1") + ask("GET /a HTTP/1.1", CLOSE))
        await pause(0.1)
        assert len(server.root.seen) == 1
    answer = await deferToThread(read_all, connection)
    await until(lambda: len(server.root.outcomes) == (1 if close else 3))
    assert server.root.outcomes == ["left"] * len(server.root.outcomes)
    assert len(answer) > server.root.size * (1 if close else 2)
    assert server.factory.unsent_bytes == 0
    connection.close()
    if listening is not None:
        await listening.stopListening()


@KINDS
@pytest.mark.parametrize("close", [False, True], ids=["persistent", "close"])
@pytest_twisted.ensureDeferred
async def test_an_answer_is_lost_when_the_client_hangs_up(
    server: Server, kind: str, close: bool, tmp_path: Path
) -> None:
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.sendall(ask("GET /large HTTP/1.1", *([CLOSE] if close else [])))
    await until(lambda: server.logged)
    await pause(0.1)
    assert server.root.outcomes == []
    connection.close()
    await until(lambda: server.root.outcomes)
    assert server.root.outcomes == ["lost"]
    await until(lambda: not server.factory.connections)
    assert server.factory.unsent_bytes == 0
    if listening is not None:
        await listening.stopListening()


@KINDS
@pytest_twisted.ensureDeferred
async def test_an_answer_that_nobody_reads_is_lost(kind: str, tmp_path: Path) -> None:
    server = Server(Limits(drain_seconds=1, tick_seconds=0.1))
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.sendall(ask("GET /large HTTP/1.1"))
    await until(lambda: server.root.outcomes, 5)
    assert server.root.outcomes == ["lost"]
    assert not server.factory.connections
    connection.close()
    if listening is not None:
        await listening.stopListening()
    await server.stop()


@KINDS
@pytest_twisted.ensureDeferred
async def test_a_client_that_pipelines_without_end_is_not_read(
    server: Server, kind: str, tmp_path: Path
) -> None:
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.settimeout(0.5)
    connection.sendall(ask("GET /park HTTP/1.1"))
    await until(lambda: server.root.parked)

    def flood() -> int:
        sent = 0
        try:
            while sent < 64 * KIB * KIB:
                sent += connection.send(b"a" * 65536)
        except TimeoutError:
            pass
        return sent

    assert await deferToThread(flood) < 64 * KIB * KIB
    connection.close()
    for one in list(server.factory.connections):
        one.transport.abortConnection()
    await until(lambda: not server.factory.connections)
    if listening is not None:
        await listening.stopListening()


@KINDS
@pytest_twisted.ensureDeferred
async def test_the_bytes_are_in_the_kernel_when_an_answer_from_a_timer_is_delivered(
    server: Server, kind: str, tmp_path: Path
) -> None:
    """TLS keeps small writes for a turn, those of a timer past the next look at the sockets."""
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.sendall(ask("GET /park HTTP/1.1"))
    await until(lambda: server.root.parked)
    below = socket.socket(connection.family, fileno=os.dup(connection.fileno()))
    arrived: list[int] = []

    def look(answer: object) -> None:
        try:
            arrived.append(len(below.recv(100_000, socket.MSG_PEEK | socket.MSG_DONTWAIT)))
        except BlockingIOError:
            arrived.append(0)

    server.factory.delivered = look
    reactor.callLater(0.01, server.root.reply, server.root.parked[0], b"x" * 40_000)
    await until(lambda: arrived)
    assert arrived[0] > 40_000
    below.close()
    connection.close()
    await until(lambda: not server.factory.connections)
    if listening is not None:
        await listening.stopListening()

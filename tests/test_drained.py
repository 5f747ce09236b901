"""`drained` over TCP, a unix socket and TLS: told when the bytes of an answer have left, or never will."""

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

from registry.http.site import Limits, RegistryRequest, drained
from tests.conftest import LoggedErrors
from tests.site_server import KIB, Server, ask, pause, reactor, read_all, serve, until


@pytest.fixture(name="server")
def running_server() -> Iterator[Server]:
    yield from serve()


class Outcome:
    """Collects what `drained` tells, asked before the answer is written or after it is finished."""

    def __init__(self, server: Server, early: bool = False) -> None:
        self.told: list[str] = []
        if early:
            server.root.on_start = self.listen
        else:
            server.root.on_finish = self.listen

    def listen(self, request: RegistryRequest) -> None:
        drained(request, lambda: self.told.append("left"), lambda: self.told.append("lost"))


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

        return reactor.listenUNIX(path, server.site), dial
    listening = reactor.listenSSL(
        0, server.site, PrivateCertificate.loadPEM(pem()).options(), interface="127.0.0.1"
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


@KINDS
@pytest.mark.parametrize("close", [False, True], ids=["persistent", "close"])
@pytest.mark.parametrize("early", [False, True], ids=["after", "before"])
@pytest_twisted.ensureDeferred
async def test_drained_after_small_answers(
    server: Server, kind: str, close: bool, early: bool, tmp_path: Path
) -> None:
    outcome = Outcome(server, early)
    listening, dial = connect(server, kind, tmp_path)

    def client() -> bytes:
        with dial() as connection:
            received = b""
            for _ in range(1 if close else 3):
                connection.sendall(ask("GET /last HTTP/1.1" if close else "GET /a HTTP/1.1"))
                received += connection.recv(65536)
            # Pipelined: three answers, of which the last ends the connection.
            if not close:
                connection.sendall(ask("GET /b HTTP/1.1") * 2 + ask("GET /last HTTP/1.1"))
            return received + read_all(connection)

    answer = await deferToThread(client)
    await until(lambda: len(outcome.told) == (1 if close else 6))
    assert outcome.told == ["left"] * len(outcome.told)
    assert answer.count(b"HTTP/1.1 200 OK") == len(outcome.told)
    await until(lambda: not server.site.connections)
    if listening is not None:
        await listening.stopListening()


@KINDS
@pytest.mark.parametrize("close", [False, True], ids=["persistent", "close"])
@pytest.mark.parametrize("early", [False, True], ids=["after", "before"])
@pytest_twisted.ensureDeferred
async def test_not_drained_before_the_client_reads(
    server: Server, kind: str, close: bool, early: bool, tmp_path: Path
) -> None:
    server.root.size = 16 * KIB * KIB
    outcome = Outcome(server, early)
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.sendall(ask("GET /large HTTP/1.1", *(["Connection: close"] if close else [])))
    await until(lambda: server.logged)
    await pause(0.3)
    assert outcome.told == []
    if close:
        answer = await deferToThread(read_all, connection)
    else:
        # The connection works on afterwards, also with its back pressure.
        connection.sendall(ask("GET /large HTTP/1.1") + ask("GET /last HTTP/1.1"))
        answer = await deferToThread(read_all, connection)
    await until(lambda: len(outcome.told) == (1 if close else 3))
    assert outcome.told == ["left"] * len(outcome.told)
    assert len(answer) > server.root.size * (1 if close else 2)
    connection.close()
    if listening is not None:
        await listening.stopListening()


@KINDS
@pytest.mark.parametrize("close", [False, True], ids=["persistent", "close"])
@pytest_twisted.ensureDeferred
async def test_drained_tells_when_the_client_hangs_up(
    server: Server, kind: str, close: bool, tmp_path: Path
) -> None:
    outcome = Outcome(server)
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.sendall(ask("GET /large HTTP/1.1", *(["Connection: close"] if close else [])))
    await until(lambda: server.logged)
    await pause(0.1)
    assert outcome.told == []
    connection.close()
    await until(lambda: outcome.told)
    assert outcome.told == ["lost"]
    await until(lambda: not server.site.connections)
    if listening is not None:
        await listening.stopListening()


@KINDS
@pytest_twisted.ensureDeferred
async def test_drained_gives_up(kind: str, tmp_path: Path) -> None:
    server = Server(Limits(drain_seconds=1))
    outcome = Outcome(server)
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.sendall(ask("GET /large HTTP/1.1"))
    await until(lambda: outcome.told, 5)
    assert outcome.told == ["lost"]
    assert not server.site.connections
    connection.close()
    if listening is not None:
        await listening.stopListening()
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_drained_after_a_hang_up_tells_at_once(server: Server) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(ask("GET /a HTTP/1.1"))
    await until(lambda: server.logged)
    connection.close()
    await until(lambda: not server.site.connections)
    outcome = Outcome(server)
    outcome.listen(server.root.seen[0])
    assert outcome.told == ["lost"]


@pytest_twisted.ensureDeferred
async def test_drained_tells_when_the_client_hangs_up_before_the_answer(server: Server) -> None:
    outcome = Outcome(server, early=True)
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(ask("GET /park HTTP/1.1"))
    await until(lambda: server.root.parked)
    assert outcome.told == []
    connection.close()
    await until(lambda: outcome.told)
    outcome.listen(server.root.parked[0])
    assert outcome.told == ["lost", "lost"]


@pytest_twisted.ensureDeferred
async def test_drained_when_the_buffer_is_empty_already(server: Server) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(ask("GET /a HTTP/1.1"))
    await deferToThread(connection.recv, 65536)
    outcome = Outcome(server)
    outcome.listen(server.root.seen[0])
    await until(lambda: outcome.told)
    assert outcome.told == ["left"]
    connection.close()


@pytest_twisted.ensureDeferred
async def test_an_error_in_the_drained_callback_harms_nobody(
    server: Server, logged_errors: LoggedErrors
) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    server.root.on_finish = lambda request: drained(request, fail, fail)
    answer = await server.talk(ask("GET /a HTTP/1.1") + ask("GET /last HTTP/1.1"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert len(logged_errors.flush(RuntimeError)) == 2


@pytest.mark.parametrize("after_drain", [False, True])
@pytest_twisted.ensureDeferred
async def test_back_pressure_outlives_a_drain(server: Server, after_drain: bool) -> None:
    """Reading pauses for a client that pipelines without end; the channel hears when the buffer is full."""
    outcome = Outcome(server)
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.settimeout(0.5)
    if after_drain:
        connection.sendall(ask("GET /large HTTP/1.1"))
        await until(lambda: server.logged)
        (channel,) = server.site.connections
        got = 0
        while got < server.root.size:
            got += len(await deferToThread(connection.recv, 1 << 20))
        await until(lambda: outcome.told)
        assert channel.transport.producer is channel  # type: ignore[union-attr]
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
    for channel in list(server.site.connections):
        channel.abort()
    await until(lambda: not server.site.connections)


@KINDS
@pytest_twisted.ensureDeferred
async def test_the_bytes_are_in_the_kernel_when_an_answer_from_a_timer_is_told(
    server: Server, kind: str, tmp_path: Path
) -> None:
    """TLS keeps small writes for a turn, those of a timer past the next look at the sockets."""
    listening, dial = connect(server, kind, tmp_path)
    connection = await deferToThread(dial)
    connection.sendall(ask("GET /park HTTP/1.1"))
    await until(lambda: server.root.parked)
    below = socket.socket(connection.family, fileno=os.dup(connection.fileno()))
    arrived: list[int] = []

    def look() -> None:
        try:
            arrived.append(len(below.recv(100_000, socket.MSG_PEEK | socket.MSG_DONTWAIT)))
        except BlockingIOError:
            arrived.append(0)

    request = server.root.parked[0]
    server.root.on_finish = lambda request: drained(request, look, lambda: arrived.append(-1))
    reactor.callLater(0.01, server.root.reply, request, b"x" * 40_000)
    await until(lambda: arrived)
    assert arrived[0] > 40_000
    below.close()
    connection.close()
    await until(lambda: not server.site.connections)
    if listening is not None:
        await listening.stopListening()

"""Listening with TLS and ALPN."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from tests.live import Daemon, RedisServer, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="no openssl to make a certificate with"
)


def listening(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path
) -> tuple[Daemon, int, ssl.SSLContext]:
    """A daemon that listens with TLS, its port, and what a client needs to trust it."""
    key, certificate = short_dir / "key.pem", short_dir / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        + ["-subj", "/CN=localhost", "-keyout", key, "-out", certificate, "-days", "2"],
        check=True,
        capture_output=True,
    )
    endpoint = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
    served = daemon(f"--listen={endpoint}", redis=redis_server, wait=False)
    wait_until(lambda: "listening on 127.0.0.1:" in served.log, 20, "a line about its port")
    port = int(served.log.partition("listening on 127.0.0.1:")[2].split()[0])
    return served, port, ssl.create_default_context(cafile=str(certificate))


@pytest.mark.parametrize("offered", [["h2", "http/1.1"], ["http/1.1"], []])
def test_a_client_that_offers_protocols_is_served(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path, offered: list[str]
) -> None:
    _, port, context = listening(daemon, redis_server, short_dir)
    if offered:
        context.set_alpn_protocols(offered)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert connection.selected_alpn_protocol() == ("http/1.1" if offered else None)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert connection.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"


def test_an_idle_client_that_says_no_goodbye_does_not_hold_up_a_stop(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path
) -> None:
    served, port, context = listening(daemon, redis_server, short_dir)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        # By itself such a connection ends after 15 s.
        served.terminate(10)
        assert "registry has stopped" in served.log


def test_an_answer_on_its_way_to_a_slow_client_gets_there_although_the_daemon_stops(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path
) -> None:
    served, port, context = listening(daemon, redis_server, short_dir)
    task = b'"' + b"x" * 1_000_000 + b'"'
    for head, body in ((b"PUT /api/pushTask/q", task), (b"GET /api/popTask/q?wait=0", b"")):
        with socket.socket() as plain:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            plain.settimeout(20)
            plain.connect(("127.0.0.1", port))
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(
                    b"%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
                    % (head, len(body), body)
                )
                if body:
                    assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
                    continue
                # The kernel holds it all; for Redis the task is done.
                wait_until(lambda: not redis_server.command("EXISTS", "{q}l", "{q}t"))
                served.terminate(10)
                got = b""
                while more := connection.recv(65536):
                    got += more
                assert got.endswith(b'{"task":' + task + b"}")

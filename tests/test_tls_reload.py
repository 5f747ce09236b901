"""TLS on the daemon itself: the oldest version, the chain, a new certificate without a restart, and TLS behind the PROXY protocol."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from tests.live import Daemon, RedisServer, free_port, short_folder, wait_until
from tests.talk import fresh

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="no openssl to make a certificate with"
)

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Secure(Daemon):
    """``tls``, ``proxied``: its ports, plain and behind the PROXY protocol; ``certificates``: the folder of its files."""

    tls = proxied = 0
    certificates = Path()


def openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


def make(folder: Path, name: str) -> bytes:
    """A new key and certificate for localhost, put in place by rename; the certificate as a client sees it."""
    names = f"-subj /O={name} -addext subjectAltName=DNS:localhost"
    openssl(folder, f"req -x509 {NEW_KEY} {names} -keyout new-key.pem -out new-cert.pem -days 2")
    for part in ("key.pem", "cert.pem"):
        (folder / f"new-{part}").rename(folder / part)
    return ssl.PEM_cert_to_DER_cert((folder / "cert.pem").read_text())


def connect(port: int, context: ssl.SSLContext | None = None, before: bytes = b"") -> ssl.SSLSocket:
    if context is None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(("127.0.0.1", port), 20)
    plain.sendall(before)
    return context.wrap_socket(plain, server_hostname="localhost")


def shown(port: int, before: bytes = b"") -> bytes | None:
    """The certificate that a new connection is shown."""
    with connect(port, None, before) as connection:
        return connection.getpeercert(binary_form=True)


def ask(connection: ssl.SSLSocket, sent: bytes) -> bytes:
    connection.sendall(sent)
    return connection.recv(65536)


@pytest.fixture(scope="module", params=["1", "2"], ids=["alone", "processes"])
def served(request: pytest.FixtureRequest, module_redis_process: RedisServer) -> Iterator[Secure]:
    """A daemon with TLS at ``port``, and at ``port`` + 1 behind the PROXY protocol; its files are beside it."""
    folder = short_folder()
    make(folder, "first")
    settings = {"REDIS_URL": module_redis_process.url, "PROCESSES": request.param}
    one = Secure((), settings, ("twistd", "-n", "--pidfile="))
    files = f"interface=127.0.0.1:privateKey={folder}/key.pem:certKey={folder}/cert.pem"
    one.tls, one.proxied, one.certificates = free_port(), free_port(), folder
    one.env["LISTEN"] = (
        f"tcp:{one.port}:interface=127.0.0.1 ssl:{one.tls}:{files} haproxy:ssl:{one.proxied}:{files}"
    )
    try:
        one.start().redis_ready()
        yield one
    finally:
        one.remove()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_new_certificate_is_used_and_no_connection_is_dropped(served: Secure) -> None:
    folder, port = served.certificates, served.tls
    first = make(folder, "first")
    os.kill(served.pid, signal.SIGHUP)
    wait_until(lambda: {shown(port) for _ in range(6)} == {first})
    queue = fresh()
    poll = b"GET /api/popTask/%b?wait=30&lease=5 HTTP/1.1\r\nHost: localhost\r\n\r\n" % queue.encode()
    got: list[bytes] = []
    with connect(port) as parked, connect(port) as idle:
        assert ask(idle, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200")
        waits = threading.Thread(target=lambda: got.append(ask(parked, poll)))
        waits.start()
        second = make(folder, "second")
        os.kill(served.pid, signal.SIGHUP)
        # Of every process.
        wait_until(lambda: {shown(port) for _ in range(6)} == {second})
        header = b"PROXY TCP4 198.51.100.1 127.0.0.1 1 2\r\n"
        assert shown(served.proxied, header) == second
        push = (
            b"PUT /api/pushTask/%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1" % queue.encode()
        )
        assert ask(idle, push).startswith(b"HTTP/1.1 200")
        waits.join(20)
        assert got and b'{"task":1' in got[0]


def test_a_broken_certificate_leaves_the_old_one(served: Secure) -> None:
    folder, port = served.certificates, served.tls
    good = make(folder, "good")
    os.kill(served.pid, signal.SIGHUP)
    wait_until(lambda: {shown(port) for _ in range(6)} == {good})
    (folder / "cert.pem").write_text("no certificate")
    before = served.log.count("New connections still get the certificate that was read before.")
    os.kill(served.pid, signal.SIGHUP)
    processes = int(served.env["PROCESSES"])
    said = "New connections still get the certificate that was read before."
    wait_until(lambda: served.log.count(said) == before + 2 * processes)
    assert {shown(port) for _ in range(6)} == {good}
    with connect(port) as connection:
        body = b""
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while more := connection.recv(65536):
            body += more
        assert said.encode() in body and b"cert.pem" in body
    # A key that belongs to another certificate is as bad.
    make(folder, "third")
    key = (folder / "key.pem").read_bytes()
    make(folder, "fourth")
    (folder / "key.pem").write_bytes(key)
    os.kill(served.pid, signal.SIGHUP)
    wait_until(lambda: served.log.count(said) == before + 4 * processes)
    assert {shown(port) for _ in range(6)} == {good}
    fifth = make(folder, "fifth")
    os.kill(served.pid, signal.SIGHUP)
    wait_until(lambda: {shown(port) for _ in range(6)} == {fifth})


def test_nothing_older_than_tls_1_2_is_spoken(served: Secure) -> None:
    for version, works in ((ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
        try:
            with connect(served.tls, context) as connection:
                assert ask(connection, HEALTH).startswith(b"HTTP/1.1 200") and works
        except OSError:
            assert not works


def test_tls_begins_behind_the_proxy_header(served: Secure) -> None:
    header = b"PROXY TCP4 198.51.100.77 127.0.0.1 1 2\r\n"
    with connect(served.proxied, None, header) as connection:
        said = ask(connection, b"GET /api/token HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b'"address":"198.51.100.77"' in said.replace(b": ", b":")


def test_the_certificates_of_the_issuers_are_sent(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path
) -> None:
    at = short_dir
    (at / "middle.ext").write_text("basicConstraints=critical,CA:TRUE\n")
    (at / "leaf.ext").write_text("subjectAltName=DNS:localhost\n")
    openssl(at, f"req -x509 {NEW_KEY} -subj /CN=root -keyout root.key -out root.pem -days 2")
    for name, issuer in (("middle", "root"), ("leaf", "middle")):
        openssl(at, f"req -new {NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        signing = f"-CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial -extfile {name}.ext -days 2"
        openssl(at, f"x509 -req -in {name}.csr {signing} -out {name}.pem")
    (at / "fullchain.pem").write_text((at / "leaf.pem").read_text() + (at / "middle.pem").read_text())
    port = free_port()
    place = f"ssl:{port}:interface=127.0.0.1:privateKey={at}/leaf.key:certKey={at}/fullchain.pem"
    one = daemon(f"--listen={place}", redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in one.log, 20)
    with connect(port, ssl.create_default_context(cafile=str(at / "root.pem"))) as connection:
        assert ask(connection, HEALTH).startswith(b"HTTP/1.1 200")
    old = daemon(f"--listen={place}:sslmethod=TLSv1_METHOD", redis=redis_server, wait=False)
    assert old.wait(20) == 1
    assert "the oldest TLS that is served is 1.2" in old.log

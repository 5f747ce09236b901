"""What clients and proxies expect of a connection: health checks, HTTP/1.0, how long it stays open, and a trace in the log."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from tests.live import Daemon, wait_until
from tests.talk import ask, poll


class Line:
    """One connection, on which answers are read whole."""

    def __init__(self, daemon: Daemon) -> None:
        self._socket = socket.create_connection(("127.0.0.1", daemon.port), 10)
        self._read = self._socket.makefile("rb")

    def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        self._socket.sendall(request)
        status = int(self._read.readline().split()[1])
        headers = {}
        while (line := self._read.readline().decode().rstrip()) != "":
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return status, headers, self._read.read(int(headers["content-length"]))

    def ended(self) -> bool:
        return self._read.read(1) == b""

    def close(self) -> None:
        self._read.close()
        self._socket.close()


@pytest.fixture
def line(served: Daemon) -> Iterator[Line]:
    one = Line(served)
    yield one
    one.close()


@pytest.mark.parametrize("target", [b"/", b"*"])
@pytest.mark.parametrize("version", [b"HTTP/1.0\r\n", b"HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_health_check_with_options_is_200(line: Line, target: bytes, version: bytes) -> None:
    """As HAProxy asks by default: ``OPTIONS / HTTP/1.0``."""
    status, headers, body = line.ask(b"OPTIONS %b %b\r\n" % (target, version))
    assert (status, body) == (200, b"")
    assert "GET" in headers["allow"]
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


def test_http_1_0_is_kept_alive_when_it_asks_for_it(line: Line, q: str) -> None:
    for _ in range(3):
        status, headers, _ = line.ask(
            b"PUT /api/pushTask/%b HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\n1"
            % q.encode()
        )
        assert (status, headers["connection"], headers["keep-alive"]) == (200, "keep-alive", "timeout=75")
    status, headers, _ = line.ask(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (status, headers["connection"]) == (200, "close")
    assert "keep-alive" not in headers
    assert line.ended()


def test_a_keep_alive_client_is_told_for_how_long(line: Line, q: str) -> None:
    request = b"GET /api/popTask/%b?wait=0 HTTP/1.1\r\nHost: localhost\r\n" % q.encode()
    assert "keep-alive" not in line.ask(request + b"\r\n")[1]
    assert line.ask(request + b"Connection: keep-alive\r\n\r\n")[1]["keep-alive"] == "timeout=75"
    status, headers, _ = line.ask(request + b"Connection: close\r\n\r\n")
    assert (status, headers["connection"]) == (202, "close")
    assert "keep-alive" not in headers
    assert line.ended()


@pytest.mark.parametrize("count", [500, 501])
def test_a_request_has_500_headers_at_most(line: Line, q: str, count: int) -> None:
    fields = b"".join(b"x%x:\r\n" % n for n in range(count - 1))
    status, _, body = line.ask(
        b"GET /api/popTask/%b?wait=0 HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (q.encode(), fields)
    )
    assert status == (202 if count == 500 else 431), body


@pytest.mark.parametrize(
    "request_line",
    [
        b"PUT /api/pushTask/a",
        b"GET /api/popTask/a?wait=0",
        b"GET /api/popTask/a?nonsense=1",
        b"GET /healthz",
        b"GET /nothing",
        b"PATCH /healthz",
        b"BREW /healthz",
    ],
)
def test_every_answer_forbids_to_guess_its_type(line: Line, request_line: bytes) -> None:
    _, headers, _ = line.ask(b"%b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1" % request_line)
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["registry.lan", "10.1.2.3", "[2001:db8::1]", "a_b-c.example"])
def test_a_foreign_name_is_quoted(line: Line, name: str) -> None:
    status, _, body = line.ask(b"GET /api/popTask/a?wait=0 HTTP/1.1\r\nHost: %b:8080\r\n\r\n" % name.encode())
    assert status == 421
    assert f"'{name.strip('[]')}'".encode() in body


def test_a_poll_that_is_cut_off_leaves_a_line_with_499(served: Daemon, q: str) -> None:
    waiting = poll(served, q, "wait=20")
    waiting.hang_up()
    line = rf'"GET /api/popTask/{q}\?wait=20 HTTP/1.1" 499 - "-" "-" \d+\.\dms'
    wait_until(lambda: re.search(line, served.log), 5, "a line with 499")
    assert ask(served, "GET", f"/api/popTask/{q}?wait=0").status == 202
    assert len(re.findall(rf"GET /api/popTask/{q}\?wait=20", served.log)) == 1

"""What a stranger gets who tries everything, once there are tokens: 401, or nothing."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from registry.http.routes import ROUTES
from tests.callers import Callers, guarded
from tests.live import RedisServer, short_folder

SECRET = "geheim"
LEASE = f"{'0' * 24}-{'0' * 32}"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# What is told to everybody: that the process runs, that it is ready, and the methods that the server knows.
OPEN = {"/healthz", "/readyz"}
# The dashboard's own files and the description of the API hold no data. The third one does not exist.
PAGE = {"/", "/dashboard/app.js", "/dashboard/css/app.js", "/openapi.json", "/docs"}
# Refusals of what is malformed; of what is well formed there is only one.
REFUSALS = {400, 405, 408, 414, 421, 431, 501, 505}


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    one = Callers(short_folder() / "tokens.json")
    one.add("me", "admin")
    with guarded(module_redis_process, one):
        assert one.ask("me", "PUT", f"/api/pushTask/{SECRET}?delay=60", f"{SECRET}-task").status == 200
        yield one


def sent(callers: Callers, data: bytes, ends: bool = False) -> bytes:
    """Everything that comes back for these bytes, up to the end of the connection; ``ends``: the client ends its side."""
    with socket.create_connection(("127.0.0.1", callers.daemon.port), 20) as connection:
        connection.sendall(data)
        with suppress(OSError):  # the daemon may have ended it already
            if ends:
                connection.shutdown(socket.SHUT_WR)
        got = b""
        with suppress(ConnectionError):
            while more := connection.recv(65536):
                got += more
        return got


def filled(path: str) -> str:
    known = {
        "<name>": SECRET,
        "<names>": f"{SECRET},b",
        "<id>": "0" * 24,
        "<lease>": LEASE,
        "<worker>": SECRET,
        "<folder>": "css",
        "<file>": "app.js",
    }
    return re.sub(r"<\w+>", lambda found: known[found[0]], path)


PATHS = sorted({filled(route.path) for route in ROUTES})
ODD = [
    "/",
    "//",
    "/api",
    "/api/",
    "//api/queues",
    "/api//queues",
    "/api/queues/",
    "/api/./queues",
    "/x/../api/queues",
    "/%61pi/queues",
    "/api%2Fqueues",
    "/api/queues%00",
    "/api/queues;x",
    "/api/queues?",
    "/api/queues?access_token=x&token=x",
    "/API/queues",
    "/healthz/../api/queues",
    "/healthz/api/queues",
    "/healthz%2F..%2Fapi%2Fqueues",
    "/readyz/",
    "/metrics",
    "/openapi.json",
    "/dashboard",
    "/index.html",
    "/favicon.ico",
    "/robots.txt",
    "/.env",
    "/.git/config",
    "/tokens.json",
    "/static/../tokens.json",
    "/" + "a" * 5000,
    "/\u00e4".encode().decode("latin-1"),
]
HEADERS = [
    "",
    "X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\n",
    "X-Original-URL: /healthz\r\nX-Rewrite-URL: /healthz\r\nX-HTTP-Method-Override: GET\r\n",
    "Authorization: Basic YWRtaW46YWRtaW4=\r\n",
    "Authorization: Bearer\r\n",
    "Cookie: registry_session=me.9999999999.0; registry_session=me\r\n",
    "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: navigate\r\nUser-Agent: Mozilla/5.0\r\nAccept: text/html\r\n",
]


@pytest.mark.parametrize("headers", HEADERS, ids=range(len(HEADERS)))
def test_every_route_and_method_is_401(callers: Callers, headers: str) -> None:
    for path in [*PATHS, *ODD]:
        for method in METHODS:
            head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
            answer = sent(callers, head.encode("latin-1"))
            status = int(answer.split(b" ", 2)[1])
            assert SECRET.encode() not in answer, (head, answer)
            if path in OPEN or (path, method) == ("/", "OPTIONS") or path == "/api/session":
                # Without a token, nobody signs in.
                assert b"set-cookie: registry_session=m" not in answer.lower()
                continue
            if path in PAGE and method in ("GET", "HEAD"):
                assert status in (200, 404), (head, answer)
                continue
            assert status == 401, (head, answer)
            assert b"\r\nWWW-Authenticate: Bearer\r\n" in answer and b"Basic" not in answer


PROBES = [
    b"\r\n\r\n",
    b"HELP\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /api/queues HTTP/1.0\r\n\r\n",
    b"GET http://localhost/api/queues HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET http://other.example/api/queues HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /api/queues HTTP/1.1\r\nHost: other.example\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: other.example\r\n\r\n",
    b"GET /api/queues HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    b"OPTIONS / RTSP/1.0\r\n\r\n",
    b"OPTIONS sip:nm SIP/2.0\r\n\r\n",
    b"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT localhost:6379 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PROPFIND / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET /api/queues HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /api/queues HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 57\r\n\r\nGET /api/queues HTTP/1.1\r\nHost: localhost\r\nX: "
    + b"x" * 11,
    b"\x16\x03\x01\x00\x75\x01\x00\x00\x71\x03\x03" + b"x" * 100,
    b"*1\r\n$4\r\nINFO\r\n",
    b"\x80\x00\x00\x28\x72\xfe\x1d\x13" + b"\0" * 32,
    b"\0" * 64,
    bytes(range(256)) * 8,
]


@pytest.mark.parametrize("probe", PROBES, ids=range(len(PROBES)))
def test_the_probes_of_a_scanner_find_nothing(callers: Callers, probe: bytes) -> None:
    answer = sent(callers, probe, True)
    assert SECRET.encode() not in answer
    statuses = [int(one) for one in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]
    told = probe.startswith((b"GET /healthz", b"GET / "))
    assert not set(statuses) - {401, *REFUSALS} or told, (probe, answer)
    # The name of the program is told, and no version of it or of what it is made of.
    assert not re.search(rb"\r\nServer: (?!registry\r\n)", answer)
    assert b"Traceback" not in answer and b"Twisted" not in answer
    # Nobody sees a page there that a script of others could run in.
    assert b"text/html" not in answer or b"\r\nContent-Security-Policy: default-src 'none'; " in answer

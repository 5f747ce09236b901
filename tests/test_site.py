"""Raw bytes in, raw bytes out: what the web server says to malformed, hostile, slow and ordinary clients."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from registry.http.channel import Channel
from registry.http.site import Limits, RegistryRequest, RegistrySite, drained, make_site

reactor: Any = _reactor
LIMIT = 1000
KIB = 1024


class Echo(Resource):
    """Answers with what it was asked; /park answers when told, /fail raises, /large is ``size`` bytes."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[RegistryRequest] = []
        self.parked: list[RegistryRequest] = []
        self.on_finish: Callable[[RegistryRequest], None] = lambda request: None
        self.size = 8 * KIB * KIB

    def render(self, request: RegistryRequest) -> Any:
        self.seen.append(request)
        if request.path == b"/park":
            self.parked.append(request)
            return NOT_DONE_YET
        if request.path == b"/fail":
            raise RuntimeError("on purpose")
        if request.path == b"/large":
            self.reply(request, b"x" * self.size)
            return NOT_DONE_YET
        if request.path == b"/last":
            request.setHeader(b"Connection", b"close")
        body = request.content.read()
        assert type(request.content).__name__ == "BytesIO"
        self.reply(request, json.dumps([request.method.decode(), request.uri.decode(), len(body)]).encode())
        return NOT_DONE_YET

    def reply(self, request: RegistryRequest, body: bytes) -> None:
        request.setHeader(b"Content-Length", b"%d" % len(body))
        request.write(body)
        request.finish()
        self.on_finish(request)


class Server:
    def __init__(self, limits: Limits | None = None) -> None:
        self.root = Echo()
        self.logged: list[RegistryRequest] = []
        self.site = make_site(
            self.root,
            reactor=reactor,
            max_body=LIMIT,
            big_bodies=lambda path: 100 * LIMIT if path.startswith(b"/big") else None,
            access_log=self.logged.append,
            host_allowed=lambda name: name in (b"localhost", b"127.0.0.1", b"::1", b"registry.example"),
            limits=limits,
        )
        self.listening = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.port = self.listening.getHost().port

    def talk(self, *pieces: bytes | float, seconds: float = 10.0) -> Deferred[bytes]:
        """Send bytes, sleep at each number, and return all that comes until the server closes."""
        return deferToThread(talk, self.port, pieces, seconds)

    async def stop(self) -> None:
        await self.listening.stopListening()
        for channel in list(self.site.connections):
            channel.abort()
        await until(lambda: not self.site.connections)


def talk(port: int, pieces: tuple[bytes | float, ...], seconds: float) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as client:
        for piece in pieces:
            if isinstance(piece, bytes):
                try:
                    client.sendall(piece)
                except (BrokenPipeError, ConnectionResetError):
                    break
            else:
                time.sleep(piece)
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(1 << 20):
        received += data
    return received


def pause(seconds: float) -> Deferred[None]:
    waiting: Deferred[None] = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        await pause(0.005)


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    assert len(headers) == len(lines) - 1, "a header came twice"
    return int(lines[0].split()[1]), headers, body


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    pytest_twisted.blockon(Deferred.fromCoroutine(running.stop()))


def ask(
    line: str = "GET / HTTP/1.1", *headers: str, body: bytes = b"", host: str = "Host: localhost"
) -> bytes:
    lines = [line, *([host] if host else []), *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


POST = "POST /a HTTP/1.1"
REFUSED = {
    # name: (bytes, status, code)
    "Content-Length of 5,000 digits": (ask(POST, "Content-Length: " + "1" * 5000), 400, "bad_request"),
    "Content-Length of 5,000 zeros": (ask(POST, "Content-Length: " + "0" * 5000), 400, "bad_request"),
    "negative Content-Length": (ask(POST, "Content-Length: -1"), 400, "bad_request"),
    "Content-Length with a sign": (ask(POST, "Content-Length: +3", body=b"abc"), 400, "bad_request"),
    "Content-Length as a list": (ask(POST, "Content-Length: 3, 3", body=b"abc"), 400, "bad_request"),
    "empty Content-Length": (ask(POST, "Content-Length: "), 400, "bad_request"),
    "Content-Length in hexadecimal": (ask(POST, "Content-Length: 0x3", body=b"abc"), 400, "bad_request"),
    "Content-Length in other digits": (
        ask(POST, "Content-Length: " + "\u0663".encode().decode("latin-1")),
        400,
        "bad_request",
    ),
    "two Content-Lengths that differ": (
        ask(POST, "Content-Length: 3", "Content-Length: 4"),
        400,
        "bad_request",
    ),
    "two Content-Lengths that agree": (
        ask(POST, "Content-Length: 3", "Content-Length: 3"),
        400,
        "bad_request",
    ),
    "space before the colon": (ask(POST, "Content-Length : 3", body=b"abc"), 400, "bad_request"),
    "length and coding": (
        ask(POST, "Content-Length: 3", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        "bad_request",
    ),
    "coding and length": (
        ask(POST, "Transfer-Encoding: chunked", "Content-Length: 3", body=b"0\r\n\r\n"),
        400,
        "bad_request",
    ),
    "gzip, chunked": (ask(POST, "Transfer-Encoding: gzip, chunked"), 400, "bad_request"),
    "identity": (ask(POST, "Transfer-Encoding: identity"), 400, "bad_request"),
    "identity with a length": (
        ask(POST, "Transfer-Encoding: identity", "Content-Length: 3", body=b"abc"),
        400,
        "bad_request",
    ),
    "chunked twice": (
        ask(POST, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        "bad_request",
    ),
    "chunked in HTTP/1.0": (
        ask("POST /a HTTP/1.0", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        "bad_request",
    ),
    "chunk size with 0x": (
        ask(POST, "Transfer-Encoding: chunked", body=b"0x3\r\nabc\r\n"),
        400,
        "bad_request",
    ),
    "negative chunk size": (
        ask(POST, "Transfer-Encoding: chunked", body=b"-3\r\nabc\r\n"),
        400,
        "bad_request",
    ),
    "chunk longer than it says": (
        ask(POST, "Transfer-Encoding: chunked", body=b"3\r\nabcd\r\n0\r\n\r\n"),
        400,
        "bad_request",
    ),
    "folded header": (ask("GET / HTTP/1.1", "X-A: 1", " 2"), 400, "bad_request"),
    "folded first header": (b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n", 400, "bad_request"),
    "header without a colon": (ask("GET / HTTP/1.1", "nonsense"), 400, "bad_request"),
    "header without a name": (ask("GET / HTTP/1.1", ": 1"), 400, "bad_request"),
    "nul in a header": (ask("GET / HTTP/1.1", "X-A: a\0b"), 400, "bad_request"),
    "carriage return in a header": (ask("GET / HTTP/1.1", "X-A: a\rb"), 400, "bad_request"),
    "line feed in a header": (ask("GET / HTTP/1.1", "X-A: a\nb"), 400, "bad_request"),
    "request line too long": (ask("GET /" + "a" * 20_000 + " HTTP/1.1"), 414, "target_too_long"),
    "request line that never ends": (b"GET /" + b"a" * 40_000, 414, "target_too_long"),
    "header too long": (ask("GET / HTTP/1.1", "X-A: " + "a" * 20_000), 431, "headers_too_large"),
    "header that never ends": (b"GET / HTTP/1.1\r\nX-A: " + b"a" * 40_000, 431, "headers_too_large"),
    "header block too large": (
        ask("GET / HTTP/1.1", *(f"X-{n}: " + "a" * 9000 for n in range(4))),
        431,
        "headers_too_large",
    ),
    "too many headers": (ask("GET / HTTP/1.1", *(f"X-{n}: 1" for n in range(600))), 431, "headers_too_large"),
    "no Host": (ask(host=""), 400, "bad_request"),
    "two Hosts": (ask("GET / HTTP/1.1", "Host: localhost"), 400, "bad_request"),
    "empty Host": (ask(host="Host: "), 400, "bad_host"),
    "Host with an empty label": (ask(host="Host: a..b"), 400, "bad_host"),
    "Host with a long label": (ask(host="Host: " + "a" * 64 + ".example"), 400, "bad_host"),
    "Host too long": (ask(host="Host: " + ".".join(["a" * 60] * 5)), 400, "bad_host"),
    "Host not ASCII": (ask(host="Host: b\xfccher.example"), 400, "bad_host"),
    "Host with a space": (ask(host="Host: a b"), 400, "bad_host"),
    "Host with a path": (ask(host="Host: localhost/x"), 400, "bad_host"),
    "Host with a user": (ask(host="Host: me@localhost"), 400, "bad_host"),
    "Host with a strange port": (ask(host="Host: localhost:http"), 400, "bad_host"),
    "Host with too high a port": (ask(host="Host: localhost:65536"), 400, "bad_host"),
    "foreign Host": (ask(host="Host: evil.example"), 421, "foreign_host"),
    "foreign Host in HTTP/1.0": (ask("GET / HTTP/1.0", host="Host: evil.example"), 421, "foreign_host"),
    "foreign Host that begins well": (ask(host="Host: localhost.evil.example"), 421, "foreign_host"),
    "foreign absolute target": (ask("GET http://evil.example/ HTTP/1.1"), 421, "foreign_host"),
    "malformed absolute target": (ask("GET http://a..b/ HTTP/1.1"), 400, "bad_host"),
    "absolute target without Host": (ask("GET http://localhost/ HTTP/1.1", host=""), 400, "bad_request"),
    "path not UTF-8": (ask("GET /%ff HTTP/1.1"), 400, "bad_name"),
    "path not UTF-8, raw": (ask("GET /\xff HTTP/1.1"), 400, "bad_name"),
    "path of half a character": (ask("GET /a%c3 HTTP/1.1"), 400, "bad_name"),
    "method in small letters": (ask("get / HTTP/1.1"), 501, "not_implemented"),
    "method unheard of": (ask("BREW / HTTP/1.1"), 501, "not_implemented"),
    "TRACE": (ask("TRACE / HTTP/1.1"), 405, "method_not_allowed"),
    "CONNECT": (ask("CONNECT localhost:80 HTTP/1.1"), 405, "method_not_allowed"),
    "star for GET": (ask("GET * HTTP/1.1"), 400, "bad_request"),
    "target without a slash": (ask("GET a HTTP/1.1"), 400, "bad_request"),
    "target of another scheme": (ask("GET ftp://localhost/ HTTP/1.1"), 400, "bad_request"),
    "tab in the target": (ask("GET /a\tb HTTP/1.1"), 400, "bad_request"),
    "two spaces": (ask("GET  / HTTP/1.1"), 400, "bad_request"),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400, "bad_request"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version"),
    "HTTP/1.2": (ask("GET / HTTP/1.2"), 505, "http_version"),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "bad_request"),
    "foreign Origin": (ask(POST, "Origin: http://evil.example", "Content-Length: 0"), 403, "foreign_origin"),
    "Origin null": (ask(POST, "Origin: null", "Content-Length: 0"), 403, "foreign_origin"),
    "Origin of another port": (
        ask(POST, "Origin: http://localhost:8080", "Content-Length: 0"),
        403,
        "foreign_origin",
    ),
    "cross-site": (ask(POST, "Sec-Fetch-Site: cross-site", "Content-Length: 0"), 403, "foreign_origin"),
    "same-site": (ask("DELETE /a HTTP/1.1", "Sec-Fetch-Site: same-site"), 403, "foreign_origin"),
    "popTask from another site": (
        ask("GET /api/popTask/a HTTP/1.1", "Sec-Fetch-Site: cross-site"),
        403,
        "foreign_origin",
    ),
    "popTasks from another site": (
        ask("GET /api/popTasks/a?count=2 HTTP/1.1", "Origin: http://evil.example"),
        403,
        "foreign_origin",
    ),
    "popTask in escapes from another site": (
        ask("GET /%61pi/pop%54ask/a HTTP/1.1", "Sec-Fetch-Site: cross-site"),
        403,
        "foreign_origin",
    ),
    "gzip": (
        ask(POST, "Content-Encoding: gzip", "Content-Length: 3", body=b"abc"),
        415,
        "unsupported_encoding",
    ),
    "body over the limit": (ask(POST, f"Content-Length: {LIMIT + 1}"), 413, "body_too_large"),
    "body of 10**15": (ask(POST, f"Content-Length: {10**15}"), 413, "body_too_large"),
    "body over the limit, expecting 100": (
        ask(POST, f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"),
        413,
        "body_too_large",
    ),
    "body over the larger limit": (
        ask("POST /big HTTP/1.1", f"Content-Length: {100 * LIMIT + 1}"),
        413,
        "body_too_large",
    ),
    "chunks over the limit": (
        ask(POST, "Transfer-Encoding: chunked", body=b"200\r\n" + b"a" * 512 + b"\r\n1f0\r\n" + b"a" * 496),
        413,
        "body_too_large",
    ),
    "one chunk over the limit": (
        ask(POST, "Transfer-Encoding: chunked", body=b"3e9\r\n" + b"a" * 1001 + b"\r\n0\r\n\r\n"),
        413,
        "body_too_large",
    ),
}


@pytest.mark.parametrize(("sent", "status", "code"), REFUSED.values(), ids=REFUSED)
@pytest_twisted.ensureDeferred
async def test_refuses(server: Server, sent: bytes, status: int, code: str) -> None:
    # What follows must never be taken for a second request.
    answer = await server.talk(sent + (b"" if status == 413 else ask("GET /smuggled HTTP/1.1")))
    got, headers, body = split(answer)
    told = json.loads(body)
    assert (got, told["code"]) == (status, code)
    assert set(told) == {"error", "code"}
    assert told["error"].endswith(".")
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert headers["cache-control"] == "no-store"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert server.root.seen == []
    assert [request.code for request in server.logged] == [status]


ANSWERED = {
    # name: (bytes, what the resource saw)
    "GET": (ask("GET /a?b=c HTTP/1.1"), ["GET", "/a?b=c", 0]),
    "PUT with a body": (ask("PUT /a HTTP/1.1", "Content-Length: 3", body=b"abc"), ["PUT", "/a", 3]),
    "body at the limit": (ask(POST, f"Content-Length: {LIMIT}", body=b"a" * LIMIT), ["POST", "/a", LIMIT]),
    "body at the larger limit": (
        ask("POST /big HTTP/1.1", f"Content-Length: {100 * LIMIT}", body=b"a" * 100 * LIMIT),
        ["POST", "/big", 100 * LIMIT],
    ),
    "chunked": (
        ask(POST, "Transfer-Encoding: Chunked", body=b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: 1\r\n\r\n"),
        ["POST", "/a", 5],
    ),
    "Content-Length 003": (ask(POST, "Content-Length: 003", body=b"abc"), ["POST", "/a", 3]),
    "form": (
        ask(POST, "Content-Type: application/x-www-form-urlencoded", "Content-Length: 3", body=b"a=b"),
        ["POST", "/a", 3],
    ),
    "HEAD": (ask("HEAD /a HTTP/1.1"), None),
    "OPTIONS": (ask("OPTIONS /a HTTP/1.1"), ["OPTIONS", "/a", 0]),
    "HTTP/1.0 without Host": (ask("GET /a HTTP/1.0", host=""), ["GET", "/a", 0]),
    "Host with a port": (ask("GET /a HTTP/1.1", host="Host: LocalHost:3000"), ["GET", "/a", 0]),
    "Host with a last dot": (ask("GET /a HTTP/1.1", host="Host: registry.example."), ["GET", "/a", 0]),
    "Host in IPv6": (ask("GET /a HTTP/1.1", host="Host: [::1]:3000"), ["GET", "/a", 0]),
    "absolute target": (ask("GET http://localhost:3000/a?b HTTP/1.1"), ["GET", "/a?b", 0]),
    "absolute target outdoes Host": (
        ask("GET HTTP://registry.example HTTP/1.1", host="Host: evil.example"),
        ["GET", "/", 0],
    ),
    "raw UTF-8 in the target": (
        ask("GET /caf\xc3\xa9?\xc3\xa9 HTTP/1.1"),
        ["GET", "/caf%C3%A9?%C3%A9", 0],
    ),
    "escaped slash": (ask("GET /a%2Fb HTTP/1.1"), ["GET", "/a%2Fb", 0]),
    "query not UTF-8": (ask("GET /a?b=%ff HTTP/1.1"), ["GET", "/a?b=%ff", 0]),
    "Origin of our own": (
        ask(POST, "Origin: http://localhost:3000", "Content-Length: 0", host="Host: localhost:3000"),
        ["POST", "/a", 0],
    ),
    "same-origin behind a proxy": (
        ask(POST, "Origin: https://registry.example", "Sec-Fetch-Site: same-origin", "Content-Length: 0"),
        ["POST", "/a", 0],
    ),
    "typed into the browser": (ask(POST, "Sec-Fetch-Site: none", "Content-Length: 0"), ["POST", "/a", 0]),
    "reading from another site": (
        ask("GET /api/queues HTTP/1.1", "Origin: http://evil.example", "Sec-Fetch-Site: cross-site"),
        ["GET", "/api/queues", 0],
    ),
    "identity": (
        ask(POST, "Content-Encoding: identity", "Content-Length: 1", body=b"1"),
        ["POST", "/a", 1],
    ),
    "an empty line first": (b"\r\n" + ask("GET /a HTTP/1.1"), ["GET", "/a", 0]),
}


@pytest.mark.parametrize(("sent", "seen"), ANSWERED.values(), ids=ANSWERED)
@pytest_twisted.ensureDeferred
async def test_answers(server: Server, sent: bytes, seen: list[Any] | None) -> None:
    # The second request shows that the connection persists and that both agree where the first one ended.
    once = b" HTTP/1.0\r\n" in sent
    answer = await server.talk(sent + (b"" if once else ask("GET /last HTTP/1.1")))
    status, headers, rest = split(answer)
    assert status == 200
    length = 0 if seen is None else int(headers["content-length"])
    if seen is not None:
        assert json.loads(rest[:length]) == seen
    assert headers["x-request-id"]
    assert headers["server"] == "registry"
    if not once:
        status, headers, rest = split(rest[length:])
        assert (status, json.loads(rest)) == (200, ["GET", "/last", 0])
        assert headers["connection"] == "close"
    assert len(server.logged) == 2 - once


@pytest.mark.parametrize("close", ["close", "TE, close", "Close"])
@pytest_twisted.ensureDeferred
async def test_connection_close_is_honoured(server: Server, close: str) -> None:
    answer = await server.talk(ask("GET /a HTTP/1.1", f"Connection: {close}"))
    assert split(answer)[1]["connection"] == "close"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_Z", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("", False), ("\xe9", False)],
)
@pytest_twisted.ensureDeferred
async def test_request_id(server: Server, given: str, kept: bool) -> None:
    good = split(await server.talk(ask("GET /last HTTP/1.1", f"X-Request-Id: {given}")))[1]["x-request-id"]
    bad = split(await server.talk(ask("GET /%ff HTTP/1.1", f"X-Request-Id: {given}")))[1]["x-request-id"]
    foreign = ask("GET / HTTP/1.1", f"X-Request-Id: {given}", host="Host: evil.example")
    refused = split(await server.talk(foreign))[1]["x-request-id"]
    assert (good == given.lower()) is kept
    assert (refused == given.lower()) is kept
    assert len({good, bad, refused}) >= 2
    assert all(0 < len(value) <= 64 for value in (good, bad, refused))


@pytest_twisted.ensureDeferred
async def test_head_is_refused_without_a_body(server: Server) -> None:
    status, headers, body = split(await server.talk(ask("HEAD / HTTP/1.1", host="Host: evil.example")))
    assert (status, body) == (421, b"")
    assert int(headers["content-length"]) > 0


@pytest_twisted.ensureDeferred
async def test_a_resource_that_raises_is_500_in_json(server: Server) -> None:
    status, headers, body = split(await server.talk(ask("GET /fail HTTP/1.1", "Connection: close")))
    told = json.loads(body)
    assert (status, told["code"], headers["content-type"]) == (500, "internal", "application/json")
    assert headers["x-request-id"] in told["error"]
    assert headers["cache-control"] == "no-store"


@pytest_twisted.ensureDeferred
async def test_an_error_in_the_access_log_does_not_stall(server: Server) -> None:
    def fail(request: RegistryRequest) -> None:
        raise RuntimeError("on purpose")

    server.site.access_log = fail
    answer = await server.talk(ask("GET /a HTTP/1.1") + ask("GET /last HTTP/1.1"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2


# -- bodies and lingering


@pytest_twisted.ensureDeferred
async def test_expect_is_answered_when_the_body_fits(server: Server) -> None:
    answer = await server.talk(
        ask("POST /last HTTP/1.1", "Content-Length: 3", "Expect: 100-continue"), 0.05, b"abc"
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
    server = Server(Limits(linger_seconds=0.2, linger_bytes=1000, abort_seconds=0.2))
    try:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(ask(POST, f"Content-Length: {LIMIT + 1}"))
        await until(lambda: server.logged)
        assert server.site.connections
        await until(lambda: not server.site.connections, 5)
        client.close()
        long = await server.talk(ask(POST, f"Content-Length: {LIMIT + 1}", body=b"a" * 900))
        assert split(long)[0] == 413
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_lingering_ends_after_enough_bytes() -> None:
    server = Server(Limits(linger_seconds=60, linger_bytes=100_000))
    try:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(ask(POST, f"Content-Length: {10**9}"))
        await until(lambda: server.logged)
        assert server.site.connections
        client.sendall(b"a" * 200_000)
        await until(lambda: not server.site.connections, 5)
        client.close()
    finally:
        await server.stop()


# -- deadlines


QUICK = Limits(idle_seconds=0.6, head_seconds=0.3, body_seconds=0.3, body_rate=1e6, linger_seconds=0.2)
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
    server = Server(QUICK)
    try:
        answer = await server.talk(*pieces)
        if status is None:
            assert answer == b""
        else:
            assert split(answer)[0] == status
            assert answer.count(b"HTTP/1.1 ") == 1
        await until(lambda: not server.site.connections)
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
    server = Server(Limits(body_seconds=0.1, body_rate=100.0))
    try:
        answer = await server.talk(
            ask("POST /last HTTP/1.1", "Content-Length: 100", body=b"a"), 0.4, b"a" * 99
        )
        assert split(answer)[0] == 200
    finally:
        await server.stop()


@pytest_twisted.ensureDeferred
async def test_sockets_are_watched(server: Server) -> None:
    client = socket.create_connection(("127.0.0.1", server.port))
    await until(lambda: server.site.connections)
    (channel,) = server.site.connections
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
    await until(lambda: server.root.parked and len(server.site.connections) == 2)
    server.site.drain()
    assert await idle == b""
    server.root.reply(server.root.parked[0], b"{}")
    status, headers, body = split(await busy)
    assert (status, headers["connection"], body) == (200, "close", b"{}")


# -- knowing when the bytes have left


class Outcome:
    """Collects what `drained` tells, and whether the answer's bytes were in the kernel at that moment."""

    def __init__(self, server: Server) -> None:
        self.told: list[Exception | None] = []
        server.root.on_finish = lambda request: drained(request, self.told.append)


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
    import ssl

    from twisted.internet.ssl import PrivateCertificate

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
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

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
@pytest_twisted.ensureDeferred
async def test_drained_after_small_answers(server: Server, kind: str, close: bool, tmp_path: Path) -> None:
    outcome = Outcome(server)
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
    assert outcome.told == [None] * len(outcome.told)
    assert answer.count(b"HTTP/1.1 200 OK") == len(outcome.told)
    await until(lambda: not server.site.connections)
    if listening is not None:
        await listening.stopListening()


@KINDS
@pytest.mark.parametrize("close", [False, True], ids=["persistent", "close"])
@pytest_twisted.ensureDeferred
async def test_not_drained_before_the_client_reads(
    server: Server, kind: str, close: bool, tmp_path: Path
) -> None:
    server.root.size = 32 * KIB * KIB
    outcome = Outcome(server)
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
    assert outcome.told == [None] * len(outcome.told)
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
    assert [type(error) for error in outcome.told] == [ConnectionLost]
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
    assert [type(error) for error in outcome.told] == [ConnectionLost]
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
    told: list[Exception | None] = []
    drained(server.root.seen[0], told.append)
    assert [type(error) for error in told] == [ConnectionLost]


@pytest_twisted.ensureDeferred
async def test_drained_when_the_buffer_is_empty_already(server: Server) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(ask("GET /a HTTP/1.1"))
    await deferToThread(connection.recv, 65536)
    told: list[Exception | None] = []
    drained(server.root.seen[0], told.append)
    await until(lambda: told)
    assert told == [None]
    connection.close()


@pytest_twisted.ensureDeferred
async def test_an_error_in_the_drained_callback_harms_nobody(server: Server) -> None:
    def fail(error: Exception | None) -> None:
        raise RuntimeError("on purpose")

    server.root.on_finish = lambda request: drained(request, fail)
    answer = await server.talk(ask("GET /a HTTP/1.1") + ask("GET /last HTTP/1.1"))
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_http2_is_not_offered(server: Server) -> None:
    assert isinstance(server.site, RegistrySite)
    assert server.site.acceptableProtocols() == [b"http/1.1"]
    assert isinstance(server.site.buildProtocol(None), Channel)


def test_twisted_still_answers_bad_requests_where_we_look() -> None:
    """The one private name that is overridden; gone from Twisted, its own bare 400 would come back."""
    from twisted.web.http import HTTPChannel

    assert callable(HTTPChannel._respondToBadRequestAndDisconnect)

"""Raw bytes in, raw bytes out: the answers to malformed, hostile and ordinary requests."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted

from registry.http.codec import dumps
from registry.http.connection import Connection
from tests.conftest import LoggedErrors
from tests.http_server import LIMIT, POST, Server, ask, serve, split


@pytest.fixture(name="server")
def running_server() -> Iterator[Server]:
    yield from serve()


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
    "QUERY": (ask("QUERY / HTTP/1.1"), 405, "method_not_allowed"),
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
    "two Idempotency-Keys": (
        ask(POST, "Idempotency-Key: a", "Idempotency-Key: b", "Content-Length: 0"),
        400,
        "bad_option",
    ),
    "one Idempotency-Key twice": (
        ask(POST, "Idempotency-Key: a", "Idempotency-Key: a", "Content-Length: 0"),
        400,
        "bad_option",
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
    "chunk that only says to be over the limit": (
        ask(POST, "Transfer-Encoding: chunked", body=b"3e9\r\n"),
        413,
        "body_too_large",
    ),
    "chunk of 16 EiB": (
        ask(POST, "Transfer-Encoding: chunked", body=b"FFFFFFFFFFFFFFFF\r\nabc"),
        413,
        "body_too_large",
    ),
    "second chunk that only says to be over the limit": (
        ask(POST, "Transfer-Encoding: chunked", body=b"200\r\n" + b"a" * 512 + b"\r\n1e9\r\na"),
        413,
        "body_too_large",
    ),
    "chunk size that never ends": (
        ask(POST, "Transfer-Encoding: chunked", body=b"F" * 2000),
        400,
        "bad_request",
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
    assert list(told) == ["error", "code"]
    assert told["error"].endswith(".")
    assert body == dumps(told)  # spaced as all other answers are
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert headers["content-length"] == str(len(body))
    assert headers["cache-control"] == "no-store"
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert server.root.seen == []
    assert [line[2] for line in server.logged] == [status]


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
    "chunks up to the limit": (
        ask(POST, "Transfer-Encoding: chunked", body=b"3e7\r\n" + b"a" * 999 + b"\r\n1\r\na\r\n0\r\n\r\n"),
        ["POST", "/a", LIMIT],
    ),
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
    answer = await server.talk(sent + (b"" if once else ask("GET /last HTTP/1.1", "Connection: close")))
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
    good = split(await server.talk(ask("GET /last HTTP/1.1", "Connection: close", f"X-Request-Id: {given}")))[
        1
    ]["x-request-id"]
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
async def test_a_resource_that_raises_is_500_in_json(server: Server, logged_errors: LoggedErrors) -> None:
    status, headers, body = split(await server.talk(ask("GET /fail HTTP/1.1", "Connection: close")))
    told = json.loads(body)
    assert (status, told["code"], headers["content-type"]) == (
        500,
        "internal_error",
        "application/json; charset=utf-8",
    )
    assert told["incident"] in told["error"]
    assert headers["cache-control"] == "no-store"
    assert len(logged_errors.flush(RuntimeError)) == 1


def test_http2_is_not_offered(server: Server) -> None:
    assert server.factory.acceptableProtocols() == [b"http/1.1"]
    assert isinstance(server.factory.buildProtocol(None), Connection)


@pytest.mark.parametrize(
    ("version", "given", "kept"),
    [
        ("1.0", [], False),
        ("1.0", ["Connection: keep-alive"], True),
        ("1.0", ["Connection: Keep-Alive, X"], True),
        ("1.0", ["Connection: keep-alive, close"], False),
        ("1.1", [], True),
        ("1.1", ["Connection: keep-alive"], True),
        ("1.1", ["Connection: close"], False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_connection_stays_open_if_its_client_asks_for_it(
    server: Server, version: str, given: list[str], kept: bool
) -> None:
    first = ask(f"GET /a HTTP/{version}", *given)
    answer = await server.talk(first + ask("GET /last HTTP/1.1", "Connection: close"))
    _, headers, _ = split(answer)
    assert answer.count(b"HTTP/1.1 200 OK") == 1 + kept
    assert headers.get("connection") == ("close" if not kept else "keep-alive" if given else None)
    assert headers.get("keep-alive") == ("timeout=75" if kept and given else None)


@pytest_twisted.ensureDeferred
async def test_a_foreign_host_is_quoted(server: Server) -> None:
    _, _, body = split(await server.talk(ask(host="Host: Workers.Example:3000")))
    assert json.loads(body)["error"] == (
        "The host name 'workers.example' is not allowed; see the setting ALLOWED_HOSTS."
    )


@pytest_twisted.ensureDeferred
async def test_no_browser_may_guess_the_type_of_an_answer(server: Server) -> None:
    for asked in (ask("GET /a HTTP/1.1", "Connection: close"), ask(host="Host: evil.example")):
        assert split(await server.talk(asked))[1]["x-content-type-options"] == "nosniff"

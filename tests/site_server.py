"""A site over real sockets with a trivial resource, and a client that speaks in raw bytes."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from registry.http.site import Limits, RegistryRequest, make_site

reactor: Any = _reactor
LIMIT = 1000
KIB = 1024
POST = "POST /a HTTP/1.1"


class Echo(Resource):
    """Answers with what it was asked; /park answers when told, /fail raises, /large is ``size`` bytes."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[RegistryRequest] = []
        self.parked: list[RegistryRequest] = []
        self.on_start: Callable[[RegistryRequest], None] = lambda request: None
        self.on_finish: Callable[[RegistryRequest], None] = lambda request: None
        self.size = 16 * KIB * KIB  # more than the kernel's buffers hold

    def render(self, request: RegistryRequest) -> Any:
        self.seen.append(request)
        self.on_start(request)
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
        assert request.content is not None
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
    pieces = []
    while data := client.recv(1 << 20):
        pieces.append(data)
    return b"".join(pieces)


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


def serve() -> Iterator[Server]:
    # Lingering longer than any client waits: it ends because our side of the connection does.
    running = Server(Limits(linger_seconds=30))
    yield running
    pytest_twisted.blockon(Deferred.fromCoroutine(running.stop()))


def ask(
    line: str = "GET / HTTP/1.1", *headers: str, body: bytes = b"", host: str = "Host: localhost"
) -> bytes:
    lines = [line, *([host] if host else []), *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

"""Connections over real sockets with a trivial verb, and a client that speaks in raw bytes."""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from registry.http.codec import Answer
from registry.http.limits import Limits
from registry.http.parser import Found, Head, Heads
from registry.http.request import Request
from registry.http.server import Server as HttpServer

reactor: Any = _reactor
LIMIT = 1000
KIB = 1024
POST = "POST /a HTTP/1.1"


class Asked(NamedTuple):
    """A request as a verb sees it."""

    head: Head
    body: bytes
    answer: Deferred[Answer]


class Echo:
    """Answers with what it was asked; /park answers when told, /slow too, /fail raises, /large is ``size`` bytes.

    Only /park ends with its client.
    """

    def __init__(self) -> None:
        self.seen: list[Asked] = []
        self.parked: list[Asked] = []
        self.outcomes: list[str] = []
        self.size = 16 * KIB * KIB  # more than the kernel's buffers hold

    def find(self, head: Head) -> Found:
        body = "batch" if head.path.startswith(b"/big") else "task"
        verb = partial(self.verb, head)
        return Found(verb, parks=head.path == b"/park", remembers=head.path == b"/a", body=body)

    def verb(self, head: Head, request: Request) -> Any:
        asked = Asked(head, request.body, Deferred(lambda _: None))
        self.seen.append(asked)
        if head.path in (b"/park", b"/slow"):
            self.parked.append(asked)
            return asked.answer
        if head.path == b"/fail":
            raise RuntimeError("on purpose")
        if head.path == b"/large":
            return taking(b"x" * self.size)
        target = head.path + (b"?" + head.query if head.query else b"")
        return taking(json.dumps([head.method.decode(), target.decode(), len(request.body)]).encode())

    def reply(self, asked: Asked, body: bytes) -> None:
        """Answer what was parked."""
        asked.answer.callback(taking(body))

    def delivered(self, answer: Answer) -> None:
        self.outcomes.append("left")

    def lost(self, answer: Answer) -> None:
        self.outcomes.append("lost")


def taking(body: bytes) -> Answer:
    """An answer that hands over something, so that its end is told."""
    return Answer(200, body, (), (None,))  # type: ignore[arg-type]


class Server:
    def __init__(self, limits: Limits | None = None, **more: Any) -> None:
        self.root = Echo()
        self.logged: list[tuple[Any, ...]] = []
        self.factory = HttpServer(
            Heads(
                self.root.find,
                lambda name: name in (b"localhost", b"127.0.0.1", b"::1", b"registry.example"),
                lambda body: 100 * LIMIT if body == "batch" else LIMIT,
            ),
            delivered=self.root.delivered,
            lost=self.root.lost,
            reactor=reactor,
            access=self,  # type: ignore[arg-type]
            limits=limits,
            **more,
        )
        self.listening = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.port = self.listening.getHost().port

    def served(self, *line: Any) -> None:
        """An access line: client, line, status, bytes, agents, when it began."""
        self.logged.append(line)

    def talk(self, *pieces: bytes | float, seconds: float = 10.0) -> Deferred[bytes]:
        """Send bytes, sleep at each number, and return all that comes until the server closes."""
        return deferToThread(talk, self.port, pieces, seconds)

    async def stop(self) -> None:
        await self.listening.stopListening()
        for channel in list(self.factory.connections):
            channel.transport.abortConnection()
        await until(lambda: not self.factory.connections)


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
    running = Server(Limits(linger_seconds=30, tick_seconds=0.1))
    yield running
    pytest_twisted.blockon(Deferred.fromCoroutine(running.stop()))


def ask(
    line: str = "GET / HTTP/1.1", *headers: str, body: bytes = b"", host: str = "Host: localhost"
) -> bytes:
    lines = [line, *([host] if host else []), *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

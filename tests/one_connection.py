"""Connections over a transport in memory, with a verb that answers with what it was asked."""

# mypy: allow-untyped-calls, disable-error-code="comparison-overlap,unreachable"

from __future__ import annotations

import json
import re
import socket
from functools import partial
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.tcp import Server as SocketTransport
from twisted.python.failure import Failure

from registry.http.access import Access
from registry.http.codec import Answer
from registry.http.parser import Found, Head, Heads
from registry.http.request import Request
from registry.http.server import Server

LIMIT = 200
TOLD_HEADERS = (b"content-type", b"idempotency-key", b"prefer", b"traceparent", b"x-odd")


class Tasks:
    """Answers each request with what it was; while ``later`` is a list, when told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.later: list[Deferred[Answer]] | None = None
        self.cancelled = 0
        self.delivered_: list[Answer] = []
        self.lost_: list[Answer] = []

    def find(self, head: Head) -> Found:
        parks = head.path.startswith(b"/api/popTask")
        verb = partial(self.verb, head)
        return Found(verb, parks=parks, remembers=head.path.endswith(b"/q"))

    def verb(self, head: Head, request: Request) -> Any:
        word = head.path.split(b"/")[2].decode() if head.path.startswith(b"/api/") else head.path.decode()
        told = {
            n.decode(): v.decode("latin-1") for n in TOLD_HEADERS if (v := head.fields.get(n)) is not None
        }
        self.asked.append({"popTask": "pop", "pushTask": "push"}.get(word, word))
        parts = [head.method.decode(), head.path.decode(), repr(head.query), repr(request.body), told]
        answer = Answer(200, json.dumps(parts).encode(), ((b"Task-Id", b"x"),))
        if self.later is None:
            return succeed(answer)
        waiting: Deferred[Answer] = Deferred(lambda _: setattr(self, "cancelled", self.cancelled + 1))
        self.later.append(waiting)
        return waiting

    def delivered(self, answer: Answer) -> None:
        self.delivered_.append(answer)

    def lost(self, answer: Answer) -> None:
        self.lost_.append(answer)


class Socket:
    """Takes ``room`` bytes, None for all of them."""

    family = socket.AF_INET

    def __init__(self, out: bytearray) -> None:
        self.out = out
        self.room: int | None = None

    def send(self, data: bytes) -> int:
        if self.room == 0:
            raise BlockingIOError
        taken = data if self.room is None else data[: self.room]
        if self.room is not None:
            self.room -= len(taken)
        self.out += taken
        return len(taken)

    def setsockopt(self, *args: object) -> None:
        pass


class Transport(SocketTransport):  # type: ignore[misc]
    """A socket's transport without a socket; what was written is in ``out``."""

    def __init__(self, protocol: Any) -> None:
        self.out = bytearray()
        self.buffered = bytearray()
        self.socket = Socket(self.out)  # type: ignore[assignment]
        self.client = ("192.0.2.1", 7)
        self.connected = 1
        self.protocol = protocol
        self.producer: Any = None
        self.reading = True
        self.ended = ""
        protocol.makeConnection(self)

    def write(self, data: bytes) -> None:
        self.buffered += data
        if self.socket.room is None:  # type: ignore[attr-defined]
            self.flush()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def flush(self) -> None:
        """The kernel takes all, as when the socket has become writable."""
        self.socket.room = None  # type: ignore[attr-defined]
        self.out += self.buffered
        self.buffered.clear()
        if self.producer is not None and not self.streaming:
            self.producer.resumeProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        self.producer = producer
        self.streaming = streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def startWriting(self) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getHandle(self) -> Any:
        return self.socket

    def getPeer(self) -> Any:
        return IPv4Address("TCP", "192.0.2.1", 7)

    def getHost(self) -> Any:
        return IPv4Address("TCP", "127.0.0.1", 3000)

    def loseConnection(self) -> None:
        self.ended = self.ended or "closed"

    def loseWriteConnection(self) -> None:
        self.ended = self.ended or "half closed"

    def abortConnection(self) -> None:
        self.ended = "aborted"

    def hang_up(self) -> None:
        """The other end is gone."""
        self.connected = 0
        self.protocol.connectionLost(Failure(ConnectionDone()))


class World:
    """A server, and a clock that stands still."""

    def __init__(self, **more: Any) -> None:
        self.clock = Clock()
        self.verbs = Tasks()
        self.lines: list[str] = []
        self.access = Access(lambda *lines: self.lines.extend(lines), self.clock.callLater)
        heads = Heads(self.verbs.find, lambda name: name == b"localhost", lambda body: LIMIT)
        self.server = Server(
            heads,
            delivered=self.verbs.delivered,
            lost=self.verbs.lost,
            reactor=self.clock,
            access=self.access,
            **more,
        )

    def connect(self) -> Transport:
        return Transport(self.server.buildProtocol(IPv4Address("TCP", "192.0.2.1", 7)))

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)


def ask(line: str, *headers: str, body: bytes = b"", host: str = "Host: localhost") -> bytes:
    if body and not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        headers += (f"Content-Length: {len(body)}",)
    lines = [f"{line} HTTP/1.1", *([host] if host else []), *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


PUSH = ask("PUT /api/pushTask/q", body=b'{"a":1}')
POP = ask("GET /api/popTask/q")


def answers(out: bytes) -> list[tuple[bytes, dict[bytes, bytes], bytes]]:
    """All answers in these bytes: status line, headers without what is never the same, body."""
    found = []
    while out:
        head, mark, rest = out.partition(b"\r\n\r\n")
        assert mark, out
        first, *lines = head.split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b": ")
            assert name.lower() not in headers, (name, head)
            headers[name.lower()] = value
        if first == b"HTTP/1.1 100 Continue":
            found.append((first, headers, b""))
            out = rest
            continue
        length = int(headers[b"content-length"])
        assert b"x-request-id" in headers
        for name in (b"date", b"x-request-id"):
            value = headers.pop(name, b"")
            assert name != b"x-request-id" or re.fullmatch(rb"[\w.-]{1,64}", value), head
        assert len(rest) >= length, (head, rest)
        found.append((first, headers, without_numbers(rest[:length])))
        out = rest[length:]
    return found


def without_numbers(body: bytes) -> bytes:
    """A body without what is never the same."""
    return re.sub(rb"incident \w+|[0-9a-f]{12}", b"", body)

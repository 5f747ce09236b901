"""The front door and the site behind it over a transport in memory, with verbs that tell what they were asked."""

# mypy: allow-untyped-calls, disable-error-code="comparison-overlap,unreachable"

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.python.failure import Failure

from registry.errors import BadName
from registry.http.access import Access
from registry.http.api import Api
from registry.http.door import FrontDoor
from registry.http.site import make_site
from registry.http.verbs import ROUTES
from registry.http.wire import Answer, name_from
from registry.queue.names import check_name

LIMIT = 200
TOLD_HEADERS = (b"content-type", b"idempotency-key", b"prefer", b"traceparent", b"x-odd")


class Verbs:
    """Answers each verb with what it was asked; ``later`` lets it wait, as a poll does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.later: list[Deferred[Answer]] | None = None
        self.cancelled = 0
        self.delivered_: list[Answer] = []
        self.lost_: list[Answer] = []

    def __getattr__(self, verb: str) -> Callable[..., Deferred[Answer]]:
        if verb not in {route.verb for route in ROUTES.values()}:
            raise AttributeError(verb)

        def call(*args: Any) -> Deferred[Answer]:
            *segments, query, header, body = args
            name = check_name(name_from(segments[0]))
            if name == b"boom":
                raise BadName("That name is refused here.")
            told = {n.decode(): v.decode("latin-1") for n in TOLD_HEADERS if (v := header(n)) is not None}
            parts = [verb, repr(name), *map(repr, segments[1:]), repr(query), repr(body)]
            self.asked.append(verb)
            answer = Answer(200, json.dumps([*parts, told]).encode(), ((b"Task-Id", b"x"),))
            if self.later is None:
                return succeed(answer)
            waiting: Deferred[Answer] = Deferred(lambda _: setattr(self, "cancelled", self.cancelled + 1))
            self.later.append(waiting)
            return waiting

        return call

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


class Transport(Server):  # type: ignore[misc]
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
    """A door, the site behind it, and a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.verbs: Any = Verbs()
        self.lines: list[str] = []
        self.access = Access(lambda *lines: self.lines.extend(lines), self.clock.callLater)
        stopped: Any = lambda: False  # noqa: E731
        api = Api(self.verbs, None, lambda: succeed(""), stopped, list)  # type: ignore[arg-type]
        self.site = make_site(
            api.resource(),
            reactor=self.clock,  # type: ignore[arg-type]
            max_body=LIMIT,
            host_allowed=lambda name: name == b"localhost",
            access_log=self.access.request,
        )
        verbs: Any = self.verbs
        self.door = FrontDoor(verbs, self.site, reactor=self.clock, access=self.access)

    def at_door(self) -> Transport:
        return Transport(self.door.buildProtocol(None))

    def at_site(self) -> Transport:
        return Transport(self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 7)))

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)

    def passed_on(self, transport: Transport) -> bool:
        return transport.protocol not in self.door.connections


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
        found.append((first, headers, re.sub(rb"incident \w+|[0-9a-f]{12}", b"", rest[:length])))
        out = rest[length:]
    return found

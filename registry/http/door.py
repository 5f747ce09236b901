"""The front door: the busiest requests, answered on the bare transport; all others go to the site behind it.

The door reads only what is certainly fine: a short list of paths, methods in capitals, headers of plain ASCII, each at
most once, a Content-Length or no body. Whatever else comes, a connection is handed over to the site together with the
bytes read so far, and stays there. The site has all the rules, so there is one place that says no to a request, and what
a request means is said in `registry.http.verbs` for both.

    READY -- a whole request --> BUSY -- its answer --> READY, or WRITING while the kernel takes no more bytes
      |  75 s idle, 10 s head,    no deadline of ours           20 s
      |  30 s + size/rate body
      +-- anything unusual --> PASSED

An answer is given to the kernel at once where it takes it. That saves two system calls and a turn of the reactor for
each, and tells in the same moment that the bytes have left, which ends the hand-over of a task.
"""

from __future__ import annotations

import itertools
import os
from email.utils import formatdate
from http import HTTPStatus
from socket import AF_UNIX
from time import monotonic, time
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolNegotiationFactory, IPullProducer
from twisted.internet.protocol import Factory
from twisted.internet.tcp import Server
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from registry.http.access import CUT_OFF, Access
from registry.http.channel import keep_alive
from registry.http.head import Asks, may_become_ours
from registry.http.reading import Reading
from registry.http.site import RegistrySite
from registry.http.verbs import Verbs
from registry.http.wire import JSON, NO_SNIFF, NO_STORE, Answer, come_back, failure_answer

READY, BUSY, WRITING, PASSED, OVER = range(5)

# Of how many bytes are needed: that is not known yet, but some have come.
HEAD_BEGUN = -1
# Bytes that wait behind a request under way; above it nothing is read.
MAX_BEHIND = 65_536


@implementer(IProtocolNegotiationFactory)
class FrontDoor(Factory):  # type: ignore[misc]
    """Makes the connections. ``connections``: those that are not the site's yet.

    ``host_allowed``, limits and the longest body are the site's. ``access`` writes a line for each answer.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self, verbs: Verbs, site: RegistrySite, *, reactor: Any, access: Access | None = None
    ) -> None:
        self.site = site
        self.asks = Asks(verbs, site)
        self.delivered = verbs.delivered
        self.lost = verbs.lost
        self.limits = site.limits
        self.access = access
        self.connections: set[Door] = set()
        self.keep_alive = b"%b: %b\r\n" % site.limits.keep_alive
        self.draining = False
        self.now = 0  # s, counted by ourselves: a clock that is set must not end every connection
        self._ready: list[tuple[Door, bytes]] = []
        self._gathers = False
        self._starts: dict[int, bytes] = {}
        first = int.from_bytes(os.urandom(3), "big")
        self._ids = map((os.urandom(4).hex().encode() + b"%08x").__mod__, itertools.count(first))
        self._reactor = reactor
        self.reading = Reading(reactor) if Reading.possible(reactor) else None
        self._tick_call: Any = None

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return Door(self)

    def acceptableProtocols(self) -> list[bytes]:
        """For TLS clients that offer a choice (ALPN), as nearly all do: with no answer they are refused."""
        return [b"http/1.1"]

    def drain(self) -> None:
        """From now on every answer closes its connection. Idle ones stay open for `close_idle`."""
        self.draining = True

    @property
    def under_way(self) -> bool:
        """Whether a request is being read or answered."""
        return any(not door.idle for door in self.connections)

    def close_idle(self) -> None:
        """End the connections without a request."""
        for door in list(self.connections):
            if door.idle:
                door.close()

    # What all connections share.

    def gather(self, begins: bool) -> None:
        """Answers that become ready between ``gather(True)`` and ``gather(False)`` leave together, at its end.

        A client that is woken by each of fifty answers, one after the other, costs more than the answers do.
        """
        self._gathers = begins
        if not begins and self._ready:
            self.send()

    def send(self) -> None:
        """Give the answers that are ready to the kernel, and then see to what that means for each."""
        ready, self._ready = self._ready, []
        counts = []
        for door, data in ready:
            count = -1
            if door.state == BUSY:
                try:
                    count = door.transport.socket.send(data)
                except OSError:
                    # Full, or broken: the transport finds out which.
                    count = 0
            counts.append(count)
        for (door, data), count in zip(ready, counts, strict=True):
            if door.state == BUSY and count >= 0:
                try:
                    door.sent(data, count)
                except Exception:
                    self._log.failure("The front door could not go on")
                    door.transport.abortConnection()

    def start(self, status: int) -> bytes:
        """The beginning of an answer with this status, up to the value of X-Request-Id."""
        start = (
            b"HTTP/1.1 %d %b\r\n%b: %b\r\n%b: %b\r\n%b: %b\r\nServer: registry\r\nDate: %b\r\nX-Request-Id: "
            % (
                status,
                HTTPStatus(status).phrase.encode(),
                *JSON,
                *NO_STORE,
                *NO_SNIFF,
                formatdate(time(), usegmt=True).encode(),
            )
        )
        self._starts[status] = start
        return start

    def opened(self, door: Door) -> None:
        self.connections.add(door)
        if self._tick_call is None:
            self._starts.clear()
            self._tick_call = self._reactor.callLater(1, self._tick)

    def closed(self, door: Door) -> None:
        self.connections.discard(door)
        if not self.connections and self._tick_call is not None:
            self._tick_call.cancel()
            self._tick_call = None

    def _tick(self) -> None:
        """Once a second: the time in answers moves on, and whoever is late is told."""
        self._tick_call = self._reactor.callLater(1, self._tick)
        self._starts.clear()
        self.now = now = self.now + 1
        late = [door for door in self.connections if door.state != BUSY and door.due < now]
        for door in late:
            door.late()


@implementer(IProtocol, IPullProducer)
class Door:
    """One connection. Its slots are few, because ten thousand of them may wait for a task."""

    __slots__ = (
        "_answer",
        "_ask",
        "_began",
        "_behind",
        "_call",
        "_channel",
        "_door",
        "_need",
        "_paused",
        "_serving",
        "due",
        "fd",
        "state",
        "transport",
    )

    def __init__(self, door: FrontDoor) -> None:
        self._door = door
        self.transport: Any = None
        self.state = READY
        self.fd = -1  # its descriptor, while the front door reads for it
        self.due = 0.0  # the tick after which it is late
        self._behind: bytes | bytearray = b""  # read, and not understood or not its turn yet
        self._need = (
            0  # so many bytes make the request whole that _behind begins with; 0 or HEAD_BEGUN: not known
        )
        self._paused = False
        self._serving = False
        self._channel: Any = None  # the site's, once the connection was handed over
        self._call: Deferred[Any] | None = (
            None  # what the request under way waits for, when it may be cancelled
        )
        self._answer: Answer | None = None  # what is on its way to the kernel
        self._ask: Any = None
        self._began = 0.0

    # Coming and going

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self.connectionMade()

    def connectionMade(self) -> None:
        transport, door = self.transport, self._door
        if not isinstance(transport, Server):
            # Beneath TLS nobody can tell when bytes have left but the channel, which is the slow road anyway.
            self._pass_on()
            return
        if transport.socket.family != AF_UNIX:
            keep_alive(transport)
            transport.setTcpNoDelay(True)
        door.opened(self)
        self.due = door.now + door.limits.idle_seconds
        self._begin_reading()

    def _begin_reading(self) -> None:
        reading = self._door.reading
        if reading is None:
            self.transport.resumeProducing()
        else:
            self.fd = reading.add(self)

    def _end_reading(self) -> None:
        reading = self._door.reading
        if reading is None:
            self.transport.pauseProducing()
        elif self.fd >= 0:
            reading.remove(self.fd, self)
            self.fd = -1

    def connectionLost(self, reason: Failure) -> None:
        state, self.state = self.state, OVER
        if state == BUSY and self._door.access is not None:
            self._log(CUT_OFF, 0)
        call, self._call = self._call, None
        channel, self._channel = self._channel, None
        answer, self._answer = self._answer, None
        self._behind = b""
        if self.fd >= 0:
            self._end_reading()
        self._door.closed(self)
        self.transport = None
        if channel is not None:
            channel.connectionLost(reason)
        elif state == BUSY and call is not None:
            call.cancel()
        elif answer is not None and answer.taken:
            self._door.lost(answer)

    def close(self) -> None:
        """End the connection in an orderly way; by force when that takes long."""
        self.state = OVER
        self._behind = b""
        self.due = self._door.now + self._door.limits.abort_seconds
        self._end_reading()
        self.transport.loseConnection()

    @property
    def idle(self) -> bool:
        """Not a byte of a request has come."""
        return self.state == READY and not self._behind

    def late(self) -> None:
        """The deadline of what it is about has passed."""
        if self.idle:
            self.close()
        elif self.state == READY:
            # It knows how to say so, and how to end a connection with bytes still coming.
            self._pass_on()
            self._channel.timeoutConnection()
        else:
            self.transport.abortConnection()

    def _pass_on(self, data: bytes = b"") -> None:
        """From here on the connection is the site's, and so are these bytes."""
        transport = self.transport
        self.state = PASSED
        self._door.closed(self)
        if self.fd >= 0:
            self._end_reading()
            transport.startReading()
        data, self._behind = bytes(self._behind) + data, b""
        self._channel = channel = self._door.site.buildProtocol(transport.getPeer())  # type: ignore[no-untyped-call]
        channel.makeConnection(transport)
        if data:
            channel.dataReceived(data)

    # Reading

    def dataReceived(self, data: bytes) -> None:
        if self.state == READY:
            if self._behind:
                self._behind += data
                if len(self._behind) < self._need:
                    return
                data, self._behind = bytes(self._behind), b""
            self._serve(data)
        elif self.state == PASSED:
            self._channel.dataReceived(data)
        elif self.state != OVER:
            self._behind = self._behind + data
            if len(self._behind) > MAX_BEHIND and not self._paused:
                self._paused = True
                if self._call is not None and self.fd >= 0:
                    # A poll may wait for long, and must not be given a task when nobody is there any more.
                    assert self._door.reading is not None
                    self._door.reading.watch_end(self.fd, self)
                else:
                    self._end_reading()

    def _serve(self, data: bytes) -> None:
        """Begin what these bytes ask for; what is behind the first request waits for its answer."""
        asks = self._door.asks
        self._serving = True
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end == 3:
                if may_become_ours(data):
                    self._wait_for_more(data, 0)
                else:
                    self._pass_on(data)
                break
            head = data[:end]
            ask = asks.known.get(head) or asks.understand(head)
            if ask is None:
                self._pass_on(data)
                break
            size = ask.head.length
            if size:
                whole = end + size
                if len(data) < whole:
                    self._wait_for_more(data, whole)
                    break
                body = data[end:whole]
                end = whole
            else:
                body = b""
            self._behind = data[end:]
            self._ask = ask
            self._began = monotonic()
            self.state = BUSY
            try:
                called = ask.call(*ask.args, body)
            except Exception:
                self._fail(Failure())
            else:
                if ask.parks:
                    self._call = called
                called.addCallbacks(self._write, self._fail)
            if self.state != READY or not self._behind:
                break
            data, self._behind = bytes(self._behind), b""
        self._serving = False

    def _wait_for_more(self, data: bytes, need: int) -> None:
        """The request is not whole yet. Its deadline runs from its first byte, that of its body from the end of its head."""
        limits, now = self._door.limits, self._door.now
        if need:
            self.due = now + limits.body_seconds + need / limits.body_rate
        elif not self._need:
            # Its first bytes; those that follow get no time of their own.
            self.due = now + limits.head_seconds
        self._need = need or HEAD_BEGUN
        self._behind = bytearray(data)

    # Answering

    def _fail(self, failure: Failure) -> None:
        if self.state == BUSY:
            self._write(failure_answer(failure))

    def _write(self, answer: Answer) -> None:
        """Give the answer to the kernel, whole if it takes it."""
        door = self._door
        if self.state != BUSY:
            if answer.taken:
                door.lost(answer)
            return
        self._call = None
        body, ask = answer.body, self._ask
        more = door.keep_alive if ask.head.keeps and not door.draining else b""
        for pair in answer.headers:
            more += b"%b: %b\r\n" % pair
        if ask.head.close or door.draining:
            more += b"Connection: close\r\n"
            if door.draining and answer.status == 202:
                more += b"Retry-After: %d\r\n" % come_back()
        request_id = ask.head.request_id or next(door._ids)
        data = b"%b%b\r\nContent-Length: %d\r\n%b\r\n%b" % (
            door._starts.get(answer.status) or door.start(answer.status),
            request_id,
            len(body),
            more,
            body,
        )
        self._answer = answer
        door._ready.append((self, data))
        if not door._gathers:
            door.send()

    def sent(self, data: bytes, count: int) -> None:
        """The kernel has taken ``count`` bytes of the answer."""
        door, answer, transport = self._door, self._answer, self.transport
        assert answer is not None
        if door.access is not None:
            self._log(answer.status, len(answer.body))
        if count == len(data):
            self._answer = None
            if answer.taken:
                door.delivered(answer)
            self._next()
        else:
            # `resumeProducing` looks for an answer, and registering calls it at once.
            self._answer = None
            self.state = WRITING
            self.due = door.now + door.limits.drain_seconds
            transport.write(data[count:])
            transport.registerProducer(self, False)
            self._answer = answer

    def _log(self, status: int, size: int) -> None:
        access, client = self._door.access, self.transport.client
        assert access is not None
        access.served(
            client[0] if client.__class__ is tuple else "-",
            self._ask.line,
            status,
            size,
            self._ask.head.logged,
            self._began,
        )

    def resumeProducing(self) -> None:
        """The transport's buffer is empty. Registering calls it once too early: there is no answer to tell of yet."""
        answer = self._answer
        if answer is None:
            return
        self._answer = None
        self.transport.unregisterProducer()
        if answer.taken:
            self._door.delivered(answer)
        self._next()

    def stopProducing(self) -> None:
        """The connection is ending; `connectionLost` tells."""

    def _next(self) -> None:
        """The answer has left: the next request's turn."""
        door = self._door
        if self._ask.head.close or door.draining:
            self.close()
            return
        self.state = READY
        self._need = 0
        self.due = door.now + door.limits.idle_seconds
        if self._paused:
            self._paused = False
            self._end_reading()
            self._begin_reading()
        if self._behind and not self._serving:
            data, self._behind = bytes(self._behind), b""
            self._serve(data)

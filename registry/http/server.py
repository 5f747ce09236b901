"""What all connections share: limits, budgets, deadlines, batches of answers, and the drain at shutdown."""

from __future__ import annotations

import itertools
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from time import monotonic, time
from types import TracebackType
from typing import Any

from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from registry.http.access import Access
from registry.http.codec import COMMON, Answer, retry_after_seconds
from registry.http.connection import BUSY, GOODBYE, Connection
from registry.http.epoll import EpollReader
from registry.http.limits import SECONDS_PER_TURN, Limits
from registry.http.parser import Head, Heads
from registry.http.validation import Refusal
from registry.log import escape
from registry.model.tokens import mask_tokens

# When tokens change, this many connections are checked at a time.
CHECKED_A_TURN = 500


@implementer(IProtocolNegotiationFactory)
class Server(Factory):  # type: ignore[misc]
    """Makes the connections. ``connections``: the open ones; ``by_address``: how many each address has.

    ``access`` writes a line for each answer. ``delivered(answer)`` is called when an answer that hands over tasks is in the kernel,
    ``lost(answer)`` when it never will be.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        heads: Heads,
        *,
        delivered: Callable[[Answer], None],
        lost: Callable[[Answer], None],
        reactor: Any,
        access: Access | None = None,
        limits: Limits | None = None,
        max_body_bytes: int = 256 << 20,
    ) -> None:
        self.heads = heads
        self.delivered = delivered
        self.lost = lost
        self.limits = limits or Limits()
        # For clients that ask for keep-alive: it lets them close a connection before we do.
        self.keep_alive = b"Connection: keep-alive\r\nKeep-Alive: timeout=%d\r\n" % self.limits.idle_seconds
        self.access = access
        self.max_body_bytes = max_body_bytes
        self.connections: set[Connection] = set()
        self.by_address: Counter[str] = Counter()
        self.draining = False
        self.refused: Counter[str] = Counter()  # answers of 400 and above, by the code of the error
        self.refused_at: dict[str, float] = {}  # when the last of them was, by code, s
        # Answers to requests whose path was not looked at, by status.
        self.unrouted: dict[int, int] = defaultdict(int)
        self.now = 0.0  # s, counted in ticks: a change of the system clock must not end every connection
        # The tick after which a connection that is idle from now on is late.
        self.idle_end = self.limits.idle_seconds
        self.body_bytes = 0  # of the current requests' bodies, over all connections
        self.unsent_bytes = 0  # of the answers not yet in the kernel, over all connections
        self.ready: list[tuple[Connection, bytes]] = []
        self.is_corked = False
        self.starts: dict[int, bytes] = {}
        first = int.from_bytes(os.urandom(3), "big")
        self.ids = map((os.urandom(4).hex().encode() + b"%08x").__mod__, itertools.count(first))
        self.later = reactor.callLater
        self.epoll_reader = EpollReader(reactor) if EpollReader.possible(reactor) else None
        self._tick_call: Any = None
        self._postponed: deque[Connection] = deque()
        self._turn_call: Any = None

    def buildProtocol(self, addr: IAddress | None) -> Any:
        address = getattr(addr, "host", None) or "-"
        return Connection(self, address, bool(self.heads.proxies) and self.heads.proxies.trusts(address))

    def acceptableProtocols(self) -> list[bytes]:
        """The protocols for ALPN. Nearly all TLS clients use it, and without an answer they are refused."""
        return [b"http/1.1"]

    # Shutdown

    def drain(self) -> None:
        """From now on every answer closes its connection. Idle ones stay open for `close_idle`."""
        self.draining = True

    @property
    def under_way(self) -> bool:
        """Whether a request is being read or answered."""
        return any(not connection.idle and connection.state < GOODBYE for connection in self.connections)

    def close_idle(self) -> None:
        """Close the connections that have no request."""
        for connection in list(self.connections):
            if connection.idle:
                connection.close()

    def tokens_changed(self) -> None:
        """Forget the verdicts on heads, and refuse requests under way that may no longer come in."""
        self.heads.forget()
        self._check_again(list(self.connections))

    def _check_again(self, connections: list[Connection]) -> None:
        """Check these connections again, some at a time: ten thousand polls may wait."""
        for connection in connections[:CHECKED_A_TURN]:
            try:
                connection.check_again()
            except Exception:
                self._cut(connection)
        if left := connections[CHECKED_A_TURN:]:
            self.later(0, self._check_again, left)

    # Batches of answers

    def corked(self) -> Cork:
        """Answers that become ready inside ``with server.corked():`` are sent together when it ends.

        To wake a client for each of fifty answers in turn costs more than the answers themselves.
        """
        return Cork(self)

    def send(self) -> None:
        """Write the ready answers to their sockets, then update each connection."""
        ready, self.ready = self.ready, []
        sent = []
        for connection, data in ready:
            if connection.state == BUSY:
                count = 0
                if connection.is_plain:
                    try:
                        count = connection.transport.socket.send(data)
                    except OSError:
                        # The buffer is full, or the connection broken: the transport finds out which.
                        pass
                sent.append((connection, data, count))
        for connection, data, count in sent:
            if connection.state == BUSY:
                try:
                    connection.sent(data, count)
                except Exception:
                    self._cut(connection)

    def _cut(self, connection: Connection) -> None:
        """Log an unexpected error of this connection, and cut it."""
        self._log.failure("a connection failed")
        if connection.transport is not None:
            connection.transport.abortConnection()

    def status_start(self, status: int) -> bytes:
        """The beginning of an answer in JSON with this status, up to the value of X-Request-Id."""
        start = self.starts[status] = self._start(status, COMMON)
        return start

    def _start(self, status: int, common: Iterable[tuple[bytes, bytes]]) -> bytes:
        return b"HTTP/1.1 %d %b\r\n%bServer: registry\r\nDate: %b\r\nX-Request-Id: " % (
            status,
            HTTPStatus(status).phrase.encode(),
            b"".join(b"%b: %b\r\n" % pair for pair in common),
            formatdate(time(), usegmt=True).encode(),
        )

    def encode_answer(self, answer: Answer, head: Head) -> bytes:
        """The bytes of an answer to the request with this head."""
        body, more, status = answer.body, head.fields.cors, answer.status
        head.found.counts[status] += 1
        if status >= 400:
            self.refused[answer.code] += 1
            self.refused_at[answer.code] = monotonic()
        for pair in answer.headers:
            more += b"%b: %b\r\n" % pair
        if head.close or self.draining:
            more += b"Connection: close\r\n"
            if self.draining and status == 202 and b"Retry-After: " not in more:
                more += b"Retry-After: %d\r\n" % retry_after_seconds()
        elif head.keep_alive:
            more += self.keep_alive
        if answer.media:
            return self._encode_file(answer, head, more)
        return b"%b%b\r\nContent-Length: %d\r\n%b\r\n%b" % (
            self.starts.get(status) or self.status_start(status),
            head.request_id or next(self.ids),
            len(body),
            more,
            b"" if head.bodiless else body,
        )

    def _encode_file(self, answer: Answer, head: Head, more: bytes) -> bytes:
        """The bytes of an answer that is not JSON; a 304 has no length, because it would be that of the file."""
        body, cache = answer.body, (b"Cache-Control", answer.cache)
        size = b"" if answer.status == 304 else b"Content-Length: %d\r\n" % len(body)
        return b"%b%b\r\n%b%b\r\n%b" % (
            self._start(answer.status, ((b"Content-Type", answer.media), cache, *COMMON[2:])),
            head.request_id or next(self.ids),
            size,
            more,
            b"" if head.bodiless else body,
        )

    def encode_stream(
        self, media: bytes, headers: Iterable[tuple[bytes, bytes]], head: Head, chunked: bool
    ) -> bytes:
        """The head of an answer that goes on until its connection ends."""
        head.found.counts[200] += 1
        more = head.fields.cors + b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return b"%b%b\r\n%b%bConnection: close\r\n\r\n" % (
            self._start(200, ((b"Content-Type", media), *COMMON[1:])),
            head.request_id or next(self.ids),
            more,
            b"Transfer-Encoding: chunked\r\n" if chunked else b"",
        )

    def encode_refusal(
        self, connection: Connection, refusal: Refusal, head: Head | None, line: bytes
    ) -> bytes:
        """The bytes of a refusal. Also writes its access line."""
        body = refusal.body()
        bodiless = line.startswith(b"HEAD ") or (head is not None and head.bodiless)
        more = b"".join(b"%b: %b\r\n" % pair for pair in refusal.headers)
        address = connection.peer
        self.refused[refusal.code] += 1
        counts = self.unrouted
        if head is not None:
            if head.found.verb is not None:
                counts = head.found.counts
            more += head.fields.cors
            if connection.is_trusted:
                address = head.fields.client or address
        counts[refusal.status] += 1
        if self.access is not None:
            shown = head.line if head else mask_tokens(escape(line)) or "-"
            logged = head.fields.logged if head else '"-" "-"'
            size, name = 0 if bodiless else len(body), head.access.name if head else ""
            self.access.served(address, shown, refusal.status, size, logged, monotonic(), name)
        return b"%b%b\r\nContent-Length: %d\r\n%bConnection: close\r\n\r\n%b" % (
            self.starts.get(refusal.status) or self.status_start(refusal.status),
            (head and head.request_id) or next(self.ids),
            len(body),
            more,
            b"" if bodiless else body,
        )

    # Turns and time

    def postpone(self, connection: Connection) -> None:
        """Pause this connection; it goes on when the others have had their turn."""
        self._postponed.append(connection)
        if self._turn_call is None:
            self._turn_call = self.later(0, self._turn)

    def _turn(self) -> None:
        self._turn_call = None
        until = monotonic() + SECONDS_PER_TURN
        for _ in range(len(self._postponed)):
            connection = self._postponed.popleft()
            try:
                connection.go_on()
            except Exception:
                self._cut(connection)
            if monotonic() > until:
                break
        if self._postponed and self._turn_call is None:
            self._turn_call = self.later(0, self._turn)

    def opened(self, connection: Connection) -> None:
        self.connections.add(connection)
        self.by_address[connection.peer] += 1
        if self._tick_call is None:
            self.starts.clear()
            self._tick_call = self.later(self.limits.tick_seconds, self._tick)

    def closed(self, connection: Connection) -> None:
        self.connections.discard(connection)
        left = self.by_address[connection.peer] - 1
        if left:
            self.by_address[connection.peer] = left
        else:
            del self.by_address[connection.peer]
        if not self.connections and self._tick_call is not None:
            self._tick_call.cancel()
            self._tick_call = None

    def _tick(self) -> None:
        """Called once a second: renew the date in answers, and handle connections past their deadline."""
        self._tick_call = self.later(self.limits.tick_seconds, self._tick)
        self.starts.clear()
        self.now = now = self.now + self.limits.tick_seconds
        self.idle_end = now + self.limits.idle_seconds
        late = [c for c in self.connections if c.state != BUSY and c.due < now]
        for connection in late:
            connection.late()


class Cork:
    """See `Server.corked`."""

    __slots__ = ("_server",)

    def __init__(self, server: Server) -> None:
        self._server = server

    def __enter__(self) -> None:
        self._server.is_corked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.is_corked = False
        if self._server.ready:
            self._server.send()

"""One HTTP connection, made safe: refusals in JSON, absolute deadlines, limits, and when bytes have left.

The life of a request on it:

    idle -- first bytes --> head -- empty line --> body -- last byte --> busy -- finish() --> idle
     75 s                   10 s                   30 s + size/rate      no deadline of ours

A refusal ends the connection from any state but busy: the answer is written, our side is closed, what the
client still sends is read and thrown away (16 MiB or 5 s at most), so that no reset eats the answer.

twisted.web offers no public way to answer a bad request otherwise than with its own bare 400;
``_respondToBadRequestAndDisconnect`` is the one private name overridden here, and every refusal it is
behind is pinned by tests. ``_transferDecoder`` is the one private name read, for the size that a chunk says
to have.
"""

# mypy: allow-untyped-calls
# twisted.web's HTTPChannel is mostly untyped.

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPullProducer, ITCPTransport
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import ProtocolWrapper
from twisted.web.http import HTTPChannel
from zope.interface import implementer

from registry.http.access import CUT_OFF
from registry.http.screening import (
    Refusal,
    bad_request,
    sane_request_id,
    screen_encoding,
    screen_host,
    screen_key,
    screen_length,
    screen_request_line,
    screen_site,
)

if TYPE_CHECKING:
    from registry.http.site import RegistrySite

IDLE, HEAD, BODY, BUSY, REFUSED = range(5)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one connection; seconds, bytes, bytes per second."""

    idle_seconds: float = 75.0  # longer than the 60 s after which load balancers let a connection go
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    body_rate: float = 65536.0
    linger_seconds: float = 5.0
    linger_bytes: int = 16 * 1024 * 1024
    drain_seconds: int = 20
    abort_seconds: float = 15.0
    goodbye_seconds: float = 1.0

    @property
    def keep_alive(self) -> tuple[bytes, bytes]:
        """The header that tells a client for how long an idle connection stays open."""
        return b"Keep-Alive", b"timeout=%d" % self.idle_seconds


@implementer(IPullProducer)
class Drain:
    """A pull producer that has nothing to give: it is asked for more only when the buffer is empty."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.armed = False

    def resumeProducing(self) -> None:
        # Registering asks once at once, whatever the buffer holds; that call means nothing.
        if self.armed:
            self.channel.buffer_is_empty()

    def stopProducing(self) -> None:
        # The transport is gone or going; connectionLost tells those who wait.
        self.armed = False


class Channel(HTTPChannel):  # type: ignore[misc]
    """See the module; built by `registry.http.site.RegistrySite`, which gives it ``site`` and ``limits``."""

    MAX_LENGTH = 16384  # of the request line, and of each header
    totalHeadersSize = 32768
    maxHeaders = 500

    site: RegistrySite

    def __init__(self, limits: Limits) -> None:
        super().__init__()
        self.limits = limits
        self.phase = IDLE
        self._armed = IDLE  # the phase whose deadline is running
        self._reading = "request line"
        self._head_bytes = 0
        self._head_lines = 0
        self._authority: bytes | None = None
        self._line = (b"-", b"-", b"HTTP/1.1")
        self._discarded = 0
        self._ending: Any = None  # the delayed call that ends a connection for good
        self._closing = False
        self.lost = False
        self._held = False  # the transport asked us to pause
        self._drain: Drain | None = None
        self._waiting: list[Callable[[Exception | None], None]] = []

    # -- coming and going

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.connections.add(self)
        raw = self._raw_transport()
        if ITCPTransport.providedBy(raw):
            keep_alive(raw)

    def connectionLost(self, reason: Any) -> None:  # type: ignore[override]
        self.lost = True
        if self.phase == BUSY and self.requests and not self.requests[-1].startedWriting:
            self.requests[-1].code = CUT_OFF
            self.site.log(self.requests[-1])
        self.site.connections.discard(self)
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        super().connectionLost(reason)
        self._tell(ConnectionLost("The connection was lost before the answer had left."))

    def loseConnection(self) -> None:
        self._closing = True
        super().loseConnection()
        drain = self._drain
        if drain is not None and not self.lost and self._raw_transport().producer is not drain:
            # The inherited method has unregistered what it took for the channel itself.
            self._listen_for_drain()

    def close(self) -> None:
        """End the connection in an orderly way, and by force when the client will not have it."""
        if not self.lost and self._ending is None:
            self._ending = self.callLater(self.limits.abort_seconds, self.abort)
        self.loseConnection()

    def abort(self) -> None:
        """End the connection at once; what is unsent is lost."""
        if self._ending is not None and self._ending.active():
            self._ending.cancel()
        self._ending = None
        transport: Any = self.transport
        if not self.lost and transport is not None:
            transport.abortConnection()

    def close_beneath(self) -> None:
        """End the connection beneath TLS, in order: an answer that the kernel holds still gets to the client."""
        if not self.lost:
            self._raw_transport().loseConnection()

    def _consumer(self) -> Any:
        return self.transport

    def _raw_transport(self) -> Any:
        """The socket's own transport, beneath TLS where there is TLS."""
        transport: Any = self.transport
        while isinstance(transport, ProtocolWrapper):
            transport = transport.transport
        return transport

    # -- reading

    def dataReceived(self, data: bytes) -> None:
        # Not the inherited method, which moves the deadline at every byte.
        if self.phase == IDLE:
            self.phase = HEAD
        LineReceiver.dataReceived(self, data)
        phase = self.phase
        if phase != self._armed and phase in (HEAD, BODY):
            self._armed = phase
            self.setTimeout(self.limits.head_seconds if phase == HEAD else self._body_seconds())

    def _body_seconds(self) -> float:
        size = self.requests[-1].body_limit if self.length is None else self.length
        return self.limits.body_seconds + size / self.limits.body_rate

    def lineReceived(self, line: bytes) -> None:
        self._head_bytes += len(line) + 2
        self._head_lines += 1
        try:
            if self._head_lines == 1:
                if not line:
                    # Some clients send one empty line too many after a body; the inherited method knows. It
                    # begins no request, so it starts no deadline.
                    self._head_lines = 0
                    self.phase = IDLE
                else:
                    self.phase = HEAD
                    self._line = (b"-", line[:200], b"HTTP/1.1")
                    line, self._authority = screen_request_line(line)
                    self._line = tuple(line.split(b" "))  # type: ignore[assignment]
                    self._reading = "first header"
            elif line[:1] in (b" ", b"\t"):
                raise bad_request("A header goes on over two lines, which HTTP has given up.")
            if self._head_bytes > self.totalHeadersSize or self._head_lines > self.maxHeaders + 2:
                raise Refusal(431, "headers_too_large", "The headers are too large, or too many.")
            super().lineReceived(line)
        except Refusal as refusal:
            self.refuse(refusal)

    def lineLengthExceeded(self, line: bytes) -> None:
        if self._head_lines == 0:
            self._line = (b"-", line[:200], b"HTTP/1.1")
            self.refuse(Refusal(414, "target_too_long", f"The request line is over {self.MAX_LENGTH} bytes."))
        else:
            self.refuse(Refusal(431, "headers_too_large", f"A header is over {self.MAX_LENGTH} bytes."))

    def headerReceived(self, line: bytes) -> bool:
        if self.phase == REFUSED:
            return False
        name, _, value = line.partition(b":")
        self._reading = f"header {name[:40].decode('ascii', 'replace')!r}"
        # int() refuses more than 4,300 digits with an error that nobody catches.
        if len(value) > 18 and name.lower() == b"content-length":
            self.refuse(bad_request("The Content-Length is not a sensible number."))
            return False
        return bool(super().headerReceived(line))

    def allHeadersReceived(self) -> None:
        if self.phase == REFUSED:
            return
        request = self.requests[-1]
        try:
            self._screen(request)
        except Refusal as refusal:
            self.refuse(refusal)
            return
        self.phase = BODY
        self._reading = "body"
        super().allHeadersReceived()

    def _screen(self, request: Any) -> None:
        method, target, version = self._line
        get = request.requestHeaders.getRawHeaders
        hosts = get(b"host", ())
        if self._authority is not None:
            # An absolute target outdoes the Host header, which must be there all the same.
            screen_host(hosts, version)
            hosts = [self._authority]
            request.requestHeaders.setRawHeaders(b"host", hosts)
        name = screen_host(hosts, version)
        screen_length(get(b"content-length", ()), get(b"transfer-encoding", ()), version)
        if name is not None and not self.site.host_allowed(name):
            # It has passed as a host name: nothing in it needs an escape.
            sentence = f"The name {name.decode()!r} is not one of the daemon's own; see ALLOWED_HOSTS."
            raise Refusal(421, "foreign_host", sentence)
        pages = get(b"sec-fetch-site", ()), get(b"origin", ()), hosts, get(b"user-agent", ())
        screen_site(method, target, *pages)
        screen_encoding(get(b"content-encoding", ()))
        screen_key(get(b"idempotency-key", ()))
        request.body_limit = self.site.limit_of(target.partition(b"?")[0])
        if self.length is not None and self.length > request.body_limit:
            raise too_large(request.body_limit)

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        tokens = b",".join(request.requestHeaders.getRawHeaders(b"connection", ())).lower().split(b",")
        tokens = [token.strip() for token in tokens]
        keeps = b"keep-alive" in tokens
        close = b"close" in tokens or (version != b"HTTP/1.1" and not keeps)
        headers = request.responseHeaders
        if close:
            headers.setRawHeaders(b"Connection", [b"close"])
        elif keeps:
            name, value = self.limits.keep_alive
            headers.setRawHeaders(name, [value])
            if version != b"HTTP/1.1":
                headers.setRawHeaders(b"Connection", [b"keep-alive"])
        return not close

    def rawDataReceived(self, data: bytes) -> None:
        if self.phase != REFUSED:
            super().rawDataReceived(data)
            self._weigh_chunk()
            return
        self._discarded += len(data)
        if self._discarded > self.limits.linger_bytes:
            self.close()

    def _weigh_chunk(self) -> None:
        """Refuse a chunk that says to be too large before its bytes come, which may be never."""
        decoder: Any = self._transferDecoder
        if self.phase == BODY and getattr(decoder, "state", "") == "BODY":
            request = self.requests[-1]
            if request.received + decoder.length > request.body_limit:
                self.refuse(too_large(request.body_limit))

    def allContentReceived(self) -> None:
        if self.phase == REFUSED:
            return
        self.phase = BUSY
        self._head_bytes = self._head_lines = 0
        self._reading = "request line"
        self._line = (b"-", b"-", b"HTTP/1.1")
        if self._armed != IDLE:
            # The inherited method keeps the timeout it finds for the time after the answer.
            self._armed = IDLE
            self.setTimeout(self.limits.idle_seconds)
        super().allContentReceived()

    def requestDone(self, request: Any) -> None:
        self.phase = IDLE
        super().requestDone(request)

    # -- refusing

    def _respondToBadRequestAndDisconnect(self) -> None:
        self.refuse(bad_request(f"The request is not well-formed HTTP: {self._reading}."))

    def timeoutConnection(self) -> None:
        if self.phase in (HEAD, BODY):
            self.refuse(Refusal(408, "request_timeout", "The request did not arrive in time."))
        else:
            self.close()

    def refuse(self, refusal: Refusal) -> None:
        """Answer with ``refusal`` and end the connection; only the first refusal of a request counts."""
        if self.phase in (REFUSED, BUSY) or self._closing or self.lost:
            return
        self.phase = REFUSED
        self.setTimeout(None)
        self.setRawMode()
        transport: Any = self.transport
        request: Any = self.requests.pop() if self.requests else self.site.requestFactory(self)
        given = request.requestHeaders.getRawHeaders(b"x-request-id", ())
        request.request_id = sane_request_id(given) or new_request_id()
        request.method, request.uri, request.clientproto = self._line
        request.path = request.uri.partition(b"?")[0]
        with_body = request.method != b"HEAD"
        request.code = refusal.status
        request.sentLength = len(refusal.body()) if with_body else 0
        transport.write(refusal.answer(request.request_id, with_body))
        raw = self._raw_transport()
        if raw is transport and hasattr(raw, "loseWriteConnection"):
            # Not over TLS, where the end of our side would have to be said in TLS as well.
            raw.loseWriteConnection()
        self._ending = self.callLater(self.limits.linger_seconds, self._stop_lingering)
        self.site.log(request)

    def _stop_lingering(self) -> None:
        self._ending = None
        self.close()

    # -- knowing when bytes have left

    def pauseProducing(self) -> None:
        self._held = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self._held = False
        super().resumeProducing()

    def when_drained(
        self, callback: Callable[[Exception | None], None], error: Exception | None = None
    ) -> None:
        """Call ``callback(None)`` once all that was written so far is in the kernel, else with the error.

        An ``error`` that is known already is told at once, as is a lost connection.
        """
        if error is not None:
            self.site.guarded(callback, error)
        elif self.lost or self._raw_transport() is self.transport:
            self._wait(callback)
        else:
            # TLS gathers small writes until the next turn of the reactor, then hands them down.
            self.callLater(0, lambda: self._wait(callback))

    def _wait(self, callback: Callable[[Exception | None], None]) -> None:
        if self.lost:
            self.site.guarded(callback, ConnectionLost("The connection is lost."))
            return
        self._waiting.append(callback)
        if len(self._waiting) == 1:
            self.site.watch(self)
            self._listen_for_drain()
        # Else the buffer is empty when the bytes of both answers have left.

    def _listen_for_drain(self) -> None:
        # The channel is the transport's producer all its life; it makes room for a moment.
        if not self._closing:
            self._consumer().unregisterProducer()
        raw = self._raw_transport()
        self._drain = Drain(self)
        raw.registerProducer(self._drain, False)
        self._drain.armed = True
        start_writing = getattr(raw, "startWriting", None)
        if start_writing is not None:
            # When the buffer is empty already, this makes the reactor find that out.
            start_writing()

    def buffer_is_empty(self) -> None:
        """The transport below has nothing left to send."""
        self._drain = None
        raw = self._raw_transport()
        raw.unregisterProducer()
        if not self._closing and not self.lost and self.transport is not None:
            self._consumer().registerProducer(self, True)
            if self._held:
                self.resumeProducing()
        self._tell(None)

    def _tell(self, error: Exception | None) -> None:
        if self._waiting:
            self.site.unwatch(self)
            waiting, self._waiting = self._waiting, []
            for callback in waiting:
                self.site.guarded(callback, error)


def too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body is over the limit of {limit} bytes.")


def new_request_id() -> bytes:
    return secrets.token_hex(8).encode("ascii")


def keep_alive(transport: Any) -> None:
    """Notice within a minute that a silent peer is gone, within half of one that it takes no bytes."""
    handle = transport.getHandle()
    if handle.family not in (socket.AF_INET, socket.AF_INET6):
        return  # Twisted's unix sockets say that they provide ITCPTransport as well
    transport.setTcpKeepAlive(True)
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 30_000),
    ):
        if hasattr(socket, name):
            handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

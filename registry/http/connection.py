"""One HTTP connection: TCP, a unix socket or TLS. Every byte of every client is read here.

state     | what happens                  | next state      | deadline
----------|-------------------------------|-----------------|-----------------------------------------
IDLE      | the first bytes of a request  | HEAD            | 75 s, then the connection is closed
HEAD      | the empty line behind headers | BODY or BUSY    | 10 s from its first byte, then 408
BODY      | the last byte of the body     | BUSY            | 30 s + size / 64 KiB a second, then 408
BUSY      | the verb has an answer        | IDLE or WRITING | the verb's own
WRITING   | the kernel has all of it      | IDLE            | 20 s, then the connection is cut
STREAMING | it ends: see stream.py        | CLOSING         | 20 s for each piece, then it is cut
IDLE … BUSY | a refusal                   | LINGERING       | 5 s, or 16 MiB that are read and dropped
any       | the connection is to end      | CLOSING         | 15 s, then the connection is cut
any (TLS) | the connection is to end      | GOODBYE         | 1 s for the client's goodbye, then CLOSING
any       | the connection is lost        | LOST            |

A request that arrives in one piece goes from IDLE to BUSY at once. The next request begins when every byte of the previous
answer is in the kernel. An answer is written to the socket directly if possible: that saves two system calls and a turn of
the reactor, and shows at once that the bytes have left, which ends the hand-over of a task.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from twisted.internet.tcp import Server as SocketTransport
from twisted.python.failure import Failure

from registry.http.access import CUT_OFF
from registry.http.body import Chunks, Counted
from registry.http.codec import Answer, failure_answer
from registry.http.drain import Drain
from registry.http.limits import (
    MAX_PIPELINED,
    MAX_REQUESTS_PER_TURN,
    MAX_UNSENT_BYTES,
    SECONDS_PER_TURN,
    too_many_answers,
    too_many_bodies,
)
from registry.http.parser import Head, PartialHead
from registry.http.request import Request
from registry.http.stream import Stream
from registry.http.validation import Refusal
from registry.sockets import beneath_tls, send_now, set_tcp_options

if TYPE_CHECKING:
    from registry.http.server import Server

IDLE, HEAD, BODY, BUSY, WRITING, STREAMING, LINGERING, GOODBYE, CLOSING, LOST = range(10)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection:
    """See the module's docstring. It has few slots, because ten thousand connections may wait for a task."""

    # fmt: off
    __slots__ = (
        "_answer", "_at", "_began", "_buffer", "_call", "_head", "_incoming", "_paused", "_reserved", "_server", "_serving",
        "_skipped", "_unsent", "address", "due", "fd", "is_plain", "is_trusted", "peer", "state", "transport",
    )
    # fmt: on

    def __init__(self, server: Server, peer: str = "-", is_trusted: bool = False) -> None:
        self._server = server
        self.peer = self.address = peer  # the client's address is another one behind a trusted proxy
        self.is_trusted = is_trusted
        self.transport: Any = None
        self.state = IDLE
        self.fd = -1  # its descriptor, while the server's epoll reads for it
        self.due = 0.0  # the tick after which it is late
        self.is_plain = False  # no TLS: the kernel takes our bytes as they are
        self._buffer = b""  # bytes read but not yet processed
        self._at = 0  # how many bytes of the buffer are already processed
        self._skipped = 0  # bytes of an empty line before a request; while LINGERING, bytes thrown away
        self._incoming: PartialHead | Counted | Chunks | None = None  # a head or a body that comes in pieces
        self._reserved = 0  # bytes of the server's budget for bodies
        self._unsent = 0  # bytes of the server's budget for answers
        self._paused = self._serving = False
        self._call: Any = None  # what a parked request waits for; cancelled when its client leaves
        self._head: Any = None  # the `Head` of the current or last request
        self._answer: Any = None  # the `Answer` that is being written to the kernel
        self._began = 0.0

    # Opening and closing

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        server = self._server
        self.is_plain = isinstance(transport, SocketTransport)
        # A silent client is gone after 60 s, one that takes no bytes after 30 s.
        set_tcp_options(transport, idle=30, interval=10, count=3, unread_ms=30_000)
        if self.is_plain:
            transport.logstr = transport.repstr = "HTTP"  # instead of two texts for each connection
        server.opened(self)
        self.due = server.idle_end
        self._resume_reading()

    def _resume_reading(self) -> None:
        epoll_reader = self._server.epoll_reader
        if self.is_plain and epoll_reader is not None:
            self.fd = epoll_reader.add(self)
        else:
            self.transport.resumeProducing()

    def _stop_reading(self) -> None:
        if self.fd >= 0:
            assert self._server.epoll_reader is not None
            self._server.epoll_reader.remove(self.fd, self)
            self.fd = -1
        else:
            self.transport.pauseProducing()

    def connectionLost(self, reason: Failure) -> None:
        state, self.state = self.state, LOST
        call, self._call = self._call, None
        answer, self._answer = self._answer, None
        if self.fd >= 0:
            self._stop_reading()
        self._forget()
        self._server.closed(self)
        self.transport = None
        access, head = self._server.access, self._head
        if access is not None and head is not None and state in (BODY, BUSY):
            logged, name = head.fields.logged, head.access.name
            access.served(self.address, head.line, CUT_OFF, 0, logged, self._began, name)
        if call is not None:
            call.cancel()
        if answer is not None and answer.deliveries:
            self._server.lost(answer)

    def _forget(self) -> None:
        """Give back every buffer and every byte of the budgets."""
        self._buffer, self._at = b"", 0
        self._incoming = None
        self._release()

    def _release(self) -> None:
        server = self._server
        if self._reserved:
            server.body_bytes -= self._reserved
            self._reserved = 0
        if self._unsent:
            server.unsent_bytes -= self._unsent
            self._unsent = 0

    def close(self) -> None:
        """Close the connection gracefully; it is cut if that takes too long."""
        if self.state >= GOODBYE:
            return
        server = self._server
        self._forget()
        self._stop_reading()
        if self.is_plain:
            self.state = CLOSING
            self.due = server.now + server.limits.abort_seconds
        else:
            self.state = GOODBYE
            self.due = server.now + server.limits.goodbye_seconds
            self.transport.resumeProducing()
        self.transport.loseConnection()

    @property
    def idle(self) -> bool:
        """Whether no byte of a request has arrived."""
        return self.state == IDLE and not self._buffer

    def late(self) -> None:
        """The deadline of its state has passed."""
        if self.state == IDLE or self.state == LINGERING:
            self.close()
        elif self.state in (HEAD, BODY):
            self._refuse(Refusal(408, "request_timeout", "The request did not arrive in time."))
        elif self.state == GOODBYE:
            # Not every client says goodbye in TLS. Close TCP gracefully: an answer still in the kernel gets through.
            self.state = CLOSING
            self.due = self._server.now + self._server.limits.abort_seconds
            beneath_tls(self.transport).loseConnection()
        else:
            self.transport.abortConnection()

    # Reading

    def dataReceived(self, data: bytes) -> None:
        state = self.state
        if state == IDLE and not self._buffer:
            self._serve(data)
        elif state == HEAD:
            self._continue_head(data)
        elif state == BODY:
            self._continue_body(data)
        elif state == LINGERING:
            self._skipped += len(data)
            if self._skipped > self._server.limits.linger_bytes:
                self.close()
        elif state < GOODBYE:
            # BUSY, WRITING, STREAMING, or IDLE while others have their turn.
            self._buffer = self._buffer[self._at :] + data if self._buffer else data
            self._at = 0
            if len(self._buffer) > MAX_PIPELINED and not self._paused:
                self._pause()

    def _pause(self) -> None:
        self._paused = True
        self._stop_reading()
        epoll_reader = self._server.epoll_reader
        if self._call is not None and epoll_reader is not None:
            # A poll may wait for long, and must not get a task after its client has left.
            self.fd = epoll_reader.watch_end(beneath_tls(self.transport), self)

    def _unpause(self) -> None:
        self._paused = False
        if self.fd >= 0:
            self._stop_reading()
        self._resume_reading()

    def _serve(self, data: bytes, at: int = 0) -> None:
        """Process the requests in ``data``, from offset ``at`` on; bytes after a request wait until it is answered."""
        server = self._server
        remembered = server.heads.remembered
        self._serving = True
        count, began = 0, 0.0
        while True:
            end = data.find(b"\r\n\r\n", at) + 4
            head = remembered.get(data[at:end])
            if head is None:
                if end == 3 or data.startswith(b"\r\n", at):
                    self._begin_head(data[at:])
                    break
                try:
                    head = server.heads.parse(data[at:end], self.peer, self.is_trusted, not self.is_plain)
                except Refusal as refusal:
                    self._refuse(refusal, data[at:end])
                    break
            if self.is_trusted:
                self.address = head.fields.client or self.peer
            if size := head.fields.length:
                whole = end + size
                if len(data) < whole:
                    self._begin_body(head, data[end:])
                    break
                body = data[end:whole]
                end = whole
            elif head.fields.chunked:
                self._begin_body(head, data[end:])
                break
            else:
                body = b""
            if end < len(data):
                self._buffer, self._at = data, end
            self._begin(head, body)
            if self.state != IDLE or not self._buffer:
                break
            count += 1
            if count == 1:
                began = self._began
            elif count >= MAX_REQUESTS_PER_TURN or monotonic() - began > SECONDS_PER_TURN:
                server.postpone(self)
                break
            data, at = self._take_buffer()
        self._serving = False

    def _take_buffer(self) -> tuple[bytes, int]:
        data, at = self._buffer, self._at
        self._buffer, self._at = b"", 0
        return data, at

    def go_on(self) -> None:
        """Process the buffer: it is this connection's turn again."""
        if self.state == IDLE and self._buffer:
            self._serve(*self._take_buffer())
            if self._paused and self.state < GOODBYE:
                if len(self._buffer) - self._at <= MAX_PIPELINED:
                    self._unpause()
                else:
                    # The current request may now be a poll, whose client must be watched.
                    self._pause()

    def _begin_head(self, data: bytes) -> None:
        """Start to read an incomplete head. Its deadline runs from its first byte; later bytes do not extend it."""
        # Some clients send an extra empty line after a body; it does not begin a request or start a deadline.
        start = 2 if data.startswith(b"\r\n") and not self._skipped else 0
        self._skipped += start
        if start == len(data):
            return
        if data.startswith(b"\r\n", start):
            self._refuse(Refusal(400, "bad_request", "The request begins with empty lines."))
            return
        self.state = HEAD
        self.due = self._server.now + self._server.limits.head_seconds
        self._incoming = PartialHead()
        self._continue_head(data[start:])

    def _continue_head(self, data: bytes) -> None:
        head = self._incoming
        assert isinstance(head, PartialHead)
        if head.data == b"\r":
            # An empty line may arrive in two pieces.
            self._incoming, self.state = None, IDLE
            self._serve(b"\r" + data)
            return
        try:
            is_whole = head.feed(data)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if is_whole:
            self._incoming = None
            self.state = IDLE
            self._serve(bytes(head.data))

    def _begin_body(self, head: Head, data: bytes) -> None:
        limits, fields = self._server.limits, head.fields
        self.state = BODY
        self._head = head
        self._began = monotonic()
        self._buffer = b""
        self.due = self._server.now + limits.body_seconds + (fields.length or head.limit) / limits.body_rate
        if head.expects and not data:
            send_now(self.transport, CONTINUE)
        self._incoming = Chunks(head.limit) if fields.chunked else Counted(fields.length)
        self._continue_body(data)

    def _continue_body(self, data: bytes) -> None:
        server, head, body = self._server, self._head, self._incoming
        assert isinstance(body, Counted | Chunks)
        self._reserved += len(data)
        server.body_bytes += len(data)
        try:
            if server.body_bytes > server.max_body_bytes:
                raise too_many_bodies()
            rest = body.feed(data)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if rest is None:
            return
        self._incoming = None
        self._buffer = rest
        # The next request begins after this one is answered, but not from within its answer.
        serving, self._serving = self._serving, True
        self._begin(head, body.whole())
        self._serving = serving
        if self._call is not None:
            # A poll does not keep its body.
            self._release()
        if self.state == IDLE and self._buffer:
            server.postpone(self)

    def _begin(self, head: Head, body: bytes) -> None:
        self.state = BUSY
        self._head = head
        self._began = monotonic()
        found, access = head.found, head.access
        access.is_used = True
        try:
            if self._server.unsent_bytes > MAX_UNSENT_BYTES:
                raise too_many_answers()
            # fmt: off
            called = found.verb(Request(
                head.name, head.segments, head.query, head.options, head.fields.get, body, access, self.address,
                head.request_id, head.is_secure,
            ))
            # fmt: on
            if called.__class__ is not Answer:
                if found.parks:
                    self._call = called
                    if found.streams:
                        self.state = STREAMING
                        self._call = Stream(self, self._server, head, called)
                        self._call.begin()
                        return
                called.addCallbacks(self._write, self._fail)
                return
        except Exception:
            self._fail(Failure())
            return
        self._write(called)

    def check_again(self) -> None:
        """Tokens have changed. Refuse the request that arrives or waits, unless it may still come in."""
        head, call = self._head, self._call
        if self.state == STREAMING:
            call.check_again()
        elif head is not None and (self.state == BODY or call is not None):
            try:
                self._server.heads.admit_again(head)
            except Refusal as refusal:
                self._call = None
                self._refuse(refusal)
                if call is not None:
                    call.cancel()

    # Answering

    def _fail(self, failure: Failure) -> None:
        if self.state == BUSY:
            self._write(failure_answer(failure))

    def _refuse(self, refusal: Refusal, head: bytes = b"") -> None:
        """Answer and end the connection. Bytes that still arrive are read and dropped: a TCP reset could destroy the answer."""
        server = self._server
        if isinstance(self._incoming, PartialHead):
            head = bytes(self._incoming.data)
        parsed = refusal.head or (self._head if self.state == BODY else None)
        self._forget()
        self._began = monotonic()
        line = head.partition(b"\r\n")[0][:200]
        data = server.encode_refusal(self, refusal, parsed, line)
        self.state = LINGERING
        self._skipped = 0
        self.due = server.now + server.limits.linger_seconds
        self.transport.write(data)
        if self.is_plain:
            # Not over TLS, where our side would have to be closed in TLS as well.
            self.transport.loseWriteConnection()

    def _write(self, answer: Answer) -> None:
        """Queue the answer for the kernel, and send it now unless the server is corked."""
        server = self._server
        if self.state != BUSY:
            if answer.deliveries:
                server.lost(answer)
            return
        self._call = None
        try:
            data = server.encode_answer(answer, self._head)
        except Exception:
            # The verb returned something that is not an answer.
            self._fail(Failure())
            if getattr(answer, "deliveries", ()):
                server.lost(answer)
            return
        self._answer = answer
        server.ready.append((self, data))
        if not server.is_corked:
            server.send()

    def sent(self, data: bytes, count: int) -> None:
        """The kernel has taken ``count`` bytes of the answer."""
        server, head, answer = self._server, self._head, self._answer
        if server.access is not None:
            size, name = 0 if head.bodiless else len(answer.body), head.access.name
            server.access.served(
                self.address, head.line, answer.status, size, head.fields.logged, self._began, name
            )
        if count == len(data):
            self._answer = None
            if answer.deliveries:
                server.delivered(answer)
            self._next()
            return
        self.state = WRITING
        self.due = server.now + server.limits.drain_seconds
        self._unsent = len(data) - count
        server.unsent_bytes += self._unsent
        self.transport.write(data[count:])
        Drain(self.transport, self.is_plain, server.later, self._drained)

    def _drained(self) -> None:
        """The kernel has taken the rest of the answer."""
        answer, self._answer = self._answer, None
        if self.state != WRITING or answer is None:
            return
        if answer.deliveries:
            self._server.delivered(answer)
        self._next()

    def _next(self) -> None:
        """The answer has left: go on with the next request."""
        server = self._server
        if self._reserved or self._unsent:
            self._release()
        if self._head.close or server.draining:
            self.close()
            return
        self.state = IDLE
        self._skipped = 0
        self.due = server.idle_end
        if self._serving:
            return
        if self._buffer:
            self.go_on()
        elif self._paused:
            self._unpause()

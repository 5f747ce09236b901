"""An answer that goes on: its client reads pieces as they come, until one side ends it.

A piece is asked for only when all before it is in the kernel. So a client that reads slowly costs one piece of memory, and
gets the state of the moment when it goes on; one that reads nothing for `Limits.drain_seconds` is cut.
"""

from __future__ import annotations

import math
import socket
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from registry.http.auth import Access
from registry.http.drain import Drain
from registry.http.validation import Refusal
from registry.sockets import beneath_tls

if TYPE_CHECKING:
    from registry.http.connection import Connection
    from registry.http.parser import Head
    from registry.http.server import Server

# What the kernel buffers for one stream, bytes: so a client that does not read is noticed early.
KERNEL_BYTES = 131_072


class Sink(Protocol):
    """Where a source writes to."""

    def wake(self) -> None:
        """The source may have a piece."""

    def check_again(self) -> None:
        """End the stream, unless its reader may still read."""

    def end(self, last: bytes) -> None:
        """End the stream with these bytes."""


class Source(Protocol):
    """What a streamed answer consists of. An endpoint returns it in place of an `Answer`.

    ``media``: the Content-Type; ``headers``: more headers; ``access``: what its reader may do, renewed while the stream lasts.
    """

    media: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    access: Access

    def begin(self, sink: Sink) -> None:
        """The stream is open."""

    def piece(self) -> bytes:
        """The next piece, b"" for none at the moment. Bounded in size."""

    def refused(self, code: str, sentence: str) -> bytes:
        """The last piece for a reader who may no longer read."""

    def closed(self) -> None:
        """The stream has ended; called once."""


class Stream:
    """A source on one of our connections, in the state STREAMING."""

    # fmt: off
    __slots__ = (
        "_began", "_chunked", "_connection", "_drain", "_head", "_is_over", "_sent", "_server", "_source", "_unsent", "_wakes",
    )
    # fmt: on

    def __init__(self, connection: Connection, server: Server, head: Head, source: Source) -> None:
        self._connection = connection
        self._server = server
        self._head = head
        self._source = source
        self._chunked = not head.line.endswith("HTTP/1.0")
        self._began = monotonic()
        self._sent = 0  # bytes of pieces, for the access log
        self._unsent = 0  # bytes of the server's budget for answers
        self._drain: Drain | None = None  # while a piece is not in the kernel yet
        self._wakes = False  # there was a wake meanwhile
        self._is_over = False

    def begin(self) -> None:
        """Send the head of the answer, and then what the source has."""
        connection, source = self._connection, self._source
        connection.due = math.inf
        with suppress(OSError, AttributeError):
            raw = beneath_tls(connection.transport)
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        head = self._server.encode_stream(source.media, source.headers, self._head, self._chunked)
        if self._head.bodiless:
            self._chunked = False
            connection.transport.write(head)
            self.end(b"")
            return
        self._write(head)
        source.begin(self)

    def wake(self) -> None:
        """Send the next piece when the last one has left."""
        if self._drain is not None:
            self._wakes = True
            return
        if piece := self._source.piece():
            self._sent += len(piece)
            self._write(self._framed(piece))

    def _framed(self, piece: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked and piece else piece

    def _write(self, data: bytes) -> None:
        connection, server, count = self._connection, self._server, 0
        if connection.is_plain:
            with suppress(OSError):
                # If the connection is broken, the transport finds out.
                count = connection.transport.socket.send(data)
            if count == len(data):
                return
        connection.due = server.now + server.limits.drain_seconds
        self._unsent = len(data) - count
        server.unsent_bytes += self._unsent
        connection.transport.write(data[count:])
        self._drain = Drain(connection.transport, connection.is_plain, server.later, self._drained)

    def _drained(self) -> None:
        self._stop_writing()
        self._connection.due = math.inf
        if self._wakes:
            self._wakes = False
            self.wake()

    def _stop_writing(self) -> None:
        drain, self._drain = self._drain, None
        if drain is not None:
            self._server.unsent_bytes -= self._unsent
            drain.stop()

    def check_again(self) -> None:
        """End it, unless its reader may still read."""
        try:
            self._server.heads.admit_again(self._head)
        except Refusal as refusal:
            self.end(self._source.refused(refusal.code, refusal.sentence))
        else:
            self._source.access = self._head.access

    def end(self, last: bytes) -> None:
        """End it from our side, with this piece."""
        if not self._is_over:
            connection = self._connection
            self._sent += len(last)
            self._stop_writing()
            connection.transport.write(self._framed(last) + (b"0\r\n\r\n" if self._chunked else b""))
            self._finish()
            connection.close()

    def cancel(self) -> None:
        """The connection is lost."""
        if not self._is_over:
            self._stop_writing()
            self._finish()

    def _finish(self) -> None:
        self._is_over = True
        self._source.closed()
        access, head = self._server.access, self._head
        if access is not None:
            name, logged = head.access.name, head.fields.logged
            access.served(self._connection.address, head.line, 200, self._sent, logged, self._began, name)

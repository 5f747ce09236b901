"""Reads from all plain connections; the reactor sees them as one descriptor.

To notify one connection that it can read costs the reactor as much as the system call that reads. An epoll object can
itself be watched: the reactor watches this one, and one loop finds and reads the connections that are ready.
"""

from __future__ import annotations

import select
import socket
from collections import deque
from time import monotonic
from typing import Any, Protocol

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

# The most bytes read from one connection before the next one's turn.
AT_ONCE = 65_536
# The longest time spent on reading in one turn of the reactor, s.
TURN_SECONDS = 0.01


class Connection(Protocol):
    """A connection to read for. Its ``transport`` does not read by itself meanwhile."""

    transport: Any

    def dataReceived(self, data: bytes) -> None: ...


@implementer(IReadDescriptor)
class EpollReader:
    """Reads for the connections that were added, until they end or are removed.

    The end of a stream is left to the transport, which is made to read by itself again.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._epoll = select.epoll()
        # A connection without a socket is not read; only its end is watched for.
        self._connections: dict[int, tuple[socket.socket | None, Connection]] = {}
        self._ready: deque[tuple[int, int]] = deque()  # (descriptor, event) left by the previous turn

    @staticmethod
    def possible(reactor: Any) -> bool:
        """Whether this system and this reactor can do it."""
        return hasattr(select, "epoll") and hasattr(reactor, "addReader")

    def add(self, connection: Connection) -> int:
        """Read for this connection. Returns its descriptor, which `remove` needs."""
        transport = connection.transport
        transport.stopReading()
        sock = transport.getHandle()
        return self._watch(sock.fileno(), select.EPOLLIN, sock, connection)

    def watch_end(self, transport: Any, connection: Connection) -> int:
        """Cut this connection, which nobody reads, when the client has gone; ``transport`` is the socket's own.

        Returns its descriptor, which `remove` needs.
        """
        return self._watch(transport.getHandle().fileno(), select.EPOLLRDHUP, None, connection)

    def _watch(self, fd: int, events: int, sock: socket.socket | None, connection: Connection) -> int:
        self._epoll.register(fd, events)
        if not self._connections:
            self._reactor.addReader(self)
        self._connections[fd] = sock, connection
        return fd

    def remove(self, fd: int, connection: Connection) -> None:
        """Stop reading for this connection. Its descriptor may already be closed."""
        found = self._connections.get(fd)
        if found is None or found[1] is not connection:
            return
        del self._connections[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            # Closed: the kernel has forgotten it.
            pass
        if not self._connections:
            self._reactor.removeReader(self)

    # The methods that the reactor calls

    def fileno(self) -> int:
        return self._epoll.fileno()

    def logPrefix(self) -> str:
        return "http"

    def doRead(self) -> None:
        connections, ready = self._connections, self._ready
        if not ready:
            ready.extend(self._epoll.poll(0))
        until = monotonic() + TURN_SECONDS
        while ready:
            fd, _ = ready.popleft()
            found = connections.get(fd)
            if found is None:
                # It ended while another connection of this round was read.
                continue
            sock, connection = found
            try:
                data = sock.recv(AT_ONCE) if sock is not None else b""
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            try:
                if data:
                    connection.dataReceived(data)
                else:
                    self._ended(fd, sock, connection)
            except Exception:
                # Do what the reactor would do; the other connections go on.
                self._log.failure("a connection failed")
                self.remove(fd, connection)
                if connection.transport is not None:
                    connection.transport.abortConnection()
            if monotonic() > until:
                # The rest are still ready, so the reactor calls again soon.
                break

    def _ended(self, fd: int, sock: socket.socket | None, connection: Connection) -> None:
        """The client has sent its last byte, or has gone from a connection of which only the end is watched for."""
        self.remove(fd, connection)
        if sock is None:
            connection.transport.abortConnection()
        else:
            connection.transport.startReading()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has stopped."""
        left, self._connections = self._connections, {}
        for _, connection in left.values():
            connection.transport.connectionLost(reason)

"""The Redis protocol on one transport: txredisapi's, with a shorter way from bytes to Deferreds."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPullProducer
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from txredisapi import ConnectionError, InvalidData, RedisProtocol, ResponseError
from zope.interface import implementer

from registry.errors import RedisUnavailable
from registry.redis.faults import public_text
from registry.sockets import beneath_tls

if TYPE_CHECKING:
    from registry.redis.link import Link


# How many bytes the transport passes to the kernel in one turn of the reactor. Its own limit is an eighth of that: a call of 1 MiB
# then took eight turns, and in each of them requests of other clients were read, for up to 14 ms.
SEND_BYTES = 1 << 20


def pack(*args: bytes | str | int) -> bytes:
    """One command as Redis reads it; str goes as UTF-8, int in decimal."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        data = arg if isinstance(arg, bytes) else arg.encode() if isinstance(arg, str) else b"%d" % arg
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


@implementer(IPullProducer)
class LinkProtocol(RedisProtocol):  # type: ignore[misc]
    """One connection. Deferreds wait in a plain deque, in the order of the commands.

    All simple commands of txredisapi work on it; its transactions and pipelines do not. Replies keep their
    types: a payload ``007`` stays these three bytes.
    """

    # Handles a message that is not a reply, and returns True for it; None where Redis sends only replies.
    unsolicited: Callable[[Any], bool] | None = None

    def __init__(self, link: Link) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.waiting: deque[Deferred[Any]] = deque()
        self.answered = 0
        self.close_reason = ""  # why this connection is being given up
        self._link = link
        self._socket: socket.socket | None = None  # while its buffer is empty and there is no TLS above it

    def connectionMade(self) -> None:
        transport = beneath_tls(self.transport)
        transport.SEND_LIMIT = SEND_BYTES
        sock = transport.getHandle()
        if sock.family == socket.AF_UNIX:
            # The kernel's buffer of a unix socket does not grow by itself. The system may permit less than this.
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        self.resumeProducing()
        self._link.connected(self)

    def connectionLost(self, reason: Failure) -> None:
        self.connected = 0
        self._socket = None
        self._link.lost(self, self.close_reason or f"the connection was lost: {reason.getErrorMessage()}")
        self.fail_all("the connection to Redis was lost")

    def send(self, encoded: bytes) -> Deferred[Any]:
        """Write one packed command; the Deferred fires with its reply. Cancelling drops the reply when it comes."""
        answer: Deferred[Any] = Deferred()
        self.waiting.append(answer)
        if self._socket is None:
            self.transport.write(encoded)
        else:
            self._send_now(self._socket, encoded)
        return answer

    def _send_now(self, sock: socket.socket, encoded: bytes) -> None:
        """Write to the socket at once while the kernel has room: saves three system calls and a turn of the reactor."""
        try:
            count = sock.send(encoded)
        except OSError:
            # Full, or broken: the transport finds out which.
            count = 0
        if count < len(encoded):
            self.transport.write(encoded[count:])
            # Registering calls `resumeProducing` at once, too early: it does nothing while `_socket` is set.
            self.transport.registerProducer(self, False)
            self._socket = None

    def resumeProducing(self) -> None:
        """The transport's buffer is empty, or the connection is new: write to the socket from now on."""
        if self._socket is None and isinstance(self.transport, Connection):
            self.transport.unregisterProducer()
            self._socket = self.transport.socket

    def stopProducing(self) -> None:
        """The connection is ending: nothing to do, `connectionLost` follows."""

    def execute_command(self, *args: Any, **options: Any) -> Deferred[Any]:
        """Every command of txredisapi comes through here."""
        if not self.connected:
            raise ConnectionError("Not connected")
        answer = self.send(self._build_command(*args))
        convert = options.get("post_proc")
        return answer.addCallback(convert) if callable(convert) else answer

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        reader = self._reader
        gets = reader.gets
        popleft = self.waiting.popleft
        unsolicited = self.unsolicited
        try:
            reader.feed(data)
            reply = gets()
            while reply is not False:
                if unsolicited is not None and unsolicited(reply):
                    reply = gets()
                    continue
                answer = popleft()
                self.answered += 1
                if reply.__class__ is ResponseError:
                    if not answer.called:
                        answer.errback(reply)
                    self._link.on_error_reply(reply)
                elif not answer.called:
                    # A cancelled Deferred kept its place until now, and its reply is dropped.
                    answer.callback(reply)
                reply = gets()
        except IndexError:  # sent before any command, as "max number of clients reached" may be
            if not self.close_reason:
                self._link.abort(
                    str(reply) if isinstance(reply, ResponseError) else "Redis spoke out of turn"
                )
        except InvalidData as error:
            self._link.abort(f"this is not the Redis protocol: {error}")
        if self.close_reason and not self.waiting:
            self.transport.abortConnection()

    def fail_all(self, why: str) -> None:
        """Fail every waiting command as ``unknown``: it was written, and Redis may have carried it out."""
        waiting = self.waiting
        while waiting:
            answer = waiting.popleft()
            if not answer.called:
                answer.errback(RedisUnavailable(public_text(why), "unknown"))

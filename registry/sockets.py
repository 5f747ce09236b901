"""Options of, and direct writes to, the sockets beneath Twisted's transports."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet.tcp import Server as SocketTransport
from twisted.protocols.policies import ProtocolWrapper


def beneath_tls(transport: Any) -> Any:
    """The socket's own transport, without the TLS wrappers around it."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def set_tcp_options(transport: Any, *, idle: int, interval: int, count: int, unread_ms: int) -> None:
    """Send at once, and let the kernel notice a peer that is gone; does nothing on a unix socket.

    A silent peer is probed after ``idle`` seconds, ``count`` times, ``interval`` seconds apart. A peer that acknowledges no bytes
    is given up after ``unread_ms``.
    """
    transport = beneath_tls(transport)
    handle = transport.getHandle()
    if handle.family not in (socket.AF_INET, socket.AF_INET6):
        return
    transport.setTcpNoDelay(True)
    transport.setTcpKeepAlive(True)
    for name, value in (
        ("TCP_KEEPIDLE", idle),
        ("TCP_KEEPINTVL", interval),
        ("TCP_KEEPCNT", count),
        ("TCP_USER_TIMEOUT", unread_ms),
    ):
        if hasattr(socket, name):
            # A sandbox may not support the option.
            with suppress(OSError):
                handle.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def send_now(transport: Any, data: bytes) -> None:
    """Send a few bytes directly: the transport would keep them until the next turn, after an answer written to the socket.

    The transport's buffer must be empty. The bytes are dropped if the kernel does not take them.
    """
    if isinstance(transport, SocketTransport):
        with suppress(OSError):
            transport.socket.send(data)
    else:
        transport.write(data)

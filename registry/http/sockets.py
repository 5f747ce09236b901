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


def tune(transport: Any) -> None:
    """Set TCP options: send at once; detect within 60 s that a silent peer is gone, within 30 s that it takes no bytes."""
    handle = transport.getHandle()
    if handle.family not in (socket.AF_INET, socket.AF_INET6):
        return
    transport.setTcpNoDelay(True)
    transport.setTcpKeepAlive(True)
    for name, value in (
        ("TCP_KEEPIDLE", 30),
        ("TCP_KEEPINTVL", 10),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 30_000),
    ):
        if hasattr(socket, name):
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

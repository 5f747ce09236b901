"""What is done to the sockets beneath Twisted's transports."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet.tcp import Server as SocketTransport
from twisted.protocols.policies import ProtocolWrapper


def beneath_tls(transport: Any) -> Any:
    """The socket's own transport."""
    while isinstance(transport, ProtocolWrapper):
        transport = transport.transport
    return transport


def tune(transport: Any) -> None:
    """TCP: send at once; notice within a minute that a silent peer is gone, within half of one that it takes no bytes."""
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
    """Send a few bytes before the answer that is sent to the socket directly: a transport would keep them until the next turn.

    Nothing may wait in the transport. They are dropped where the kernel takes none.
    """
    if isinstance(transport, SocketTransport):
        with suppress(OSError):
            transport.socket.send(data)
    else:
        transport.write(data)

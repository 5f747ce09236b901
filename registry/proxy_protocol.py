"""The PROXY protocol, for listeners of the form ``haproxy:tcp:…``: a proxy says first whose connection it passes on.

Versions 1 and 2 of https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt. The header comes before everything else, TLS
included. Then the connection is served as if the client itself had made it: same protocol, same limits, its address.

Twisted's own wrapper is not used: it believes everybody, expects a header inside TLS, and stays between socket and protocol.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
# The longest header of version 1, and what is accepted of version 2, bytes.
MAX_LINE, MAX_BINARY = 107, 4096
# A header arrives at once with the connection; this long is waited for it, s.
HEADER_SECONDS = 10.0
_LINE = re.compile(
    rb"PROXY (?:(?P<family>TCP[46]) (?P<source>[0-9A-Fa-f:.]+) [0-9A-Fa-f:.]+ (?P<port>\d{1,5}) \d{1,5}|UNKNOWN(?: [^\r\n]*)?)\r\n"
)


class BadHeader(ValueError):
    """What arrived is not a PROXY header."""


def read_header(data: bytes) -> tuple[Any, int] | None:
    """The client's address, None where the header names none, and the header's length; None if more bytes are needed.

    Raises `BadHeader`.
    """
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _read_binary(data) if len(data) >= 16 else None
    if data[:6] != b"PROXY "[: len(data)]:
        raise BadHeader("it does not begin as one")
    end = data.find(b"\r\n", 0, MAX_LINE) + 2
    if end == 1:
        if len(data) >= MAX_LINE:
            raise BadHeader("it is too long")
        return None
    line = _LINE.fullmatch(data[:end])
    if line is None:
        raise BadHeader("it is malformed")
    if line["family"] is None:
        return None, end
    return _address(line["family"] == b"TCP6", line["source"].decode(), int(line["port"])), end


def _read_binary(data: bytes) -> tuple[Any, int] | None:
    version_and_command, family, size = struct.unpack_from("!BBH", data, 12)
    if version_and_command not in (0x20, 0x21):
        raise BadHeader("its version or command is unknown")
    if size > MAX_BINARY:
        raise BadHeader("it is too long")
    end = 16 + size
    if len(data) < end:
        return None
    if version_and_command == 0x20:
        # The proxy's own connection, such as a health check.
        return None, end
    body = data[16:end]
    kind = family >> 4
    need = {1: 12, 2: 36, 3: 216}.get(kind, 0)
    if size < need:
        raise BadHeader("it is too short")
    if kind == 1:
        return IPv4Address(
            "TCP", str(ipaddress.IPv4Address(body[:4])), *struct.unpack_from("!H", body, 8)
        ), end
    if kind == 2:
        return IPv6Address(
            "TCP", str(ipaddress.IPv6Address(body[:16])), *struct.unpack_from("!H", body, 32)
        ), end
    return (UNIXAddress(None) if kind == 3 else None), end


def _address(is_v6: bool, host: str, port: int) -> Any:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise BadHeader("its address is malformed") from None
    if (ip.version == 6) is not is_v6 or port > 65535:
        raise BadHeader("its address is malformed")
    return (IPv6Address if is_v6 else IPv4Address)("TCP", str(ip), port)


class ProxyProtocolFactory(Factory):  # type: ignore[misc]
    """Reads the headers of connections from the peers that ``believes(address)``, then serves them with ``factory``.

    Connections of others are closed at once.
    """

    noisy = False

    def __init__(self, factory: Any, believes: Callable[[str], bool], reactor: Any) -> None:
        self.factory = factory
        self.later = reactor.callLater
        self._believes = believes
        self._logged_at = -60.0

    def doStart(self) -> None:
        super().doStart()  # type: ignore[no-untyped-call]
        self.factory.doStart()

    def doStop(self) -> None:
        self.factory.doStop()
        super().doStop()  # type: ignore[no-untyped-call]

    def buildProtocol(self, addr: Any) -> Any:
        host = getattr(addr, "host", None) or "-"
        if not self._believes(host):
            self.refused(host, "it is not one of TRUSTED_PROXIES")
            return None
        return _HeaderProtocol(self, addr)

    def refused(self, host: str, why: str) -> None:
        """Log why a connection was closed; at most once a minute, because whoever does this does it often."""
        if monotonic() - self._logged_at >= 60:
            self._logged_at = monotonic()
            log.error(
                "a connection from {host} is closed, where the PROXY protocol is spoken: {why}",
                host=host,
                why=why,
            )


class _HeaderProtocol(Protocol):
    """Reads the header; then the protocol of the client takes its place at the transport."""

    def __init__(self, proxied: ProxyProtocolFactory, peer: Any) -> None:
        self._proxied = proxied
        self._peer = peer
        self._data = b""
        self._timer: Any = None

    def connectionMade(self) -> None:
        self._timer = self._proxied.later(HEADER_SECONDS, self._close)

    def _close(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer.active():
            self._timer.cancel()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        try:
            header = read_header(self._data)
        except BadHeader as error:
            self._proxied.refused(
                getattr(self._peer, "host", None) or "-", f"this is no PROXY header: {error}"
            )
            self._close()
            return
        if header is None:
            return
        source, size = header
        self._timer.cancel()
        transport: Any = self.transport
        protocol = self._proxied.factory.buildProtocol(source or self._peer)
        if protocol is None:
            self._timer = self._proxied.later(0, self._close)
            return
        transport.protocol = protocol
        protocol.makeConnection(transport)
        if rest := self._data[size:]:
            protocol.dataReceived(rest)

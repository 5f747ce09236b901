"""Which proxies may state where a request comes from (``TRUSTED_PROXIES``), and the headers in which they do.

Each proxy appends the address that it received a request from, so the headers are read from the right: the first address that is
no trusted proxy is the client's. What stands left of it was sent by that client, and may be anything.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from registry.values import UNIX

# Addresses that are read from the right, at most; there are never more proxies than that in a row.
MAX_HOPS: Final = 32
_PORT = re.compile(r"(?P<v4>[0-9.]+):\d{1,5}|\[(?P<v6>[0-9A-Fa-f:.]+)\](?::\d{1,5})?")
# A member of a Forwarded header: name=token or name="quoted text".
_MEMBER = re.compile(r'\s*([A-Za-z]+)=("(?:[^"\\]|\\.)*+"|[^\s;,"]*+)\s*')
# Anybody can send a Forwarded header, so these never read a character twice.
_CLOSED = re.compile(r'(?:[^"]++|"(?:[^"\\]|\\.)*+")*+', re.DOTALL)
_PIECE = re.compile(r'[^",;]++|"(?:[^"\\]|\\.)*+"|([,;])', re.DOTALL)

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """``trusted``: addresses, networks, and the word "unix" for all clients of unix sockets; empty: none."""

    def __init__(self, trusted: Sequence[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(one) for one in trusted if one != UNIX]
        self._unix = UNIX in trusted
        self._any = bool(trusted)
        self.trusts = lru_cache(maxsize=4096)(self._trusts)

    def __bool__(self) -> bool:
        return self._any

    def _trusts(self, address: str) -> bool:
        """Whether this is the address of a trusted proxy; "-" stands for a unix socket."""
        if address == "-":
            return self._unix
        ip = _ip(address)
        return ip is not None and self._contains(ip)

    def _contains(self, ip: IPAddress) -> bool:
        return any(ip in network for network in self._networks)

    def speaks_proxy_protocol(self, address: str) -> bool:
        """Whether to believe the PROXY header of this peer: of trusted proxies, and without any, of this machine."""
        if self._any:
            return self.trusts(address)
        ip = _ip(address)
        return address == "-" or (ip is not None and ip.is_loopback)

    def client(self, forwarded_for: Sequence[bytes], forwarded: Sequence[bytes]) -> str:
        """The client's address from the headers of a trusted proxy; "" if they do not name it.

        ``Forwarded`` counts only without ``X-Forwarded-For``: most proxies write the latter and pass the former on as it came.
        """
        if forwarded_for:
            hops = [part.strip() for part in _text(forwarded_for).split(",")]
        else:
            hops = [_member(element, "for") for element in _elements(forwarded)[-MAX_HOPS:]]
        found = ""
        for hop in reversed(hops[-MAX_HOPS:]):
            ip = _ip(_without_port(hop))
            if ip is None:
                # What a trusted proxy wrote about the hop before is the last that is known.
                break
            found = str(ip)
            if not self._contains(ip):
                break
        return found

    @staticmethod
    def is_https(proto: Sequence[bytes], forwarded: Sequence[bytes]) -> bool:
        """Whether the client used TLS, from the headers of a trusted proxy."""
        if proto:
            return _text(proto).rpartition(",")[2].strip().lower() == "https"
        elements = _elements(forwarded)
        return bool(elements) and _member(elements[-1], "proto").lower() == "https"


def _text(values: Sequence[bytes]) -> str:
    return b",".join(values).decode("latin-1")


def _elements(forwarded: Sequence[bytes]) -> list[list[str]]:
    """The elements of Forwarded headers, each a list of members; a separator inside quotes does not divide them."""
    text = _text(forwarded)
    closed = _CLOSED.match(text)
    end = closed.end() if closed else 0
    # A quote that is never closed quotes nothing, but makes its member malformed.
    text = text[:end] + text[end:].replace('"', "?")
    elements: list[list[str]] = [[]]
    start = 0
    for piece in _PIECE.finditer(text):
        if piece[1]:
            elements[-1].append(text[start : piece.start()])
            start = piece.end()
            if piece[1] == ",":
                elements.append([])
    elements[-1].append(text[start:])
    return [members for members in elements if len(members) > 1 or members[0].strip()]


def _member(element: Sequence[str], name: str) -> str:
    """The value of a member of an element, "" if it is not there exactly once or the element is malformed."""
    found = ""
    for part in element:
        member = _MEMBER.fullmatch(part)
        if member is None:
            return ""
        if member[1].lower() == name:
            if found:
                return ""
            found = member[2].strip('"')
    return found


def _without_port(hop: str) -> str:
    match = _PORT.fullmatch(hop)
    return (match["v4"] or match["v6"]) if match else hop


def _ip(text: str) -> IPAddress | None:
    """An address; one of IPv4 that is written as IPv6 is the IPv4 one."""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip

"""Listening sockets that several processes share: the parent binds them, its children accept.

    TCP (also under TLS)   one socket per child, bound with SO_REUSEPORT: the kernel spreads connections evenly. That
                           matters because they are kept alive; on one shared socket the fastest child takes them all
    unix, from systemd     one socket, on which all children accept

The parent keeps all of them open for as long as it serves, so that no connection is refused while a child is being
replaced: a connection to its socket waits, or another child accepts it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import resource
import secrets
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, NamedTuple

from twisted.internet.abstract import isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from registry import unix_sockets
from registry.endpoints import PROXY_PROTOCOL, cannot_be_used, parse_endpoint
from registry.layers import Layers

log = Logger()

BACKLOG = 4096
# More than any daemon needs. An upper bound is necessary where the hard limit is "unlimited": some tables have its size.
MAX_FILES = 1 << 20
# File descriptors that client connections must leave free: for Redis, logs, listening sockets, name look-ups.
FILES_KEPT_FREE = 200


class ListeningSocket(NamedTuple):
    """A listening socket. ``fd``: its descriptor; ``slot``: the number of the child that accepts on it, None for all;
    ``endpoint``: the endpoint string to serve its connections with, such as ``ssl:443:…``; empty for plain ones, "haproxy:"
    alone for plain ones behind a PROXY header."""

    fd: int
    slot: int | None
    endpoint: str


class SocketBinder:
    """Binds the sockets of endpoint strings for ``slots`` children; does not accept connections itself.

    It stands in for the reactor while an endpoint listens, so that every type of endpoint works that uses TCP, TLS or
    a unix socket. ``bound``: the sockets that children inherit; ``addresses``: the addresses, for the log.
    """

    def __init__(self, reactor: Any, slots: int) -> None:
        self.bound: list[ListeningSocket] = []
        self.addresses: list[Any] = []
        self._reactor = reactor
        self._slots = slots
        self._text = ""
        self._sockets: list[socket.socket] = []
        self._ports: list[Any] = []

    def listen(self, text: str) -> Deferred[Any]:
        """Fires when the sockets are bound; fails with CannotListenError, or with ValueError with one sentence."""
        self._text = text
        return listen_on(self, text, _quiet()).addErrback(self._unknown)

    def _unknown(self, failure: Any) -> Any:
        if failure.check(AttributeError):
            raise ValueError(f"several processes cannot listen on {self._text!r}: set PROCESSES=1.")
        return failure

    def close(self) -> Deferred[Any]:
        """Close the sockets, and remove the unix sockets that we made from the file system."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()
        ports, self._ports = self._ports, []
        return DeferredList([d for d in (port.stopListening() for port in ports) if d is not None])

    # The reactor methods that endpoints call.

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> None:
        family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
        try:
            if port:
                # Fail when the port is in use: with SO_REUSEPORT, a second daemon of this user would get half of the
                # connections.
                self._socket(family, interface, port, reuse_port=False).close()
            for slot in range(self._slots):
                one = self._socket(family, interface, port)
                self._sockets.append(one)
                one.listen(max(backlog, BACKLOG))
                port = one.getsockname()[1]
                self.bound.append(ListeningSocket(one.fileno(), slot, self._text))
        except OSError as error:
            raise CannotListenError(interface, port, error) from None
        self.addresses.append(_address(one.getsockname()))

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> None:
        self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> None:
        opens = unix_sockets.Reactor(self._reactor, self._text)
        self._share(opens.listenUNIX(address, factory, max(backlog, BACKLOG), mode, wantPID))

    def adoptStreamPort(self, fd: int, family: int, factory: Any) -> None:
        self._share(adopt(self._reactor, fd, "", factory, None))

    def _share(self, port: Any) -> None:
        port.stopReading()
        self._ports.append(port)
        proxied = PROXY_PROTOCOL if self._text.startswith(PROXY_PROTOCOL) else ""
        self.bound.append(ListeningSocket(port.fileno(), None, proxied))
        self.addresses.append(_address(port.socket.getsockname()))

    @staticmethod
    def _socket(
        family: socket.AddressFamily, interface: str, port: int, reuse_port: bool = True
    ) -> socket.socket:
        address: Any = (interface, port)
        if family == socket.AF_INET6:  # includes the scope id of an address such as fe80::1%eth0
            address = socket.getaddrinfo(interface, port, family, socket.SOCK_STREAM)[0][4]
        one = socket.socket(family, socket.SOCK_STREAM)
        try:
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(address)
        except BaseException:
            one.close()
            raise
        return one


def listen_on(reactor: Any, text: str, factory: Any, layers: Layers | None = None) -> Deferred[Any]:
    """Listen on an endpoint string; fires with the port. Without ``layers``, nobody may connect.

    Fails with CannotListenError, or with ValueError with a sentence that names LISTEN.
    """
    opens: Any = reactor if isinstance(reactor, SocketBinder) else unix_sockets.Reactor(reactor, text)
    opens, inner = layers.around(opens, text) if layers is not None else (opens, text)
    endpoint = parse_endpoint(opens, inner)
    if getattr(endpoint, "_backlog", None) == 50:
        endpoint._backlog = BACKLOG

    def explain(failure: Any) -> Any:
        # CannotListenError is not a subclass of these.
        if failure.check(OSError, OverflowError, ValueError):
            raise cannot_be_used(text, failure.value) from None
        return failure

    listening: Deferred[Any] = endpoint.listen(factory)
    return listening.addErrback(explain)


def startup_error(error: BaseException | None) -> str:
    """Why the daemon does not start; for an address that cannot be listened on, also which setting to change."""
    if not isinstance(error, CannotListenError):
        return str(error) or type(error).__name__
    of, number = error.socketError, getattr(error.socketError, "errno", None)
    unix_path = isinstance(error.port, (bytes, str))
    where = os.fsdecode(error.port) if unix_path else f"{error.interface or 'any'}:{error.port}"
    hint = ""
    if number == errno.EADDRINUSE:
        hint = f"; stop what listens there, or set {'LISTEN' if unix_path else 'PORT (or LISTEN)'}"
    elif number == errno.EADDRNOTAVAIL or isinstance(of, socket.gaierror):
        hint = "; set HOST (or LISTEN) to an address of this machine"
    return f"Cannot listen on {where}: {of}{hint}."


def adopt(reactor: Any, fd: int, endpoint: str, factory: Any, layers: Layers | None) -> Any:
    """A port that accepts on a duplicate of the listening socket ``fd`` and serves as ``endpoint`` says, with ``layers``."""
    if endpoint == PROXY_PROTOCOL:
        assert layers is not None
        factory = layers.beneath(factory)
    elif endpoint:
        assert layers is not None
        found: list[Any] = []
        opens, inner = layers.around(_Adopts(reactor, fd), endpoint)
        served: Any = serverFromString(opens, inner)
        served.listen(factory).addBoth(found.append)
        if isinstance(found[0], Failure):
            found[0].raiseException()
        return found[0]
    with socket.socket(fileno=os.dup(fd)) as one:
        one.setblocking(False)
        family = one.family
    if family != socket.AF_UNIX:
        return reactor.adoptStreamPort(fd, family, factory)
    port = unix_sockets.UnixPort._fromListeningDescriptor(reactor, fd, factory)  # type: ignore[no-untyped-call]
    port.startListening()
    return port


class _Adopts:
    """Stands in for the reactor while an endpoint listens: its TCP port uses an inherited socket."""

    def __init__(self, reactor: Any, fd: int) -> None:
        self._reactor = reactor
        self._fd = fd

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        return adopt(self._reactor, self._fd, "", factory, None)


def _quiet() -> Factory:
    factory = Factory()
    factory.noisy = False
    return factory


def _address(name: Any) -> Any:
    """The result of ``getsockname()`` as a Twisted address."""
    if not isinstance(name, tuple):
        return UNIXAddress(os.fsencode(name))
    return (IPv4Address if len(name) == 2 else IPv6Address)("TCP", *name)


def address_text(address: Any) -> str:
    """An address as text for a person: ``[::1]:3000``, or the path of a unix socket."""
    if isinstance(address, (IPv4Address, IPv6Address)):
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{address.port}"
    if isinstance(address, UNIXAddress) and address.name:
        return os.fsdecode(address.name).replace("\0", "@", 1)
    return str(address)


def accept_waiting(port: Any) -> None:
    """Accept the connections that wait already: when the port is closed, the kernel resets them without an answer."""
    if not hasattr(port, "doRead"):  # a third-party endpoint
        return
    waiting = select.poll()
    waiting.register(port.fileno(), select.POLLIN)
    for _ in range(100):
        if not waiting.poll(0):
            return
        port.doRead()


class PublicWithoutTokens(ValueError):
    """Other machines could connect, and nobody would need a token."""


def check_public(addresses: Iterable[Any], *, has_tokens: bool, allow_anonymous: bool) -> list[str]:
    """Refuse to listen where other machines can connect while there is no token; raises `PublicWithoutTokens`.

    Returns warnings for an operator: one if that is allowed.
    """
    reached = [address_text(one) for one in addresses if not _is_local(one)]
    if has_tokens or not reached:
        return []
    where = " or ".join(reached)
    if not allow_anonymous:
        raise PublicWithoutTokens(
            f"Other machines could connect to {where}, and there is no token: create one (registryctl token create), or let "
            "everybody in (ALLOW_ANONYMOUS=1)."
        )
    warning = (
        f"ALLOW_ANONYMOUS is set and there is no token: anybody who can reach {where} can push, pop and purge; list the host "
        "names that clients use in ALLOWED_HOSTS."
    )
    return [warning]


def _is_local(address: Any) -> bool:
    """Whether only this machine can connect there. An unknown type of address may be anywhere."""
    if isinstance(address, UNIXAddress):
        return True  # its mode protects it
    return isinstance(address, (IPv4Address, IPv6Address)) and is_loopback(address.host.partition("%")[0])


def is_loopback(text: str) -> bool:
    """Whether this is an IPv4 or IPv6 loopback address; False for a name."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one. Returns how many client connections that allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            log.debug("the limit of open files is raised from {soft} to {wanted}", soft=soft, wanted=wanted)
            soft = wanted
        except (OSError, ValueError) as error:
            log.warn("the limit of open files cannot be raised from {soft}: {error}", soft=soft, error=error)
    files = MAX_FILES if soft == resource.RLIM_INFINITY else soft
    return max(files - FILES_KEPT_FREE, files // 2)


@implementer(IProtocolNegotiationFactory)
class ConnectionLimit(Factory):  # type: ignore[misc]
    """Accepts at most ``limit`` connections: with more, open() and accept() would fail with EMFILE, for Redis and logs too.

    ``connections``: the number of open ones per address. ``limit_per_address``: the limit per address, 0 for none; it does not
    apply to unix sockets, nor where ``is_exempt(address)``. A connection beyond a limit is answered 503 and closed at once; a
    client that has already sent its request may see only that the connection ends.
    """

    noisy = False

    def __init__(
        self,
        factory: Any,
        connections: Counter[str],
        limit: int,
        limit_per_address: int = 0,
        is_exempt: Callable[[str], bool] = lambda address: False,
    ) -> None:
        self._factory = factory
        self._connections = connections
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._is_exempt = is_exempt
        self._logged_at = -60.0

    def acceptableProtocols(self) -> list[bytes]:
        """The protocols a TLS client may choose from (ALPN)."""
        protocols: list[bytes] = self._factory.acceptableProtocols()
        return protocols

    def buildProtocol(self, addr: Any) -> Any:
        if self._connections.total() >= self._limit:
            self._log_refusal(
                "{n} connections are open, the most that the limit of open files (RLIMIT_NOFILE) allows: new ones are refused",
                n=self._limit,
            )
            return _RefusedConnection()
        host = getattr(addr, "host", None)
        if (
            self._limit_per_address
            and host is not None
            and self._connections[host] >= self._limit_per_address
            and not self._is_exempt(host)
        ):
            self._log_refusal(
                "{host} has {n} connections open, the most that MAX_CONNECTIONS_PER_ADDRESS allows: new ones are refused",
                host=host,
                n=self._limit_per_address,
            )
            return _RefusedConnection()
        return self._factory.buildProtocol(addr)

    def _log_refusal(self, sentence: str, **values: Any) -> None:
        # At most once a minute, because a client that exceeds a limit usually does so many times.
        if monotonic() - self._logged_at >= 60:
            self._logged_at = monotonic()
            log.error(sentence, **values)


class _RefusedConnection(Protocol):
    def connectionMade(self) -> None:
        body = b'{"error":"Too many connections are open; try again in a moment.","code":"overloaded","outcome":"not_applied"}'
        assert self.transport is not None
        self.transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
            b"X-Request-Id: %b\r\nContent-Length: %d\r\nRetry-After: %d\r\nConnection: close\r\n\r\n%b"
            % (secrets.token_hex(8).encode(), len(body), random.randint(1, 5), body)
        )
        self.transport.loseConnection()

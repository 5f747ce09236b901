"""Connects to a host by its name, although the look-up may hang.

The C library may wait half a minute or more for a name server, and a process waits for Twisted's own threads before it
ends. So a look-up runs in a daemon thread, at most one for each name, and each attempt to connect waits for it only until
its timeout.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectingCancelledError, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

Addresses = list[tuple[int, str]]

_under_way: dict[tuple[str, int], list[Deferred[Addresses]]] = {}


def look_up(reactor: Any, host: str, port: int, seconds: float) -> Deferred[Addresses]:
    """Fires with (family, address) pairs, at least one, or fails with `DNSLookupError`, at the latest after ``seconds``."""
    found: Deferred[Addresses] = Deferred()
    timer = reactor.callLater(
        seconds,
        lambda: found.errback(DNSLookupError(f"the look-up of {host} did not end within {seconds:g} s")),
    )

    def cancel_timer(result: Any) -> Any:
        if timer.active():
            timer.cancel()
        return result

    found.addBoth(cancel_timer)
    waiting = _under_way.get((host, port))
    if waiting is not None:
        waiting.append(found)
        return found
    _under_way[host, port] = [found]

    def resolve() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            result: Any = list(dict.fromkeys((family, str(at[0])) for family, _, _, _, at in answers))
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a host name"
            result = DNSLookupError(f"the look-up of {host} failed: {why}")
        reactor.callFromThread(deliver, result)

    def deliver(result: Any) -> None:
        for waiter in _under_way.pop((host, port)):
            if not waiter.called:
                waiter.errback(result) if isinstance(result, Exception) else waiter.callback(result)

    threading.Thread(target=resolve, name=f"look-up of {host}", daemon=True).start()
    return found


@implementer(IStreamClientEndpoint)
class HostEndpoint:
    """A TCP endpoint that looks up its host for each connection, and tries the addresses in turn."""

    def __init__(self, reactor: Any, host: str, port: int, timeout: float) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._timeout = timeout

    @inlineCallbacks
    def connect(self, factory: Any) -> Any:
        addresses = yield look_up(self._reactor, self._host, self._port, self._timeout)
        each = self._timeout / len(addresses)
        failures = []
        # Never change this list: others who wait for the same look-up share it.
        for family, address in addresses:
            kind = TCP6ClientEndpoint if family == socket.AF_INET6 else TCP4ClientEndpoint
            try:
                return (yield kind(self._reactor, address, self._port, timeout=each).connect(factory))
            except (CancelledError, ConnectingCancelledError):
                raise
            except Exception as error:
                failures.append(error)
        raise failures[-1]

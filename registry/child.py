"""How a child of ``twistd registry --processes N`` is connected to its parent: inherited sockets, and a link.

The link is a socket pair; each message is a line.

    child -> parent   ready       the child serves requests
                      alive       its reactor runs; sent every ten seconds after "ready"
    parent -> child   cover 2     also accept connections on the sockets of slot 2, whose child is being replaced
                      uncover 2   stop accepting on them

The kernel closes the parent's end when the parent ends, for whatever reason. The child then stops as after SIGTERM: it
answers parked polls and finishes the requests in progress. Nothing is lost with a child: all its state is in Redis.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from registry.layers import Layers
from registry.listening import ListeningSocket, adopt

log = Logger()

# The environment variable that marks a process as a child: JSON,
# {"daemon": "…", "slot": 0, "bound": [[fd, slot, endpoint], …], "tokens": false, "warnings": ["…", …]}.
VARIABLE = "REGISTRY_CHILD"
LINK = 3  # the file descriptor of the link
ALIVE_SECONDS = 10.0
# A child whose parent is gone is killed by SIGALRM if it has not ended after this time, s.
ORPHAN_SECONDS = 20


class LineLink(LineOnlyReceiver):
    """One end of the link. Calls ``on_line(word, number)`` for each line and ``on_close()`` when the other end is closed."""

    delimiter = b"\n"

    def __init__(self, on_line: Callable[[str, int], None], on_close: Callable[[], None]) -> None:
        self._on_line = on_line
        self._on_close = on_close

    def lineReceived(self, line: bytes) -> None:
        word, _, number = line.decode("ascii", "replace").partition(" ")
        self._on_line(word, int(number or -1))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._on_close()

    def send(self, words: str) -> None:
        """Send a line; does nothing when the other end is closed."""
        self.sendLine(words.encode("ascii"))  # type: ignore[no-untyped-call]


def line_link(
    reactor: Any, fd: int, on_line: Callable[[str, int], None], on_close: Callable[[], None]
) -> LineLink:
    """A link on the connected socket ``fd``. It uses a duplicate, so the caller may close ``fd`` afterwards."""
    os.set_blocking(fd, False)
    link = LineLink(on_line, on_close)
    factory = Factory.forProtocol(lambda: link)
    factory.noisy = False
    reactor.adoptStreamConnection(fd, socket.AF_UNIX, factory)
    return link


class Parent:
    """The parent, as the daemon in a child sees it; has the notification methods of `registry.systemd.Notifier`."""

    def __init__(self, reactor: Any, settings: str) -> None:
        self._reactor = reactor
        read = json.loads(settings)
        self.daemon: str = read["daemon"]  # the same for all children of the parent
        self.slot: int = read["slot"]
        self.has_tokens: bool = read["tokens"]  # there were tokens since the parent began
        self.warnings: list[str] = read["warnings"]  # about the addresses that the parent listens on
        self._bound = [ListeningSocket(*one) for one in read["bound"]]
        self._covered: dict[int, list[Any]] = {}
        self._ports: list[Any] = []
        self._factory: Any = None
        self._layers: Layers | None = None
        self._closed = False
        self._alive = LoopingCall(self._send, "alive")
        self._alive.clock = reactor
        self._link = line_link(reactor, LINK, self._on_line, self._on_close)
        os.close(LINK)

    @classmethod
    def of(cls, reactor: Any, environ: Mapping[str, str]) -> Parent | None:
        """The parent of this process; None when it is not a child."""
        text = environ.get(VARIABLE)
        return cls(reactor, text) if text else None

    def listen(self, factory: Any, ports: list[Any], layers: Layers) -> None:
        """Accept on the sockets of this slot and on the shared ones; ``ports`` is kept up to date."""
        self._factory, self._ports, self._layers = factory, ports, layers
        ports += self._adopt(None) + self._adopt(self.slot)

    def _adopt(self, slot: int | None) -> list[Any]:
        return [
            adopt(self._reactor, one.fd, one.endpoint, self._factory, self._layers)
            for one in self._bound
            if one.slot == slot
        ]

    def _on_line(self, word: str, slot: int) -> None:
        if word == "cover" and self._factory is not None and slot not in self._covered:
            self._covered[slot] = self._adopt(slot)
            self._ports += self._covered[slot]
        elif word == "uncover":
            for port in self._covered.pop(slot, ()):
                self._ports.remove(port)
                port.stopListening()

    def _on_close(self) -> None:
        if self._closed:
            return
        log.warn("the parent process has ended: stopping")
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(ORPHAN_SECONDS)
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            pass  # it is stopping already

    def _send(self, words: str) -> None:
        self._link.send(words)

    def ready(self, status: str) -> None:
        """The daemon serves. From now on it sends "alive", and the parent kills it when that stops."""
        self._send("ready")
        if not self._alive.running:
            self._alive.start(ALIVE_SECONDS, now=False)

    def stopping(self) -> None:
        """The daemon stops. Close the inherited sockets: connections would wait on them, and nobody here accepts any more."""
        self._factory = None
        bound, self._bound = self._bound, []
        for one in bound:
            os.close(one.fd)

    def close(self) -> None:
        """Close the link; no message can be sent afterwards."""
        self._closed = True
        if self._alive.running:
            self._alive.stop()
        assert self._link.transport is not None
        self._link.transport.loseConnection()

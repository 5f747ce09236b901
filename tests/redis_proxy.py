"""A TCP proxy that misbehaves on demand, to stand between the daemon and Redis.

In a test that runs the reactor: the fixture ``redis_proxy`` (import it), or ``RedisProxy(reactor, port)``,
then ``proxy.set("blackhole")`` and so on. In a test that blocks: ``ProxyProcess(port)``, the same in its own
process.

Modes, for connections there are and for those to come:

- ``pass``: bytes go through; ``set("pass", delay=0.3)`` each chunk 0.3 s late, in both directions
- ``refuse``: nobody listens, connections are closed
- ``accept_then_close``: a connection is accepted and closed at once
- ``blackhole``: bytes are read and dropped, connections stay open
- ``rst``: as accept_then_close, with a reset
- ``set("cut", up=10)``, ``set("cut", down=0)``: pass, and close a connection after that many bytes from now
  on to Redis (up) or from Redis (down)
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

MODES = {"pass", "refuse", "accept_then_close", "blackhole", "rst", "cut"}


class RedisProxy:
    """Listens on 127.0.0.1 at ``port`` from the start; ``stop()`` closes all."""

    def __init__(self, reactor: Any, target_port: int) -> None:
        self.reactor = reactor
        self.target_port = target_port
        self.mode = "pass"
        self.delay = 0.0
        self.up: int | None = None
        self.down: int | None = None
        self.connections: set[_Front] = set()
        self.accepted = 0
        self._factory = Factory.forProtocol(lambda: _Front(self))
        self._factory.noisy = False
        self._listening: Any = reactor.listenTCP(0, self._factory, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def set(self, mode: str, delay: float = 0.0, up: int | None = None, down: int | None = None) -> None:
        """Behave like this from now on."""
        assert mode in MODES, f"unknown mode {mode}"
        self.mode, self.delay, self.up, self.down = mode, delay, up, down
        if mode == "refuse":
            if self._listening is not None:
                self._listening.stopListening()
                self._listening = None
        elif self._listening is None:
            self._listening = self.reactor.listenTCP(self.port, self._factory, interface="127.0.0.1")
        for connection in list(self.connections):
            connection.cut = {True: up, False: down}
            if mode in ("refuse", "accept_then_close", "rst"):
                connection.close(reset=mode == "rst")

    def stop(self) -> Deferred[Any]:
        """Close the port and every connection."""
        for connection in list(self.connections):
            connection.close(reset=True)
        listening, self._listening = self._listening, None
        return (
            maybeDeferred(listening.stopListening) if listening is not None else maybeDeferred(lambda: None)
        )


class _Side(Protocol):
    front: _Front
    upward: bool

    def dataReceived(self, data: bytes) -> None:
        self.front.pump(self.upward, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.front.close()


class _Front(_Side):
    upward = True

    def __init__(self, proxy: RedisProxy) -> None:
        self.proxy = proxy
        self.front = self
        self.back: _Side | None = None
        self.cut = {True: proxy.up, False: proxy.down}
        self.closed = False
        self.late: set[Any] = set()

    def connectionMade(self) -> None:
        proxy = self.proxy
        proxy.accepted += 1
        proxy.connections.add(self)
        if proxy.mode in ("accept_then_close", "rst"):
            self.close(reset=proxy.mode == "rst")
            return
        self.transport.pauseProducing()  # type: ignore[union-attr]  # until there is somewhere to put it
        back = Factory.forProtocol(_Back)
        back.noisy = False
        target = TCP4ClientEndpoint(proxy.reactor, "127.0.0.1", proxy.target_port)
        target.connect(back).addCallbacks(self._connected, lambda failure: self.close())

    def _connected(self, back: Any) -> None:
        back.front = self
        self.back = back
        if self.closed:
            back.transport.abortConnection()
            return
        self.transport.resumeProducing()  # type: ignore[union-attr]

    def pump(self, upward: bool, data: bytes) -> None:
        if self.closed or self.proxy.mode == "blackhole":
            return
        if self.proxy.delay:
            timer: Any = None

            def forward() -> None:
                self.late.discard(timer)
                self._forward(upward, data)

            timer = self.proxy.reactor.callLater(self.proxy.delay, forward)
            self.late.add(timer)
        else:
            self._forward(upward, data)

    def _forward(self, upward: bool, data: bytes) -> None:
        if self.closed:
            return
        left = self.cut[upward]
        if left is not None:
            data = data[:left]
            self.cut[upward] = left - len(data)
        if data:
            if not upward:
                self.transport.write(data)  # type: ignore[union-attr]
            elif self.back is not None:
                self.back.transport.write(data)  # type: ignore[union-attr]
        if self.cut[upward] == 0:
            self.close()

    def close(self, reset: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self.proxy.connections.discard(self)
        for timer in self.late:
            timer.cancel()
        self.late.clear()
        for side in (self, self.back):
            if side is None:
                continue
            transport: Any = side.transport
            if reset:
                if transport.connected:
                    linger = struct.pack("ii", 1, 0)
                    transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                transport.abortConnection()
            else:
                transport.loseConnection()


class _Back(_Side):
    upward = False


@pytest.fixture
def redis_proxy(redis_server: Any) -> Iterator[RedisProxy]:
    """A proxy in front of ``redis_server``, in the test's reactor."""
    import pytest_twisted
    from twisted.internet import reactor

    proxy = RedisProxy(reactor, redis_server.port)
    yield proxy
    pytest_twisted.blockon(proxy.stop())


class ProxyProcess:
    """A proxy in a process of its own, for tests that block: ``port``, ``url``, ``set(...)``, ``stop()``."""

    def __init__(self, target_port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.redis_proxy", str(target_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent,
            text=True,
            bufsize=1,
        )
        self.port = int(self._line())
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the proxy ended"
        return line

    def set(self, mode: str, delay: float = 0.0, up: int | None = None, down: int | None = None) -> None:
        """As ``RedisProxy.set``; in effect when it returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{mode} {delay} {up} {down}\n")
        assert self._line() == "ok\n"

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends with its input, also when the test's process dies
        self._process.wait(10)
        self._process.stdout.close()


def _serve(target_port: int) -> None:
    from twisted.internet import reactor as default_reactor
    from twisted.internet.stdio import StandardIO
    from twisted.protocols.basic import LineOnlyReceiver

    reactor: Any = default_reactor
    proxy = RedisProxy(reactor, target_port)

    class Orders(LineOnlyReceiver):
        delimiter = b"\n"

        def connectionMade(self) -> None:
            self.sendLine(b"%d" % proxy.port)  # type: ignore[no-untyped-call]

        def lineReceived(self, line: bytes) -> None:
            mode, delay, up, down = line.decode().split()
            proxy.set(mode, float(delay), *(None if limit == "None" else int(limit) for limit in (up, down)))
            self.sendLine(b"ok")  # type: ignore[no-untyped-call]

        def connectionLost(self, reason: Failure = connectionDone) -> None:
            if reactor.running:
                reactor.stop()

    StandardIO(Orders())
    reactor.run()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

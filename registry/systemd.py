"""Notifications to systemd (sd_notify) and sockets from it (socket activation). Twisted has no sd_notify.

Messages, each one datagram to the socket in NOTIFY_SOCKET: ``READY=1``, ``STATUS=<text>``, ``STOPPING=1``,
``WATCHDOG=1``. See sd_notify(3) and sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any, cast

from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

log = Logger()

FIRST = 3  # the descriptor of the first socket that is passed


class Notifier:
    """Reports the state of the daemon to systemd; does nothing when NOTIFY_SOCKET is absent.

    After ``ready`` the reactor feeds the watchdog, three times per WATCHDOG_USEC. systemd therefore restarts a daemon
    whose reactor is blocked, but not one whose Redis is away. ``close``, the last step of a stop, ends the feeding.
    """

    def __init__(self, reactor: IReactorTime, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL byte of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)  # a stuck systemd must not stop the daemon
        self._watchdog = LoopingCall(self._send, "WATCHDOG=1")
        self._watchdog.clock = reactor
        self._interval = _watchdog_seconds(environ) / 3

    def ready(self, status: str) -> None:
        """Report that the daemon serves, and start the watchdog. May be called twice."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")
        if self._socket is not None and self._interval and not self._watchdog.running:
            self._watchdog.start(self._interval, now=True)

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send(f"STATUS={_one_line(text)}")

    def stopping(self) -> None:
        """Report that the daemon stops. The watchdog is still fed, because finishing the requests in progress takes a while."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Stop the watchdog and close the socket. May be called twice."""
        if self._watchdog.running:
            self._watchdog.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode("utf-8", "backslashreplace"), self._address)
        except OSError:
            # The message is lost. systemd acts by itself when it hears nothing for too long.
            pass


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """WATCHDOG_USEC in seconds; 0 without a watchdog, or when it is meant for another process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() else 0


def _one_line(text: str) -> str:
    return " ".join(text.split())


def listen_fds(environ: Mapping[str, str], first: int = FIRST) -> list[str]:
    """Endpoint strings, one per socket that systemd passed: ``systemd:domain=INET:index=0``; [] for none.

    Twisted removes LISTEN_PID and LISTEN_FDS from ``os.environ`` when ``twisted.internet.endpoints`` is
    imported, so this function looks up what Twisted found, by the same public endpoint strings. LISTEN_FDNAMES
    stays, and Twisted finds no socket without it. systemd always sets it; ``systemd-socket-activate`` sets it
    only with ``--fdname``.
    Raises ValueError with one sentence for a socket that is not a listening stream.
    """
    found: list[str] = []
    for index, name in enumerate(filter(None, environ.get("LISTEN_FDNAMES", "").split(":"))):
        try:
            # The parser only looks up the number; it does not use the reactor.
            endpoint = cast(Any, serverFromString)(None, f"systemd:domain=INET:index={index}")
        except IndexError:
            break  # the names were inherited by a child, without the sockets
        assert isinstance(endpoint, AdoptedStreamServerEndpoint)
        with socket.socket(fileno=os.dup(endpoint.fileno)) as passed:
            if not passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ValueError(f"The socket {name!r} that systemd passed is not a listening stream socket.")
            domain = socket.AddressFamily(passed.family).name.removeprefix("AF_")
        found.append(f"systemd:domain={domain}:index={index}")
    if not environ.get("LISTEN_FDNAMES") and _listens(first):
        log.warn(
            "a listening socket was passed without a name and is not used: systemd-socket-activate needs --fdname=registry"
        )
    return found


def _listens(fd: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(fd)) as passed:
            return bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # the descriptor is closed, or is not a socket
        return False

"""Listening unix sockets with the requested mode, which replace a socket that a killed daemon left behind.

Twisted's own port has three problems. It opens sockets to everybody (0666). It changes the mode by name after the bind,
which follows a link that was put there meanwhile. Its lock file contains a process id: as process 1 of a container the next
daemon finds its own id there, and never starts again.

Here a socket is in use only while a process accepts connections on it; any other socket is replaced. The folder is locked
from that check until the new socket is bound.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.endpoints import _parse
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

log = Logger()

# For the owner and the group. Who can connect also depends on the folder and on the group that owns the socket.
MODE = 0o660
# How long to wait for the lock of the folder, s; then continue without it, because in a folder that is open to all
# another user may hold it for ever.
LOCK_SECONDS = 2.0


def mode_of(text: str, mode: int) -> int:
    """The ``mode`` that was parsed from an endpoint string, or `MODE` when the string has none."""
    words, named = _parse(text)
    kinds = [word.lower() for word in words]
    behind_the_path = words[kinds.index("unix") + 2 :] if "unix" in kinds else words
    return mode if "mode" in named or behind_the_path else MODE


class UnixPort(unix.Port):
    """A listening unix socket. One made by ``_fromListeningDescriptor`` is shared with others, so its file stays."""

    _file: tuple[int, int] | None = None

    def startListening(self) -> None:
        """Bind and listen; an inherited socket is used as it is."""
        tcp._reservedFD.reserve()
        one, self._preexistingSocket = self._preexistingSocket, None
        if one is None:
            one = self.createInternetSocket()  # type: ignore[no-untyped-call]
            try:
                self._bind(one)
            except BaseException:
                one.close()
                raise
        assert self.factory is not None
        self.factory.doStart()
        self.connected = True
        self.socket = one
        self.fileno = one.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.startReading()  # type: ignore[no-untyped-call]

    def _bind(self, one: socket.socket) -> None:
        path = os.fsdecode(self._bindPath)
        if path.startswith("\0"):  # an abstract name, which has no file
            one.bind(path)
            one.listen(self.backlog)
            return
        with _locked(os.path.dirname(path) or "."):
            _clear(path)
            # The umask gives the socket its mode at once; a chmod by name could change another file.
            before = os.umask(0o777 & ~self.mode)
            try:
                one.bind(path)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise CannotListenError(None, path, error) from None
                raise
            finally:
                os.umask(before)
            found = os.lstat(path)
            self._file = found.st_dev, found.st_ino
            one.listen(self.backlog)

    def connectionLost(self, reason: Any) -> None:
        path = self._bindPath
        with contextlib.suppress(OSError):
            found = os.lstat(path)
            if (found.st_dev, found.st_ino) == self._file:
                os.unlink(path)
        tcp.Port.connectionLost(self, reason)


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # the folder may be writable without being readable
        yield
        return
    try:
        end = time.monotonic() + LOCK_SECONDS
        while time.monotonic() < end:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:  # the file system has no locks
                break
        yield
    finally:
        os.close(fd)


def _clear(path: str) -> None:
    """Remove a socket on which nobody accepts; CannotListenError when somebody does, or when it cannot be checked."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise CannotListenError(None, path, OSError(errno.EEXIST, "It exists and is not a socket"))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # do not wait: a socket whose backlog is full is in use too
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            log.info("the socket {path} was left by a process that has ended, and is replaced", path=path)
            # Twisted's lock for it, a symbolic link to a process id, is no longer valid.
            with contextlib.suppress(OSError):
                if os.readlink(f"{path}.lock").isdigit():
                    os.unlink(f"{path}.lock")
            return
        except FileNotFoundError:
            return
        except PermissionError as error:
            raise CannotListenError(None, path, error) from None
        except OSError:
            pass
    raise CannotListenError(None, path, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))


class Reactor:
    """Stands in for ``reactor`` while the endpoint ``text`` listens, so that its unix socket is a `UnixPort`."""

    def __init__(self, reactor: Any, text: str) -> None:
        self._reactor = reactor
        self._text = text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> UnixPort:
        """Listen on a `UnixPort`; called by the endpoint."""
        mode = mode_of(self._text, mode)
        port = UnixPort(address, factory, backlog, mode, self._reactor)  # type: ignore[arg-type]
        port.startListening()
        return port

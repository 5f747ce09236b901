"""Where the log lines of child processes go: unchanged to standard output, to syslog, or through the parent's log."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger, LogLevel

from registry.log import PRIORITIES, twistd_observer

# "<4>registry.redis.link: text", "<3>\tone line of its traceback", or, without a source, an access line.
_LINE = re.compile(r"<([2-7])>(?:([\w.-]+): |(\t))?(.*)", re.DOTALL)
_LEVELS = {number: LogLevel.levelWithName(name) for name, number in PRIORITIES.items()}
MAX_LINE = 65_536


@dataclass(frozen=True)
class Output:
    """``pipe``: the parent reads the children's output; otherwise they inherit standard output and standard error.

    ``arguments``: extra arguments of the children's twistd. ``access``: called with access lines.
    """

    pipe: bool
    arguments: tuple[str, ...] = ()
    access: Callable[..., None] | None = None


def output_of(options: Any, access: Callable[..., None] | None) -> Output:
    """The output for the options of the parent's own twistd or twist (None: neither)."""
    if options is None:
        return Output(False, (), access)
    if "fileLogObserverFactory" in options:  # twist
        return Output(options.get("logFile") not in (None, sys.stdout), (), access)
    own = options.get("logger") in (None, f"{twistd_observer.__module__}.{twistd_observer.__name__}")
    if own and options.get("syslog"):
        return Output(False, ("--syslog", f"--prefix={options.get('prefix') or 'registry'}"), access)
    stdout = options.get("nodaemon") and options.get("logfile") in (None, "-")
    # Only one process may rotate a log file, so the parent writes it.
    return Output(not (own and stdout), (), access)


class Reader(Protocol):
    """Reads the output of a child and logs each line at its own level. ``process``: see `registry.log.Observer`."""

    def __init__(self, access: Callable[..., None] | None, process: str) -> None:
        self._access = access
        self._process = process
        self._rest = b""
        self._accessed: list[str] = []
        self._event: tuple[str, Any, str] | None = None
        self._traceback: list[str] = []

    def dataReceived(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._line(line.decode("utf-8", "backslashreplace"))
        self._flush()

    def _line(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        if match is None:  # not from our log, such as an interpreter that could not start
            self._flush()
            self._event = ("registry.child", LogLevel.error, f"{self._process}: {line}")
        elif match[3]:
            self._traceback.append(match[4])
        elif match[2] is None and self._access is not None:
            self._flush(keep_access=True)
            self._accessed.append(match[4])
        else:
            self._flush()
            self._event = (match[2] or "registry.child", _LEVELS.get(int(match[1]), LogLevel.info), match[4])

    def _flush(self, keep_access: bool = False) -> None:
        if self._event is not None or self._traceback:
            source, level, text = self._event or (
                "registry.child",
                LogLevel.error,
                f"{self._process}: the rest of a traceback:",
            )
            more = {"log_failure": _RemoteFailure("\n".join(self._traceback))} if self._traceback else {}
            self._event, self._traceback = None, []
            Logger(namespace=source).emit(level, "{text}", text=text, log_process=self._process, **more)
        if self._accessed and not keep_access:
            lines, self._accessed = self._accessed, []
            assert self._access is not None
            self._access(*lines)


class _RemoteFailure:
    """A failure in another process, of which only the traceback text is available."""

    def __init__(self, traceback: str) -> None:
        self._traceback = traceback

    def getTraceback(self, *args: object, **kwargs: object) -> str:
        return self._traceback


def reader(reactor: Any, output: Output, process: str) -> tuple[socket.socket, dict[str, str]]:
    """A new socket for a child's output, which the caller closes, and the variables to add to the child's environment."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        factory = Factory.forProtocol(lambda: Reader(output.access, process))
        factory.noisy = False
        reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
    status = os.fstat(theirs.fileno())
    # The child takes the socket for journald's stream, and puts the priority in front of each line.
    return theirs, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}

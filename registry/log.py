"""What the daemon logs and where the lines go. Each event becomes one line with one priority.

``install`` is called while options are parsed, before twistd or twist build their logger, so that even the
first line has our format: twistd takes an observer from its option ``--logger``, twist a factory of
observers.

    standard output   2026-11-24T06:43:00+0000 [registry.redis.link#warn] text
    a log file        the same, rotated at 10 MB, ten files kept
    journald          <4>registry.redis.link: text   (with its priority prefix, when our output is its stream)
    syslog            <28>Nov 24 06:43:00 registry[4711]: registry.redis.link: text   (one datagram per line)

Of several processes each line says which one wrote it: its text begins with ``parent: `` or ``process 2: ``, and an
access line ends with ``process 2``.

Access lines are in combined log format with the duration appended; they contain their own time and get no
other prefix. A traceback follows its line, each of its lines indented by one tab. Everything else that
could break a line or colour a terminal is escaped, whichever code logged it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, formatTime
from twisted.python.failure import Failure
from twisted.python.usage import Options
from zope.interface import implementer

from registry.child import VARIABLE
from registry.config import Config, mask_url
from registry.log_streams import loss, open_log, stream
from registry.model.tokens import mask_tokens
from registry.values import LOG_LEVELS

VALUE_LIMIT = 200  # characters of one value from a client
LINE_LIMIT = 2000  # characters of one line: a syslog daemon may cut at 2048 bytes
TRACEBACK_LIMIT = 100  # lines

# The numbers of syslog(3); journald's prefixes use the same.
PRIORITIES = {"debug": 7, "info": 6, "warn": 4, "error": 3, "critical": 2}
_INFO = PRIORITIES["info"]
_LOG_DAEMON = 3 << 3
_SYSLOG_SOCKET = "/dev/log"

_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape(value: str | bytes, limit: int = VALUE_LIMIT) -> str:
    r"""A client's value, escaped for use between quotes in a log line: at most ``limit`` characters, then ``...``.

    Quotes and backslashes get a backslash. Control characters, line separators, marks that change the
    direction of text, and lone surrogates become ``\n``, ``\x1b``, ``\u202e``; bytes that are not UTF-8
    become ``\xff``.
    """
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    if len(text) > limit:
        text = text[:limit] + "..."
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return "".join(_ESCAPES.get(char) or _visible(char) for char in text)


def _visible(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":  # surrogateescape: a byte that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode-escape").decode("ascii")


def one_line(text: str, limit: int = LINE_LIMIT) -> str:
    """A whole message on one line, at most ``limit`` characters; unlike ``escape``, keeps quotes and backslashes."""
    if len(text) > limit:
        text = text[:limit] + "..."
    return text if text.isprintable() else "".join(map(_visible, text))


_URL = re.compile(r"\b(?:rediss?(?:\+sentinel)?|unix)://[^\s'\"]+")


def mask(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace passwords in Redis URLs, tokens, and the given secrets anywhere in the text, by ``***``.

    A secret of less than four characters is masked in URLs only, because it would match parts of ordinary
    words.
    """
    if "://" in text:
        text = _URL.sub(lambda match: mask_url(match[0]), text)
    for secret in secrets:
        if len(secret) >= 4:
            text = text.replace(secret, "***")
    return mask_tokens(text)


# --- access lines ---

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


@lru_cache(maxsize=4)
def clf_time(second: int) -> str:
    """A Unix time in the format of access lines."""
    # Not strftime: its %b follows the locale.
    t = time.gmtime(second)
    return f"{t[2]:02d}/{_MONTHS[t[1] - 1]}/{t[0]}:{t[3]:02d}:{t[4]:02d}:{t[5]:02d} +0000"


# --- where lines go ---


class Destination(Protocol):
    """Accepts complete lines. Never raises, and never blocks longer than a write to a file."""

    stamped: bool  # whether the observer puts the time and the level in front of each line
    process: str  # which of several processes this is, "" for the only one

    def write(self, priority: int, lines: Iterable[str]) -> None: ...

    def finish(self) -> None: ...  # called when the process ends


class SyslogDestination:
    """Sends datagrams to the syslog socket and never waits for its reader.

    The standard library's ``syslog`` is not used, because it blocks the whole reactor when the reader is stuck.
    Lines that could not be sent are counted; the count is sent as soon as sending works again.
    """

    stamped = False
    process = ""

    def __init__(self, prefix: str, path: str = _SYSLOG_SOCKET) -> None:
        self._prefix = one_line(prefix, 32)
        self._path = path
        self._socket: socket.socket | None = None
        self._lost = 0

    def write(self, priority: int, lines: Iterable[str]) -> None:
        for line in lines:
            if self._lost and self._send(PRIORITIES["warn"], loss(self._lost, "syslog", self.process)):
                self._lost = 0
            if not self._send(priority, line):
                self._lost += 1

    def connect_error(self) -> str:
        """Why nothing can be sent now; empty when sending works."""
        try:
            self._connect()
        except OSError as error:
            self.close()
            return error.strerror or str(error)
        return ""

    def _connect(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._socket.connect(self._path)
        return self._socket

    def _send(self, priority: int, line: str) -> bool:
        t = time.localtime()
        stamp = f"{_MONTHS[t[1] - 1]} {t[2]:2d} {t[3]:02d}:{t[4]:02d}:{t[5]:02d}"
        # The process id is looked up each time, because twistd forks after it has made its logger.
        text = f"<{_LOG_DAEMON | priority}>{stamp} {self._prefix}[{os.getpid()}]: {line}"
        record = text.encode("utf-8", "backslashreplace")
        for _ in range(2):  # the second time on a new socket: the syslog daemon may have been restarted
            try:
                self._connect().send(record)
                return True
            except BlockingIOError:
                return False
            except OSError:
                self.close()
        return False

    def finish(self) -> None:
        """Does nothing: no lines are buffered here."""

    def close(self) -> None:
        """Close the socket; the next line opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


# --- events to lines ---


@implementer(ILogObserver)
class Observer:
    """Sends the events of ``twisted.logger`` that are at least ``level`` to a destination.

    ``process``: which of several processes this is, such as "process 2"; "" for the only one. An event with the key
    ``log_process`` is of another process, and its text already says so.
    """

    def __init__(
        self, destination: Destination, level: str, secrets: Iterable[str] = (), process: str = ""
    ) -> None:
        self._destination = destination
        self._process = destination.process = process
        self._least = LOG_LEVELS.index(level)
        self._secrets = tuple(secrets)

    def __call__(self, event: LogEvent) -> None:
        level = event.get("log_level") or LogLevel.info
        if LOG_LEVELS.index(level.name) < self._least:
            return
        text, traceback = _text_of(event)
        text = one_line(mask(text, self._secrets))
        if not text and not traceback:
            return
        if self._process and "log_process" not in event:
            text = f"{self._process}: {text}"
        source = one_line(str(event.get("log_namespace") or "-"), VALUE_LIMIT)
        if self._destination.stamped:
            text = f"{formatTime(event.get('log_time'))} [{source}#{level.name}] {text}"
        else:
            text = f"{source}: {text}"
        lines = [text]
        if traceback:
            masked = mask(traceback, self._secrets).splitlines()
            if len(masked) > TRACEBACK_LIMIT:  # the end names the error, the start its origin
                half = TRACEBACK_LIMIT // 2
                masked[half:-half] = [f"... {len(masked) - 2 * half} lines ..."]
            lines += [f"\t{one_line(line)}" for line in masked]
        self._destination.write(PRIORITIES[level.name], lines)

    def finish(self) -> None:
        """Called when the process ends."""
        self._destination.finish()

    def access(self, *lines: str) -> None:
        """Write access lines, which are complete and escaped already; their level is info."""
        if self._least <= 1:
            if self._process and self._process != PARENT:
                lines = tuple(f"{line} {self._process}" for line in lines)
            self._destination.write(_INFO, lines)


def _text_of(event: LogEvent) -> tuple[str, str]:
    """The message and the traceback of an event, from ``twisted.logger`` or the older ``twisted.python.log``."""
    failure = event.get("log_failure")
    if failure is None and event.get("isError") and isinstance(event.get("failure"), Failure):
        # From log.err, whose text already contains the traceback.
        failure = event["failure"]
        text = str(event.get("why") or "Unhandled Error")
    else:
        text = formatEvent(event)
    if failure is None:
        return text, ""
    try:
        return text, failure.getTraceback()
    except Exception:  # str() of the exception fails
        return text, f"(no traceback: {failure.type!r})"


class AccessLog:
    """The access log; call it with access lines.

    It writes straight to the destination, because a Twisted event costs several times more. Before logging
    has begun, and with the user's own ``--logger``, lines are events of namespace ``registry.access``.
    """

    def __init__(self) -> None:
        self._observer: Observer | None = None
        self._log = Logger(namespace="registry.access")

    def attach(self, observer: Observer) -> None:
        """Send lines to this observer from now on."""
        self._observer = observer

    def finish(self) -> None:
        """Called when the process ends: write out the lines that still wait, if the reader accepts them."""
        if self._observer is not None:
            self._observer.finish()

    def __call__(self, *lines: str) -> None:
        if self._observer is None:
            for line in lines:
                self._log.info("{line}", line=line)
        else:
            self._observer.access(*lines)


# --- into twistd and twist ---

# The parent of several processes, in its lines.
PARENT = "parent"


def process_of(config: Config, environ: Mapping[str, str]) -> str:
    """Which of several processes this is, as its lines say it; "" for the only one."""
    child = environ.get(VARIABLE)
    if child:
        return f"process {json.loads(child)['slot']}"
    return PARENT if config.processes > 1 else ""


def install(
    options: Options, config: Config, environ: Mapping[str, str], syslog_socket: str = _SYSLOG_SOCKET
) -> AccessLog:
    """Make the program that parses ``options`` log through an Observer; call it in ``postOptions``.

    ``makeService`` would be too late: twistd reads its option ``--logger``, and twist its factory of
    observers, before they call it. A ``--logger`` of the user has priority. Without a parent (a .tac file,
    a test) nothing is changed. Returns the access log.
    """
    access = AccessLog()
    parent: Any = options.parent

    def observe(destination: Destination) -> Observer:
        process = process_of(config, environ)
        observer = Observer(destination, config.log_level, config.secrets(), process)
        access.attach(observer)
        return observer

    if parent is None:
        return access
    if "fileLogObserverFactory" in parent:  # twist
        parent["fileLogObserverFactory"] = lambda file: observe(stream(file, environ))
        if parent["logLevel"] is LogLevel.info:  # else the user chose one, and twist filters first
            parent["logLevel"] = LogLevel.levelWithName(config.log_level)
    elif parent.get("logger") is None:  # twistd
        global _make_observer
        _make_observer = lambda: observe(_twistd_destination(parent, environ, syslog_socket))  # noqa: E731
        parent["logger"] = f"{__name__}.{twistd_observer.__name__}"
    return access


# Set by install. A global, because twistd takes only the dotted name of a callable without arguments, which
# gives no other way to pass it the options.
_make_observer: Callable[[], Observer] | None = None


def twistd_observer() -> Observer:
    """The observer that twistd's option ``--logger`` names after ``install`` has run."""
    if _make_observer is None:
        sys.exit("registry.log.twistd_observer works only in the registry's own command: remove --logger.")
    return _make_observer()


def _twistd_destination(options: Any, environ: Mapping[str, str], syslog_socket: str) -> Destination:
    """The destination for twistd's options, as its own UnixAppLogger chooses; called when logging starts."""
    if options.get("syslog"):
        prefix = options.get("prefix") or "twisted"
        syslog = SyslogDestination("registry" if prefix == "twisted" else prefix, syslog_socket)
        why = syslog.connect_error()
        if why and VARIABLE not in environ:  # a child's parent has printed it already
            print(
                f"registry: nothing reads {syslog_socket} ({why}): lines are lost until a syslog daemon runs. "
                "To log elsewhere, give --logfile=PATH instead of --syslog.",
                file=sys.stderr,
            )
        return syslog
    name, foreground = options.get("logfile"), options.get("nodaemon")
    if name == "-" and not foreground:
        sys.exit(
            "A daemon cannot log to standard output: give --logfile=PATH, --syslog, or -n to run in the foreground."
        )
    if name == "-" or (foreground and not name):
        return stream(sys.stdout, environ)
    path = os.path.abspath(name or "twistd.log")
    try:
        destination, file = open_log(path)
    except OSError as error:
        sys.exit(f"The log file {path} cannot be written: {error.strerror}.")
    if file is not None and not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda signum, frame: setattr(file, "rotate_next", True))
    return destination

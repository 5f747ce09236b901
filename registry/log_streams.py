"""Log destinations other than syslog: standard output, a log file, a FIFO.

Logging must never block the daemon. A regular file is written to directly. Anything else (a pipe, a terminal, a socket)
may have a reader that does not read, so a thread writes to it. Lines that do not fit into the thread's queue are dropped
and counted, and the count is logged as soon as a line fits again.
"""

from __future__ import annotations

import atexit
import errno
import glob
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from queue import SimpleQueue
from select import PIPE_BUF
from typing import Any

from twisted.logger import formatTime

QUEUE_BYTES = 1 << 20  # how far a reader may be behind, besides the kernel's own buffer
FINISH_SECONDS = 1.0  # how long the process waits for a reader when it ends
ROTATE_BYTES = 10_000_000
FILES_KEPT = 10


def loss(count: int, destination: str, process: str) -> str:
    """The text that reports lost lines, for every destination; ``process`` as in `registry.log.Observer`."""
    text = f"{count} lines lost: {destination} did not accept them"
    return f"{process}: {text}" if process else text


class StreamDestination:
    """Standard output or a file. With ``journal``, each line begins with ``<priority>`` instead of the time.

    ``write_bytes`` gets a whole record at once, so that records of several processes do not mix. When it raises
    OSError or ValueError, the lines of that record are lost.
    """

    def __init__(self, write_bytes: Callable[[bytes], object], journal: bool = False) -> None:
        self._write_bytes = write_bytes
        self._journal = journal
        self.stamped = not journal
        self.process = ""
        self._lost = 0

    def write(self, priority: int, lines: Iterable[str]) -> None:
        """Write lines, or count them as lost. Never raises, and never waits for a reader."""
        before = f"<{priority}>" if self._journal else ""
        lines = list(lines)
        between = "\n" + before
        text = f"{before}{between.join(lines)}\n" if lines else ""
        if self._lost:
            text = self._loss() + text
        try:
            self._write_bytes(text.encode("utf-8", "backslashreplace"))
            self._lost = 0
        except (OSError, ValueError):
            # A full disk, a closed terminal, or a reader that does not read must not stop the daemon.
            self._lost += len(lines)

    def _loss(self) -> str:
        text = loss(self._lost, "the log", self.process)
        return (
            f"<4>{__name__}: {text}\n"
            if self._journal
            else f"{formatTime(time.time())} [{__name__}#warn] {text}\n"
        )

    def finish(self) -> None:
        """Called when the process ends: wait at most `FINISH_SECONDS` for the lines that are still queued."""
        finish = getattr(self._write_bytes, "finish", None)
        if finish is not None:
            finish()


class BackgroundWriter:
    """Writes the data it is called with to the descriptor ``fd``, in its own thread. BlockingIOError: no room."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # Other processes write to the same pipe: write at most as much as the kernel writes atomically.
        self._most = PIPE_BUF if stat.S_ISFIFO(os.fstat(fd).st_mode) else QUEUE_BYTES
        self._finish_by: float | None = None
        self._begin()
        # twistd forks after logging has begun, and threads do not survive a fork in the child.
        os.register_at_fork(after_in_child=self._begin)
        atexit.register(self.finish)

    def _begin(self) -> None:
        self._thread: threading.Thread | None = None
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._queued = self._taken = 0  # bytes; each counter is changed by one thread only
        self._full = False

    def __call__(self, data: bytes) -> None:
        behind = self._queued - self._taken
        # After it was full, the queue must be half empty first: a reader that is slightly too slow then misses a few
        # long runs of lines instead of many single ones.
        if behind and behind + len(data) > (QUEUE_BYTES // 2 if self._full else QUEUE_BYTES):
            self._full = True
            raise BlockingIOError
        self._full = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()
        self._queued += len(data)
        self._queue.put(data)
        if self._finish_by is not None:
            self.finish()

    def _run(self) -> None:
        while True:
            data = self._queue.get()
            try:
                self._write(data)
            except OSError:
                pass  # the reader is gone: there is nowhere to report it
            self._taken += len(data)

    def _write(self, data: bytes) -> None:
        while data:
            end = len(data)
            if end > self._most:
                end = data.rfind(b"\n", 0, self._most) + 1 or self._most
            try:
                data = data[os.write(self._fd, data[:end]) :]
            except BlockingIOError:  # another process that shares the stream made it non-blocking
                time.sleep(0.05)

    def finish(self) -> None:
        """Wait until all is written, at most `FINISH_SECONDS` after the first call. From then on each write waits too."""
        if self._finish_by is None:
            self._finish_by = time.monotonic() + FINISH_SECONDS
        while self._taken != self._queued and time.monotonic() < self._finish_by:
            time.sleep(0.002)


class LogFile:
    """A regular log file: call it to write. It is rotated at 10 MB, and reopened after it was moved away."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.rotate_next = False
        self._fd = self._open(None)

    def _open(self, mode: int | None) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        # O_NONBLOCK, because a FIFO without a reader may have been put in its place.
        fd = os.open(self.path, flags | os.O_NONBLOCK, 0o666)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.EINVAL, "it is not a regular file", self.path)
        if mode is not None and stat.S_IMODE(os.fstat(fd).st_mode) != mode:
            try:
                os.fchmod(fd, mode)
            except OSError:
                pass  # the file belongs to another user
        return fd

    def __call__(self, data: bytes) -> None:
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self.path)
        except OSError:
            there = None
        moved = there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)
        if moved:
            self._open_anew(None if there is not None else stat.S_IMODE(ours.st_mode))
        elif self.rotate_next or ours.st_size >= ROTATE_BYTES:
            self._rotate(stat.S_IMODE(ours.st_mode))
        write_all(self._fd, data)

    def _open_anew(self, mode: int | None) -> None:
        try:
            fd = self._open(mode)
        except OSError:
            return  # the folder is gone or full, or the path is not a file: continue in the file that was moved away
        os.close(self._fd)
        self._fd = fd

    def _rotate(self, mode: int) -> None:
        self.rotate_next = False
        old = sorted(
            int(path.rpartition(".")[2])
            for path in glob.glob(f"{glob.escape(self.path)}.*")
            if path.rpartition(".")[2].isdecimal()
        )
        try:
            for number in reversed(old):
                if number >= FILES_KEPT:
                    os.remove(f"{self.path}.{number}")
                elif number:
                    os.rename(f"{self.path}.{number}", f"{self.path}.{number + 1}")
            os.rename(self.path, f"{self.path}.1")
        except OSError:
            return  # no permission to write in the folder: the file keeps growing
        self._open_anew(mode)


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether the descriptor is the stream that journald gave us: JOURNAL_STREAM is its ``device:inode``."""
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def stream(file: Any, environ: Mapping[str, str]) -> StreamDestination:
    """The destination for a file object such as ``sys.stdout``; writes to its descriptor when it has one."""
    try:
        fd = file.fileno()
        file.flush()
    except (AttributeError, OSError, ValueError):
        return StreamDestination(lambda data: file.write(data.decode()))
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return StreamDestination(lambda data: write_all(fd, data), is_journal(fd, environ))
    return StreamDestination(BackgroundWriter(fd), is_journal(fd, environ))


def open_log(path: str) -> tuple[StreamDestination, LogFile | None]:
    """The destination for a path, and its LogFile; None for what cannot be rotated. OSError when it cannot be used."""
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        # Opened for reading too: then a FIFO without a reader can be opened, and keeps its data for the next reader.
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY)
        return StreamDestination(BackgroundWriter(fd)), None
    file = LogFile(path)
    return StreamDestination(file), file


def write_all(fd: int, data: bytes) -> None:
    """Write all data, in as many calls as the kernel needs."""
    while data:
        data = data[os.write(fd, data) :]

"""One run of a command: a process group of its own, its input and outputs, and how it ended.

All of its output is read, and a bounded part of it is kept. When the command has ended, the rest of its process group is
killed: a task is over when its command is.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# How long the output of other processes is read after the command has ended, s.
DRAIN_SECONDS = 1.0
# A longer line of progress is cut, bytes.
MAX_OF_LINE = 4096
# Read or written at once, bytes; what a pipe holds.
PIECE = 65_536


@dataclass(frozen=True)
class Ended:
    """How a command ended. ``code``: its exit code, or minus the signal that killed it; ``stopped``: why it was stopped, or "".

    ``output``: its stdout, None if that was longer than what is kept. ``errors``: the end of its stderr.
    """

    code: int
    stopped: str
    output: bytes | None
    errors: bytes


class _Reader:
    """Reads a pipe to its end; calls ``take`` with each piece. ``ended`` fires at its end."""

    def __init__(self, descriptor: int, take: Callable[[bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._take = take
        self.ended: asyncio.Future[None] = self._loop.create_future()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._descriptor, PIECE)
        except BlockingIOError:
            return
        if data:
            self._take(data)
        else:
            self.close()

    def close(self) -> None:
        """Read no more."""
        if not self.ended.done():
            self.ended.set_result(None)
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)


class _Writer:
    """Writes the payload into a pipe, as fast as the command reads it, and closes it."""

    def __init__(self, descriptor: int, data: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._left = memoryview(data)
        self._open = True
        os.set_blocking(descriptor, False)
        self._loop.add_writer(descriptor, self._write)
        self._write()

    def _write(self) -> None:
        try:
            while self._left:
                self._left = self._left[os.write(self._descriptor, self._left[:PIECE]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            # The command does not read its input, or not all of it.
            pass
        self.close()

    def close(self) -> None:
        """Write no more."""
        if self._open:
            self._open = False
            self._loop.remove_writer(self._descriptor)
            os.close(self._descriptor)


class _Head:
    """Keeps everything if it is at most ``limit`` bytes long, otherwise nothing."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: bytearray | None = bytearray()

    def take(self, data: bytes) -> None:
        if self._kept is not None:
            self._kept = None if len(self._kept) + len(data) > self._limit else self._kept + data

    @property
    def value(self) -> bytes | None:
        return None if self._kept is None else bytes(self._kept)


class _Tail:
    """Keeps the last ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.value = b""

    def take(self, data: bytes) -> None:
        self.value = (self.value + data[-self._limit :])[-self._limit :]


class _Lines:
    """Splits its input into lines without line ends, and calls ``each`` with the last whole line of each piece."""

    def __init__(self, each: Callable[[bytes], None]) -> None:
        self._each = each
        self._begun = b""

    def take(self, data: bytes) -> None:
        *whole, self._begun = (self._begun + data).split(b"\n")
        self._begun = self._begun[:MAX_OF_LINE]
        for line in reversed(whole):
            if line.strip():
                self._each(line[:MAX_OF_LINE])
                return


class Program:
    """A command that runs once. ``progress``: a file descriptor of the command and what to call with a line written there."""

    def __init__(
        self,
        path: str,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        *,
        max_output: int,
        max_errors: int,
        kill_after: float,
        progress: tuple[int, Callable[[bytes], None]] | None = None,
    ) -> None:
        self._path = path
        self._arguments = list(arguments)
        self._environ = dict(environ)
        self._output = _Head(max_output)
        self._errors = _Tail(max_errors)
        self._kill_after = kill_after
        self._progress = progress
        self._pid = 0
        self._stopped = ""
        self._over = False
        self._kill: asyncio.TimerHandle | None = None

    async def run(self, payload: bytes) -> Ended:
        """Start it, give it the payload on stdin and wait for its end. Raises `OSError` if it cannot be started."""
        loop = asyncio.get_running_loop()
        if self._stopped:
            return Ended(-signal.SIGTERM, self._stopped, b"", b"")
        stdin, outputs = self._spawn()
        ended: asyncio.Future[None] = loop.create_future()
        threading.Thread(target=_await_end, args=(self._pid, loop, ended), daemon=True).start()
        takes = [self._output.take, self._errors.take]
        if self._progress is not None:
            takes.append(_Lines(self._progress[1]).take)
        readers = [_Reader(descriptor, take) for descriptor, take in zip(outputs, takes, strict=True)]
        writer = _Writer(stdin, payload)
        try:
            await ended
        finally:
            code = self._end()
            writer.close()
            await asyncio.wait([reader.ended for reader in readers], timeout=DRAIN_SECONDS)
            for reader in readers:
                reader.close()
        return Ended(code, self._stopped, self._output.value, self._errors.value)

    def stop(self, why: str) -> None:
        """Send it SIGTERM, and kill it if it does not end. The first reason counts."""
        if self._stopped or self._over:
            return
        self._stopped = why
        if self._pid:
            self._signal(signal.SIGTERM)
            loop = asyncio.get_running_loop()
            self._kill = loop.call_later(self._kill_after, self._signal, signal.SIGKILL)

    def kill(self, why: str) -> None:
        """Kill it now."""
        self._stopped = self._stopped or why
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # The process was not waited for yet, so its number cannot be another's.
        if self._pid and not self._over:
            try:
                os.killpg(self._pid, number)
            except (ProcessLookupError, PermissionError):
                pass

    def _end(self) -> int:
        if self._kill is not None:
            self._kill.cancel()
        self._signal(signal.SIGKILL)
        self._over = True
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _spawn(self) -> tuple[int, list[int]]:
        """Start it. Returns our ends of its stdin and of its outputs."""
        ours: list[int] = []
        theirs: list[int] = []
        try:
            reading, writing = os.pipe()
            theirs.append(reading)
            ours.append(writing)
            for _ in range(2 if self._progress is None else 3):
                reading, writing = os.pipe()
                ours.append(reading)
                theirs.append(writing)
            targets = [0, 1, 2]
            if self._progress is not None:
                targets.append(self._progress[0])
                # If a pipe has this number by chance, dup2 does nothing, and must not have to.
                os.set_inheritable(theirs[3], theirs[3] == self._progress[0])
            actions = [
                (os.POSIX_SPAWN_DUP2, one, target) for one, target in zip(theirs, targets, strict=True)
            ]
            self._pid = os.posix_spawn(
                self._path,
                self._arguments,
                self._environ,
                file_actions=actions,
                # Signals from the terminal are for us alone, and one signal of ours reaches all that it starts.
                setpgroup=0,
                # Python ignores these two, and programs do not expect that.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except BaseException:
            for descriptor in ours:
                os.close(descriptor)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return ours[0], ours[1:]


def _await_end(pid: int, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    # WNOWAIT leaves it a zombie: its number, which is its group's too, stays its own until the group was killed.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        loop.call_soon_threadsafe(_set, ended)
    except RuntimeError:
        # The loop is closed, so nothing waits for this.
        pass


def _set(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)

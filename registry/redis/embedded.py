"""The private Redis: a valkey-server or redis-server of our own on a unix socket in the data folder.

    Embedded.start()   lock the folder -> end an earlier daemon's server -> start -> PING until it has loaded
    it exits           one CRITICAL line, then a restart after 0.1 s, doubling up to 5 s, for ever
    Embedded.stop()    SIGTERM, SIGKILL after 10 s, then the folder is unlocked

No data is lost and no process is left behind: the server runs in a session of its own, and ``keeper.py``
watches and ends it with SIGTERM once the daemon has ended, for whatever reason. A new daemon waits until the
server's own lock is free (``data_folder.py``), and ends the server itself if the watcher has died too.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry import machine
from registry.errors import EmbeddedUnavailable
from registry.redis import aof, data_folder, keeper
from registry.redis.address import RedisAddress
from registry.redis.servers import Release, choose, programs

__all__ = ["Embedded", "EmbeddedUnavailable", "find_binary"]

log = Logger()

POLL_SECONDS = 0.05
PING_SECONDS = 2.0
TERM_SECONDS = 10.0
BACKOFF_SECONDS = (0.1, 5.0)
STABLE_SECONDS = 10.0  # a server that ran this long resets the backoff

# "1234:M 24 Nov 2026 06:59:01.107 # text"; 3.2 writes no year.
_LINE = re.compile(r"^\d+:[\w-]+ (?:\(\d+\) |\d+ \w{3} (?:\d{4} )?[\d:.]+ )?([-.*#] )?(.*)$")


def find_binary(explicit: str | None = None) -> str:
    """The server for an empty data folder: the first of `registry.redis.servers.programs`."""
    return programs(explicit)[0]


class _Server(ProcessProtocol):
    """One run of the server: its last lines, and whether it has ended."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.lines: deque[str] = deque(maxlen=50)
        self.gone = False
        self.exit_text = ""
        self._rest = b""
        self._waiting: list[Deferred[None]] = []

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._line(line.decode("utf-8", "backslashreplace").strip())

    def _line(self, line: str) -> None:
        match = _LINE.match(line)
        mark, text = match.groups() if match else (line[:2] if line[:2] == "# " else "", line)
        text = text.removeprefix("# ")
        if not text or (
            match is None and mark != "# " and not text.startswith(("***", ">>>", "Bad ", "Reading "))
        ):
            return  # the logo
        self.lines.append(text)
        if mark == "# " and "WARNING" in text:
            log.warn("redis-server: {text}", text=text)
        elif mark == "# ":
            log.info("redis-server: {text}", text=text)
        else:
            log.debug("redis-server: {text}", text=text)

    def processExited(self, reason: Failure) -> None:
        value: Any = reason.value
        if isinstance(value, ProcessDone):
            self.exit_text = "exited with status 0"
        elif value.signal is not None:
            self.exit_text = f"was killed by {signal.Signals(value.signal).name}"
        else:
            self.exit_text = f"exited with status {value.exitCode}"
        # A forked child may keep the pipe open for long; the lines of the server itself arrive at once.
        self._give_up = self.reactor.callLater(0.5, self._end)
        assert self.transport is not None
        if keeper.LIFELINE in self.transport.pipes:  # type: ignore[attr-defined]
            self.transport.closeChildFD(keeper.LIFELINE)

    def processEnded(self, reason: Failure) -> None:
        if self._give_up.active():
            self._give_up.cancel()
        self._end()

    def _end(self) -> None:
        if self.gone:
            return
        self.gone = True
        assert self.transport is not None
        self.transport.loseConnection()
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def ended(self) -> Deferred[None]:
        """Fires when the process is gone and its last lines are read."""
        waiter: Deferred[None] = Deferred()
        if self.gone:
            waiter.callback(None)
        else:
            self._waiting.append(waiter)
        return waiter

    def why(self) -> str:
        """How the run ended, and its last line after a failure, as the end of a sentence."""
        lines = [line for line in self.lines if "WARNING" not in line]
        failed = self.exit_text.startswith("exited") and not self.exit_text.endswith(" 0")
        return f"{self.exit_text}; its last line: {lines[-1]}" if lines and failed else self.exit_text


class _Ping(Protocol):
    """Sends PING once; ``answer`` fires with the reply line, empty when the connection closes before it."""

    def __init__(self) -> None:
        self.answer: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._data = b""

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"*1\r\n$4\r\nPING\r\n")

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if b"\r\n" in self._data:
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.answer.called:
            self.answer.callback(self._data.partition(b"\r\n")[0])


class Embedded:
    """The private Redis of one daemon process. With several processes only the parent owns one.

    ``fsync`` is "always" (a reply is sent when it is on disk) or "everysec" (a power cut or a kill -9 of the
    server may lose about two seconds). ``binary`` is the REDIS_SERVER setting,
    ``maxmemory`` REDIS_MAXMEMORY: bytes, 0 for no limit, None for half of the memory there is.
    """

    def __init__(
        self,
        reactor: Any,
        data_dir: str,
        fsync: Literal["always", "everysec"],
        binary: str | None = None,
        *,
        maxmemory: int | None = None,
        environ: Mapping[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reactor = reactor
        self.data_dir = os.path.abspath(data_dir)
        self.folder = os.path.join(self.data_dir, "redis")
        self.fsync = fsync
        self.maxmemory = machine.memory() // 2 if maxmemory is None else maxmemory
        self.ready = False
        self.release: Release | None = None
        self._explicit = binary
        self._environ = os.environ if environ is None else environ
        self._monotonic = monotonic
        self._binary = self._socket = ""
        self._lock: int | None = None
        self._server: _Server | None = None
        self._running: Deferred[None] | None = None
        self._stopping = False
        self._starting: Deferred[None] | None = None
        self._pause: Deferred[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the server, None while there is none."""
        server = self._server
        return None if server is None or server.gone or server.transport is None else server.transport.pid

    @property
    def address(self) -> RedisAddress:
        """Where the server listens: set by ``start``, then the same for the life of the daemon."""
        return RedisAddress(kind="unix", path=self._socket)

    def start(self) -> Deferred[RedisAddress]:
        """Start the server; fires with its address once it has loaded its data and answers PING.

        Fails with EmbeddedUnavailable when it cannot; the folder is unlocked then.
        """
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> RedisAddress:
        starting = self._starting = Deferred()
        try:
            programs(self._explicit)  # fails before a folder is created when there is no server
            data_folder.private_folder(self.data_dir, force_mode=False)
            self._lock = data_folder.lock_daemon(self.data_dir)
            data_folder.private_folder(self.folder)
            self._socket = data_folder.socket_path(self.folder, self._environ)
            await self._launch()
            bound = f"{self.maxmemory >> 20} MiB" if self.maxmemory else "all"
            log.info("the embedded Redis may use {bound} of memory (REDIS_MAXMEMORY)", bound=bound)
        except BaseException:
            await self._end_server()
            self._unlock()
            raise
        else:
            self._running = Deferred.fromCoroutine(self._supervise())
        finally:
            self._starting = None
            starting.callback(None)
        return self.address

    def stop(self) -> Deferred[None]:
        """End the server with SIGTERM, and with SIGKILL after 10 s; fires once it has ended and the folder is unlocked.

        It may be called more than once.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._stopping = True
        self.ready = False
        if self._pause is not None:
            self._pause.cancel()
        await self._end_server()
        if self._starting is not None:
            await self._starting
        running, self._running = self._running, None
        if running is not None:
            await running
        self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    async def _sleep(self, seconds: float) -> None:
        """Wait for ``seconds``; ``stop`` ends the wait with EmbeddedUnavailable."""
        self._pause = deferLater(self.reactor, seconds, lambda: None)
        self._pause.addErrback(lambda _: None)
        try:
            await self._pause
        finally:
            self._pause = None
        self._check_not_stopped()

    def _check_not_stopped(self) -> None:
        if self._stopping:
            raise EmbeddedUnavailable("The embedded Redis was stopped.")

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _supervise(self) -> None:
        shortest, longest = BACKOFF_SECONDS
        pause = shortest
        while not self._stopping:
            since = self._monotonic()
            assert self._server is not None
            await self._server.ended()
            if self._is_stopping():
                return
            self.ready = False
            if self._monotonic() - since > STABLE_SECONDS:
                pause = shortest
            sentence = f"The embedded Redis {self._server.why()}"
            while True:
                log.critical("{sentence}; restarting it in {pause:.1f} s", sentence=sentence, pause=pause)
                try:
                    await self._sleep(pause)
                    pause = min(pause * 2, longest)
                    await self._launch()
                    break
                except EmbeddedUnavailable as error:
                    await self._end_server()
                    sentence = str(error).rstrip(".")
                except (
                    Exception
                ) as error:  # e.g. EMFILE in fork: the daemon must get its Redis back all the same
                    await self._end_server()
                    sentence = f"The embedded Redis could not be started: {error}"
                if self._is_stopping():
                    return

    async def _launch(self) -> None:
        """Choose the server, start it, and record that it writes the data from now on."""
        data = data_folder.describe_data(self.folder)
        self._binary, self.release = await choose(self.reactor, self.folder, data, self._explicit)
        await self._load()
        try:
            data_folder.record_writer(self.folder, self.release)
        except OSError as error:
            log.warn(
                "Could not record in {folder} that {release} now writes the data: {error}",
                folder=self.folder,
                release=self.release,
                error=error,
            )

    async def _load(self) -> None:
        """Start the server and wait until it has loaded; repair the end of its file, once, if nothing else is wrong."""
        server = await self._run(load_truncated=False)
        if server is None:
            return
        output = "\n".join(server.lines)
        path = aof.last_aof(self.folder)
        cut_off = "Unexpected end of file reading the append only file" in output
        damaged = cut_off or "Bad file format reading the append only file" in output
        if not damaged or path is None:
            raise EmbeddedUnavailable(f"The embedded Redis ({self._binary}) {server.why().rstrip('.')}.")
        refusal = EmbeddedUnavailable(
            f"The append-only file in {self.folder} is damaged in the middle, not only cut off at its "
            "end, and was not changed: restore a backup, or copy the folder and check what "
            "redis-check-aof would remove."
        )
        zeros = await self._in_thread(aof.zeros_at_end, path)
        if (not cut_off and not zeros) or (
            cut_off and "appendonlydir" in path and os.path.basename(path) not in output
        ):
            raise refusal
        size = os.path.getsize(path)
        aside: str = await self._in_thread(aof.copy_aside, path)
        try:
            os.truncate(path, size - zeros)
            whole = await self._in_thread(aof.whole_transactions, path)
            if whole is not None:
                os.truncate(path, whole)
            server = await self._run(load_truncated=True)
            kept = os.path.getsize(path)
            if server is not None or not await self._in_thread(aof.is_only_an_end, aside, kept):
                raise refusal
        except BaseException:
            await self._end_server()
            aof.restore(aside, path)
            raise
        self.ready = True
        log.critical(
            "The append-only file {path} ended in the middle of a command: {cut} of {size} bytes "
            "were cut off; the original file is kept as {aside}",
            path=path,
            cut=size - kept,
            size=size,
            aside=aside,
        )

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function, *args)

    async def _run(self, load_truncated: bool) -> _Server | None:
        """Start one server. Returns None when it answers, or the ended run when it exited instead."""
        lock = await self._acquire_lock()
        try:
            self._check_not_stopped()
            server = self._server = _Server(self.reactor)
            self.reactor.spawnProcess(
                server,
                sys.executable,
                [sys.executable, "-I", "-S", keeper.__file__, self._binary, *self._options(load_truncated)],
                env={
                    k: v for k, v in self._environ.items() if k in ("PATH", "LD_LIBRARY_PATH", "TZ", "TMPDIR")
                },
                path=self.folder,
                childFDs={keeper.LIFELINE: "w", 1: "r", 2: "r", keeper.LOCK: lock},
            )
        finally:
            os.close(lock)
        while not server.gone:
            if await self._ping() == b"+PONG" and not server.gone:
                self.ready = not load_truncated
                return None
            await self._sleep(POLL_SECONDS)
        return server

    def _options(self, load_truncated: bool) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": self._socket,
            "unixsocketperm": "700",
            "dir": self.folder,
            "appendonly": "yes",
            "appendfsync": self.fsync,
            "aof-load-truncated": "yes" if load_truncated else "no",
            "save": "",
            "maxmemory": str(self.maxmemory),
            "maxmemory-policy": "noeviction",
            "protected-mode": "yes",
            "daemonize": "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    async def _acquire_lock(self) -> int:
        """Take the server's lock once no earlier server runs; end one that an earlier daemon left."""
        give_up = self._monotonic() + TERM_SECONDS
        warned = False
        while (lock := data_folder.lock_server(self.folder)) is None:
            late = self._monotonic() > give_up
            if late and self._monotonic() > give_up + TERM_SECONDS:
                raise EmbeddedUnavailable(
                    f"An earlier redis-server still uses {self.folder} and cannot be stopped; stop it manually."
                )
            pids = data_folder.end_leftover_processes(self.folder, kill=late)
            if pids and not warned:
                warned = True
                log.warn(
                    "Stopping a redis-server that an earlier daemon left running (process {pids})", pids=pids
                )
            await self._sleep(POLL_SECONDS)
        return lock

    async def _ping(self) -> bytes:
        """The answer to PING, empty when there is none within two seconds."""
        ping = _Ping()
        try:
            factory = Factory.forProtocol(lambda: ping)
            factory.noisy = False
            await UNIXClientEndpoint(self.reactor, self._socket, timeout=PING_SECONDS).connect(factory)
            ping.answer.addTimeout(PING_SECONDS, self.reactor)
            return await ping.answer
        except Exception:
            return b""

    async def _end_server(self) -> None:
        server = self._server
        if server is None or server.gone:
            return
        assert server.transport is not None
        self._signal(server, "TERM")
        kill = self.reactor.callLater(TERM_SECONDS, self._signal, server, "KILL")
        await server.ended()
        if kill.active():
            kill.cancel()

    def _signal(self, server: _Server, name: str) -> None:
        if server.transport is not None and server.transport.pid:
            server.transport.signalProcess(name)
            if name == "KILL":
                log.critical("The embedded Redis did not exit within {s} s and was killed", s=TERM_SECONDS)

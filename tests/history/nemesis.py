"""Takes away one dependency of the daemons at a time, and restores it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol

import hiredis

from tests.history.record import Fault, History
from tests.live import Daemon


class Server(Protocol):
    """A redis-server, or what stands for the master of several."""

    def command(self, *words: str) -> Any: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def kill(self) -> None: ...
    def start(self) -> Any: ...


class Nemesis:
    """Faults in an order that the seed gives; `run` ends with everything healed."""

    def __init__(
        self,
        daemons: Sequence[Daemon],
        redis: Server,
        seed: int,
        history: History,
        rush: Callable[[bool], None],
        fails_over: bool = False,
    ) -> None:
        # When Redis dies or hangs, a replica takes its place.
        self._without_redis = "fail over" if fails_over else ""
        self._rush = rush
        self._daemons = daemons
        self._redis = redis
        self._choose = random.Random(f"{seed}/nemesis")
        self._history = history

    async def run(self, until: float) -> None:
        """One fault after the other until then (monotonic seconds); every kind once before any comes again."""
        faults: list[Callable[[], Awaitable[None]]] = []
        while True:
            await asyncio.sleep(self._choose.uniform(0.3, 2.5))
            if time.monotonic() > until:
                return
            if not faults:
                faults = [
                    self._kill_daemon,
                    self._kill_daemon,
                    self._stop_daemon,
                    self._flush_scripts,
                    self._flush_scripts,
                    self._pause_redis,
                    self._pause_redis,
                    self._kill_pubsub,
                    self._kill_connections,
                    self._kill_redis,
                ]
                self._choose.shuffle(faults)
            await faults.pop()()

    @contextlib.contextmanager
    def _told(self, what: str, daemon: int = -1) -> Iterator[None]:
        # Written down before it begins: what goes wrong because of it may be judged while it lasts.
        fault = Fault(what, time.monotonic(), float("inf"), daemon)
        self._history.faults.append(fault)
        try:
            yield
        finally:
            fault.end = time.monotonic()

    @contextlib.asynccontextmanager
    async def _busy(self) -> AsyncIterator[None]:
        """What is cut off here finds many pushes between being carried out and being answered."""
        self._rush(True)
        try:
            await asyncio.sleep(self._choose.uniform(0.1, 0.2))
            yield
        finally:
            self._rush(False)

    async def _kill_daemon(self) -> None:
        at = self._choose.randrange(len(self._daemons))
        with self._told("kill daemon", at):
            async with self._busy():
                await asyncio.to_thread(self._daemons[at].kill9)
            await asyncio.sleep(self._choose.uniform(0, 1.5))
            await asyncio.to_thread(self._daemons[at].start)

    async def _stop_daemon(self) -> None:
        at = self._choose.randrange(len(self._daemons))
        with self._told("stop daemon", at):
            await asyncio.to_thread(self._daemons[at].terminate)
            await asyncio.to_thread(self._daemons[at].start)

    async def _flush_scripts(self) -> None:
        with self._told("flush scripts"):
            for _ in range(self._choose.randrange(1, 10)):
                self._command("SCRIPT", "FLUSH")
                await asyncio.sleep(self._choose.uniform(0, 0.1))

    async def _pause_redis(self) -> None:
        with self._told(self._without_redis or "pause redis"):
            self._redis.pause()
            try:
                # Below and above what a call may take.
                await asyncio.sleep(self._choose.choice((0.3, 1.5, 2.9, 3.3, 4.5)))
            finally:
                self._redis.resume()

    async def _kill_pubsub(self) -> None:
        with self._told("kill pubsub"):
            for _ in range(self._choose.randrange(1, 6)):
                self._command("CLIENT", "KILL", "TYPE", "pubsub")
                await asyncio.sleep(self._choose.uniform(0, 0.3))

    async def _kill_connections(self) -> None:
        with self._told("kill connections"):
            async with self._busy():
                for _ in range(self._choose.randrange(1, 6)):
                    self._command("CLIENT", "KILL", "TYPE", "normal")
                    await asyncio.sleep(self._choose.uniform(0.05, 0.3))

    async def _kill_redis(self) -> None:
        with self._told(self._without_redis or "kill redis"):
            async with self._busy():
                await asyncio.to_thread(self._redis.kill)
            await asyncio.sleep(self._choose.uniform(0, 2))
            await asyncio.to_thread(self._redis.start)

    def _command(self, *words: str) -> None:
        # A command that kills connections may end its own.
        with contextlib.suppress(OSError, hiredis.ReplyError):
            self._redis.command(*words)

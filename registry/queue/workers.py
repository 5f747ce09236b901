"""Named workers: a newer poll of a worker ends its older one, whichever queue and daemon they use.

Redis decides which of two polls is newer: it publishes a notice when it runs a poll, and every daemon, including the one
that sent the poll, reads the notices in that order.

A worker whose connection broke polls again, and the poll it left behind must not take a task. Two live workers with the same
name look the same, and would end each other's polls for ever. So one name ends at most one poll in five seconds, over all
daemons, and its other polls stay open. While Redis is away, each process counts these seconds alone: its polls stay parked until
Redis is back, and the one that was left behind must not take a task then.

A poll ends only polls that were made with the same token: whoever may pop one queue must not end the polls of others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import Unavailable

log = Logger()

# A poll this old, s, counts as announced, because its own notice may have been lost.
ANNOUNCED_SECONDS = 1.0
# One name ends an older poll, and causes a warning, at most once in these times, ms.
END_EVERY_MS = 5_000
WARN_EVERY_MS = 60_000
# This process remembers, for at most this many names, when it ended a poll without Redis, and when a name was shared.
MAX_REMEMBERED = 10_000


class _Poll:
    __slots__ = ("announced", "began", "end", "number", "owner")

    def __init__(self, number: int, began: float, end: Callable[[], None], owner: str) -> None:
        self.number, self.began, self.end, self.owner = number, began, end, owner
        self.announced = False


class Workers:
    """The open polls of this process that named their worker.

    ``once(what, worker, ms)`` fires with True if no daemon has called it for the same ``what`` and worker in the last ``ms``.
    """

    def __init__(
        self, once: Callable[[str, str, int], Deferred[bool]], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._once = once
        self._now = now
        self._open: dict[str, list[_Poll]] = {}  # the oldest poll of each worker first
        self._ended_without_redis: dict[
            str, float
        ] = {}  # worker -> when a poll of it was ended without Redis
        self._shared: dict[str, float] = {}  # worker -> when several live workers were found to use this name
        self._process = os.urandom(4).hex()
        self._count = 0

    @property
    def serial(self) -> str:
        """The mark of the newest poll."""
        return f"{self._process}{self._count}"

    def open_polls(self) -> dict[str, int]:
        """How many polls of each worker are open."""
        return {worker: len(polls) for worker, polls in self._open.items()}

    def end_polls(self, worker: str) -> None:
        """End the open polls of this worker: it is to take nothing."""
        for poll in list(self._open.get(worker, ())):
            poll.end()

    def shared_at(self, worker: str) -> float | None:
        """When several live workers were last found to use this name, None for never."""
        return self._shared.get(worker)

    def begin_poll(self, worker: str, end: Callable[[], None], owner: str = "") -> Callable[[], None]:
        """A worker polls with the token named ``owner``: end its older poll, and register this one.

        Returns a function that unregisters it.
        """
        self._count += 1
        poll = _Poll(self._count, self._now(), end, owner)
        polls = self._open.setdefault(worker, [])
        older = next((one for one in polls if one.owner == owner), None)
        if older is not None:
            self._end(worker, older)
        polls.append(poll)

        def forget() -> None:
            if poll in polls:
                polls.remove(poll)
            if not polls and self._open.get(worker) is polls:
                del self._open[worker]

        return forget

    def announced(self, mark: str, worker: str) -> None:
        """Redis has carried out a poll of this worker with this mark, sent by another daemon or by this one.

        The mark is the serial of the poll, followed by a space and the name of its token, if there is one.
        """
        polls = self._open.get(worker, ())
        mark, _, owner = mark.partition(" ")
        if mark.startswith(self._process):
            newest = int(mark[len(self._process) :])
            for poll in polls:
                poll.announced = poll.announced or newest >= poll.number
            return
        for poll in polls:
            if poll.owner == owner and (poll.announced or self._now() >= poll.began + ANNOUNCED_SECONDS):
                self._end(worker, poll)
                return

    def _end(self, worker: str, older: _Poll) -> None:
        # A worker's name may have any character, a token's no line break.
        whose = f"{older.owner}\n{worker}" if older.owner else worker

        def may_end(first: bool) -> Deferred[None] | None:
            if first:
                older.end()
                return None
            _remember(self._shared, worker, self._now())
            return self._once("warned", whose, WARN_EVERY_MS).addCallback(warn)

        def warn(first: bool) -> None:
            if first:
                log.warn(
                    "several live workers poll as worker={worker!r}: all of them get tasks, but none of them can end the "
                    "poll that it left behind when its connection broke: give each worker its own name",
                    worker=worker,
                )

        def without_redis(failure: Failure) -> bool:
            failure.trap(Unavailable)
            return self._first_without_redis(whose)

        self._once("replaced", whose, END_EVERY_MS).addErrback(without_redis).addCallback(may_end).addErrback(
            lambda failure: failure.trap(Unavailable)
        ).addErrback(lambda failure: log.failure("an older poll of a worker could not be ended", failure))

    def _first_without_redis(self, worker: str) -> bool:
        """Like ``once("replaced", ...)``, but within this process, while Redis is away."""
        now, last = self._now(), self._ended_without_redis.get(worker)
        if last is not None and now < last + END_EVERY_MS / 1000:
            return False
        _remember(self._ended_without_redis, worker, now)
        return True


def _remember(times: dict[str, float], worker: str, now: float) -> None:
    if len(times) >= MAX_REMEMBERED:
        times.clear()
    times[worker] = now

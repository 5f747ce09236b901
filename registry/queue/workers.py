"""Who polls: of one worker only the newest poll is answered, whichever queue and daemon it reached.

Which of two is newer is told by Redis: it publishes a notice of each poll when it carries it out, and every daemon, the
poll's own too, reads the notices in that order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

# A poll this old counts as announced, s: its own notice may have been lost.
ANNOUNCED_SECONDS = 1.0


class _Poll:
    __slots__ = ("announced", "began", "end", "number")

    def __init__(self, number: int, began: float, end: Callable[[], None]) -> None:
        self.number, self.began, self.end = number, began, end
        self.announced = False


class Workers:
    """The open polls of this process that named their worker."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._open: dict[str, _Poll] = {}
        self._process = os.urandom(4).hex()
        self._count = 0

    @property
    def serial(self) -> str:
        """The mark of the newest poll."""
        return f"{self._process}{self._count}"

    def polls(self, worker: str, end: Callable[[], None]) -> Callable[[], None]:
        """A worker polls: its older poll ends, and this one is known until what is returned is called."""
        self._count += 1
        poll = _Poll(self._count, self._now(), end)
        older = self._open.get(worker)
        self._open[worker] = poll
        if older is not None:
            older.end()

        def over() -> None:
            if self._open.get(worker) is poll:
                del self._open[worker]

        return over

    def announced(self, mark: str, worker: str) -> None:
        """Redis has carried out a poll of this worker with this mark, sent by another daemon or by this one."""
        poll = self._open.get(worker)
        if poll is None:
            return
        if mark.startswith(self._process):
            poll.announced = poll.announced or int(mark[len(self._process) :]) >= poll.number
        elif poll.announced or self._now() >= poll.began + ANNOUNCED_SECONDS:
            poll.end()

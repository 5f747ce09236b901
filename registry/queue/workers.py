"""Who polls: of one worker only the newest poll is answered, whichever queue and daemon it reached."""

from __future__ import annotations

import os
from collections.abc import Callable


class Workers:
    """The open polls of this process that named their worker."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str, Callable[[], None]]] = {}
        self._process = os.urandom(4).hex()
        self._count = 0

    @property
    def serial(self) -> str:
        """The mark of the newest poll."""
        return f"{self._process}{self._count}"

    def polls(self, worker: str, end: Callable[[], None]) -> Callable[[], None]:
        """A worker polls: its older poll ends, and this one is known until what is returned is called."""
        self._count += 1
        mark = self.serial
        older = self._open.get(worker)
        self._open[worker] = (mark, end)
        if older is not None:
            older[1]()

        def over() -> None:
            if self._open.get(worker, ("",))[0] == mark:
                del self._open[worker]

        return over

    def polls_elsewhere(self, mark: str, worker: str) -> None:
        """Another daemon, or this one, sent a poll of this worker with this mark to Redis."""
        known = self._open.get(worker)
        if known is not None and not mark.startswith(self._process):
            known[1]()

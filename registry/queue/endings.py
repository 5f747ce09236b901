"""Waiting for the end of a task: whoever asked is told when any daemon has seen it done or dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred


class Endings:
    """Those in this process who wait for the end of a task."""

    def __init__(self, later: Callable[..., Any]) -> None:
        self._later = later
        self._waiting: dict[tuple[bytes, bytes], list[Deferred[bool]]] = {}

    def wait(self, name: bytes, task_id: bytes, seconds: float) -> Deferred[bool]:
        """Fires with True when the task has ended, with False when the time is up. May be cancelled."""
        key = (name, task_id)
        d: Deferred[bool] = Deferred(lambda d: self._leave(key, d))
        self._waiting.setdefault(key, []).append(d)
        timer = self._later(seconds, self._time_up, key, d)

        def over(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return d.addBoth(over)

    def _drop(self, key: tuple[bytes, bytes], d: Deferred[bool]) -> bool:
        waiting = self._waiting.get(key, [])
        # By identity: the Deferred handed out is the one that waits.
        left = [other for other in waiting if other is not d]
        if left:
            self._waiting[key] = left
        else:
            self._waiting.pop(key, None)
        return len(left) < len(waiting)

    def _leave(self, key: tuple[bytes, bytes], d: Deferred[bool]) -> None:
        self._drop(key, d)

    def _time_up(self, key: tuple[bytes, bytes], d: Deferred[bool]) -> None:
        if self._drop(key, d):
            d.callback(False)

    def ended(self, name: bytes, task_id: bytes) -> None:
        """This task has ended."""
        for d in self._waiting.pop((name, task_id), []):
            d.callback(True)

    def end_all(self) -> None:
        """The daemon stops: all are told that their time is up."""
        for key in list(self._waiting):
            for d in self._waiting.pop(key, []):
                d.callback(False)

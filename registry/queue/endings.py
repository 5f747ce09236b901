"""Waiting for the end of a task: whoever asked is told when any daemon has seen it done or dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred


class Ending(NamedTuple):
    """The queue in which the task is, or was; whether it has ended, or the time is up."""

    queue: bytes
    ended: bool


class _Waiter:
    """One who waits: what is told, and the queue in which the task is as far as this one knows."""

    __slots__ = ("queue", "told")

    def __init__(self, queue: bytes, told: Deferred[Ending]) -> None:
        self.queue = queue
        self.told = told


class Endings:
    """Those in this process who wait for the end of a task. Ids are unique, and stay a task's own when it moves to another queue."""

    def __init__(self, later: Callable[..., Any]) -> None:
        self._later = later
        self._waiting: dict[bytes, list[_Waiter]] = {}

    def wait(self, name: bytes, task_id: bytes, seconds: float) -> Deferred[Ending]:
        """Fires with an `Ending`. May be cancelled. ``name``: the queue in which the task is said to be now."""
        told: Deferred[Ending] = Deferred(lambda _: self._leave(task_id, waiter))
        waiter = _Waiter(name, told)
        self._waiting.setdefault(task_id, []).append(waiter)
        timer = self._later(seconds, self._time_up, task_id, waiter)

        def over(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return told.addBoth(over)

    def _leave(self, task_id: bytes, waiter: _Waiter) -> None:
        self._drop(task_id, waiter)

    def _drop(self, task_id: bytes, waiter: _Waiter) -> bool:
        waiting = self._waiting.get(task_id, [])
        left = [other for other in waiting if other is not waiter]
        if left:
            self._waiting[task_id] = left
        else:
            self._waiting.pop(task_id, None)
        return len(left) < len(waiting)

    def _time_up(self, task_id: bytes, waiter: _Waiter) -> None:
        if self._drop(task_id, waiter):
            waiter.told.callback(Ending(waiter.queue, False))

    def moved(self, task_id: bytes, name: bytes, to: bytes) -> None:
        """This task has left one queue for another."""
        for waiter in self._waiting.get(task_id, []):
            # Who has asked for it under a wrong name learns nothing by this.
            if waiter.queue == name:
                waiter.queue = to

    def awaited(self) -> set[tuple[bytes, bytes]]:
        """Queue and id of each task whose end somebody waits for."""
        return {(waiter.queue, task_id) for task_id, waiting in self._waiting.items() for waiter in waiting}

    def ended(self, name: bytes, task_id: bytes) -> None:
        """This task of this queue has ended."""
        for waiter in self._waiting.pop(task_id, []):
            waiter.told.callback(Ending(name, True))

    def end_all(self) -> None:
        """The daemon stops: all are told that their time is up."""
        for task_id in list(self._waiting):
            for waiter in self._waiting.pop(task_id, []):
                waiter.told.callback(Ending(waiter.queue, False))

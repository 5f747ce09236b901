"""Waiting for the end of a task: whoever asked is told when any daemon has seen it done or dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred


class Ending(NamedTuple):
    """The queue in which the task is, or was; whether it has ended, or the time is up."""

    queue: bytes
    ended: bool


class Endings:
    """Those in this process who wait for the end of a task. Ids are unique, and stay a task's own when it moves to another queue."""

    def __init__(self, later: Callable[..., Any]) -> None:
        self._later = later
        self._waiting: dict[bytes, list[Deferred[Ending]]] = {}
        self._queues: dict[bytes, bytes] = {}

    def wait(self, name: bytes, task_id: bytes, seconds: float) -> Deferred[Ending]:
        """Fires with an `Ending`. May be cancelled. ``name``: the queue in which the task is now."""
        d: Deferred[Ending] = Deferred(lambda d: self._leave(task_id, d))
        self._waiting.setdefault(task_id, []).append(d)
        self._queues[task_id] = name
        timer = self._later(seconds, self._time_up, task_id, d, name)

        def over(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return d.addBoth(over)

    def _drop(self, task_id: bytes, d: Deferred[Ending]) -> bool:
        waiting = self._waiting.get(task_id, [])
        # By identity: the Deferred handed out is the one that waits.
        left = [other for other in waiting if other is not d]
        if left:
            self._waiting[task_id] = left
        else:
            self._forget(task_id)
        return len(left) < len(waiting)

    def _leave(self, task_id: bytes, d: Deferred[Ending]) -> None:
        self._drop(task_id, d)

    def _time_up(self, task_id: bytes, d: Deferred[Ending], name: bytes) -> None:
        queue = self._queues.get(task_id, name)
        if self._drop(task_id, d):
            d.callback(Ending(queue, False))

    def moved(self, task_id: bytes, name: bytes) -> None:
        """This task is in another queue now."""
        if task_id in self._queues:
            self._queues[task_id] = name

    def _forget(self, task_id: bytes) -> list[Deferred[Ending]]:
        self._queues.pop(task_id, None)
        return self._waiting.pop(task_id, [])

    def awaited(self) -> list[tuple[bytes, bytes]]:
        """Queue and id of each task whose end somebody waits for."""
        return [(name, task_id) for task_id, name in self._queues.items()]

    def ended(self, name: bytes, task_id: bytes) -> None:
        """This task of this queue has ended."""
        for d in self._forget(task_id):
            d.callback(Ending(name, True))

    def end_all(self) -> None:
        """The daemon stops: all are told that their time is up."""
        for name, task_id in self.awaited():
            for d in self._forget(task_id):
                d.callback(Ending(name, False))

"""Waiting for the end of a task: every waiter is answered when any daemon has seen the task end, done or dead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import Unavailable
from registry.model import STATES, Code
from registry.queue.names import check_name
from registry.redis.store import Entry, Store

log = Logger()


class Queues(Protocol):
    """The part of `Queues` that this module uses."""

    store: Store
    later: Callable[..., Any]

    def ask(self, verb: str, entry: Entry) -> Deferred[Any]: ...


class Completion(NamedTuple):
    """``queue``: where the task is, or was. ``ended``: False if the wait timed out first."""

    queue: bytes
    ended: bool


class _Waiter:
    """``on_result`` fires with a `Completion`. ``queue``: where this waiter expects the task to be."""

    __slots__ = ("on_result", "queue")

    def __init__(self, queue: bytes, on_result: Deferred[Completion]) -> None:
        self.queue = queue
        self.on_result = on_result


class Completions:
    """The requests of this process that wait for the end of a task.

    Task ids are unique, and a task keeps its id when it moves to another queue.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._waiters: dict[bytes, list[_Waiter]] = {}

    def wait(self, name: bytes, task_id: bytes, seconds: float) -> Deferred[Completion]:
        """Fires with a `Completion`, within ``seconds``. May be cancelled. ``name``: the queue that holds the task now."""

        def cancelled(_: object) -> None:
            self._drop(task_id, waiter)

        on_result: Deferred[Completion] = Deferred(cancelled)
        waiter = _Waiter(name, on_result)
        self._waiters.setdefault(task_id, []).append(waiter)
        timer = self._queues.later(seconds, self._time_up, task_id, waiter)

        def closed(result: Any) -> Any:
            if timer.active():
                timer.cancel()
            return result

        return on_result.addBoth(closed)

    def watch(self, name: bytes, task_id: bytes) -> Deferred[str | None]:
        """Ask for a notice to all daemons when this task ends. Fires with its state now, or None if there is no such task."""
        check_name(name)
        d = self._queues.ask("watch", self._queues.store.of_lease(name, task_id))
        return d.addCallback(lambda reply: STATES[reply[1].decode()] if reply[0] == Code.OK else None)

    def look_again(self) -> None:
        """Notices may have been lost: read the state of every task that has a waiter."""
        waited_for = {(one.queue, task_id) for task_id, waiters in self._waiters.items() for one in waiters}
        for name, task_id in waited_for:
            self.watch(name, task_id).addCallbacks(partial(self._on_state, name, task_id), self._on_failure)

    def _on_state(self, name: bytes, task_id: bytes, state: str | None) -> None:
        if state in ("done", "dead"):
            self.ended(name, task_id)

    def _on_failure(self, failure: Failure) -> None:
        if not failure.check(Unavailable):
            log.failure("the state of a task could not be read", failure)

    def ended(self, name: bytes, task_id: bytes) -> None:
        """This task of this queue has ended."""
        for waiter in self._waiters.pop(task_id, []):
            waiter.on_result.callback(Completion(name, True))

    def moved(self, task_id: bytes, name: bytes, to: bytes) -> None:
        """This task has moved from one queue to another."""
        for waiter in self._waiters.get(task_id, []):
            # A waiter that expects the task in a different queue is not updated.
            if waiter.queue == name:
                waiter.queue = to

    def end_all(self) -> None:
        """The daemon stops: every waiter is answered as if its time were up."""
        for task_id in list(self._waiters):
            for waiter in self._waiters.pop(task_id, []):
                waiter.on_result.callback(Completion(waiter.queue, False))

    def _time_up(self, task_id: bytes, waiter: _Waiter) -> None:
        if self._drop(task_id, waiter):
            waiter.on_result.callback(Completion(waiter.queue, False))

    def _drop(self, task_id: bytes, waiter: _Waiter) -> bool:
        waiters = self._waiters.get(task_id, [])
        left = [other for other in waiters if other is not waiter]
        if left:
            self._waiters[task_id] = left
        else:
            self._waiters.pop(task_id, None)
        return len(left) < len(waiters)

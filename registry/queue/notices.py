"""Notices of other daemons, which the scripts publish in Redis. The first line of each is the process that caused it.

channel | the other lines                       | what it causes here
--------|---------------------------------------|-----------------------------------------------------------------
wake    | list keys                             | a parked poller of each queue asks again, then the next one, until one finds nothing
ended   | list key, TAB, task id                | the requests that wait for the end of that task are answered
moved   | list key, TAB, task id, TAB, list key | the requests that wait for that task expect it in its new queue
orders  | nothing                               | the orders to workers are read again
worker  | mark of a poll, then its worker       | an older poll of that worker ends; a process also handles its own notices here

Names contain no control characters, so the separators are unambiguous.
"""

from __future__ import annotations

from collections.abc import Callable

from registry.errors import Unavailable
from registry.queue.completions import Completions
from registry.queue.queues import Queues


class Notices:
    """Decodes the notices of one store and passes them on. `received` and `look_again` are for a `Subscriber`.

    ``noticed(name)`` is called for each queue that has got tasks.
    """

    def __init__(
        self, queues: Queues, completions: Completions, noticed: Callable[[bytes], None] = lambda name: None
    ) -> None:
        self._queues = queues
        self._noticed = noticed
        self._store = queues.store
        self._completions = completions
        keys = self._store.keys
        self._handlers = {
            keys.wake: self._wake,
            keys.ended: self._ended,
            keys.moved: self._moved,
            keys.worker: self._worker,
            keys.orders: self._orders,
        }

    @property
    def channels(self) -> list[bytes]:
        """The channels to subscribe to."""
        return list(self._handlers)

    def received(self, channel: bytes, message: bytes) -> None:
        """A notice has arrived: pass it on, unless this process sent it."""
        sender, _, rest = message.partition(b"\n")
        if sender != self._store.process:
            self._handlers[channel](rest)

    def look_again(self) -> None:
        """Notices may have been lost: look for new tasks, for tasks that have ended, and for orders."""
        self._queues.wait_lists.wake_all()
        self._completions.look_again()
        self._orders(b"")

    def _wake(self, keys: bytes) -> None:
        wait_lists = self._queues.wait_lists
        for key in keys.split(b"\n"):
            name = self._store.name_of(key)
            self._noticed(name)
            if name in wait_lists.lists:
                wait_lists.wake(name, wake_next=True)

    def _ended(self, tasks: bytes) -> None:
        for task in tasks.split(b"\n"):
            key, _, task_id = task.rpartition(b"\t")
            self._completions.ended(self._store.name_of(key), task_id)

    def _moved(self, moves: bytes) -> None:
        for move in moves.split(b"\n"):
            key, task_id, to = move.split(b"\t")
            self._completions.moved(task_id, self._store.name_of(key), self._store.name_of(to))

    def _orders(self, _: bytes) -> None:
        self._queues.orders.read().addErrback(lambda failure: failure.trap(Unavailable) and None)

    def _worker(self, poll: bytes) -> None:
        mark, _, worker = poll.partition(b"\n")
        self._queues.polls.workers.announced(mark.decode(), worker.decode())

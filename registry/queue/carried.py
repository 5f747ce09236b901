"""Who is told what Redis answered to a push."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.python.failure import Failure

from registry.queue.promise import Receiver
from registry.queue.taken import Pushed, denied
from registry.queue.waiting import Poller, Waiting


class Queues(Protocol):
    """What is asked here of the queues."""

    waiting: Waiting

    def wake(self, name: bytes) -> None: ...

    def wake_early(self, name: bytes) -> Poller | None: ...


class Storing:
    """A push on its way. When it is stored, whoever waits for the task is woken, and ``told`` is told what was `Pushed`.

    ``tail`` ends the task's id. ``at_once``: the task will certainly be ready then. ``early``: the poller that asked right
    behind it, and which of its questions that was.
    """

    __slots__ = ("at_once", "early", "name", "queues", "tail", "told")

    def __init__(self, queues: Queues, name: bytes, tail: bytes, told: Receiver, at_once: bool) -> None:
        self.at_once = at_once
        self.queues = queues
        self.name = name
        self.tail = tail
        self.told = told
        self.early: tuple[Poller, int] | None = None

    def sent(self) -> None:
        """It was given to the connection."""
        if self.at_once:
            poller = self.queues.wake_early(self.name)
            if poller is not None:
                self.early = poller, poller.asked

    def callback(self, reply: list[Any]) -> None:
        if reply[0]:
            self.told.errback(Failure(denied(reply)))
        elif len(reply) > 2:
            self.told.callback(Pushed(reply[1], reply[2]))
        else:
            queues, name, early = self.queues, self.name, self.early
            # Answers come in order: a question that is still open reached Redis behind this push, and finds the task.
            if name in queues.waiting.lines and (
                early is None or not early[0].asking or early[0].asked != early[1]
            ):
                queues.wake(name)
            self.told.callback(Pushed(reply[1] + self.tail))

    def errback(self, failure: Failure) -> None:
        self.told.errback(failure)

"""A push on its way to Redis: the receiver of its result, and the poller that it wakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct
from twisted.python.failure import Failure

from registry.queue.delivery import Pushed
from registry.queue.promise import Receiver
from registry.queue.wait_lists import WaitLists
from registry.redis.faults import error_from_reply

if TYPE_CHECKING:
    from registry.queue.polls import Poller


class PendingPush(Struct, eq=False):
    """When the task is stored, wakes a parked poller and passes a `Pushed` to ``receiver``.

    ``tail``: the last part of the task's id. ``at_once``: the stored task is certainly ready. ``early``: the poller that
    asked right behind the push, and the number of that question.
    """

    wait_lists: WaitLists
    name: bytes
    tail: bytes
    receiver: Receiver
    at_once: bool
    early: tuple[Poller, int] | None = None

    def sent(self) -> None:
        """The push was written to the connection: let a parked poller ask right behind it."""
        if self.at_once:
            poller = self.wait_lists.wake_early(self.name)
            if poller is not None:
                self.early = poller, poller.questions

    def callback(self, reply: list[Any]) -> None:
        if reply[0]:
            self.receiver.errback(Failure(error_from_reply(reply)))
        elif len(reply) > 2:
            self.receiver.callback(_found(reply))
        else:
            wait_lists, name, early = self.wait_lists, self.name, self.early
            # Replies arrive in order: a question that is still in flight reached Redis after this push, so it finds the task.
            if name in wait_lists.lists and (early is None or not early[0].in_flight(early[1])):
                wait_lists.wake(name)
            self.receiver.callback(Pushed(reply[1] + self.tail))

    def errback(self, failure: Failure) -> None:
        self.receiver.errback(failure)


def _found(reply: list[Any]) -> Pushed:
    """The result of a push that found a task instead of storing one."""
    how = reply[2]
    return Pushed(reply[1], duplicate=how in (1, 3), replayed=how in (2, 3))

"""Wait lists: who waits in this process for a task of which queue, and who is next.

A parked poller costs memory, and nothing else: no connection to Redis and no command. A wait list holds the pollers of one
queue, first come, first served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

# Places in the wait lists of a process: a poller that waits for several queues has one in each.
MOST_PARKED = 100_000
# Queues with parked pollers that are asked again in one turn of the reactor, when all of them are.
WAKES_A_TURN = 500
# The state of what stands in a wait list. Anything else that is still in its deque has gone, and is passed over.
PARKED: Final = 1


class Parked(Protocol):
    """What stands in a wait list: a poller of one queue (``alone``), or the place of a poller of several."""

    alone: bool
    name: bytes
    leased: bool
    ticket: int
    state: int

    def woken(self, wake_next: bool) -> Any: ...

    def forget_failure(self) -> None: ...

    def end(self) -> None: ...


class WaitList:
    """One queue: those parked, in order; how many questions are in flight; wakes that found nobody parked.

    ``gone``: how many in the deque are not parked any more. ``timer``: wakes the first when the queue's rate permits a task.
    """

    __slots__ = ("gone", "in_flight", "parked", "pending_wakes", "timer")

    def __init__(self) -> None:
        self.parked: deque[Parked] = deque()
        self.timer: Any = None
        self.in_flight = 0
        self.pending_wakes = 0
        self.gone = 0

    def __len__(self) -> int:
        return len(self.parked) - self.gone

    def first(self) -> Parked | None:
        """Take the first one out of the list."""
        while self.parked:
            one = self.parked.popleft()
            if one.state == PARKED:
                return one
            self.gone -= 1
        return None

    def put(self, one: Parked) -> None:
        """Park it by its ticket: a poller that asked in vain returns to its old place, which is near the front."""
        parked = self.parked
        if not parked or parked[-1].ticket < one.ticket:
            parked.append(one)
            return
        at = 0
        while parked[at].ticket < one.ticket:
            at += 1
        parked.insert(at, one)

    def set_timer(self, timer: Any) -> None:
        """Wake the first at another time than was known before."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = timer

    def forget_one(self) -> None:
        """One of them has gone. It leaves the deque now, or when those that have gone outnumber the others."""
        self.gone += 1
        if self.gone * 2 > len(self.parked):
            self.parked = deque(one for one in self.parked if one.state == PARKED)
            self.gone = 0


class WaitLists:
    """All wait lists of this process, and what wakes those in them. ``parked`` counts the places in them."""

    def __init__(self, later: Callable[..., Any]) -> None:
        self.later = later
        self.lists: dict[bytes, WaitList] = {}
        self.parked = 0
        self._tickets = 0

    def has_room(self, more: int) -> bool:
        """Whether so many more may be parked. Each costs memory, and a part of the look that is taken every second."""
        return self.parked + more <= MOST_PARKED

    def of(self, name: bytes) -> WaitList:
        """The wait list of this queue, made when there is none."""
        wait_list = self.lists.get(name)
        if wait_list is None:
            wait_list = self.lists[name] = WaitList()
        return wait_list

    def ticket(self) -> int:
        """The place of a newcomer."""
        self._tickets += 1
        return self._tickets

    def park(self, one: Parked) -> WaitList:
        """Put it into the list of its queue, at its place."""
        wait_list = self.of(one.name)
        wait_list.put(one)
        self.parked += 1
        return wait_list

    def leave(self, one: Parked) -> None:
        """It was parked, and has gone: its state says so already."""
        self.parked -= 1
        wait_list = self.lists[one.name]
        wait_list.forget_one()
        self.tidy(one.name, wait_list)

    def next(self, name: bytes) -> Parked | None:
        """Take the next one out of the list of this queue, or note that a wake found nobody parked."""
        wait_list = self.lists.get(name)
        if wait_list is None:
            return None
        one = wait_list.first()
        if one is None:
            # Questions in flight may have been answered "nothing" before the task came: one of their pollers asks again.
            if wait_list.in_flight:
                wait_list.pending_wakes += 1
            self.tidy(name, wait_list)
            return None
        self.parked -= 1
        return one

    def tidy(self, name: bytes, wait_list: WaitList) -> None:
        """A list that nobody uses goes: a queue of one request must leave nothing behind."""
        if not wait_list.in_flight and not wait_list.parked:
            self.lists.pop(name, None)
            wait_list.set_timer(None)

    def names(self) -> list[bytes]:
        """Queues with parked pollers."""
        return [name for name, wait_list in self.lists.items() if wait_list.parked]

    # Waking

    def wake(self, name: bytes, wake_next: bool = False) -> None:
        """One parked poller of this queue asks again; with ``wake_next`` the next does too, until one finds nothing."""
        if wake_next:
            wait_list = self.lists.get(name)
            if wait_list is not None and wait_list.in_flight:
                # A poller with a question in flight is in front of those parked: it asks again after "nothing", else it passes on.
                wait_list.pending_wakes += 1
                return
        one = self.next(name)
        if one is not None:
            one.woken(wake_next)

    def wake_early(self, name: bytes) -> Any:
        """A push to this queue was just sent: a parked poller asks right behind it, a round trip sooner than when it is woken."""
        wait_list = self.lists.get(name)
        if wait_list is None or wait_list.in_flight:
            # A question in flight may be answered "nothing", and its poller is in front of all others.
            return None
        one = wait_list.first()
        if one is None:
            self.tidy(name, wait_list)
            return None
        if not one.alone:
            # What it is given may be of another queue.
            wait_list.put(one)
            return None
        self.parked -= 1
        one.woken(False)
        return one

    def wake_later(self, name: bytes, ms: int) -> None:
        """The rate of this queue permits no task before that: its parked pollers ask again then."""
        wait_list = self.lists.get(name)
        if wait_list is not None and wait_list.parked:
            wait_list.set_timer(self.later(ms / 1000, self.wake, name, True))

    def wake_all(self) -> None:
        """Every queue with parked pollers is asked again: a notice may have been lost."""
        self._wake_from(self.names(), 0)

    def _wake_from(self, names: list[bytes], at: int) -> None:
        for name in names[at : at + WAKES_A_TURN]:
            self.wake(name, wake_next=True)
        if at + WAKES_A_TURN < len(names):
            self.later(0, self._wake_from, names, at + WAKES_A_TURN)

    def forget_failures(self) -> None:
        """Redis is back: every parked poller may be answered that there is nothing again."""
        for one in self:
            one.forget_failure()

    def __iter__(self) -> Iterator[Parked]:
        for wait_list in list(self.lists.values()):
            for one in list(wait_list.parked):
                if one.state == PARKED:
                    yield one

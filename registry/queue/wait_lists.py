"""Wait lists: which pollers of this process wait for a task of which queue, and which is next.

A parked poller costs only memory: no connection to Redis and no command. A wait list holds the pollers of one queue, first
come, first served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

# Places in the wait lists of a process: a poller that waits for several queues has one in each.
MAX_PARKED = 100_000
# `wake_all` wakes the pollers of at most this many queues in one turn of the reactor.
WAKES_PER_TURN = 500
# The state of an entry that is in a wait list. An entry in the deque with another state has left, and is skipped.
PARKED: Final = 1


class Parked(Protocol):
    """An entry of a wait list: a poller of one queue (``alone``), or the place of a poller of several."""

    alone: bool
    name: bytes
    leased: bool
    ticket: int
    state: int

    def woken(self, wake_next: bool) -> Any: ...

    def forget_failure(self) -> None: ...

    def end(self) -> None: ...


class WaitList:
    """The wait list of one queue: ``parked`` in order, ``in_flight`` questions, and ``pending_wakes`` that found nobody parked.

    ``gone``: how many entries of the deque are no longer parked. ``timer``: wakes the first when the rate limit permits a task.
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

    def pop_first(self) -> Parked | None:
        """Remove and return the first parked entry; None if there is none."""
        while self.parked:
            one = self.parked.popleft()
            if one.state == PARKED:
                return one
            self.gone -= 1
        return None

    def insert(self, one: Parked) -> None:
        """Insert by ticket: a poller whose question found nothing returns to its old place, which is near the front."""
        parked = self.parked
        if not parked or parked[-1].ticket < one.ticket:
            parked.append(one)
            return
        at = 0
        while parked[at].ticket < one.ticket:
            at += 1
        parked.insert(at, one)

    def set_timer(self, timer: Any) -> None:
        """Replace the timer that wakes the first entry."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        self.timer = timer

    def count_gone(self) -> None:
        """An entry has left. It stays in the deque until such entries outnumber the others."""
        self.gone += 1
        if self.gone * 2 > len(self.parked):
            self.parked = deque(one for one in self.parked if one.state == PARKED)
            self.gone = 0


class WaitLists:
    """All wait lists of this process, and the ways to wake their entries. ``parked`` counts the entries of all lists."""

    def __init__(self, later: Callable[..., Any]) -> None:
        self.later = later
        self.lists: dict[bytes, WaitList] = {}
        self.parked = 0
        self._tickets = 0

    def has_room(self, more: int) -> bool:
        """Whether this many more may be parked. Each costs memory, and time in the check that runs about every second."""
        return self.parked + more <= MAX_PARKED

    def of(self, name: bytes) -> WaitList:
        """The wait list of this queue; created if there is none."""
        wait_list = self.lists.get(name)
        if wait_list is None:
            wait_list = self.lists[name] = WaitList()
        return wait_list

    def ticket(self) -> int:
        """A ticket for a new poller: higher than all before."""
        self._tickets += 1
        return self._tickets

    def park(self, one: Parked) -> WaitList:
        """Insert an entry into the list of its queue, by its ticket. Returns the list."""
        wait_list = self.of(one.name)
        wait_list.insert(one)
        self.parked += 1
        return wait_list

    def leave(self, one: Parked) -> None:
        """A parked entry has left; its state has already changed."""
        self.parked -= 1
        wait_list = self.lists[one.name]
        wait_list.count_gone()
        self.tidy(one.name, wait_list)

    def pop_next(self, name: bytes) -> Parked | None:
        """Remove and return the next entry of this queue; if nobody is parked, count a pending wake and return None."""
        wait_list = self.lists.get(name)
        if wait_list is None:
            return None
        one = wait_list.pop_first()
        if one is None:
            # Redis may have answered the questions in flight before the task arrived: one of their pollers must ask again.
            if wait_list.in_flight:
                wait_list.pending_wakes += 1
            self.tidy(name, wait_list)
            return None
        self.parked -= 1
        return one

    def tidy(self, name: bytes, wait_list: WaitList) -> None:
        """Delete a list that nobody uses, so that a queue used only once leaves nothing in memory."""
        if not wait_list.in_flight and not wait_list.parked:
            self.lists.pop(name, None)
            wait_list.set_timer(None)

    def names(self) -> list[bytes]:
        """Queues with parked pollers."""
        return [name for name, wait_list in self.lists.items() if wait_list.parked]

    # Waking

    def wake(self, name: bytes, wake_next: bool = False) -> None:
        """Wake one parked poller of this queue; with ``wake_next`` it wakes the next in turn, until one finds nothing."""
        if wake_next:
            wait_list = self.lists.get(name)
            if wait_list is not None and wait_list.in_flight:
                # A poller with a question in flight comes before parked ones: it asks again after "nothing", or passes the wake on.
                wait_list.pending_wakes += 1
                return
        one = self.pop_next(name)
        if one is not None:
            one.woken(wake_next)

    def wake_early(self, name: bytes) -> Any:
        """A push to this queue was just sent: let a parked poller ask right behind it, which saves a round trip.

        Returns that poller, or None.
        """
        wait_list = self.lists.get(name)
        if wait_list is None or wait_list.in_flight:
            # The question in flight may find nothing; then its poller comes before all others.
            return None
        one = wait_list.pop_first()
        if one is None:
            self.tidy(name, wait_list)
            return None
        if not one.alone:
            # It waits for several queues: it may get a task of another one.
            wait_list.insert(one)
            return None
        self.parked -= 1
        one.woken(False)
        return one

    def wake_later(self, name: bytes, ms: int) -> None:
        """The rate limit of this queue permits no task for ``ms``: wake its parked pollers after that."""
        wait_list = self.lists.get(name)
        if wait_list is not None and wait_list.parked:
            wait_list.set_timer(self.later(ms / 1000, self.wake, name, True))

    def wake_all(self) -> None:
        """Wake a poller of every queue with parked pollers: a notice may have been lost."""
        self._wake_from(self.names(), 0)

    def _wake_from(self, names: list[bytes], at: int) -> None:
        for name in names[at : at + WAKES_PER_TURN]:
            self.wake(name, wake_next=True)
        if at + WAKES_PER_TURN < len(names):
            self.later(0, self._wake_from, names, at + WAKES_PER_TURN)

    def forget_failures(self) -> None:
        """Redis is back: parked pollers may be answered "nothing" again."""
        for one in self:
            one.forget_failure()

    def __iter__(self) -> Iterator[Parked]:
        for wait_list in list(self.lists.values()):
            for one in list(wait_list.parked):
                if one.state == PARKED:
                    yield one

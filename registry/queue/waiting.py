"""Parked pollers: who waits in this process for a task of which queue, and who is next.

A parked poller costs memory, and nothing else: no connection to Redis and no command. A line is one queue's pollers,
first come, first served.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from twisted.python.failure import Failure

from registry.errors import Overloaded
from registry.queue.promise import Receiver

# Places of pollers in a process: a request that waits for several queues has one in each.
MOST_PARKED = 100_000


class Poller:
    """One request that waits for a task; ``told`` is told a `Taken`, or None when its time is up.

    ``asking``: its question is on the way to Redis. ``waited``: it was parked before.
    ``over``: it has been answered, or has hung up. ``polling``: to be called then, when it named its worker.
    ``replaced``: a newer poll of its worker came while it was asking.
    ``owner``: the request for several queues that this is one place of; it does the asking.
    ``failure``: how its last question went wrong, if it did.
    """

    __slots__ = (
        "asked",
        "asking",
        "expired",
        "failure",
        "lease_ms",
        "leased",
        "name",
        "nonce",
        "options",
        "over",
        "owner",
        "polling",
        "queues",
        "relay",
        "replaced",
        "ticket",
        "timer",
        "told",
        "until",
        "waited",
    )

    def __init__(
        self, queues: Any, name: bytes, lease_ms: int, options: dict[str, Any] | None, told: Receiver | None
    ) -> None:
        self.queues = queues
        self.told: Any = told
        self.name = name
        self.lease_ms = lease_ms
        self.options = options
        self.leased = options is not None and bool(options.get("l"))
        self.owner: Any = None
        self.nonce = b""
        self.ticket = 0
        self.asked = 0
        self.asking = self.over = self.expired = self.relay = self.replaced = self.waited = False
        self.timer: Any = None
        self.failure: Failure | None = None
        self.polling: Callable[[], None] | None = None
        self.until = 0.0

    def callback(self, reply: list[Any]) -> None:
        """Redis has answered its question."""
        self.queues.answered(self, reply)

    def errback(self, failure: Failure) -> None:
        """Its question was not carried out, or nobody knows."""
        self.queues.unanswered(self, failure)

    def hang_up(self) -> None:
        """Its client has gone."""
        self.queues.hung_up(self)


class Line:
    """The pollers of one queue: those parked in order, how many are asking, wakings that nobody parked could take."""

    __slots__ = ("asking", "later", "missed", "parked", "stale")

    def __init__(self) -> None:
        self.parked: deque[Poller] = deque()
        self.later: Any = None
        self.asking = 0
        self.missed = 0
        self.stale = 0

    def first(self) -> Poller | None:
        """Take the first parked poller out of the line."""
        while self.parked:
            poller = self.parked.popleft()
            if not poller.over:
                return poller
            self.stale -= 1
        return None

    def put(self, poller: Poller) -> None:
        """Park by ticket: one that asked in vain returns to its old place, which is near the front."""
        parked = self.parked
        if not parked or parked[-1].ticket < poller.ticket:
            parked.append(poller)
            return
        at = 0
        while parked[at].ticket < poller.ticket:
            at += 1
        parked.insert(at, poller)

    def look_later(self, call: Any) -> None:
        """In place of the call before: wakes the first of the line when the rate of its queue lets a task start."""
        if self.later is not None and self.later.active():
            self.later.cancel()
        self.later = call

    def forget_one(self) -> None:
        """A parked poller is over; it leaves the deque now or when those that are over outnumber the rest."""
        self.stale += 1
        if self.stale * 2 > len(self.parked):
            self.parked = deque(p for p in self.parked if not p.over)
            self.stale = 0


class Waiting:
    """All lines of this process. ``parked`` counts the pollers in them, one that waits for several queues in each of them."""

    def __init__(self) -> None:
        self.lines: dict[bytes, Line] = {}
        self.parked = 0
        self._tickets = 0

    def has_room(self, more: int) -> bool:
        """Whether so many more may be parked. Each costs memory, and a part of the look that is taken every second."""
        return self.parked + more <= MOST_PARKED

    def line(self, name: bytes) -> Line:
        """The line of this queue, made when there is none."""
        line = self.lines.get(name)
        if line is None:
            line = self.lines[name] = Line()
        return line

    def ticket(self) -> int:
        """The place of a newcomer."""
        self._tickets += 1
        return self._tickets

    def park(self, poller: Poller) -> None:
        """Put the poller in the line of its queue, at its place."""
        self.line(poller.name).put(poller)
        poller.waited = True
        self.parked += 1

    def leave(self, poller: Poller) -> None:
        """A parked poller is over: its answer was written, or it hung up."""
        self.parked -= 1
        line = self.lines[poller.name]
        line.forget_one()
        self.tidy(poller.name, line)

    def next(self, name: bytes) -> Poller | None:
        """Take the next parked poller of this queue out of its line, or note that a waking found none."""
        line = self.lines.get(name)
        if line is None:
            return None
        poller = line.first()
        if poller is None:
            # Those asking now may have been answered "nothing" before what woke us came in: one of them asks again.
            if line.asking:
                line.missed += 1
            self.tidy(name, line)
            return None
        self.parked -= 1
        return poller

    def tidy(self, name: bytes, line: Line) -> None:
        """A line without pollers goes: a queue of one request must leave nothing behind."""
        if not line.asking and not line.parked:
            self.lines.pop(name, None)
            line.look_later(None)

    def names(self) -> list[bytes]:
        """Queues with parked pollers."""
        return [name for name, line in self.lines.items() if line.parked]

    def forget_failures(self) -> None:
        """Redis is back: a poll whose question failed is told "nothing" again when its time is up."""
        for poller in self.pollers():
            (poller.owner or poller).failure = None

    def pollers(self) -> Iterator[Poller]:
        """Every parked poller."""
        for line in list(self.lines.values()):
            for poller in list(line.parked):
                if not poller.over:
                    yield poller


def too_many_wait() -> Overloaded:
    """What a poll is told that would be parked beside too many others."""
    return Overloaded("Too many polls wait here already; try again in a moment, or for fewer queues at once.")

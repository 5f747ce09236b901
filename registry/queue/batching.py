"""Group commit: all requests of one reactor turn with the same verb travel in one script call, whatever their queues.

A lone request goes at the end of its own turn. At most two calls are under way; what comes meanwhile gathers behind
them, so the groups grow with the load by themselves. An fsync per call is then an fsync for many requests.

While Redis is away, what would be sent is held, in its order, for a bounded time and within a bound in bytes: producers
that know no "try again" lose nothing to a Redis that restarts. Nothing is held that was sent and not answered.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import Overloaded, RedisUnavailable, Unavailable

log = Logger()

MAX_ENTRIES = 128
# Put-backs of one moment keep their order, which they can only within a call. Of popmany it is the queues that are counted.
MOST_ENTRIES = {"putback": 2048, "popmany": 200}
WEIGHED = frozenset({"popmany"})
MAX_BYTES = 1 << 20
# Larger entries wait in a line of their own: of many that come at once, a small one waits for those under way and not for all.
LARGE = 64 * 1024
_LARGE_LINE = " (large)"
MAX_IN_FLIGHT = 2
MAX_WAITING_BYTES = 64 << 20
# Not held while Redis is away: pollers park, the queues keep what settles a hand-over, and a look is told at once.
NOT_HELD = frozenset({"pop", "popmany", "confirm", "putback", "bury", "watch", "counts"})
# These read what is known of a task, which may be large: the script answers as many entries as it has time for, one at least.
MAY_STOP = frozenset({"ack", "fail", "extend", "retry"})
# What a held request costs beside its own bytes.
HELD_BYTES = 1024


class Entry(Protocol):
    """What a call carries of one request: its size in bytes, and what has ``callback`` and ``errback`` for its own reply.

    ``came``: when it was put beside the others. ``until``: the end of its time, once it is held; not there before.
    ``weight``: what it counts for in a call.
    """

    weight: int

    size: int
    reply: Any
    came: float
    until: float


Send = Callable[[str, Sequence[Any]], "Deferred[list[Any]]"]
Later = Callable[..., Any]


class Batching:
    """Gathers entries by verb and sends them in groups.

    ``send(verb, entries)`` carries one group; ``later(0, f)`` runs ``f`` at the end of this reactor turn. ``away()`` is why
    nothing can be sent now, or None; what may be held is then kept for ``hold_seconds``, or until `flush` is called.
    """

    def __init__(
        self,
        send: Send,
        later: Later,
        away: Callable[[], Unavailable | None] = lambda: None,
        hold_seconds: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send = send
        self._later = later
        self._away = away
        self._hold_seconds = hold_seconds
        self._now = now
        self._held: list[str] = []  # the lines of which entries are held, which are in no turn meanwhile
        self._refused: dict[str, int] = {}  # of these so many, at the front, were sent and refused
        self._expiry: Any = None
        self._turn_began = 0.0
        self._waiting: dict[str, deque[Any]] = {}
        self._turns: deque[str] = deque()
        self._in_flight = 0
        self._bytes = 0
        self._scheduled = False
        self._flushing = False
        # Replies of a group are given out within it: answers may leave together.
        self.corked: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._in_flight and not self._bytes

    def add(self, verb: str, entry: Entry, large: bool = False) -> Any:
        """Put a request beside the others of its verb; what is returned is told its own reply.

        ``large``: it belongs to one that is larger than ``LARGE``, and must not overtake it.
        """
        if self._bytes > MAX_WAITING_BYTES:
            raise Overloaded("Too much is waiting for Redis already; try again in a moment.")
        if entry.reply is None:
            entry.reply = Deferred()
        if large or entry.size > LARGE:
            verb += _LARGE_LINE
        waiting = self._waiting.get(verb)
        if waiting is None:
            waiting = self._waiting[verb] = deque()
        if not waiting:
            self._turns.append(verb)
        waiting.append(entry)
        self._bytes += entry.size
        if not self._scheduled:
            self._scheduled = True
            self._turn_began = self._now()
            self._later(0, self._turn_over)
        entry.came = self._turn_began
        return entry.reply

    def _turn_over(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as it may go. To be called when Redis is back."""
        # A call that fails at once comes back here, for every group that waits: the loop goes on by itself.
        if self._flushing:
            return
        self._flushing = True
        try:
            if self._away() is not None:
                self._hold()
            elif self._held:
                self._release()
            self._send_groups()
        finally:
            self._flushing = False

    def _send_groups(self) -> None:
        while self._turns and self._in_flight < MAX_IN_FLIGHT:
            verb = self._turns.popleft()
            waiting = self._waiting[verb]
            most = MOST_ENTRIES.get(verb, MAX_ENTRIES)
            if (
                len(waiting) <= most
                and verb not in WEIGHED
                and (len(waiting) == 1 or self._bytes <= MAX_BYTES)
            ):
                group = list(waiting)
                size = sum([entry.size for entry in group])
                waiting.clear()
            else:
                group, size = _take(waiting, most)
                if waiting:
                    self._turns.append(verb)
            self._bytes -= size
            self._in_flight += 1
            try:
                sent = self._send(verb.removesuffix(_LARGE_LINE), group)
            except Exception:  # it must not count as under way for ever
                sent = fail()
            sent.addCallbacks(
                self._answered, self._failed, callbackArgs=(group, verb), errbackArgs=(group, verb)
            )

    def _answered(self, replies: list[Any], group: list[Any], verb: str) -> None:
        self._in_flight -= 1
        if 0 < len(replies) < len(group) and verb in MAY_STOP:
            self._put_first(verb, group[len(replies) :])
            group = group[: len(replies)]
        # The next group goes out before this one's answers are written: Redis need not wait for us.
        if self._turns and not self._scheduled:
            self.flush()
        if len(replies) != len(group):
            self._tell_all(group, RedisUnavailable("Redis answered in an unexpected way.", outcome="unknown"))
            return
        with self.corked():
            for entry, reply in zip(group, replies, strict=True):
                try:
                    entry.reply.callback(reply)
                except Exception:  # a fault of one request is not the others'
                    log.failure("a reply could not be taken")
            # Pollers that were woken ask now, while the answers are written, and not in the next turn.
            if self._turns:
                self.flush()

    def _put_first(self, verb: str, entries: list[Any]) -> None:
        """Entries that were sent, and not carried out, go with the next call."""
        waiting = self._waiting[verb]
        if not waiting:
            self._turns.appendleft(verb)
        waiting.extendleft(reversed(entries))
        self._bytes += sum([entry.size for entry in entries])

    def _failed(self, failure: Failure, group: list[Any], verb: str) -> None:
        self._in_flight -= 1
        if not self._refused_for_a_while(failure.value, group, verb):
            self._tell_all(group, failure.value)
        if self._turns and not self._scheduled:
            self.flush()

    # While Redis is away

    def stop_holding(self) -> None:
        """The daemon stops: what is held is told that it was not applied, and nothing is held from now on."""
        self._hold_seconds = 0.0
        self._expire(float("inf"))

    def _hold(self) -> None:
        """Keep what waits out of its turn, and give the newcomers among it their time."""
        if not self._hold_seconds:
            return
        self._held += [verb for verb in self._turns if verb not in NOT_HELD]
        self._turns = deque(verb for verb in self._turns if verb in NOT_HELD)
        room = MAX_WAITING_BYTES - self._bytes - HELD_BYTES * sum(len(self._waiting[v]) for v in self._held)
        too_many: list[Any] = []
        for verb in self._held:
            waiting = self._waiting[verb]
            newcomers: deque[Any] = deque()
            while waiting and getattr(waiting[-1], "until", None) is None:
                newcomers.append(waiting.pop())
            # The last who came are refused first.
            while newcomers and room < 0:
                entry = newcomers.popleft()
                room += entry.size + HELD_BYTES
                self._bytes -= entry.size
                too_many.append(entry)
            for entry in reversed(newcomers):
                # From when it came: behind calls that were not answered it has waited for some time already.
                entry.until = entry.came + self._hold_seconds
                waiting.append(entry)
        self._held = [verb for verb in self._held if self._waiting[verb]]
        self._await_expiry()
        if too_many:
            self._tell_all(
                too_many, Overloaded("Too much is waiting for Redis already; try again in a moment.")
            )

    def _release(self) -> None:
        """Redis is back: what was held goes first."""
        self._turns.extendleft(reversed(self._held))
        self._held = []
        self._refused.clear()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _refused_for_a_while(self, error: BaseException | None, group: list[Any], verb: str) -> bool:
        """Whether the group is held: it was refused by a Redis that goes away, or was there no more when its turn came."""
        if not self._hold_seconds or verb in NOT_HELD or not isinstance(error, RedisUnavailable):
            return False
        if error.outcome != "not_applied" or self._away() is None:
            return False
        waiting = self._waiting[verb]
        for entry in group:
            entry.until = entry.came + self._hold_seconds
            self._bytes += entry.size
        # Behind the groups that were sent before this one, and in front of what was not sent yet.
        before = self._refused.get(verb, 0)
        self._refused[verb] = before + len(group)
        waiting.rotate(-before)
        waiting.extendleft(reversed(group))
        waiting.rotate(before)
        if verb not in self._held:
            self._held.append(verb)
            if verb in self._turns:
                self._turns.remove(verb)
        self._await_expiry()
        return True

    def _await_expiry(self) -> None:
        if self._held and self._expiry is None:
            first = min(self._waiting[verb][0].until for verb in self._held)
            self._expiry = self._later(max(0.0, first - self._now()), self._time_up)

    def _time_up(self) -> None:
        self._expiry = None
        if self._away() is None:
            self.flush()
        else:
            self._expire(self._now())

    def _expire(self, now: float) -> None:
        """Tell those whose time is up that Redis is away."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        over: list[Any] = []
        for verb in self._held:
            waiting = self._waiting[verb]
            while waiting and waiting[0].until <= now:
                entry = waiting.popleft()
                self._bytes -= entry.size
                over.append(entry)
        self._held = [verb for verb in self._held if self._waiting[verb]]
        self._refused.clear()
        self._await_expiry()
        if over:
            with self.corked():
                self._tell_all(over, self._away() or RedisUnavailable("no connection to Redis"))

    def _tell_all(self, group: list[Any], error: BaseException | None) -> None:
        for entry in group:
            try:
                entry.reply.errback(Failure(error))
            except Exception:
                log.failure("a failure could not be taken")


def _take(waiting: deque[Any], most: int) -> tuple[list[Any], int]:
    """The first entries within the bounds; an entry larger than one of them travels alone."""
    group = [waiting.popleft()]
    size, weight = group[0].size, group[0].weight
    while waiting:
        entry = waiting[0]
        size += entry.size
        weight += entry.weight
        if weight > most or size > MAX_BYTES:
            size -= entry.size
            break
        group.append(waiting.popleft())
    return group, size

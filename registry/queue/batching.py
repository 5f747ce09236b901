"""Group commit: all requests of one reactor turn with the same verb share one script call, whatever their queues.

A single request is sent at the end of its own turn. At most two calls are in flight; requests that arrive meanwhile wait
behind them, so the groups grow with the load. One fsync per call then covers many requests. At most one of the calls is large,
and small requests that waited behind it go before the next large one.

While Redis is away, requests are held in order, for a bounded time and up to a bounded number of bytes, so that producers
without a retry lose nothing when Redis restarts. A request that was sent and got no reply is not held.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import Overloaded, RedisUnavailable, Unavailable

log = Logger()

MAX_ENTRIES = 128
# Put-backs keep their order only within one call, so more of them may share it. For popmany the limit counts queues.
MAX_ENTRIES_OF = {"putback": 2048, "popmany": 200}
WEIGHED = frozenset({"popmany"})
MAX_BYTES = 1 << 20
# Entries of more bytes wait in a list of their own: a small entry waits for one large call, not for all large ones.
LARGE = 64 * 1024
_LARGE_SUFFIX = " (large)"
MAX_IN_FLIGHT = 2
MAX_WAITING_BYTES = 64 << 20
TOO_MANY_WAIT = "Too many requests are waiting for Redis; try again in a moment."
# Not held while Redis is away: pollers park, `Handover` keeps what settles a hand-over, and reads fail at once.
NOT_HELD = frozenset({"pop", "popmany", "confirm", "putback", "bury", "watch", "counts"})
# These read the meta of a task, which may be large: the script answers as many entries as it has time for, at least one.
MAY_STOP = frozenset({"ack", "fail", "extend", "retry"})
# The memory that a held request needs besides its own bytes.
HELD_BYTES = 1024


class Entry(Protocol):
    """One request in a call. ``size``: its bytes. ``reply``: the receiver of its reply (``callback`` and ``errback``).

    ``added_at``: when it was added. ``until``: when it expires, None until it is held.
    ``weight``: how much it counts towards the limit of entries in a call.
    """

    weight: int

    size: int
    reply: Any
    added_at: float
    until: float | None


Send = Callable[[str, Sequence[Any]], "Deferred[list[Any]]"]
Later = Callable[..., Any]


class Batching:
    """Gathers entries by verb and sends them in groups.

    ``send(verb, entries)`` sends one group. ``later(0, f)`` runs ``f`` at the end of this reactor turn. ``away()`` returns why
    nothing can be sent now, or None. While it gives a reason, entries not in `NOT_HELD` wait up to ``hold_seconds`` or until `flush`.
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
        self._held: list[str] = []  # the verbs with held entries; not in _turns meanwhile
        self._refused: dict[str, int] = {}  # verb -> how many entries at the front were sent and refused
        self._expiry: Any = None
        self._turn_began = 0.0
        self._waiting: defaultdict[str, deque[Any]] = defaultdict(deque)
        self._turns: deque[str] = deque()
        self._in_flight = 0
        self._large_in_flight = False
        self._bytes = 0
        self._scheduled = False
        self._flushing = False
        # The replies of a group are delivered inside this context, so that their answers can be written together.
        self.corked: Callable[[], AbstractContextManager[None]] = nullcontext
        # Called with each group that Redis has answered: the verb, the entries, their replies, and how long Redis took, s.
        self.replied: Callable[[str, list[Any], list[Any], float], None] = lambda *group: None

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return not self._in_flight and not self._bytes

    def add(self, verb: str, entry: Entry, large: bool = False) -> None:
        """Add an entry to the others of its verb. Its ``reply`` receives what Redis answers, or `Overloaded` now.

        ``large``: it belongs to a request with an entry larger than ``LARGE``, and must not overtake that entry.
        """
        if self._bytes > MAX_WAITING_BYTES:
            entry.reply.errback(Failure(Overloaded(TOO_MANY_WAIT)))
            return
        size = entry.size
        if large or size > LARGE:
            verb += _LARGE_SUFFIX
        waiting = self._waiting[verb]
        if not waiting:
            self._turns.append(verb)
        waiting.append(entry)
        self._bytes += size
        if not self._scheduled:
            self._scheduled = True
            self._turn_began = self._now()
            self._later(0, self._turn_over)
        entry.added_at = self._turn_began

    def _turn_over(self) -> None:
        self._scheduled = False
        self.flush()

    def flush(self) -> None:
        """Send the waiting groups, up to the limit of calls in flight. Also to be called when Redis is back."""
        # A call that fails at once calls this method again. The loop below continues by itself, so there is no need to recurse.
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
        passed_over = 0  # how many verbs at the end of `_turns` are large and must wait
        while len(self._turns) > passed_over and self._in_flight < MAX_IN_FLIGHT:
            verb = self._turns.popleft()
            if verb.endswith(_LARGE_SUFFIX):
                if self._large_in_flight:
                    self._turns.append(verb)
                    passed_over += 1
                    continue
                self._large_in_flight = True
            passed_over = 0
            waiting = self._waiting[verb]
            max_weight = MAX_ENTRIES_OF.get(verb, MAX_ENTRIES)
            if (
                len(waiting) <= max_weight
                and verb not in WEIGHED
                and (len(waiting) == 1 or self._bytes <= MAX_BYTES)
            ):
                group = list(waiting)
                size = sum([entry.size for entry in group])
                waiting.clear()
            else:
                group, size = _next_group(waiting, max_weight)
                if waiting:
                    self._turns.append(verb)
            self._bytes -= size
            self._in_flight += 1
            try:
                sent = self._send(verb.removesuffix(_LARGE_SUFFIX), group)
            except Exception:  # it must not count as in flight for ever
                sent = fail()
            sent.addCallbacks(
                self._answered,
                self._failed,
                callbackArgs=(group, verb, self._now()),
                errbackArgs=(group, verb),
            )

    def _answered(self, replies: list[Any], group: list[Any], verb: str, sent_at: float) -> None:
        seconds = self._now() - sent_at
        self._in_flight -= 1
        if 0 < len(replies) < len(group) and verb.removesuffix(_LARGE_SUFFIX) in MAY_STOP:
            self._put_first(verb, group[len(replies) :])
            group = group[: len(replies)]
        if self._large_in_flight and verb.endswith(_LARGE_SUFFIX):
            self._large_over()
        # Send the next group before the answers of this one are written, so that Redis is not idle.
        if self._turns and not self._scheduled:
            self.flush()
        if len(replies) != len(group):
            self._fail_all(group, RedisUnavailable("Redis sent an unexpected reply.", outcome="unknown"))
            return
        with self.corked():
            for entry, reply in zip(group, replies, strict=True):
                try:
                    entry.reply.callback(reply)
                except Exception:  # an error of one request must not affect the others
                    log.failure("a reply could not be delivered")
            # Pollers woken by these replies ask now, not in the next turn.
            if self._turns:
                self.flush()
        self.replied(verb.removesuffix(_LARGE_SUFFIX), group, replies, seconds)

    def _large_over(self) -> None:
        """A large call has ended: the small entries that wait go before the next large one."""
        self._large_in_flight = False
        self._turns = deque(sorted(self._turns, key=lambda verb: verb.endswith(_LARGE_SUFFIX)))

    def _put_first(self, verb: str, entries: list[Any]) -> None:
        """Entries that were sent but not processed go first in the next call."""
        waiting = self._waiting[verb]
        if not waiting:
            self._turns.appendleft(verb)
        waiting.extendleft(reversed(entries))
        self._bytes += sum([entry.size for entry in entries])

    def _failed(self, failure: Failure, group: list[Any], verb: str) -> None:
        self._in_flight -= 1
        if verb.endswith(_LARGE_SUFFIX):
            self._large_over()
        if not self._hold_refused(failure.value, group, verb):
            self._fail_all(group, failure.value)
        if self._turns and not self._scheduled:
            self.flush()

    # While Redis is away

    def stop_holding(self) -> None:
        """The daemon stops: held entries fail as not applied, and nothing is held from now on."""
        self._hold_seconds = 0.0
        self._expire(float("inf"))

    def _hold(self) -> None:
        """Hold the waiting entries, and set the expiry of those that are new."""
        if not self._hold_seconds:
            return
        self._held += [verb for verb in self._turns if verb not in NOT_HELD]
        self._turns = deque(verb for verb in self._turns if verb in NOT_HELD)
        room = MAX_WAITING_BYTES - self._bytes - HELD_BYTES * sum(len(self._waiting[v]) for v in self._held)
        too_many: list[Any] = []
        for verb in self._held:
            waiting = self._waiting[verb]
            newcomers: deque[Any] = deque()
            while waiting and waiting[-1].until is None:
                newcomers.append(waiting.pop())
            # The newest entries are refused first.
            while newcomers and room < 0:
                entry = newcomers.popleft()
                room += entry.size + HELD_BYTES
                self._bytes -= entry.size
                too_many.append(entry)
            for entry in reversed(newcomers):
                # Count from when it was added: it may have waited behind unanswered calls already.
                entry.until = entry.added_at + self._hold_seconds
                waiting.append(entry)
        self._held = [verb for verb in self._held if self._waiting[verb]]
        self._await_expiry()
        if too_many:
            self._fail_all(too_many, Overloaded(TOO_MANY_WAIT))

    def _release(self) -> None:
        """Redis is back: the held entries go first."""
        self._turns.extendleft(reversed(self._held))
        self._held = []
        self._refused.clear()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _hold_refused(self, error: BaseException | None, group: list[Any], verb: str) -> bool:
        """Hold a group that Redis refused while going away, or that found no connection. Returns whether it is held."""
        if not self._hold_seconds or verb in NOT_HELD or not isinstance(error, RedisUnavailable):
            return False
        if error.outcome != "not_applied" or self._away() is None:
            return False
        waiting = self._waiting[verb]
        for entry in group:
            entry.until = entry.added_at + self._hold_seconds
            self._bytes += entry.size
        # Insert it behind the groups that were sent before it, and in front of entries that were not sent yet.
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
        """Fail the entries whose time is up with the reason why Redis is away."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        expired: list[Any] = []
        for verb in self._held:
            waiting = self._waiting[verb]
            while waiting and waiting[0].until <= now:
                entry = waiting.popleft()
                self._bytes -= entry.size
                expired.append(entry)
        self._held = [verb for verb in self._held if self._waiting[verb]]
        self._refused.clear()
        self._await_expiry()
        if expired:
            with self.corked():
                self._fail_all(expired, self._away() or RedisUnavailable("no connection to Redis"))

    def _fail_all(self, group: list[Any], error: BaseException | None) -> None:
        for entry in group:
            try:
                entry.reply.errback(Failure(error))
            except Exception:
                log.failure("a failure could not be delivered")


def _next_group(waiting: deque[Any], max_weight: int) -> tuple[list[Any], int]:
    """Remove the first entries within the limits; returns them and their size. An entry above a limit goes alone."""
    group = [waiting.popleft()]
    size, weight = group[0].size, group[0].weight
    while waiting:
        entry = waiting[0]
        size += entry.size
        weight += entry.weight
        if weight > max_weight or size > MAX_BYTES:
            size -= entry.size
            break
        group.append(waiting.popleft())
    return group, size

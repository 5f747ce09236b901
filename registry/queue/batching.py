"""Group commit: all requests of one reactor turn with the same verb travel in one script call, whatever their queues.

A lone request goes at the end of its own turn. At most two calls are under way; what comes meanwhile gathers behind
them, so the groups grow with the load by themselves. An fsync per call is then an fsync for many requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import Overloaded, RedisUnavailable

log = Logger()

MAX_ENTRIES = 128
# Put-backs of one moment keep their order, which they can only within a call.
MOST_ENTRIES = {"putback": 2048}
MAX_BYTES = 1 << 20
MAX_IN_FLIGHT = 2
MAX_WAITING_BYTES = 64 << 20


class Entry(Protocol):
    """What a call carries of one request: its size in bytes, and what has ``callback`` and ``errback`` for its own reply."""

    size: int
    reply: Any


Send = Callable[[str, Sequence[Any]], "Deferred[list[Any]]"]
Later = Callable[..., Any]


class Batching:
    """Gathers entries by verb and sends them in groups.

    ``send(verb, entries)`` carries one group; ``later(0, f)`` runs ``f`` at the end of this reactor turn.
    """

    def __init__(self, send: Send, later: Later) -> None:
        self._send = send
        self._later = later
        self._waiting: dict[str, deque[Any]] = {}
        self._turns: deque[str] = deque()
        self._in_flight = 0
        self._bytes = 0
        self._scheduled = False
        self._flushing = False
        # Told True before the replies of a group are given out, and False after: answers may leave together.
        self.on_group: Callable[[bool], None] = lambda begins: None
        self.calls = 0
        self.entries = 0

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is under way."""
        return not self._in_flight and not self._bytes

    def add(self, verb: str, entry: Entry) -> Any:
        """Put a request beside the others of its verb; what is returned is told its own reply."""
        if self._bytes > MAX_WAITING_BYTES:
            raise Overloaded("Too much is waiting for Redis already; try again in a moment.")
        if entry.reply is None:
            entry.reply = Deferred()
        waiting = self._waiting.get(verb)
        if waiting is None:
            waiting = self._waiting[verb] = deque()
        if not waiting:
            self._turns.append(verb)
        waiting.append(entry)
        self._bytes += entry.size
        if not self._scheduled:
            self._scheduled = True
            self._later(0, self._turn_over)
        return entry.reply

    def _turn_over(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        # A call that fails at once comes back here, for every group that waits: the loop goes on by itself.
        if self._flushing:
            return
        self._flushing = True
        try:
            self._send_groups()
        finally:
            self._flushing = False

    def _send_groups(self) -> None:
        while self._turns and self._in_flight < MAX_IN_FLIGHT:
            verb = self._turns.popleft()
            waiting = self._waiting[verb]
            most = MOST_ENTRIES.get(verb, MAX_ENTRIES)
            if len(waiting) <= most and (len(waiting) == 1 or self._bytes <= MAX_BYTES):
                group = list(waiting)
                size = sum([entry.size for entry in group])
                waiting.clear()
            else:
                group, size = _take(waiting, most)
                if waiting:
                    self._turns.append(verb)
            self._bytes -= size
            self._in_flight += 1
            self.calls += 1
            self.entries += len(group)
            try:
                sent = self._send(verb, group)
            except Exception:  # it must not count as under way for ever
                sent = fail()
            sent.addCallbacks(self._answered, self._failed, callbackArgs=(group,), errbackArgs=(group,))

    def _answered(self, replies: list[Any], group: list[Any]) -> None:
        self._in_flight -= 1
        # The next group goes out before this one's answers are written: Redis need not wait for us.
        if self._turns and not self._scheduled:
            self._flush()
        if len(replies) != len(group):
            self._tell_all(group, RedisUnavailable("Redis answered in an unexpected way.", outcome="unknown"))
            return
        self.on_group(True)
        try:
            for entry, reply in zip(group, replies, strict=True):
                try:
                    entry.reply.callback(reply)
                except Exception:  # a fault of one request is not the others'
                    log.failure("a reply could not be taken")
            # Pollers that were woken ask now, while the answers are written, and not in the next turn.
            if self._turns:
                self._flush()
        finally:
            self.on_group(False)

    def _failed(self, failure: Failure, group: list[Any]) -> None:
        self._in_flight -= 1
        self._tell_all(group, failure.value)
        if self._turns and not self._scheduled:
            self._flush()

    def _tell_all(self, group: list[Any], error: BaseException | None) -> None:
        for entry in group:
            try:
                entry.reply.errback(Failure(error))
            except Exception:
                log.failure("a failure could not be taken")


def _take(waiting: deque[Any], most: int) -> tuple[list[Any], int]:
    """The first entries within the bounds; an entry larger than the bound in bytes travels alone."""
    group = [waiting.popleft()]
    size = group[0].size
    while waiting and len(group) < most and size + waiting[0].size <= MAX_BYTES:
        entry = waiting.popleft()
        size += entry.size
        group.append(entry)
    return group, size

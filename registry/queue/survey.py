"""Reads the records of a state in all queues, in pieces that do not delay other requests, and keeps the result for a moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.python.failure import Failure

from registry.redis.lookups import Record
from registry.redis.store import Store

T = TypeVar("T")

# One call to Redis looks at this many queues and reads this many records, at most.
QUEUES_PER_CALL, RECORDS_PER_CALL = 500, 100
# A long queue lets the others have their turn after this many records: a survey that ends early has seen something of each.
RECORDS_PER_TURN = 2000
# A survey ends early after this many queues, records, or bytes of records.
MAX_QUEUES, MAX_RECORDS, MAX_BYTES = 100_000, 200_000, 512 << 20
FRONT = ("", "")


@inlineCallbacks
def survey(
    store: Store, names: Collection[bytes], set_name: str, take: Callable[[Record], None], highest_first: bool
) -> Any:
    """Call ``take`` with each member of this set in these queues. Fires with whether all were read.

    A task that comes, or goes, or is extended meanwhile may be left out or be met twice.
    """
    left = sorted(names)
    waiting: deque[tuple[list[bytes], tuple[str, str]]] = deque(
        (left[at : at + QUEUES_PER_CALL], FRONT)
        for at in range(0, min(len(left), MAX_QUEUES), QUEUES_PER_CALL)
    )
    count = size = 0
    while waiting and count < MAX_RECORDS and size < MAX_BYTES:
        piece, place = waiting.popleft()
        of_first = 0
        while piece and count < MAX_RECORDS and size < MAX_BYTES:
            ended, found = yield store.records(
                piece, set_name, place, RECORDS_PER_CALL, highest_first=highest_first
            )
            for record in found:
                take(record)
                count += 1
                size += len(record.meta or b"")
            piece = piece[ended:]
            if not piece:
                break
            of_first = (0 if ended else of_first) + sum(record.queue == piece[0] for record in found)
            last = found[-1]
            place = (str(last.score), last.member.decode()) if last.queue == piece[0] else FRONT
            if of_first >= RECORDS_PER_TURN:
                waiting.append((piece[:1], place))
                piece, place, of_first = piece[1:], FRONT, 0
        else:
            if piece:
                waiting.append((piece, place))
    return not waiting and len(left) <= MAX_QUEUES


class Cached(Generic[T]):
    """Results that are expensive to make: equal requests at the same time share one, and it is kept for ``seconds``.

    One that took long to make is kept for longer, so that making them takes at most a tenth of the time.
    """

    def __init__(self, now: Callable[[], float], seconds: float, most: int = 16) -> None:
        self._now = now
        self._seconds = seconds
        self._most = most
        self._kept: dict[Hashable, tuple[float, T]] = {}
        self._waiting: dict[Hashable, list[Deferred[T]]] = {}

    def get(self, key: Hashable, make: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Fires with the result for this key. Making it goes on if all who wait for it leave."""
        kept = self._kept.get(key)
        if kept is not None and self._now() < kept[0]:
            return succeed(kept[1])
        own: Deferred[T] = Deferred(lambda d: self._leave(key, d))
        if key in self._waiting:
            self._waiting[key].append(own)
            return own
        self._waiting[key] = [own]
        began = self._now()

        def made(result: T) -> None:
            now = self._now()
            self._kept.pop(key, None)
            while len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = now + max(self._seconds, 9 * (now - began)), result
            for one in self._waiting.pop(key):
                one.callback(result)

        def failed(failure: Failure) -> None:
            for one in self._waiting.pop(key):
                one.errback(Failure(failure.value))

        make().addCallbacks(made, failed)
        return own

    def _leave(self, key: Hashable, own: Deferred[T]) -> None:
        waiting = self._waiting.get(key, [])
        waiting[:] = [one for one in waiting if one is not own]

"""What each daemon tells the others: how many pollers are parked at which queues. Any of them answers with the sum."""

from __future__ import annotations

from collections import Counter
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import inlineCallbacks

from registry.queue.waiting import Waiting
from registry.redis.store import Store

LIFE_MS = 6000
# Of a daemon with pollers at more queues, these many are told.
MOST_NAMES = 5000


class Heartbeat:
    """This daemon's beat, and the sum over all."""

    def __init__(self, store: Store, waiting: Waiting) -> None:
        self._store = store
        self._waiting = waiting
        self._silent = True

    def _mine(self) -> dict[bytes, int]:
        return {
            name: len(line.parked) - line.stale for name, line in self._waiting.lines.items() if line.parked
        }

    @inlineCallbacks
    def beat(self) -> Any:
        """Tell; a daemon without parked pollers tells that once, and then nothing."""
        mine = self._mine()
        if not mine and self._silent:
            return
        self._silent = not mine
        store = self._store
        told = dict(list(mine.items())[:MOST_NAMES])
        until = store.now_ms() + LIFE_MS
        yield store.lookup(
            b"SET", store.space + b"beat:" + store.process, msgpack.encode(list(told.items())), b"PX", LIFE_MS
        )
        yield store.lookup(b"ZADD", store.space + b"beats", until, store.process)
        yield store.lookup(b"ZREMRANGEBYSCORE", store.space + b"beats", b"-inf", store.now_ms() - LIFE_MS)

    @inlineCallbacks
    def pollers(self) -> Any:
        """Fires with parked pollers by queue, over all daemons; this one's as they are now."""
        store = self._store
        total = Counter(self._mine())
        others = yield store.lookup(b"ZRANGE", store.space + b"beats", 0, -1)
        keys = [store.space + b"beat:" + process for process in others if process != store.process]
        if keys:
            for packed in (yield store.lookup(b"MGET", *keys)):
                for name, count in msgpack.decode(packed) if packed else ():
                    total[name] += count
        return dict(total)

"""The stored schedules: by name, the record of each and its next tick."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.redis.commands import Commands

# The record of a schedule, empty for none, and its next tick, ms, None for none.
State = tuple[bytes, int | None]


class ScheduleStore(Commands):
    """The part of the store for schedules. A script changes them: see `Store.schedule`."""

    @inlineCallbacks
    def schedule_state(self, name: bytes) -> Any:
        """Fires with the `State` of a schedule."""
        record, tick = yield self._ask_each(
            (b"HGET", self.keys.schedules, name), (b"ZSCORE", self.keys.ticks, name)
        )
        return record or b"", None if tick is None else int(float(tick))

    def schedule_record(self, name: bytes) -> Deferred[bytes | None]:
        """The record of a schedule, None for none."""
        return self._ask(b"HGET", self.keys.schedules, name)

    def schedule_names(self) -> Deferred[list[bytes]]:
        """The names of all schedules."""
        return self._ask(b"HKEYS", self.keys.schedules)

    def due_ticks(self, now_ms: int, skip: int, limit: int) -> Deferred[list[tuple[bytes, int]]]:
        """The schedules that are due, the longest due first, and when each was, ms; the first ``skip`` are left out."""
        return self._ask(
            b"ZRANGEBYSCORE", self.keys.ticks, b"-inf", now_ms, b"WITHSCORES", b"LIMIT", skip, limit
        ).addCallback(_pairs)

    def next_ticks(self, first: int, last: int) -> Deferred[list[tuple[bytes, int]]]:
        """The schedules from place ``first`` to ``last`` by their next ticks, and these ticks, ms; -1 is the last of all."""
        return self._ask(b"ZRANGE", self.keys.ticks, first, last, b"WITHSCORES").addCallback(_pairs)


def _pairs(flat: list[bytes]) -> list[tuple[bytes, int]]:
    return [(name, int(float(tick))) for name, tick in zip(flat[::2], flat[1::2], strict=True)]

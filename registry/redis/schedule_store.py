"""The schedules as they are stored: by name what is known of each, and when its next tick is."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.redis.commands import Commands

# What is known of a schedule, empty for nothing, and its next tick, ms; None for none.
State = tuple[bytes, int | None]


class ScheduleStore(Commands):
    """The store's part for schedules. Their changes are a script: see `Store.schedule`."""

    @inlineCallbacks
    def schedule_state(self, name: bytes) -> Any:
        """Fires with the `State` of a schedule."""
        known, at = yield self._ask_each(
            (b"HGET", self.keys.schedules, name), (b"ZSCORE", self.keys.ticks, name)
        )
        return known or b"", None if at is None else int(float(at))

    def schedule_known(self, name: bytes) -> Deferred[bytes | None]:
        """What is known of a schedule, None for nothing."""
        return self._ask(b"HGET", self.keys.schedules, name)

    def schedule_names(self) -> Deferred[list[bytes]]:
        """The names of all."""
        return self._ask(b"HKEYS", self.keys.schedules)

    def due_ticks(self, now_ms: int, skip: int, most: int) -> Deferred[list[tuple[bytes, int]]]:
        """The schedules that are due, the longest due first, and when each was; the first so many are passed over."""
        return self._ask(
            b"ZRANGEBYSCORE", self.keys.ticks, b"-inf", now_ms, b"WITHSCORES", b"LIMIT", skip, most
        ).addCallback(_pairs)

    def next_ticks(self, first: int, last: int) -> Deferred[list[tuple[bytes, int]]]:
        """The schedules from the first to the last by their next ticks, and when these are; -1 is the last of all."""
        return self._ask(b"ZRANGE", self.keys.ticks, first, last, b"WITHSCORES").addCallback(_pairs)


def _pairs(flat: list[bytes]) -> list[tuple[bytes, int]]:
    return [(name, int(float(at))) for name, at in zip(flat[::2], flat[1::2], strict=True)]

"""The lines of the audit as they come, of all daemons on this Redis.

A line is written when its action begins, and again when it ends. It is passed on when it has ended, or, unfinished, when its action
takes long, and then again at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.queue.audit import Seen, seen_of
from registry.redis.store import Store

LINES_PER_READ = 200
# An action that has not ended after this time is passed on as unfinished; its end is waited for as long as the other, s.
SLOW_SECONDS, WAIT_SECONDS = 5.0, 900.0
MAX_OPEN = 20
# A Redis that was emptied begins to count again. That is noticed within this many reads.
READS_PER_CHECK = 10


class AuditFeed:
    """``mark``: all lines up to this serial have been passed on with their end; None before the first read."""

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now = now
        self._seen: int | None = None
        self._open: dict[int, tuple[float, bool]] = {}  # by serial: since when, and whether it was passed on
        self._reads = 0

    @property
    def mark(self) -> int | None:
        if self._open:
            return min(self._open) - 1
        return self._seen

    def forget(self) -> None:
        """Nobody reads; begin with the newest line next time."""
        self._seen = None
        self._open.clear()

    @inlineCallbacks
    def read(self) -> Any:
        """Fires with the lines that are to be passed on, the oldest first; None if the audit has begun anew."""
        self._reads += 1
        if self._seen is None or self._reads % READS_PER_CHECK == 0:
            newest = yield self._store.audit_lines(None, 1)
            last = newest[0].serial if newest else 0
            if self._seen is None or last < self._seen:
                began_anew = self._seen is not None
                self._seen = last
                self._open.clear()
                return None if began_anew else []
        found = []
        for serial in list(self._open):
            stored = yield self._store.audit_line(serial)
            if stored is None:
                # It changed nothing.
                del self._open[serial]
            else:
                found.append(seen_of(stored))
        lines = yield self._store.audit_after(self._seen, LINES_PER_READ)
        if lines:
            self._seen = lines[-1].serial
        found += map(seen_of, lines)
        return [line for line in sorted(found, key=lambda one: one.serial) if self._is_due(line)]

    def _is_due(self, line: Seen) -> bool:
        now, serial = self._now(), line.serial
        since, passed_on = self._open.get(serial, (now, False))
        if line.line.done or now - since > WAIT_SECONDS:
            self._open.pop(serial, None)
            return line.line.done or not passed_on
        if serial not in self._open and len(self._open) >= MAX_OPEN:
            return True
        due = not passed_on and now - since > SLOW_SECONDS
        self._open[serial] = since, passed_on or due
        return due

    @inlineCallbacks
    def after(self, serial: int, most: int) -> Any:
        """Fires with the lines above a serial, the oldest first; None if there are more, or the audit has begun anew since."""
        newest = yield self._store.audit_lines(None, 1)
        if serial > (newest[0].serial if newest else 0):
            return None
        lines = yield self._store.audit_after(serial, most + 1)
        return None if len(lines) > most else [seen_of(line) for line in lines]

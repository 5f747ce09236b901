"""The stored audit, and what operations have set aside to be undone."""

from __future__ import annotations

from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.redis.commands import Commands

# How many lists one command looks for.
LISTS_A_LOOK = 100


class StoredLine(NamedTuple):
    """A line of the audit. Times in ms, ``undone_at`` 0 for none; ``undone``: how many tasks came back; ``text``: as it was given."""

    serial: int
    at: int
    undone_at: int
    undone: int
    text: bytes


class AuditStore(Commands):
    """The part of the store for the audit. Scripts write it: see `Store.audit` and `Store.undo`."""

    def audit_lines(self, before: int | None, limit: int) -> Deferred[list[StoredLine]]:
        """The newest lines whose serial is below ``before``, None for any, the newest first."""
        highest = b"+inf" if before is None else b"(%d" % before
        words = (b"ZREVRANGEBYSCORE", self.keys.audit, highest, b"-inf", b"LIMIT", 0, limit)
        return self._ask(*words).addCallback(lambda found: list(map(_line, found)))

    def audit_after(self, serial: int, limit: int) -> Deferred[list[StoredLine]]:
        """The oldest lines whose serial is above this one, the oldest first."""
        words = (b"ZRANGEBYSCORE", self.keys.audit, b"(%d" % serial, b"+inf", b"LIMIT", 0, limit)
        return self._ask(*words).addCallback(lambda found: list(map(_line, found)))

    def audit_line(self, serial: int) -> Deferred[StoredLine | None]:
        """One line, None where there is none."""
        found = self._ask(b"ZRANGEBYSCORE", self.keys.audit, serial, serial)
        return found.addCallback(lambda lines: _line(lines[0]) if lines else None)

    @inlineCallbacks
    def lists_aside(self, name: bytes, operation: int) -> Any:
        """Fires with how many lists of an operation there are, and how many records could not come back so far."""
        count = 0
        while True:
            keys = [self.keys.aside(name, operation, count + n) for n in range(LISTS_A_LOOK)]
            there = yield self._ask(b"EXISTS", *keys)
            count += there
            if there < LISTS_A_LOOK:
                break
        left = yield self._ask(b"LLEN", self.keys.aside(name, operation, "left"))
        return count, left


def _line(stored: bytes) -> StoredLine:
    serial, at, undone_at, undone, text = stored.split(b" ", 4)
    return StoredLine(int(serial), int(at), int(undone_at), int(undone), text)

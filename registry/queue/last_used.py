"""When each token was used last: kept in Redis, for all processes and daemons together, and to some seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.redis.store import Store


class LastUsed:
    """Writes down which tokens were used. ``take()`` returns the ids of those used since its last call, and of those revoked."""

    def __init__(self, store: Store, take: Callable[[], tuple[set[str], set[str]]]) -> None:
        self._store = store
        self._take = take
        self._used: set[str] = set()  # not in Redis yet
        self._gone: set[str] = set()

    @inlineCallbacks
    def write(self) -> Any:
        """Write what has happened since the last call; nothing if no token was used or revoked. What fails is written next time."""
        used, gone = self._take()
        self._gone |= gone
        self._used = (self._used | used) - self._gone
        used, gone = set(self._used), set(self._gone)
        if used or gone:
            yield self._store.tokens_used(used, gone)
            self._used -= used
            self._gone -= gone

    @inlineCallbacks
    def read(self) -> Any:
        """Fires with the time of the last use by the id of the token, ms."""
        yield self.write()
        return (yield self._store.last_used())

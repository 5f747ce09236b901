"""Equal requests at the same time share one poll: a repeated request joins the poll that is still open."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure


class Singleflight:
    """Open polls with an Idempotency-Key. The ``key`` of equal requests is equal."""

    def __init__(self) -> None:
        self._open: dict[Hashable, tuple[Deferred[Any], list[Deferred[Any]]]] = {}

    def join(self, key: Hashable, start: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """The result of the open poll with this key, or of one started now. The poll is cancelled once all members have cancelled."""
        found = self._open.get(key)
        if found is None:
            members: list[Deferred[Any]] = []
            shared = start()
            if shared.called:
                return shared
            found = self._open[key] = (shared, members)
            shared.addBoth(self._answered, key, members)
        shared, members = found
        own: Deferred[Any] = Deferred(lambda d: self._leave(key, d))
        members.append(own)
        return own

    def _answered(self, result: Any, key: Hashable, members: list[Deferred[Any]]) -> None:
        self._open.pop(key, None)
        if isinstance(result, Failure):
            for member in members:
                member.errback(Failure(result.value))
            return
        # All members share one task: it is put back only if none of the answers is delivered.
        for delivery in result if isinstance(result, list) else [result] if result is not None else []:
            delivery.holders = len(members)
        for member in members:
            member.callback(result)

    def _leave(self, key: Hashable, own: Deferred[Any]) -> None:
        shared, members = self._open[key]
        members[:] = [member for member in members if member is not own]
        if not members:
            del self._open[key]
            # If a task still arrives, the poll puts it back. A failure has no receiver left.
            shared.addErrback(lambda _: None)
            shared.cancel()

"""Reads queues and tasks, in bounded pieces, over the connections for look-ups."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import Conflict, NotFound
from registry.model import NO_RULES, Policy, decode_policy
from registry.queue.names import check_name
from registry.queue.pages import Matches, TaskView, Walk, view_of
from registry.queue.queues import Queues
from registry.redis.lookups import Counts, Why

COUNTS_PER_CALL = 100
# The position of a task is searched in at most this many elements.
FAR_ENOUGH = 1000


@dataclass(slots=True)
class QueueView:
    """The counts of a queue. ``oldest_ms``: when its oldest ready task became ready; None if it has none, or a raw element."""

    name: bytes
    ready: int = 0
    delayed: int = 0
    leased: int = 0
    dead: int = 0
    done: int = 0
    oldest_ms: int | None = None
    policy: Policy = NO_RULES


def is_paused(rules: Policy, now_ms: int) -> bool:
    """Whether a queue with these rules hands out nothing now because it is paused."""
    return bool(rules.paused) and (rules.paused_until is None or rules.paused_until > now_ms)


class Inspector:
    """The reading side of the queues."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._store = queues.store

    @inlineCallbacks
    def queue(self, name: bytes) -> Any:
        """Fires with the `QueueView`; all counts are 0 for an unknown name."""
        check_name(name)
        views = yield self._counts([name], strict=True)
        return views[0]

    def names(self, search: bytes) -> Deferred[set[bytes]]:
        """Fires with the names that contain ``search``, of all queues with tasks in any state or a policy."""
        return self._store.queue_names(search)

    @inlineCallbacks
    def each_count(
        self, names: Sequence[bytes], each: Callable[[QueueView], None], held: Collection[bytes]
    ) -> Any:
        """Call ``each`` with the `QueueView` of each name, in order; fires when done. Only names in ``held`` are read from Redis."""
        for at in range(0, len(names), COUNTS_PER_CALL):
            piece = names[at : at + COUNTS_PER_CALL]
            held_names = [name for name in piece if name in held]
            if held_names:
                counted = yield self._counts(held_names)
            else:
                # A hundred thousand empty queues may be polled: let other requests run in between.
                counted = yield self._queues.turn([])
            views = {view.name: view for view in counted}
            for name in piece:
                each(views.get(name) or QueueView(name))

    def _counts(self, names: Sequence[bytes], strict: bool = False) -> Deferred[list[QueueView]]:
        def counted(found: list[Counts | Conflict]) -> list[QueueView]:
            return [view(name, counts) for name, counts in zip(names, found, strict=True)]

        def view(name: bytes, counts: Counts | Conflict) -> QueueView:
            if isinstance(counts, Conflict):
                if strict:
                    raise counts
                # One queue whose key holds something else must not hide all others.
                return QueueView(name)
            return QueueView(name, *counts[:6], decode_policy(counts.policy))

        return self._store.counts(names).addCallback(counted)

    @inlineCallbacks
    def task(self, name: bytes, task_id: bytes) -> Any:
        """Fires with the `TaskView`, or fails with `NotFound`."""
        check_name(name)
        payload, meta = yield self._store.task(name, task_id)
        if payload is None:
            raise NotFound(
                "This queue has no such task: it never existed, or it was done and is no longer kept."
            )
        view = view_of(name, task_id, payload, meta)
        if view.state == "leased":
            lease = view.task.lease.id if view.task.lease else ""
            view.lease_ends_ms = yield self._store.lease_ends_ms(name, lease)
        return view

    def tasks(
        self, name: bytes, state: str, cursor: str, search: bytes = b"", matches: Matches | None = None
    ) -> Walk:
        """A walk over the tasks of a state behind a cursor, "" for all of them; ``matches``: which of them to show.

        Order: ready by delivery, delayed by due time, leased by push, dead and done newest first. Among the done tasks that a push
        asked to keep, those that are kept longest come first.
        """
        check_name(name)
        return Walk(self._store, name, state, cursor, search, matches=matches)

    def why(self, view: TaskView) -> Deferred[Why]:
        """Why a task is not handed out yet. Its position is None if it is further back than `FAR_ENOUGH`."""
        return self._store.why(view.queue, view.id or b"", FAR_ENOUGH)

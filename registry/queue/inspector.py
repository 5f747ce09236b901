"""Inspector at queues and tasks. Reads only, over the other connections, a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import Conflict, NotFound
from registry.model import NO_RULES, Policy, decode_policy
from registry.queue.names import check_name
from registry.queue.pages import TaskView, Walk, view_of
from registry.queue.queues import Queues
from registry.redis.lookups import Counts, Why

COUNTS_A_CALL = 100
# How far a position looks, elements.
FAR_ENOUGH = 1000


@dataclass(slots=True)
class QueueView:
    """What a queue holds. ``oldest_ms`` is since when its oldest ready task is ready, None for none or a raw element."""

    name: bytes
    ready: int = 0
    delayed: int = 0
    leased: int = 0
    dead: int = 0
    done: int = 0
    oldest_ms: int | None = None
    policy: Policy = NO_RULES


class Inspector:
    """The reading side of the queues."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._store = queues.store

    @inlineCallbacks
    def queue(self, name: bytes) -> Any:
        """Fires with the `QueueView`; all zeros for a name that holds nothing."""
        check_name(name)
        views = yield self._counts([name], strict=True)
        return views[0]

    def names(self, search: bytes) -> Deferred[set[bytes]]:
        """Fires with the names of all queues with tasks in any state or a policy, those that hold the text."""
        return self._store.queue_names(search)

    @inlineCallbacks
    def each_count(
        self, names: Sequence[bytes], each: Callable[[QueueView], None], held: Collection[bytes]
    ) -> Any:
        """Tell the `QueueView` of each name, in order; fires when all are told. Only those that are ``held`` are asked for."""
        for at in range(0, len(names), COUNTS_A_CALL):
            piece = names[at : at + COUNTS_A_CALL]
            asked = [name for name in piece if name in held]
            if asked:
                counted = yield self._counts(asked)
            else:
                # A hundred thousand may be polled that hold nothing: others have their turn in between.
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
                # One queue whose key was taken by something else must not hide all others.
                return QueueView(name)
            return QueueView(name, *counts[:6], decode_policy(counts.policy))

        return self._store.counts(names).addCallback(counted)

    @inlineCallbacks
    def task(self, name: bytes, task_id: bytes) -> Any:
        """Fires with the `TaskView`, or fails with `NotFound`."""
        check_name(name)
        payload, packed = yield self._store.task(name, task_id)
        if payload is None:
            raise NotFound("There is no such task here: it never was, or it was done and has been forgotten.")
        view = view_of(name, task_id, payload, packed)
        if view.state == "leased":
            lease = view.task.lease.id if view.task.lease else ""
            view.lease_ends_ms = yield self._store.lease_ends_ms(name, lease)
        return view

    def tasks(self, name: bytes, state: str, cursor: str, search: bytes = b"") -> Walk:
        """A walk over the tasks of a state behind a cursor, "" for all of them.

        The order is that of delivery for ready, of due times for delayed, of the pushes for leased, newest first for dead and done;
        among those that a push asked to keep, those that are kept longest.
        """
        check_name(name)
        return Walk(self._store, name, state, cursor, search)

    def why(self, view: TaskView) -> Deferred[Why]:
        """What keeps a task from being handed out; its position is None when it is further back than we look."""
        return self._store.why(view.queue, view.id or b"", FAR_ENOUGH)

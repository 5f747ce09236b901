"""Looking at queues and tasks. Reads only, over the other connections, a bounded piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import NotFound
from registry.model import NO_RULES, Code, Policy, decode_policy
from registry.queue.names import check_name
from registry.queue.pages import TaskView, Walk, view_of
from registry.queue.queues import Queues
from registry.queue.taken import denied

COUNTS_A_CALL = 100
NAMES_A_SCAN = 1000
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


class Looking:
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

    @inlineCallbacks
    def names(self, search: bytes) -> Any:
        """Fires with the names of all queues with tasks in any state or a policy, those that hold the text."""
        found: set[bytes] = set()
        at = b"0"
        while True:
            # A piece at a time; one that is there all the while is in one of them.
            at, flat = yield self._store.lookup(
                b"ZSCAN", self._store.space + b"index", at, b"COUNT", NAMES_A_SCAN
            )
            found.update(name for name in map(self._store.name_of, flat[::2]) if search in name)
            if at == b"0":
                return found

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
        def counted(replies: list[Any]) -> list[QueueView]:
            views = []
            for name, reply in zip(names, replies, strict=True):
                if reply[0] == Code.WRONG_TYPE and not strict:
                    # One queue whose key was taken by something else must not hide all others.
                    views.append(QueueView(name))
                    continue
                if reply[0]:
                    raise denied(reply)
                policy = decode_policy(reply[7])
                ready, delayed, leased, dead, done = reply[1:6]
                views.append(QueueView(name, ready, delayed, leased, dead, done, reply[6], policy))
            return views

        return self._store.read("counts", list(names)).addCallback(counted)

    @inlineCallbacks
    def task(self, name: bytes, task_id: bytes) -> Any:
        """Fires with the `TaskView`, or fails with `NotFound`."""
        check_name(name)
        tag = self._store.tag(name)
        payload, packed = yield self._store.lookups(
            (b"HGET", tag + b"t", task_id), (b"HGET", tag + b"m", task_id)
        )
        if payload is None:
            raise NotFound("There is no such task here: it never was, or it was done and has been forgotten.")
        view = view_of(name, task_id, payload, packed)
        if view.state == "leased":
            ends = yield self._store.lookup(
                b"ZSCORE", tag + b"l", view.task.lease.id if view.task.lease else ""
            )
            view.lease_ends_ms = int(float(ends)) if ends else None
        return view

    def tasks(self, name: bytes, state: str, cursor: str, search: bytes = b"") -> Walk:
        """A walk over the tasks of a state behind a cursor, "" for all of them.

        The order is that of delivery for ready, of due times for delayed, of the pushes for leased, newest first for dead and done;
        among those that a push asked to keep, those that are kept longest.
        """
        check_name(name)
        return Walk(self._store, name, state, cursor, search)

    @inlineCallbacks
    def position(self, view: TaskView) -> Any:
        """How many ready tasks of its queue go before this one; None when it is further back than we look."""
        tag = self._store.tag(view.queue)
        mine = view.task.priority
        before = 0
        for p in range(9, mine, -1):
            before += yield self._store.lookup(b"LLEN", tag + b"%d" % p)
            before -= int((yield self._store.lookup(b"HGET", tag + b"n", b"s%d" % p)) or 0)
        before = max(0, before)
        generation = view.task.generation
        element = b"\1" + (view.id or b"") + (b":%d" % generation if generation else b"")
        at = 0
        while at < FAR_ENOUGH:
            reply = yield self._store.read("position", [view.queue], mine, element, at, FAR_ENOUGH - at)
            if reply[0]:
                raise denied(reply)
            _, alive, read, met = reply
            # Of those in front, the cancelled and expired are tombstones.
            before += alive
            at += read
            if met:
                return before
            if not read:
                break
        return None

    @inlineCallbacks
    def rate_is_spent(self, name: bytes, rate: float) -> Any:
        """Whether the rate of a queue lets nothing start now; as ``take.lua`` judges it."""
        packed = yield self._store.lookup(b"HGET", self._store.tag(name) + b"n", b"starts")
        if packed is None:
            return False
        starts = msgpack.decode(packed)
        most, now = math.ceil(rate), self._store.now_ms()
        after = now - math.ceil(most * 1000 / rate)
        return (
            sum(count for at, count in zip(starts[::2], starts[1::2], strict=True) if after < at <= now)
            >= most
        )

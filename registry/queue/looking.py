"""Looking at queues and tasks. Reads only, over the other connections; never O(n) in what a queue holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import BadOption, NotFound
from registry.queue.names import check_name, pushed_at_ms
from registry.queue.queues import Queues
from registry.queue.taken import STATES, denied

COUNTS_A_CALL = 500
# How far a search and a position look, elements.
FAR_ENOUGH = 1000


@dataclass(slots=True)
class QueueView:
    """What a queue holds. ``oldest_ms`` is when its oldest ready task was pushed, None for none or a raw element."""

    name: bytes
    ready: int = 0
    delayed: int = 0
    leased: int = 0
    dead: int = 0
    done: int = 0
    oldest_ms: int | None = None
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class TaskView:
    """A task as it is. ``known`` is what the scripts keep of it beyond the payload; empty for a plain one."""

    queue: bytes
    id: bytes | None
    payload: bytes
    known: dict[str, Any]
    state: str
    lease_ends_ms: int | None = None


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

    def names(self) -> Deferred[list[bytes]]:
        """Fires with the names of all queues with tasks in any state or a policy."""
        d = self._store.lookup(b"ZRANGE", self._store.space + b"index", 0, -1)
        return d.addCallback(lambda keys: [self._store.name_of(key) for key in keys])

    @inlineCallbacks
    def counts(self, names: Sequence[bytes]) -> Any:
        """Fires with a `QueueView` for each name, in order."""
        views: list[QueueView] = []
        for at in range(0, len(names), COUNTS_A_CALL):
            views.extend((yield self._counts(names[at : at + COUNTS_A_CALL])))
        return views

    def _counts(self, names: Sequence[bytes], strict: bool = False) -> Deferred[list[QueueView]]:
        def counted(replies: list[Any]) -> list[QueueView]:
            views = []
            for name, reply in zip(names, replies, strict=True):
                if reply[0] == 6 and not strict:
                    # One queue whose key was taken by something else must not hide all others.
                    views.append(QueueView(name))
                    continue
                if reply[0]:
                    raise denied(reply)
                head = reply[6]
                policy = msgpack.decode(reply[7]) if reply[7] else {}
                oldest = pushed_at_ms(head[1:]) if head else None
                ready, delayed, leased, dead, done = reply[1:6]
                views.append(QueueView(name, ready, delayed, leased, dead, done, oldest, policy))
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
        view = self._view(name, task_id, payload, packed)
        if view.state == "leased":
            ends = yield self._store.lookup(b"ZSCORE", tag + b"l", view.known.get("o", {}).get("i", ""))
            view.lease_ends_ms = int(float(ends)) if ends else None
        return view

    def _view(self, name: bytes, task_id: bytes | None, payload: bytes, packed: bytes | None) -> TaskView:
        known = msgpack.decode(packed) if packed else {}
        return TaskView(name, task_id, payload, known, STATES[known.get("s", "r")])

    @inlineCallbacks
    def tasks(self, name: bytes, state: str, cursor: str, limit: int, search: bytes = b"") -> Any:
        """Fires with (tasks, cursor of the next page or None). ``cursor`` is empty for the first page.

        The order is that of delivery for ready, of due times for delayed and leased, newest first for dead and done; among those
        that a push asked to keep, those that are kept longest.
        """
        check_name(name)
        if state == "ready":
            return (yield self._ready_tasks(name, cursor, limit, search))
        if state == "done":
            return (yield self._done_tasks(name, cursor, limit, search))
        at = _offset(cursor)
        tag = self._store.tag(name)
        key = tag + {"delayed": b"d", "leased": b"l", "dead": b"x"}[state]
        command = b"ZREVRANGE" if state == "dead" else b"ZRANGE"
        most = FAR_ENOUGH if search else limit
        found = yield self._store.lookup(command, key, at, at + most - 1, b"WITHSCORES")
        scores = dict(zip(found[::2], found[1::2], strict=True))
        if state == "leased":
            # Members are leases there, whose ids begin with the task's.
            scores = {lease.split(b"-")[0]: ends for lease, ends in scores.items()}
        ids = list(scores)
        views, used = yield self._fetch(name, ids, limit, search)
        for view in views:
            view.state = state
            if state == "leased":
                view.lease_ends_ms = int(float(scores[view.id]))
        more = used < len(ids) or len(ids) == most
        return views, str(at + used) if more and ids else None

    @inlineCallbacks
    def _done_tasks(self, name: bytes, cursor: str, limit: int, search: bytes) -> Any:
        # A cursor is how many were shown of those the queue keeps, and of those their pushes asked to keep.
        kept, _, asked_for = cursor.partition(".")
        at = [_offset(kept), _offset(asked_for)]
        tag = self._store.tag(name)
        most = FAR_ENOUGH if search else limit
        lines = yield self._store.lookups(
            *[
                (b"ZREVRANGE", tag + kind, from_, from_ + most - 1)
                for kind, from_ in zip((b"e", b"f"), at, strict=True)
            ]
        )
        payloads, metas = yield self._fields(name, [task_id for line in lines for task_id in line])
        ended = {i: msgpack.decode(packed).get("z", 0) if packed else 0 for i, packed in metas.items()}
        views: list[TaskView] = []
        used = [0, 0]
        while len(views) < limit:
            heads = [
                (ended[line[n]], which)
                for which, (line, n) in enumerate(zip(lines, used, strict=True))
                if n < len(line)
            ]
            if not heads:
                break
            # The one that ended last.
            which = max(heads)[1]
            task_id = lines[which][used[which]]
            used[which] += 1
            if payloads[task_id] is not None:
                view = self._view(name, task_id, payloads[task_id], metas[task_id])
                view.state = "done"
                if _holds(view, search):
                    views.append(view)
        more = any(n < len(line) or len(line) == most for line, n in zip(lines, used, strict=True))
        return views, f"{at[0] + used[0]}.{at[1] + used[1]}" if more else None

    @inlineCallbacks
    def _ready_tasks(self, name: bytes, cursor: str, limit: int, search: bytes) -> Any:
        # A cursor is the priority and how many of its list were shown, from its head on.
        priority, _, offset = cursor.partition(".")
        p, at = (9, 0) if not cursor else (_offset(priority), _offset(offset))
        if p > 9:
            raise BadOption("The option 'cursor' is what the page before gave as cursor.")
        tag = self._store.tag(name)
        views: list[TaskView] = []
        looked = 0
        while p >= 0 and len(views) < limit and looked < FAR_ENOUGH:
            key = tag + b"%d" % p if p else self._store.list_key(name)
            most = FAR_ENOUGH if search else limit - len(views)
            elements = yield self._store.lookup(b"LRANGE", key, -(at + most), -(at + 1))
            elements.reverse()
            looked += len(elements)
            found, used = yield self._fetch_elements(name, elements, limit - len(views), search)
            views.extend(found)
            at += used
            if used == len(elements) and len(elements) < most:
                p, at = p - 1, 0
        return views, f"{p}.{at}" if p >= 0 else None

    @inlineCallbacks
    def _fetch_elements(self, name: bytes, elements: list[bytes], limit: int, search: bytes) -> Any:
        ids = [e[1:].split(b":")[0] for e in elements if e[:1] == b"\1"]
        payloads, metas = yield self._fields(name, ids)
        views: list[TaskView] = []
        for used, element in enumerate(elements):
            if len(views) == limit:
                return views, used
            if element[:1] != b"\1":
                view = TaskView(name, None, element, {}, "ready")
            else:
                task_id, _, generation = element[1:].partition(b":")
                if payloads[task_id] is None:
                    continue
                view = self._view(name, task_id, payloads[task_id], metas[task_id])
                if view.state != "ready" or view.known.get("g", 0) != int(generation or 0):
                    continue
            if _holds(view, search):
                views.append(view)
        return views, len(elements)

    @inlineCallbacks
    def _fetch(self, name: bytes, ids: list[bytes], limit: int, search: bytes) -> Any:
        payloads, metas = yield self._fields(name, ids)
        views: list[TaskView] = []
        for used, task_id in enumerate(ids):
            if len(views) == limit:
                return views, used
            payload = payloads[task_id]
            if payload is None:
                continue
            view = self._view(name, task_id, payload, metas[task_id])
            if _holds(view, search):
                views.append(view)
        return views, len(ids)

    @inlineCallbacks
    def _fields(self, name: bytes, ids: list[bytes]) -> Any:
        if not ids:
            return {}, {}
        tag = self._store.tag(name)
        payloads, metas = yield self._store.lookups(
            (b"HMGET", tag + b"t", *ids), (b"HMGET", tag + b"m", *ids)
        )
        return dict(zip(ids, payloads, strict=True)), dict(zip(ids, metas, strict=True))

    @inlineCallbacks
    def position(self, view: TaskView) -> Any:
        """How many ready tasks of its queue go before this one; None when it is further back than we look."""
        tag = self._store.tag(view.queue)
        mine = view.known.get("p", 0)
        before = 0
        for p in range(9, mine, -1):
            before += yield self._store.lookup(b"LLEN", tag + b"%d" % p)
            before -= int((yield self._store.lookup(b"HGET", tag + b"n", b"s%d" % p)) or 0)
        key = tag + b"%d" % mine if mine else self._store.list_key(view.queue)
        elements = yield self._store.lookup(b"LRANGE", key, -FAR_ENOUGH, -1)
        generation = view.known.get("g", 0)
        element = b"\1" + (view.id or b"") + (b":%d" % generation if generation else b"")
        elements.reverse()
        if element not in elements:
            return None
        # Of those in front, the cancelled and expired are tombstones.
        front = elements[: elements.index(element)]
        alive, _ = yield self._fetch_elements(view.queue, front, len(front) + 1, b"")
        return max(0, before) + len(alive)

    @inlineCallbacks
    def rate_is_spent(self, name: bytes, rate: float) -> Any:
        """Whether the rate of a queue lets nothing start now; as ``take.lua`` judges it."""
        started, since = yield self._store.lookup(
            b"HMGET", self._store.tag(name) + b"n", b"started", b"since"
        )
        if started is None or since is None:
            return False
        most = max(1, math.floor(rate))
        return int(started) >= most and 0 <= self._store.now_ms() - int(since) < most * 1000 / rate


def _holds(view: TaskView, search: bytes) -> bool:
    """Whether the text is in the payload, the id or what is known of the error."""
    if not search:
        return True
    error = view.known.get("er") or {}
    told = [view.known.get("y") or "", *(error.values() if isinstance(error, dict) else [str(error)])]
    return any(search in text for text in (view.payload, view.id or b"", *(one.encode() for one in told)))


def _offset(cursor: str) -> int:
    if not cursor:
        return 0
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 12:
        raise BadOption("The option 'cursor' is what the page before gave as cursor.")
    return int(cursor)

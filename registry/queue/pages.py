"""Walking over the tasks of a state in bounded pieces. A cursor stays valid while tasks come and go.

A cursor names the last task that was passed, and its position: the score in a sorted set, the id among the leased, the
element and its indexes in the ready lists. The walk continues behind that task. One call to Redis reads a bounded number
of bytes, and each piece is freed before the next is read, so a long list does not delay other clients.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs
from twisted.internet.defer import inlineCallbacks

from registry.errors import BadOption
from registry.model import PLAIN, STATES, Error, Task, decode_task
from registry.redis.lookups import ReadyElement, Stored
from registry.redis.store import Store

# Lists cut payloads that are longer than this.
SHOWN_BYTES = 65_536
# The number of tasks that one call to Redis reads; how much a search reads before it returns a cursor.
TASKS_PER_CALL = 100
SEARCH_BYTES, SEARCH_TASKS = 32 << 20, 1000
LEASES_PER_PIECE = 1000
# If the earliest kept time ends later than this from now, ms, no task can have moved from "kept" to "done" during the walk.
SURE_MS = 60_000

_SCORED = re.compile(r"(\d{1,17})~([0-9A-Za-z-]{1,80})")
_LEASED = re.compile(r"[0-9A-Za-z-]{1,80}")
_READY = re.compile(r"([0-9])~(\d{1,12})~(\d{1,12})~(r\d{1,12}:[0-9a-f]{40}|[0-9A-Fa-f]{24}(?::\d{1,12})?)")
_DONE = re.compile(
    r"([al])~(\d{0,17})~(?:(\d{1,17})~([0-9A-Za-z]{1,40}))?~(?:(\d{1,17})~([0-9A-Za-z]{1,40}))?"
)


@dataclass(slots=True)
class TaskView:
    """A task in its current state. ``task`` is what the scripts store of it besides the payload.

    ``payload`` may be cut; the whole payload has ``length`` bytes.
    """

    queue: bytes
    id: bytes | None
    payload: bytes
    task: Task
    state: str
    lease_ends_ms: int | None = None
    length: int = 0


Matches = Callable[[TaskView], bool]


@dataclass(slots=True)
class _Slot:
    """One member of a list: a task to read, or a ``view`` that is complete. ``place``: the cursor that continues behind it."""

    id: bytes
    place: str
    lease_ends_ms: int | None = None
    generation: int | None = None
    view: TaskView | None = None


@dataclass(slots=True)
class _Query:
    """What a walk looks for, and how much it has read so far."""

    name: bytes
    state: str
    search: bytes
    shown: int
    matches: Matches | None = None
    bytes: int = 0
    tasks: int = 0

    @property
    def selects(self) -> bool:
        return bool(self.search) or self.matches is not None

    @property
    def has_enough(self) -> bool:
        return self.selects and (self.bytes >= SEARCH_BYTES or self.tasks >= SEARCH_TASKS)


@dataclass(slots=True)
class _Stream:
    """Reads the tasks of one list. ``slots(place)`` fires with the next slots behind a place, an empty list at the end.

    ``place``: the cursor behind the last task that was taken, or skipped because it did not match.
    """

    store: Store
    query: _Query
    slots: Callable[[str], Any]
    place: str
    accepts: Callable[[TaskView], bool] = lambda view: True
    ended: bool = False
    _found: deque[tuple[TaskView | None, str]] = field(default_factory=deque)
    _pending: deque[_Slot] = field(default_factory=deque)

    @inlineCallbacks
    def head(self) -> Any:
        """Fires with the next task without taking it; None at the end of the list, or when a search has read enough."""
        while True:
            while self._found:
                view, place = self._found[0]
                if view is not None:
                    return view
                self.place = place
                self._found.popleft()
            if self.ended or self.query.has_enough:
                return None
            if not self._pending:
                self._pending.extend((yield self.slots(self.place)))
                if not self._pending:
                    self.ended = True
                    return None
            yield self._read()

    def take(self) -> None:
        """Move past the task that `head` returned."""
        _, self.place = self._found.popleft()

    @inlineCallbacks
    def _read(self) -> Any:
        slots = [self._pending.popleft() for _ in range(min(TASKS_PER_CALL, len(self._pending)))]
        ids = [slot.id for slot in slots if slot.view is None]
        rows: dict[bytes, Stored] = {}
        looked: set[bytes] = set(ids)
        query = self.query
        if ids:
            count, read, found = yield self.store.tasks(query.name, ids, query.shown, query.search)
            looked = set(ids[:count])
            query.bytes += read
            rows = {row.id: row for row in found}
        for at, slot in enumerate(slots):
            if slot.view is None and slot.id not in looked:
                self._pending.extendleft(reversed(slots[at:]))
                return
            query.tasks += 1
            self._found.append((self._view(slot, rows.get(slot.id)), slot.place))

    def _view(self, slot: _Slot, row: Stored | None) -> TaskView | None:
        if slot.view is not None:
            return slot.view if self.query.matches is None or self.query.matches(slot.view) else None
        if row is None:
            return None
        view = view_of(self.query.name, slot.id, row.payload, row.meta)
        view.length = row.length
        if slot.generation is not None:
            if view.state != "ready" or view.task.generation != slot.generation:
                return None
        else:
            view.state = self.query.state
            view.lease_ends_ms = slot.lease_ends_ms
        query = self.query
        found = not query.search or bool(row.found) or _matches(view, query.search)
        selected = found and (query.matches is None or query.matches(view))
        return view if selected and self.accepts(view) else None


class Walk:
    """A walk over the tasks of one state, in the order of its list, or ``oldest_first``.

    ``matches``: which of the tasks to show. ``shown``: how many bytes of each payload to read, -1 for none. ``kept`` applies to done
    tasks read ``oldest_first``: True for those that a push asked to keep, False for the others.
    """

    def __init__(
        self,
        store: Store,
        name: bytes,
        state: str,
        cursor: str = "",
        search: bytes = b"",
        # One byte more shows whether the cut splits a character.
        shown: int = SHOWN_BYTES + 1,
        oldest_first: bool = False,
        kept: bool = False,
        matches: Matches | None = None,
    ) -> None:
        self._store = store
        self._query = _Query(name, state, search, shown, matches)
        self._merged: _Done | None = None
        if state == "done" and not oldest_first:
            self._merged = _Done(store, self._query, cursor)
            return
        if state == "ready":
            _check(_READY, cursor)
            slots: Callable[[str], Any] = _Ready(store, self._query).slots
        elif state == "leased":
            _check(_LEASED, cursor)
            slots = _Leased(store, name).slots
        else:
            _check(_SCORED, cursor)
            of = "kept" if state == "done" and kept else state
            slots = _Scored(store, name, of, state != "delayed" and not oldest_first).slots
        self._stream = _Stream(store, self._query, slots, cursor)

    def head(self) -> Any:
        """Fires with the next task without taking it; None at the end, or when a search has read enough."""
        return (self._merged or self._stream).head()

    def take(self) -> None:
        """Move past the task that `head` returned."""
        (self._merged or self._stream).take()

    @property
    def cursor(self) -> str | None:
        """The cursor to continue the walk from; None at its end."""
        source = self._merged or self._stream
        return None if source.ended else source.place


class _Scored:
    """The members of a sorted set, by score."""

    def __init__(self, store: Store, name: bytes, of: str, highest_first: bool) -> None:
        self._store = store
        self._name = name
        self._of = of
        self._highest_first = highest_first

    @inlineCallbacks
    def slots(self, place: str, limit: int = TASKS_PER_CALL) -> Any:
        score, _, member = place.partition("~")
        found = yield self._store.scored(
            self._name, self._of, (score, member), limit, highest_first=self._highest_first
        )
        return [_Slot(task_id, f"{task_score}~{task_id.decode()}") for task_id, task_score in found]


class _Leased:
    """The leases, in the order in which their tasks were pushed. The end of a lease is no stable order: extensions change it."""

    def __init__(self, store: Store, name: bytes) -> None:
        self._store = store
        self._name = name

    @inlineCallbacks
    def slots(self, place: str) -> Any:
        found = yield self._store.leases(self._name, place.encode(), LEASES_PER_PIECE)
        return [_Slot(lease.split(b"-")[0], lease.decode(), ends) for lease, ends in found]


class _Ready:
    """The ready lists, in the order of delivery. A slot already holds the payload, possibly cut, that another program pushed."""

    def __init__(self, store: Store, query: _Query) -> None:
        self._store = store
        self._query = query

    @inlineCallbacks
    def slots(self, place: str) -> Any:
        p, head, tail, mark = place.split("~") if place else ("9", "0", "0", "")
        query = self._query
        found = yield self._store.ready_elements(
            query.name, (p, head, tail, mark), TASKS_PER_CALL, max(query.shown, 0), query.search
        )
        return [self._slot(element) for element in found]

    def _slot(self, element: ReadyElement) -> _Slot:
        place = f"{element.priority}~{element.head}~{element.tail}~{element.mark.decode()}"
        if element.id is not None:
            return _Slot(element.id, place, generation=element.generation)
        query = self._query
        query.bytes += element.length
        if query.search and not element.found:
            # Nothing is stored under the empty id, so the walk skips this slot.
            return _Slot(b"", place)
        view = TaskView(query.name, None, element.payload, PLAIN, "ready", length=element.length)
        return _Slot(b"", place, view=view)


class _Done:
    """The done tasks, newest first, merged from two lists: "done" (kept by the queue) and "kept" (a push asked to keep them).

    When the time that a push asked for ends, its task moves from "kept" to "done". The walk first skips tasks that may have moved
    while it ran. At its end (`_late`) it reads "done" once more and shows those that it has not shown yet.
    """

    def __init__(self, store: Store, query: _Query, cursor: str) -> None:
        self._store = store
        match = _DONE.fullmatch(cursor) if cursor else None
        if cursor and match is None:
            raise _bad_cursor()
        self._late = bool(match and match[1] == "l")
        # The earliest end of a kept time when the walk began, ms; "" if there was none.
        self._since: str | None = match[2] if match else None
        kept_place, done_place = (
            (f"{match[3]}~{match[4]}" if match and match[3] else ""),
            (f"{match[5]}~{match[6]}" if match and match[5] else ""),
        )
        self._kept_slots = _Scored(store, query.name, "kept", True).slots
        self._earliest_kept = _Scored(store, query.name, "kept", False).slots
        self._kept = _Stream(store, query, self._kept_slots, kept_place)
        self._done_slots = _Scored(store, query.name, "done", True).slots
        self._done = _Stream(store, query, self._done_slots, done_place, self._is_shown)
        self._query = query
        self._next = self._done

    def _is_shown(self, view: TaskView) -> bool:
        until = view.task.kept_until
        moved = until is not None and bool(self._since) and until >= int(self._since or 0)
        if not self._late:
            return not moved
        score, _, member = self._kept.place.partition("~")
        return moved and (not score or (until, view.id) < (int(score), member.encode()))

    @inlineCallbacks
    def head(self) -> Any:
        if self._since is None:
            lowest = yield self._earliest_kept("", 1)
            self._since = lowest[0].place.split("~")[0] if lowest else ""
        if not self._late:
            views = []
            for stream in (self._kept, self._done):
                view = yield stream.head()
                if view is not None:
                    views.append((view.task.ended_at or 0, view, stream))
                elif not stream.ended:
                    return None
            if views:
                _, view, self._next = max(views, key=lambda one: one[0])
                return view
            if not self._since or int(self._since) > self._store.now_ms() + SURE_MS:
                return None
            self._late = True
            self._done = _Stream(self._store, self._query, self._done_slots, "", self._is_shown)
        self._next = self._done
        return (yield self._done.head())

    def take(self) -> None:
        self._next.take()

    @property
    def ended(self) -> bool:
        return self._kept.ended and self._done.ended if not self._late else self._done.ended

    @property
    def place(self) -> str:
        kept, done = self._kept.place, self._done.place
        return f"{'l' if self._late else 'a'}~{self._since or ''}~{kept}~{done}"


def view_of(name: bytes, task_id: bytes | None, payload: bytes, encoded: bytes | None) -> TaskView:
    """The view of a task from its stored payload and encoded meta."""
    task = decode_task(encoded)
    return TaskView(name, task_id, payload, task, STATES[task.state], length=len(payload))


def _matches(view: TaskView, search: bytes) -> bool:
    """Whether the reason or the error of the task contains the text."""
    error = view.task.error
    texts = [view.task.reason, *(structs.astuple(error) if isinstance(error, Error) else [error])]
    return any(search in str(text).encode() for text in texts if text)


def _check(pattern: re.Pattern[str], cursor: str) -> None:
    if cursor and not pattern.fullmatch(cursor):
        raise _bad_cursor()


def _bad_cursor() -> BadOption:
    return BadOption("The option 'cursor' must be the cursor of the previous page.")

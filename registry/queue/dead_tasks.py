"""Groups dead tasks by their cause, and says whether a group points to a worker or to the tasks.

A group is one reason, and for tasks that failed, one type of error and one message, with its numbers and quoted parts masked.

points to | when
----------|-----------------------------------------------------------------------------------------------
worker    | nine of ten failed attempts were one worker's, two at least, and other workers finished tasks of these queues
tasks     | the attempts failed on several workers; or no worker could have done them (not_json, poison)
unclear   | otherwise: the workers have no names, there is only one, or no worker ended the task (expired, cancelled)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.model import Attempt, Empty, Error, decode_task
from registry.queue.masking import mask
from registry.queue.names import check_name
from registry.queue.pages import Walk
from registry.queue.queues import Queues
from registry.queue.survey import FRONT, Cached, survey
from registry.redis.lookups import Record

# An answer is kept for this long, s.
KEPT_SECONDS = 2.0
# More groups than this are counted together, and the answer says that it is not complete.
MAX_GROUPS = 1000
# Who finished tasks is read from DONE_TASKS done tasks in each of DONE_QUEUES queues of a group, and DONE_QUEUES_IN_ALL in all.
DONE_TASKS, DONE_QUEUES, DONE_QUEUES_IN_ALL = 200, 3, 30
# A worker is blamed for at least this many attempts, and this share of all.
FEWEST_ATTEMPTS, SHARE = 2, 0.9
TYPE_CHARACTERS = 200
# How far back deaths are counted by the hour; and how long a death is recent.
HOURS, HOUR_MS, RECENT_MS = 24, 3_600_000, 300_000
# Reasons for which no worker answers.
NOBODYS, OF_TASKS = ("expired", "cancelled"), ("not_json", "poison")


@dataclass(slots=True)
class Group:
    """Tasks that died of the same. ``workers``: how many of their attempts failed so on each; ``nameless``: how many on workers
    without a name. ``first``, ``last``: when they died, ms. ``example``: queue and id of the one that died last. ``hours``: how
    many died in each of the last `HOURS`, the current one last; ``recent``: and within `RECENT_MS`."""

    reason: str
    type: str | None
    message: str | None
    count: int = 0
    queues: Counter[bytes] = field(default_factory=Counter)
    workers: Counter[str] = field(default_factory=Counter)
    nameless: int = 0
    first: float = 0
    last: float = 0
    example: tuple[bytes, bytes] = (b"", b"")
    points_to: str = "unclear"
    hours: list[int] = field(default_factory=lambda: [0] * HOURS)
    recent: int = 0

    def suspect(self) -> str | None:
        """The one worker that nearly all attempts failed on."""
        named = sum(self.workers.values())
        for worker, count in self.workers.most_common(1):
            if count >= FEWEST_ATTEMPTS and count >= SHARE * (named + self.nameless):
                return worker
        return None


@dataclass(slots=True)
class Deaths:
    """The dead tasks in groups. ``count``: how many were read; ``complete``: these are all, and all are in a group.

    ``groups``: the largest first. ``at``: when it was made, ms.
    """

    groups: list[Group]
    count: int
    complete: bool
    at: int


def kind_of(error: Error | Empty | str | None) -> tuple[str | None, str | None]:
    """The type of an error, and its masked message."""
    if isinstance(error, Error):
        kind = error.type[:TYPE_CHARACTERS] if error.type else None
        return kind, mask(error.message) if error.message else None
    return None, mask(error) if isinstance(error, str) and error else None


class _Grouping:
    """Puts dead tasks into groups. ``now``: ms."""

    def __init__(self, now: int) -> None:
        self._now = now
        self.groups: dict[tuple[str, str | None, str | None], Group] = {}
        self.count = 0
        self.is_full = False

    def take(self, record: Record) -> None:
        task = decode_task(record.meta)
        reason = task.reason or "failed"
        kind = kind_of(task.error) if reason == "failed" else (reason, None)
        self.count += 1
        key = (reason, *kind)
        group = self.groups.get(key)
        if group is None:
            if len(self.groups) >= MAX_GROUPS:
                self.is_full = True
                return
            group = self.groups[key] = Group(*key)
        died = task.ended_at or 0
        if not group.count or died < group.first:
            group.first = died
        if not group.count or died >= group.last:
            group.last, group.example = died, (record.queue, record.member)
        group.count += 1
        age = max(0, self._now - died)
        if age < HOURS * HOUR_MS:
            group.hours[-1 - int(age // HOUR_MS)] += 1
            group.recent += age < RECENT_MS
        group.queues[record.queue] += 1
        if reason in NOBODYS:
            return
        workers = [one.worker for one in task.history if _is_of(one, reason, kind)]
        named = [worker for worker in workers if worker]
        group.workers.update(named)
        group.nameless += len(workers) - len(named)


def _is_of(attempt: Attempt, reason: str, kind: tuple[str | None, str | None]) -> bool:
    """Whether an attempt ended like the task of this group."""
    if reason == "poison":
        return attempt.reason == "lease_expired"
    return attempt.reason == reason and (reason != "failed" or kind_of(attempt.error) == kind)


class DeadTasks:
    """Finds out why tasks are dead."""

    def __init__(self, queues: Queues) -> None:
        self._store = queues.store
        self._roster = queues.roster
        self._cached: Cached[Deaths] = Cached(queues.polls.now, KEPT_SECONDS)

    def groups(self, name: bytes | None = None) -> Deferred[Deaths]:
        """The dead tasks of a queue, or of all, in groups. An answer is kept for some seconds."""
        if name is not None:
            check_name(name)
        return self._cached.get(name, lambda: self._read_groups(name))

    @inlineCallbacks
    def recent(self, names: Collection[bytes], since_ms: float, most: int) -> Any:
        """Fires with the groups of the tasks that have died in these queues since then, the largest first; reads the latest
        ``most`` of each queue."""
        grouping = _Grouping(self._store.now_ms())
        for name in names:
            place, left = FRONT, most
            while left > 0:
                _, found = yield self._store.records([name], "dead", place, left, highest_first=True)
                for record in found:
                    if (decode_task(record.meta).ended_at or 0) >= since_ms:
                        grouping.take(record)
                if not found:
                    break
                left -= len(found)
                place = (str(found[-1].score), found[-1].member.decode())
        groups = sorted(grouping.groups.values(), key=lambda one: (-one.count, -one.last))
        yield self._blame_each(groups[:1])
        return groups

    @inlineCallbacks
    def _read_groups(self, name: bytes | None) -> Any:
        at = self._store.now_ms()
        grouping = _Grouping(at)
        names = [name] if name is not None else (yield self._store.queue_names(b""))
        complete = yield survey(self._store, names, "dead", grouping.take, highest_first=True)
        groups = sorted(grouping.groups.values(), key=lambda one: (-one.count, -one.last))
        yield self._blame_each(groups)
        return Deaths(groups, grouping.count, complete and not grouping.is_full, at)

    @inlineCallbacks
    def _blame_each(self, groups: Sequence[Group]) -> Any:
        # Also where no done task is kept, it is known who finished some in the last minutes.
        lately: dict[bytes, set[str]] = yield self._roster.finishers()
        finished: dict[bytes, set[str]] = {}
        for group in groups:
            yield self._blame(group, finished, lately)

    @inlineCallbacks
    def _blame(self, group: Group, finished: dict[bytes, set[str]], lately: dict[bytes, set[str]]) -> Any:
        """Set whom it points to. ``finished``, ``lately``: who finished tasks, by queue, as far as it was looked up or counted."""
        suspect = group.suspect()
        if group.reason in OF_TASKS:
            group.points_to = "tasks"
        elif suspect is not None:
            for queue, _ in group.queues.most_common(DONE_QUEUES):
                if lately.get(queue, set()) - {suspect}:
                    group.points_to = "worker"
                    return
                if queue not in finished and len(finished) < DONE_QUEUES_IN_ALL:
                    finished[queue] = yield self._finishers(queue)
                if finished.get(queue, set()) - {suspect}:
                    group.points_to = "worker"
                    return
        elif len(group.workers) > 1:
            group.points_to = "tasks"

    @inlineCallbacks
    def _finishers(self, queue: bytes) -> Any:
        walk, found = Walk(self._store, queue, "done", "", shown=-1), set[str]()
        for _ in range(DONE_TASKS):
            view = yield walk.head()
            if view is None:
                break
            found.update(_workers(view.task.history[-1:]))
            walk.take()
        return found


def _workers(attempts: Iterable[Attempt]) -> Iterable[str]:
    return (one.worker for one in attempts if one.worker and one.reason == "done")

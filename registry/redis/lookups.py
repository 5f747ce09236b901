"""The store's look-ups of queues and tasks. They only read, a bounded piece at a time."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import Conflict
from registry.model import Code
from registry.redis.commands import Commands
from registry.redis.faults import error_from_reply

NAMES_PER_SCAN = 1000
LEASES_PER_SCAN = 1000
DIED_PER_CALL = 500
# How many bytes of payloads one call reads.
BYTES_PER_CALL = 1 << 20
# The sorted sets of a queue. "done" are the done tasks that the queue keeps, "kept" those that a push asked to keep.
SETS = {"delayed": b"d", "dead": b"x", "done": b"e", "kept": b"f", "leased": b"l"}
# How many bytes of records one call of `Lookups.records` reads.
RECORD_BYTES_PER_CALL = 1 << 18


class Counts(NamedTuple):
    """What a queue holds. ``oldest_ms``: when its oldest ready task became ready, None for no task or a raw element; ``policy``:
    as it is stored."""

    ready: int
    delayed: int
    leased: int
    dead: int
    done: int
    oldest_ms: int | None
    policy: bytes | None


class Stored(NamedTuple):
    """A task as it is stored. ``payload``: the payload or its beginning; ``length``: the bytes of the whole payload.

    ``found``: 1 where the payload or the id contains the text that was searched for.
    """

    id: bytes
    payload: bytes
    length: int
    meta: bytes | None
    found: int


class Record(NamedTuple):
    """A member of a sorted set, and the record of its task, None for a plain one. ``member``: the task's id, or its lease."""

    queue: bytes
    member: bytes
    score: int
    meta: bytes | None


class ReadyElement(NamedTuple):
    """An element of a ready list: a task's id and generation; or no id, and what another program pushed, or its beginning.

    The next read continues behind ``mark`` in the list of ``priority``. ``head``, ``tail``: its distances from both ends.
    """

    id: bytes | None
    generation: int
    payload: bytes
    priority: int
    head: int
    tail: int
    mark: bytes
    length: int
    found: int


class Why(NamedTuple):
    """``gates``: the queue's rules that let nothing start now: paused, concurrency_limited, rate_limited.

    ``position``: how many ready tasks go before this one; None where it is not ready, or behind the elements that were read.
    """

    gates: frozenset[str]
    position: int | None


class Lookups(Commands):
    """The part of the store that only reads."""

    def counts(self, names: Sequence[bytes]) -> Deferred[list[Counts | Conflict]]:
        """What each of these queues holds; a `Conflict` for one whose key holds something else."""

        def counted(replies: list[Any]) -> list[Counts | Conflict]:
            found: list[Counts | Conflict] = []
            for code, *more in replies:
                error = error_from_reply([code, *more]) if code else None
                if error is not None and not isinstance(error, Conflict):
                    raise error
                found.append(error or Counts(*more))
            return found

        return self._read("counts", names).addCallback(counted)

    def glance(self, names: Sequence[bytes]) -> Deferred[list[list[Any]]]:
        """Something for each of these queues that is different when its `counts` are, apart from their policy and their ages."""
        return self._read("glance", names)

    @inlineCallbacks
    def queue_names(self, search: bytes) -> Any:
        """The names that contain ``search``, of all queues that hold anything."""
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            # A piece at a time; a name that is in the index during the whole scan is in one of the pieces.
            cursor, names = yield self.index_piece(cursor, NAMES_PER_SCAN)
            found.update(name for name in names if search in name)
            if cursor == b"0":
                return found

    @inlineCallbacks
    def died(self, names: Sequence[bytes], times_ms: Sequence[int]) -> Any:
        """Fires with how many dead tasks of each of these queues are deleted at a time or later."""
        found: list[int] = []
        for at in range(0, len(names), DIED_PER_CALL):
            replies = yield self._read(
                "died", names[at : at + DIED_PER_CALL], *times_ms[at : at + DIED_PER_CALL]
            )
            found += [0 if code else count for code, count in replies]
        return found

    @inlineCallbacks
    def index_piece(self, cursor: bytes, count: int) -> Any:
        """Fires with where the next piece begins, ``b"0"`` at the end, and about ``count`` names of the index."""
        cursor, flat = yield self._ask(b"ZSCAN", self.keys.index, cursor, b"COUNT", count)
        return cursor, list(dict.fromkeys(map(self.keys.name_of, flat[::2])))

    def record(self, name: bytes, task_id: bytes) -> Deferred[bytes | None]:
        """The record of a task, None for no such task, or a plain one."""
        return self._ask(b"HGET", self.keys.metas(name), task_id)

    def task(self, name: bytes, task_id: bytes) -> Deferred[list[bytes | None]]:
        """A task's payload, None for no such task, and the rest of its record, None for a plain task."""
        keys = self.keys
        return self._ask_each((b"HGET", keys.payloads(name), task_id), (b"HGET", keys.metas(name), task_id))

    def lease_ends_ms(self, name: bytes, lease: str) -> Deferred[int | None]:
        """When a lease ends, ms; None for one that has ended."""
        return self._ask(b"ZSCORE", self.keys.leases(name), lease).addCallback(_whole)

    def tasks(
        self, name: bytes, ids: Sequence[bytes], shown: int, search: bytes
    ) -> Deferred[tuple[int, int, list[Stored]]]:
        """As many of these tasks as one call reads: how many ids it looked at, the bytes it read, and the tasks that exist.

        ``shown``: how many bytes of a payload to return, -1 to read no payloads. ``search``: return only tasks that contain this.
        """

        def found(reply: list[Any]) -> tuple[int, int, list[Stored]]:
            if reply[0]:
                raise error_from_reply(reply)
            return reply[1], reply[2], list(map(Stored._make, reply[3:]))

        if shown < 0:
            return self._read("fields", [name], BYTES_PER_CALL, shown, search, *ids).addCallback(found)
        d: Deferred[list[Any]] = self._payload_reads.run(
            self._read, "fields", [name], BYTES_PER_CALL, shown, search, *ids
        )
        return d.addCallback(found)

    def scored(
        self, name: bytes, set_name: str, place: tuple[str, str], limit: int, *, highest_first: bool
    ) -> Deferred[list[tuple[bytes, int]]]:
        """Tasks of one of the `SETS` after a place: ids and scores. ``place``: score and id, both empty for the front."""

        def found(reply: list[Any]) -> list[tuple[bytes, int]]:
            if reply[0]:
                raise error_from_reply(reply)
            return [(one, int(float(score))) for one, score in zip(reply[1::2], reply[2::2], strict=True)]

        return self._read("scored", [name], SETS[set_name], int(highest_first), *place, limit).addCallback(
            found
        )

    def records(
        self,
        names: Sequence[bytes],
        set_name: str,
        place: tuple[str, str],
        limit: int,
        *,
        highest_first: bool,
    ) -> Deferred[tuple[int, list[Record]]]:
        """Members of one of the `SETS` of several queues, a queue after the other; ``place``: where to go on in the first one.

        Fires with the number of queues that were read to their end, and the members.
        """

        def found(reply: list[Any]) -> tuple[int, list[Record]]:
            if reply[0]:
                raise error_from_reply(reply)
            rows = [Record(names[n], one, int(float(score)), meta) for n, one, score, meta in reply[2:]]
            return reply[1], rows

        words = (SETS[set_name], int(highest_first), *place, limit, RECORD_BYTES_PER_CALL)
        return self._read("records", names, *words).addCallback(found)

    @inlineCallbacks
    def leases(self, name: bytes, behind: bytes, limit: int) -> Any:
        """The first ``limit`` leases after ``behind``, in the order in which their tasks were pushed, and when each ends, ms."""
        cursor, found = b"0", dict[bytes, bytes]()
        while True:
            cursor, flat = yield self._ask(
                b"ZSCAN", self.keys.leases(name), cursor, b"COUNT", LEASES_PER_SCAN
            )
            pairs = zip(flat[::2], flat[1::2], strict=True)
            found.update((lease, ends) for lease, ends in pairs if lease > behind)
            if len(found) > 2 * limit:
                found = {lease: found[lease] for lease in heapq.nsmallest(limit, found)}
            if cursor == b"0":
                return [(lease, int(float(found[lease]))) for lease in heapq.nsmallest(limit, found)]

    @inlineCallbacks
    def ready_elements(
        self,
        name: bytes,
        place: tuple[int | str, int | str, int | str, str],
        limit: int,
        shown: int,
        search: bytes,
    ) -> Any:
        """Elements of the ready lists in the order of delivery, after a place: priority, head, tail and mark of a `ReadyElement`."""
        resume_at: int | str = ""
        while True:
            reply = yield self._read("ready", [name], *place, resume_at, limit, shown, search)
            if reply[0] == Code.NOTHING:
                resume_at = reply[1]
                continue
            if reply[0]:
                raise error_from_reply(reply)
            return list(map(ReadyElement._make, reply[1:]))

    @inlineCallbacks
    def why(self, name: bytes, task_id: bytes, limit: int) -> Any:
        """What keeps a task from being handed out; ``limit``: how many elements of its list are read at most."""
        before = at = 0
        while True:
            reply = yield self._read("why", [name], task_id, at, limit - at)
            if reply[0]:
                raise error_from_reply(reply)
            _, gates, higher, alive, read, met = reply
            # Cancelled and expired tasks in front of it are tombstones, and not counted.
            before += alive
            at += read
            if met or not read or at >= limit:
                closed_gates = frozenset(gate.decode() for gate in gates)
                return Why(closed_gates, higher + before if met else None)

    @inlineCallbacks
    def redis_now_ms(self) -> Any:
        """The current time of Redis's clock, ms."""
        seconds, micros = yield self._ask(b"TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def _whole(score: bytes | None) -> int | None:
    return None if score is None else int(float(score))

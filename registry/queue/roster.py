"""Who works: the workers that give their names, as their polls and their leases show them, over all daemons."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from msgspec import Struct, msgpack
from twisted.internet.defer import Deferred, inlineCallbacks

from registry.model import decode_task
from registry.queue.survey import Cached, survey
from registry.queue.tally import label_of
from registry.queue.worker_counts import Verdict, WorkerCounts, judge
from registry.queue.workers import Workers
from registry.redis.lookups import Record
from registry.redis.store import Store

# This process remembers at most this many workers, and of each the queues it polled last.
MAX_WORKERS, MAX_QUEUES = 10_000, 20
# A worker that holds nothing and has not polled for this long is forgotten, s.
FORGOTTEN_SECONDS = 600.0
# A process tells the others of at most this many workers, those that polled last.
MAX_TOLD = 1000
# So many sights wait at most until they are taken: see `Roster.sights`.
MAX_SIGHTS = 1000
# A list names this many leases of a worker, those that end first, and is kept for this long, s.
MAX_LEASES, KEPT_SECONDS = 20, 1.0


class Polled(Struct, array_like=True):
    """What a process knows of a worker from its polls. Times in ms. ``parked``: its open polls; ``shared_at``: when several live
    workers used the name, 0 for never. ``ended``: by queue or family, how many tasks of it were done lately and how many attempts
    failed, as far as this process knows. Without an address that is all it knows."""

    worker: str
    address: str
    user_agent: str | None
    queues: list[bytes]
    since: int
    last: int
    parked: int
    shared_at: int
    ended: list[tuple[bytes, int, int]] = []


@dataclass(slots=True)
class Held:
    """A lease that a worker holds. Times in ms."""

    queue: bytes
    id: bytes
    attempt: int
    since: float | None
    ends: int
    progress: float | None


@dataclass(slots=True)
class Worker:
    """A worker over all daemons; ``name`` None stands for all leases of workers without a name. Times in ms.

    ``leases``: those that end first, of ``held`` in all. ``shared``: several live workers use this name. ``done``, ``failed``: how
    many of its tasks ended so in the last minutes, see `WorkerCounts`; ``verdict``: it fails what others finish.
    """

    name: str | None
    address: str | None = None
    user_agent: str | None = None
    queues: set[bytes] = field(default_factory=set)
    since: float | None = None
    last: float | None = None
    parked: int = 0
    shared: bool = False
    held: int = 0
    leases: list[Held] = field(default_factory=list)
    ended: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    verdict: Verdict | None = None

    @property
    def done(self) -> int:
        return sum(done for done, _ in self.ended.values())

    @property
    def failed(self) -> int:
        return sum(failed for _, failed in self.ended.values())

    @property
    def version(self) -> str | None:
        """The product that its User-Agent names first, such as mailer/2.4.1."""
        return (self.user_agent or "").partition(" ")[0] or None

    def add_polls(self, polled: Polled, shared_since: int) -> None:
        """What one process knows of it."""
        for queue, done, failed in polled.ended:
            before = self.ended.get(queue, (0, 0))
            self.ended[queue] = before[0] + done, before[1] + failed
        if not polled.address:
            return
        if self.last is None or polled.last > self.last:
            self.last, self.address, self.user_agent = polled.last, polled.address, polled.user_agent
        self.since = polled.since if self.since is None else min(self.since, polled.since)
        self.queues.update(polled.queues)
        self.parked += polled.parked
        self.shared = self.shared or polled.shared_at > shared_since

    def add_lease(self, held: Held) -> None:
        """A lease that it holds; they come in the order in which they end, within their queue."""
        self.held += 1
        self.leases.append(held)
        if len(self.leases) >= 2 * MAX_LEASES:
            self.cut()
        if held.since is not None:
            self.since = held.since if self.since is None else min(self.since, held.since)
            self.last = held.since if self.last is None else max(self.last, held.since)

    def cut(self) -> None:
        """Keep the leases that end first."""
        self.leases.sort(key=lambda one: one.ends)
        del self.leases[MAX_LEASES:]


@dataclass(slots=True)
class WorkerList:
    """All workers by name. ``complete``: all leases were read. ``at``: when, ms."""

    workers: list[Worker]
    complete: bool
    at: int


@dataclass(slots=True)
class _Seen:
    """A worker that polled this process; times are monotonic, s."""

    address: str
    agent: bytes | None
    since: float
    last: float
    queues: dict[bytes, None] = field(default_factory=dict)


class Roster:
    """The workers that polled this process, and the list of those of all daemons. ``standing``: orders by worker.

    ``sights``: which User-Agents polled queues of which labels, since somebody last emptied it.
    """

    def __init__(
        self,
        store: Store,
        workers: Workers,
        standing: Mapping[str, str],
        now: Callable[[], float],
        counts: WorkerCounts,
    ) -> None:
        self._counts = counts
        self._standing = standing
        self._store = store
        self._workers = workers
        self._now = now
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self.sights: dict[tuple[bytes, bytes], None] = {}
        self._cached: Cached[WorkerList] = Cached(now, KEPT_SECONDS)

    def polled(self, worker: str, names: Iterable[bytes], address: str, agent: bytes | None) -> None:
        """A worker polls these queues."""
        now = self._now()
        seen = self._seen.get(worker)
        if seen is None:
            seen = self._seen[worker] = _Seen(address, agent, now, now)
            if len(self._seen) > MAX_WORKERS:
                self._seen.popitem(last=False)
        else:
            self._seen.move_to_end(worker)
            if now > seen.last + FORGOTTEN_SECONDS:
                seen.since = now
            seen.address, seen.last = address, now
            if agent != seen.agent:
                seen.agent = agent
                self._saw(seen.queues, agent)
        queues = seen.queues
        for name in names:
            if name not in queues:
                queues[name] = None
                self._saw((name,), agent)
                if len(queues) > MAX_QUEUES:
                    del queues[next(iter(queues))]

    def _saw(self, names: Iterable[bytes], agent: bytes | None) -> None:
        if agent and len(self.sights) < MAX_SIGHTS:
            for name in names:
                self.sights[label_of(name), agent] = None

    def _polled_here(self) -> Iterator[Polled]:
        now, now_ms = self._now(), self._store.now_ms()
        open_polls = self._workers.open_polls()

        def ms(at: float) -> int:
            return now_ms - int((now - at) * 1000)

        ended = self._counts.recent(now)
        for worker, seen in reversed(self._seen.items()):
            parked = open_polls.get(worker, 0)
            if now > seen.last + FORGOTTEN_SECONDS and not parked:
                break
            agent = None if seen.agent is None else seen.agent[:200].decode("utf-8", "replace")
            shared = self._workers.shared_at(worker)
            yield Polled(
                worker,
                seen.address,
                agent,
                list(seen.queues),
                ms(seen.since),
                ms(seen.last),
                parked,
                0 if shared is None else ms(shared),
                ended.pop(worker, [])[:MAX_QUEUES],
            )
        # They poll another process, and acknowledge here.
        for worker, queues in ended.items():
            yield Polled(worker, "", None, [], now_ms, now_ms, 0, 0, queues[:MAX_QUEUES])

    def has_counts(self) -> bool:
        """Whether a worker's task ended here lately."""
        return bool(self._counts.recent(self._now()))

    @inlineCallbacks
    def beat(self, life_ms: int) -> Any:
        """Tell the other processes who polled this one; tell nothing where nobody did."""
        polled = list(islice(self._polled_here(), MAX_TOLD))
        if polled:
            yield self._store.beat_workers(msgpack.encode(polled), life_ms)

    @inlineCallbacks
    def _heartbeats(self) -> Any:
        """Fires with what each process knows of its workers."""
        found = list(self._polled_here())
        for beat in (yield self._store.other_workers()):
            found += _decode(beat)
        return found

    @inlineCallbacks
    def finishers(self) -> Any:
        """Fires with the workers that finished tasks in the last minutes, by queue or family."""
        found: dict[bytes, set[str]] = {}
        for polled in (yield self._heartbeats()):
            for queue, done, _ in polled.ended:
                if done:
                    found.setdefault(queue, set()).add(polled.worker)
        return found

    @inlineCallbacks
    def who_polled(self, names: Collection[bytes]) -> Any:
        """Fires with the worker that polled each of these queues last, and when it polled last, ms, as far as that is known."""
        wanted, found = set(names), dict[bytes, tuple[int, str]]()
        for polled in (yield self._heartbeats()):
            for name in wanted.intersection(polled.queues):
                found[name] = max(found.get(name, (0, "")), (polled.last, polled.worker))
        return found

    def workers(self) -> Deferred[WorkerList]:
        """All workers, over all daemons. A list is kept for a moment."""
        return self._cached.get(None, self._read_workers)

    @inlineCallbacks
    def _read_workers(self) -> Any:
        at = self._store.now_ms()
        workers: dict[str | None, Worker] = {}
        for polled in (yield self._heartbeats()):
            _of(workers, polled.worker).add_polls(polled, at - int(FORGOTTEN_SECONDS * 1000))

        def take(record: Record) -> None:
            task = decode_task(record.meta)
            lease = task.lease
            # A task may have gone since its lease was read, and been leased again.
            if lease is None or lease.hidden or lease.id.encode() != record.member or record.score <= at:
                return
            task_id = record.member.partition(b"-")[0]
            held = Held(record.queue, task_id, task.attempt, lease.granted_at, record.score, task.progress)
            _of(workers, lease.worker).add_lease(held)

        names = yield self._store.queue_names(b"")
        complete = yield survey(self._store, names, "leased", take, highest_first=False)
        for worker in workers.values():
            worker.cut()
        for name in self._standing:
            _of(workers, name)
        verdicts = judge({worker.name: worker.ended for worker in workers.values() if worker.name})
        for name, verdict in verdicts.items():
            workers[name].verdict = verdict
        # Those without a name come last.
        rows = sorted(workers.values(), key=lambda one: (one.name is None, one.name or ""))
        return WorkerList(rows, complete, at)


_decode = msgpack.Decoder(list[Polled]).decode


def _of(workers: dict[str | None, Worker], name: str | None) -> Worker:
    found = workers.get(name)
    if found is None:
        found = workers[name] = Worker(name)
    return found

"""What all queues hold, kept current in this process while somebody watches.

To count a queue takes Redis about 30 µs, and to see whether it has changed a fifth of that. A round, once a second, looks at

1. those that somebody sees (`shown`), and those that had changed when they were read last;
2. those that changed here, or of which a notice of another daemon told, such as a change of their policy: these are counted;
3. the next `GLANCES_PER_ROUND` of the index, so that each queue is looked at again after some rounds.

While there are no more queues than that, every round looks at them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, succeed
from twisted.python.failure import Failure

from registry.errors import Conflict
from registry.model import decode_policy
from registry.queue.inspector import COUNTS_PER_CALL, QueueView
from registry.queue.queues import Queues
from registry.queue.tally import label_of
from registry.redis.lookups import Counts

GLANCES_PER_ROUND, SHOWN_PER_ROUND, TOUCHED_PER_ROUND, LIVELY_PER_ROUND = 500, 500, 100, 200
GLANCES_PER_CALL = 200
# Of more queues than this, some are left out.
MAX_QUEUES = 100_000
# A queue that has changed is looked at in each of this many rounds after that.
LIVELY_ROUNDS = 10
# What was read is used again for this long, s; or for this many times as long as reading all took.
FRESH_SECONDS, REST = 2.0, 20
STATES = ("ready", "delayed", "leased", "dead", "done")
# Their entries are about no queue.
OTHER_VERBS = frozenset({"audit", "order"})


class Row:
    """A queue. ``version``: grows with each change; ``cycle``: in which reading of the index it was read last.

    ``ready_ms``: when tasks were first seen ready in it, None for none. ``glance``: what a look at it before its count has shown.
    """

    __slots__ = ("_counts", "cycle", "family", "glance", "pollers", "ready_ms", "version", "view")
    queues = 1

    def __init__(self, name: bytes) -> None:
        self.view = QueueView(name)
        self.family = label_of(name)
        self.pollers = self.version = self.cycle = 0
        self.ready_ms: int | None = None
        self.glance: list[Any] | None = None
        self._counts: Counts | Conflict | None = None

    @property
    def name(self) -> bytes:
        return self.view.name

    @property
    def oldest_ms(self) -> int | None:
        """Since when its oldest task is ready."""
        return self.view.oldest_ms

    @property
    def held(self) -> list[int]:
        """Its tasks by state, and its pollers."""
        view = self.view
        return [view.ready, view.delayed, view.leased, view.dead, view.done, self.pollers]

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing, has no policy and no poller."""
        counts = self._counts
        nothing = counts is None or (isinstance(counts, Counts) and not any(counts[:5]) and not counts.policy)
        return nothing and not self.pollers

    def forget(self) -> None:
        """It holds nothing any more."""
        self._counts = None
        self.view = QueueView(self.view.name)

    def take(self, counts: Counts | Conflict, now_ms: int) -> bool:
        """What Redis says now; returns whether it is something else than before."""
        if counts == self._counts:
            return False
        name = self.view.name
        if isinstance(counts, Conflict):
            # A key of another type. It must not hide all other queues.
            if isinstance(self._counts, Conflict):
                return False
            self.view = QueueView(name)
        else:
            self.view = QueueView(name, *counts[:6], decode_policy(counts.policy))
        self._counts = counts
        self.ready_ms = (self.ready_ms or now_ms) if self.view.ready else None
        return True


class Sum:
    """The sum of some queues: of a family, ``name`` being ``family:*``, or of all. ``held``: as in `Row`."""

    __slots__ = ("_is_known", "_oldest", "held", "members", "name", "version")

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.held = [0] * 6
        self.members: dict[bytes, Row] = {}
        self.version = 0
        self._oldest: int | None = None
        self._is_known = True

    @property
    def queues(self) -> int:
        """How many queues it sums."""
        return len(self.members)

    @property
    def oldest_ms(self) -> int | None:
        """Since when the oldest task of them is ready."""
        if not self._is_known:
            known = [row.view.oldest_ms for row in self.members.values() if row.view.oldest_ms is not None]
            self._oldest, self._is_known = min(known, default=None), True
        return self._oldest

    def change(self, before: Sequence[int], after: Sequence[int], version: int) -> None:
        """A member held ``before``, and holds ``after``."""
        self.held = [held - old + new for held, old, new in zip(self.held, before, after, strict=True)]
        self.version, self._is_known = version, False


NOTHING = (0,) * 6


class Inventory:
    """``rows``: by name; ``families``: by label, of the queues with a colon in their name; ``total``: of all.

    ``changed``: the names that changed, came or went in the last round; ``came_or_went``: whether any came or went. ``leaves_out``:
    there are more queues than `MAX_QUEUES`.
    """

    def __init__(self, queues: Queues, now: Callable[[], float] = time.monotonic) -> None:
        self._queues = queues
        self._store = queues.store
        self._now = now
        self._watchers = 0
        self._touched: set[bytes] = set()  # keys of entries
        self._noticed: set[bytes] = set()  # names
        self._running: list[Deferred[None]] | None = None
        self.shown: Callable[[], Iterable[bytes]] = tuple
        self.rows: dict[bytes, Row] = {}
        self.families: dict[bytes, Sum] = {}
        self.total = Sum(b"*")
        self.changed: set[bytes] = set()
        self.came_or_went = self.leaves_out = False
        self._was_read = False  # all queues, once
        self._rounds = self._version = 0
        self._lively: dict[bytes, int] = {}
        self._cursor = b"0"
        self._cycle = 1
        self._pollers: dict[bytes, int] = {}
        self._fresh_until = -1.0

    # Watching

    def watch(self) -> None:
        """Somebody calls `round` once a second from now on."""
        self._watchers += 1
        if self._watchers == 1:
            self._queues.batching.replied = self._replied

    def unwatch(self) -> None:
        """They no longer do."""
        self._watchers -= 1
        if not self._watchers:
            self._queues.batching.replied = self._queues.tally.replied
            self._touched.clear()
            self._noticed.clear()

    def _replied(self, verb: str, entries: list[Any], replies: list[Any], seconds: float) -> None:
        self._queues.tally.replied(verb, entries, replies, seconds)
        if len(self._touched) < TOUCHED_PER_ROUND and verb not in OTHER_VERBS:
            self._touched.update([entry.key for entry in entries])

    def noticed(self, name: bytes) -> None:
        """Another daemon has changed this queue."""
        if self._watchers and len(self._noticed) < TOUCHED_PER_ROUND:
            self._noticed.add(name)

    # Reading

    def fresh(self) -> Deferred[None]:
        """Fires when what is here is at most some seconds old. Fails with `Unavailable` while Redis is away."""
        if self._now() < self._fresh_until and self._store.ready:
            return succeed(None)
        return self.round(everything=not self._watchers or not self._was_read)

    def round(self, everything: bool = False) -> Deferred[None]:
        """Read once. ``everything``: read all queues. Callers at the same time share a round."""
        done: Deferred[None] = Deferred()
        if self._running is not None:
            self._running.append(done)
            return done
        self._running = [done]
        began = self._now()

        def ended(result: Any) -> None:
            running, self._running = self._running or [], None
            if isinstance(result, Failure):
                for one in running:
                    one.errback(Failure(result.value))
                return
            now = self._now()
            rest = REST * (now - began) if everything and not self._watchers else 0
            self._fresh_until = now + max(FRESH_SECONDS, rest)
            for one in running:
                one.callback(None)

        self._round(everything or not self._was_read).addBoth(ended)
        return done

    @inlineCallbacks
    def _round(self, everything: bool) -> Any:
        self._rounds += 1
        self.changed = set()
        self.came_or_went = False
        pollers = yield self._queues.heartbeat.pollers()
        self._take_pollers(pollers)
        seen: set[bytes] = set()
        if everything:
            self._cursor = b"0"
        else:
            touched = self._take_touched()
            yield self._look(touched, seen, touched)
            yield self._look(self._take_shown(), seen)
        first = len(seen)
        while everything or len(seen) - first < GLANCES_PER_ROUND:
            self._cursor, names = yield self._store.index_piece(self._cursor, GLANCES_PER_CALL)
            yield self._look(names, seen)
            self.leaves_out = len(self.rows) > MAX_QUEUES
            if self._cursor == b"0" or self.leaves_out:
                self._end_cycle()
                break

    def _take_touched(self) -> set[bytes]:
        """The queues that have changed."""
        touched, noticed = self._touched, self._noticed
        self._touched, self._noticed = set(), set()
        return noticed.union(map(self._store.name_of_bulk, list(touched)[:TOUCHED_PER_ROUND]))

    def _take_shown(self) -> Collection[bytes]:
        """The queues that somebody sees, and those that have changed a short time ago."""
        names = dict.fromkeys(islice(self.shown(), SHOWN_PER_ROUND))
        lively = [name for name, until in self._lively.items() if until >= self._rounds]
        self._lively = {name: self._lively[name] for name in lively}
        names.update(dict.fromkeys(lively[-LIVELY_PER_ROUND:]))
        return names

    @inlineCallbacks
    def _look(self, names: Collection[bytes], seen: set[bytes], changed: Collection[bytes] = ()) -> Any:
        """Look at these queues, and count those that have changed."""
        left = [name for name in names if name not in seen]
        seen.update(left)
        for at in range(0, len(left), GLANCES_PER_CALL):
            piece = left[at : at + GLANCES_PER_CALL]
            counted, glances = [], {}
            for name, glance in zip(piece, (yield self._store.glance(piece)), strict=True):
                row = self.rows.get(name)
                if row is None or row.glance != glance or name in changed:
                    counted.append(name)
                    glances[name] = glance
                else:
                    row.cycle = self._cycle
            yield self._count(counted)
            for name in counted:
                if name in self.rows:
                    self.rows[name].glance = glances[name]

    @inlineCallbacks
    def _count(self, names: Sequence[bytes]) -> Any:
        for at in range(0, len(names), COUNTS_PER_CALL):
            piece = names[at : at + COUNTS_PER_CALL]
            found, now_ms = (yield self._store.counts(piece)), self._store.now_ms()
            for name, counts in zip(piece, found, strict=True):
                self._take(name, counts, now_ms)

    def _take(self, name: bytes, counts: Counts | Conflict, now_ms: int) -> None:
        row = self.rows.get(name) or Row(name)
        row.cycle = self._cycle
        before = row.held
        if row.take(counts, now_ms):
            self._changed(row, before)
            self._lively.pop(name, None)
            if self._was_read and name in self.rows:
                self._lively[name] = self._rounds + LIVELY_ROUNDS

    def _take_pollers(self, pollers: dict[bytes, int]) -> None:
        former, self._pollers = self._pollers, pollers
        for name in former.keys() - pollers.keys():
            self._set_pollers(name, 0)
        for name, count in pollers.items():
            if former.get(name) != count:
                self._set_pollers(name, count)

    def _set_pollers(self, name: bytes, count: int) -> None:
        row = self.rows.get(name) or Row(name)
        if row.pollers != count:
            before, row.pollers = row.held, count
            self._changed(row, before)

    def _changed(self, row: Row, before: Sequence[int]) -> None:
        name = row.name
        row.version = self._version = version = self._version + 1
        is_here, stays = name in self.rows, not row.is_empty
        if not is_here:
            if not stays:
                return
            before = NOTHING
        self.changed.add(name)
        sums = [self.total]
        if row.family != name:
            family = self.families.get(row.family)
            if family is None:
                family = self.families[row.family] = Sum(row.family)
            sums.append(family)
        for one in sums:
            one.change(before, row.held if stays else NOTHING, version)
            if stays:
                one.members[name] = row
            else:
                one.members.pop(name, None)
        if stays:
            self.rows[name] = row
        else:
            del self.rows[name]
            if len(sums) > 1 and not sums[1].members:
                del self.families[row.family]
        self.came_or_went = self.came_or_went or is_here != stays

    def _end_cycle(self) -> None:
        """The whole index was read. What was not met in it is gone."""
        for row in [row for row in self.rows.values() if row.cycle != self._cycle and not row.pollers]:
            before = row.held
            row.forget()
            self._changed(row, before)
        self._cursor = b"0"
        self._cycle += 1
        self._was_read = True

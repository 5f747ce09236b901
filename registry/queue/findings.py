"""Findings: what is wrong and does not heal by itself, the worst first.

code                  | when
----------------------|---------------------------------------------------------------------------------------------
redis_away            | Redis does not answer
redis_full            | Redis has reached its maxmemory, or has refused pushes for it since, and has not much room again
redis_not_persisting  | Redis could not write to its disk
redis_memory          | Redis uses more than `MEMORY_SHARE` of its maxmemory
nobody_polls          | a queue has ready tasks, and for `SILENT_SECONDS` no poller, no lease and no poll
deaths                | more than `FEW_DEATHS` tasks of a queue have died in `DEATHS_SECONDS`, those that were cancelled aside
paused                | a queue is paused, and tasks are ready in it
token_expires         | a token expires soon (`registry.http.findings`)
anonymous             | everyone in the network may do everything (`registry.http.findings`)

Queues with a colon in their name count as their family. monitoring/alerts.yml has a rule for each code, with the same numbers.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import Unavailable
from registry.queue.audit import Line, seen_of
from registry.queue.dead_tasks import DeadTasks, Group
from registry.queue.inspector import is_paused
from registry.queue.inventory import Inventory, Row
from registry.queue.queues import Queues
from registry.queue.survey import Cached
from registry.redis.presence import Health

MEMORY_SHARE = 0.9
# A push that was refused this long ago, s, still counts as long as there is not much room.
REFUSED_SECONDS = 300.0
SILENT_SECONDS = 60.0
FEW_DEATHS, DEATHS_SECONDS = 5, 900.0
# Who died of what is read from this many queues of a family, and so many deaths of each; for so many families.
DEATH_QUEUES, DEATHS_READ, DEATH_FAMILIES = 3, 200, 5
# How long dead tasks are kept unless the policy of the queue says otherwise, s; life.lua has the same number.
KEEP_DEAD = 2_592_000
# Findings are kept for this long, s.
KEPT_SECONDS = 1.5
DEATHS_KEPT_SECONDS = 4.0
# Who paused a queue is searched in this many lines of the audit.
AUDIT_LINES, AUDIT_READS = 500, 4
# Of each code, there are findings for so many queues or families, those with the most tasks; so many names of each are looked up.
MAX_DETAILED, MAX_NAMED = 100, 20
# Of many queues, this many are looked at in one turn of the reactor.
ROWS_PER_TURN = 2000
CODES = (
    "redis_away", "redis_full", "redis_not_persisting", "redis_memory", "nobody_polls", "deaths", "paused",
    "token_expires", "anonymous",
)  # fmt: skip
SEVERITIES = {
    **dict.fromkeys(CODES, "warning"),
    "redis_away": "critical",
    "redis_full": "critical",
    "redis_not_persisting": "critical",
    "anonymous": "notice",
}


class Finding(Struct):
    """One of `CODES`. ``queue``: a queue, or a family as ``family:*``. ``since_ms``: when it began, None for unknown.

    ``count``: how many tasks it is about. ``facts``: more about it, by code; see docs/monitoring.md.
    """

    code: str
    queue: bytes | None = None
    since_ms: float | None = None
    count: int | None = None
    facts: dict[str, Any] = {}

    @property
    def severity(self) -> str:
        return SEVERITIES[self.code]


class Found(NamedTuple):
    """``findings``: in the order of `CODES`, at most `MAX_DETAILED` of each. ``total``: how many there are in all; ``queues``: how
    many queues and families they are about."""

    findings: list[Finding]
    total: int
    queues: int


class Findings:
    """``refused_seconds_ago()``: how long ago a push was refused because Redis was full, None for never."""

    def __init__(
        self,
        queues: Queues,
        inventory: Inventory,
        dead_tasks: DeadTasks,
        refused_seconds_ago: Callable[[], float | None],
    ) -> None:
        now = queues.polls.now
        self._queues = queues
        self._store = queues.store
        self._inventory = inventory
        self._dead_tasks = dead_tasks
        self._refused_seconds_ago = refused_seconds_ago
        self._cached: Cached[Found] = Cached(now, KEPT_SECONDS)
        self._left_out: dict[str, int] = {}  # by code: how many families are not among the findings
        self._deaths: Cached[list[Finding]] = Cached(now, DEATHS_KEPT_SECONDS)

    def read(self) -> Deferred[Found]:
        """The findings about Redis and the queues. Kept for a moment."""
        return self._cached.get(None, self._read)

    @inlineCallbacks
    def _read(self) -> Any:
        if self._store.away() is None:
            try:
                found = yield self._read_all()
            except Unavailable:
                if self._store.away() is None:
                    raise
            else:
                found.sort(key=lambda one: (CODES.index(one.code), -(one.count or 0)))
                left_out = sum(self._left_out.values())
                queues = len({one.queue for one in found if one.queue is not None})
                return Found(found, len(found) + left_out, queues + left_out)
        away = self._store.away()
        now_ms, seconds = self._store.now_ms(), self._store.seconds_away
        finding = Finding("redis_away", None, now_ms - seconds * 1000, None, {"why": str(away)})
        return Found([finding], 1, 0)

    @inlineCallbacks
    def _read_all(self) -> Any:
        health = yield self._store.health()
        yield self._inventory.fresh()
        found = self._of_redis(health)
        found += yield self._nobody_polls()
        found += yield self._deaths.get(None, self._read_deaths)
        found += yield self._paused()
        return found

    def _of_redis(self, health: Health) -> list[Finding]:
        found = []
        facts = {"used": health.used, "limit": health.limit}
        is_high = health.limit and health.used > MEMORY_SHARE * health.limit
        refused_ago = self._refused_seconds_ago()
        was_refused = refused_ago is not None and refused_ago < REFUSED_SECONDS
        if is_high and (was_refused or health.used >= health.limit):
            found.append(Finding("redis_full", facts=facts))
        elif is_high:
            found.append(Finding("redis_memory", facts=facts))
        if not health.persists:
            found.append(Finding("redis_not_persisting"))
        return found

    # Queues

    @staticmethod
    def _is_silent(row: Row, now_ms: int, long_ago: float) -> bool:
        """Whether it has had ready tasks for long, and nobody works on it or waits for them now."""
        view = row.view
        if not view.ready or row.pollers or view.leased or is_paused(view.policy, now_ms):
            return False
        return (view.oldest_ms or row.ready_ms or now_ms) <= long_ago

    @inlineCallbacks
    def _nobody_polls(self) -> Any:
        now_ms = self._store.now_ms()
        long_ago = now_ms - SILENT_SECONDS * 1000
        rows = list(self._inventory.rows.values())
        silent: list[Row] = []
        for at in range(0, len(rows), ROWS_PER_TURN):
            silent += (row for row in rows[at : at + ROWS_PER_TURN] if self._is_silent(row, now_ms, long_ago))
            yield self._queues.turn(None)
        polled = yield self._queues.heartbeat.last_polls()
        families = _by_family(row for row in silent if polled.get(row.name, 0) <= long_ago)
        sums, found = self._largest("nobody_polls", families), list[Finding]()
        shown = [row.name for name, _ in sums for row in families[name][:MAX_NAMED]]
        who = (yield self._queues.roster.who_polled(shown)) if shown else {}
        for name, count in sums:
            rows = families[name]
            last = max((polled.get(row.name, 0) for row in rows), default=0) or None
            oldest = min(row.view.oldest_ms or row.ready_ms or now_ms for row in rows)
            worker = max((who[row.name] for row in rows if row.name in who), default=(0, None))[1]
            facts = {"queues": len(rows), "oldest_ms": oldest, "last_poll_ms": last, "last_worker": worker}
            found.append(Finding("nobody_polls", name, max(oldest, last or 0), count, facts))
        return found

    def _largest(self, code: str, families: dict[bytes, list[Row]]) -> list[tuple[bytes, int]]:
        """The families with the most ready tasks, and how many these are."""
        self._left_out[code] = max(0, len(families) - MAX_DETAILED)
        sums = ((name, sum(row.view.ready for row in rows)) for name, rows in families.items())
        return heapq.nlargest(MAX_DETAILED, sums, key=lambda one: one[1])

    @inlineCallbacks
    def _read_deaths(self) -> Any:
        since = self._store.now_ms() - int(DEATHS_SECONDS * 1000)
        rows = [row for row in self._inventory.rows.values() if row.view.dead]
        kept = [_dead_seconds(row) for row in rows]
        times = [since + 1000 * seconds for seconds in kept]
        counts = yield self._store.died([row.name for row in rows], times)
        died: defaultdict[bytes, list[tuple[int, bytes]]] = defaultdict(list)
        for row, count in zip(rows, counts, strict=True):
            if count:
                died[row.family].append((count, row.name))
        sums = sorted(((sum(n for n, _ in of), name) for name, of in died.items()), reverse=True)
        found = []
        sums = [one for one in sums if one[0] > FEW_DEATHS]
        self._left_out["deaths"] = max(0, len(sums) - MAX_DETAILED)
        for at, (count, name) in enumerate(sums[:MAX_DETAILED]):
            worst = [queue for _, queue in sorted(died[name], reverse=True)]
            label = worst[0] if len(worst) == 1 else name
            if at < DEATH_FAMILIES:
                groups = yield self._dead_tasks.recent(worst[:DEATH_QUEUES], since, DEATHS_READ)
                finding = _deaths_of(label, count, groups, since)
            else:
                finding = Finding("deaths", label, since, count, {})
            if finding is not None:
                finding.facts["queues"] = len(worst)
                found.append(finding)
        return found

    @inlineCallbacks
    def _paused(self) -> Any:
        now_ms = self._store.now_ms()
        paused = [
            row
            for row in self._inventory.rows.values()
            if row.view.ready and is_paused(row.view.policy, now_ms)
        ]
        families = _by_family(paused)
        sums, found = self._largest("paused", families), list[Finding]()
        names = {row.name for name, _ in sums for row in families[name][:MAX_NAMED]}
        by = (yield self._paused_by(names)) if names else {}
        for name, count in sums:
            rows = families[name]
            lines = [by[row.name] for row in rows if row.name in by]
            at, line = max(lines, key=lambda one: one[0]) if lines else (None, Line(""))
            facts = {
                "queues": len(rows),
                "pollers": sum(row.pollers for row in rows),
                "until_ms": max((row.view.policy.paused_until or 0 for row in rows), default=0) or None,
                "by": line.name or None,
                "address": line.address or None,
            }
            found.append(Finding("paused", name, at, count, facts))
        return found

    @inlineCallbacks
    def _paused_by(self, names: set[bytes]) -> Any:
        """When these queues were paused, and the line of the audit, as far as that was not long ago."""
        left, found, before = set(names), {}, None
        for _ in range(AUDIT_READS):
            lines = yield self._store.audit_lines(before, AUDIT_LINES)
            for stored in lines:
                seen = seen_of(stored)
                line, name = seen.line, (seen.line.queue or "").encode()
                pauses = line.action == "pause" or (line.action == "policy" and line.options.get("paused"))
                if name in left and pauses:
                    found[name] = seen.at, line
                    left.discard(name)
                before = seen.serial
            if not left or len(lines) < AUDIT_LINES:
                break
        return found


def _dead_seconds(row: Row) -> int:
    retention = row.view.policy.retention
    kept = getattr(retention, "dead", None)
    return KEEP_DEAD if kept is None else int(kept)


def _by_family(rows: Iterable[Row]) -> dict[bytes, list[Row]]:
    """The rows by family; the only one of its family by its own name."""
    families: defaultdict[bytes, list[Row]] = defaultdict(list)
    for row in rows:
        families[row.family].append(row)
    return {of[0].name if len(of) == 1 else name: of for name, of in families.items()}


def _deaths_of(name: bytes, count: int, groups: Sequence[Group], since: int) -> Finding | None:
    """The finding about the deaths of a family; None where all were cancelled."""
    cancelled = sum(group.count for group in groups if group.reason == "cancelled")
    groups = [group for group in groups if group.reason != "cancelled"]
    if not groups or count - cancelled <= FEW_DEATHS:
        return None
    worst = groups[0]
    suspect = worst.suspect()
    named = sum(worst.workers.values())
    facts = {
        "reason": worst.reason,
        "type": worst.type,
        "message": worst.message,
        "of": worst.count,
        "read": sum(group.count for group in groups),
        "workers": [worker for worker, _ in worst.workers.most_common(MAX_NAMED)],
        "worker": suspect,
        "all": suspect is not None and worst.workers[suspect] == named + worst.nameless,
        "points_to": worst.points_to,
        "example": worst.example,
    }
    first = min(group.first for group in groups)
    return Finding("deaths", name, max(first, since), count - cancelled, facts)

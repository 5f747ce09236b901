"""Tasks on a clock. Whichever daemon sees that a tick is due pushes it; the tick's own Idempotency-Key makes it one.

The push comes first and the advance after: a crash in between repeats the push, and the key swallows the repeat.
Keys: SPACE schedules, hash, name -> msgpack of what is known; SPACE ticks, zset, name -> next tick, ms.
"""

from __future__ import annotations

import heapq
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from msgspec import msgpack
from twisted.internet.defer import inlineCallbacks
from twisted.logger import Logger

from registry.errors import BadOption, NotFound, RegistryError, Unavailable
from registry.queue.names import check_name
from registry.queue.queues import Queues
from registry.queue.reply import after

log = Logger()

# A tick this late counts as missed, s: no daemon was there when it was due.
LATE_SECONDS = 60
MISSED = ("skip", "once")
# Missed ticks are counted up to this many.
MOST_COUNTED = 1000
DUE_A_PAGE, MOST_PAGES = 100, 100
# The trouble of one schedule is told this often, ms.
SAID_MS = 60_000


def ticks(cron: str, timezone: str, after_ms: int) -> Any:
    """The times of a cron expression after a moment, as ms, without end."""
    start = datetime.fromtimestamp(after_ms / 1000, UTC).astimezone(ZoneInfo(timezone))
    for tick in CronSim(cron, start):
        yield int(tick.timestamp() * 1000)


def check(said: dict[str, Any]) -> dict[str, Any]:
    """A schedule as it is kept, from what a request said of it, or `BadOption` naming the field."""
    for name in ("cron", "queue"):
        if not isinstance(said.get(name), str):
            raise BadOption(f"The field {name!r} is missing, or is no text.")
    if said.get("task") is None:
        raise BadOption("The field 'task' is missing.")
    timezone = "UTC" if said.get("timezone") is None else said["timezone"]
    missed = "skip" if said.get("missed") is None else said["missed"]
    if missed not in MISSED:
        raise BadOption("The field 'missed' is skip or once.")
    try:
        ZoneInfo(timezone)
    except Exception:
        raise BadOption(
            f"The field 'timezone' is a name like Europe/Vienna, not {str(timezone)[:60]!r}."
        ) from None
    try:
        if len(said["cron"].split()) != 5:  # CronSim takes six for seconds
            raise ValueError
        next(CronSim(said["cron"], datetime.now(UTC)))
    except (CronSimError, StopIteration, ValueError):
        raise BadOption("The field 'cron' is an expression of five fields, like */5 * * * *.") from None
    check_name(said["queue"].encode("utf-8", "surrogatepass"))
    return {
        "cron": said["cron"],
        "timezone": timezone,
        "queue": said["queue"],
        "task": said["task"],
        "options": said.get("options") or {},
        "packed": said.get("packed") or {},
        "missed": missed,
        "missed_count": 0,
        "last": None,
    }


class Schedules:
    """All schedules of one store."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._store = queues.store
        self._known = self._store.space + b"schedules"
        self._ticks = self._store.space + b"ticks"
        self._said: dict[bytes, int] = {}

    @inlineCallbacks
    def put(self, name: bytes, said: dict[str, Any]) -> Any:
        """Keep a schedule, replacing one of that name; its first tick is the next one from now."""
        check_name(name)
        known = check(said)
        first = next(ticks(known["cron"], known["timezone"], self._store.now_ms()))
        # A tick without a schedule goes when it is due; a schedule without a tick would never be noticed.
        yield self._store.lookup(b"ZADD", self._ticks, first, name)
        yield after(True, self._store.lookup(b"HSET", self._known, name, msgpack.encode(known)))
        # Came it due in between, it was taken for one of no schedule.
        yield after(True, self._store.lookup(b"ZADD", self._ticks, b"NX", first, name))
        return shown(known, first)

    @inlineCallbacks
    def get(self, name: bytes) -> Any:
        """One schedule, or `NotFound`."""
        packed = yield self._store.lookup(b"HGET", self._known, name)
        if packed is None:
            raise NotFound("There is no schedule of this name.")
        at = yield self._store.lookup(b"ZSCORE", self._ticks, name)
        return shown(msgpack.decode(packed), at)

    @inlineCallbacks
    def names(self, behind: bytes, most: int) -> Any:
        """Fires with the next names behind one, in order, so many at most."""
        names = yield self._store.lookup(b"HKEYS", self._known)
        return heapq.nsmallest(most, (name for name in names if name > behind))

    @inlineCallbacks
    def drop(self, name: bytes) -> Any:
        """Forget a schedule; what it pushed stays."""
        gone = yield self._store.lookup(b"HDEL", self._known, name)
        # One that is left goes when it is due.
        yield self._store.lookup(b"ZREM", self._ticks, name).addErrback(lambda f: f.trap(Unavailable))
        if not gone:
            raise NotFound("There is no schedule of this name.")

    @inlineCallbacks
    def tick(self) -> Any:
        """Push what is due. Every daemon may do this at the same time."""
        now = self._store.now_ms()
        failed = 0
        for _ in range(MOST_PAGES):
            # Those that could not push stay due and in front, and are passed over.
            due = yield self._store.lookup(
                b"ZRANGEBYSCORE", self._ticks, b"-inf", now, b"WITHSCORES", b"LIMIT", failed, DUE_A_PAGE
            )
            for name, score in zip(due[::2], due[1::2], strict=True):
                try:
                    yield self._tick_one(name, int(float(score)), now)
                except Exception as error:
                    failed += 1
                    self._could_not(name, error)
            if len(due) < 2 * DUE_A_PAGE:
                return

    def _could_not(self, name: bytes, error: Exception) -> None:
        """Each schedule's trouble once a minute; it is tried again with every chore."""
        now = self._store.now_ms()
        if now - self._said.get(name, 0) < SAID_MS:
            return
        if len(self._said) >= MOST_COUNTED:
            self._said.clear()
        self._said[name] = now
        if isinstance(error, RegistryError):
            log.warn("the schedule {name!r} could not push: {why}", name=name, why=str(error))
        else:
            log.failure("the schedule {name!r} could not push", name=name)

    @inlineCallbacks
    def _tick_one(self, name: bytes, at: int, now: int) -> Any:
        packed = yield self._store.lookup(b"HGET", self._known, name)
        if packed is None:
            yield self._store.lookup(b"ZREM", self._ticks, name)
            return
        known = msgpack.decode(packed)
        passed = [at]
        for following in ticks(known["cron"], known["timezone"], at):
            if following > now or len(passed) > MOST_COUNTED:
                break
            passed.append(following)
        last = passed[-1]
        missed = [tick for tick in passed if now - tick > LATE_SECONDS * 1000]
        push = [tick for tick in passed if tick not in missed]
        if missed and not push and known["missed"] == "once":
            push = [missed.pop()]
        for tick in push:
            options = {**known["packed"], "ik": f"{name.decode()}@{tick}", "ih": "tick"}
            yield self._queues.push(known["queue"].encode(), known["task"], options)
        if missed:
            log.warn("the schedule {name!r} missed {count} ticks", name=name, count=len(missed))
        known["missed_count"] += len(missed)
        known["last"] = push[-1] if push else known["last"]
        following = next(
            ticks(known["cron"], known["timezone"], max(last, now if len(passed) > MOST_COUNTED else last))
        )
        # Changed by a request or advanced by another daemon meanwhile: that stands, with its own next tick.
        current = yield self._store.lookup(b"HGET", self._known, name)
        if current == packed:
            yield self._store.lookup(b"ZADD", self._ticks, following, name)
            yield self._store.lookup(b"HSET", self._known, name, msgpack.encode(known))


def shown(known: dict[str, Any], next_ms: Any) -> dict[str, Any]:
    """A schedule as others see it; times in ms, ``task`` as its bytes."""
    row = {key: known[key] for key in ("cron", "timezone", "queue", "task", "options", "missed")}
    row.update(next_ms=None if next_ms is None else int(float(next_ms)), last_ms=known["last"])
    row["missed_count"] = known["missed_count"]
    return row

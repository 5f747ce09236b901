"""Schedules: tasks that are pushed at the times of a cron expression. Any daemon that sees a due tick pushes it.

Each change of a schedule is one script call, which does nothing if the schedule has changed meanwhile. The call pushes a tick and
moves the schedule to the next one in one step, so no tick is pushed twice or lost.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim
from msgspec import msgpack
from msgspec.structs import replace
from twisted.internet.defer import inlineCallbacks
from twisted.logger import Logger

from registry.errors import BadOption, NotFound, RedisUnavailable, RegistryError, Unavailable
from registry.model import Code, PushOptions, Schedule, decode_schedule
from registry.queue.delivery import Pushed
from registry.queue.names import check_name
from registry.queue.queues import Queues
from registry.redis.faults import error_from_reply
from registry.redis.store import encode_options

log = Logger()

# A tick this late, ms, counts as missed: no daemon ran when it was due.
LATE_MS = 60_000
MISSED = ("skip", "once")
# At most this many missed ticks are counted.
MAX_COUNTED = 1000
DUE_PER_PAGE, MAX_PAGES = 100, 100
# Each run of the chore compares the next tick of this many schedules with the clock.
ALIGNED_PER_CHORE = 200
# The errors of one schedule are logged at most once in this time, ms.
LOG_EVERY_MS = 60_000
# How often a request tries to change a schedule that others change at the same time.
MAX_TRIES = 50
MAX_REMEMBERED = 10_000
# The public fields of a schedule, besides its next tick, its last tick and its count of missed ticks.
SHOWN = ("cron", "timezone", "queue", "task", "options", "missed", "paused")


def ticks(cron: str, timezone: str, after_ms: int) -> Iterator[int]:
    """The times of a cron expression after ``after_ms``, in ms, without end."""
    start = datetime.fromtimestamp(after_ms / 1000, UTC).astimezone(ZoneInfo(timezone))
    for tick in CronSim(cron, start):
        at = int(tick.timestamp() * 1000)
        # In the hour that is repeated when clocks go back, a time means its first occurrence, which may be past.
        if at > after_ms:
            yield at


def check(fields: dict[str, Any], now_ms: int) -> Schedule:
    """Make a schedule from the fields of a request, or raise `BadOption` naming the field, or `BadName` for its queue."""
    for name in ("cron", "queue"):
        if not isinstance(fields.get(name), str):
            raise BadOption(f"The field {name!r} is missing or is not a string.")
    if fields.get("task") is None:
        raise BadOption("The field 'task' is missing.")
    timezone = "UTC" if fields.get("timezone") is None else fields["timezone"]
    missed = "skip" if fields.get("missed") is None else fields["missed"]
    paused = False if fields.get("paused") is None else fields["paused"]
    if missed not in MISSED:
        raise BadOption("The field 'missed' must be skip or once.")
    if not isinstance(paused, bool):
        raise BadOption("The field 'paused' must be true or false.")
    try:
        ZoneInfo(timezone)
    except Exception:
        raise BadOption(
            f"The field 'timezone' must be a name like Europe/Vienna, not {str(timezone)[:60]!r}."
        ) from None
    _check_cron(fields["cron"], timezone, now_ms)
    check_name(fields["queue"].encode("utf-8", "surrogatepass"))
    return Schedule(
        cron=fields["cron"],
        timezone=timezone,
        queue=fields["queue"],
        task=fields["task"],
        options=fields.get("options") or {},
        push=fields.get("push") or PushOptions(),
        missed=missed,
        paused=paused,
    )


def _check_cron(cron: str, timezone: str, now_ms: int) -> None:
    fields = cron.split()
    # CronSim reads a sixth field as seconds.
    if len(fields) == 5 and len(cron) <= 255:
        if _next(cron, timezone, now_ms) is not None:
            return
        minute, hour, day, month, weekday = fields
        apart = (f"{minute} {hour} * {month} {weekday}", f"{minute} {hour} {day} * {weekday}")
        if all(_next(one, timezone, now_ms) is not None for one in apart):
            raise BadOption(
                f"The field 'cron' never matches: no date satisfies {cron!r} (such as 0 0 31 2 *, February 31)."
            )
    raise BadOption("The field 'cron' must be an expression of five fields, like */5 * * * *.")


def _next(cron: str, timezone: str, now_ms: int) -> int | None:
    """The first tick after now; None if the expression is invalid, or has no tick within fifty years."""
    try:
        return next(ticks(cron, timezone, now_ms), None)
    except Exception:  # any error that the input of a client may cause
        return None


class Schedules:
    """All schedules of one store."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._store = queues.store
        self._logged_at: dict[bytes, int] = {}
        # (cron, timezone) -> when its next tick was computed, and that tick; name -> its (cron, timezone) when last read.
        self._next_ticks: dict[tuple[str, str], tuple[int, int]] = {}
        self._crons: dict[bytes, tuple[str, str]] = {}
        self._aligned, self._aligned_at = 0, float("inf")

    @inlineCallbacks
    def put(self, name: bytes, fields: dict[str, Any], on_change: Callable[[], None] = lambda: None) -> Any:
        """Store a schedule, replacing one of the same name; a tick of the old one that is due is pushed first.

        Fires with the schedule as `get` does, or fails with `BadOption` if its tasks would expire before they are due. Calls
        ``on_change`` unless it was the same before.
        """
        check_name(name)
        given = check(fields, self._store.now_ms())
        for _ in range(MAX_TRIES):
            now = self._store.now_ms()
            encoded, due_at = yield self._store.schedule_state(name)
            before = decode_schedule(encoded) if encoded else None
            is_due = encoded != b"" and due_at is not None and due_at <= now
            if is_due:
                try:
                    yield self._pass(name, encoded, due_at, now)
                    continue
                except Unavailable:
                    raise
                except RegistryError as error:
                    # The tick stays due, and the new schedule takes it over.
                    self._log_failure(name, error)
            schedule = given
            if before is not None:
                schedule = replace(given, missed_count=before.missed_count, last=before.last)
                if schedule == before and (due_at or schedule.paused):
                    return self._shown(schedule, due_at)
                schedule.last = _last_until(schedule, now)
            following = due_at if is_due else self._after(schedule, now)
            if schedule.paused:
                schedule.missed_count += is_due
                following = None
            if (
                yield self._change(
                    name,
                    schedule.queue,
                    (encoded, due_at),
                    (msgpack.encode(schedule), following),
                    (b"", b"", encode_options(schedule.push)),
                )
            ):
                on_change()
                return self._shown(schedule, following)
        raise RedisUnavailable("Other requests keep changing this schedule; try again in a moment.")

    @inlineCallbacks
    def get(self, name: bytes) -> Any:
        """Fires with one schedule, or fails with `NotFound`."""
        encoded, due_at = yield self._store.schedule_state(name)
        if not encoded:
            raise NotFound("No schedule has this name.")
        return self._shown(decode_schedule(encoded), due_at)

    @inlineCallbacks
    def names(self, behind: bytes, limit: int) -> Any:
        """Fires with the names that follow ``behind``, in order, at most ``limit``."""
        names = yield self._store.schedule_names()
        return heapq.nsmallest(limit, (name for name in names if name > behind))

    @inlineCallbacks
    def drop(self, name: bytes) -> Any:
        """Delete a schedule, or fail with `NotFound`; the tasks it pushed stay."""
        for _ in range(MAX_TRIES):
            encoded, due_at = yield self._store.schedule_state(name)
            if not encoded:
                raise NotFound("No schedule has this name.")
            if (yield self._change(name, decode_schedule(encoded).queue, (encoded, due_at), (b"", None))):
                return
        raise RedisUnavailable("Other requests keep changing this schedule; try again in a moment.")

    @inlineCallbacks
    def run(self, name: bytes, traceparent: str | None = None, tracestate: str | None = None) -> Any:
        """Push the task of a schedule now, independently of its ticks. Fires with `Pushed`, or fails with `NotFound`.

        The trace context, if there is one, replaces that of the schedule's options.
        """
        encoded, _ = yield self._store.schedule_state(name)
        if not encoded:
            raise NotFound("No schedule has this name.")
        schedule = decode_schedule(encoded)
        push = schedule.push
        if traceparent is not None:
            push = replace(push, traceparent=traceparent, tracestate=tracestate)
        pushed: Pushed = yield self._queues.push(schedule.queue.encode(), schedule.task, push)
        return pushed

    @inlineCallbacks
    def tick(self) -> Any:
        """Push all due ticks. Several daemons may do this at the same time."""
        now = self._store.now_ms()
        yield self._align(now)
        failed = 0
        for _ in range(MAX_PAGES):
            # Schedules that could not push stay due, at the front: skip them.
            due = yield self._store.due_ticks(now, failed, DUE_PER_PAGE)
            for name, at in due:
                try:
                    yield self._push_due(name, at, now)
                except Exception as error:
                    failed += 1
                    self._log_failure(name, error)
            if len(due) < DUE_PER_PAGE:
                return

    def _log_failure(self, name: bytes, error: Exception) -> None:
        """Log an error of a schedule, at most once a minute each; every run of the chore tries it again."""
        now = self._store.now_ms()
        if abs(now - self._logged_at.get(name, 0)) < LOG_EVERY_MS:
            return
        if len(self._logged_at) >= MAX_COUNTED:
            self._logged_at.clear()
        self._logged_at[name] = now
        if isinstance(error, RegistryError):
            log.warn("the schedule {name!r} could not push: {why}", name=name, why=str(error))
        else:
            log.failure("the schedule {name!r} could not push", name=name)

    @inlineCallbacks
    def _push_due(self, name: bytes, at: int, now: int) -> Any:
        """Push the ticks of a schedule up to now."""
        encoded = yield self._store.schedule_record(name)
        if encoded is None:
            yield self._change(name, "unknown", (b"", at), (b"", None))
            return
        state: Any = (encoded, at)
        while state is not None and state[1] is not None and state[1] <= now:
            state = yield self._pass(name, state[0], state[1], now)

    @inlineCallbacks
    def _pass(self, name: bytes, encoded: bytes, at: int, now: int) -> Any:
        """Push the tick that is due at ``at``, ms, or skip the missed ticks from there on.

        Fires with the encoded schedule after that and its next tick; with None if somebody else changed it first.
        """
        schedule = decode_schedule(encoded)
        missed, tick, following = _due_from(schedule, at, now)
        schedule.missed_count += missed
        push = (b"", b"", b"")
        if tick is not None:
            schedule.last = tick
            push = (self._queues.ids.tail(), schedule.task, encode_options(schedule.push))
        after = (msgpack.encode(schedule), following)
        if not (yield self._change(name, schedule.queue, (encoded, at), after, push)):
            return None
        if missed:
            log.warn("the schedule {name!r} missed {count} ticks", name=name, count=missed)
        return after

    @inlineCallbacks
    def _align(self, now: int) -> Any:
        """Correct next ticks that are too late, because the clock was wrong or was set back: no schedule must wait for that.

        Each run of the chore checks a bounded number of schedules; at the start, and when the clock went back, all of them.
        """
        first, last = self._aligned, self._aligned + ALIGNED_PER_CHORE - 1
        if now < self._aligned_at:
            first, last = 0, -1
        page = yield self._store.next_ticks(first, last)
        for name, at in page:
            yield self._align_one(name, at, now)
        self._aligned_at = now
        self._aligned = last + 1 if len(page) == ALIGNED_PER_CHORE else 0

    @inlineCallbacks
    def _align_one(self, name: bytes, at: int, now: int) -> Any:
        cron = self._crons.get(name)
        first = cron and self._upcoming(*cron, now)
        if at <= now or (first and at <= first):
            return
        encoded = yield self._store.schedule_record(name)
        if encoded is None:
            return
        schedule = decode_schedule(encoded)
        if len(self._crons) >= MAX_REMEMBERED:
            self._crons.clear()
        self._crons[name] = schedule.cron, schedule.timezone
        first = self._after(schedule, now)
        if first is not None and at > first:
            log.warn(
                "the next tick of the schedule {name!r} was too late, because the clock was set back; it is corrected",
                name=name,
            )
            schedule.last = _last_until(schedule, now)
            yield self._change(name, schedule.queue, (encoded, at), (msgpack.encode(schedule), first))

    def _after(self, schedule: Schedule, now: int) -> int | None:
        return self._upcoming(schedule.cron, schedule.timezone, now)

    def _upcoming(self, cron: str, timezone: str, now: int) -> int | None:
        """The first tick after now, ms; None if there is none within fifty years."""
        found = self._next_ticks.get((cron, timezone))
        if found is not None and found[0] <= now < found[1]:
            return found[1]
        first = _next(cron, timezone, now)
        if first is not None:
            if len(self._next_ticks) >= MAX_REMEMBERED:
                self._next_ticks.clear()
            self._next_ticks[cron, timezone] = now, first
        return first

    @inlineCallbacks
    def _change(
        self,
        name: bytes,
        queue: str,
        before: tuple[bytes, int | None],
        after: tuple[bytes, int | None],
        push: tuple[bytes, bytes, bytes] = (b"", b"", b""),
    ) -> Any:
        """Change the schedule, and push its task if given, in one step. Fires with False, and no change, if it was not ``before``."""
        entry = self._store.schedule(name, queue.encode(), before, after, push)
        reply = yield self._queues.ask("schedule", entry)
        if reply[0] not in (Code.OK, Code.NOTHING):
            raise error_from_reply(reply)
        return reply[0] == Code.OK

    def _shown(self, schedule: Schedule, at: int | None) -> dict[str, Any]:
        """The public view of a schedule; times in ms, ``task`` as its bytes."""
        row = {field: getattr(schedule, field) for field in SHOWN}
        now = self._store.now_ms()
        if at is not None and at > now:
            # `_align` has not corrected this tick yet.
            at = min(at, self._after(schedule, now) or at)
        row.update(next_ms=at, last_ms=schedule.last, missed_count=schedule.missed_count)
        return row


def _last_until(schedule: Schedule, now: int) -> int | None:
    """The last tick; None if the clock was set back so far behind it that this tick comes again."""
    last = schedule.last
    return None if last is not None and last > now + LATE_MS else last


def _due_from(schedule: Schedule, at: int, now: int) -> tuple[int, int | None, int | None]:
    """For the ticks from ``at`` on: how many were missed, which one to push (or None), and the next tick after these."""
    if schedule.last is not None and at <= schedule.last <= now:
        # This tick was pushed already, while the clock was ahead for a moment.
        return 0, None, _next(schedule.cron, schedule.timezone, schedule.last)
    later = ticks(schedule.cron, schedule.timezone, at)
    if now - at <= LATE_MS:
        return 0, at, next(later, None)
    missed, last = 1, at
    for tick in later:
        if now - tick <= LATE_MS or missed > MAX_COUNTED:
            break
        missed, last = missed + 1, tick
    following = _next(schedule.cron, schedule.timezone, max(last, now - LATE_MS - 1))
    if schedule.missed == "once" and (following is None or following > now):
        return missed - 1, last, following
    return missed, None, following

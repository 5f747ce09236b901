"""Operations of an administrator on tasks and queues. Each is a script; bulk operations run scripts in bounded pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.python.failure import Failure

from registry.duration import milliseconds
from registry.errors import BadOption, Conflict, NotFound, RedisFull
from registry.model import LETTERS, STATES, Code, Error, Policy, PolicyChange, Task, decode_policy
from registry.queue.dead_tasks import kind_of
from registry.queue.inspector import Inspector
from registry.queue.names import check_name, pushed_at_ms
from registry.queue.pages import TaskView, Walk
from registry.queue.progress import Progress
from registry.queue.promise import Gathering, after
from registry.queue.queues import Queues
from registry.redis.faults import error_from_reply

MOVES_PER_CALL = 200
# A move stops after this many ready tasks that it must skip because their keys are taken: each call skips them again.
MAX_SKIPPED = 10_000
# A bulk operation collects this many ids before it processes them.
IDS_PER_STEP = 100
NO_LIMIT = 1 << 53
# A bulk retry skips tasks with these reasons unless it names the reason: a cancelled task should not run by accident.
NOT_JSON = "not_json"
NOT_RETRIED = ("cancelled", "expired", NOT_JSON)

_DRY = b"1"
# These codes are errors for every verb. The meaning of the others depends on the verb.
_FAILURES = (Code.WRONG_TYPE, Code.REDIS_FULL, Code.REFUSED, Code.QUEUE_FULL)

RULES: dict[str, tuple[type | tuple[type, ...], float, float]] = {
    "paused": (bool, 0, 1),
    "max_length": (int, 0, 1e12),
    "lease": ((int, float), 0.1, 43_200),
    "attempts": (int, 1, 1000),
    "backoff": ((int, float), 0, 3600),
    "ttl": ((int, float), 0.001, 366 * 86_400),
    "rate": ((int, float), 0.001, 1e6),
    "concurrency": (int, 1, 1e6),
    "max_run": ((int, float), 0.1, 366 * 86_400),
    # A history has twenty attempts.
    "poison": (int, 0, 20),
}
# Rules in seconds, stored with a precision of 1 ms.
DURATIONS = ("lease", "backoff", "ttl", "max_run")
RETENTION = {"done": 30 * 86_400, "done_max": 1_000_000, "dead": 366 * 86_400, "dead_max": 10_000_000}


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """A filter for lists and bulk operations; None matches any.

    ``before_ms``: the task ended, or was pushed if it has not, before this. ``worker``: of the last attempt. ``type`` and
    ``message``, masked: of the error that a task failed with, as the groups of dead tasks have them; "" for none.
    """

    reason: str | None = None
    error: str | None = None
    before_ms: float | None = None
    worker: str | None = None
    type: str | None = None
    message: str | None = None

    def matches(self, view: TaskView) -> bool:
        """Whether a task matches."""
        task = view.task
        if self.reason is not None and task.reason != self.reason:
            return False
        if self.error is not None:
            error = task.error if isinstance(task.error, Error) else Error()
            if self.error not in f"{error.type or ''}: {error.message or ''}":
                return False
        if self.worker is not None and self.worker != _last_worker(task):
            return False
        if self.type is not None or self.message is not None:
            kind, message = kind_of(task.error)
            if (task.reason or "failed") != "failed" or self.type not in (None, kind or ""):
                return False
            if self.message not in (None, message or ""):
                return False
        if self.before_ms is None:
            return True
        at = task.ended_at or pushed_at_ms(view.id or b"")
        return at is not None and at < self.before_ms


def _last_worker(task: Task) -> str | None:
    """The worker that has the task, or had it last."""
    if task.lease is not None:
        return task.lease.worker
    return task.history[-1].worker if task.history else None


ALL = TaskFilter()


class Operations:
    """Cancel, retry, run, move, purge, and the rules of a queue."""

    def __init__(self, queues: Queues, inspector: Inspector) -> None:
        self._queues = queues
        self._inspector = inspector
        self._store = queues.store

    def _run_one(self, verb: str, name: bytes, *args: bytes) -> Deferred[list[Any]]:
        check_name(name)
        return self._queues.ask(verb, self._store.of_lease(name, *args)).addCallback(_checked)

    @inlineCallbacks
    def cancel(self, name: bytes, task_id: bytes, progress: Progress | None = None) -> Any:
        """Fires with ``cancelled`` (it was waiting, now dead), ``marked`` (its holder is notified) or ``removed`` (it had ended).

        Fails with `NotFound`. ``progress``, here and below: counts what is done, and says where it is set aside.
        """
        progress = progress or Progress()
        words = f"{task_id.decode()} {progress.place}".rstrip().encode()
        reply = yield _hinted(progress, self._run_one("cancel", name, words))
        if reply[0]:
            raise NotFound("This queue has no such task.")
        progress.add(1, *reply[2:])
        return reply[1].decode()

    @inlineCallbacks
    def run(self, name: bytes, task_id: bytes) -> Any:
        """Make a delayed task ready now. Fails with `NotFound`, or with `Conflict` if it is not delayed."""
        reply = yield self._run_one("run", name, task_id)
        if reply[0] == Code.NOTHING:
            raise NotFound("This queue has no such task.")
        if reply[0]:
            raise Conflict("not_delayed", f"This task is {STATES[reply[1].decode()]}, not delayed.")

    @inlineCallbacks
    def retry_one(
        self,
        name: bytes,
        task_id: bytes,
        matching: TaskFilter = ALL,
        spread: float = 0,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Make a dead task ready again. Fires with True, or with False, and no change, if it does not match ``matching``.

        Fails with `NotFound`, or with `Conflict` if it is not dead, not JSON, or its key is taken.
        """
        if matching != ALL:
            view = yield self._inspector.task(name, task_id)
            if view.state == "dead" and not matching.matches(view):
                return False
        progress = progress or Progress()
        how = _DRY if dry_run else _later(spread, 1, progress.place)
        reply = yield self._run_one("retry", name, task_id, how)
        if reply[0] == Code.NOT_JSON:
            raise Conflict(
                "not_json",
                "Another program pushed this element, which is not JSON: it can never be delivered.",
            )
        if reply[0] == Code.KEY_TAKEN:
            raise Conflict("key_taken", "Another task with this key is waiting or running.")
        if reply[0]:
            yield self._inspector.task(name, task_id)
            raise Conflict("not_dead", "This task is not dead.")
        progress.add(1, *reply[2:])
        return True

    @inlineCallbacks
    def retry_all(
        self,
        name: bytes,
        matching: TaskFilter = ALL,
        limit: int = NO_LIMIT,
        spread: float = 0,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Make the dead tasks of a queue ready again, oldest first. Fires with (retried, skipped). ``dry_run`` only counts.

        ``spread``: the seconds over which the tasks become ready, one after the other.
        """
        check_name(name)
        progress = progress or Progress()
        # If dead tasks share a key, the first one takes it. A dry run changes nothing in Redis, so it must count that here.
        keys: set[bytes] = set()
        began = yield self._store.redis_now_ms()

        def is_selected(view: TaskView) -> bool:
            # Skip tasks that died after the start: if workers fail at once, this request would never end.
            if (view.task.ended_at or 0) > began:
                return False
            return matching.matches(view) and (
                matching.reason is not None or view.task.reason not in NOT_RETRIED
            )

        walk = Walk(self._store, name, "dead", shown=-1, oldest_first=True)
        while ids := (yield after(progress.count, _next_ids(walk, is_selected, limit - progress.count))):
            numbers = range(progress.count + 1, progress.count + 1 + len(ids))
            modes = [_DRY if dry_run else _later(spread, n, progress.place) for n in numbers]
            replies = yield after(
                progress.count, self._run_each("retry", name, list(zip(ids, modes, strict=True)))
            )
            for code, *more in map(_checked, replies):
                is_skipped = code in (Code.KEY_TAKEN, Code.NOT_JSON) or (
                    dry_run and code == Code.OK and more[0] in keys
                )
                progress.skipped += is_skipped
                if code == Code.OK and not is_skipped:
                    progress.add(1, *more[1:])
                    keys.update(filter(None, more[:1]))
            if any(reply[0] == Code.AGAIN for reply in replies):
                break
        return progress.count, progress.skipped

    @inlineCallbacks
    def delete(
        self,
        name: bytes,
        state: str,
        matching: TaskFilter = ALL,
        limit: int = NO_LIMIT,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Delete the tasks of a state, oldest first. Fires with (deleted, skipped). ``dry_run`` only counts.

        A task is skipped if its state has changed meanwhile. Elements of other programs have no id: they are deleted only when
        all tasks of the state are.
        """
        check_name(name)
        progress = progress or Progress()
        if matching == ALL and state in ("ready", "delayed"):
            if not dry_run:
                return (yield self.purge(name, state, limit, progress)), 0
            view = yield self._inspector.queue(name)
            return min(limit, getattr(view, state)), 0
        # Kept tasks come first, because they move to the other list when their time ends.
        for kept in (True, False) if state == "done" else (False,):
            walk = Walk(self._store, name, state, shown=-1, oldest_first=True, kept=kept)
            while ids := (
                yield after(progress.count, _next_ids(walk, matching.matches, limit - progress.count))
            ):
                if dry_run:
                    progress.count += len(ids)
                elif not (yield self._delete(name, ids, LETTERS[state], progress)):
                    break
        return progress.count, progress.skipped

    @inlineCallbacks
    def _delete(self, name: bytes, ids: list[bytes], letter: str, progress: Progress) -> Any:
        """Delete these tasks. Fires with False when the undo of this operation has begun."""
        while ids:
            entry = self._store.delete(name, ids, letter, progress.place)
            result = self._queues.ask("delete", entry).addCallback(_checked)
            reply = yield after(progress.count, _hinted(progress, result))
            if reply[0] == Code.AGAIN:
                return False
            _, count, looked, size = reply
            progress.add(count, size)
            progress.skipped += looked - count
            # Large tasks take several calls.
            ids = ids[looked:]
        return True

    @inlineCallbacks
    def _run_each(self, verb: str, name: bytes, args: Iterable[tuple[bytes, ...]]) -> Any:
        entries = [self._store.of_lease(name, *one) for one in args]
        replies: Deferred[list[Any]] = Deferred()
        gathering = Gathering(len(entries), replies)
        for at, entry in enumerate(entries):
            entry.reply = gathering.part(at)
            self._queues.carry(verb, entry)
        return (yield replies) if entries else []

    @inlineCallbacks
    def move(self, name: bytes, to: bytes, state: str, progress: Progress | None = None) -> Any:
        """Move all tasks of a state to the tail of another queue. Fires with (moved, skipped)."""
        check_name(name)
        check_name(to)
        if name == to:
            raise BadOption("The option 'to' must name a different queue.")
        progress = progress or Progress()
        while True:
            # Ready tasks that cannot move stay at the head, so each call sees them again before any others.
            moves = MOVES_PER_CALL + (min(progress.skipped, MAX_SKIPPED) if state == "ready" else 0)
            entry = self._store.move(name, to, state, moves, progress.skipped)
            reply = yield after(progress.count, self._queues.ask("move", entry).addCallback(_checked))
            progress.add(reply[1])
            # For ready tasks, the reply counts all skipped ones again. In other states, the next call starts behind them.
            progress.skipped = reply[2] if state == "ready" else progress.skipped + reply[2]
            if not reply[3] or (state == "ready" and progress.skipped > MAX_SKIPPED):
                return progress.count, progress.skipped

    @inlineCallbacks
    def purge(
        self, name: bytes, state: str = "", limit: int = NO_LIMIT, progress: Progress | None = None
    ) -> Any:
        """Delete ready and delayed tasks, or only those of ``state``. Fires with how many."""
        check_name(name)
        progress = progress or Progress()
        while progress.count < limit:
            moves = min(MOVES_PER_CALL, limit - progress.count)
            result = self._queues.ask("purge", self._store.purge(name, state, moves, progress.place))
            reply = yield after(progress.count, _hinted(progress, result.addCallback(_checked)))
            if reply[0] == Code.AGAIN:
                break
            progress.add(reply[1], *reply[3:])
            if not reply[2]:
                break
        return progress.count

    def pause(self, name: bytes, length: float | None) -> Deferred[Policy]:
        """Hand out no tasks for ``length`` seconds; None: until resumed; 0 resumes. Fires with the `Policy`."""
        if length == 0:
            return self.set_policy(name, {"paused": None})
        if length is None:
            return self.set_policy(name, {"paused": True})
        return self._change(name, PolicyChange(pause=max(1, round(length * 1000))))

    def set_policy(self, name: bytes, changes: dict[str, Any]) -> Deferred[Policy]:
        """Change rules; the value None resets one. Fires with the `Policy`. Raises `BadOption` for an invalid value."""
        given, reset = rules_of(changes)
        return self._change(name, PolicyChange(set=given, reset=reset))

    @inlineCallbacks
    def _change(self, name: bytes, change: PolicyChange) -> Any:
        reply = yield self._run_one("policy", name, msgpack.encode(change))
        only_shorter = change.reset is not None and "retention" in change.reset
        while reply[2] or any(reply[3:]):
            # More tasks are kept than the new rules allow, or dead tasks have a new expiry: each call handles a bounded piece.
            # These calls do not repeat the rules, because another request may have changed them meanwhile.
            more = PolicyChange(trim_only=True)
            if any(reply[3:]):
                more = PolicyChange(trim_only=True, dead_from=reply[3].decode(), only_shorter=only_shorter)
            reply = yield after(True, self._run_one("policy", name, msgpack.encode(more)))
        return decode_policy(reply[1])


def rules_of(changes: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The rules that are set and those that are reset by these changes. Raises `BadOption` for an invalid value."""
    given: dict[str, Any] = {}
    reset: list[str] = []
    for rule, value in changes.items():
        # Lua in Redis cannot distinguish an empty object from an array; an empty object means the same as None.
        if (value is None and rule in RULES) or (rule == "retention" and value in (None, {})):
            reset.append(rule)
        else:
            given[rule] = _rule(rule, value)
    if given.get("paused") is False:
        del given["paused"]
        reset.append("paused")
    return given, reset


def _checked(reply: list[Any]) -> list[Any]:
    if reply[0] in _FAILURES:
        raise error_from_reply(reply)
    return reply


@inlineCallbacks
def _next_ids(walk: Walk, is_selected: Callable[[TaskView], bool], limit: int) -> Any:
    """Fires with the ids of the next selected tasks, at most ``limit``; an empty list at the end of the walk."""
    ids: list[bytes] = []
    while len(ids) < min(limit, IDS_PER_STEP):
        view = yield walk.head()
        if view is None:
            break
        walk.take()
        if view.id is not None and is_selected(view):
            ids.append(view.id)
    return ids


def _later(spread: float, number: int, place: str) -> bytes:
    """The delay of task ``number`` of a bulk retry: steps of the golden ratio spread evenly, whatever the total."""
    delay = f"d{int(spread * 1000 * (number * 0.6180339887498949 % 1))}" if spread else ""
    return f"{delay} {place}".rstrip().encode()


def _hinted(progress: Progress, result: Deferred[Any]) -> Deferred[Any]:
    """The same result. In a full Redis, setting tasks aside frees no memory, so the error says what to do instead."""

    def failed(failure: Failure) -> Any:
        if progress.place and failure.check(RedisFull):
            raise RedisFull(
                "Redis is full, so what is deleted cannot be kept for an undo: add undo=no to delete it for good."
            )
        return failure

    return result.addErrback(failed)


def _rule(rule: str, value: Any) -> Any:
    if rule == "retention":
        return _retention(value)
    if rule not in RULES:
        raise BadOption(
            f"A policy has no field {rule[:80]!r}; its fields are: {', '.join([*RULES, 'retention'])}."
        )
    kind: Any
    kind, low, high = RULES[rule]
    if rule in DURATIONS:
        return _duration(rule, value, low, high)
    if kind is int:
        value = _whole(value)
    if (
        not isinstance(value, kind)
        or (isinstance(value, bool) and kind is not bool)
        or not low <= value <= high
    ):
        if kind is bool:
            raise BadOption(f"The field {rule!r} must be true or false.")
        what = "a whole number" if kind is int else "a number"
        raise BadOption(f"The field {rule!r} must be {what} from {low:.15g} to {high:.15g}.")
    # The scripts need a plain number, not one that keeps its own notation (`ExactFloat`).
    return float(value) if isinstance(value, float) else value


def _whole(value: Any) -> Any:
    """A whole number that a program printed with a fraction of zero, as an int; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _duration(field: str, value: Any, low: float, high: float) -> float:
    ms = milliseconds(value) if isinstance(value, int | float) else None
    if ms is None or not low * 1000 <= ms <= high * 1000:
        raise BadOption(f"The field {field!r} must be a number of seconds from {low:.15g} to {high:.15g}.")
    return ms // 1000 if ms % 1000 == 0 else ms / 1000


def _retention(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadOption("The field 'retention' must be an object with done, done_max, dead and dead_max.")
    retention: dict[str, Any] = {}
    for name, number in value.items():
        if name not in RETENTION:
            raise BadOption(
                f"The field 'retention' has no member {name[:80]!r}; its members are: {', '.join(RETENTION)}."
            )
        if not name.endswith("_max"):
            retention[name] = _duration(f"retention.{name}", number, 0, RETENTION[name])
            continue
        number = _whole(number)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= RETENTION[name]:
            raise BadOption(
                f"The field 'retention.{name}' must be a whole number from 0 to {RETENTION[name]}."
            )
        retention[name] = number
    return retention

"""What an operator can do to tasks and queues. Each move is a script; bulk moves are many of them, a bounded piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import Deferred, inlineCallbacks

from registry.duration import milliseconds
from registry.errors import BadOption, Conflict, NotFound
from registry.model import LETTERS, STATES, Code, Error, Policy, PolicyChange, decode_policy
from registry.queue.inspector import Inspector
from registry.queue.names import check_name, pushed_at_ms
from registry.queue.pages import TaskView, Walk
from registry.queue.promise import Gathering, after
from registry.queue.queues import Queues
from registry.redis.faults import error_from_reply

MOVES_A_CALL = 200
# A move gives up behind this many ready tasks whose keys are taken: passing over them keeps Redis busy each time.
MOST_MET_AGAIN = 10_000
# Of a bulk operation's tasks, before it asks for more of them.
IDS_A_STEP = 100
NO_LIMIT = 1 << 53
# A bulk retry leaves these alone unless it names them: nobody wants what was cancelled to run after all.
NOT_JSON = "not_json"
LEFT_ALONE = ("cancelled", "expired", NOT_JSON)

_DRY = b"1"
# The others mean something else to each verb.
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
}
# These are seconds, and kept as whole ms.
DURATIONS = ("lease", "backoff", "ttl", "max_run")
RETENTION = {"done": 30 * 86_400, "done_max": 1_000_000, "dead": 366 * 86_400, "dead_max": 10_000_000}


@dataclass(frozen=True, slots=True)
class Which:
    """The tasks that a bulk operation is for; None is any. ``before_ms``: when it ended, or was pushed where it has not."""

    reason: str | None = None
    error: str | None = None
    before_ms: float | None = None

    def has(self, view: TaskView) -> bool:
        """Whether a task is one of them."""
        task = view.task
        if self.reason is not None and task.reason != self.reason:
            return False
        if self.error is not None:
            error = task.error if isinstance(task.error, Error) else Error()
            if self.error not in f"{error.type or ''}: {error.message or ''}":
                return False
        if self.before_ms is None:
            return True
        at = task.ended_at or pushed_at_ms(view.id or b"")
        return at is not None and at < self.before_ms


ALL = Which()


class Operations:
    """Cancel, retry, run, move, purge, and the rules of a queue."""

    def __init__(self, queues: Queues, looking: Inspector) -> None:
        self._queues = queues
        self._inspector = looking
        self._store = queues.store

    def _one(self, verb: str, name: bytes, *args: bytes) -> Deferred[list[Any]]:
        check_name(name)
        return self._queues.ask(verb, self._store.of_lease(name, *args)).addCallback(_checked)

    @inlineCallbacks
    def cancel(self, name: bytes, task_id: bytes) -> Any:
        """Fires with ``cancelled`` (it waited, and is dead), ``marked`` (its holder is told) or ``removed`` (it had ended)."""
        reply = yield self._one("cancel", name, task_id)
        if reply[0]:
            raise NotFound("There is no such task here.")
        return reply[1].decode()

    @inlineCallbacks
    def run(self, name: bytes, task_id: bytes) -> Any:
        """A delayed task is ready now."""
        reply = yield self._one("run", name, task_id)
        if reply[0] == Code.NOTHING:
            raise NotFound("There is no such task here.")
        if reply[0]:
            raise Conflict("not_delayed", f"This task is {STATES[reply[1].decode()]}, not delayed.")

    @inlineCallbacks
    def retry_one(
        self, name: bytes, task_id: bytes, which: Which = ALL, spread: float = 0, dry_run: bool = False
    ) -> Any:
        """A dead task is ready again; fires with False, and leaves it alone, when it is none of ``which``."""
        if which != ALL:
            view = yield self._inspector.task(name, task_id)
            if view.state == "dead" and not which.has(view):
                return False
        reply = yield self._one("retry", name, task_id, _DRY if dry_run else _later(spread, 1))
        if reply[0] == Code.NOT_JSON:
            raise Conflict(
                "not_json", "This element of another program is not JSON, and can never be served."
            )
        if reply[0] == Code.KEY_TAKEN:
            raise Conflict("key_taken", "Another task with this key is waiting or running.")
        if reply[0]:
            yield self._inspector.task(name, task_id)
            raise Conflict("not_dead", "This task is not dead.")
        return True

    @inlineCallbacks
    def retry_all(
        self, name: bytes, which: Which = ALL, limit: int = NO_LIMIT, spread: float = 0, dry_run: bool = False
    ) -> Any:
        """The dead of a queue are ready again, oldest first; fires with (retried, skipped). ``dry_run`` only counts.

        ``spread``: they are ready one after the other, over so many seconds.
        """
        check_name(name)
        count = skipped = 0
        # Of several dead with one key the first takes it, which a dry run cannot see in Redis.
        keys: set[bytes] = set()
        began = yield self._store.redis_now_ms()

        def wanted(view: TaskView) -> bool:
            # What dies again meanwhile is left to the next request: workers that fail at once would keep this one busy for ever.
            if (view.task.ended_at or 0) > began:
                return False
            return which.has(view) and (which.reason is not None or view.task.reason not in LEFT_ALONE)

        walk = Walk(self._store, name, "dead", shown=-1, oldest_first=True)
        while ids := (yield after(count, _some(walk, wanted, limit - count))):
            hows = [_DRY if dry_run else _later(spread, count + n) for n in range(1, len(ids) + 1)]
            replies = yield after(count, self._each("retry", name, list(zip(ids, hows, strict=True))))
            for code, *more in map(_checked, replies):
                taken = code in (Code.KEY_TAKEN, Code.NOT_JSON) or (
                    dry_run and code == Code.OK and more[0] in keys
                )
                skipped += taken
                if code == Code.OK and not taken:
                    count += 1
                    keys.update(filter(None, more))
        return count, skipped

    @inlineCallbacks
    def delete(
        self, name: bytes, state: str, which: Which = ALL, limit: int = NO_LIMIT, dry_run: bool = False
    ) -> Any:
        """Tasks of a state are forgotten, the oldest first; fires with (forgotten, skipped). ``dry_run`` only counts.

        Skipped is what was in another state when its turn came. Elements of other programs have no id: they go where all go.
        """
        check_name(name)
        if which == ALL and state in ("ready", "delayed"):
            if not dry_run:
                return (yield self.purge(name, state, limit)), 0
            view = yield self._inspector.queue(name)
            return min(limit, getattr(view, state)), 0
        count = skipped = 0
        letter = LETTERS[state].encode()
        # What a push asked to keep becomes like the others with time.
        for kept in (True, False) if state == "done" else (False,):
            walk = Walk(self._store, name, state, shown=-1, oldest_first=True, kept=kept)
            while ids := (yield after(count, _some(walk, which.has, limit - count))):
                if dry_run:
                    count += len(ids)
                    continue
                entries = [(task_id, letter) for task_id in ids]
                for code, *_ in map(_checked, (yield after(count, self._each("delete", name, entries)))):
                    count += code == Code.OK
                    skipped += code != Code.OK
        return count, skipped

    @inlineCallbacks
    def _each(self, verb: str, name: bytes, args: Iterable[tuple[bytes, ...]]) -> Any:
        entries = [self._store.of_lease(name, *one) for one in args]
        replies: Deferred[list[Any]] = Deferred()
        gathering = Gathering(len(entries), replies)
        for at, entry in enumerate(entries):
            entry.reply = gathering.part(at)
            self._queues.carry(verb, entry)
        return (yield replies) if entries else []

    @inlineCallbacks
    def move(self, name: bytes, to: bytes, state: str) -> Any:
        """All tasks of a state go to the tail of another queue; fires with (moved, skipped)."""
        check_name(name)
        check_name(to)
        if name == to:
            raise BadOption("The option 'to' names another queue.")
        moved = skipped = 0
        while True:
            # The ready that cannot go stay at the head: each call meets them again before it meets others.
            most = MOVES_A_CALL + (min(skipped, MOST_MET_AGAIN) if state == "ready" else 0)
            entry = self._store.move(name, to, state, most, skipped)
            reply = yield after(moved, self._queues.ask("move", entry).addCallback(_checked))
            moved += reply[1]
            # The ready that could not go are met again by the next call, the others are passed over.
            skipped = reply[2] if state == "ready" else skipped + reply[2]
            if not reply[3] or (state == "ready" and skipped > MOST_MET_AGAIN):
                return moved, skipped

    @inlineCallbacks
    def purge(self, name: bytes, state: str = "", limit: int = NO_LIMIT) -> Any:
        """Ready and delayed tasks, or one of both, are forgotten; fires with how many."""
        check_name(name)
        count = 0
        while count < limit:
            entry = self._store.purge(name, state, min(MOVES_A_CALL, limit - count))
            reply = yield after(count, self._queues.ask("purge", entry).addCallback(_checked))
            count += reply[1]
            if not reply[2]:
                break
        return count

    def pause(self, name: bytes, length: float | None) -> Deferred[Policy]:
        """Hand nothing out, for so many seconds or until somebody resumes; 0 resumes."""
        if length == 0:
            return self.set_policy(name, {"paused": None})
        if length is None:
            return self.set_policy(name, {"paused": True})
        return self._change(name, PolicyChange(pause=max(1, round(length * 1000))))

    def set_policy(self, name: bytes, changes: dict[str, Any]) -> Deferred[Policy]:
        """Change rules; None resets one. Fires with the `Policy`."""
        given: dict[str, Any] = {}
        reset: list[str] = []
        for rule, value in changes.items():
            # An object without members cannot be told from an array in Redis' Lua, and says the same as none.
            if (value is None and rule in RULES) or (rule == "retention" and value in (None, {})):
                reset.append(rule)
            else:
                given[rule] = _rule(rule, value)
        if given.get("paused") is False:
            del given["paused"]
            reset.append("paused")
        return self._change(name, PolicyChange(set=given, reset=reset))

    @inlineCallbacks
    def _change(self, name: bytes, change: PolicyChange) -> Any:
        reply = yield self._one("policy", name, msgpack.encode(change))
        only_shorter = change.reset is not None and "retention" in change.reset
        while reply[2] or any(reply[3:]):
            # Another round says nothing of the rules: somebody else may have changed them meanwhile.
            # More is kept than may be from now on, or the dead have another time: a bounded piece of them with each call.
            more = PolicyChange(trim_only=True)
            if any(reply[3:]):
                more = PolicyChange(trim_only=True, dead_from=reply[3].decode(), only_shorter=only_shorter)
            reply = yield after(True, self._one("policy", name, msgpack.encode(more)))
        return decode_policy(reply[1])


def _checked(reply: list[Any]) -> list[Any]:
    if reply[0] in _FAILURES:
        raise error_from_reply(reply)
    return reply


@inlineCallbacks
def _some(walk: Walk, wanted: Callable[[TaskView], bool], most: int) -> Any:
    """Fires with the ids of the next tasks that are wanted, none at the end of the walk."""
    ids: list[bytes] = []
    while len(ids) < min(most, IDS_A_STEP):
        view = yield walk.head()
        if view is None:
            break
        walk.take()
        if view.id is not None and wanted(view):
            ids.append(view.id)
    return ids


def _later(spread: float, number: int) -> bytes:
    """When the so-manieth of many is ready: steps of the golden ratio lie evenly in the whole, however many there will be."""
    return b"d%d" % int(spread * 1000 * (number * 0.6180339887498949 % 1)) if spread else b""


def _rule(rule: str, value: Any) -> Any:
    if rule == "retention":
        return _retention(value)
    if rule not in RULES:
        raise BadOption(
            f"There is no field {rule[:80]!r} in a policy; it has: {', '.join([*RULES, 'retention'])}."
        )
    kind: Any
    kind, low, high = RULES[rule]
    if rule in DURATIONS:
        return _duration(rule, value, low, high)
    if (
        not isinstance(value, kind)
        or (isinstance(value, bool) and kind is not bool)
        or not low <= value <= high
    ):
        if kind is bool:
            raise BadOption(f"The field {rule!r} is true or false.")
        what = "a whole number" if kind is int else "a number"
        raise BadOption(f"The field {rule!r} is {what} from {low:.15g} to {high:.15g}.")
    # A number that tells its own notation is of no use to the scripts.
    return float(value) if isinstance(value, float) else value


def _duration(field: str, value: Any, low: float, high: float) -> float:
    ms = milliseconds(value) if isinstance(value, int | float) else None
    if ms is None or not low * 1000 <= ms <= high * 1000:
        raise BadOption(f"The field {field!r} is a number of seconds from {low:.15g} to {high:.15g}.")
    return ms // 1000 if ms % 1000 == 0 else ms / 1000


def _retention(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadOption("The field 'retention' is an object with done, done_max, dead and dead_max.")
    kept: dict[str, Any] = {}
    for name, number in value.items():
        if name not in RETENTION:
            raise BadOption(f"There is no field {name[:80]!r} in retention; it has: {', '.join(RETENTION)}.")
        if not name.endswith("_max"):
            kept[name] = _duration(f"retention.{name}", number, 0, RETENTION[name])
            continue
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= RETENTION[name]:
            raise BadOption(f"The field 'retention.{name}' is a whole number from 0 to {RETENTION[name]}.")
        kept[name] = number
    return kept

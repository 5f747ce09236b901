"""Queues, tasks and schedules as the API shows them: rows, and pages of rows that are bounded in bytes."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from msgspec import to_builtins

from registry.errors import BadOption
from registry.http import options
from registry.http.codec import Answer, Raw, cut_bytes, dumps
from registry.http.tasks import result_of
from registry.model import Policy, Task
from registry.queue.inspector import FAR_ENOUGH, QueueView
from registry.queue.names import is_foreign, pushed_at_ms
from registry.queue.pages import SHOWN_BYTES, TaskView

# The most bytes of rows in a page; some room is left for what surrounds them.
MAX_PAGE_BYTES = (8 << 20) - 1024
# Later than any time; for queues that have no oldest task.
NEVER_MS = 10**15
# The work on a page lets other requests go first each time this many bytes of rows were added.
PAUSE_BYTES = 64 << 10
COUNTED = ("ready", "delayed", "leased", "dead", "done")


class Page:
    """The rows of a list, encoded when they are added: at most ``limit`` rows and `MAX_PAGE_BYTES` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: list[bytes] = []
        self._size = self._paused_at = 0
        self.ended_early = False

    def add(self, row: Any) -> bool:
        """Add a row if there is room, and return whether there was. A page has at least one row."""
        encoded = dumps(row)
        self._size += len(encoded) + 1
        if self._rows and (len(self._rows) == self._limit or self._size > MAX_PAGE_BYTES):
            self.ended_early = True
            return False
        self._rows.append(encoded)
        return True

    @property
    def is_full(self) -> bool:
        return self.ended_early or len(self._rows) == self._limit

    @property
    def is_pause_due(self) -> bool:
        """Whether `PAUSE_BYTES` were added since this was last true."""
        if self._size - self._paused_at < PAUSE_BYTES:
            return False
        self._paused_at = self._size
        return True

    def answer(self, name: bytes, cursor: str | None, lines: bool = False) -> Answer:
        """The page as an answer, built with few copies because it may be large. ``lines``: each row is on a line of its own."""
        end = b"\n" if lines else b""
        head, tail = b'{"%b":[%b' % (name, end), b'%b],"cursor":%b}' % (end, dumps(cursor))
        return Answer(200, b"".join((head, (b"," + end).join(self._rows), tail)))


def rfc3339(moment_ms: float | None) -> str | None:
    """A time of day as RFC 3339 in UTC, with ms."""
    if moment_ms is None:
        return None
    whole_seconds, rest = divmod(int(moment_ms), 1000)
    return datetime.fromtimestamp(whole_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:03d}Z"


def queue_row(view: QueueView, now_ms: int, pollers: dict[bytes, int]) -> dict[str, Any]:
    """A queue as the API shows it."""
    oldest = None if view.oldest_ms is None else max(0.0, (now_ms - view.oldest_ms) / 1000)
    counts = {state: getattr(view, state) for state in COUNTED}
    return {
        "name": view.name.decode("utf-8", "replace"),
        **counts,
        "oldest_age": oldest,
        "pollers": pollers.get(view.name, 0),
        "rates": {},
        "policy": _rules(view.policy),
    }


def _rules(policy: Policy) -> dict[str, Any]:
    rules: dict[str, Any] = to_builtins(policy)
    until = policy.paused_until
    return rules if until is None else {**rules, "paused_until": rfc3339(until)}


def fold(families: dict[str, dict[str, Any]], row: dict[str, Any]) -> None:
    """Add a queue to the summed row ``family:*`` of its family; a queue without a colon keeps its own row."""
    family, colon, _ = row["name"].partition(":")
    name = f"{family}:*" if colon else row["name"]
    total = families.get(name)
    if total is None:
        families[name] = {**row, "name": name, "policy": {}, "queues": 1} if colon else row
        return
    for state in (*COUNTED, "pollers"):
        total[state] += row[state]
    total["queues"] = total.get("queues", 1) + 1
    ages = [age for age in (total["oldest_age"], row["oldest_age"]) if age is not None]
    total["oldest_age"] = max(ages) if ages else None


def sort_value(sort: str, row: dict[str, Any], now_ms: int) -> int:
    """The first sort key of a list of queues; the name is the second.

    For ``oldest`` it is a time in ms, because an age would have changed by the next page.
    """
    if sort == "oldest":
        return NEVER_MS if row["oldest_age"] is None else round(now_ms - row["oldest_age"] * 1000)
    return 0 if sort == "name" else -row[sort]


def place_of(sort: str, cursor: str) -> tuple[int, bytes]:
    """The sort key and name of the row after which a page begins, from the previous page's cursor. Raises `BadOption`."""
    if sort == "name":
        return 0, options.decode_cursor(cursor)
    found = re.fullmatch(r"(-?\d{1,17})~(.+)", cursor)
    if found is None:
        raise BadOption("The option 'cursor' must be the cursor of the previous page.")
    return int(found[1]), options.decode_cursor(found[2])


def shortened(row: dict[str, Any], view: TaskView) -> dict[str, Any]:
    """A task as a list shows it: long values are cut, and ``truncated`` is then true."""
    cut = False
    if view.length > SHOWN_BYTES:
        row["task"], cut = _beginning(view.payload), True
    result = row["result"]
    if result is not None and len(result) > SHOWN_BYTES:
        row["result"], cut = _beginning(result), True
    history = row["history"]
    sizes = [len(dumps(attempt)) for attempt in history]
    while sum(sizes) > SHOWN_BYTES:
        del history[0], sizes[0]
        cut = True
    return {**row, "truncated": True} if cut else row


def _beginning(value: bytes) -> str:
    """The first bytes as text; a character that is split by the cut is dropped."""
    return cut_bytes(bytes(value), SHOWN_BYTES).decode("utf-8", "replace")


def task_row(view: TaskView) -> dict[str, Any]:
    """A task as the API shows it."""
    task = view.task
    row: dict[str, Any] = {
        "id": view.id,
        "queue": view.queue,
        "state": view.state,
        "attempt": task.attempt,
        "priority": task.priority,
        "pushed_at": rfc3339(pushed_at_ms(view.id)) if view.id else None,
        # A payload that another program pushed may not be JSON and would break the whole answer: it is shown as text.
        "task": Raw(view.payload) if len(view.payload) == view.length and _is_json(view) else view.payload,
        "history": [
            {
                "attempt": attempt.number,
                "worker": attempt.worker,
                "leased_at": rfc3339(attempt.leased_at),
                "ended_at": rfc3339(attempt.ended_at),
                "reason": attempt.reason,
                "error": to_builtins(attempt.error),
                **({} if attempt.result is None else {"result": attempt.result}),
            }
            for attempt in task.history
        ],
        "progress": task.progress,
        "result": result_of(task),
    }
    if given := _push_options(task):
        row["options"] = given
    for name in ("key", "message", "reason", "traceparent", "tracestate"):
        if (value := getattr(task, name)) is not None:
            row[name] = value
    for name in ("due_at", "expires_at", "ended_at"):
        if (value := getattr(task, name)) is not None:
            row[name] = rfc3339(value)
    if task.cancelled:
        row["cancelled"] = True
    lease = task.lease
    if view.state == "leased" and lease is not None:
        row.update(
            worker=lease.worker,
            leased_at=rfc3339(lease.granted_at),
            lease_ends_at=rfc3339(view.lease_ends_ms),
        )
    return row


def _push_options(task: Task) -> dict[str, Any]:
    """What rules how the task is worked on in place of its queue's policy; durations in s. Retries raise its ``attempts``."""
    lengths = {"backoff": task.backoff, "lease": task.lease_length, "result": task.keep_result}
    given: dict[str, Any] = {name: value / 1000 for name, value in lengths.items() if value is not None}
    return given if task.attempts is None else {"attempts": task.attempts, **given}


def without_payloads(row: dict[str, Any]) -> dict[str, Any]:
    """A task or schedule for a caller that may not see what producers and workers wrote: ``hidden`` says so."""
    row = {name: value for name, value in row.items() if name not in _WRITTEN}
    row["task"], row["hidden"] = None, True
    if "result" in row:
        row["result"] = None
    if "history" in row:
        row["history"] = [{**attempt, "error": None} for attempt in row["history"]]
    if "options" in row:
        row["options"] = {name: value for name, value in row["options"].items() if name not in _WRITTEN}
    return row


# Members of a task or schedule that are missing in a row without payloads.
_WRITTEN = ("key", "message", "traceparent", "tracestate", "truncated")


def _is_json(view: TaskView) -> bool:
    return (view.id is not None and not is_foreign(view.id)) or options.is_json(view.payload)


def schedule_row(name: str, schedule: dict[str, Any], shown: int | None = None) -> dict[str, Any]:
    """A schedule as the API shows it; in a list, a task longer than ``shown`` bytes is cut."""
    row = {"name": name, **schedule, "task": Raw(schedule["task"])}
    row["next_at"], row["last_at"] = rfc3339(row.pop("next_ms")), rfc3339(row.pop("last_ms"))
    if shown is not None and len(schedule["task"]) > shown:
        row.update(task=_beginning(row["task"]), truncated=True)
    return row


def _death(task: Task) -> str:
    if task.reason != "poison":
        return f"It is dead: {task.reason or 'failed'}."
    workers = {one.worker or "one without a name" for one in task.history if one.reason == "lease_expired"}
    return f"It is dead: poison, because workers died on it: {', '.join(sorted(workers))}."


def reasons_of(
    view: TaskView,
    queue: QueueView,
    position: int | None,
    gates: Collection[str],
    pollers: int,
    silent_ms: int | None,
    now_ms: int,
) -> list[dict[str, Any]]:
    """Why a task is not running: a list of reasons, each with its code, a sentence and its numbers.

    ``gates``: what keeps the queue from handing it out. ``silent_ms``: since the last poll, None if none is known.
    """
    rules, task = queue.policy, view.task
    reasons: list[dict[str, Any]] = []

    def add(code: str, sentence: str, **numbers: Any) -> None:
        reasons.append({"code": code, "text": sentence, **numbers})

    if view.state == "leased":
        holder = task.lease.worker if task.lease else None
        add("leased", f"It is being worked on{' by ' + holder if holder else ''}.", worker=holder)
        return reasons
    if view.state == "dead":
        add("dead", _death(task), reason=task.reason)
        return reasons
    if view.state == "done":
        add("done", "It is done.")
        return reasons
    if "paused" in gates:
        until = rfc3339(rules.paused_until)
        add("paused", f"The queue is paused{' until ' + until if until else ''}.")
    if view.state == "delayed":
        left = max(0.0, ((task.due_at or now_ms) - now_ms) / 1000)
        add("delayed", f"It is due in {left:.0f} s.", seconds=left, due_at=rfc3339(task.due_at))
    limit = rules.concurrency
    if "concurrency_limited" in gates and limit:
        add(
            "concurrency_limited",
            f"The queue has reached its concurrency limit: {queue.leased} of {limit} tasks are running.",
            limit=limit,
        )
    if "rate_limited" in gates and rules.rate:
        add("rate_limited", f"The queue starts at most {rules.rate:g} tasks a second.", rate=rules.rate)
    if not pollers:
        if silent_ms is not None:
            quiet = silent_ms / 1000
            sentence = f"No worker has polled this queue for {quiet:.0f} s."
        else:
            # As far as this process knows, at least since the push.
            pushed = pushed_at_ms(view.id) if view.id else None
            quiet = max(0.0, (now_ms - (pushed or now_ms)) / 1000)
            sentence = "No worker is known to have polled this queue since the registry started."
        add("nobody_polls", sentence, seconds=round(quiet, 3))
    if view.state == "ready":
        if position == 0:
            add("next", "It is next in its queue.")
        elif position is not None:
            ahead = "1 task is" if position == 1 else f"{position} tasks are"
            add("position", f"{ahead} ahead of it.", position=position)
        else:
            add("position", f"More than {FAR_ENOUGH} tasks are ahead of it.", position=None)
    return reasons

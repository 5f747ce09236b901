"""Inspection and operations over HTTP: queues, their tasks, their rules, and schedules. Every answer is JSON."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.errors import BadBody, BadOption, Forbidden, NotFound
from registry.http import options
from registry.http.audit import UNDO, Trail
from registry.http.charts import Charts
from registry.http.codec import (
    ACCEPTED,
    Answer,
    accepts,
    json_answer,
    moment,
    one_of,
    seconds,
    text,
    whole,
)
from registry.http.exports import exported, records
from registry.http.json_check import check_json
from registry.http.json_cut import MAX_BUILT, load
from registry.http.overview import Overview
from registry.http.request import Options, Request
from registry.http.rows import (
    COUNTED,
    Page,
    fold,
    place_of,
    queue_row,
    reasons_of,
    shortened,
    sort_value,
    task_row,
    without_payloads,
)
from registry.http.schedules import ScheduleRequests, check_fill
from registry.http.turns import Turns
from registry.queue.audit import Action, Audit
from registry.queue.completions import Completions
from registry.queue.inspector import Inspector
from registry.queue.operations import ALL, NO_LIMIT, Operations, TaskFilter, rules_of
from registry.queue.progress import Progress
from registry.queue.promise import after
from registry.queue.queues import Queues
from registry.queue.schedules import Schedules
from registry.queue.stats import Stats
from registry.queue.transfers import Transfers

PAGE, MAX_PER_PAGE = 100, 1000


def _yes_no(name: str, value: str) -> bool:
    return _yes_or_no(name, value) in ("1", "true")


_yes_or_no = one_of("1", "0", "true", "false")
accepts(_yes_no, ACCEPTED[_yes_or_no])


# Which tasks a list shows. The options that speak of what workers wrote are refused to a caller that may not see it.
_SHOWN_OPTIONS: Options = {
    "reason": text(1, 100),
    "error": text(1, 255),
    "worker": text(1, 255),
    "type": text(0, 200),
    "message": text(0, 4000),
}
_BY_ERROR = ("error", "type", "message")
# Which tasks a bulk operation applies to.
_FILTER_OPTIONS: Options = {
    **_SHOWN_OPTIONS,
    "before": moment,
    "limit": whole(1, 10**12 - 1),
    "dry_run": _yes_no,
}


QUEUES_OPTIONS: Options = {
    "cursor": text(1, 800),
    "limit": whole(1, MAX_PER_PAGE),
    "search": text(0, 255),
    "sort": one_of("name", "oldest", *COUNTED),
    "family": one_of(":"),
    "stats": _yes_no,
}
TASKS_OPTIONS: Options = {
    "state": one_of(*COUNTED),
    "cursor": text(1, 400),
    "limit": whole(1, MAX_PER_PAGE),
    "search": text(0, 255),
    **_SHOWN_OPTIONS,
}
TASK_OPTIONS: Options = {"wait": options.wait_length}
RETRY_OPTIONS: Options = {
    "state": one_of("dead"),
    "id": text(1, 100),
    "spread": seconds(0, 86_400),
    **_FILTER_OPTIONS,
    **UNDO,
}
DELETE_OPTIONS: Options = {"state": one_of("ready", "delayed", "dead", "done"), **_FILTER_OPTIONS, **UNDO}
PAUSE_OPTIONS: Options = {"seconds": seconds(0, options.YEAR)}
MOVE_OPTIONS: Options = {
    "to": accepts(text(1, 255), options.NAME),
    "state": one_of("ready", "delayed", "dead"),
}
EXPORT_OPTIONS: Options = {
    "state": one_of(*COUNTED),
    "cursor": text(1, 400),
    "limit": whole(1, MAX_PER_PAGE),
}


def _task_filter(given: dict[str, Any]) -> TaskFilter:
    before = given.get("before")
    return TaskFilter(
        given.get("reason"),
        given.get("error"),
        None if before is None else before * 1000,
        given.get("worker"),
        given.get("type"),
        given.get("message"),
    )


def _bulk_answer(count: int, skipped: int) -> Answer:
    return json_answer(200, {"success": True, "count": count, "skipped": skipped})


def _shown_id(task_id: bytes) -> str:
    # What a client wrote into the path, with no task of this id.
    return task_id[:100].decode("utf-8", "replace")


class Admin:
    """The requests of operators. Every method takes a `Request`."""

    def __init__(
        self,
        queues: Queues,
        inspector: Inspector,
        operations: Operations,
        schedules: Schedules,
        completions: Completions,
        turns: Turns,
        max_wait: float,
        stats: Stats,
    ) -> None:
        self._queues = queues
        self._turns = turns
        self._inspector = inspector
        self._operations = operations
        self.trail = Trail(Audit(queues))
        self.schedules = ScheduleRequests(schedules, self.trail, turns)
        self.overview = Overview(queues, self.trail)
        self.stats = Charts(stats)
        self._completions = completions
        self._transfers = Transfers(queues)
        self._max_wait = max_wait

    # Queues

    @inlineCallbacks
    def queues(self, request: Request) -> Any:
        """The list of queues, a page at a time; ``family=:`` sums the queues of each family (the name before a colon) in one row."""
        given = request.options
        if given.get("stats") and given.get("limit", PAGE) > PAGE:
            raise BadOption(f"With 'stats', a page has at most {PAGE} queues.")
        needle = given.get("search", "").encode()
        held = yield self._inspector.names(needle)
        pollers = yield self._queues.heartbeat.pollers()
        names = held.union(name for name in pollers if needle in name)
        sort, limit, now = given.get("sort", "name"), given.get("limit", PAGE), self._queues.store.now_ms()
        behind = place_of(sort, given["cursor"]) if "cursor" in given else None
        rows: list[tuple[Any, dict[str, Any]]] = []

        def keep(row: dict[str, Any]) -> None:
            place = sort_value(sort, row, now), row["name"].encode()
            if behind is None or place > behind:
                # Keep the rows of this page, and one more, which shows that there is a next page.
                bisect.insort(rows, (place, row), key=lambda one: one[0])
                del rows[limit + 1 :]

        if "family" in given:
            families: dict[str, dict[str, Any]] = {}
            yield self._inspector.each_count(
                list(names), lambda view: fold(families, queue_row(view, now, pollers)), held
            )
            for row in families.values():
                keep(row)
        else:
            if sort == "name":
                names = heapq.nsmallest(
                    limit + 1, (name for name in names if behind is None or name > behind[1])
                )
            yield self._inspector.each_count(
                list(names), lambda view: keep(queue_row(view, now, pollers)), held
            )
        cursor = None
        if len(rows) > limit:
            (value, last), _ = rows[limit - 1]
            cursor = (
                options.encode_cursor(last) if sort == "name" else f"{value}~{options.encode_cursor(last)}"
            )
        shown = [row for _, row in rows[:limit]]
        if given.get("stats"):
            yield self.stats.add_to(shown)
        return json_answer(200, {"queues": shown, "cursor": cursor})

    @inlineCallbacks
    def queue(self, request: Request) -> Any:
        """What a queue holds, and its policy."""
        view = yield self._inspector.queue(request.name)
        pollers = yield self._queues.heartbeat.pollers()
        return json_answer(200, queue_row(view, self._queues.store.now_ms(), pollers))

    @inlineCallbacks
    def patch(self, request: Request) -> Any:
        """Change the rules of a queue."""
        if len(request.body) > MAX_BUILT:
            raise BadBody(f"The policy is larger than the limit of {MAX_BUILT} bytes.")
        check_json(request.body)
        changes = load(request.body)
        if not isinstance(changes, dict):
            raise BadBody("The body must be a JSON object with the rules to change.")
        given, reset = rules_of(changes)

        @inlineCallbacks
        def act(action: Action) -> Any:
            yield self._operations.set_policy(request.name, changes)
            action.has_changed()
            return (yield after(True, self.queue(request)))

        rules = {**given, **dict.fromkeys(reset)}
        return (yield self.trail.record(request, "policy", act, options=rules))

    def purge(self, request: Request) -> Any:
        """Delete the ready and delayed tasks."""

        @inlineCallbacks
        def act(action: Action) -> Any:
            count = yield self._operations.purge(request.name, progress=action.progress)
            return _bulk_answer(count, 0)

        return self.trail.record(request, "purge", act, can_undo=True)

    @inlineCallbacks
    def retry(self, request: Request) -> Any:
        """Make dead tasks ready again."""
        name, given = request.name, request.options
        matching, dry_run, spread = _task_filter(given), given.get("dry_run", False), given.get("spread", 0)

        @inlineCallbacks
        def act(progress: Progress) -> Any:
            if "id" in given:
                done = yield self._operations.retry_one(
                    name, given["id"].encode(), matching, spread, dry_run, progress
                )
                return _bulk_answer(int(done), int(not done))
            limit = given.get("limit", NO_LIMIT)
            counted = yield self._operations.retry_all(name, matching, limit, spread, dry_run, progress)
            return _bulk_answer(*counted)

        return (yield self._many(request, "retry", act, dry_run))

    def _many(self, request: Request, name: str, act: Callable[[Progress], Any], dry_run: bool) -> Any:
        """Carry out and record an operation on many tasks; a dry run is not recorded."""
        if dry_run:
            return act(Progress())
        task = request.options.get("id")
        return self.trail.record(request, name, lambda action: act(action.progress), can_undo=True, task=task)

    @inlineCallbacks
    def delete(self, request: Request) -> Any:
        """Delete tasks of one state."""
        name, given = request.name, request.options
        if "state" not in given:
            raise BadOption("The option 'state' is missing: give ready, delayed, dead or done.")
        if "reason" in given and given["state"] != "dead":
            raise BadOption("The option 'reason' is only for state=dead: other tasks have no reason.")
        dry_run = given.get("dry_run", False)

        @inlineCallbacks
        def act(progress: Progress) -> Any:
            counted = yield self._operations.delete(
                name, given["state"], _task_filter(given), given.get("limit", NO_LIMIT), dry_run, progress
            )
            return _bulk_answer(*counted)

        return (yield self._many(request, "delete", act, dry_run))

    def pause(self, request: Request) -> Any:
        """Hand out no task, for some seconds or until the queue is resumed."""
        length = request.options.get("seconds")

        @inlineCallbacks
        def act(action: Action) -> Any:
            yield self._operations.pause(request.name, length)
            action.has_changed()
            return (yield after(True, self.queue(request)))

        return self.trail.record(request, "resume" if length == 0 else "pause", act)

    @inlineCallbacks
    def move(self, request: Request) -> Any:
        """Move tasks of one state to another queue."""
        name, given = request.name, request.options
        if "to" not in given:
            raise BadOption("The option 'to' is missing: name the queue to move the tasks to.")
        check_fill(request, given["to"])

        @inlineCallbacks
        def act(action: Action) -> Any:
            counted = yield self._operations.move(
                name, given["to"].encode(), given.get("state", "ready"), action.progress
            )
            return _bulk_answer(*counted)

        return (yield self.trail.record(request, "move", act))

    @inlineCallbacks
    def export(self, request: Request) -> Any:
        """The tasks of a queue with all that is stored of them, a page at a time; one on each line of the answer."""
        given = request.options
        walk = self._transfers.walk(request.name, given.get("cursor", ""), given.get("state"))
        page = Page(given.get("limit", PAGE))
        while not page.is_full:
            view = yield walk.head()
            if view is None or not page.add(exported(view)):
                break
            walk.take()
            if page.is_pause_due:
                yield self._turns.pause()
        return page.answer(b"tasks", walk.cursor, lines=True)

    @inlineCallbacks
    def restore(self, request: Request) -> Any:
        """Store the tasks of an export again."""
        tasks = yield self._turns.run(records(request.body))

        @inlineCallbacks
        def act(action: Action) -> Any:
            restored = yield self._transfers.restore(request.name, tasks)
            action.progress.add(restored.count)
            action.progress.skipped = len(tasks) - restored.count
            answer = {
                "success": True,
                "count": restored.count,
                "skipped": len(tasks) - restored.count,
                "key_taken": restored.key_taken,
            }
            return json_answer(200, answer)

        return (yield self.trail.record(request, "import", act))

    # Tasks

    @inlineCallbacks
    def tasks(self, request: Request) -> Any:
        """The tasks of a queue in one state, a page at a time."""
        given = request.options
        reads = request.caller.access.reads_payloads
        if not reads and (given.get("search") or any(name in given for name in _BY_ERROR)):
            raise Forbidden("This token may not see payloads and errors, so it cannot search in them.")
        matching = _task_filter(given)
        walk = self._inspector.tasks(
            request.name,
            given.get("state", "ready"),
            given.get("cursor", ""),
            given.get("search", "").encode(),
            None if matching == ALL else matching.matches,
        )
        page = Page(given.get("limit", PAGE))
        while not page.is_full:
            view = yield walk.head()
            if view is None:
                break
            row = shortened(task_row(view), view)
            if not page.add(row if reads else without_payloads(row)):
                break
            walk.take()
            if page.is_pause_due:
                yield self._turns.pause()
        return page.answer(b"tasks", walk.cursor)

    @inlineCallbacks
    def task(self, request: Request) -> Any:
        """A task, at once or when it ends."""
        name, task_id = request.name, request.segments[1]
        wait = min(request.options.get("wait", 0.0), self._max_wait)
        if wait:
            ended = self._completions.wait(name, task_id, wait)
            try:
                reply = yield self._completions.watch(name, task_id)
                if reply not in ("done", "dead", None):
                    name = (yield ended).queue
            finally:
                ended.addErrback(lambda _: None)
                ended.cancel()
        view = yield self._inspector.task(name, task_id)
        access = request.caller.access
        if not (access.may("view") or access.may("push", view.queue)):
            # It was moved to a queue that the caller may not read.
            raise NotFound("This task has been moved to another queue.")
        row = task_row(view)
        return json_answer(200, row if access.reads(view.queue) else without_payloads(row))

    def cancel(self, request: Request) -> Any:
        """End a task, or delete one that has ended."""
        task_id = request.segments[1]

        @inlineCallbacks
        def act(action: Action) -> Any:
            how = yield self._operations.cancel(request.name, task_id, action.progress)
            action.line.options = {"how": how}
            return json_answer(200, {"success": True, "how": how})

        return self.trail.record(request, "cancel", act, can_undo=True, task=_shown_id(task_id))

    def run(self, request: Request) -> Any:
        """Make a delayed task ready now."""
        task_id = request.segments[1]

        @inlineCallbacks
        def act(action: Action) -> Any:
            yield self._operations.run(request.name, task_id)
            action.progress.add(1)
            return json_answer(200, {"success": True, "state": "ready"})

        return self.trail.record(request, "run", act, task=_shown_id(task_id))

    @inlineCallbacks
    def why(self, request: Request) -> Any:
        """Why a task is not running."""
        name, task_id = request.name, request.segments[1]
        view = yield self._inspector.task(name, task_id)
        queue = yield self._inspector.queue(name)
        why = yield self._inspector.why(view)
        pollers = yield self._queues.heartbeat.pollers()
        silent = yield self._queues.heartbeat.silent_ms(name)
        now_ms = self._queues.store.now_ms()
        reasons = reasons_of(view, queue, why.position, why.gates, pollers.get(name, 0), silent, now_ms)
        answer = {
            "id": task_id,
            "state": view.state,
            "sentence": " ".join(reason["text"] for reason in reasons),
            "reasons": reasons,
        }
        return json_answer(200, answer)

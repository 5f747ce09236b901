"""Looking and steering over HTTP: queues, their tasks, their rules, and schedules. Every answer is JSON."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import inlineCallbacks

from registry.errors import BadBody, BadOption, NotFound, RegistryError
from registry.http import asked
from registry.http.asked import Header
from registry.http.json_check import check_json
from registry.http.json_cut import MAX_BUILT, load
from registry.http.rows import (
    COUNTED,
    Page,
    fold,
    place_of,
    queue_row,
    schedule_row,
    shortened,
    sort_value,
    task_row,
    why,
)
from registry.http.turns import at_once
from registry.http.wire import (
    Answer,
    json_answer,
    moment,
    name_from,
    one_of,
    options,
    seconds,
    text,
    whole,
)
from registry.queue.endings import Endings
from registry.queue.looking import Looking
from registry.queue.pages import SHOWN_BYTES
from registry.queue.queues import Queues
from registry.queue.reply import after
from registry.queue.schedules import Schedules
from registry.queue.steering import NO_LIMIT, Steering, Which

PAGE, MOST_A_PAGE = 100, 1000


class Ask(NamedTuple):
    """A request: the raw segments of its path, and what else it brought."""

    method: bytes
    segments: list[bytes]
    query: bytes
    header: Header
    body: bytes


class WrongMethod(RegistryError):
    """This path is there, but not for this method."""

    def __init__(self, allowed: tuple[bytes, ...]) -> None:
        super().__init__("This path does not take this method.")
        self.allowed = allowed


def _method(ask: Ask) -> bytes:
    # The site sends no body where HEAD asked.
    return b"GET" if ask.method == b"HEAD" else ask.method


def _yes_no(name: str, value: str) -> bool:
    return one_of("1", "0", "true", "false")(name, value) in ("1", "true")


# Which tasks a bulk operation is for.
_WHICH: dict[str, Callable[[str, str], Any]] = {
    "reason": text(1, 100),
    "error": text(1, 255),
    "before": moment,
    "limit": whole(1, 10**12 - 1),
    "dry_run": _yes_no,
}


def _which(said: dict[str, Any]) -> Which:
    before = said.get("before")
    return Which(said.get("reason"), said.get("error"), None if before is None else before * 1000)


def _bulk_answer(count: int, skipped: int) -> Answer:
    return json_answer(200, {"success": True, "count": count, "skipped": skipped})


class Admin:
    """What operators ask for. ``pollers()`` tells parked pollers by queue, over all daemons."""

    def __init__(
        self,
        queues: Queues,
        looking: Looking,
        steering: Steering,
        schedules: Schedules,
        endings: Endings,
        max_wait: float,
    ) -> None:
        self._queues = queues
        self._looking = looking
        self._steering = steering
        self._schedules = schedules
        self._endings = endings
        self._max_wait = max_wait

    # Queues

    @inlineCallbacks
    def queues(self, query: bytes) -> Any:
        """The list of queues, a page at a time; ``family=:`` folds those with a colon into one row each."""
        said = options(
            query,
            {
                "cursor": text(1, 800),
                "limit": whole(1, MOST_A_PAGE),
                "search": text(0, 255),
                "sort": one_of("name", "oldest", *COUNTED),
                "family": one_of(":"),
            },
        )
        needle = said.get("search", "").encode()
        held = yield self._looking.names(needle)
        pollers = yield self._queues.pollers()
        names = held.union(name for name in pollers if needle in name)
        sort, limit, now = said.get("sort", "name"), said.get("limit", PAGE), self._queues.store.now_ms()
        behind = place_of(sort, said["cursor"]) if "cursor" in said else None
        rows: list[tuple[Any, dict[str, Any]]] = []

        def keep(row: dict[str, Any]) -> None:
            place = sort_value(sort, row, now), row["name"].encode()
            if behind is None or place > behind:
                # The first of them are enough, and one that tells that there are more.
                bisect.insort(rows, (place, row), key=lambda one: one[0])
                del rows[limit + 1 :]

        if "family" in said:
            families: dict[str, dict[str, Any]] = {}
            yield self._looking.each_count(
                sorted(names), lambda view: fold(families, queue_row(view, now, pollers)), held
            )
            for row in families.values():
                keep(row)
        else:
            if sort == "name":
                names = heapq.nsmallest(
                    limit + 1, (name for name in names if behind is None or name > behind[1])
                )
            yield self._looking.each_count(
                sorted(names), lambda view: keep(queue_row(view, now, pollers)), held
            )
        cursor = None
        if len(rows) > limit:
            (value, last), _ = rows[limit - 1]
            cursor = asked.quoted(last) if sort == "name" else f"{value}~{asked.quoted(last)}"
        return json_answer(200, {"queues": [row for _, row in rows[:limit]], "cursor": cursor})

    def queue_path(self, ask: Ask) -> Any:
        """Everything below ``/api/queues/{q}``."""
        name = name_from(ask.segments[2])
        match (_method(ask), *ask.segments[3:]):
            case [b"GET"]:
                return self._queue(name, ask.query)
            case [b"PATCH"]:
                return self._patch(name, ask)
            case [b"DELETE"]:
                return self._purge(name, ask.query)
            case [b"GET", b"tasks"]:
                return self._tasks(name, ask.query)
            case [b"DELETE", b"tasks"]:
                return self._delete(name, ask.query)
            case [b"POST", b"pause"]:
                return self._pause(name, ask.query)
            case [b"POST", b"retry"]:
                return self._retry(name, ask.query)
            case [b"POST", b"move"]:
                return self._move(name, ask.query)
            case [b"GET", b"tasks", task_id]:
                return self._task(name, task_id, ask.query)
            case [b"DELETE", b"tasks", task_id]:
                return self._cancel(name, task_id, ask.query)
            case [b"GET", b"tasks", task_id, b"why"]:
                return self._why(name, task_id, ask.query)
            case [b"POST", b"tasks", task_id, b"run"]:
                return self._run(name, task_id, ask.query)
        allowed = {
            (): (b"GET", b"PATCH", b"DELETE"),
            (b"tasks",): (b"GET", b"DELETE"),
            (b"pause",): (b"POST",),
            (b"retry",): (b"POST",),
            (b"move",): (b"POST",),
        }.get(tuple(ask.segments[3:]))
        match ask.segments[3:]:
            case [b"tasks", _]:
                allowed = (b"GET", b"DELETE")
            case [b"tasks", _, b"why"]:
                allowed = (b"GET",)
            case [b"tasks", _, b"run"]:
                allowed = (b"POST",)
        if allowed is None:
            raise NotFound("There is nothing at this path.")
        raise WrongMethod(allowed)

    @inlineCallbacks
    def _queue(self, name: bytes, query: bytes) -> Any:
        options(query, {})
        view = yield self._looking.queue(name)
        pollers = yield self._queues.pollers()
        return json_answer(200, queue_row(view, self._queues.store.now_ms(), pollers))

    @inlineCallbacks
    def _patch(self, name: bytes, ask: Ask) -> Any:
        options(ask.query, {})
        if len(ask.body) > MAX_BUILT:
            raise BadBody(f"The rules of a queue are over the limit of {MAX_BUILT} bytes.")
        check_json(ask.body)
        changes = load(ask.body)
        if not isinstance(changes, dict):
            raise BadBody("The body is a JSON object of the rules to change.")
        yield self._steering.set_policy(name, changes)
        return (yield after(True, self._queue(name, b"")))

    @inlineCallbacks
    def _purge(self, name: bytes, query: bytes) -> Any:
        options(query, {})
        count = yield self._steering.purge(name)
        return _bulk_answer(count, 0)

    @inlineCallbacks
    def _retry(self, name: bytes, query: bytes) -> Any:
        said = options(
            query, {"state": one_of("dead"), "id": text(1, 100), "spread": seconds(0, 86_400), **_WHICH}
        )
        which, dry_run, spread = _which(said), said.get("dry_run", False), said.get("spread", 0)
        if "id" in said:
            done = yield self._steering.retry_one(name, said["id"].encode(), which, spread, dry_run)
            return _bulk_answer(int(done), int(not done))
        count, skipped = yield self._steering.retry_all(
            name, which, said.get("limit", NO_LIMIT), spread, dry_run
        )
        return _bulk_answer(count, skipped)

    @inlineCallbacks
    def _delete(self, name: bytes, query: bytes) -> Any:
        said = options(query, {"state": one_of("ready", "delayed", "dead", "done"), **_WHICH})
        if "state" not in said:
            raise BadOption("The option 'state' is missing: ready, delayed, dead or done.")
        if "reason" in said and said["state"] != "dead":
            raise BadOption("The option 'reason' is for the dead: other tasks have none.")
        count, skipped = yield self._steering.delete(
            name, said["state"], _which(said), said.get("limit", NO_LIMIT), said.get("dry_run", False)
        )
        return _bulk_answer(count, skipped)

    @inlineCallbacks
    def _pause(self, name: bytes, query: bytes) -> Any:
        said = options(query, {"seconds": seconds(0, asked.YEAR)})
        yield self._steering.pause(name, said.get("seconds"))
        return (yield after(True, self._queue(name, b"")))

    @inlineCallbacks
    def _move(self, name: bytes, query: bytes) -> Any:
        said = options(query, {"to": text(1, 255), "state": one_of("ready", "delayed", "dead")})
        if "to" not in said:
            raise BadOption("The option 'to' is missing: the queue that the tasks move to.")
        moved, skipped = yield self._steering.move(name, said["to"].encode(), said.get("state", "ready"))
        return _bulk_answer(moved, skipped)

    # Tasks

    @inlineCallbacks
    def _tasks(self, name: bytes, query: bytes) -> Any:
        said = options(
            query,
            {
                "state": one_of(*COUNTED),
                "cursor": text(1, 400),
                "limit": whole(1, MOST_A_PAGE),
                "search": text(0, 255),
            },
        )
        walk = self._looking.tasks(
            name, said.get("state", "ready"), said.get("cursor", ""), said.get("search", "").encode()
        )
        page = Page(said.get("limit", PAGE))
        while not page.is_full:
            view = yield walk.head()
            if view is None or not page.takes(shortened(task_row(view), view)):
                break
            walk.take()
        return page.answer(b"tasks", walk.cursor)

    @inlineCallbacks
    def _task(self, name: bytes, task_id: bytes, query: bytes) -> Any:
        wait = min(options(query, {"wait": asked.wait_length}).get("wait", 0.0), self._max_wait)
        if wait:
            ended = self._endings.wait(name, task_id, wait)
            try:
                reply = yield self._queues.watch(name, task_id)
                if reply not in ("done", "dead", None):
                    name = (yield ended).queue
            finally:
                ended.addErrback(lambda _: None)
                ended.cancel()
        view = yield self._looking.task(name, task_id)
        return json_answer(200, task_row(view))

    @inlineCallbacks
    def _cancel(self, name: bytes, task_id: bytes, query: bytes) -> Any:
        options(query, {})
        how = yield self._steering.cancel(name, task_id)
        return json_answer(200, {"success": True, "how": how})

    @inlineCallbacks
    def _run(self, name: bytes, task_id: bytes, query: bytes) -> Any:
        options(query, {})
        yield self._steering.run(name, task_id)
        return json_answer(200, {"success": True, "state": "ready"})

    @inlineCallbacks
    def _why(self, name: bytes, task_id: bytes, query: bytes) -> Any:
        options(query, {})
        view = yield self._looking.task(name, task_id)
        queue = yield self._looking.queue(name)
        position = (yield self._looking.position(view)) if view.state == "ready" else None
        pollers = yield self._queues.pollers()
        silent = yield self._queues.silent_ms(name)
        rate = queue.policy.get("rate")
        spent = rate is not None and (yield self._looking.rate_is_spent(name, rate))
        reasons = why(view, queue, position, pollers.get(name, 0), silent, self._queues.store.now_ms(), spent)
        answer = {
            "id": task_id,
            "state": view.state,
            "sentence": " ".join(reason["text"] for reason in reasons),
            "reasons": reasons,
        }
        return json_answer(200, answer)

    # Schedules

    @inlineCallbacks
    def schedules(self, query: bytes) -> Any:
        """The schedules by name, a page at a time."""
        said = options(query, {"cursor": text(1, 800), "limit": whole(1, MOST_A_PAGE)})
        limit = said.get("limit", PAGE)
        names = yield self._schedules.names(asked.unquoted(said.get("cursor", "")), limit + 1)
        page, last = Page(limit), b""
        for name in names:
            try:
                known = yield self._schedules.get(name)
            except NotFound:
                # It was dropped since.
                continue
            if not page.takes(schedule_row(name.decode(), known, SHOWN_BYTES)):
                break
            last = name
        return page.answer(b"schedules", asked.quoted(last) if page.ended_early else None)

    def schedule_path(self, ask: Ask) -> Any:
        """One schedule."""
        verbs: dict[bytes, Callable[[bytes, Ask], Any]]
        match ask.segments[3:]:
            case []:
                verbs = {b"GET": self._schedule, b"PUT": self._put_schedule, b"DELETE": self._drop_schedule}
            case [b"run"]:
                verbs = {b"POST": self._run_schedule}
            case _:
                raise NotFound("There is nothing at this path.")
        name = name_from(ask.segments[2])
        options(ask.query, {})
        verb = verbs.get(_method(ask))
        if verb is None:
            raise WrongMethod(tuple(verbs))
        return verb(name, ask)

    @inlineCallbacks
    def _schedule(self, name: bytes, ask: Ask) -> Any:
        known = yield self._schedules.get(name)
        return json_answer(200, schedule_row(name.decode(), known))

    @inlineCallbacks
    def _put_schedule(self, name: bytes, ask: Ask) -> Any:
        said = asked.schedule(ask.body)
        given = {} if said.get("options") is None else said["options"]
        said["options"], said["packed"] = asked.schedule_options(given)
        known = yield self._schedules.put(name, said)
        return json_answer(200, schedule_row(name.decode(), known))

    @inlineCallbacks
    def _drop_schedule(self, name: bytes, ask: Ask) -> Any:
        yield self._schedules.drop(name)
        return json_answer(200, {"success": True})

    @inlineCallbacks
    def _run_schedule(self, name: bytes, ask: Ask) -> Any:
        at_once(asked.no_members(ask.body, "A run pushes the task of the schedule; it has no body."))
        pushed = yield self._schedules.run(name)
        duplicate = {"duplicate": True} if pushed.duplicate else {}
        return json_answer(200, {"success": True, "id": pushed.id, **duplicate})

"""Looking and steering over HTTP: queues, their tasks, their rules, and schedules. Every answer is JSON."""

from __future__ import annotations

import bisect
import heapq
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from twisted.internet.defer import inlineCallbacks

from registry.errors import BadBody, BadOption, NotFound, RegistryError
from registry.http import asked
from registry.http.asked import Header
from registry.http.json_check import check_json
from registry.http.verbs import result_of
from registry.http.wire import (
    ExactFloat,
    Raw,
    cut_bytes,
    dumps,
    json_answer,
    name_from,
    one_of,
    options,
    text,
    whole,
)
from registry.queue.endings import Endings
from registry.queue.looking import FAR_ENOUGH, Looking, QueueView
from registry.queue.names import is_foreign, pushed_at_ms
from registry.queue.pages import SHOWN_BYTES, TaskView
from registry.queue.queues import Queues
from registry.queue.reply import after
from registry.queue.schedules import Schedules
from registry.queue.steering import Steering

# Of rows; some room is left for what is around them.
PAGE, MOST_A_PAGE, MOST_BYTES = 100, 1000, (8 << 20) - 1024
# Later than any moment: where there is no oldest task.
NEVER_MS = 10**15
COUNTED = ("ready", "delayed", "leased", "dead", "done")


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


_yes_no = one_of("1", "0", "true", "false")


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
        names = yield self._looking.names(needle)
        pollers = yield self._queues.pollers()
        names.update(name for name in pollers if needle in name)
        sort, limit, now = said.get("sort", "name"), said.get("limit", PAGE), self._queues.store.now_ms()
        behind = _place(sort, said["cursor"]) if "cursor" in said else None
        rows: list[tuple[Any, dict[str, Any]]] = []

        def keep(row: dict[str, Any]) -> None:
            place = _value(sort, row, now), row["name"].encode()
            if behind is None or place > behind:
                # The first of them are enough, and one that tells that there are more.
                bisect.insort(rows, (place, row), key=lambda one: one[0])
                del rows[limit + 1 :]

        if "family" in said:
            families: dict[str, dict[str, Any]] = {}
            yield self._looking.each_count(
                sorted(names), lambda view: fold(families, queue_row(view, now, pollers))
            )
            for row in families.values():
                keep(row)
        else:
            if sort == "name":
                names = heapq.nsmallest(
                    limit + 1, (name for name in names if behind is None or name > behind[1])
                )
            yield self._looking.each_count(sorted(names), lambda view: keep(queue_row(view, now, pollers)))
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
            (b"tasks",): (b"GET",),
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
        check_json(ask.body)
        changes = json.loads(ask.body, parse_int=asked.number, parse_float=ExactFloat.read)
        if not isinstance(changes, dict):
            raise BadBody("The body is a JSON object of the rules to change.")
        yield self._steering.set_policy(name, changes)
        return (yield after(True, self._queue(name, b"")))

    @inlineCallbacks
    def _purge(self, name: bytes, query: bytes) -> Any:
        options(query, {})
        count = yield self._steering.purge(name)
        return json_answer(200, {"success": True, "count": count, "skipped": 0})

    @inlineCallbacks
    def _retry(self, name: bytes, query: bytes) -> Any:
        said = options(
            query, {"state": one_of("dead"), "id": text(1, 100), "reason": text(1, 100), "dry_run": _yes_no}
        )
        dry_run = said.get("dry_run") in ("1", "true")
        if "id" not in said:
            count, skipped = yield self._steering.retry_all(name, said.get("reason"), dry_run)
            return json_answer(200, {"success": True, "count": count, "skipped": skipped})
        done = yield self._steering.retry_one(name, said["id"].encode(), said.get("reason"), dry_run)
        return json_answer(200, {"success": True, "count": int(done), "skipped": int(not done)})

    @inlineCallbacks
    def _move(self, name: bytes, query: bytes) -> Any:
        said = options(query, {"to": text(1, 255), "state": one_of("ready", "delayed", "dead")})
        if "to" not in said:
            raise BadOption("The option 'to' is missing: the queue that the tasks move to.")
        moved, skipped = yield self._steering.move(name, said["to"].encode(), said.get("state", "ready"))
        return json_answer(200, {"success": True, "count": moved, "skipped": skipped})

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
        return json_answer(200, {"tasks": page.rows, "cursor": walk.cursor})

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
        return json_answer(
            200, {"schedules": page.rows, "cursor": asked.quoted(last) if page.ended_early else None}
        )

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
        fields = ("cron", "timezone", "queue", "task", "options", "missed", "paused")
        said = asked.json_object(ask.body, fields)
        said["task"] = asked.member(ask.body, "task")
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
        if asked.json_object(ask.body, None):
            raise BadOption("A run pushes the task of the schedule; it has no body.")
        pushed = yield self._schedules.run(name)
        duplicate = {"duplicate": True} if pushed.duplicate else {}
        return json_answer(200, {"success": True, "id": pushed.id, **duplicate})


class Page:
    """The rows of a list, encoded as they come: at most so many, and at most `MOST_BYTES` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rows: list[bytes] = []
        self._size = 0
        self.ended_early = False

    def takes(self, row: dict[str, Any]) -> bool:
        """Whether there was room for this row. A page has one at least."""
        encoded = dumps(row)
        self._size += len(encoded) + 1
        if self._rows and (len(self._rows) == self._limit or self._size > MOST_BYTES):
            self.ended_early = True
            return False
        self._rows.append(encoded)
        return True

    @property
    def is_full(self) -> bool:
        return self.ended_early or len(self._rows) == self._limit

    @property
    def rows(self) -> Raw:
        return Raw(b"[" + b",".join(self._rows) + b"]")


def at(moment_ms: float | None) -> str | None:
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
        "policy": view.policy,
    }


def fold(families: dict[str, dict[str, Any]], row: dict[str, Any]) -> None:
    """Add a queue to the summed row ``family:*`` of its family; one without a colon stays as it is."""
    family, colon, _ = row["name"].partition(":")
    name = f"{family}:*" if colon else row["name"]
    known = families.get(name)
    if known is None:
        families[name] = {**row, "name": name, "policy": {}, "queues": 1} if colon else row
        return
    for state in (*COUNTED, "pollers"):
        known[state] += row[state]
    known["queues"] = known.get("queues", 1) + 1
    ages = [age for age in (known["oldest_age"], row["oldest_age"]) if age is not None]
    known["oldest_age"] = max(ages) if ages else None


def _value(sort: str, row: dict[str, Any], now_ms: int) -> int:
    """What a list of queues is sorted by, before the name. A moment, as an age would be another one on the next page."""
    if sort == "oldest":
        return NEVER_MS if row["oldest_age"] is None else round(now_ms - row["oldest_age"] * 1000)
    return 0 if sort == "name" else -row[sort]


def _place(sort: str, cursor: str) -> tuple[int, bytes]:
    """The row behind which a page begins, from what the page before gave as cursor."""
    if sort == "name":
        return 0, asked.unquoted(cursor)
    found = re.fullmatch(r"(-?\d{1,17})~(.+)", cursor)
    if found is None:
        raise BadOption("The option 'cursor' is what the page before gave as cursor.")
    return int(found[1]), asked.unquoted(found[2])


def shortened(row: dict[str, Any], view: TaskView) -> dict[str, Any]:
    """A task as a list shows it: what is long is cut, and ``truncated`` says so."""
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
    """The first bytes as text; a character that the cut went through is left out."""
    return cut_bytes(bytes(value), SHOWN_BYTES).decode("utf-8", "replace")


def task_row(view: TaskView) -> dict[str, Any]:
    """A task as the API shows it."""
    known = view.known
    row: dict[str, Any] = {
        "id": view.id,
        "queue": view.queue,
        "state": view.state,
        "attempt": known.get("a", 0),
        "priority": known.get("p", 0),
        "pushed_at": at(pushed_at_ms(view.id)) if view.id else None,
        # What another program pushed may be no JSON, and would make none of the whole answer: it is shown as text.
        "task": Raw(view.payload) if len(view.payload) == view.length and _is_json(view) else view.payload,
        "history": [
            {
                "attempt": h.get("a", 0),
                "worker": h.get("w"),
                "leased_at": at(h.get("f")),
                "ended_at": at(h.get("t")),
                "reason": h.get("r"),
                "error": h.get("e"),
            }
            for h in known.get("h") or []
        ],
        "progress": known.get("pr"),
        "result": result_of(known),
    }
    for name, short in (("key", "k"), ("message", "pm"), ("reason", "y"), ("traceparent", "tp")):
        if known.get(short) is not None:
            row[name] = known[short]
    for name, short in (("due_at", "du"), ("expires_at", "x"), ("ended_at", "z")):
        if known.get(short) is not None:
            row[name] = at(known[short])
    if known.get("c"):
        row["cancelled"] = True
    holder = known.get("o") or {}
    if view.state == "leased" and holder:
        row.update(
            worker=holder.get("w"), leased_at=at(holder.get("f")), lease_ends_at=at(view.lease_ends_ms)
        )
    return row


def _is_json(view: TaskView) -> bool:
    return (view.id is not None and not is_foreign(view.id)) or asked.is_json(view.payload)


def schedule_row(name: str, known: dict[str, Any], shown: int | None = None) -> dict[str, Any]:
    """A schedule as the API shows it; a list cuts what is longer than ``shown`` bytes."""
    row = {"name": name, **known, "task": Raw(known["task"])}
    row["next_at"], row["last_at"] = at(row.pop("next_ms")), at(row.pop("last_ms"))
    if shown is not None and len(known["task"]) > shown:
        row.update(task=_beginning(row["task"]), truncated=True)
    return row


def why(
    view: TaskView,
    queue: QueueView,
    position: int | None,
    pollers: int,
    silent_ms: int | None,
    now_ms: int,
    rate_is_spent: bool = False,
) -> list[dict[str, Any]]:
    """Why a task is not running: the gates that are shut for it, each with its code, a sentence and its numbers."""
    rules, known = queue.policy, view.known
    reasons: list[dict[str, Any]] = []

    def say(code: str, sentence: str, **numbers: Any) -> None:
        reasons.append({"code": code, "text": sentence, **numbers})

    if view.state == "leased":
        holder = (known.get("o") or {}).get("w")
        say("leased", f"It is being worked on{' by ' + holder if holder else ''}.", worker=holder)
        return reasons
    if view.state == "dead":
        say("dead", f"It is dead: {known.get('y', 'failed')}.", reason=known.get("y"))
        return reasons
    if view.state == "done":
        say("done", "It is done.")
        return reasons
    if rules.get("paused"):
        say("paused", "The queue is paused.")
    if view.state == "delayed":
        left = max(0.0, (known.get("du", now_ms) - now_ms) / 1000)
        say("delayed", f"It is due in {left:.0f} s.", seconds=left, due_at=at(known.get("du")))
    if rules.get("concurrency") and queue.leased >= rules["concurrency"]:
        limit = rules["concurrency"]
        say("concurrency_limited", f"The queue is at its limit: {queue.leased} of {limit} run.", limit=limit)
    if rate_is_spent:
        say("rate_limited", f"The queue starts at most {rules['rate']:g} tasks a second.", rate=rules["rate"])
    if not pollers:
        if silent_ms is not None:
            quiet = silent_ms / 1000
            sentence = f"Nobody has polled this queue for {quiet:.0f} s."
        else:
            # At least since the push, as far as this process knows.
            pushed = pushed_at_ms(view.id) if view.id else None
            quiet = max(0.0, (now_ms - (pushed or now_ms)) / 1000)
            sentence = "Nobody is known to have polled this queue since the registry started."
        say("nobody_polls", sentence, seconds=round(quiet, 3))
    if view.state == "ready":
        if position == 0:
            say("next", "It is the next of its queue.")
        elif position is not None:
            say("position", f"{position} tasks go before it.", position=position)
        else:
            say("position", f"More than {FAR_ENOUGH} tasks go before it.", position=None)
    return reasons

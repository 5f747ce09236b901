"""Schedules over HTTP. Every answer is JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.errors import Forbidden, NotFound
from registry.http import options
from registry.http.audit import Trail
from registry.http.codec import json_answer, text, whole
from registry.http.request import Options, Request
from registry.http.rows import Page, schedule_row, without_payloads
from registry.http.trace_context import trace_of
from registry.http.turns import Turns, at_once
from registry.queue.audit import Action
from registry.queue.pages import SHOWN_BYTES
from registry.queue.schedules import Schedules

PAGE, MAX_PER_PAGE = 100, 1000
SCHEDULES_OPTIONS: Options = {"cursor": text(1, 800), "limit": whole(1, MAX_PER_PAGE)}


def check_fill(request: Request, queue: Any) -> None:
    """Refuse a caller whose token names queues to push into, and not this one; raises `Forbidden`.

    An invalid name is reported later.
    """
    access = request.caller.access
    if isinstance(queue, str) and not access.may_fill(queue.encode("utf-8", "replace")):
        raise Forbidden(f"The token {access.name!r} lacks the right 'push' for the queue {queue!r}.")


def _schedule(
    request: Request, name: bytes, record: dict[str, Any], shown: int | None = None
) -> dict[str, Any]:
    row = schedule_row(name.decode(), record, shown)
    return row if request.caller.access.reads_payloads else without_payloads(row)


class ScheduleRequests:
    """The requests about schedules. Every method takes a `Request`."""

    def __init__(self, schedules: Schedules, trail: Trail, turns: Turns) -> None:
        self._schedules = schedules
        self._turns = turns
        self._trail = trail

    @inlineCallbacks
    def list(self, request: Request) -> Any:
        """The schedules by name, a page at a time."""
        given = request.options
        limit = given.get("limit", PAGE)
        names = yield self._schedules.names(options.decode_cursor(given.get("cursor", "")), limit + 1)
        page, last = Page(limit), b""
        for name in names:
            try:
                record = yield self._schedules.get(name)
            except NotFound:
                # It was dropped meanwhile.
                continue
            if not page.add(_schedule(request, name, record, SHOWN_BYTES)):
                break
            last = name
        return page.answer(b"schedules", options.encode_cursor(last) if page.ended_early else None)

    @inlineCallbacks
    def get(self, request: Request) -> Any:
        """A schedule, and its next tick."""
        name = request.name
        record = yield self._schedules.get(name)
        return json_answer(200, _schedule(request, name, record))

    @inlineCallbacks
    def put(self, request: Request) -> Any:
        """Create or replace a schedule."""
        name, fields = request.name, (yield self._turns.run(options.schedule(request.body)))
        given = {} if fields.get("options") is None else fields["options"]
        fields["options"], fields["push"] = options.schedule_options(given)
        check_fill(request, fields.get("queue"))

        @inlineCallbacks
        def act(action: Action) -> Any:
            record = yield self._schedules.put(name, fields, action.has_changed)
            action.line.queue = record["queue"]
            action.line.options = {what: record[what] for what in ("cron", "timezone", "missed", "paused")}
            return json_answer(200, _schedule(request, name, record))

        return (yield self._record(request, "schedule_put", act))

    def _record(self, request: Request, name: str, act: Callable[[Action], Any]) -> Any:
        return self._trail.record(request, name, act, schedule=request.name.decode())

    def drop(self, request: Request) -> Any:
        """Delete a schedule; the tasks it pushed stay."""

        @inlineCallbacks
        def act(action: Action) -> Any:
            yield self._schedules.drop(request.name)
            action.has_changed()
            return json_answer(200, {"success": True})

        return self._record(request, "schedule_delete", act)

    @inlineCallbacks
    def run(self, request: Request) -> Any:
        """Push the task of a schedule now."""
        at_once(
            options.no_members(request.body, "This request takes no body: it pushes the schedule's own task.")
        )
        record = yield self._schedules.get(request.name)
        check_fill(request, record["queue"])

        @inlineCallbacks
        def act(action: Action) -> Any:
            pushed = yield self._schedules.run(request.name, *trace_of(request.header))
            action.has_changed()
            action.line.task = pushed.id.decode()
            duplicate = {"duplicate": True} if pushed.duplicate else {}
            return json_answer(200, {"success": True, "id": pushed.id, **duplicate})

        return (yield self._record(request, "schedule_run", act))

"""The audit over HTTP: recording what a request changes, listing the lines, undoing an action."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.errors import NotFound
from registry.http.codec import json_answer, moment, one_of, text, whole
from registry.http.request import Options, Request
from registry.http.rows import Page, rfc3339
from registry.queue.audit import ACTIONS, Action, Audit, Line, Seen

PAGE, MAX_PER_PAGE = 100, 1000
AUDIT_OPTIONS: Options = {
    "cursor": whole(1, 10**12 - 1),
    "limit": whole(1, MAX_PER_PAGE),
    "queue": text(1, 255),
    "name": text(0, 255),
    "action": one_of(*ACTIONS),
    "since": moment,
}
# The option of an action that says whether what it deletes is set aside.
UNDO: Options = {"undo": one_of("yes", "no")}


class Trail:
    """Records the actions of operators, and answers requests about them."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit

    @inlineCallbacks
    def record(
        self,
        request: Request,
        name: str,
        act: Callable[[Action], Any],
        *,
        can_undo: bool = False,
        task: str | None = None,
        schedule: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> Any:
        """Carry out an action of this name; ``act`` returns a Deferred of its answer, which then names the line.

        ``can_undo``: it can be undone, unless the request has ``undo=no``. ``options``: in place of those of the request.
        """
        given = _shown_options(request.options) if options is None else options
        caller = request.caller
        line = Line(
            name,
            name=caller.name,
            address=caller.address,
            request_id=(request.request_id or b"").decode(),
            queue=request.name.decode() if request.name and schedule is None else None,
            task=task,
            schedule=schedule,
            options=given,
            can_undo=can_undo and request.options.get("undo") != "no",
        )
        action, answer = yield self._audit.record(line, act)
        if action.line.done:
            answer.headers += ((b"Registry-Audit", b"%d" % action.serial),)
        return answer

    @inlineCallbacks
    def lines(self, request: Request) -> Any:
        """The lines that match the options, newest first, a page at a time."""
        given = request.options
        since, payloads = given.get("since"), request.caller.access.reads_payloads
        page = Page(given.get("limit", PAGE))
        cursor = yield self._audit.read(
            given.get("cursor"),
            None if since is None else since * 1000,
            lambda seen: _matches(seen.line, given),
            lambda seen: page.add(row_of(seen, payloads)),
        )
        return page.answer(b"audit", None if cursor is None else str(cursor))

    @inlineCallbacks
    def undo(self, request: Request) -> Any:
        """Bring back what an action deleted."""
        number = request.segments[0]
        if not number.isdigit() or len(number) > 15:
            raise NotFound("The audit has no line with this id.")
        seen: Seen = yield self._audit.get(int(number))
        self._audit.check_undo(seen)

        @inlineCallbacks
        def act(action: Action) -> Any:
            action.line.queue = seen.line.queue
            reasons = yield self._audit.undo(seen, action)
            done = action.progress
            return json_answer(
                200, {"success": True, "count": done.count, "skipped": done.skipped, "reasons": reasons}
            )

        about = {"id": str(seen.serial), "action": seen.line.action}
        return (yield self.record(request, "undo", act, task=seen.line.task, options=about))


def _matches(line: Line, given: dict[str, Any]) -> bool:
    if "action" in given and line.action != given["action"]:
        return False
    if "name" in given and line.name != given["name"]:
        return False
    return "queue" not in given or given["queue"] in (line.queue, line.options.get("to"))


def _shown_options(given: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in given.items() if name not in ("undo", "dry_run")}
    if "before" in shown:
        shown["before"] = rfc3339(shown["before"] * 1000)
    return shown


def row_of(seen: Seen, payloads: bool) -> dict[str, Any]:
    """A line as the API shows it; without ``payloads`` the option ``error`` is hidden, because it may quote an error."""
    line, shown = seen.line, seen.line.options
    if not payloads and "error" in shown:
        shown = {**shown, "error": None}
    return {
        "id": str(seen.serial),
        "at": rfc3339(seen.at),
        "action": line.action,
        "outcome": "done" if line.done else "unfinished",
        "name": line.name or None,
        "address": line.address,
        "request_id": line.request_id,
        "queue": line.queue,
        "task": line.task,
        "schedule": line.schedule,
        "options": shown,
        "count": line.count,
        "skipped": line.skipped,
        "undo": _undo_row(seen),
    }


def _undo_row(seen: Seen) -> dict[str, Any] | None:
    line = seen.line
    if seen.undo_until is None or (line.done and not line.aside):
        return None
    return {
        "until": rfc3339(seen.undo_until),
        "tasks": line.aside,
        "bytes": line.aside_bytes,
        "undone": seen.undone,
        "undone_at": rfc3339(seen.undone_at) if seen.undone_at else None,
    }

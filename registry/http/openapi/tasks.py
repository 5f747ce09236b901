"""The OpenAPI document of the requests about tasks."""

from __future__ import annotations

from typing import Any, Final

from registry.http.openapi.declare import ID, QUEUE, TIME, Example, Operation, Reply, record, ref
from registry.http.openapi.queues import CHANGES, COUNTED, CURSOR, FILTER, LIMIT, SHOWN, STATE, UNDO
from registry.http.openapi.schemas import STATE as STATE_SCHEMA
from registry.http.openapi.schemas import TEXT, TRUE, array, page

TAG: Final = "Tasks"
_QUEUE: Final = {"queue": QUEUE}
_PATH: Final = {"queue": QUEUE, "id": ID}
_TASK: Final[dict[str, Any]] = {
    "id": ID,
    "queue": QUEUE,
    "state": "ready",
    "attempt": 0,
    "priority": 0,
    "pushed_at": TIME,
    "task": {"to": "ann@example.org"},
    "history": [],
    "progress": None,
    "result": None,
}
_HOW: Final = {"type": "string", "enum": ["cancelled", "marked", "removed"]}

OPERATIONS: Final = {
    "tasks": Operation(
        tag=TAG,
        summary="List tasks",
        text="In a list, a payload or a result over 64 KiB is cut, and a long history too: `truncated`. A search reads a bounded "
        "number of tasks, so a page may be empty and still have a cursor.",
        options={
            "state": STATE,
            "cursor": CURSOR,
            "limit": LIMIT,
            "search": "Only tasks whose payload, id, reason or error contains this text.",
            **SHOWN,
        },
        defaults={"state": "ready", "limit": 100},
        answers={200: Reply(text="A page of tasks.", schema=page("tasks", ref("Task")))},
        errors=("wrong_type",),
        examples=(Example(path=_QUEUE, answer={"tasks": [_TASK], "cursor": None}, after=("push",)),),
    ),
    "delete": Operation(
        tag=TAG,
        summary="Delete many tasks",
        text="Together with their history. Can be undone for ten minutes.",
        options={"state": "The state of the tasks to delete.", **FILTER},
        required=("state",),
        defaults={"dry_run": "0", "undo": "yes"},
        answers={200: COUNTED},
        errors=CHANGES,
        examples=(
            Example(
                path=_QUEUE,
                query={"state": "ready"},
                answer={"success": True, "count": 1, "skipped": 0},
                after=("push",),
            ),
        ),
    ),
    "task": Operation(
        tag=TAG,
        summary="Look at a task",
        text="Complete, with its result if it is done. The right to push into the queue is enough.",
        options={
            "wait": "Wait until the task has ended, for this many seconds at most and never longer than `MAX_WAIT`."
        },
        defaults={"wait": 0},
        answers={200: Reply(text="The task.", schema=ref("Task"))},
        errors=("not_found", "wrong_type"),
        examples=(Example(path=_PATH, answer=_TASK, after=("push",)),),
    ),
    "cancel": Operation(
        tag=TAG,
        summary="Cancel a task",
        text="A waiting task is dead then. A leased one is marked: its worker's next `extendTask` says so. One that has ended is "
        "deleted. Can be undone for ten minutes.",
        options={"undo": UNDO},
        defaults={"undo": "yes"},
        answers={
            200: Reply(
                text="What was done.",
                schema=record({"success": TRUE, "how": _HOW}),
                headers=("Registry-Audit",),
            )
        },
        errors=("not_found", *CHANGES),
        examples=(Example(path=_PATH, answer={"success": True, "how": "cancelled"}, after=("push",)),),
    ),
    "why": Operation(
        tag=TAG,
        summary="Why a task is not running",
        text="The right to push into the queue is enough.",
        answers={
            200: Reply(
                text="The reasons: `next`, `position`, `paused`, `rate_limited`, `concurrency_limited`, `delayed`, `leased`, "
                "`nobody_polls`, `dead` or `done`, each with its numbers.",
                schema=record(
                    {"id": TEXT, "state": STATE_SCHEMA, "sentence": TEXT, "reasons": array(ref("Reason"))}
                ),
            )
        },
        errors=("not_found", "wrong_type"),
        examples=(
            Example(
                path=_PATH,
                answer={
                    "id": ID,
                    "state": "ready",
                    "sentence": "No worker is known to have polled this queue since the registry started. It is next in its queue.",
                    "reasons": [
                        {
                            "code": "nobody_polls",
                            "text": "No worker is known to have polled this queue since the registry started.",
                            "seconds": 0.514,
                        },
                        {"code": "next", "text": "It is next in its queue."},
                    ],
                },
                after=("push",),
            ),
        ),
    ),
    "run": Operation(
        tag=TAG,
        summary="Run a delayed task now",
        answers={
            200: Reply(
                text="The task is ready.",
                schema=record({"success": TRUE, "state": STATE_SCHEMA}),
                headers=("Registry-Audit",),
            )
        },
        errors=("not_found", "not_delayed", *CHANGES),
        examples=(
            Example(
                path=_PATH,
                answer={"success": True, "state": "ready"},
                after=("push", "pop", "fail"),
            ),
        ),
    ),
}

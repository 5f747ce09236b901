"""The OpenAPI document of the requests about all queues together: dead tasks, workers, schedules, the audit."""

from __future__ import annotations

from typing import Any, Final

from registry.http.charts import DEFAULT_RANGE
from registry.http.openapi.declare import (
    ID,
    JSON,
    QUEUE,
    SCHEDULE,
    TIME,
    WORKER,
    Body,
    Example,
    Operation,
    Reply,
    body_of,
    record,
    ref,
)
from registry.http.openapi.queues import CURSOR, LIMIT
from registry.http.openapi.schemas import COUNT, FLAG, MOMENT, TASK_ID, TEXT, TRUE, array, or_null, page
from registry.queue.orders import ORDERS
from registry.queue.stats import COUNTED, RANGES

_ORDER: Final = {"type": "string", "enum": list(ORDERS)}
_BODY: Final = ("bad_json", "too_deep")
_PATH: Final = {"name": SCHEDULE}
_GIVEN: Final = {
    "cron": "30 3 * * *",
    "timezone": "Europe/Vienna",
    "queue": QUEUE,
    "task": {"kind": "daily"},
    "options": {"attempts": 3},
    "missed": "once",
}
_SCHEDULE: Final[dict[str, Any]] = {
    "name": SCHEDULE,
    **_GIVEN,
    "paused": False,
    "missed_count": 0,
    "next_at": TIME,
    "last_at": None,
}
_GROUP: Final = {
    "reason": "cancelled",
    "type": "cancelled",
    "message": None,
    "count": 1,
    "queues": [QUEUE],
    "workers": [],
    "first": TIME,
    "last": TIME,
    "hours": [0] * 23 + [1],
    "recent": 1,
    "points_to": "unclear",
    "worker": None,
    "example": {"queue": QUEUE, "id": ID},
}
_WORKING: Final = {
    "worker": WORKER,
    "address": "127.0.0.1",
    "user_agent": None,
    "queues": [QUEUE],
    "since": TIME,
    "last_seen": TIME,
    "parked": 0,
    "shared_name": False,
    "version": None,
    "done": 7,
    "failed": 0,
    "failing": False,
    "verdict": None,
    "lease_count": 1,
    "leases": [
        {
            "queue": QUEUE,
            "id": ID,
            "attempt": 1,
            "leased_at": TIME,
            "lease_ends_at": TIME,
            "progress": None,
        }
    ],
    "order": "run",
    "order_until": None,
}
_ENTRY: Final = {
    "id": "12",
    "at": TIME,
    "action": "purge",
    "outcome": "done",
    "name": None,
    "address": "127.0.0.1",
    "request_id": "5b0f1c3a9d2e4f60",
    "queue": QUEUE,
    "task": None,
    "schedule": None,
    "options": {},
    "count": 1,
    "skipped": 0,
    "undo": {"until": TIME, "tasks": 1, "bytes": 56, "undone": 0, "undone_at": None},
}


_POINT: Final = {
    "at": TIME,
    "pushed": 20,
    "started": 19,
    "done": 18,
    "failed": 1,
    "dead": 0,
    "wait_p50": 0.004,
    "wait_p99": 0.025,
    "run_p50": 0.5,
    "run_p99": 2.41,
    "oldest_age": 0.3,
    "ready": 1,
}
_STATS: Final = record(
    {
        "range": {"type": "string", "enum": list(RANGES)},
        "step": {"type": "integer", "minimum": 1},
        "queue": or_null(TEXT),
        "counted_as": or_null(TEXT),
        "points": array(ref("Point")),
        "totals": record(dict.fromkeys(COUNTED, or_null(COUNT))),
        "marks": array(record({"at": MOMENT, "text": TEXT})),
        "final_until": MOMENT,
    }
)


def _survey(name: str, rows: Any, **more: Any) -> dict[str, Any]:
    return record({name: array(rows), **more, "left_out": COUNT, "complete": FLAG, "at": MOMENT})


OPERATIONS: Final = {
    "dead": Operation(
        tag="Dead tasks",
        summary="Why tasks are dead",
        text="The dead tasks in groups of one reason, and for failures of one type and message, numbers and quoted parts masked. "
        "`points_to`: whether a group points to one worker or to the tasks. `complete` is false if not all tasks were read.",
        options={"queue": "Only this queue.", "limit": "The largest number of groups."},
        defaults={"limit": 100},
        answers={
            200: Reply(
                text="The groups, the largest first; `left_out` more are not shown.",
                schema=_survey("groups", ref("DeadGroup"), count=COUNT),
            )
        },
        errors=("bad_name", "wrong_type"),
        examples=(
            Example(
                query={"queue": QUEUE},
                answer={"groups": [_GROUP], "count": 1, "left_out": 0, "complete": True, "at": TIME},
                after=("push", "cancel"),
            ),
        ),
    ),
    "stats": Operation(
        tag="Stats",
        summary="What happened when",
        text="Points in time, each of `step` seconds, the last one not over yet. A point of nulls is a gap: no daemon ran. "
        "Queues whose names have a colon are counted with their family; `counted_as` says so.",
        options={
            "range": "How far back the points go.",
            "queue": "Only this queue, or a family such as `crawl:*`.",
        },
        defaults={"range": DEFAULT_RANGE},
        answers={
            200: Reply(text="The points, their sums, and when versions of workers came.", schema=_STATS)
        },
        errors=("bad_name",),
        examples=(
            Example(
                query={"range": "15m", "queue": QUEUE},
                answer={
                    "range": "15m",
                    "step": 10,
                    "queue": QUEUE,
                    "counted_as": QUEUE,
                    "points": [_POINT],
                    "totals": {"pushed": 20, "started": 19, "done": 18, "failed": 1, "dead": 0},
                    "marks": [{"at": TIME, "text": "mailer/2.4.1"}],
                    "final_until": TIME,
                },
                varies=True,
            ),
        ),
    ),
    "workers": Operation(
        tag="Workers",
        summary="List workers",
        text="Over all daemons, by name. A row with null has the leases of all workers without a name.",
        options={"limit": "The largest number of workers."},
        defaults={"limit": 1000},
        answers={
            200: Reply(
                text="The workers; `left_out` more are not shown.", schema=_survey("workers", ref("Worker"))
            )
        },
        examples=(
            Example(
                answer={"workers": [_WORKING], "left_out": 0, "complete": True, "at": TIME},
                after=("push", "pop"),
                varies=True,
            ),
        ),
    ),
    "order": Operation(
        tag="Workers",
        summary="Quiet or stop a worker",
        text="`quiet`: it should take nothing new, and go on polling. `stop`: it should end. `run` ends the other orders. "
        "The answers to the worker have the order in the header Registry-Worker.",
        body=Body(media={JSON: body_of({"order": _ORDER})}, text="The order."),
        answers={
            200: Reply(
                text="The order, and until when it stands.",
                schema=record({"success": TRUE, "worker": TEXT, "order": _ORDER, "until": or_null(MOMENT)}),
                headers=("Registry-Audit",),
            )
        },
        errors=(*_BODY, "bad_name", "redis_full"),
        examples=(
            Example(
                path={"worker": WORKER},
                body={"order": "run"},
                answer={"success": True, "worker": WORKER, "order": "run", "until": None},
            ),
        ),
    ),
    "schedules": Operation(
        tag="Schedules",
        summary="List schedules",
        text="By name. A task over 64 KiB is cut: `truncated`.",
        options={"cursor": CURSOR, "limit": LIMIT},
        defaults={"limit": 100},
        answers={200: Reply(text="A page of schedules.", schema=page("schedules", ref("Schedule")))},
        errors=("wrong_type",),
        examples=(
            Example(answer={"schedules": [_SCHEDULE], "cursor": None}, after=("put_schedule",), varies=True),
        ),
    ),
    "schedule": Operation(
        tag="Schedules",
        summary="Look at a schedule",
        answers={200: Reply(text="The schedule, with its next and its last tick.", schema=ref("Schedule"))},
        errors=("not_found", "wrong_type"),
        examples=(Example(path=_PATH, answer=_SCHEDULE, after=("put_schedule",)),),
    ),
    "put_schedule": Operation(
        tag="Schedules",
        summary="Create or replace a schedule",
        text="`cron` has five fields. `options` are those of a push, except `at`. `missed`: what happens to a tick that is more than "
        "a minute late. A PUT that changes nothing has no effect. A token that names queues to push into can only use these.",
        body=Body(media={JSON: ref("ScheduleBody")}, text="The schedule."),
        answers={200: Reply(text="The schedule.", schema=ref("Schedule"), headers=("Registry-Audit",))},
        errors=(*_BODY, "wrong_type", "queue_full", "redis_full"),
        examples=(Example(path=_PATH, body=_GIVEN, answer=_SCHEDULE),),
    ),
    "drop_schedule": Operation(
        tag="Schedules",
        summary="Delete a schedule",
        text="The tasks that it pushed stay.",
        answers={200: Reply(text="It is deleted.", schema=ref("Success"), headers=("Registry-Audit",))},
        errors=("not_found", "wrong_type"),
        examples=(Example(path=_PATH, answer={"success": True}, after=("put_schedule",)),),
    ),
    "run_schedule": Operation(
        tag="Schedules",
        summary="Push the task of a schedule now",
        text="This works for paused schedules too and does not change the next tick.",
        answers={
            200: Reply(
                text="The task is pushed; or, with `duplicate`, a task with the same `key` was there.",
                schema=record({"success": TRUE, "id": TASK_ID}, {"duplicate": TRUE}),
                headers=("Registry-Audit",),
            )
        },
        errors=(*_BODY, "not_found", "wrong_type", "queue_full", "redis_full"),
        examples=(Example(path=_PATH, answer={"success": True, "id": ID}, after=("put_schedule",)),),
    ),
    "audit": Operation(
        tag="Audit",
        summary="Who did what",
        text="Everything that an operator changed, newest first. A page reads a bounded number of entries, so it may be empty and "
        "still have a cursor.",
        options={
            "cursor": CURSOR,
            "limit": LIMIT,
            "queue": "Only entries about this queue.",
            "name": "Only entries of the token with this name; empty: without a token.",
            "action": "Only this action.",
            "since": "Only entries from this time on.",
        },
        defaults={"limit": 100},
        answers={200: Reply(text="A page of entries.", schema=page("audit", ref("AuditEntry")))},
        errors=("wrong_type",),
        examples=(
            Example(
                query={"queue": QUEUE},
                answer={"audit": [_ENTRY], "cursor": None},
                after=("push", "purge"),
            ),
        ),
    ),
    "undo": Operation(
        tag="Audit",
        summary="Undo a mistake",
        text="Purges, bulk deletions, retries and cancellations can be undone for ten minutes.",
        answers={
            200: Reply(
                text="How many tasks came back; `reasons` counts the others by why they did not.",
                schema=record(
                    {
                        "success": TRUE,
                        "count": COUNT,
                        "skipped": COUNT,
                        "reasons": {"type": "object", "additionalProperties": COUNT},
                    }
                ),
                headers=("Registry-Audit",),
            )
        },
        errors=("not_found", "already_undone", "undo_expired", "not_undoable", "wrong_type", "redis_full"),
        examples=(
            Example(
                path={"id": "12"},
                answer={"success": True, "count": 1, "skipped": 0, "reasons": {}},
                after=("push", "purge"),
            ),
        ),
    ),
}

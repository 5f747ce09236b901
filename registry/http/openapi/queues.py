"""The OpenAPI document of the requests about queues."""

from __future__ import annotations

from typing import Any, Final

from registry.http.openapi.declare import (
    ID,
    JSON,
    NDJSON,
    QUEUE,
    Body,
    Example,
    Operation,
    Reply,
    record,
    ref,
)
from registry.http.openapi.schemas import TRUE, array, page
from registry.http.options import MAX_PER_BATCH

TAG: Final = "Queues"
LIMIT: Final = "The largest number of rows."
CURSOR: Final = "The `cursor` of the previous page."
STATE: Final = "Only tasks in this state."
UNDO: Final = "`no`: what is deleted is not set aside for an undo."
SHOWN: Final = {
    "reason": "Only dead tasks with this reason.",
    "error": "Only tasks whose last error, as `TYPE: MESSAGE`, contains this text.",
    "worker": "Only tasks whose last attempt this worker had.",
    "type": "Only tasks of the group of `GET /api/dead` with this type.",
    "message": "Only tasks of the group of `GET /api/dead` with this message.",
}
FILTER: Final = {
    **SHOWN,
    "before": "Only tasks that ended before this time; tasks that have not ended: that were pushed before it.",
    "limit": "The largest number of tasks.",
    "dry_run": "`1`: change nothing, and say how many tasks are selected.",
    "undo": UNDO,
}
CHANGES: Final = ("wrong_type", "redis_full")
COUNTED: Final = Reply(
    text="How many tasks were changed, and how many were skipped.",
    schema=ref("Counted"),
    headers=("Registry-Audit",),
)
_PATH: Final = {"queue": QUEUE}


def _row(**more: Any) -> dict[str, Any]:
    counts = {"ready": 0, "delayed": 0, "leased": 0, "dead": 0, "done": 0}
    rest: dict[str, Any] = {"oldest_age": None, "pollers": 0, "rates": {}, "policy": {}}
    return {"name": QUEUE, **counts, **rest, **more}


_ONE_READY: Final = _row(ready=1, oldest_age=0.107)
_POLICY: Final = {"paused": True, "max_length": 1000, "retention": {"done": 600}}
_EXPORTED: Final = {"id": ID, "state": "ready", "task": {"to": "ann@example.org"}}

OPERATIONS: Final = {
    "queues": Operation(
        tag=TAG,
        summary="List queues",
        text="Every queue with a task in any state, a policy, or a waiting poller.",
        options={
            "cursor": CURSOR,
            "limit": LIMIT,
            "search": "Part of the name.",
            "sort": "By name, by the age of the oldest task, or by a number.",
            "family": "`:` combines all queues that share the part of their name before a colon into one row.",
            "stats": "`1`: add the rates and the last hour of each queue; a page then has at most 100 queues.",
        },
        defaults={"limit": 100, "sort": "name"},
        answers={200: Reply(text="A page of queues.", schema=page("queues", ref("Queue")))},
        errors=("wrong_type",),
        examples=(
            Example(
                query={"search": QUEUE, "limit": "1"},
                answer={"queues": [_ONE_READY], "cursor": None},
                after=("push",),
            ),
        ),
    ),
    "queue": Operation(
        tag=TAG,
        summary="Look at a queue",
        text="A name that holds nothing is answered with zeros. `oldest_age`: how long, in seconds, the oldest ready task has been "
        "ready. `pollers`: requests that wait for a task, over all daemons.",
        answers={200: Reply(text="The queue.", schema=ref("Queue"))},
        errors=("wrong_type",),
        examples=(Example(path=_PATH, answer=_ONE_READY, after=("push",)),),
    ),
    "patch": Operation(
        tag=TAG,
        summary="Set the policy of a queue",
        text="In force at once on the daemon that answers, and within a second on all others. `null` resets a field. "
        "`retention` is replaced as a whole.",
        body=Body(media={JSON: ref("PolicyChange")}, text="The fields to change."),
        answers={200: Reply(text="The queue.", schema=ref("Queue"), headers=("Registry-Audit",))},
        errors=("bad_json", "too_deep", *CHANGES),
        examples=(Example(path=_PATH, body=_POLICY, answer=_row(policy=_POLICY)),),
    ),
    "purge": Operation(
        tag=TAG,
        summary="Purge a queue",
        text="Deletes all ready and delayed tasks. Leased, dead and done tasks and the policy stay. Can be undone for ten minutes.",
        options={"undo": UNDO},
        defaults={"undo": "yes"},
        answers={200: COUNTED},
        errors=CHANGES,
        examples=(Example(path=_PATH, answer={"success": True, "count": 1, "skipped": 0}, after=("push",)),),
    ),
    "pause": Operation(
        tag=TAG,
        summary="Pause or resume a queue",
        text="No task is handed out meanwhile; pollers wait.",
        options={"seconds": "For this many seconds; 0 resumes the queue. Without it: until it is resumed."},
        answers={200: Reply(text="The queue.", schema=ref("Queue"), headers=("Registry-Audit",))},
        errors=CHANGES,
        examples=(
            Example(path=_PATH, answer=_row(policy={"paused": True})),
            Example(title="Resume", path=_PATH, query={"seconds": "0"}, answer=_row(), after=("pause",)),
        ),
    ),
    "retry": Operation(
        tag=TAG,
        summary="Retry dead tasks",
        text="Makes dead tasks ready again, oldest first, at the tail. Cancelled and expired tasks are only retried if `reason` "
        "names that reason. Can be undone for ten minutes.",
        options={
            "state": "`dead`: the only state from which tasks are retried.",
            "id": "Only this task.",
            "spread": "Spread the tasks over this many seconds.",
            **FILTER,
        },
        defaults={"state": "dead", "spread": 0, "dry_run": "0", "undo": "yes"},
        answers={200: COUNTED},
        errors=(*CHANGES, "not_found", "key_taken", "not_dead", "not_json"),
        examples=(
            Example(
                path=_PATH,
                query={"dry_run": "1"},
                answer={"success": True, "count": 0, "skipped": 0},
            ),
        ),
    ),
    "move": Operation(
        tag=TAG,
        summary="Move tasks to another queue",
        text="To its tail. Ids and order stay. A token that names queues to push into can only move into these.",
        options={"to": "The other queue.", "state": "The state of the tasks to move."},
        required=("to",),
        defaults={"state": "ready"},
        answers={200: COUNTED},
        errors=(*CHANGES, "bad_name"),
        examples=(
            Example(
                path=_PATH,
                query={"to": f"{QUEUE}-later"},
                answer={"success": True, "count": 1, "skipped": 0},
                after=("push",),
            ),
        ),
    ),
    "export": Operation(
        tag=TAG,
        summary="Export the tasks of a queue",
        text="Everything that is stored of each task; each is on a line of its own. Times and durations are in milliseconds.",
        options={"state": STATE, "cursor": CURSOR, "limit": LIMIT},
        defaults={"limit": 100},
        answers={200: Reply(text="A page of tasks.", schema=page("tasks", ref("ExportedTask")))},
        errors=("wrong_type",),
        examples=(
            Example(
                path=_PATH,
                answer={"tasks": [{**_EXPORTED, "queue": QUEUE}], "cursor": None},
                after=("push",),
            ),
        ),
    ),
    "restore": Operation(
        tag=TAG,
        summary="Import tasks",
        text="Stores tasks of an export again. A task whose id is in the queue already is skipped. If a line is malformed, nothing "
        "is stored.",
        body=Body(
            media={NDJSON: {"type": "string", "description": "An `ExportedTask` on each line."}},
            text=f"1 to {MAX_PER_BATCH} tasks.",
        ),
        answers={
            200: Reply(
                text="How many were stored, and the ids of those that were skipped because their unique key is in use.",
                schema={
                    "allOf": [
                        ref("Counted"),
                        record({"success": TRUE, "key_taken": array({"type": "string"})}),
                    ]
                },
                headers=("Registry-Audit",),
            )
        },
        errors=("bad_json", "too_deep", *CHANGES),
        examples=(
            Example(
                path=_PATH,
                body='{"id":"1a20c84f46155d68bb30d4c6","state":"ready","task":{"x":2}}\n',
                media=NDJSON,
                answer={"success": True, "count": 1, "skipped": 0, "key_taken": []},
            ),
        ),
    ),
}

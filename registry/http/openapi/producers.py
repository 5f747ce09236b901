"""The OpenAPI document of the requests of producers."""

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
from registry.http.openapi.schemas import TASK_ID, TRUE
from registry.http.options import MAX_PER_BATCH

TAG: Final = "Push"
_OPTIONS: Final = {
    "delay": "Seconds until the task is ready.",
    "at": "The time at which the task is ready; not together with `delay`.",
    "priority": "Higher goes first.",
    "ttl": "Seconds from the push after which the task expires unless it has been leased. Longer than the delay.",
    "attempts": "Deliveries before the task is dead.",
    "backoff": "Seconds to wait after the first failure; doubles with each failure, up to an hour.",
    "lease": "Length of the task's leases in seconds, if the pop does not say.",
    "key": "Unique key: only one task with this key can be ready, delayed or leased in the queue. At most 255 bytes.",
    "result": "Seconds to keep the result after the task has ended.",
}
_DEFAULTS: Final = {"delay": 0, "priority": 0, "attempts": 25, "backoff": 10, "lease": 60}
_ERRORS: Final = (
    "bad_json",
    "too_deep",
    "wrong_type",
    "idempotency_key_reused",
    "queue_full",
    "redis_full",
)
ANY_TASK: Final[dict[str, Any]] = {"description": "Any JSON value."}

OPERATIONS: Final = {
    "push": Operation(
        tag=TAG,
        summary="Push a task",
        text="The body is the task: any JSON value, with any content type. It comes back as exactly these bytes. "
        "Options that are left out fall back to the queue's policy, then to the defaults.",
        options=_OPTIONS,
        defaults=_DEFAULTS,
        headers=("Idempotency-Key", "Prefer", "traceparent", "tracestate"),
        body=Body(media={JSON: ANY_TASK}, text="The task."),
        answers={
            200: Reply(
                text="The task is stored; or, with `duplicate`, a task with the same `key` was there. "
                "With `Prefer: wait`: it has ended, as `state` says.",
                schema=ref("Pushed"),
                headers=("Idempotency-Replayed", "Preference-Applied"),
            ),
            202: Reply(
                text="With `Prefer: wait`: the task is stored and has not ended.",
                schema=ref("Pushed"),
                headers=("Idempotency-Replayed", "Preference-Applied", "Location"),
            ),
        },
        errors=_ERRORS,
        examples=(
            Example(
                title="A task",
                path={"queue": QUEUE},
                body={"to": "ann@example.org"},
                answer={"success": True, "id": ID},
            ),
            Example(
                title="With options",
                path={"queue": QUEUE},
                query={"delay": "3600", "priority": "5", "attempts": "3", "key": "welcome-17"},
                headers={"Idempotency-Key": "order-4711"},
                body={"to": "bob@example.org"},
                answer={"success": True, "id": ID},
            ),
            Example(
                title="Wait for the result, without a worker",
                path={"queue": QUEUE},
                headers={"Prefer": "wait=0.05"},
                body={"to": "cid@example.org"},
                status=202,
                answer={"success": True, "id": ID, "state": "ready"},
            ),
        ),
    ),
    "push_many": Operation(
        tag=TAG,
        summary="Push many tasks",
        text="All of them, or none. The options apply to each task.",
        options={name: text for name, text in _OPTIONS.items() if name != "key"},
        defaults=_DEFAULTS,
        headers=("Idempotency-Key", "traceparent", "tracestate"),
        body=Body(
            media={
                JSON: {"type": "array", "items": ANY_TASK, "minItems": 1, "maxItems": MAX_PER_BATCH},
                NDJSON: {"type": "string", "description": "One task on each line."},
            },
            text=f"1 to {MAX_PER_BATCH} tasks.",
        ),
        answers={
            200: Reply(
                text="The tasks are stored; their ids are in the order of the tasks.",
                schema=record({"success": TRUE, "ids": {"type": "array", "items": TASK_ID}}),
                headers=("Idempotency-Replayed",),
            )
        },
        errors=_ERRORS,
        examples=(
            Example(
                title="An array",
                path={"queue": QUEUE},
                body=[1, {"to": "bob@example.org"}],
                answer={"success": True, "ids": [ID, ID]},
            ),
            Example(
                title="A task on each line",
                path={"queue": QUEUE},
                body='{"n":1}\n{"n":2}\n',
                media=NDJSON,
                answer={"success": True, "ids": [ID, ID]},
            ),
        ),
    ),
}

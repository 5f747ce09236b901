"""The OpenAPI document of the requests of workers."""

from __future__ import annotations

from typing import Any, Final

from registry.http.openapi.declare import (
    ID,
    JSON,
    LEASE,
    QUEUE,
    WORKER,
    Body,
    Example,
    Operation,
    Reply,
    body_of,
    record,
    ref,
)
from registry.http.openapi.schemas import FLAG, LEASE_ID, SECONDS, TEXT, TRUE, array, or_null
from registry.http.options import MAX_PER_BATCH, YEAR

TAG: Final = "Work"
_LEASED: Final = {"task": {"to": "ann@example.org"}, "id": ID, "lease": LEASE, "expires_in": 30, "attempt": 1}
_POP_HEADERS: Final = (
    "Task-Id",
    "Task-Attempt",
    "traceparent",
    "tracestate",
    "Idempotency-Replayed",
    "Registry-Ack",
    "Registry-Worker",
)
_WAIT: Final = "Seconds to wait for a task, at most `MAX_WAIT`; 0 does not wait. Without it: `QUEUE_TIMEOUT`."
_LEASE: Final = "Lease the task for these seconds, 0.1 to 43,200; empty: the task's own lease, otherwise the queue's, otherwise 60."
_WORKER: Final = (
    "The name of the worker, at most 255 bytes. A newer poll of the same worker ends its older one."
)
_KEY: Final = (
    "A repeat of a leased pop with the same `Idempotency-Key` gets the same lease again while it holds."
)
_DELAY: Final = {"type": ["number", "null"], "minimum": 0, "maximum": YEAR}
_FIELD: Final = {"type": ["string", "null"]}
_ERROR: Final[dict[str, Any]] = {
    "anyOf": [
        body_of({}, {"type": _FIELD, "message": _FIELD, "trace": _FIELD}),
        {"type": ["string", "null"]},
    ]
}
_FAILURE: Final = {"error": _ERROR, "delay": _DELAY, "retry": or_null(FLAG)}
_STATUS: Final = {
    "type": "string",
    "enum": ["done", "late", "ready", "delayed", "dead", "lease_lost"],
}
_BODY: Final = ("bad_json", "too_deep")
_HOLDER: Final = (*_BODY, "lease_lost", "wrong_type", "redis_full")
_PATH: Final = {"queue": QUEUE, "lease": LEASE}
_AFTER: Final = ("push", "pop")

OPERATIONS: Final = {
    "pop": Operation(
        tag=TAG,
        summary="Pop a task",
        text="Without `lease` the task is done as soon as its answer has been sent, and the body has no key but `task`. "
        f"With `lease` it comes back unless it is acknowledged in time. {_KEY} A POST may have a body, which is ignored.",
        options={
            "wait": _WAIT,
            "lease": f"{_LEASE} Without it, the task is not leased.",
            "ack": "The lease of the previous task of this queue, to acknowledge it with the same request.",
            "worker": _WORKER,
        },
        headers=("Idempotency-Key-of-a-pop",),
        answers={
            200: Reply(
                text="A task.",
                schema={"anyOf": [ref("Leased"), ref("Popped")]},
                headers=_POP_HEADERS,
            ),
            202: Reply(
                text="There was no task within the time; or a newer poll of the same worker has ended this one.",
                schema=record({"error": {"type": "string", "const": "No tasks available"}}),
                headers=("Registry-Ack", "Registry-Worker", "Retry-After"),
            ),
        },
        errors=("idempotency_key_reused", "lease_required", "wrong_type", "redis_full"),
        examples=(
            Example(
                title="With a lease",
                path={"queue": QUEUE},
                query={"lease": "30", "wait": "0", "worker": WORKER},
                answer=_LEASED,
                after=("push",),
            ),
            Example(
                title="Without a lease",
                path={"queue": QUEUE},
                query={"wait": "0"},
                answer={"task": {"to": "ann@example.org"}},
                after=("push",),
            ),
            Example(
                title="No task",
                path={"queue": QUEUE},
                query={"wait": "0"},
                status=202,
                answer={"error": "No tasks available"},
            ),
        ),
    ),
    "pop_many": Operation(
        tag=TAG,
        summary="Pop several tasks",
        text=f"From one or several queues, always leased. It answers as soon as there is at least one task. {_KEY}",
        options={
            "count": "The largest number of tasks.",
            "wait": _WAIT,
            "lease": _LEASE,
            "order": "`strict` empties the first queue first; `fair` takes turns.",
            "worker": _WORKER,
        },
        defaults={"count": 1, "order": "strict"},
        headers=("Idempotency-Key",),
        answers={
            200: Reply(
                text="The tasks.",
                schema=record({"tasks": {**array(ref("LeasedOfMany")), "minItems": 1}}),
                headers=("Idempotency-Replayed", "Registry-Worker"),
            ),
            202: Reply(
                text="There was no task within the time; or a newer poll of the same worker has ended this one.",
                schema=record({"tasks": {"type": "array", "maxItems": 0}}),
                headers=("Registry-Worker", "Retry-After"),
            ),
        },
        errors=("idempotency_key_reused", "wrong_type", "redis_full"),
        examples=(
            Example(
                path={"queues": QUEUE},
                query={"count": "10", "lease": "30"},
                answer={"tasks": [{"queue": QUEUE, **_LEASED}]},
                after=("push",),
            ),
        ),
    ),
    "ack": Operation(
        tag=TAG,
        summary="Acknowledge a task",
        text="The task is done. The body, any JSON value, is its result; an empty one means no result. Repeating the request "
        "within ten minutes is 200 too. A result over `MAX_RESULT_BYTES` is dropped, and the task is done.",
        body=Body(
            media={JSON: {"description": "The result: any JSON value."}}, text="The result.", required=False
        ),
        answers={
            200: Reply(
                text="The task is done. `late`: its lease had run out, but nobody else had taken it.",
                schema=record(
                    {"success": TRUE}, {"late": TRUE, "result": {"type": "string", "const": "too_large"}}
                ),
                headers=("Registry-Worker",),
            )
        },
        errors=_HOLDER,
        examples=(Example(path=_PATH, body={"sent": True}, answer={"success": True}, after=_AFTER),),
    ),
    "fail": Operation(
        tag=TAG,
        summary="Fail a task",
        text='The task is tried again after `delay` seconds, or after its backoff. `"retry":false` makes it dead at once. '
        "A long error is cut. An `error` that is a string is its message.",
        body=Body(
            media={JSON: body_of({}, _FAILURE)},
            text="What went wrong; every field is optional.",
            required=False,
        ),
        answers={
            200: Reply(
                text="The state of the task now.",
                schema=record(
                    {"success": TRUE, "state": {"type": "string", "enum": ["ready", "delayed", "dead"]}}
                ),
                headers=("Registry-Worker",),
            )
        },
        errors=_HOLDER,
        examples=(
            Example(
                path=_PATH,
                body={"error": {"type": "SMTP", "message": "451 try later"}, "delay": 600},
                answer={"success": True, "state": "delayed"},
                after=_AFTER,
            ),
            Example(
                title="Do not try again",
                path=_PATH,
                body={"error": {"type": "SMTP", "message": "550 no such user"}, "retry": False},
                answer={"success": True, "state": "dead"},
                after=_AFTER,
            ),
        ),
    ),
    "release": Operation(
        tag=TAG,
        summary="Give a task back",
        text="The attempt does not count. Without `delay` the task goes to the head of the queue.",
        options={"delay": "Seconds until the task is ready again."},
        defaults={"delay": 0},
        answers={200: Reply(text="It is given back.", schema=ref("Success"), headers=("Registry-Worker",))},
        errors=_HOLDER,
        examples=(Example(path=_PATH, query={"delay": "600"}, answer={"success": True}, after=_AFTER),),
    ),
    "extend": Operation(
        tag=TAG,
        summary="Renew a lease",
        text="The lease then ends that many seconds from now. A policy's `max_run` limits how far extensions reach.",
        options={"lease": "Seconds from now. Without it: for as long as the lease was given for."},
        body=Body(
            media={
                JSON: body_of(
                    {},
                    {
                        "progress": {
                            "type": ["number", "null"],
                            "exclusiveMinimum": -(10**15),
                            "exclusiveMaximum": 10**15,
                        },
                        "message": {"type": ["string", "null"]},
                    },
                )
            },
            text="How far the work is.",
            required=False,
        ),
        answers={
            200: Reply(
                text="When the lease ends. `cancel`: the task was cancelled; stop the work.",
                schema=record({"expires_in": SECONDS, "cancel": FLAG}),
                headers=("Registry-Worker",),
            )
        },
        errors=_HOLDER,
        examples=(
            Example(
                path=_PATH,
                query={"lease": "60"},
                body={"progress": 0.4, "message": "half"},
                answer={"expires_in": 60, "cancel": False},
                after=_AFTER,
            ),
        ),
    ),
    "settle": Operation(
        tag=TAG,
        summary="Acknowledge or fail many tasks",
        text="Each lease is answered separately, in the order of the request, acks first.",
        body=Body(
            media={
                JSON: body_of(
                    {},
                    {
                        "acks": {
                            **array({"anyOf": [LEASE_ID, body_of({"lease": LEASE_ID}, {"result": {}})]}),
                            "maxItems": MAX_PER_BATCH,
                        },
                        "fails": {
                            **array(body_of({"lease": LEASE_ID}, _FAILURE)),
                            "maxItems": MAX_PER_BATCH,
                        },
                    },
                )
            },
            text=f"At most {MAX_PER_BATCH} leases of this queue in all.",
            required=False,
        ),
        answers={
            200: Reply(
                text="What became of each.",
                schema=record(
                    {"results": array(record({"lease": TEXT, "status": _STATUS}, {"result": TEXT}))}
                ),
            )
        },
        errors=(*_BODY, "wrong_type", "redis_full"),
        examples=(
            Example(
                path={"queue": QUEUE},
                body={"acks": [{"lease": LEASE, "result": 7}]},
                answer={"results": [{"lease": LEASE, "status": "done"}]},
                after=_AFTER,
            ),
        ),
    ),
}

"""The OpenAPI document of the requests about the state of everything: what is wrong, and what changes."""

from __future__ import annotations

from typing import Final

from registry.http.openapi.declare import TIME, Example, Operation, Reply, record
from registry.http.openapi.schemas import COUNT, MOMENT, TEXT, array, or_null
from registry.queue.findings import CODES, SEVERITIES

EVENT_STREAM: Final = "text/event-stream"
_OBJECT: Final = {"type": "object"}
_ACTION: Final = record(
    {
        "label": TEXT,
        "method": or_null(TEXT),
        "path": or_null(TEXT),
        "body": {},
        "right": or_null(TEXT),
        "command": or_null(TEXT),
    }
)
_FINDING: Final = record(
    {
        "code": {"type": "string", "enum": list(CODES)},
        "severity": {"type": "string", "enum": sorted(set(SEVERITIES.values()))},
        "queue": or_null(TEXT),
        "sentence": TEXT,
        "detail": TEXT,
        "since": or_null(MOMENT),
        "count": or_null(COUNT),
        "action": or_null(_ACTION),
        "facts": _OBJECT,
    }
)

OPERATIONS: Final = {
    "findings": Operation(
        tag="Process",
        summary="What is wrong now",
        text="What does not heal by itself, the worst first. While Redis is away, that is the finding.",
        answers={
            200: Reply(
                text="The first hundred findings, `count` of all, and the state of everything in one sentence.",
                schema=record(
                    {"headline": TEXT, "findings": array(_FINDING), "count": COUNT, "at": or_null(MOMENT)}
                ),
            )
        },
        redis=False,
        examples=(
            Example(
                answer={"headline": "Everything is moving.", "findings": [], "count": 0, "at": TIME},
                varies=True,
            ),
        ),
    ),
    "events": Operation(
        tag="Process",
        summary="What changes, as it changes",
        text="Server-sent events: `hello`, `queues`, `findings`, `audit`, `reset` and `end`; the data of each is JSON. The stream "
        "goes on until one side ends it. A client that comes back sends its last `id` as the header Last-Event-ID, or as `after`.",
        options={
            "queue": "Only these queues, with `/` between them.",
            "family": "One row for the queues whose names begin alike before a colon.",
            "search": "Only queues whose name contains this.",
            "sort": "Which queues come first.",
            "limit": "The largest number of rows; 0 for none.",
            "after": "The last audit entry that the client knows.",
        },
        defaults={"limit": 100, "sort": "name"},
        headers=("Last-Event-ID",),
        answers={200: Reply(text="The events.", schema=TEXT, media=EVENT_STREAM)},
        errors=("bad_name", "overloaded", "shutting_down"),
        redis=False,
        examples=(Example(query={"limit": "0"}, answer=b"event: hello\n", varies=True),),
    ),
}

"""The schemas of the OpenAPI document: what bodies and answers look like. Bounds come from the code that checks them."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from registry.http.auth import RIGHTS
from registry.http.codec import ACCEPTED
from registry.http.exports import Record
from registry.http.openapi.declare import body_of, record, ref
from registry.http.openapi.errors import ERRORS
from registry.http.options import MAX_LEASE_ID, NAME, SCHEDULED_OPTIONS
from registry.http.rows import COUNTED
from registry.model import STATES
from registry.queue.audit import ACTIONS
from registry.queue.operations import DURATIONS, RETENTION, RULES
from registry.queue.orders import ORDERS
from registry.queue.schedules import MISSED
from registry.queue.stats import COUNTED as CHARTED

ANY: Final[dict[str, Any]] = {}
TEXT: Final = {"type": "string"}
COUNT: Final = {"type": "integer", "minimum": 0}
FLAG: Final = {"type": "boolean"}
TRUE: Final = {"type": "boolean", "const": True}
SECONDS: Final = {"type": "number", "minimum": 0}
MOMENT: Final = {"type": "string", "format": "date-time"}
# In answers, a task's state.
STATE: Final = {"type": "string", "enum": list(STATES.values())}
WORKER: Final = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[^\x00-\x1f\x7f]+$"}
TASK_ID: Final = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[A-Za-z0-9_-]+$"}
LEASE_ID: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_LEASE_ID,
    "pattern": "^[A-Za-z0-9_-]+$",
}
AUDIT_ID: Final = {"type": "string", "minLength": 1, "maxLength": 15, "pattern": "^[0-9]+$"}


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, or null."""
    if set(schema) <= {"type", "minimum", "format"}:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def page(name: str, items: Any) -> dict[str, Any]:
    """A page of a list: its rows, and where the next page begins."""
    return record({name: array(items), "cursor": {"type": ["string", "null"]}})


def _rule(name: str) -> dict[str, Any]:
    kind, low, high = RULES[name]
    if kind is bool:
        return FLAG
    bounds: dict[str, Any] = {"minimum": low, "maximum": int(high)}
    if name in DURATIONS and low:
        bounds = {"exclusiveMinimum": round(low - 0.001, 3), "maximum": int(high)}
    return {"type": "integer" if kind is int else "number", **bounds}


def _policy(nullable: bool) -> dict[str, Any]:
    kept = {
        name: {"type": "integer" if name.endswith("_max") else "number", "minimum": 0, "maximum": most}
        for name, most in RETENTION.items()
    }
    rules = {name: _rule(name) for name in RULES}
    rules["retention"] = {"type": "object", "properties": kept, "additionalProperties": False}
    if nullable:
        return body_of({}, {name: or_null(rule) for name, rule in rules.items()})
    return record({}, {**rules, "paused_until": MOMENT})


_FIELDS: Final = {"type": {"type": ["string", "null"]}, "message": {"type": ["string", "null"]}}
_ERROR_OF_TASK: Final = record({}, {**_FIELDS, "trace": {"type": ["string", "null"]}, "truncated": FLAG})
_ATTEMPT: Final = record(
    {
        "attempt": COUNT,
        "worker": or_null(TEXT),
        "leased_at": or_null(MOMENT),
        "ended_at": or_null(MOMENT),
        "reason": or_null(TEXT),
        "error": {"anyOf": [ref("TaskError"), {"type": ["string", "array", "null"]}]},
    },
    {"result": {"type": "string", "enum": ["too_large"]}},
)
_TASK: Final = record(
    {
        "id": or_null(TEXT),
        "queue": TEXT,
        "state": STATE,
        "attempt": COUNT,
        "priority": {"type": "integer", "minimum": 0, "maximum": 9},
        "pushed_at": or_null(MOMENT),
        "task": ANY,
        "history": array(ref("Attempt")),
        "progress": {"type": ["number", "null"]},
        "result": ANY,
    },
    {
        "key": TEXT,
        "message": TEXT,
        "reason": TEXT,
        "traceparent": TEXT,
        "tracestate": TEXT,
        "options": record(
            {},
            {
                "attempts": {"type": "integer", "minimum": 1},
                "backoff": SECONDS,
                "lease": SECONDS,
                "result": SECONDS,
            },
        ),
        "due_at": MOMENT,
        "expires_at": MOMENT,
        "ended_at": MOMENT,
        "cancelled": FLAG,
        "worker": or_null(TEXT),
        "leased_at": or_null(MOMENT),
        "lease_ends_at": or_null(MOMENT),
        "truncated": TRUE,
        "hidden": TRUE,
    },
)
_LEASED: Final = {
    "task": ANY,
    "id": TASK_ID,
    "lease": LEASE_ID,
    "expires_in": SECONDS,
    "attempt": {"type": "integer", "minimum": 1},
}
_QUEUE: Final = record(
    {
        "name": TEXT,
        **dict.fromkeys(COUNTED, COUNT),
        "oldest_age": or_null(SECONDS),
        "pollers": COUNT,
        "rates": {"type": "object"},
        "policy": ref("Policy"),
    },
    {"queues": COUNT, "last_hour": ref("LastHour")},
)
_LAST_HOUR: Final = record(
    {
        **dict.fromkeys(CHARTED, or_null(COUNT)),
        "step": {"type": "integer", "minimum": 1},
        "ready": array(or_null(COUNT)),
    }
)
_POINT: Final = record(
    {
        "at": MOMENT,
        **dict.fromkeys(CHARTED, or_null(COUNT)),
        **{f"{kind}_{share}": or_null(SECONDS) for kind in ("wait", "run") for share in ("p50", "p99")},
        "oldest_age": or_null(SECONDS),
        "ready": or_null(COUNT),
    }
)
# A number as text, within the same bounds.
_NUMERAL: Final = {"type": "string", "pattern": r"^[0-9]+(?:\.[0-9]+)?$"}
_SCHEDULED: Final = {
    name: ACCEPTED[reader]
    if name in ("key", "traceparent", "tracestate")
    else {"anyOf": [ACCEPTED[reader], _NUMERAL]}
    for name, reader in SCHEDULED_OPTIONS.items()
}
_PUSH_OPTIONS: Final = {
    "type": "object",
    "properties": _SCHEDULED,
    "additionalProperties": False,
    "dependentRequired": {"tracestate": ["traceparent"]},
}
_CRON: Final = {"type": "string", "minLength": 9, "maxLength": 255}
_MISSED: Final = {"type": "string", "enum": list(MISSED)}
_SCHEDULE_BODY: Final = body_of(
    {"cron": _CRON, "queue": NAME, "task": ANY},
    {
        "timezone": or_null(TEXT),
        "options": or_null(_PUSH_OPTIONS),
        "missed": or_null(_MISSED),
        "paused": or_null(FLAG),
    },
)
_SCHEDULE: Final = record(
    {
        "name": TEXT,
        "cron": TEXT,
        "timezone": TEXT,
        "queue": TEXT,
        "task": ANY,
        "options": {"type": "object"},
        "missed": _MISSED,
        "paused": FLAG,
        "missed_count": COUNT,
        "next_at": or_null(MOMENT),
        "last_at": or_null(MOMENT),
    },
    {"truncated": TRUE, "hidden": TRUE},
)
_GROUP: Final = record(
    {
        "reason": TEXT,
        **_FIELDS,
        "count": {"type": "integer", "minimum": 1},
        "queues": array(TEXT),
        "workers": array(TEXT),
        "first": or_null(MOMENT),
        "last": or_null(MOMENT),
        "hours": array(COUNT),
        "recent": COUNT,
        "points_to": {"type": "string", "enum": ["worker", "tasks", "unclear"]},
        "worker": or_null(TEXT),
        "example": record({"queue": TEXT, "id": or_null(TEXT)}),
    },
    {"hidden": TRUE},
)
_HELD: Final = record(
    {
        "queue": TEXT,
        "id": TEXT,
        "attempt": COUNT,
        "leased_at": or_null(MOMENT),
        "lease_ends_at": or_null(MOMENT),
        "progress": {"type": ["number", "null"]},
    }
)
_ORDER: Final = {"type": "string", "enum": list(ORDERS)}
_VERDICT: Final = record(
    {
        "code": {"type": "string", "enum": ["fails_what_others_finish"]},
        "sentence": TEXT,
        "queue": TEXT,
        "done": COUNT,
        "failed": COUNT,
        "others_done": COUNT,
        "others_failed": COUNT,
    }
)
_WORKER: Final = record(
    {
        "worker": or_null(TEXT),
        "address": or_null(TEXT),
        "user_agent": or_null(TEXT),
        "queues": array(TEXT),
        "since": or_null(MOMENT),
        "last_seen": or_null(MOMENT),
        "parked": COUNT,
        "shared_name": FLAG,
        "version": or_null(TEXT),
        "done": COUNT,
        "failed": COUNT,
        "failing": FLAG,
        "verdict": {"anyOf": [ref("Verdict"), {"type": "null"}]},
        "lease_count": COUNT,
        "leases": array(ref("HeldLease")),
        "order": _ORDER,
        "order_until": or_null(MOMENT),
    }
)
_UNDO: Final = record(
    {"until": MOMENT, "tasks": COUNT, "bytes": COUNT, "undone": COUNT, "undone_at": or_null(MOMENT)}
)
_AUDIT_ENTRY: Final = record(
    {
        "id": TEXT,
        "at": MOMENT,
        "action": {"type": "string", "enum": list(ACTIONS)},
        "outcome": {"type": "string", "enum": ["done", "unfinished"]},
        "name": or_null(TEXT),
        "address": TEXT,
        "request_id": TEXT,
        "queue": or_null(TEXT),
        "task": or_null(TEXT),
        "schedule": or_null(TEXT),
        "options": {"type": "object"},
        "count": or_null(COUNT),
        "skipped": or_null(COUNT),
        "undo": {"anyOf": [_UNDO, {"type": "null"}]},
    }
)
_REASON: Final = record({"code": TEXT, "text": TEXT})
_RIGHTS: Final = {"name": or_null(TEXT), "rights": array(TEXT), "expires": or_null(MOMENT)}


def _exported() -> tuple[dict[str, Any], dict[str, Any]]:
    """The schema of a line of an export, and those that it refers to, as msgspec reads them from `Record`."""
    _, found = msgspec.json.schema_components([Record], ref_template="#/components/schemas/{name}")
    line = {**found.pop("Record"), "title": "ExportedTask"}
    payload = {"payload_base64": {"type": "string", "contentEncoding": "base64"}, "task": ANY}
    result = {"result_base64": {"type": "string", "contentEncoding": "base64"}, "result": ANY}
    line["properties"] = {**line["properties"], "queue": TEXT, **payload, **result}
    return line, {_spaced(name): schema for name, schema in found.items()}


def _spaced(name: str) -> str:
    return re.sub(r"\W", "", name)


def schemas() -> dict[str, Any]:
    """All schemas by name."""
    exported, parts = _exported()
    codes = [{"const": code, "description": error.meaning} for code, error in ERRORS.items()]
    return {
        "Error": record(
            {"error": TEXT, "code": ref("ErrorCode")},
            {
                "outcome": {"type": "string", "enum": ["not_applied", "unknown"]},
                "incident": TEXT,
                "right": {"type": "string", "enum": list(RIGHTS)},
            },
        ),
        "ErrorCode": {"type": "string", "oneOf": codes},
        "Success": record({"success": TRUE}),
        "Counted": record({"success": TRUE, "count": COUNT, "skipped": COUNT}),
        "Pushed": record(
            {"success": TRUE, "id": TASK_ID},
            {"duplicate": TRUE, "state": STATE, "result": ANY, "reason": or_null(TEXT)},
        ),
        "Popped": record({"task": ANY}),
        "Leased": record(_LEASED),
        "LeasedOfMany": record({"queue": TEXT, **_LEASED}, {"traceparent": TEXT, "tracestate": TEXT}),
        "Queue": _QUEUE,
        "LastHour": _LAST_HOUR,
        "Point": _POINT,
        "Policy": _policy(nullable=False),
        "PolicyChange": _policy(nullable=True),
        "Task": _TASK,
        "Attempt": _ATTEMPT,
        "TaskError": _ERROR_OF_TASK,
        "Reason": _REASON,
        "ExportedTask": exported,
        **parts,
        "Schedule": _SCHEDULE,
        "ScheduleBody": _SCHEDULE_BODY,
        "DeadGroup": _GROUP,
        "Worker": _WORKER,
        "HeldLease": _HELD,
        "Verdict": _VERDICT,
        "AuditEntry": _AUDIT_ENTRY,
        "Token": record(
            {
                **{name: _RIGHTS[name] for name in ("rights", "expires")},
                "name": TEXT,
                "created": or_null(MOMENT),
                "expired": FLAG,
                "last_used": or_null(MOMENT),
            }
        ),
        "Rights": record(_RIGHTS, {"address": TEXT}),
    }

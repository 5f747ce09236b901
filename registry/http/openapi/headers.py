"""The headers of requests and answers that the OpenAPI document describes."""

from __future__ import annotations

from typing import Any, Final

# 1 to 255 characters, without blanks around them, or in double quotes.
_KEY: Final = r'^(?!""$)(?:[!-~](?:[ -~]{0,253}[!-~])?|"[ -~]{254,255}")$'

REQUEST_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "Idempotency-Key": {
        "description": "A repeat with the same key gets the first answer instead of a second effect. "
        "Printable ASCII, with or without double quotes around it.",
        "schema": {"type": "string", "maxLength": 257, "pattern": _KEY},
        "example": "order-4711",
    },
    "Idempotency-Key-of-a-pop": {
        "name": "Idempotency-Key",
        "description": "With `lease`: a repeat with the same key gets the same lease again while it holds. Without `lease` it is "
        "ignored. 1 to 255 printable ASCII characters, with or without double quotes around them.",
        "schema": {"type": "string"},
        "example": "poll-1",
    },
    "Prefer": {
        "description": "`wait=SECONDS` keeps the request open until the task has ended, at most `MAX_WAIT`. "
        "Anything else is ignored.",
        "schema": {"type": "string"},
        "example": "wait=10",
    },
    "traceparent": {
        "description": "W3C Trace Context. Travels with the task and comes back with its pop. At most 512 bytes; a malformed one is "
        "ignored.",
        "schema": {"type": "string"},
        "example": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    },
    "tracestate": {
        "description": "As `traceparent`, and only with it. Of more than 512 bytes the last entries are left out.",
        "schema": {"type": "string"},
        "example": "vendor=t61rcWkgMzE",
    },
    "Last-Event-ID": {
        "description": "The last `id` that the client has of this stream.",
        "schema": {"type": "string"},
        "example": "12",
    },
    "X-Request-Id": {
        "description": "Up to 64 letters, digits, `.`, `_`, `-`: the answer has the same. Anything else is replaced.",
        "schema": {"type": "string"},
        "example": "req-1",
    },
}

ANSWER_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-Id": {
        "description": "Identifies the request in the log and in the audit.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 64},
        "required": True,
    },
    "Cache-Control": {
        "description": "`no-store`; of files `no-cache`: ask whether they have changed.",
        "schema": {"type": "string"},
        "required": True,
    },
    "Retry-After": {
        "description": "Seconds to wait before trying again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "Task-Id": {"description": "The id of the task.", "schema": {"type": "string"}},
    "Task-Attempt": {
        "description": "How often the task was handed out, this time included.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "traceparent": {"description": "As the push had it.", "schema": {"type": "string"}},
    "tracestate": {"description": "As the push had it.", "schema": {"type": "string"}},
    "Idempotency-Replayed": {
        "description": "`true`: this repeats an earlier answer; nothing was done again.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Preference-Applied": {
        "description": "`wait=SECONDS`: how long the push waits for the end of its task.",
        "schema": {"type": "string", "pattern": "^wait="},
    },
    "Location": {
        "description": "The path of a task that has not ended, or of what was moved.",
        "schema": {"type": "string"},
    },
    "Registry-Ack": {
        "description": "What became of the lease in `ack`.",
        "schema": {"type": "string", "enum": ["done", "late", "lease_lost"]},
    },
    "Registry-Worker": {
        "description": "`replaced`: a newer poll of this worker ended this one. `quiet`: take nothing new, but go on polling. "
        "`stop`: finish what you hold, and end.",
        "schema": {"type": "string", "enum": ["replaced", "quiet", "stop"]},
    },
    "Registry-Audit": {
        "description": "The id of the entry in the audit.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Set-Cookie": {
        "description": "The session: `HttpOnly`, `SameSite=Strict`, over TLS also `Secure`.",
        "schema": {"type": "string"},
    },
    "ETag": {"description": "Identifies this version.", "schema": {"type": "string"}},
    "Content-Encoding": {
        "description": "`gzip`, for clients that accept it.",
        "schema": {"type": "string"},
    },
    "Allow": {"description": "The methods of this path.", "schema": {"type": "string"}},
    "WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}},
    "Accept-Encoding": {"description": "`identity`.", "schema": {"type": "string"}},
}
# Headers of every answer, and further ones by the code of the error.
ALWAYS: Final = ("X-Request-Id", "Cache-Control")
BY_STATUS: Final[dict[int, tuple[str, ...]]] = {
    401: ("WWW-Authenticate",),
    415: ("Accept-Encoding",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}

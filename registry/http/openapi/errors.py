"""The errors of the API: each code with its statuses and what it means. The sentences are those of docs/api.md, in short."""

from __future__ import annotations

from typing import Final, NamedTuple


class ErrorCode(NamedTuple):
    """``meaning``: one sentence about what it means and what to do."""

    status: int
    meaning: str


ERRORS: Final[dict[str, ErrorCode]] = {
    "bad_json": ErrorCode(400, "The body is not JSON, or not the JSON this request takes."),
    "too_deep": ErrorCode(400, "The JSON has more than 500 levels."),
    "bad_name": ErrorCode(400, "A name in the path is not valid; `error` says which and why."),
    "bad_option": ErrorCode(400, "An option or a field is unknown or malformed; `error` names it."),
    "bad_request": ErrorCode(400, "The request is malformed HTTP."),
    "bad_host": ErrorCode(400, "The header Host is malformed."),
    "unauthorized": ErrorCode(401, "A valid token is needed, in the header `Authorization: Bearer TOKEN`."),
    "forbidden": ErrorCode(403, "The token lacks the right that `error` names."),
    "foreign_origin": ErrorCode(403, "The request came, or may have come, from a web page of another site."),
    "not_found": ErrorCode(404, "There is no such task, schedule, audit entry, file or path."),
    "method_not_allowed": ErrorCode(405, "The header Allow lists the methods of this path."),
    "request_timeout": ErrorCode(408, "The head or the body arrived too slowly. Try again."),
    "lease_lost": ErrorCode(
        409, "The task is no longer yours. Stop the work and do not acknowledge it in another way."
    ),
    "lease_required": ErrorCode(409, "The queue has a `concurrency` limit. Pop with `lease`."),
    "already_undone": ErrorCode(409, "Nothing is left to bring back."),
    "undo_expired": ErrorCode(409, "The ten minutes are over."),
    "not_undoable": ErrorCode(409, "This action cannot be undone."),
    "key_taken": ErrorCode(409, "Another task with the same unique key is waiting or running."),
    "not_dead": ErrorCode(409, "Only a dead task can be retried."),
    "not_delayed": ErrorCode(409, "Only a delayed task can be run now."),
    "not_json": ErrorCode(409, "Another program pushed this element, which is not JSON: it stays dead."),
    "wrong_type": ErrorCode(409, "The Redis key with this queue's name is not a list."),
    "body_too_large": ErrorCode(413, "The body, or a task in it, is over its limit."),
    "target_too_long": ErrorCode(414, "The request line is too long."),
    "unsupported_encoding": ErrorCode(415, "Compressed bodies are not supported."),
    "foreign_host": ErrorCode(
        421, "The Host is neither a loopback name nor one of the setting `ALLOWED_HOSTS`."
    ),
    "idempotency_key_reused": ErrorCode(422, "The Idempotency-Key was used before with a different request."),
    "rate_limited": ErrorCode(429, "Too many wrong tokens came from this address. Wait for `Retry-After`."),
    "queue_full": ErrorCode(429, "The queue has reached its `max_length`. Wait for `Retry-After`."),
    "headers_too_large": ErrorCode(431, "The headers are too large."),
    "internal_error": ErrorCode(500, "A bug in the registry. The log has details under the incident id."),
    "not_implemented": ErrorCode(501, "The method is unknown."),
    "redis_unavailable": ErrorCode(503, "There was no usable Redis, or it did not answer in time."),
    "redis_full": ErrorCode(
        503, "Redis has reached `maxmemory`. Pops still work, and so do deletions with `undo=no`."
    ),
    "overloaded": ErrorCode(503, "Too much is under way. Wait for `Retry-After`."),
    "shutting_down": ErrorCode(503, "The daemon is stopping."),
    "http_version": ErrorCode(505, "Only HTTP/1.1 and HTTP/1.0 are supported."),
}

# What every operation may answer, because it is found before the request is looked at.
ALWAYS: Final = (
    "bad_option",
    "bad_request",
    "bad_host",
    "foreign_origin",
    "request_timeout",
    "body_too_large",
    "target_too_long",
    "unsupported_encoding",
    "foreign_host",
    "headers_too_large",
    "internal_error",
    "overloaded",
)
# Answered before a route is found, so they are of no operation.
OF_NO_OPERATION: Final = ("method_not_allowed", "not_implemented", "http_version")
WITH_REDIS: Final = ("redis_unavailable", "shutting_down")


def codes_of(right: str, has_name: bool, redis: bool, more: tuple[str, ...]) -> dict[int, list[str]]:
    """The codes that an operation may answer, by status. ``right``: of its route; ``more``: its own codes."""
    found = [*ALWAYS, *more]
    if right != "open":
        found += ["unauthorized", "rate_limited"]
    if right not in ("open", "sign-in", "any"):
        found.append("forbidden")
    if has_name:
        found.append("bad_name")
    if redis:
        found += WITH_REDIS
    by_status: dict[int, list[str]] = {}
    for code in ERRORS:
        if code in found:
            by_status.setdefault(ERRORS[code].status, []).append(code)
    return by_status

"""Tasks as an export has them: everything that is stored of a task, as one JSON object on one line, and back.

The members are the fields of `registry.model.Task` by their long names; moments and durations are in ms. A payload or a result
that is not JSON, holds a line break or has white space around it is in ``payload_base64`` or ``result_base64`` instead of
``task`` or ``result``: a line must stay one line, and the bytes must stay the same.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct, msgpack, structs

from registry.errors import BadBody, BadOption
from registry.http import options
from registry.http.codec import Raw as RawJson
from registry.http.codec import dumps
from registry.http.json_check import BadJson, checking
from registry.http.json_cut import Part
from registry.http.turns import Steps
from registry.model import LETTERS, PLAIN, Attempt, Error, Lease, Task, text_of
from registry.queue.names import is_foreign
from registry.queue.pages import TaskView

# All members of a record but its payload and its result. A stored record has less.
MAX_REST = 128 * 1024
# Not exported: where its element is in a list now, and its lease.
_LEFT_OUT = ("generation", "at_head", "lease", "result", "state")
_ID = re.compile(r"[0-9a-f]{24}|[0-9a-f]{11}A[0-9a-f]{12}")

Moment = Annotated[int, Meta(ge=0, le=10**14)] | Annotated[float, Meta(ge=0, le=1e14)]
Length = Annotated[int, Meta(ge=0, le=10**12)] | Annotated[float, Meta(ge=0, le=1e12)]
Count = Annotated[int, Meta(ge=0, le=10**9)]
ShortText = Annotated[str, Meta(max_length=1024)]


class ErrorRecord(Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """An `Error` of an export."""

    type: str | None = None
    message: str | None = None
    trace: str | None = None
    truncated: bool = False


class AttemptRecord(Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """An `Attempt` of an export."""

    number: Count = 0
    worker: ShortText | None = None
    leased_at: Moment | None = None
    ended_at: Moment | None = None
    reason: ShortText | None = None
    error: ErrorRecord | None = None
    result: Literal["too_large"] | None = None


class Record(Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """A task of an export, without its payload and its result. ``worker``, ``leased_at``: of the lease that it had."""

    id: str
    state: Literal["ready", "delayed", "leased", "dead", "done"]
    priority: Annotated[int, Meta(ge=0, le=9)] = 0
    attempts: Count | None = None
    backoff: Length | None = None
    lease_length: Length | None = None
    key: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    keep_result: Length | None = None
    traceparent: Annotated[str, Meta(max_length=512)] | None = None
    tracestate: Annotated[str, Meta(max_length=512)] | None = None
    awaited: bool = False
    expires_at: Moment | None = None
    idempotent: bool = False
    attempt: Count = 0
    first_attempts: Count | None = None
    lapses: Count = 0
    due_at: Moment | None = None
    ready_since: Moment | None = None
    last_lease: ShortText | None = None
    progress: float | None = None
    message: Annotated[str, Meta(max_length=1024)] | None = None
    cancelled: bool = False
    history: Annotated[list[AttemptRecord], Meta(max_length=20)] = []
    reason: ShortText | None = None
    error: ErrorRecord | None = None
    ended_at: Moment | None = None
    kept_until: Moment | None = None
    unkept: bool = False
    worker: ShortText | None = None
    leased_at: Moment | None = None


_REST = tuple(field.name for field in structs.fields(Record))
_MEMBERS = (*_REST, "queue", "task", "payload_base64", "result", "result_base64")
_decode = msgspec.json.Decoder(Record).decode


def exported(view: TaskView) -> RawJson:
    """The line of a task in an export, without its line break."""
    task = view.task
    row: dict[str, Any] = {"id": view.id, "queue": view.queue, "state": view.state}
    checked = view.id is not None and not is_foreign(view.id)
    row.update(_value("task", "payload_base64", view.payload, checked))
    # Most tasks have no record of their own; for these all below is left out.
    if task is not PLAIN:
        _add_record(row, task, view.state)
    return RawJson(dumps(row))


def _add_record(row: dict[str, Any], task: Task, state: str) -> None:
    for name, value in structs.asdict(task).items():
        if name not in _LEFT_OUT and value != getattr(PLAIN, name):
            row[name] = _plain(value)
    if result := text_of(task.result):
        row.update(_value("result", "result_base64", result, True))
    if state == "leased" and task.lease is not None:
        held = {"worker": task.lease.worker, "leased_at": task.lease.granted_at}
        row.update({name: value for name, value in held.items() if value is not None})


def _value(name: str, encoded: str, value: bytes, checked: bool) -> dict[str, Any]:
    kept = b"\n" not in value and b"\r" not in value and value == value.strip(b" \t")
    if kept and (checked or options.is_json(value)):
        return {name: RawJson(value)}
    return {encoded: b64encode(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Error | Attempt):
        found = {name: _plain(one) for name, one in structs.asdict(value).items()}
        # Errors of early versions are texts, and an empty one arrives as an empty list.
        return {name: one for name, one in found.items() if one not in (None, False, [])}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value


def records(body: bytes) -> Steps[list[tuple[bytes, bytes, Task]]]:
    """The tasks of an import, one JSON object per line: id, payload and record of each. Raises `BadBody`, naming the line."""
    found: list[tuple[bytes, bytes, Task]] = []
    for number, line in _lines(body):
        if len(found) == options.MAX_PER_BATCH:
            raise BadBody(f"An import must have at most {options.MAX_PER_BATCH} tasks.")
        try:
            found.append((yield from _record(Part.of(line, (yield from checking(line))))))
        except BadJson as error:
            raise BadBody(f"Line {number} is not JSON: {error.reason} at byte {error.position}.") from None
        except (BadBody, BadOption) as error:
            raise BadBody(f"Line {number} is not a task of an export: {error}") from None
        yield
    if not found:
        raise BadBody("An import must have at least one task.")
    return found


def _lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    at, number = 0, 0
    while at < len(body):
        end = body.find(b"\n", at)
        end = len(body) if end < 0 else end
        number += 1
        line = body[at:end].strip(b" \t\r")
        if line:
            yield number, line
        at = end + 1


def _record(line: Part) -> Steps[tuple[bytes, bytes, Task]]:
    members = yield from line.members(*_MEMBERS)
    payload = _bytes_of(members, "task", "payload_base64")
    if payload is None:
        raise BadBody("it has neither 'task' nor 'payload_base64'.")
    result = _bytes_of(members, "result", "result_base64")
    rest = [(name, part.whole()) for name, part in members.items() if name in _REST]
    if sum(len(value) for _, value in rest) > MAX_REST:
        raise BadBody(
            f"its fields other than payload and result are larger than the limit of {MAX_REST} bytes."
        )
    try:
        record = _decode(b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), value) for name, value in rest))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadBody(f"{error}.") from None
    if not _ID.fullmatch(record.id):
        raise BadBody("its 'id' is not 24 hexadecimal digits.")
    if record.state == "delayed" and record.due_at is None:
        raise BadBody("it is delayed but has no 'due_at'.")
    foreign = is_foreign(record.id.encode())
    if not foreign and "payload_base64" in members and not options.is_json(payload):
        raise BadBody("its payload is not JSON.")
    return record.id.encode(), payload, _task(record, result)


def _bytes_of(members: dict[str, Part], name: str, encoded: str) -> bytes | None:
    part = members.get(encoded)
    if part is not None:
        try:
            return msgspec.json.decode(part.whole(), type=bytes)
        except msgspec.DecodeError:
            raise BadBody(f"its {encoded!r} is not base64.") from None
    part = members.get(name)
    # In an export, a result of null is written as null, and no result as none.
    return None if part is None else part.whole()


def _task(record: Record, result: bytes | None) -> Task:
    given = structs.asdict(record)
    worker, leased_at = given.pop("worker"), given.pop("leased_at")
    del given["id"]
    given["state"] = LETTERS[record.state]
    lease = Lease(worker=worker, granted_at=leased_at) if record.state == "leased" else None
    history = [Attempt(**{**structs.asdict(one), "error": _error(one.error)}) for one in record.history]
    given.update(error=_error(record.error), history=history, lease=lease)
    if result is not None:
        try:
            given["result"] = Raw(msgpack.encode(result.decode()))
        except UnicodeDecodeError:
            raise BadBody("its result is not UTF-8.") from None
    return Task(**given)


def _error(record: ErrorRecord | None) -> Error | None:
    return None if record is None else Error(**structs.asdict(record))

"""What a run of a command means: how its task ended, its result, its error, its progress."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from registry.cli.calls import encoded
from registry.cli.program import Ended

# sysexits.h: the payload is wrong, and will be at the next attempt; and "try again later".
EX_DATAERR, EX_TEMPFAIL = 65, 75
# What is kept of a command's stdout is what a request may carry; of its stderr, the end.
MAX_RESULT, MAX_TRACE = 16 << 20, 4096
MAX_MESSAGE = 500


@dataclass(frozen=True)
class Settings:
    """What to run, for which queues. Durations are in seconds. ``lease`` "" is the task's own; ``progress``: a descriptor or None.

    ``max_tasks``: how many tasks to take in all. ``wait``: None to wait for tasks for ever; else the worker ends when it has waited
    so long in vain. ``patience``: how long the registry may be away.
    """

    queues: Sequence[str]
    path: str
    arguments: Sequence[str]
    name: str
    order: str = "strict"
    concurrency: int = 1
    lease: str = ""
    time_limit: float | None = None
    delay: float = 10.0
    grace: float = 30.0
    kill_after: float = 5.0
    result: bool = True
    progress: int | None = None
    max_tasks: int | None = None
    wait: float | None = None
    patience: float = float("inf")


@dataclass(frozen=True)
class Verdict:
    """What to tell the registry of a run: the request, and one word for the log."""

    verb: str
    word: str
    body: bytes = b""
    query: dict[str, Any] = field(default_factory=dict)
    detail: str = ""


def progress_of(line: str) -> dict[str, Any]:
    """What a line of progress means: ``0.4``, ``40%``, ``0.4 half of it``, an object with progress and message, or a message."""
    text = line.strip()
    try:
        decoded = json.loads(text, parse_constant=_not_json)
    except (ValueError, RecursionError):
        decoded = None
    if isinstance(decoded, dict):
        found: dict[str, Any] = {}
        if _is_number(decoded.get("progress")):
            found["progress"] = decoded["progress"]
        if isinstance(decoded.get("message"), str):
            found["message"] = decoded["message"]
        return found
    number, _, message = text.partition(" ")
    try:
        value = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        return {"message": text}
    if not _is_number(value):
        return {"message": text}
    return {"progress": value, **({"message": message.strip()} if message.strip() else {})}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


def _not_json(word: str) -> Any:
    raise ValueError(word)


def verdict(ended: Ended, settings: Settings) -> Verdict:
    """What a run means for its task."""
    errors = ended.errors.decode("utf-8", "replace")[-MAX_TRACE:]
    if ended.code == 0 and ended.stopped != "timeout":
        if ended.output is None:
            too_large = f"its output is over {MAX_RESULT} bytes and is not kept" if settings.result else ""
            return Verdict("ack", "done", detail=too_large)
        return Verdict("ack", "done", result_of(ended.output) if settings.result else b"")
    if ended.stopped == "stopped":
        return Verdict("release", "released", detail="the worker stops")
    if ended.code == EX_TEMPFAIL and not ended.stopped:
        return Verdict("release", "released", query={"delay": str(settings.delay)}, detail="exit code 75")
    if ended.stopped == "timeout":
        kind, what = "timeout", f"it ran longer than {settings.time_limit:g} s"
    elif ended.stopped:
        kind, what = ended.stopped, f"it was stopped: {ended.stopped}"
    elif ended.code < 0:
        kind = _signal_name(-ended.code)
        what = f"killed by {kind}"
    else:
        kind, what = str(ended.code), f"exit code {ended.code}"
    last = next((line.strip() for line in reversed(errors.splitlines()) if line.strip()), "")
    error = {"type": kind, "message": last[:MAX_MESSAGE] or what, **({"trace": errors} if errors else {})}
    body: dict[str, Any] = {"error": error}
    if ended.code == EX_DATAERR and not ended.stopped:
        body["retry"] = False
    return Verdict("fail", "failed", encoded(body), detail=f"{what}: {last}" if last else what)


def result_of(output: bytes) -> bytes:
    """The stdout of a command as the result of its task: JSON as it is, anything else as a text; nothing for white space."""
    if not output.strip():
        return b""
    try:
        json.loads(output.decode("utf-8"), parse_constant=_not_json, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return encoded(output.decode("utf-8", "replace").rstrip("\r\n"))
    return output


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

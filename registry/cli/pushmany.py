"""``pushmany``: push a task for each line of standard input."""

from __future__ import annotations

import json
import os
import select
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from registry.cli.client import api_path
from registry.cli.errors import FAILED, CliError, Unreachable
from registry.cli.main import App, Command
from registry.cli.output import PATIENCE, is_terminal, progress
from registry.cli.push import header
from registry.cli.spool import Batch, Spool

# Of one request.
MAX_TASKS, MAX_BYTES = 1000, 4 << 20
# A batch waits this long for another line, s, so that "tail -f | registryctl pushmany" pushes what there is.
LINGER = 0.1
PIECE = 1 << 16
# With a spool, the registry is tried again after this long, s.
AGAIN = 5.0
# Errors with these codes concern one line; all others concern the whole request.
OF_A_LINE = ("bad_json", "too_deep", "body_too_large")
OPTIONS = {
    "delay": ("SECONDS", "Delay the task by this many seconds."),
    "at": ("TIME", "Ready only at this time, such as 2030-12-24T18:00:00Z."),
    "priority": ("0..9", "Higher goes first (0)."),
    "ttl": ("SECONDS", "Dead if it has not been leased by then."),
    "attempts": ("N", "Deliveries before a task is dead (25)."),
    "backoff": ("SECONDS", "Wait after the first failure (10)."),
    "lease": ("SECONDS", "Length of the leases if the pop does not say (60)."),
    "result": ("SECONDS", "How long to keep the result."),
}


def _push_options(command: Any) -> Any:
    for name, (metavar, text) in reversed(OPTIONS.items()):
        command = click.option(f"--{name}", metavar=metavar, help=text)(command)
    return command


@click.command(cls=Command)
@click.argument("queue", required=False)
@_push_options
@click.option(
    "--batch",
    type=click.IntRange(1, MAX_TASKS),
    default=MAX_TASKS,
    metavar="N",
    help="Tasks of one request at most.",
)
@click.option(
    "--idempotency-key",
    metavar="KEY",
    help="A repeat with the same key, lines and options within 24 hours stores nothing.",
)
@click.option(
    "--spool",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep tasks in this folder until the registry has answered; the next run sends what is left.",
)
@click.option("--flush", is_flag=True, help="Only send what is in the spool.")
@click.option("--ids", is_flag=True, help="Print the id of each task.")
@click.pass_obj
def pushmany(
    app: App,
    /,
    queue: str | None,
    batch: int,
    idempotency_key: str | None,
    spool: Path | None,
    flush: bool,
    ids: bool,
    **options: str | None,
) -> int:
    """Push a task for each line of standard input: one JSON value per line, the options for all of them.

    A line that is not JSON is reported with its number and left out; the exit code is then 1.
    """
    if flush and (spool is None or queue is not None):
        raise click.UsageError("--flush goes with --spool DIR, and without a queue.")
    if not flush and queue is None:
        raise click.UsageError("Missing argument 'QUEUE'.")
    push = Pushing(app, None if spool is None else Spool(spool), ids)
    if flush:
        push.flush(final=True)
    else:
        assert queue is not None
        api_path(queue)
        key = header("Idempotency-Key", idempotency_key) if idempotency_key else uuid.uuid4().hex
        given = {name: value for name, value in options.items() if value is not None}
        with push:
            for number, lines in enumerate(batches(batch, push.bad)):
                numbers, payloads = [line[0] for line in lines], [line[1] for line in lines]
                push.take(Batch(queue, given, f"{key}-{number}", numbers, payloads))
    return push.end()


class Pushing:
    """Pushes batches, directly or through a spool, and counts what became of the tasks."""

    def __init__(self, app: App, spool: Spool | None, ids: bool) -> None:
        self._app = app
        self._spool = spool
        self._ids = ids
        self._pushed = 0
        self._refused = 0
        self._try_after = 0.0
        self._refusal: CliError | None = None
        self._key = ""  # what the keys of this run's own batches begin with
        self._began = time.monotonic()
        self._bar: progress | None = None

    def __enter__(self) -> Pushing:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def bad(self, number: int, why: str) -> None:
        """A line is no task."""
        self._refused += 1
        self._app.out.warn(f"Line {number}: {why}")

    def take(self, batch: Batch) -> None:
        """Push a batch, or keep it."""
        if self._spool is None:
            try:
                self._send(batch)
            except CliError as error:
                outcome = "were not pushed"
                if isinstance(error, Unreachable) and error.sent:
                    outcome = "may not have been pushed"
                raise _with_more(error, f"Line {batch.numbers[0]} and those behind it {outcome}.") from None
            return
        self._key = batch.key.rpartition("-")[0]
        with self._spool.locked():
            try:
                self._spool.add(batch)
            except CliError as error:
                sentence = f"Line {batch.numbers[0]} and those behind it were neither kept nor pushed."
                raise _with_more(error, sentence) from None
        if self._refusal is None and time.monotonic() >= self._try_after:
            self.flush()

    def flush(self, final: bool = False) -> None:
        """Send what is in the spool, in order. ``final``: raise the error if nobody answers."""
        assert self._spool is not None
        with self._spool.locked():
            for path in self._spool.paths():
                batch = self._spool.read(path)
                try:
                    self._send(batch, path)
                except Unreachable:
                    if final:
                        raise
                    self._try_after = time.monotonic() + AGAIN
                    return
                except CliError as error:
                    if error.status in (400, 422):
                        refused = _with_more(error, f"The batch is in {self._spool.refuse(path)} now.")
                        if self._key and batch.key.startswith(f"{self._key}-"):
                            raise refused from None
                        # It belongs to an earlier run, and must not end this one.
                        self._refused += len(batch.lines)
                        self._app.out.warn(refused.message)
                        continue
                    # Keep the rest before reporting this: the right may be granted later, or the queue may have room again.
                    self._refusal = error
                    return
                self._spool.remove(path)

    def end(self) -> int:
        """Say what became of the tasks. Returns the exit code."""
        left = 0
        if self._spool is not None:
            if self._try_after and self._refusal is None:
                self.flush()
            left = sum(len(self._spool.read(path).lines) for path in self._spool.paths())
        out = self._app.out
        if out.as_json:
            out.json({"pushed": self._pushed, "refused": self._refused, "spooled": left})
        else:
            out.note(f"{self._pushed:,} {'task' if self._pushed == 1 else 'tasks'} pushed.")
        if left and self._spool is not None:
            out.note(f"{left:,} not yet pushed are kept in {self._spool.folder}.")
        if self._refusal is not None:
            raise self._refusal
        return FAILED if self._refused else 0

    def _send(self, batch: Batch, path: Path | None = None) -> None:
        """Push a batch; if one of its lines is refused, push the others and report that one."""
        try:
            answer = self._app.client.post(
                "pushTasks",
                batch.queue,
                query=batch.options,
                body=batch.body,
                headers={"Idempotency-Key": batch.key, "Content-Type": "application/x-ndjson"},
            )
        except CliError as error:
            if error.code not in OF_A_LINE and error.status != 413:
                raise
            if len(batch.lines) > 1:
                # Each half has its own key, which is the same at every try.
                middle = len(batch.lines) // 2
                self._send(batch.part(0, middle, "a"), path)
                self._send(batch.part(middle, len(batch.lines), "b"), path)
                return
            self.bad(batch.numbers[0], error.message)
            if self._spool is not None and path is not None:
                self._spool.keep_refused(batch, path)
            return
        self._pushed += len(batch.lines)
        if self._ids:
            for one in answer.json["ids"]:
                self._app.out.line(one)
        self._show()

    def _show(self) -> None:
        quiet = self._app.out.as_json or self._ids or not is_terminal(sys.stderr)
        if quiet or time.monotonic() - self._began < PATIENCE:
            return
        if self._bar is None:
            self._bar = progress("pushing", None).__enter__()
        self._bar(self._pushed)


def _with_more(error: CliError, sentence: str) -> CliError:
    """The same error with another sentence."""
    more = type(error)(f"{error.message} {sentence}")
    more.status, more.code = error.status, error.code
    return more


def batches(limit: int, bad: Any) -> Iterator[list[tuple[int, bytes]]]:
    """Batches of lines of standard input with their numbers. ``bad`` receives the number and the fault of a line that is not JSON."""
    found: list[tuple[int, bytes]] = []
    size = 0
    number = 0
    for line in _lines():
        if line is None:
            # No line has arrived for a while.
            if found:
                yield found
            found, size = [], 0
            continue
        number += 1
        payload = line.strip(b" \t\r\n")
        if not payload:
            continue
        if why := not_json(payload):
            bad(number, why)
            continue
        if found and (len(found) == limit or size + len(payload) > MAX_BYTES):
            yield found
            found, size = [], 0
        found.append((number, payload))
        size += len(payload) + 1
    if found:
        yield found


def not_json(line: bytes) -> str:
    """Why a line is not a JSON value; "" if it seems to be one."""
    try:
        json.loads(line.decode("utf-8"), parse_constant=_constant, parse_int=str, parse_float=str)
    except UnicodeDecodeError as error:
        return f"it is not UTF-8 at byte {error.start}."
    except json.JSONDecodeError as error:
        return f"it is not JSON: {error.msg} at character {error.pos + 1}."
    except RecursionError:
        return "it is nested too deeply."
    except ValueError as error:
        return f"it is not JSON: {error}."
    return ""


def _constant(word: str) -> Any:
    raise ValueError(f"{word} is not a JSON number")


def _lines() -> Iterator[bytes | None]:
    """The lines of standard input; None when no line has arrived for a while."""
    stream = sys.stdin.buffer
    try:
        descriptor = stream.fileno()
        begun = b""
        while True:
            if not select.select([descriptor], [], [], LINGER)[0]:
                yield None
                select.select([descriptor], [], [])
            data = os.read(descriptor, PIECE)
            if not data:
                break
            *whole, begun = (begun + data).split(b"\n")
            yield from whole
        if begun:
            yield begun
    except (OSError, ValueError):
        # No file of the operating system, as in a test.
        yield from stream

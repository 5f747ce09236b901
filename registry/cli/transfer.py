"""``export`` and ``import``: whole queues as lines of JSON, with every property of their tasks.

{"registry":"export","version":1,"at":"…"}        the first line
{"queue":"mail","policy":{…}}                     the rules of a queue, before its tasks
{"id":"…","queue":"mail","state":"ready",…}       a task, as GET /api/queues/{queue}/export has it
{"schedule":"nightly","cron":"…",…}               a schedule
{"registry":"end","tasks":2}                      the last line: without it the export is incomplete
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import click

from registry.cli.client import Answer
from registry.cli.errors import FAILED, BadUsage, CliError, NotFound
from registry.cli.lists import each_row
from registry.cli.main import App, Command
from registry.cli.output import PATIENCE, is_terminal, progress
from registry.cli.text import count

VERSION = 1
# Of one request of an import. A line that is longer goes alone.
MAX_TASKS, MAX_BYTES = 1000, 4 << 20
STATES = ("ready", "delayed", "leased", "dead", "done")
# The fields of a schedule that a PUT takes.
FIELDS = ("cron", "timezone", "queue", "task", "options", "missed", "paused")
_LINE = re.compile(r"Line (\d+) ")


@click.command("export", cls=Command)
@click.argument("queues", nargs=-1, metavar="[QUEUE…]")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to this file, for its owner alone; it is replaced when all is written.",
)
@click.pass_obj
def export(app: App, queues: tuple[str, ...], output: Path | None) -> None:
    """Write queues, with their tasks in every state, their policies and schedules, as lines of JSON; without a name, all.

    For an exact copy no task may change meanwhile: pause the queues, and wait until none is leased.
    """
    rows: list[dict[str, Any]] = []
    for name in queues:
        rows.append(app.client.get("queues", name).json)
    if not queues:
        rows = [row for row, _ in each_row(app, "queues", key="queues")]
    total = sum(row[state] for row in rows for state in STATES)
    with _written(output) as file, Bar(app, "exporting", total) as bar:
        export = Export(app, file, bar)
        export.head()
        for row in rows:
            export.queue(row)
        export.schedules(set(queues))
        export.end()
    where = f" to {output}" if output is not None else ""
    app.out.note(f"{count(export.tasks, 'task')} of {count(len(rows), 'queue')} exported{where}.")
    if export.leased:
        app.out.note(f"{count(export.leased, 'task')} were leased; an import makes them ready.")


class Export:
    """Writes the lines of an export to a file."""

    def __init__(self, app: App, file: IO[bytes], bar: Bar) -> None:
        self._app = app
        self._file = file
        self._bar = bar
        self._at = int(time.time() * 1000)
        self.tasks = 0
        self.leased = 0

    def head(self) -> None:
        self._write({"registry": "export", "version": VERSION, "at": datetime.now(UTC).isoformat()})

    def end(self) -> None:
        self._write({"registry": "end", "tasks": self.tasks})

    def queue(self, row: dict[str, Any]) -> None:
        """A queue's policy, if it has one, and its tasks."""
        if row["policy"]:
            self._write({"queue": row["name"], "policy": row["policy"]})
        raw = RawIds(self._at)
        for line in task_lines(self._app, row["name"]):
            if line.startswith('{"id":null,'):
                line = f'{{"id":"{raw.next(line)}",{line[11:]}'
            self._file.write(line.encode() + b"\n")
            self.tasks += 1
            self.leased += '"state":"leased"' in line[:600]
            self._bar(self.tasks)

    def schedules(self, queues: set[str]) -> None:
        """The schedules, all or those that push to these queues."""
        for row, text in each_row(self._app, "schedules", key="schedules"):
            if queues and row["queue"] not in queues:
                continue
            if row.get("truncated"):
                try:
                    text = self._app.client.get("schedules", row["name"]).text
                except NotFound:
                    continue
            answer = Answer(200, text)
            fields = [f'"{name}":{answer.member(name)}' for name in FIELDS if answer.member(name)]
            line = f'{{"schedule":{json.dumps(row["name"])},{",".join(fields)}}}'
            # Line breaks stand between values only.
            self._file.write(line.replace("\r", " ").replace("\n", " ").encode() + b"\n")

    def _write(self, value: Any) -> None:
        self._file.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")


class RawIds:
    """Ids for elements of other programs, which have none: made of their bytes and how often these came before."""

    def __init__(self, at_ms: int) -> None:
        self._at = at_ms
        self._times: Counter[bytes] = Counter()
        self.suffixes: set[str] = set()

    def next(self, line: str) -> str:
        """The id of the next element; two exports of one element differ in the time only."""
        answer = Answer(200, line)
        encoded = answer.member("payload_base64")
        payload = b64decode(encoded.strip('"')) if encoded else answer.member("task").encode()
        digest = hashlib.sha256(payload).digest()
        self._times[digest] += 1
        suffix = hashlib.sha256(b"%b %d" % (digest, self._times[digest])).hexdigest()[:12]
        self.suffixes.add(suffix)
        return f"{self._at:011x}A{suffix}"


def task_lines(app: App, queue: str, state: str | None = None) -> Iterator[str]:
    """The tasks of a queue as lines of JSON."""
    cursor: str | None = None
    while True:
        query = {"limit": MAX_TASKS, "state": state, "cursor": cursor}
        head, *lines, end = app.client.get("queues", queue, "export", query=query).text.split("\n")
        if head != '{"tasks":[' or not end.startswith('],"cursor":'):
            raise CliError(f"{app.target.url} answered something that is not the registry's export.")
        for line in lines:
            if line:
                yield line.removesuffix(",")
        cursor = json.loads(end[11:-1])
        if cursor is None:
            return


@contextmanager
def _written(output: Path | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that takes its place when all is written."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    new = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with open(new, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(output)
    except OSError as error:
        raise CliError(f"{output} cannot be written: {error.strerror or error}.") from None
    finally:
        new.unlink(missing_ok=True)


@click.command("import", cls=Command)
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE]")
@click.pass_obj
def import_(app: App, file: Path | None) -> int:
    """Store what an export has, from a file or standard input. Repeated, it stores nothing twice.

    Tasks that are there already, by their id, stay as they are; policies and schedules are set. A refused line is reported
    with its number and left out; the exit code is then 1.
    """
    if file is None or str(file) == "-":
        return Import(app, Bar(app, "importing", None)).run(sys.stdin.buffer)
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return Import(app, Bar(app, "importing bytes", size)).run(stream)
    except OSError as error:
        raise BadUsage(f"{file} cannot be read: {error.strerror}.") from None


class Import:
    """Stores the lines of an export."""

    def __init__(self, app: App, bar: Bar) -> None:
        self._app = app
        self._bar = bar
        self._queue = ""
        self._batch: list[tuple[int, bytes]] = []
        self._bytes = 0
        self._raw: dict[str, set[str]] = {}
        self._read = 0
        self._tasks = 0
        self._left: int | None = None
        self._count = Counter[str]()

    def run(self, stream: Any) -> int:
        """Read all lines. Returns the exit code."""
        with self._bar:
            number = 0
            for number, line in enumerate(stream, 1):
                self._read += len(line)
                if line.strip():
                    self._line(number, line.strip())
                    self._bar(self._read if self._bar.total else self._tasks)
            self._send()
        if number and self._left is None:
            self._wrong(number, "the export ends here without its last line: it is incomplete.")
        counts = self._count
        if self._app.out.as_json:
            self._app.out.json({name: counts[name] for name in ("imported", "existing", "refused")})
        else:
            parts = [f"{count(counts['imported'], 'task')} imported"]
            parts += [f"{counts['existing']:,} there already"] if counts["existing"] else []
            parts += [f"{counts['policies']} policies"] if counts["policies"] else []
            parts += [f"{counts['schedules']} schedules"] if counts["schedules"] else []
            self._app.out.note(f"{', '.join(parts)}.")
        return FAILED if counts["refused"] else 0

    def _wrong(self, number: int, why: str) -> None:
        self._count["refused"] += 1
        self._app.out.warn(f"Line {number}: {why}")

    def _line(self, number: int, line: bytes) -> None:
        try:
            row = Answer(200, line.decode()).json
        except (CliError, ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            self._wrong(number, "it is not a JSON object.")
        elif "id" in row and isinstance(row.get("queue"), str):
            self._task(number, line, row)
        elif "registry" in row:
            self._mark(number, row)
        elif isinstance(row.get("schedule"), str):
            self._apply(number, "schedules", lambda: self._schedule(row["schedule"], line))
        elif isinstance(row.get("queue"), str) and isinstance(row.get("policy"), dict):
            self._apply(number, "policies", lambda: self._policy(row["queue"], row["policy"]))
        else:
            self._wrong(number, "it is no line of an export.")

    def _mark(self, number: int, row: dict[str, Any]) -> None:
        if row["registry"] == "end":
            self._left = number
            if row.get("tasks") != self._tasks:
                self._wrong(number, f"the export had {row.get('tasks')} tasks; {self._tasks} came.")
        elif row.get("version") != VERSION:
            raise BadUsage(
                f"This export is of version {row.get('version')}; this registryctl reads {VERSION}."
            )
        else:
            self._left = None
        self._tasks = 0

    def _apply(self, number: int, what: str, act: Any) -> None:
        self._send()
        try:
            act()
        except CliError as error:
            if error.status not in (400, 409, 413):
                raise
            self._wrong(number, error.message)
        else:
            self._count[what] += 1

    def _policy(self, queue: str, policy: dict[str, Any]) -> None:
        rules = {name: value for name, value in policy.items() if name != "paused_until"}
        until = policy.get("paused_until")
        seconds = 0.0
        if isinstance(until, str):
            seconds = (datetime.fromisoformat(until) - datetime.now(UTC)).total_seconds()
            rules.pop("paused", None)
        if seconds > 0:
            self._app.client.post("queues", queue, "pause", query={"seconds": f"{seconds:.3f}"}, again=True)
        if rules:
            self._app.client.request("PATCH", "queues", queue, body=json.dumps(rules), again=True)

    def _schedule(self, name: str, line: bytes) -> None:
        answer = Answer(200, line.decode())
        fields = [f'"{field}":{answer.member(field)}' for field in FIELDS if answer.member(field)]
        body = f"{{{','.join(fields)}}}"
        self._app.client.request("PUT", "schedules", name, body=body, again=True)

    def _task(self, number: int, line: bytes, row: dict[str, Any]) -> None:
        self._tasks += 1
        task_id = str(row["id"])
        if task_id[11:12] == "A" and task_id[12:] in self._raw_of(row["queue"]):
            self._count["existing"] += 1
            return
        full = len(self._batch) == MAX_TASKS or self._bytes + len(line) > MAX_BYTES
        if full or row["queue"] != self._queue:
            self._send()
        self._queue = row["queue"]
        self._batch.append((number, line))
        self._bytes += len(line) + 1

    def _raw_of(self, queue: str) -> set[str]:
        """What the queue has of other programs' elements, by the ends of their ids in an export."""
        if queue not in self._raw:
            ids = RawIds(0)
            for line in task_lines(self._app, queue, "ready"):
                if line.startswith('{"id":null,'):
                    ids.next(line)
            self._raw[queue] = ids.suffixes
        return self._raw[queue]

    def _send(self) -> None:
        """Store the batch, without the lines that are refused, which are reported."""
        while self._batch:
            body = b"\n".join(line for _, line in self._batch)
            try:
                answer = self._app.client.post("queues", self._queue, "import", body=body, again=True)
            except CliError as error:
                at = _LINE.match(error.message)
                if error.status != 400 or at is None:
                    raise
                number, _ = self._batch.pop(int(at[1]) - 1)
                self._wrong(number, f"it {error.message[at.end() :]}")
                continue
            result = answer.json
            taken = result["key_taken"]
            self._count["imported"] += result["count"]
            self._count["existing"] += result["skipped"] - len(taken)
            numbers = (
                {Answer(200, line.decode()).json["id"]: number for number, line in self._batch}
                if taken
                else {}
            )
            for task_id in taken:
                self._wrong(numbers[task_id], f"the key of the task {task_id} is taken by another.")
            break
        self._batch, self._bytes = [], 0


class Bar:
    """A progress bar on a terminal, shown when the work takes longer than a second."""

    def __init__(self, app: App, title: str, total: int | None) -> None:
        self.total = total
        self._title = title
        self._shown = not app.out.as_json and is_terminal(sys.stderr)
        self._began = time.monotonic()
        self._bar: progress | None = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def __call__(self, done: int) -> None:
        if self._bar is not None:
            self._bar(done)
        elif self._shown and time.monotonic() - self._began > PATIENCE:
            self._bar = progress(self._title, self.total).__enter__()

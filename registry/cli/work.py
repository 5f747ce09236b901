"""``work``: any program is a worker."""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import signal
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import click

from registry.cli.calls import Calls
from registry.cli.errors import FAILED
from registry.cli.main import App, Command
from registry.cli.output import Output
from registry.cli.text import clean, cut
from registry.cli.verdicts import Settings
from registry.cli.worker import Line, Worker, worker_name

# In cron, the registry may be away for this long, s.
CRON_PATIENCE = 60.0
# Of a detail, characters.
MAX_SHOWN = 200
# So many lines of the log may wait for its reader; further lines are dropped.
MAX_WAITING = 10_000
LONGEST = 366 * 86_400


class WorkCommand(Command):
    """`work`: everything after the first ``--`` is the command, unchanged."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        if "--" in args:
            at = args.index("--")
            args, words = args[:at], args[at + 1 :]
        ctx.meta["command"] = words
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", "QUEUE…", "--", "COMMAND…"]


class Log:
    """Writes lines in its own thread: a log without a reader must not keep leases from being renewed."""

    def __init__(self, out: Output) -> None:
        self._out = out
        # The journal writes the time itself.
        self._timed = "JOURNAL_STREAM" not in os.environ
        self._lines: queue.SimpleQueue[tuple[bool, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def task(self, line: Line) -> None:
        """What became of a task."""
        job = line.job
        if self._out.as_json:
            row = {"queue": job.queue, "id": job.id, "attempt": job.attempt, "state": line.how}
            self._put(True, {**row, "seconds": round(line.seconds, 3), "detail": line.detail or None})
            return
        text = f"{clean(job.queue)} {job.id} attempt {job.attempt}: {line.how} after {line.seconds:.2f} s"
        self._put(False, f"{text}; {cut(clean(line.detail), MAX_SHOWN)}" if line.detail else text)

    def note(self, text: str) -> None:
        """Any other message."""
        self._put(False, text)

    def close(self, seconds: float = 2.0) -> None:
        """Write the remaining lines, for at most this long."""
        self._lines.put(None)
        self._thread.join(seconds)

    def _put(self, is_json: bool, what: Any) -> None:
        if self._lines.qsize() < MAX_WAITING:
            self._lines.put((is_json, what))

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            is_json, what = line
            try:
                if is_json:
                    self._out.json(what)
                    sys.stdout.flush()
                else:
                    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} " if self._timed else ""
                    click.echo(f"{now}{clean(what)}", err=True)
            except OSError:
                # The reader has gone; the work goes on.
                pass


@click.command(cls=WorkCommand)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE…")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    default=1,
    metavar="N",
    help="Run up to N commands at once (1).",
)
@click.option(
    "--strict/--fair", "strict", default=True, help="Empty the first queue first (default), or take turns."
)
@click.option("--once", is_flag=True, help="Take one task if there is one, and end.")
@click.option("--drain", is_flag=True, help="End when there is no task left.")
@click.option(
    "--timeout",
    "time_limit",
    type=click.FloatRange(0.001, LONGEST),
    metavar="SECONDS",
    help="Stop a command that runs longer; its task has failed.",
)
@click.option(
    "--lease",
    type=click.FloatRange(0.1, 43_200),
    metavar="SECONDS",
    help="Length of the leases, which are renewed while the command runs (the task's own, else the queue's, else 60).",
)
@click.option(
    "--delay",
    type=click.FloatRange(0, LONGEST),
    default=10.0,
    metavar="SECONDS",
    help="When a task that is released with exit code 75 is ready again (10).",
)
@click.option("--no-result", is_flag=True, help="Do not keep stdout as the task's result.")
@click.option(
    "--progress-fd",
    type=click.IntRange(3, 255),
    metavar="N",
    help="Lines that the command writes to this file descriptor become the task's progress.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, LONGEST),
    default=30.0,
    metavar="SECONDS",
    help="After SIGTERM, let commands finish for so long (30).",
)
@click.option(
    "--kill-after",
    type=click.FloatRange(0, 3600),
    default=5.0,
    metavar="SECONDS",
    help="Kill a command that does not stop after SIGTERM (5).",
)
@click.option("--name", metavar="NAME", help="Name of this worker (host and process number).")
@click.pass_context
def work(
    context: click.Context,
    queues: tuple[str, ...],
    concurrency: int,
    strict: bool,
    once: bool,
    drain: bool,
    time_limit: float | None,
    lease: float | None,
    delay: float,
    no_result: bool,
    progress_fd: int | None,
    grace: float,
    kill_after: float,
    name: str | None,
) -> int:
    """Run a command for each task: the payload is its stdin, its stdout the result.

    Exit code 0: done. 75: released, to be tried again after --delay. 65: dead at once. Any other, or a signal: failed.
    """
    app: App = context.obj
    words: list[str] = context.meta["command"]
    if not words:
        raise click.UsageError("The command is missing: registryctl work QUEUE -- COMMAND")
    if any(name in ("", ".", "..") or "/" in name for name in queues):
        raise click.UsageError("The name of a queue is not empty, and contains no slash.")
    path = shutil.which(words[0])
    if path is None:
        raise click.UsageError(f"{words[0]!r} is not found, or cannot be executed")
    settings = Settings(
        queues=queues,
        path=path,
        arguments=words,
        name=name or worker_name(),
        order="strict" if strict else "fair",
        concurrency=concurrency,
        lease="" if lease is None else str(lease),
        time_limit=time_limit,
        delay=delay,
        grace=grace,
        kill_after=kill_after,
        result=not no_result,
        progress=progress_fd,
        max_tasks=1 if once else None,
        wait=0.0 if once or drain else None,
        patience=CRON_PATIENCE if once or drain else float("inf"),
    )
    log = Log(app.out)
    try:
        failed = asyncio.run(_work(app, settings, log))
    finally:
        log.close()
    return FAILED if failed and (once or drain) else 0


async def _work(app: App, settings: Settings, log: Log) -> int:
    calls = Calls(app.target, log.note)
    worker = Worker(calls, settings, log.task, log.note)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, worker.stop)
    try:
        return await worker.run()
    finally:
        await calls.close()

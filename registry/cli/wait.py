"""``wait``: wait for the end of a task."""

from __future__ import annotations

import time

import click

from registry.cli.client import Answer
from registry.cli.errors import CliError, Unreachable
from registry.cli.main import App, Command
from registry.cli.tasks import TaskId, error_text, find_task

# One request waits so long at most, s: proxies give up after a minute.
A_REQUEST = 40.0
# The exit code if the task has not ended in time, as that of timeout(1).
TIMED_OUT = 124
# How long the registry may be away, s, and the pauses between two tries.
AWAY, AGAIN = 60.0, 0.5
# The daemon may answer before the end of the wait, when it stops: ask again, but not at once.
SHORTEST = 0.2


@click.command(cls=Command)
@click.argument("task", type=TaskId(), metavar="ID")
@click.option("--queue", metavar="QUEUE", help="The queue that the task is in.")
@click.option(
    "--timeout",
    "limit",
    type=click.FloatRange(0, 366 * 86_400),
    metavar="SECONDS",
    help="Wait no longer than this; the exit code is then 124.",
)
@click.pass_obj
def wait(app: App, task: tuple[str, str], queue: str | None, limit: float | None) -> int:
    """Wait until a task has ended, and print its result. ID is the id of a task, or QUEUE/ID.

    Exit code 0: done. 1: dead. 3: there is no such task. 5: the registry is away for a minute. 124: not in time.
    """
    end = float("inf") if limit is None else time.monotonic() + limit
    where = queue or task[0]
    away_since: float | None = None
    while True:
        began = time.monotonic()
        left = min(max(0.0, end - began), A_REQUEST)
        try:
            if not where:
                where, _ = find_task(app, "", task[1])
            query = {"wait": f"{left:.3f}"}
            answer = app.client.get("queues", where, "tasks", task[1], query=query, wait=left, patience=0)
        except Unreachable:
            away_since = away_since or began
            if time.monotonic() - away_since > AWAY or time.monotonic() > end:
                raise
            time.sleep(AGAIN)
            continue
        away_since = None
        state = answer.json.get("state")
        if state in ("done", "dead"):
            return _ended(app, answer)
        if time.monotonic() >= end:
            app.out.warn(f"The task {task[1]} has not ended yet: it is {state}.")
            return TIMED_OUT
        if time.monotonic() - began < min(left, SHORTEST):
            time.sleep(SHORTEST)


def _ended(app: App, answer: Answer) -> int:
    row = answer.json
    if app.out.as_json:
        app.out.json(answer.text)
        return int(row["state"] == "dead")
    if row["state"] == "done":
        app.out.json(answer.member("result") or "null")
        return 0
    last = row["history"][-1]["error"] if row.get("history") else None
    why = f": {error_text(last)}" if last else ""
    raise CliError(f"The task {row['id']} is dead, {row.get('reason')}{why}")

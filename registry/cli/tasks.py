"""``tasks QUEUE`` and ``task ID``: what a queue holds, and one task, with what can be done to it.

An id does not say which queue its task is in. ``QUEUE/ID`` names both, because no name contains a slash; for an id alone the
queues are searched one after the other.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import click

from registry.cli.client import Answer
from registry.cli.errors import CliError, NotFound, Refused
from registry.cli.lists import SHOWN, each_row, print_rows, shown
from registry.cli.main import App, Command, Group
from registry.cli.output import is_terminal, progress
from registry.cli.queues import STATES, tell_undo
from registry.cli.text import clean_json, compact, cut, duration, moment, since

# Searching this many queues takes about a second.
MANY = 200


@click.command(cls=Command)
@click.argument("queue")
@click.option("--state", type=click.Choice(STATES), default="ready", show_default=True, help="Which tasks.")
@click.option("--search", metavar="TEXT", help="Only tasks with this in their payload, id, reason or error.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="Show at most N tasks.",
)
@click.option("--all", "everything", is_flag=True, help="All tasks, however many there are.")
@click.pass_obj
def tasks(app: App, queue: str, state: str, search: str | None, limit: int, everything: bool) -> None:
    """List the tasks of QUEUE in one state."""
    limit_or_all = None if everything else limit
    rows = each_row(
        app,
        "queues",
        queue,
        "tasks",
        key="tasks",
        query={"state": state, "search": search},
        limit=limit_or_all,
    )
    columns = ("id", "#attempt", "#priority", "pushed", "ended", "reason", "error…", "task…")
    print_rows(app, rows, columns, _cells, f"There are no {state} tasks in this queue.")


def _cells(row: dict[str, Any], text: str) -> tuple[Any, ...]:
    history = row.get("history") or [{}]
    error = error_text(history[-1].get("error"))
    return (
        row.get("id") or "-",
        row.get("attempt"),
        row.get("priority"),
        moment(row.get("pushed_at")),
        moment(row.get("ended_at")),
        row.get("reason"),
        cut(error, SHOWN),
        shown(text, "task"),
    )


def error_text(error: Any) -> str:
    """An attempt's error as ``TYPE: MESSAGE``."""
    if not isinstance(error, dict):
        return "" if error is None else str(error)
    return ": ".join(str(error[part]) for part in ("type", "message") if error.get(part))


class TaskId(click.ParamType[tuple[str, str]]):
    """ID or QUEUE/ID."""

    name = "task"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        queue, _, task_id = str(value).rpartition("/")
        if not task_id:
            self.fail(f"{value!r} is not ID or QUEUE/ID.", param, ctx)
        return queue, task_id


def find_task(app: App, queue: str, task_id: str) -> tuple[str, Answer]:
    """The queue that a task is in, and the task; without a ``queue`` all queues are searched. Raises `NotFound`."""
    if queue:
        return queue, app.client.get("queues", queue, "tasks", task_id)
    try:
        names = [row["name"] for row, _ in each_row(app, "queues", key="queues")]
    except Refused as error:
        raise Refused(f"{error.format_message()} Name the queue too: QUEUE/{task_id}") from None
    show = len(names) > MANY and is_terminal(sys.stderr) and not app.out.as_json
    with progress("looking for the task", len(names)) if show else nullcontext() as advance:
        for number, name in enumerate(names):
            if advance is not None:
                advance(number)
            try:
                return name, app.client.get("queues", name, "tasks", task_id)
            except NotFound:
                continue
            except Refused as error:
                # A key of another type at this queue's name, or a queue that this token may not read.
                if error.status not in (403, 409):
                    raise
    raise NotFound(f"There is no task {task_id} in any of {len(names):,} queues. (not_found)")


@click.group(cls=Group, invoke_without_command=True)
@click.argument("task", type=TaskId(), metavar="ID")
@click.option("--queue", metavar="QUEUE", help="The queue that the task is in.")
@click.pass_context
def task(context: click.Context, task: tuple[str, str], queue: str | None) -> None:
    """Look at a task, or change it. ID is the id of a task, or QUEUE/ID.

    An id alone is looked for in all queues; with its queue it is found at once.
    """
    app: App = context.obj
    context.meta["task"] = queue or task[0], task[1]
    if context.invoked_subcommand is None:
        show_task(app, find_task(app, *context.meta["task"])[1])


def show_task(app: App, answer: Answer) -> None:
    """Print a task and its history."""
    if app.out.as_json:
        app.out.json(answer.text)
        return
    row = answer.json
    named = ("id", "queue", "state", "reason", "attempt", "priority", "key", "cancelled")
    times = (("pushed", "pushed_at"), ("due", "due_at"), ("expires", "expires_at"), ("ended", "ended_at"))
    pairs: list[tuple[str, Any]] = [(name, row.get(name)) for name in named]
    for name, key in times:
        ago = f" ({since(row[key])} ago)" if name in ("pushed", "ended") and row.get(key) else ""
        pairs.append((name, moment(row.get(key)) + ago))
    pairs += [("progress", None if row.get("progress") is None else compact(row["progress"]))]
    hidden = "(this token may not see it)" if row.get("hidden") else ""
    pairs += [("task", hidden or clean_json(answer.member("task")))]
    pairs += [("result", None if row.get("result") is None else clean_json(answer.member("result")))]
    app.out.fields(pairs)
    if row.get("history"):
        app.out.line()
        columns = ("#attempt", "worker", "leased", "took", "ended by", "error…")
        app.out.table(columns, [_attempt(one) for one in row["history"]])


def _attempt(one: dict[str, Any]) -> tuple[Any, ...]:
    from datetime import datetime

    took = ""
    if one.get("leased_at") and one.get("ended_at"):
        begin, end = (datetime.fromisoformat(one[name]) for name in ("leased_at", "ended_at"))
        took = duration((end - begin).total_seconds())
    return (
        one.get("attempt"),
        one.get("worker"),
        moment(one.get("leased_at")),
        took,
        one.get("reason"),
        error_text(one.get("error")),
    )


def _found(context: click.Context) -> tuple[App, str, str]:
    app: App = context.obj
    queue, task_id = context.meta["task"]
    return app, queue or find_task(app, "", task_id)[0], task_id


@task.command()
@click.pass_context
def why(context: click.Context) -> None:
    """Show why the task is not running."""
    app, queue, task_id = _found(context)
    answer = app.client.get("queues", queue, "tasks", task_id, "why")
    if app.out.as_json:
        app.out.json(answer.text)
    else:
        app.out.line(answer.json["sentence"])


@task.command()
@click.pass_context
def cancel(context: click.Context) -> None:
    """End the task if it waits, tell its worker to stop if it runs, delete it if it has ended."""
    app, queue, task_id = _found(context)
    answer = app.client.request("DELETE", "queues", queue, "tasks", task_id)
    if app.out.as_json:
        app.out.json(answer.text)
        return
    sentences = {
        "cancelled": "The task is cancelled.",
        "marked": "The task is running. Its worker learns of the cancellation when it renews the lease.",
        "removed": "The task had ended; it is deleted.",
    }
    app.out.line(sentences.get(answer.json["how"], answer.json["how"]))
    tell_undo(app, answer)


@task.command()
@click.pass_context
def retry(context: click.Context) -> None:
    """Make the dead task ready again."""
    app, queue, task_id = _found(context)
    # A task that was cancelled or has expired is retried only if the reason is named.
    reason = app.client.get("queues", queue, "tasks", task_id).json.get("reason")
    answer = app.client.post("queues", queue, "retry", query={"id": task_id, "reason": reason})
    if not answer.json.get("count"):
        raise CliError("The task was not retried: it is not dead any more.")
    if app.out.as_json:
        app.out.json(answer.text)
    else:
        app.out.line("The task is ready again.")
        tell_undo(app, answer)


@task.command()
@click.pass_context
def run(context: click.Context) -> None:
    """Make the delayed task ready now."""
    app, queue, task_id = _found(context)
    answer = app.client.post("queues", queue, "tasks", task_id, "run")
    if app.out.as_json:
        app.out.json(answer.text)
    else:
        app.out.line("The task is ready.")

"""``dead``, ``workers`` and ``worker NAME``: what failed and why, and who works."""

from __future__ import annotations

import json
from typing import Any

import click

from registry.cli.lists import print_rows
from registry.cli.main import App, Command
from registry.cli.text import moment, since

_BLAME = {"worker": "a worker", "tasks": "the tasks", "unclear": ""}


@click.command(cls=Command)
@click.option("--queue", metavar="QUEUE", help="Only of this queue.")
@click.pass_obj
def dead(app: App, queue: str | None) -> None:
    """List the dead tasks of all queues, grouped by their error.

    A group that comes from one worker points to that worker; one that every worker meets points to the tasks.
    """
    answer = app.client.get("dead", query={"queue": queue, "limit": 1000})
    if not answer.json.get("complete", True):
        app.out.note("There are too many dead tasks: the newest of each queue are counted, not all.")
    rows = zip(answer.json["groups"], answer.rows("groups"), strict=True)
    wanted = ((row, text) for row, text in rows if queue is None or queue in _names(row.get("queues")))
    columns = ("#count", "type", "message…", "queues…", "points to", "first", "last")
    print_rows(app, wanted, columns, _dead_cells, "There are no dead tasks.")


def _names(found: Any) -> list[str]:
    """Names in a list of them, of objects that have one, or as keys."""
    return [str(one.get("name", one) if isinstance(one, dict) else one) for one in found or ()]


def _dead_cells(row: dict[str, Any], _: str) -> tuple[Any, ...]:
    return (
        f"{row['count']:,}",
        row.get("type") or "-",
        row.get("message"),
        ", ".join(_names(row.get("queues"))),
        row.get("worker") or _BLAME.get(str(row.get("points_to")), row.get("points_to")),
        moment(row.get("first")),
        moment(row.get("last")),
    )


@click.command(cls=Command)
@click.pass_obj
def workers(app: App) -> None:
    """List the workers: where they are, what they wait for, how many tasks they hold.

    Done and failed are those of the last five to ten minutes. A worker that fails what others finish is failing.
    """
    answer = app.client.get("workers")
    rows = zip(answer.json["workers"], answer.rows("workers"), strict=True)
    columns = (
        *("worker", "address", "queues…", "since", "seen", "state"),
        *("#leases", "#done", "#failed", "order", "program…"),
    )
    print_rows(app, rows, columns, _worker_cells, "There are no known workers.")
    for row in answer.json["workers"]:
        if row.get("verdict"):
            app.out.note(f"{row['worker']} is failing: {row['verdict']['sentence']}")


def _worker_cells(row: dict[str, Any], _: str) -> tuple[Any, ...]:
    seen = since(row.get("last_seen"))
    return (
        row.get("worker") or "-",
        row.get("address"),
        ", ".join(_names(row.get("queues"))),
        moment(row.get("since")),
        f"{seen} ago" if seen else "",
        "failing" if row.get("failing") else "waits" if row.get("parked") else "",
        row.get("lease_count", len(row.get("leases") or ())),
        row.get("done"),
        row.get("failed"),
        row.get("order"),
        row.get("user_agent"),
    )


@click.command(cls=Command)
@click.argument("name")
@click.argument("order", type=click.Choice(["run", "quiet", "stop"]))
@click.pass_obj
def worker(app: App, name: str, order: str) -> None:
    """Tell the worker NAME to take nothing new (quiet), to end (stop), or to work again (run)."""
    answer = app.client.post("workers", name, body=json.dumps({"order": order}), again=True)
    if app.out.as_json:
        app.out.json(answer.text)
    else:
        app.out.line(f"The worker is told to {'be quiet' if order == 'quiet' else order}.")

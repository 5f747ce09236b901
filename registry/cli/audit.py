"""``audit`` and ``undo``: what operators did, and how to undo it."""

from __future__ import annotations

from typing import Any

import click

from registry.cli.lists import each_row, print_rows
from registry.cli.main import App, Command
from registry.cli.text import compact, count, moment

_WHY = {
    "key_taken": "another task with this key waits or runs",
    "expired": "its time is over",
    "no_room": "the queue keeps no more ended tasks",
    "exists": "the queue has a task with this id again",
    "started": "it was handed out since",
    "gone": "it has ended, or was deleted, moved or retried since",
}


@click.command(cls=Command)
@click.option("--queue", metavar="QUEUE", help="Only what was done to this queue.")
@click.option("--action", metavar="ACTION", help="Only this: purge, delete, retry, move, policy, pause …")
@click.option("--name", metavar="TOKEN", help="Only what was done with the token of this name.")
@click.option("--since", metavar="TIME", help="Only what was done after this time.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    metavar="N",
    help="Show at most N actions.",
)
@click.option("--all", "everything", is_flag=True, help="All entries, however many there are.")
@click.pass_obj
def audit(app: App, /, limit: int, everything: bool, **options: str | None) -> None:
    """List what operators changed, newest first: who, when, what, how many."""
    rows = each_row(app, "audit", key="audit", query=options, limit=None if everything else limit)
    columns = ("id", "when", "who", "address", "action", "on…", "#count", "undo", "options…")
    print_rows(app, rows, columns, _cells, "There are no entries.")


def _cells(row: dict[str, Any], _: str) -> tuple[Any, ...]:
    subject = [row[part] for part in ("queue", "task", "schedule") if row.get(part)]
    undo = row.get("undo")
    undone = (
        "" if not undo else "undone" if undo.get("undone_at") else f"until {moment(undo.get('until'))[11:]}"
    )
    return (
        row["id"],
        moment(row.get("at")),
        row.get("name") or "-",
        row.get("address"),
        row.get("action"),
        "/".join(map(str, subject)),
        row.get("count"),
        undone if row.get("outcome") != "unfinished" else f"unfinished {undone}".rstrip(),
        compact(row["options"], 80) if row.get("options") else "",
    )


@click.command(cls=Command)
@click.argument("entry", metavar="ID")
@click.pass_obj
def undo(app: App, entry: str) -> None:
    """Take back a purge, a bulk deletion, a cancel or a retry. ID is that of its audit entry.

    This works for ten minutes. Tasks that could not come back are counted by reason.
    """
    answer = app.client.post("audit", entry, "undo", timeout=3600.0)
    if app.out.as_json:
        app.out.json(answer.text)
        return
    result = answer.json
    app.out.line(f"{count(result['count'], 'task')} came back.")
    for reason, number in (result.get("reasons") or {}).items():
        app.out.line(f"{count(number, 'task')} did not: {_WHY.get(reason, reason)}.")

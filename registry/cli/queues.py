"""``queues`` and ``queue NAME``: what queues hold, and their operations."""

from __future__ import annotations

import click

from registry.cli.main import App, Command
from registry.cli.text import duration


@click.command(cls=Command)
@click.option("--search", help="Only queues whose name contains this.")
@click.option("--sort", type=click.Choice(["name", "oldest", "ready", "delayed", "leased", "dead", "done"]))
@click.option(
    "--families", is_flag=True, help="Sum the queues that share the part of their name before a colon."
)
@click.option("--limit", type=click.IntRange(1), help="At most so many queues.")
@click.pass_obj
def queues(app: App, search: str | None, sort: str | None, families: bool, limit: int | None) -> None:
    """List the queues."""
    query = {
        "search": search,
        "sort": sort,
        "family": ":" if families else None,
        "limit": min(limit or 1000, 1000),
    }
    rows, shown = [], 0
    for page in app.client.pages("queues", key="queues", query=query):
        for row, text in zip(page.json["queues"], page.rows("queues"), strict=True):
            if limit is not None and shown >= limit:
                break
            shown += 1
            if app.out.as_json:
                app.out.json(text)
            else:
                rows.append(row)
        if limit is not None and shown >= limit:
            break
    if not app.out.as_json:
        columns = (
            "queue",
            "#ready",
            "#delayed",
            "#leased",
            "#dead",
            "#done",
            "#oldest",
            "#pollers",
            "paused",
        )
        table = [
            (
                row["name"],
                *(f"{row[state]:,}" for state in ("ready", "delayed", "leased", "dead", "done")),
                duration(row.get("oldest_age")),
                row.get("pollers", 0),
                "paused" if row.get("policy", {}).get("paused") else "",
            )
            for row in rows
        ]
        if table:
            app.out.table(columns, table)
        else:
            app.out.note("There are no queues.")

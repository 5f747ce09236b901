"""``findings``: what is wrong now."""

from __future__ import annotations

from typing import Any

import click

from registry.cli.errors import FAILED
from registry.cli.main import App, Command


@click.command(cls=Command)
@click.pass_obj
def findings(app: App) -> None:
    """Say what is wrong and does not heal by itself, the worst first, and what to do next. Exit code 1 if anything is."""
    answer = app.client.get("findings")
    report: Any = answer.json
    if app.out.as_json:
        for text in answer.rows("findings"):
            app.out.json(text)
    else:
        app.out.line(report["headline"])
        for row in report["findings"]:
            app.out.line(f"{row['severity']:<8}  {line_of(row)}")
            if command := (row.get("action") or {}).get("command"):
                app.out.line(f"{'':<8}  {command}")
        if more := report["count"] - len(report["findings"]):
            app.out.line(f"and {more:,} more")
    if report["count"]:
        raise click.exceptions.Exit(FAILED)


def line_of(row: dict[str, Any]) -> str:
    """A finding in one line."""
    return f"{row['sentence']}. {row['detail']}"

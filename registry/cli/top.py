"""``top``: the queues as they change."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from registry.cli.errors import Unreachable
from registry.cli.main import App, Command
from registry.cli.output import Live, console_of, is_terminal, table_of
from registry.cli.queues import COLUMNS, STATES, queue_cells
from registry.cli.text import clean, count

# Of the lines of a terminal: the summary, a blank one, the headings, and the last one.
OTHER_LINES = 4


@click.command(cls=Command)
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often.",
)
@click.option(
    "--sort",
    type=click.Choice(["name", "oldest", *STATES]),
    default="ready",
    show_default=True,
    help="Order of the queues.",
)
@click.option("--search", metavar="TEXT", help="Only queues whose name contains this.")
@click.option("--once", is_flag=True, help="Print it once and end, as without a terminal and with --json.")
@click.pass_obj
def top(app: App, interval: float, sort: str, search: str | None, once: bool) -> None:
    """Show the queues, the fullest first, and keep the picture up to date. Ctrl-C ends it."""
    query = {"sort": sort, "search": search}
    if app.out.as_json:
        for text in app.client.get("queues", query={**query, "limit": 100}).rows("queues"):
            app.out.json(text)
        return
    if once or not is_terminal(sys.stdout):
        app.out.draw(_picture(app, {**query, "limit": 100}, {}))
        return
    from rich.text import Text

    before: dict[str, tuple[float, dict[str, Any]]] = {}
    with Live() as show:
        while True:
            lines = max(1, console_of(sys.stdout).height - OTHER_LINES)
            try:
                show(_picture(app, {**query, "limit": min(lines, 1000)}, before))
            except Unreachable as error:
                # It may be restarting: the picture goes on when it is back.
                show(Text(clean(error.format_message())))
            time.sleep(interval)


def _picture(app: App, query: dict[str, Any], before: dict[str, tuple[float, dict[str, Any]]]) -> Any:
    from rich.console import Group
    from rich.text import Text

    rows, now = app.client.get("queues", query=query).json["queues"], time.monotonic()
    cells = [(*queue_cells(row), _change(row, before.get(row["name"]), now)) for row in rows]
    before.clear()
    before.update((row["name"], (now, row)) for row in rows)
    totals = ", ".join(f"{sum(row[state] for row in rows):,} {state}" for state in STATES)
    head = f"{app.target.url}  {time.strftime('%H:%M:%S')}  {count(len(rows), 'queue')} shown: {totals}"
    return Group(Text(clean(head), no_wrap=True), Text(), table_of((*COLUMNS, "#ready/s"), cells))


def _change(row: dict[str, Any], old: tuple[float, dict[str, Any]] | None, now: float) -> str:
    """By how many tasks a second the number of ready ones changes."""
    if old is None or now <= old[0]:
        return ""
    change = (row["ready"] - old[1]["ready"]) / (now - old[0])
    return f"{change:+.1f}" if change else ""

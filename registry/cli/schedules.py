"""``schedule``: tasks that are pushed at the times of a cron expression."""

from __future__ import annotations

import json
from typing import Any

import click

from registry.cli.client import Answer
from registry.cli.errors import BadUsage
from registry.cli.lists import each_row, print_rows, shown
from registry.cli.main import App, Group
from registry.cli.push import read_payload
from registry.cli.queues import json_object
from registry.cli.text import clean_json, compact, moment

# What a PUT takes; a GET answers more.
_FIELDS = ("cron", "timezone", "queue", "task", "options", "missed", "paused")


@click.group(cls=Group)
def schedule() -> None:
    """List, change and run schedules."""


@schedule.command("list")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Show at most N schedules.")
@click.pass_obj
def list_schedules(app: App, limit: int | None) -> None:
    """List the schedules by name."""
    rows = each_row(app, "schedules", key="schedules", limit=limit)
    columns = ("schedule", "cron", "timezone", "queue", "next", "last", "#missed", "paused", "task…")
    print_rows(app, rows, columns, _cells, "There are no schedules.")


def _cells(row: dict[str, Any], text: str) -> tuple[Any, ...]:
    return (
        row["name"],
        row["cron"],
        row["timezone"],
        row["queue"],
        moment(row.get("next_at")),
        moment(row.get("last_at")),
        row.get("missed_count"),
        "paused" if row.get("paused") else "",
        shown(text, "task"),
    )


@schedule.command()
@click.argument("name")
@click.pass_obj
def show(app: App, name: str) -> None:
    """Show one schedule."""
    _print(app, app.client.get("schedules", name))


def _print(app: App, answer: Answer) -> None:
    if app.out.as_json:
        app.out.json(answer.text)
        return
    row = answer.json
    pairs = [
        ("schedule", row["name"]),
        *((name, row.get(name)) for name in ("cron", "timezone", "queue", "missed")),
    ]
    pairs += [("options", compact(row["options"]) if row.get("options") else None)]
    pairs += [
        ("missed ticks", row.get("missed_count") or None),
        ("paused", "yes" if row.get("paused") else None),
    ]
    pairs += [("next", moment(row.get("next_at"))), ("last", moment(row.get("last_at")))]
    pairs += [("task", clean_json(answer.member("task")))]
    app.out.fields(pairs)


@schedule.command()
@click.argument("name")
@click.argument("task", required=False)
@click.option(
    "--cron", required=True, metavar="EXPRESSION", help="Five fields: minute hour day month weekday."
)
@click.option("--queue", required=True, metavar="QUEUE", help="Where the task is pushed.")
@click.option("--timezone", metavar="ZONE", help="Such as Europe/Vienna (UTC).")
@click.option(
    "--missed", type=click.Choice(["skip", "once"]), help="What to do about ticks while no daemon ran (skip)."
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the push, such as attempts=3.",
)
@click.option("--paused", is_flag=True, help="Do not run it yet.")
@click.pass_obj
def put(
    app: App,
    name: str,
    task: str | None,
    cron: str,
    queue: str,
    timezone: str | None,
    missed: str | None,
    options: tuple[str, ...],
    paused: bool,
) -> None:
    """Create or replace a schedule. TASK is a JSON value (null), @FILE or - for standard input."""
    body: dict[str, str] = {
        "cron": json.dumps(cron),
        "queue": json.dumps(queue),
        "paused": json.dumps(paused),
    }
    try:
        body["task"] = "null" if task is None else read_payload(task).decode() or "null"
    except UnicodeDecodeError:
        raise BadUsage("The task is not UTF-8.") from None
    if timezone is not None:
        body["timezone"] = json.dumps(timezone)
    if missed is not None:
        body["missed"] = json.dumps(missed)
    if options:
        body["options"] = json_object(options)
    _print(app, _put(app, name, body))


def _put(app: App, name: str, members: dict[str, str]) -> Answer:
    text = "{" + ",".join(f"{json.dumps(field)}:{value}" for field, value in members.items()) + "}"
    # A PUT that changes nothing has no effect, so it may be repeated.
    return app.client.request(
        "PUT", "schedules", name, body=text.encode("utf-8", "surrogateescape"), again=True
    )


def _set_paused(app: App, name: str, paused: bool) -> None:
    answer = app.client.get("schedules", name)
    # As it was sent: a number in the task may be one that Python cannot hold.
    members = {field: answer.member(field) for field in _FIELDS if answer.member(field)}
    _print(app, _put(app, name, {**members, "paused": json.dumps(paused)}))


@schedule.command()
@click.argument("name")
@click.pass_obj
def pause(app: App, name: str) -> None:
    """Stop a schedule until it is resumed."""
    _set_paused(app, name, True)


@schedule.command()
@click.argument("name")
@click.pass_obj
def resume(app: App, name: str) -> None:
    """Let a schedule run again, from its next tick on."""
    _set_paused(app, name, False)


@schedule.command()
@click.argument("name")
@click.pass_obj
def run(app: App, name: str) -> None:
    """Push the task of a schedule now; its ticks stay as they are."""
    answer = app.client.post("schedules", name, "run")
    if app.out.as_json:
        app.out.json(answer.text)
    else:
        app.out.line(answer.json["id"])


@schedule.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(app: App, name: str, yes: bool) -> None:
    """Delete a schedule; the tasks that it pushed stay."""
    app.client.get("schedules", name)
    app.out.confirm(f"Delete the schedule {name} on {app.target.url}?", yes)
    answer = app.client.request("DELETE", "schedules", name)
    if app.out.as_json:
        app.out.json(answer.text)
    else:
        app.out.line("The schedule is deleted.")

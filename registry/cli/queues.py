"""``queues`` and ``queue NAME``: what queues hold, and the operations on a whole queue."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from registry.cli.client import Answer
from registry.cli.errors import BadUsage
from registry.cli.lists import each_row, print_rows
from registry.cli.main import App, Command, Group
from registry.cli.text import compact, count, duration

STATES = ("ready", "delayed", "leased", "dead", "done")
COLUMNS = ("queue", "#ready", "#delayed", "#leased", "#dead", "#done", "#oldest", "#pollers", "paused")
# A bulk operation goes on for as long as there are tasks; the connection has to last, s.
BULK_SECONDS = 3600.0


def queue_cells(row: dict[str, Any], _: str = "") -> tuple[Any, ...]:
    """The cells of a queue, in the order of `COLUMNS`."""
    counts = (f"{row[state]:,}" for state in STATES)
    paused = "paused" if row.get("policy", {}).get("paused") else ""
    return row["name"], *counts, duration(row.get("oldest_age")), row.get("pollers", 0), paused


@click.command(cls=Command)
@click.option("--search", metavar="TEXT", help="Only queues whose name contains this.")
@click.option("--sort", type=click.Choice(["name", "oldest", *STATES]), help="Order of the list (name).")
@click.option(
    "--families",
    is_flag=True,
    help="One row for all queues that share the part of their name before a colon.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Show at most N queues.")
@click.pass_obj
def queues(app: App, search: str | None, sort: str | None, families: bool, limit: int | None) -> None:
    """List the queues, and how many tasks of each state they hold."""
    query = {"search": search, "sort": sort, "family": ":" if families else None}
    rows = each_row(app, "queues", key="queues", query=query, limit=limit)
    print_rows(app, rows, COLUMNS, queue_cells, "There are no queues.")


@click.group(cls=Group, invoke_without_command=True)
@click.argument("name")
@click.pass_context
def queue(context: click.Context, name: str) -> None:
    """Look at the queue NAME, or change all of it.

    Without a command: what the queue holds, and its policy.
    """
    if context.invoked_subcommand is None:
        app: App = context.obj
        show_queue(app, app.client.get("queues", name))


def show_queue(app: App, answer: Answer) -> None:
    """Print a queue."""
    if app.out.as_json:
        app.out.json(answer.text)
        return
    row = answer.json
    pairs = [("queue", row["name"]), *((state, f"{row[state]:,}") for state in STATES)]
    pairs += [("oldest ready task", duration(row.get("oldest_age"))), ("waiting polls", row.get("pollers"))]
    pairs += [(f"policy: {rule}", _shown(value)) for rule, value in row.get("policy", {}).items()]
    app.out.fields(pairs)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else compact(value)


def name_of(context: click.Context) -> str:
    """The NAME of ``queue NAME COMMAND``."""
    assert context.parent is not None
    return str(context.parent.params["name"])


@queue.command()
@click.option("--seconds", metavar="SECONDS", help="Resume by itself after this many seconds.")
@click.pass_context
def pause(context: click.Context, seconds: str | None) -> None:
    """Hand out no task until the queue is resumed."""
    app: App = context.obj
    show_queue(app, app.client.post("queues", name_of(context), "pause", query={"seconds": seconds}))


@queue.command()
@click.pass_context
def resume(context: click.Context) -> None:
    """Hand out tasks again."""
    app: App = context.obj
    show_queue(app, app.client.post("queues", name_of(context), "pause", query={"seconds": 0}, again=True))


@queue.command("set")
@click.argument("rules", nargs=-1, required=True, metavar="RULE=VALUE…")
@click.pass_context
def set_rules(context: click.Context, rules: tuple[str, ...]) -> None:
    """Change the policy of the queue.

    Such as: rate=5 concurrency=2 paused=true. A VALUE is a number, true, false, or JSON; RULE= resets a rule. The rules are
    paused, max_length, lease, attempts, backoff, ttl, rate, concurrency, max_run, poison and retention.
    """
    app: App = context.obj
    body = json_object(rules)
    show_queue(app, app.client.request("PATCH", "queues", name_of(context), body=body, again=True))


def json_object(pairs: tuple[str, ...]) -> str:
    """NAME=VALUE words as a JSON object; a VALUE is JSON as it is, else a text, and null if it is empty."""
    members: dict[str, str] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise click.UsageError(f"{pair!r} is not NAME=VALUE.")
        members[name] = value if is_json(value) else json.dumps(value) if value else "null"
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in members.items()) + "}"


def is_json(text: str) -> bool:
    """Whether this is JSON, without the constants that only Python knows."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    try:
        json.loads(text, parse_constant=refuse, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return True


# Bulk operations


def bulk(
    app: App,
    what: str,
    total: int,
    work: Callable[[], Answer],
    left: Callable[[], int],
    *,
    yes: bool,
    question: str,
    undoable: bool = True,
) -> None:
    """Ask, carry it out with a progress bar, and print how many tasks it changed. ``what``: "deleted", "retried" …"""
    if total:
        app.out.confirm(question, yes)
    before = left() if total else 0
    answer = app.out.watch(what, total, work, lambda: total - (before - left()))
    if app.out.as_json:
        app.out.json(answer.text)
        return
    result = answer.json
    skipped = f", {result['skipped']:,} skipped" if result.get("skipped") else ""
    app.out.line(f"{count(result['count'], 'task')} {what}{skipped}.")
    if undoable:
        tell_undo(app, answer)


def tell_undo(app: App, answer: Answer) -> None:
    """Print how to undo the action that this answer is about."""
    entry = answer.headers.get("registry-audit")
    if entry:
        app.out.note(f"It can be undone for ten minutes: registryctl undo {entry}")


def total_of(app: App, name: str, *states: str) -> int:
    """How many tasks of these states a queue holds."""
    row = app.client.get("queues", name).json
    return sum(row[state] for state in states)


def selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that select tasks of a bulk operation."""
    for option in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Change nothing; say how many tasks are selected."),
        click.option("--limit", metavar="N", help="Change at most N tasks."),
        click.option(
            "--before", metavar="TIME", help="Only tasks that ended (else: were pushed) before this time."
        ),
        click.option(
            "--error", metavar="TEXT", help='Only tasks whose last error, "TYPE: MESSAGE", contains this.'
        ),
        click.option(
            "--reason", metavar="REASON", help="Only dead tasks with this reason: failed, expired …"
        ),
    ):
        command = option(command)
    return command


def _count_only(app: App, answer: Answer) -> None:
    if app.out.as_json:
        app.out.json(answer.text)
    else:
        app.out.line(f"{count(answer.json['count'], 'task')} selected; nothing was changed.")


@queue.command()
@click.option("--no-undo", is_flag=True, help="Delete for good, also from Redis's memory.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def purge(context: click.Context, no_undo: bool, yes: bool) -> None:
    """Delete all ready and delayed tasks. Leased, dead and done ones and the policy stay."""
    app: App = context.obj
    name, query = name_of(context), {"undo": "no" if no_undo else None}

    def left() -> int:
        return total_of(app, name, "ready", "delayed")

    total = left()
    bulk(
        app,
        "deleted",
        total,
        lambda: app.client.request("DELETE", "queues", name, query=query, timeout=BULK_SECONDS),
        left,
        yes=yes,
        question=f"Delete {count(total, 'ready or delayed task')} of {name} on {app.target.url}?",
        undoable=not no_undo,
    )


@queue.command()
@click.option(
    "--state", type=click.Choice(["dead", "done", "delayed", "ready"]), required=True, help="Which tasks."
)
@click.option("--no-undo", is_flag=True, help="Delete for good, also from Redis's memory.")
@selection
@click.pass_context
def delete(
    context: click.Context, /, state: str, no_undo: bool, dry_run: bool, yes: bool, **which: Any
) -> None:
    """Delete the tasks of one state, or some of them."""
    app: App = context.obj
    name = name_of(context)
    query: Mapping[str, Any] = {"state": state, **which}
    dry = app.client.request("DELETE", "queues", name, "tasks", query={**query, "dry_run": True}, again=True)
    if dry_run:
        return _count_only(app, dry)
    query = {**query, "undo": "no" if no_undo else None}
    return bulk(
        app,
        "deleted",
        dry.json["count"],
        lambda: app.client.request("DELETE", "queues", name, "tasks", query=query, timeout=BULK_SECONDS),
        lambda: total_of(app, name, state),
        yes=yes,
        question=f"Delete {count(dry.json['count'], f'{state} task')} of {name} on {app.target.url}?",
        undoable=not no_undo,
    )


@queue.command()
@click.option("--spread", metavar="SECONDS", help="Spread the tasks over this many seconds.")
@selection
@click.pass_context
def retry(context: click.Context, /, spread: str | None, dry_run: bool, yes: bool, **which: Any) -> None:
    """Make the dead tasks, or some of them, ready again."""
    app: App = context.obj
    name = name_of(context)
    dry = app.client.post("queues", name, "retry", query={**which, "dry_run": True}, again=True)
    if dry_run:
        return _count_only(app, dry)
    query = {**which, "spread": spread}
    return bulk(
        app,
        "retried",
        dry.json["count"],
        lambda: app.client.post("queues", name, "retry", query=query, timeout=BULK_SECONDS),
        lambda: total_of(app, name, "dead"),
        yes=yes,
        question=f"Retry {count(dry.json['count'], 'dead task')} of {name} on {app.target.url}?",
    )


@queue.command()
@click.argument("to", required=False, metavar="TO")
@click.option("--to", "to_option", metavar="TO", help="The same as the argument.", hidden=True)
@click.option(
    "--state",
    type=click.Choice(["ready", "delayed", "dead"]),
    default="ready",
    show_default=True,
    help="Which tasks.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def move(context: click.Context, to: str | None, to_option: str | None, state: str, yes: bool) -> None:
    """Move all tasks of one state to the queue TO.

    They go to its tail. Their ids and their order stay.
    """
    app: App = context.obj
    name, target = name_of(context), to or to_option
    if not target:
        raise BadUsage("Missing argument 'TO': the queue that the tasks move to.")
    total = total_of(app, name, state)
    query = {"to": target, "state": state}
    bulk(
        app,
        "moved",
        total,
        lambda: app.client.post("queues", name, "move", query=query, timeout=BULK_SECONDS),
        lambda: total_of(app, name, state),
        yes=yes,
        question=f"Move {count(total, f'{state} task')} of {name} to {target} on {app.target.url}?",
        undoable=False,
    )

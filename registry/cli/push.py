"""``push``, ``pop``, and the commands of a lease holder: ``ack``, ``fail``, ``release``, ``extend``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from registry.cli.client import Answer
from registry.cli.errors import BadUsage, CliError, NotFound
from registry.cli.main import App, Command
from registry.cli.output import is_terminal
from registry.cli.text import clean_json, duration

# The daemon caps longer waits (at 55 s by default).
MAX_WAIT = 86_400.0


def read_payload(given: str | None) -> bytes:
    """The payload of an argument: JSON text, ``@FILE``, or standard input for ``-`` and for none."""
    if given is None or given == "-":
        if is_terminal(sys.stdin):
            click.echo("Reading JSON from the keyboard; end it with Ctrl-D.", err=True)
        return sys.stdin.buffer.read()
    if given.startswith("@"):
        try:
            with open(given[1:], "rb") as file:
                return file.read()
        except OSError as error:
            raise BadUsage(f"The file {given[1:]} cannot be read: {error.strerror}.") from None
    return given.encode("utf-8", "surrogateescape")


def _option(name: str, metavar: str, text: str) -> Any:
    return click.option(f"--{name}", metavar=metavar, help=text)


@click.command(cls=Command)
@click.argument("queue")
@click.argument("payload", required=False)
@click.option("--text", is_flag=True, help="The payload is plain text; it becomes a JSON string.")
@_option("delay", "SECONDS", "Delay the task by this many seconds.")
@_option("at", "TIME", "Ready only at this time, such as 2030-12-24T18:00:00Z.")
@_option("priority", "0..9", "Higher goes first (0).")
@_option("ttl", "SECONDS", "Dead if it has not been leased by then.")
@_option("attempts", "N", "Deliveries before the task is dead (25).")
@_option("backoff", "SECONDS", "Wait after the first failure (10).")
@_option("lease", "SECONDS", "Length of its leases if the pop does not say (60).")
@_option("key", "KEY", "Unique: while a task with this key waits or runs, nothing is stored.")
@_option("result", "SECONDS", "How long to keep the result.")
@_option("idempotency-key", "KEY", "A repeat with the same key within 24 hours stores nothing.")
@_option("traceparent", "TRACE", "Trace context that travels with the task.")
@_option("tracestate", "STATE", "More of the trace context; only with --traceparent.")
@click.option(
    "--wait", type=click.FloatRange(0, MAX_WAIT), metavar="SECONDS", help="Wait for the end of the task."
)
@click.pass_obj
def push(
    app: App,
    /,
    queue: str,
    payload: str | None,
    text: bool,
    idempotency_key: str | None,
    traceparent: str | None,
    tracestate: str | None,
    wait: float | None,
    **options: str | None,
) -> None:
    """Push a task and print its id. PAYLOAD is a JSON value, @FILE, or - (or nothing) for standard input.

    With --wait the result is printed instead; the exit code is 1 if the task died or has not ended by then.
    """
    body = read_payload(payload)
    if text:
        body = json.dumps(body.decode("utf-8", "surrogateescape")).encode()
    given = {
        "Idempotency-Key": idempotency_key,
        "traceparent": traceparent,
        "tracestate": tracestate,
        "Prefer": None if wait is None else f"wait={wait:g}",
    }
    headers = {name: header(name, value) for name, value in given.items() if value is not None}
    answer = app.client.post("pushTask", queue, query=options, body=body, headers=headers, wait=wait or 0.0)
    row = answer.json
    if app.out.as_json:
        app.out.json(answer.text)
    elif wait is None:
        if row.get("duplicate"):
            app.out.note("There is a task with this key already; nothing was stored.")
        app.out.line(row["id"])
    elif row.get("state") == "done":
        app.out.json(answer.member("result") or "null")
    if wait is not None and row.get("state") == "dead":
        raise CliError(f"The task {row['id']} is dead: {row.get('reason')}.")
    if wait is not None and row.get("state") != "done":
        raise CliError(f"The task {row['id']} has not ended yet.")


def header(name: str, value: str) -> str:
    """A value that can be sent as a header."""
    if not value.isascii() or not value.isprintable():
        raise BadUsage(f"{name} must be printable ASCII.")
    return value


@click.command(cls=Command)
@click.argument("queues", nargs=-1, required=True, metavar="QUEUE…")
@click.option(
    "--wait", type=click.FloatRange(0, MAX_WAIT), metavar="SECONDS", help="Wait so long for a task (10)."
)
@click.option("--lease", metavar="SECONDS", help="Lease the task; it comes back unless it is acknowledged.")
@click.option("--ack", metavar="LEASE", help="Acknowledge the task before in the same request.")
@click.option("--count", type=click.IntRange(1, 100), metavar="N", help="Take up to N tasks, with leases.")
@click.option(
    "--order", type=click.Choice(["strict", "fair"]), help="Of several queues: the first first, or in turn."
)
@click.option("--worker", metavar="NAME", help="Name of the worker.")
@_option("idempotency-key", "KEY", "A repeat with the same key gets the same lease.")
@click.pass_obj
def pop(
    app: App,
    queues: tuple[str, ...],
    wait: float | None,
    lease: str | None,
    ack: str | None,
    count: int | None,
    order: str | None,
    worker: str | None,
    idempotency_key: str | None,
) -> None:
    """Pop a task and print its payload; exit code 3 if none comes.

    Without --lease the task is done as soon as it has been sent. With --lease, several queues or --count, tasks are leased:
    acknowledge them with "registryctl ack QUEUE LEASE" (--json prints the lease).
    """
    headers = (
        {} if idempotency_key is None else {"Idempotency-Key": header("Idempotency-Key", idempotency_key)}
    )
    waits = None if wait is None else f"{wait:g}"
    query = {"wait": waits, "lease": lease, "worker": worker}
    more: dict[str, Any] = {"headers": headers, "wait": wait or 60.0}
    if len(queues) > 1 or count is not None or order is not None:
        if ack is not None:
            raise BadUsage("--ack is only allowed with one queue and without --count.")
        # The names go into one segment; a comma in a name is quoted, those between names are not.
        answer = app.client.post("popTasks", queues, query={**query, "count": count, "order": order}, **more)
        texts, rows = list(answer.rows("tasks")), answer.json["tasks"]
    else:
        answer = app.client.post("popTask", queues[0], query={**query, "ack": ack}, **more)
        found = answer.status == 200
        texts, rows = ([answer.text], [{**answer.json, "queue": queues[0]}]) if found else ([], [])
        if ack is not None:
            app.out.note(f"The ack of the task before: {answer.headers.get('registry-ack', 'unknown')}.")
    if not rows:
        raise NotFound("No task is available.")
    for row, text in zip(rows, texts, strict=True):
        if app.out.as_json:
            app.out.json(text)
            continue
        if "lease" in row:
            length = duration(row["expires_in"])
            app.out.note(
                f"{row['queue']}/{row['id']}, attempt {row['attempt']}, for {length}: {row['lease']}"
            )
        payload = Answer(200, text).member("task")
        click.echo(clean_json(payload, lines=True))


@click.command(cls=Command)
@click.argument("queue")
@click.argument("lease")
@click.argument("result", required=False)
@click.pass_obj
def ack(app: App, queue: str, lease: str, result: str | None) -> None:
    """Acknowledge the leased task: it is done. RESULT is a JSON value, @FILE or - for standard input."""
    body = b"" if result is None else read_payload(result)
    _settled(app, app.client.post("ackTask", queue, lease, body=body, again=True), "done")


@click.command(cls=Command)
@click.argument("queue")
@click.argument("lease")
@click.option("--type", "kind", metavar="TYPE", help="Kind of error, such as the name of an exception.")
@click.option("--message", metavar="TEXT", help="What went wrong.")
@click.option("--trace", metavar="TEXT", help="Where it went wrong.")
@click.option("--delay", metavar="SECONDS", help="Try again after so long, not after its backoff.")
@click.option("--no-retry", is_flag=True, help="The task is dead at once.")
@click.pass_obj
def fail(
    app: App,
    queue: str,
    lease: str,
    kind: str | None,
    message: str | None,
    trace: str | None,
    delay: str | None,
    no_retry: bool,
) -> None:
    """Fail the leased task: it is tried again later, or is dead."""
    given = {"type": kind, "message": message, "trace": trace}
    error = {name: text for name, text in given.items() if text is not None}
    members = [f'"error":{json.dumps(error)}'] if error else []
    if delay is not None:
        members.append(f'"delay":{_number(delay)}')
    if no_retry:
        members.append('"retry":false')
    answer = app.client.post("failTask", queue, lease, body="{" + ",".join(members) + "}")
    _settled(app, answer, answer.json.get("state", ""))


def _number(text: str) -> str:
    try:
        float(text)
    except ValueError:
        raise BadUsage(f"--delay must be a number of seconds, not {text!r}.") from None
    return text


@click.command(cls=Command)
@click.argument("queue")
@click.argument("lease")
@click.option("--delay", metavar="SECONDS", help="Delay the task by this many seconds.")
@click.pass_obj
def release(app: App, queue: str, lease: str, delay: str | None) -> None:
    """Give the leased task back; the attempt does not count."""
    _settled(app, app.client.post("releaseTask", queue, lease, query={"delay": delay}), "released")


@click.command(cls=Command)
@click.argument("queue")
@click.argument("lease")
@click.option("--lease", "length", metavar="SECONDS", help="From now on for so long; else for its length.")
@click.option("--progress", metavar="0..1", help="How far the work is.")
@click.option("--message", metavar="TEXT", help="How far the work is, in words.")
@click.pass_obj
def extend(
    app: App, queue: str, lease: str, length: str | None, progress: str | None, message: str | None
) -> None:
    """Renew the lease. Exit code 1 if the task was cancelled: stop the work."""
    members = [] if progress is None else [f'"progress":{progress}']
    members += [] if message is None else [f'"message":{json.dumps(message)}']
    body = "{" + ",".join(members) + "}" if members else ""
    answer = app.client.post("extendTask", queue, lease, query={"lease": length}, body=body, again=True)
    if app.out.as_json:
        app.out.json(answer.text)
    else:
        app.out.line(f"The lease holds for {duration(answer.json['expires_in'])}.")
    if answer.json.get("cancel"):
        raise CliError("The task was cancelled: stop the work.")


def _settled(app: App, answer: Answer, state: str) -> None:
    if app.out.as_json:
        app.out.json(answer.text)
        return
    app.out.line(state + (", late" if answer.json.get("late") else ""))
    if answer.json.get("result") == "too_large":
        app.out.note("The result is too large and was not kept.")

"""``demo``: sample work, to see the registry alive.

It first puts a state there that is the same for the same seed, then, unless told to stop here, workers and producers go on from it.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import click

from registry.cli import samples
from registry.cli.client import Client
from registry.cli.demo_live import Crowd
from registry.cli.errors import CliError, NotFound, Refused
from registry.cli.main import App, Command
from registry.cli.samples import SampleWorker
from registry.cli.text import count

# In a state that stands still, tasks stay leased or delayed for so long; where it goes on, leases are short; s.
STILL_SECONDS, SHORT_LEASE = 900, 5
# The leases of a demo that was killed end within this time, s.
LEASES_END = 100.0
_COUNTED = ("ready", "delayed", "leased", "dead", "done")


@click.command(cls=Command)
@click.option(
    "--minutes",
    type=click.FloatRange(0.01, 1440),
    default=5.0,
    show_default=True,
    metavar="N",
    help="How long to work.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, metavar="N", help="Other numbers, other payloads."
)
@click.option("--once", is_flag=True, help="Put the queues there and end: nothing moves afterwards.")
@click.option("--clean", is_flag=True, help="Delete the sample work, and end.")
@click.option("--yes", is_flag=True, help="Also beside the work of others; with --clean, do not ask.")
@click.pass_obj
def demo(app: App, minutes: float, seed: int, once: bool, clean: bool, yes: bool) -> None:
    """Fill the daemon with lively sample work: an incident to look at. Ctrl-C ends it.

    A new version of the mailer fails every mail, nobody polls thumbnails, and invoice is paused.

    A daemon that holds other work is refused without --yes. Use --clean to delete what the demo left behind.
    """
    if clean:
        _clean(app, yes)
        return
    _check(app.client, yes)
    Still(app.client, seed, lasting=once).put()
    made = _counts(app.client)
    if app.out.as_json:
        app.out.json({"seed": seed, "queues": made})
    total = sum(sum(states.values()) for states in made.values())
    app.out.note(
        f"{count(total, 'task')} in {count(len(made), 'queue')} are there. Delete them: registryctl demo --clean"
    )
    if not once:
        _put_schedules(app.client, samples.EACH_MINUTE)
        app.out.note(f"Workers and producers are at work for {minutes:g} min. Ctrl-C ends it.")
        asyncio.run(_live(app, seed, minutes * 60))


async def _live(app: App, seed: int, seconds: float) -> None:
    crowd = Crowd(app.target, seed, app.out.note)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, crowd.stop)
    await crowd.run(seconds)


# Whose daemon it is


def _is_marked(client: Client) -> bool:
    try:
        found = client.get("schedules", samples.MARK).json
    except NotFound:
        return False
    if found["task"] != samples.MARKED:
        raise Refused(f"There is a schedule {samples.MARK!r} of somebody else; the demo would replace it.")
    return True


def _rows(client: Client) -> Iterator[dict[str, Any]]:
    for page in client.pages("queues", key="queues", query={"limit": 1000}):
        yield from page.json["queues"]


def _is_used(row: dict[str, Any]) -> bool:
    """Whether a queue has tasks, pollers or rules. One that had tasks a moment ago is in the list for a while."""
    return any(row[state] for state in (*_COUNTED, "pollers")) or any(row["policy"].values())


def _check(client: Client, yes: bool) -> None:
    """Refuse a daemon that holds the work of others; workers of the demo must never take it, whatever the options."""
    marked = _is_marked(client)
    names = [row["name"] for row in _rows(client) if _is_used(row)]
    others = [name for name in names if not samples.is_sample(name)]
    taken = [] if marked else [name for name in names if samples.is_sample(name)]
    if taken:
        raise Refused(
            f"The queue {taken[0]!r} is in use here, and the demo would take its tasks: use another daemon."
        )
    if not marked:
        schedules = [
            row["name"]
            for page in client.pages("schedules", key="schedules")
            for row in page.json["schedules"]
        ]
        taken = [name for name in schedules if name in {**samples.SCHEDULES, **samples.EACH_MINUTE}]
        if taken:
            raise Refused(f"There is a schedule {taken[0]!r} of somebody else; the demo would replace it.")
    if others and not yes:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        raise Refused(
            f"This daemon holds other work: the queue {others[0]!r}{more}. To fill it all the same: --yes"
        )


def _counts(client: Client) -> dict[str, dict[str, int]]:
    """The tasks of the sample queues by name and state."""
    return {
        row["name"]: {state: row[state] for state in _COUNTED}
        for row in _rows(client)
        if samples.is_sample(row["name"]) and _is_used(row)
    }


# The state that stands still


class Still:
    """Puts the sample work there: the same counts, payloads and errors for the same seed.

    ``lasting``: nothing goes on from it, so what is leased remains leased for a while.
    """

    def __init__(self, client: Client, seed: int, lasting: bool) -> None:
        self._client = client
        self._lasting = lasting
        self._dice = random.Random(f"demo {seed}")
        self._number = 0

    def put(self) -> None:
        """Everything, in a fixed order."""
        client = self._client
        _put_schedules(client, {samples.MARK: samples.MARK_SCHEDULE, **samples.SCHEDULES})
        self._thumbnails()
        self._mail()
        self._invoice()
        self._crawl()
        self._webhooks()
        self._images()
        self._reports()
        self._rest()
        for name, rules in samples.POLICIES.items():
            client.request("PATCH", "queues", name, body=json.dumps(rules), again=True)

    def _push(self, queue: str, number: int, **options: Any) -> list[str]:
        """Push a number of tasks of this queue, as a batch."""
        texts = []
        for _ in range(number):
            self._number += 1
            texts.append(samples.payload(queue, self._dice, self._number))
        return self._push_texts(queue, texts, **options)

    def _push_texts(self, queue: str, texts: list[str], **options: Any) -> list[str]:
        query = {**dict(samples.BY_NAME[queue].options), **options} if queue in samples.BY_NAME else options
        headers = {"traceparent": samples.trace_context(self._dice)}
        answer = self._client.post(
            "pushTasks", queue, query=query, body=f"[{','.join(texts)}]", headers=headers
        )
        return list(answer.json["ids"])

    def _settle(self, worker: SampleWorker, queue: str, number: int, fails: int = 0, **fail: Any) -> None:
        """Let a worker take a number of tasks and finish them; the last ``fails`` of them fail."""
        tasks = _pop(self._client, worker, queue, number)
        if not tasks:
            return
        good, bad = tasks[: len(tasks) - fails], tasks[len(tasks) - fails :]
        acks = [_ack(task["lease"], samples.result(queue, self._dice)) for task in good]
        broken = worker.fails == 1.0
        fails_ = [
            {
                "lease": task["lease"],
                "error": samples.broken(self._dice) if broken else samples.error(queue, self._dice),
                **fail,
            }
            for task in bad
        ]
        body = json.dumps({"acks": acks, "fails": fails_})
        self._client.post("ackTasks", queue, body=body, again=True)

    def _hold(self, worker: SampleWorker, queue: str) -> list[dict[str, Any]]:
        if self._lasting:
            return _hold(self._client, worker, queue)
        return _pop(self._client, worker, queue, worker.hands, query={"lease": SHORT_LEASE})

    def _thumbnails(self) -> None:
        self._push("thumbnails", 12)
        self._settle(samples.GONE, "thumbnails", 12)
        expired = self._push("thumbnails", 3, ttl=0.001)
        for task_id in expired:
            # The daemon notices within a second.
            self._client.get("queues", "thumbnails", "tasks", task_id, query={"wait": 10}, wait=10)
        self._push("thumbnails", 140)

    def _mail(self) -> None:
        first, second, broken = samples.MAILERS
        self._push("mail", 90)
        self._settle(first, "mail", 26)
        self._settle(second, "mail", 24, fails=4, delay=STILL_SECONDS)
        self._settle(broken, "mail", 28, fails=28, retry=False)

    def _invoice(self) -> None:
        billing = next(worker for worker in samples.WORKERS if "invoice" in worker.queues)
        self._push("invoice", 9)
        self._settle(billing, "invoice", 9)
        self._client.post("queues", "invoice", "pause", again=True)
        self._push("invoice", 31)

    def _crawl(self) -> None:
        workers = [worker for worker in samples.WORKERS if worker.queues == samples.CRAWLED]
        for name in samples.CRAWLED:
            self._push(name, self._dice.randint(4, 9))
            self._settle(workers[0], name, 2)
        name = samples.CRAWLED[0]
        self._push(name, 5, priority=9)
        for worker in workers:
            # The same tasks fail on both, and are dead then.
            self._settle(worker, name, 5, fails=5, delay=0)

    def _webhooks(self) -> None:
        hooks = [worker for worker in samples.WORKERS if "webhook.deliver" in worker.queues]
        self._push("webhook.deliver", 60)
        for worker in hooks[:3]:
            self._settle(worker, "webhook.deliver", 6, fails=2, delay=STILL_SECONDS)
        for worker in hooks:
            self._hold(worker, "webhook.deliver")

    def _images(self) -> None:
        workers = [worker for worker in samples.WORKERS if "image.resize" in worker.queues]
        self._push("image.resize", 24)
        for worker in workers:
            self._settle(worker, "image.resize", 5)
            for number, task in enumerate(self._hold(worker, "image.resize")):
                body = json.dumps(
                    {"progress": round(0.15 + 0.2 * number, 2), "message": f"{number + 1} of 6 sizes"}
                )
                self._client.post("extendTask", "image.resize", task["lease"], body=body, again=True)

    def _reports(self) -> None:
        reporter = next(worker for worker in samples.WORKERS if "report" in worker.queues)
        self._push("report", 14)
        self._settle(reporter, "report", 6)
        for task in self._hold(reporter, "report"):
            body = json.dumps({"progress": 0.62, "message": "page 31 of 50"})
            self._client.post("extendTask", "report", task["lease"], body=body, again=True)
        self._hold(samples.SILENT, "report")
        for delay in (1800, 3600, 7200, 86_400):
            self._push("report", 1, delay=delay)
        cancelled = self._push("report", 2)
        for task_id in cancelled:
            self._client.request("DELETE", "queues", "report", "tasks", task_id, again=True)

    def _rest(self) -> None:
        for worker in samples.WORKERS:
            if worker.name in ("search-1", "zone-1", "zone-2", "push-a", "crm"):
                for queue in worker.queues:
                    self._push(queue, self._dice.randint(8, 24))
                    self._settle(worker, queue, 7)
        self._push_texts("sync_crm", list(samples.UNUSUAL))
        query = {"key": "contact-4711", "delay": STILL_SECONDS, "priority": 7}
        self._client.post("pushTask", "sync_crm", query=query, body='{"contact":4711,"merge":true}')
        for number in range(24):
            name = f"{samples.RESULTS}{self._dice.getrandbits(64):016x}"
            self._client.post("pushTask", name, body=json.dumps({"answer": number}))


def _put_schedules(client: Client, schedules: dict[str, dict[str, Any]]) -> None:
    for name, fields in schedules.items():
        client.request("PUT", "schedules", name, body=json.dumps(fields), again=True)


def _pop(
    client: Client, worker: SampleWorker, queue: str, number: int, **options: Any
) -> list[dict[str, Any]]:
    """Take up to that number of tasks of a queue for this worker, with leases."""
    query = {"count": number, "lease": 60, "wait": 0, "worker": worker.name, **options.pop("query", {})}
    headers = {"User-Agent": worker.agent, **options}
    answer = client.post("popTasks", queue, query=query, headers=headers)
    return list(answer.json["tasks"])


def _hold(client: Client, worker: SampleWorker, queue: str) -> list[dict[str, Any]]:
    """Tasks that this worker keeps leased, as many as it has hands. The key lets `_give_back` ask for the same leases again."""
    key = {"Idempotency-Key": f"demo {worker.name} {queue.encode().hex()}"}
    return _pop(client, worker, queue, worker.hands, query={"lease": STILL_SECONDS}, **key)


def _ack(lease: str, value: Any) -> dict[str, Any]:
    return {"lease": lease} if value is None else {"lease": lease, "result": value}


# The end of it


def _clean(app: App, yes: bool) -> None:
    client = app.client
    if not _is_marked(client):
        app.out.note("There is no sample work here.")
        return
    found = _counts(client)
    total = sum(sum(states.values()) for states in found.values())
    app.out.confirm(f"Delete {count(total, 'task')} in {count(len(found), 'queue')} of the demo?", yes)
    for name in (*samples.SCHEDULES, *samples.EACH_MINUTE):
        _delete(client, "schedules", name)
    for name in samples.NAMES:
        client.post("workers", name, body='{"order":"run"}', again=True)
    end = time.monotonic() + LEASES_END
    for name in list(found):
        _reset(client, name)
    while left := {
        name: states["leased"] for name, states in _counts(client).items() if sum(states.values())
    }:
        for name in left:
            _empty(client, name)
        if not any(left.values()):
            continue
        if time.monotonic() > end:
            raise CliError(
                f"Tasks of {next(iter(left))!r} are still leased: does a demo still run? Repeat this later."
            )
        time.sleep(0.5)
    _delete(client, "schedules", samples.MARK)
    app.out.note("The sample work is deleted.")


def _delete(client: Client, *path: str, **query: Any) -> Any:
    try:
        return client.request("DELETE", *path, query=query, again=True).json
    except NotFound:
        return None


def _reset(client: Client, name: str) -> None:
    """Take the rules of a queue away, what waits in it, and the tasks that `_hold` keeps leased."""
    rules = client.get("queues", name).json["policy"]
    client.request("PATCH", "queues", name, body=json.dumps(dict.fromkeys(rules)), again=True)
    _delete(client, "queues", name, undo="no")
    for worker in (*samples.WORKERS, samples.SILENT):
        if name in worker.queues and (tasks := _hold(client, worker, name)):
            client.post(
                "ackTasks", name, body=json.dumps({"acks": [task["lease"] for task in tasks]}), again=True
            )


def _empty(client: Client, name: str) -> None:
    """Delete all tasks of a queue; leased ones are cancelled, and die when their lease ends."""
    _delete(client, "queues", name, undo="no")
    for task in client.get("queues", name, "tasks", query={"state": "leased", "limit": 1000}).json["tasks"]:
        _delete(client, "queues", name, "tasks", task["id"], undo="no")
    for state in ("dead", "done"):
        _delete(client, "queues", name, "tasks", state=state, undo="no")

"""``registryctl demo``: the sample work on a real daemon, the same for the same seed; whose work it refuses; what it leaves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from registry.cli import samples
from tests.ctl import Ctl, ctl_of
from tests.live import Daemon
from tests.talk import ask, counts, eventually, fresh, pushed, queue, tasks


@pytest.fixture
def ctl(served: Daemon, tmp_path: Path) -> Iterator[Ctl]:
    one = ctl_of(served, tmp_path)
    yield one
    one.run("demo", "--clean", "--yes")


def rows(daemon: Daemon, path: str, key: str) -> list[dict[str, Any]]:
    return list(ask(daemon, "GET", path).ok()[key])


def used(daemon: Daemon) -> list[str]:
    """The queues that hold tasks or have rules."""
    found = rows(daemon, "/api/queues?limit=1000", "queues")
    states = ("ready", "delayed", "leased", "dead", "done")
    return [
        row["name"] for row in found if any(row[state] for state in states) or any(row["policy"].values())
    ]


def test_a_seed_gives_the_same_state_each_time(ctl: Ctl, served: Daemon) -> None:
    def state() -> tuple[Any, list[Any]]:
        made = ctl.json("demo", "--once", "--seed", "7")
        return made, [[row["task"] for row in tasks(served, quote(name))] for name in samples.BY_NAME]

    first = state()
    assert first[0]["seed"] == 7 and first[0]["queues"].keys() > samples.BY_NAME.keys()
    ctl.ok("demo", "--clean", "--yes")
    assert state() == first


def test_the_incident_is_there(ctl: Ctl, served: Daemon) -> None:
    ctl.ok("demo", "--once")
    groups = {row["type"]: row for row in rows(served, "/api/dead", "groups")}
    broken = groups["SMTPAuthError"]
    assert (broken["queues"], broken["points_to"], broken["worker"]) == (["mail"], "worker", "mail-3")
    assert groups["PageNotFound"]["points_to"] == "tasks"
    assert {row["reason"] for row in groups.values()} >= {"failed", "expired", "cancelled"}
    known = {row["worker"]: row for row in rows(served, "/api/workers", "workers")}
    assert (known["mail-3"]["version"], known["mail-1"]["version"]) == ("mailer/2.4.1", "mailer/2.4.0")
    assert [name for name, row in known.items() if row["failing"]] == ["mail-3"]
    assert queue(served, "invoice")["policy"]["paused"] and queue(served, "invoice")["ready"]
    waiting = queue(served, "thumbnails")
    assert waiting["ready"] > 100 and (waiting["leased"], waiting["pollers"]) == (0, 0)
    hooks = queue(served, "webhook.deliver")
    assert hooks["leased"] == hooks["policy"]["concurrency"] and hooks["ready"] and hooks["delayed"]
    # A page of the list is read, payloads of every kind included.
    shown = tasks(served, "sync_crm", "limit=1000")
    assert any(row["task"] is None for row in shown) and any(row.get("truncated") for row in shown)
    running = tasks(served, "image.resize", "state=leased")
    assert all(row["progress"] for row in running) and len(running) == 8
    names = {row["name"] for row in rows(served, "/api/schedules", "schedules")}
    assert names == {samples.MARK, *samples.SCHEDULES}


def test_it_deletes_what_it_made(ctl: Ctl, served: Daemon) -> None:
    ctl.ok("demo", "--once")
    ctl.ok("worker", "mail-3", "quiet")
    ctl.ok("demo", "--clean", "--yes")
    assert used(served) == [] and rows(served, "/api/schedules", "schedules") == []
    assert all(row["order"] == "run" for row in rows(served, "/api/workers", "workers"))
    assert "no sample work" in ctl.run("demo", "--clean", "--yes").stderr


def test_it_leaves_the_work_of_others_alone(ctl: Ctl, served: Daemon) -> None:
    name = fresh("theirs")
    pushed(served, name)
    assert name in ctl.fails(4, "demo", "--once")
    assert used(served) == [name]
    ctl.ok("demo", "--once", "--yes")
    ctl.ok("demo", "--clean", "--yes")
    assert used(served) == [name]
    ask(served, "DELETE", f"/api/queues/{name}").ok()


@pytest.mark.parametrize("kind", ["task", "policy", "schedule", "mark"])
def test_it_never_works_where_its_names_are_in_use(ctl: Ctl, served: Daemon, kind: str) -> None:
    name = {"task": "mail", "policy": "image.resize", "schedule": "zone-sweep", "mark": samples.MARK}[kind]
    fields = {"cron": "0 4 * * *", "queue": "mine", "task": None}
    if kind == "task":
        pushed(served, name)
    elif kind == "policy":
        ask(served, "PATCH", f"/api/queues/{name}", b'{"attempts":2}').ok()
    else:
        ask(served, "PUT", f"/api/schedules/{name}", fields).ok()
    assert repr(name) in ctl.fails(4, "demo", "--once", "--yes")
    if kind == "task":
        assert counts(served, name)["ready"] == 1
        ask(served, "DELETE", f"/api/queues/{name}").ok()
    elif kind == "policy":
        assert ask(served, "PATCH", f"/api/queues/{name}", b'{"attempts":null}').ok()
    else:
        assert rows(served, "/api/schedules", "schedules")[0]["queue"] == "mine"
        ask(served, "DELETE", f"/api/schedules/{name}").ok()
    assert used(served) == []


def test_it_works_until_ctrl_c(ctl: Ctl, served: Daemon) -> None:
    def moved() -> bool:
        mail = queue(served, "mail")
        return bool(mail["done"] > 60 and mail["dead"] > 28 and queue(served, "thumbnails")["ready"] > 141)

    with ctl.process("demo", "--minutes", "10") as one:
        eventually(moved, 90)
        eventually(lambda: queue(served, "invoice")["pollers"] == 2, 60)
        one.send_signal(signal.SIGINT)
        _, told = one.communicate(timeout=60)
    assert one.returncode == 0 and "Traceback" not in told, told
    # What its workers held at the end, they have given back; what they held at the beginning was for five seconds.
    eventually(lambda: sum(row["lease_count"] for row in rows(served, "/api/workers", "workers")) == 0, 90)

"""``registryctl export`` and ``import``: what was exported, wiped and imported is the same again, also when it is imported twice."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.ctl import Ctl, ctl_of
from tests.live import Daemon, RedisServer
from tests.talk import ask, counts, drain, fresh, leased, policy, push, pushed, queue, task, tasks
from tests.test_exports import fill, seen_of


@pytest.fixture
def ctl(served: Daemon, module_redis: RedisServer, tmp_path: Path) -> Ctl:
    # All of an export is everything, so each test begins with nothing.
    return ctl_of(served, tmp_path)


def without_times(export: str) -> list[str]:
    return [line for line in export.splitlines() if not line.startswith('{"registry":"export"')]


def everything(daemon: Daemon) -> dict[str, Any]:
    """What a client can see of all queues and schedules."""
    names = [row["name"] for row in ask(daemon, "GET", "/api/queues").ok()["queues"]]
    schedules = ask(daemon, "GET", "/api/schedules").ok()["schedules"]
    return {
        "queues": {name: (seen_of(daemon, name), queue(daemon, name)["policy"]) for name in names},
        "schedules": [{**one, "next_at": None} for one in schedules],
    }


def test_export_wipe_import_gives_the_same_queues(
    ctl: Ctl, served: Daemon, module_redis: RedisServer, tmp_path: Path
) -> None:
    first, second, empty = fresh(), fresh("ä:"), fresh()
    fill(served, first)
    push(served, "%C3%A4:" + second[2:], [1, 2])
    policy(served, first, rate=5, retention={"done": 600, "dead_max": 50}, lease=2.5)
    policy(served, empty, paused=True, max_length=3)
    ask(served, "POST", f"/api/queues/{first}/pause?seconds=5000").ok()
    nightly = {"cron": "30 3 * * *", "queue": empty, "task": {"x": "y" * 70_000}, "options": {"attempts": 3}}
    ask(served, "PUT", "/api/schedules/nightly", nightly).ok()
    ask(served, "PUT", "/api/schedules/n%C3%A4", {**nightly, "queue": first, "paused": True}).ok()
    before, file = everything(served), tmp_path / "all.ndjson"

    ctl.ok("export", "-o", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    module_redis.command("FLUSHALL")
    assert everything(served)["queues"] == {}
    said = ctl.json("import", str(file))
    assert said == {"imported": 16, "existing": 0, "refused": 0}
    after = everything(served)
    until = [state["queues"][first][1].pop("paused_until") for state in (before, after)]
    assert until[0][:16] == until[1][:16]
    assert after == before
    again = ctl.ok("export")
    assert [line for line in without_times(again) if '"policy"' not in line] == [
        line for line in without_times(file.read_text()) if '"policy"' not in line
    ]
    # Again, it changes nothing, nor does the second export.
    for text in (file.read_text(), again):
        assert ctl.json("import", stdin=text) == {"imported": 0, "existing": 16, "refused": 0}
    assert everything(served)["queues"][first][0] == before["queues"][first][0]


def test_elements_of_other_programs_are_imported_once(
    ctl: Ctl, served: Daemon, module_redis: RedisServer, q: str
) -> None:
    elements = [b"1", b"1", b'{"a":\n2}', b"no JSON \xff", b"1"]
    for element in elements:
        module_redis.command("LPUSH", q, element)
    export = ctl.ok("export", q)
    # They are still there.
    assert ctl.json("import", stdin=export) == {"imported": 0, "existing": 5, "refused": 0}
    module_redis.command("DEL", q)
    for _ in range(2):
        ctl.ok("import", stdin=export)
    assert counts(served, q) == {"ready": 5}
    assert drain(served, q) == [1, 1, {"a": 2}, 1] and counts(served, q)["dead"] == 1
    assert tasks(served, q, "state=dead")[0]["reason"] == "not_json"


def test_one_queue_and_its_schedules(ctl: Ctl, served: Daemon, q: str) -> None:
    other = fresh()
    pushed(served, q, 1)
    pushed(served, other, 2)
    for name in (q, other):
        ask(served, "PUT", f"/api/schedules/{name}", {"cron": "* 3 * * *", "queue": name, "task": 1}).ok()
    rows = [json.loads(line) for line in ctl.ok("export", q).splitlines()]
    assert [row.get("queue") for row in rows] == [None, q, q, None]
    assert rows[-1] == {"registry": "end", "tasks": 1}


def test_leased_tasks_are_told(ctl: Ctl, served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    leased(served, q)
    result = ctl.run("export", q)
    assert "1 task were leased" in result.stderr or "leased" in result.stderr
    assert json.loads(result.stdout.splitlines()[1])["state"] == "leased"


def test_bad_lines_are_told_and_the_others_are_imported(ctl: Ctl, served: Daemon, q: str) -> None:
    good = [{"id": f"{number:024x}", "queue": q, "state": "ready", "task": number} for number in range(3)]
    lines: list[Any] = [
        {"registry": "export", "version": 1},
        good[0],
        {**good[1], "priority": "high"},
        good[1],
        {**good[2], "nonsense": 1},
        {**good[2], "key": "k"},
        {**good[0], "id": "f" * 24, "key": "k"},
        {"queue": q, "policy": {"rate": -1}},
        {"schedule": "s", "cron": "never", "queue": q, "task": 1},
        {"what": 1},
    ]
    text = "\n".join([*map(json.dumps, lines), "{", "[]", '{"registry":"end","tasks":9}'])
    result = ctl.run("import", stdin=text)
    assert result.exit_code == 1
    told = {
        int(line.split("Line ")[1].split(":")[0]) for line in result.stderr.splitlines() if "Line " in line
    }
    assert told == {3, 5, 7, 8, 9, 10, 11, 12, 13}
    assert [row["task"] for row in tasks(served, q)] == [0, 1, 2]
    assert task(served, q, str(good[2]["id"]))["key"] == "k"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"registry":"export","version":2}', "version 2"),
        ("", None),
    ],
)
def test_what_is_no_export(ctl: Ctl, text: str, words: str | None) -> None:
    if words is None:
        assert ctl.json("import", stdin=text) == {"imported": 0, "existing": 0, "refused": 0}
    else:
        assert words in ctl.fails(2, "import", stdin=text)


def test_an_export_that_was_cut_is_noticed(ctl: Ctl, served: Daemon, q: str, tmp_path: Path) -> None:
    for number in range(3):
        pushed(served, q, number)
    text = ctl.ok("export")
    whole = text.splitlines(keepends=True)
    result = ctl.run("import", stdin="".join(whole[:-2]))
    assert result.exit_code == 1 and "incomplete" in result.stderr
    result = ctl.run("import", stdin="".join(whole[:1] + whole[2:]))
    assert result.exit_code == 1 and "the export had 3 tasks; 2 came" in result.stderr
    # A file is written whole or not at all.
    assert "cannot be written" in ctl.fails(1, "export", "-o", str(tmp_path / "no" / "such"))
    assert "cannot be read" in ctl.fails(2, "import", str(tmp_path / "no"))
    assert list(tmp_path.glob(".*.ndjson*")) == []

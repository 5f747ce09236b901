"""The audit log: one line for each change by an operator, and none for anything else."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_twisted

from tests.bench import Bench
from tests.callers import Callers, guarded
from tests.live import Daemon, RedisServer
from tests.talk import ask, leased, on, pop, pushed, running

pytestmark = pytest.mark.every_redis
SECRET = "payload-that-no-line-holds"


def lines(served: Daemon, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ask(served, "GET", f"/api/audit?{query}").ok()["audit"]
    return found


def test_each_action_leaves_a_line(served: Daemon, q: str) -> None:
    schedule = f"s-{q}"
    body = {"cron": "0 0 1 1 *", "queue": q, "task": SECRET, "options": {"delay": 500}}
    tasks = f"/api/queues/{q}/tasks"
    one, two = pushed(served, q, SECRET, "delay=500"), pushed(served, q, SECRET)
    # Method, path, body; action, task, count, and what is shown of the request.
    table: list[tuple[str, str, Any, str, str | None, int | None, dict[str, Any]]] = [
        ("PATCH", f"/api/queues/{q}", {"lease": 9, "rate": 2.5, "ttl": None, "paused": False}, "policy",
         None, None, {"lease": 9, "rate": 2.5, "ttl": None, "paused": None}),
        ("PATCH", f"/api/queues/{q}", {"rate": None, "retention": {"done": 60}}, "policy",
         None, None, {"rate": None, "retention": {"done": 60}}),
        ("POST", f"/api/queues/{q}/pause?seconds=0.5", b"", "pause", None, None, {"seconds": 0.5}),
        ("POST", f"/api/queues/{q}/pause?seconds=0", b"", "resume", None, None, {"seconds": 0}),
        ("POST", f"{tasks}/{one}/run", b"", "run", one, 1, {}),
        ("DELETE", f"{tasks}/{two}", b"", "cancel", two, 1, {"how": "cancelled"}),
        ("POST", f"/api/queues/{q}/retry?id={two}", b"", "retry", two, 1, {"id": two}),
        ("POST", f"/api/queues/{q}/move?to={q}-to", b"", "move", None, 2, {"to": f"{q}-to"}),
        ("POST", f"/api/queues/{q}-to/move?to={q}&state=ready", b"", "move", None, 2,
         {"to": q, "state": "ready"}),
        ("DELETE", f"{tasks}?state=ready&before=2999-01-01T00:00:00Z&limit=1&undo=no", b"", "delete",
         None, 1, {"state": "ready", "before": "2999-01-01T00:00:00.000Z", "limit": 1}),
        ("DELETE", f"/api/queues/{q}", b"", "purge", None, 1, {}),
        ("PUT", f"/api/schedules/{schedule}", body, "schedule_put", None, None,
         {"cron": "0 0 1 1 *", "timezone": "UTC", "missed": "skip", "paused": False}),
        ("POST", f"/api/schedules/{schedule}/run", b"", "schedule_run", "…", None, {}),
        ("DELETE", f"/api/schedules/{schedule}", b"", "schedule_delete", None, None, {}),
    ]  # fmt: skip
    for method, path, given, action, task, count, options in table:
        answer = ask(served, method, path, given, X_Request_Id=f"id-{action}")
        assert answer.status == 200, (path, answer)
        row = lines(served, "limit=1")[0]
        assert row["id"] == answer.headers["Registry-Audit"], path
        assert row["request_id"] == answer.headers["X-Request-Id"] == f"id-{action}"
        about_schedule = action.startswith("schedule")
        assert row == {
            "id": row["id"],
            "at": row["at"],
            "action": action,
            "outcome": "done",
            "name": None,
            "address": "127.0.0.1",
            "request_id": row["request_id"],
            "queue": (q if action == "schedule_put" else None) if about_schedule else path.split("/")[3].split("?")[0],
            "task": answer.json["id"] if task == "…" else task,
            "schedule": schedule if about_schedule else None,
            "options": options,
            "count": count,
            "skipped": None if count is None else 0,
            "undo": row["undo"],
        }  # fmt: skip
        undoable = action in ("cancel", "retry", "delete", "purge") and "undo=no" not in path
        assert (row["undo"] is not None) is undoable, path
        if undoable:
            until, at = (datetime.fromisoformat(text) for text in (row["undo"]["until"], row["at"]))
            assert (until - at).total_seconds() == 600
            assert (row["undo"]["tasks"], row["undo"]["undone"], row["undo"]["undone_at"]) == (1, 0, None)
            assert 0 < row["undo"]["bytes"] < 1000
    assert SECRET not in ask(served, "GET", "/api/audit?limit=1000").body.decode()
    # Each request that names no id is given one, and no two the same.
    answers = [ask(served, "POST", f"/api/queues/{q}/pause") for _ in range(3)]
    ids = [answer.headers["X-Request-Id"] for answer in answers]
    assert [row["request_id"] for row in lines(served, "limit=3")] == ids[::-1] and len(set(ids)) == 3


def test_requests_that_change_nothing_and_those_of_workers_leave_none(served: Daemon, q: str) -> None:
    schedule = {"cron": "0 0 1 1 *", "queue": q, "task": 1}
    ask(served, "PUT", f"/api/schedules/{q}", schedule).ok()
    one = pushed(served, q, 1)
    before = lines(served, "limit=1")[0]["id"]
    held = leased(served, q)
    on(served, "extend", q, held["lease"]).ok()
    on(served, "release", q, held["lease"]).ok()
    on(served, "fail", q, leased(served, q)["lease"], {"delay": 0}).ok()
    ask(served, "PUT", f"/api/schedules/{q}", schedule).ok()
    for method, path, status in (
        ("DELETE", f"/api/queues/{q}/tasks?state=ready&dry_run=1", 200),
        ("DELETE", f"/api/queues/{q}/tasks?state=dead", 200),
        ("DELETE", f"/api/queues/{q}-none", 200),
        ("POST", f"/api/queues/{q}/retry", 200),
        ("POST", f"/api/queues/{q}/retry?dry_run=1", 200),
        ("POST", f"/api/queues/{q}/retry?id={one}", 409),
        ("POST", f"/api/queues/{q}/move?to={q}-to&state=dead", 200),
        ("POST", f"/api/queues/{q}/move?to={q}", 400),
        ("POST", f"/api/queues/{q}/tasks/{one}/run", 409),
        ("POST", f"/api/queues/{q}/tasks/none/run", 404),
        ("DELETE", f"/api/queues/{q}/tasks/none", 404),
        ("DELETE", "/api/schedules/none", 404),
        ("POST", "/api/schedules/none/run", 404),
        ("POST", "/api/audit/999999/undo", 404),
        ("GET", f"/api/queues/{q}", 200),
    ):
        answer = ask(served, method, path)
        assert (answer.status, answer.headers["Registry-Audit"]) == (status, None), path
    ask(served, "PATCH", f"/api/queues/{q}", {"rate": -1}).refused(400, "bad_option")
    assert lines(served, "limit=1")[0]["id"] == before
    assert pop(served, q).ok()["id"] == one


def test_lines_are_found_and_paged(served: Daemon, q: str) -> None:
    other = f"{q}ä b"
    for name in (q, other, q, other, q):
        ask(served, "PATCH", f"/api/queues/{quote(name)}", {"lease": 5}).ok()
    pushed(served, q, 1)
    ask(served, "POST", f"/api/queues/{q}/move?to={quote(other)}").ok()
    newest = lines(served, f"queue={quote(other)}")
    assert [row["action"] for row in newest] == ["move", "policy", "policy"]
    assert [row["queue"] for row in newest] == [q, other, other]
    assert len(lines(served, f"queue={q}&action=policy")) == 3
    assert lines(served, f"queue={q}&action=purge") == []
    assert lines(served, f"queue={q}&name=ops") == []
    assert len(lines(served, f"queue={q}&name=")) == 4
    assert lines(served, f"queue={q}&since={newest[0]['at']}")[0] == newest[0]
    assert lines(served, f"queue={q}&since=2999-01-01T00:00:00Z") == []
    whole, cursor = lines(served, "limit=1000"), ""
    found: list[dict[str, Any]] = []
    while True:
        page = ask(served, "GET", f"/api/audit?limit=4{cursor}").ok()
        assert len(page["audit"]) <= 4
        found += page["audit"]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={page['cursor']}"
        # Lines that are added meanwhile move none of those that were there.
        ask(served, "PATCH", f"/api/queues/{q}", {"lease": 5}).ok()
    assert found == whole
    for query, word in (
        ("limit=0", "'limit'"), ("limit=1001", "'limit'"), ("cursor=x", "'cursor'"), ("action=push", "'action'"),
        ("since=now", "'since'"), ("who=me", "'who'"), ("queue=", "'queue'"),
    ):  # fmt: skip
        ask(served, "GET", f"/api/audit?{query}").refused(400, "bad_option", word)


def test_a_registry_with_a_prefix_has_an_audit_of_its_own(redis_server: RedisServer) -> None:
    with running(redis_server, KEY_PREFIX="x:") as served:
        pushed(served, "q", 1)
        line = ask(served, "DELETE", "/api/queues/q").headers["Registry-Audit"]
        keys = set(redis_server.command("KEYS", "*"))
        assert {b"{x:registry}audit", b"{x:registry}audit:last", b"undo:{x:q}%b:0" % line.encode()} <= keys
        assert ask(served, "POST", f"/api/audit/{line}/undo").ok()["count"] == 1
        # Not even in a full Redis anything is done without a line.
        redis_server.command("CONFIG", "SET", "maxmemory", 1)
        ask(served, "POST", "/api/queues/q/retry").ok()
        answer = ask(served, "DELETE", "/api/queues/q?undo=no")
        assert answer.ok()["count"] == 1
        row = lines(served, "limit=1")[0]
        assert (row["id"], row["action"], row["undo"]) == (answer.headers["Registry-Audit"], "purge", None)


def test_the_holder_of_a_token_is_named_and_its_secret_is_not(
    redis_server: RedisServer, short_dir: Path
) -> None:
    callers = Callers(short_dir / "tokens.json")
    secret = callers.add("ops", "operate")
    callers.add("root", "admin")
    callers.add("states", "view --no-payloads")
    with guarded(redis_server, callers):
        callers.ask("root", "PATCH", "/api/queues/q", {"lease": 5}).ok()
        callers.ask("root", "PUT", "/api/pushTask/q", 1).ok()
        # Selected by a text that may be a worker's.
        path = "/api/queues/q/tasks?state=ready&before=2999-01-01T00:00:00Z"
        line = callers.ask("ops", "DELETE", path).headers["Registry-Audit"]
        callers.ask("states", "POST", f"/api/audit/{line}/undo").refused(403, "forbidden")
        assert callers.ask("root", "POST", f"/api/audit/{line}/undo").ok()["count"] == 1
        held = callers.ask("root", "GET", "/api/popTask/q?lease=30&wait=0").ok()["lease"]
        error = {"error": {"type": "Oops", "message": "SECRET"}, "retry": False}
        callers.ask("root", "POST", f"/api/failTask/q/{held}", error).ok()
        callers.ask("ops", "POST", "/api/queues/q/retry?error=SECRET").ok()
        rows = callers.ask("ops", "GET", "/api/audit").ok()["audit"]
        assert [(row["action"], row["name"]) for row in rows] == [
            ("retry", "ops"), ("undo", "root"), ("delete", "ops"), ("policy", "root")
        ]  # fmt: skip
        assert all(row["address"].startswith("127.1.") for row in rows)
        assert rows[0]["options"] == {"error": "SECRET"}
        assert rows[1]["options"] == {"id": line, "action": "delete"}
        seen = callers.ask("states", "GET", "/api/audit?name=ops").ok()["audit"]
        assert [row["options"].get("error", "") for row in seen] == [None, ""]
        stored = b"".join(redis_server.command("ZRANGE", "{registry}audit", 0, -1))
        assert b"ops" in stored and secret[4:].encode() not in stored


@pytest_twisted.ensureDeferred
async def test_the_number_of_lines_in_the_audit_is_bounded(bench: Bench) -> None:
    verb = bench.store.scripts["audit"]
    text = verb.text.replace(b"MAX_LINES = 100000", b"MAX_LINES = 3")
    assert text != verb.text
    bench.store.scripts["audit"] = type(verb)("audit", text, bench.redis("SCRIPT", "LOAD", text))
    replies = [
        (await bench.call("audit", [bench.store.audit("begin", None, b"line \x00\n\xff %d" % n)]))[0]
        for n in range(5)
    ]
    assert [reply[:2] for reply in replies] == [[0, n] for n in range(1, 6)]
    change = bench.store.audit
    entries = [change("end", 4, b"new"), change("drop", 3), change("end", 1, b"x"), change("undone", 5, b"7")]
    assert await bench.call("audit", [*entries, change("undone", 5, b"2")]) == [[0], [0], [1], [0], [0]]
    found = await bench.store.audit_lines(None, 10)
    assert [(one.serial, one.undone, one.text) for one in found] == [
        (5, 9, b"line \x00\n\xff 4"),
        (4, 0, b"new"),
    ]
    assert found[0].undone_at >= found[0].at > 0 == found[1].undone_at
    assert [one.serial for one in await bench.store.audit_lines(5, 10)] == [4]
    assert await bench.store.audit_line(1) is None


@pytest_twisted.ensureDeferred
async def test_an_operation_stops_when_its_undo_has_begun(bench: Bench) -> None:
    ids = await bench.push(*[(b"q", b"%d" % n) for n in range(4)])
    store = bench.store
    assert (await bench.call("purge", [store.purge(b"q", "", 1, "7:0")]))[0][:3] == [0, 1, 1]
    assert (await bench.call("undo", [store.undo(b"q", 7, 0, 10)]))[0] == [0, 1, 0]
    more = [store.purge(b"q", "", 5, "7:0")], [store.delete(b"q", ids, "r", "7:1")]
    assert (await bench.call("purge", more[0]))[0] == [2]
    assert (await bench.call("delete", more[1]))[0] == [2]
    assert (await bench.call("purge", [store.purge(b"q", "", 5, "8:0")]))[0][:3] == [0, 4, 0]
    assert json.loads(b"[%b]" % b",".join(bench.payloads(b"q"))) == []

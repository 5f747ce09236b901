"""Undo: each deleted task comes back once, unchanged and in its place."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    Answer,
    Asked,
    ask,
    cancel,
    counts,
    drain,
    leased,
    move,
    on,
    policy,
    push,
    pushed,
    retry,
    running,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis
STATES = ("ready", "delayed", "dead", "done")


def serial(answer: Answer) -> str:
    """The line of the audit that an answer names."""
    assert answer.status == 200, answer
    return str(answer.headers["Registry-Audit"])


def undo(served: Daemon, line: str) -> tuple[int, dict[str, int]]:
    """Undo; how many came back, and why the others did not."""
    reply = ask(served, "POST", f"/api/audit/{line}/undo").ok()
    assert set(reply) == {"success", "count", "skipped", "reasons"}
    assert reply["skipped"] == sum(reply["reasons"].values())
    return reply["count"], reply["reasons"]


def purged(served: Daemon, q: str, query: str = "") -> str:
    return serial(ask(served, "DELETE", f"/api/queues/{q}?{query}"))


def deleted(served: Daemon, q: str, query: str) -> str:
    return serial(ask(served, "DELETE", f"/api/queues/{q}/tasks?{query}"))


def dead(served: Daemon, q: str, count: int, query: str = "") -> list[str]:
    ids = [pushed(served, q, n, query) for n in range(count)]
    for _ in ids:
        error = {"error": {"type": "Oops", "message": "no"}, "retry": False}
        on(served, "fail", q, leased(served, q)["lease"], error).ok()
    return ids


def rows(served: Daemon, q: str) -> dict[str, list[dict[str, Any]]]:
    """Everything that is seen of the tasks of a queue, in order."""
    return {state: tasks(served, q, f"state={state}&limit=1000") for state in STATES}


def aside(redis: RedisServer, q: str) -> list[bytes]:
    return [key for key in redis.command("KEYS", "*") if key.startswith(b"undo:{%b}" % q.encode())]


def a_bit_of_everything(served: Daemon, redis: RedisServer, q: str) -> None:
    pushed(served, q, "plain")
    redis.command("LPUSH", q, '{"raw":  1}')
    redis.command("LPUSH", q, "no json")
    pushed(served, q, "keyed", "key=k&priority=3&ttl=600&attempts=7&backoff=2")
    pushed(served, q, "also", "priority=3", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    pushed(served, q, "first", "priority=9")
    pushed(served, q, "later", "delay=500&key=d")
    pushed(served, q, "sooner", "delay=300")
    again = leased(served, q, "lease=30&worker=w1")
    assert again["task"] == "first"
    on(served, "fail", q, again["lease"], {"error": {"message": "once"}, "delay": 0}).ok()
    again = leased(served, q)
    on(served, "release", q, again["lease"]).ok()


# A purge


def test_a_purge_is_undone_to_what_was_there(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    a_bit_of_everything(served, module_redis_process, q)
    before, held = rows(served, q), counts(served, q)
    assert held == {"ready": 6, "delayed": 2}
    line = purged(served, q)
    assert counts(served, q) == {}
    assert q not in {row["name"] for row in ask(served, "GET", f"/api/queues?search={q}").ok()["queues"]}
    assert undo(served, line) == (8, {})
    assert rows(served, q) == before and counts(served, q) == held
    assert push(served, q, 1, "key=k").ok()["duplicate"] is True
    ask(served, "POST", f"/api/audit/{line}/undo").refused(409, "already_undone")
    [row] = ask(served, "GET", f"/api/audit?queue={q}&action=purge").ok()["audit"]
    assert (row["undo"]["undone"], row["undo"]["tasks"]) == (8, 8) and row["undo"]["undone_at"]
    # All of it is as alive as it was.
    assert drain(served, q)[:4] == ["first", "keyed", "also", "plain"]


def test_tasks_that_come_back_go_in_front_of_newer_ones(served: Daemon, q: str) -> None:
    for n in range(3):
        pushed(served, q, n)
    line = purged(served, q)
    for n in range(3, 5):
        pushed(served, q, n)
    assert undo(served, line) == (3, {})
    assert drain(served, q) == [0, 1, 2, 3, 4]


def test_tasks_leased_at_the_purge_are_not_touched(served: Daemon, q: str) -> None:
    pushed(served, q, "held", "result=60")
    held = leased(served, q)
    pushed(served, q, "waits")
    line = purged(served, q)
    assert undo(served, line) == (1, {})
    on(served, "ack", q, held["lease"], b"7").ok()
    assert task(served, q, held["id"])["result"] == 7
    assert drain(served, q) == ["waits"]


def test_a_large_purge_is_undone_in_many_calls_in_order(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    for at in range(0, 5000, 1000):
        ask(served, "PUT", f"/api/pushTasks/{q}", list(range(at, at + 1000))).ok()
    line = purged(served, q)
    lists = [key for key in aside(module_redis_process, q) if key[-1:].isdigit()]
    assert len(lists) == 3
    assert all(0 < module_redis_process.command("PTTL", key) <= 660_000 for key in lists)
    assert undo(served, line) == (5000, {})
    found: list[Any] = []
    while more := ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0").json["tasks"]:
        found += [one["task"] for one in more]
    assert found == list(range(5000))


@pytest.mark.parametrize("state", STATES)
def test_large_tasks_are_deleted_and_brought_back_in_small_steps(
    served: Daemon, module_redis_process: RedisServer, q: str, state: str
) -> None:
    body = "x" * 300_000
    for _ in range(8):
        pushed(served, q, body, {"delayed": "delay=500", "done": "result=60"}.get(state, ""))
        if state in ("dead", "done"):
            verb = "fail" if state == "dead" else "ack"
            on(served, verb, q, leased(served, q)["lease"], {"retry": False}).ok()
    before = rows(served, q)

    def calls() -> int:
        stats = module_redis_process.command("INFO", "commandstats").split(b"cmdstat_evalsha:calls=")
        return int(stats[1].split(b",")[0])

    module_redis_process.command("CONFIG", "RESETSTAT")
    line = deleted(served, q, f"state={state}&before=2999-01-01T00:00:00Z")
    assert counts(served, q) == {} and calls() >= 2
    module_redis_process.command("CONFIG", "RESETSTAT")
    assert undo(served, line) == (8, {})
    assert rows(served, q) == before and calls() >= 2


# Deletions, retries and cancellations


@pytest.mark.parametrize("which", ["", "&before=2999-01-01T00:00:00Z"])
@pytest.mark.parametrize("state", STATES)
def test_a_bulk_deletion_is_undone(
    served: Daemon, module_redis_process: RedisServer, q: str, state: str, which: str
) -> None:
    dead(served, q, 3, "priority=2")
    dead(served, q, 1, "key=k")
    for query in ("", "result=60", "key=other"):
        pushed(served, q, 1, query)
        on(served, "ack", q, leased(served, q)["lease"], b"[1]").ok()
    for n, query in enumerate(("", "key=k", "", "priority=4", "delay=500", "delay=400&ttl=500")):
        pushed(served, q, n, query)
    before, held = rows(served, q), counts(served, q)
    line = deleted(served, q, f"state={state}{which}")
    assert counts(served, q) == {name: n for name, n in held.items() if name != state}
    assert undo(served, line) == (held[state], {})
    assert rows(served, q) == before and counts(served, q) == held


def test_a_bulk_retry_is_undone_for_those_that_still_wait(served: Daemon, q: str) -> None:
    ids = dead(served, q, 4, "attempts=2")
    before = {row["id"]: row for row in tasks(served, q, "state=dead")}
    answer = ask(served, "POST", f"/api/queues/{q}/retry")
    assert answer.ok()["count"] == 4
    held = [leased(served, q) for _ in range(4)]
    on(served, "ack", q, held[0]["lease"]).ok()
    # It waits again, for its next attempt.
    on(served, "fail", q, held[1]["lease"], {"delay": 500}).ok()
    # Given back, it is as if it had never been handed out.
    on(served, "release", q, held[3]["lease"]).ok()
    assert undo(served, serial(answer)) == (1, {"gone": 1, "started": 2})
    [row] = tasks(served, q, "state=dead")
    assert row["history"].pop()["reason"] == "released"
    assert row == before[ids[3]]
    assert counts(served, q) == {"delayed": 1, "leased": 1, "dead": 1, "done": 1}
    # Once more, and it has as many attempts as the first time.
    assert retry(served, q)["count"] == 1
    assert leased(served, q)["attempt"] == 2


def test_a_spread_retry_is_undone(served: Daemon, q: str) -> None:
    dead(served, q, 3)
    before = rows(served, q)
    answer = ask(served, "POST", f"/api/queues/{q}/retry?spread=500")
    assert counts(served, q) == {"delayed": 3}
    assert undo(served, serial(answer)) == (3, {})
    assert rows(served, q) == before


@pytest.mark.parametrize("query", ["", "priority=3&key=k&ttl=600", "delay=500&key=k"])
def test_a_cancellation_is_undone(served: Daemon, q: str, query: str) -> None:
    one = pushed(served, q, 1, query)
    pushed(served, q, 2, query.replace("=k", "=l"))
    before = rows(served, q)
    answer = ask(served, "DELETE", f"/api/queues/{q}/tasks/{one}")
    assert answer.ok()["how"] == "cancelled"
    assert undo(served, serial(answer)) == (1, {})
    assert rows(served, q) == before
    ask(served, "POST", f"/api/audit/{serial(answer)}/undo").refused(409, "already_undone")


def test_only_the_last_of_two_cancellations_is_undone(served: Daemon, q: str) -> None:
    one = pushed(served, q, 1)
    first = ask(served, "DELETE", f"/api/queues/{q}/tasks/{one}")
    assert retry(served, q, f"id={one}&reason=cancelled")["count"] == 1
    time.sleep(0.002)
    second = ask(served, "DELETE", f"/api/queues/{q}/tasks/{one}")
    assert undo(served, serial(first)) == (0, {"gone": 1})
    assert undo(served, serial(second)) == (1, {})
    assert counts(served, q) == {"ready": 1}


def test_a_leased_task_that_was_cancelled_may_go_on(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    answer = ask(served, "DELETE", f"/api/queues/{q}/tasks/{held['id']}")
    assert answer.ok()["how"] == "marked"
    again = ask(served, "DELETE", f"/api/queues/{q}/tasks/{held['id']}")
    ask(served, "POST", f"/api/audit/{serial(again)}/undo").refused(409, "not_undoable")
    assert undo(served, serial(answer)) == (1, {})
    assert on(served, "extend", q, held["lease"]).ok()["cancel"] is False
    assert on(served, "fail", q, held["lease"], {"delay": 0}).ok()["state"] == "ready"


@pytest.mark.parametrize("state", ["dead", "done"])
def test_an_ended_task_that_was_removed_comes_back(served: Daemon, q: str, state: str) -> None:
    if state == "dead":
        [one] = dead(served, q, 1)
    else:
        one = pushed(served, q, 1, "result=60")
        on(served, "ack", q, leased(served, q)["lease"], b"7").ok()
    before = rows(served, q)
    answer = ask(served, "DELETE", f"/api/queues/{q}/tasks/{one}")
    assert answer.ok()["how"] == "removed" and counts(served, q) == {}
    assert undo(served, serial(answer)) == (1, {})
    assert rows(served, q) == before


# What cannot come back


def test_a_task_whose_key_is_taken_comes_back_when_the_key_is_free(served: Daemon, q: str) -> None:
    one = pushed(served, q, "old", "key=k")
    pushed(served, q, "other")
    line = purged(served, q)
    pushed(served, q, "new", "key=k")
    assert undo(served, line) == (1, {"key_taken": 1})
    assert drain(served, q) == ["other", "new"]
    assert undo(served, line) == (1, {})
    assert push(served, q, "newer", "key=k").ok()["id"] == one
    assert drain(served, q) == ["old"]


def test_tasks_that_expired_meanwhile_do_not_come_back(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "ttl=0.2")
    line = purged(served, q)
    policy(served, q, retention={"dead": 3600, "dead_max": 2, "done": 0.3})
    dead(served, q, 2)
    pushed(served, q, 2)
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    lines = [deleted(served, q, f"state={state}") for state in ("dead", "done")]
    dead(served, q, 1)
    # However slow this machine is, all of it is over then.
    time.sleep(0.4)
    assert undo(served, line) == (0, {"expired": 1})
    assert undo(served, lines[0]) == (1, {"no_room": 1})
    assert undo(served, lines[1]) == (0, {"expired": 1})
    assert counts(served, q) == {"dead": 2}


def test_a_delayed_task_that_was_due_meanwhile_is_ready(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "delay=0.3")
    line = purged(served, q)
    assert ask(served, "GET", f"/api/popTask/{q}?wait=0.4").status == 202
    assert undo(served, line) == (1, {})
    assert ask(served, "GET", f"/api/popTask/{q}?wait=5").ok() == {"task": 1}


def test_with_undo_no_the_tasks_are_gone_for_good(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    one = pushed(served, q, 1)
    lines = [purged(served, q, "undo=no")]
    dead(served, q, 1)
    lines.append(serial(ask(served, "POST", f"/api/queues/{q}/retry?undo=no")))
    lines.append(deleted(served, q, "state=ready&undo=no"))
    one = pushed(served, q, 1)
    lines.append(serial(ask(served, "DELETE", f"/api/queues/{q}/tasks/{one}?undo=no")))
    assert aside(module_redis_process, q) == []
    for line in lines:
        ask(served, "POST", f"/api/audit/{line}/undo").refused(409, "not_undoable")
    ask(served, "DELETE", f"/api/queues/{q}?undo=maybe").refused(400, "bad_option", "'undo'")


def test_what_cannot_be_undone(served: Daemon, module_redis_process: RedisServer, q: str) -> None:
    for line in ("999999", "nothing", "-1", "1" * 30):
        ask(served, "POST", f"/api/audit/{line}/undo").refused(404, "not_found")
    paused = serial(ask(served, "POST", f"/api/queues/{q}/pause"))
    ask(served, "POST", f"/api/audit/{paused}/undo").refused(409, "not_undoable")
    pushed(served, q, 1)
    line = purged(served, q)
    [stored] = module_redis_process.command("ZRANGEBYSCORE", "{registry}audit", line, line)
    number, at, rest = stored.split(b" ", 2)
    module_redis_process.command("ZREM", "{registry}audit", stored)
    old = b"%b %d %b" % (number, int(at) - 600_001, rest)
    module_redis_process.command("ZADD", "{registry}audit", line, old)
    ask(served, "POST", f"/api/audit/{line}/undo").refused(409, "undo_expired")


# Races


def test_two_daemons_undo_at_once(pair: tuple[Daemon, Daemon], q: str) -> None:
    for at in range(0, 3000, 1000):
        ask(pair[0], "PUT", f"/api/pushTasks/{q}", list(range(at, at + 1000))).ok()
    line = purged(pair[0], q)
    both = [Asked(one, "POST", f"/api/audit/{line}/undo") for one in pair]
    answers = [one.answer(20) for one in both]
    came = [answer.json["count"] if answer.status == 200 else 0 for answer in answers]
    assert {answer.status for answer in answers} <= {200, 409} and sum(came) == 3000
    found: list[Any] = []
    while more := ask(pair[1], "GET", f"/api/popTasks/{q}?count=100&wait=0").json["tasks"]:
        found += [one["task"] for one in more]
    assert found == list(range(3000))


def test_a_push_with_the_same_key_and_pops_while_it_is_undone(pair: tuple[Daemon, Daemon], q: str) -> None:
    keyed = [pushed(pair[0], q, n, f"key=k{n}&lease=60") for n in range(0, 60, 5)]
    line = purged(pair[0], q)
    popped: list[Any] = []
    stop = threading.Event()

    def pop_all() -> None:
        while not stop.is_set() or popped_now():
            pass

    def popped_now() -> bool:
        more = ask(pair[0], "GET", f"/api/popTasks/{q}?count=5&wait=0&lease=60").json["tasks"]
        popped.extend(one["id"] for one in more)
        return bool(more)

    worker = threading.Thread(target=pop_all)
    undoing = Asked(pair[1], "POST", f"/api/audit/{line}/undo")
    worker.start()
    pushes = [push(pair[0], q, "new", f"key=k{n}").ok() for n in range(0, 60, 5)]
    reply = undoing.answer(20).ok()
    stop.set()
    worker.join(20)
    duplicates = [one["id"] for one in pushes if one.get("duplicate")]
    fresh = [one["id"] for one in pushes if not one.get("duplicate")]
    # Of each key one task was there at a time, and no task twice.
    assert reply["count"] + reply["skipped"] == len(keyed)
    assert set(duplicates) <= set(keyed) and reply["reasons"].get("key_taken", 0) <= len(fresh)
    assert len(popped) == len(set(popped)) == reply["count"] + len(fresh)
    assert counts(pair[0], q) == {"leased": len(popped)}


def test_a_daemon_that_is_killed_leaves_what_it_deleted_to_be_undone(redis_server: RedisServer) -> None:
    with running(redis_server) as killed, running(redis_server) as other:
        for at in range(0, 30_000, 1000):
            ask(killed, "PUT", "/api/pushTasks/q", list(range(at, at + 1000))).ok()
        asked = Asked(killed, "DELETE", "/api/queues/q/tasks?state=ready&before=2999-01-01T00:00:00Z")
        wait_until(lambda: len(aside(redis_server, "q")) >= 2, 20, "something is deleted")
        killed.kill9()
        asked.hang_up()
        left = counts(other, "q").get("ready", 0)
        assert left < 30_000
        [row] = ask(other, "GET", "/api/audit").ok()["audit"]
        # A machine that stalls for seconds may have let it finish.
        assert not left or (row["action"], row["outcome"], row["count"]) == ("delete", "unfinished", None)
        assert undo(other, row["id"]) == (30_000 - left, {})
        assert counts(other, "q") == {"ready": 30_000}
        found: list[Any] = []
        for _ in range(30):
            page = ask(other, "GET", "/api/popTasks/q?count=100&wait=0").ok()["tasks"]
            found += [one["task"] for one in page]
        assert found == list(range(3000))
        entry = ask(other, "GET", "/api/audit?action=delete").ok()["audit"][0]
        assert entry["undo"]["undone"] == 30_000 - left


# A full Redis


def test_in_a_full_redis_only_what_is_deleted_for_good_makes_room(redis_server: RedisServer) -> None:
    with running(redis_server) as served:
        ends = dead(served, "q", 2)
        ask(served, "PUT", "/api/pushTasks/q", ["x" * 4000] * 300).ok()
        waits = pushed(served, "other", 1)
        line = purged(served, "other")
        used = int(redis_server.command("INFO", "memory").split(b"used_memory:")[1].split(b"\r\n")[0])
        redis_server.command("CONFIG", "SET", "maxmemory", used - 200_000)
        push(served, "q", "x").refused(503, "redis_full")
        for path in ("/api/queues/q", "/api/queues/q/tasks?state=dead", f"/api/queues/q/tasks/{ends[0]}"):
            reply = ask(served, "DELETE", path).refused(503, "redis_full", "undo=no")
            assert reply["outcome"] == "not_applied"
        assert counts(served, "q") == {"ready": 300, "dead": 2}
        # What needs no room goes on, and can be undone.
        assert undo(served, line) == (1, {})
        assert cancel(served, "other", waits) == "cancelled"
        answer = ask(served, "POST", "/api/queues/q/retry")
        assert undo(served, serial(answer)) == (2, {})
        assert ask(served, "DELETE", f"/api/queues/q/tasks/{ends[0]}?undo=no").ok()["how"] == "removed"
        assert ask(served, "DELETE", "/api/queues/q?undo=no").ok()["count"] == 300
        wait_until(lambda: push(served, "q", "x").status == 200, 5, "room for a task")
        actions = [row["action"] for row in ask(served, "GET", "/api/audit").ok()["audit"]]
        assert actions == ["purge", "cancel", "undo", "retry", "cancel", "undo", "purge"]


def test_a_move_is_not_undone_but_what_was_moved_away_does_not_come_back_twice(
    served: Daemon, q: str
) -> None:
    ids = dead(served, q, 2)
    answer = ask(served, "POST", f"/api/queues/{q}/retry")
    moved = ask(served, "POST", f"/api/queues/{q}/move?to={q}-to")
    assert moved.ok()["count"] == 2
    ask(served, "POST", f"/api/audit/{serial(moved)}/undo").refused(409, "not_undoable")
    assert undo(served, serial(answer)) == (0, {"gone": 2})
    assert move(served, f"{q}-to", q)["count"] == 2
    assert {row["id"] for row in tasks(served, q)} == set(ids)

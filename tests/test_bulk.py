"""Bulk operations: delete, retry and forget many tasks, also in a full Redis."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    Asked,
    ask,
    becomes,
    cancel,
    counts,
    drain,
    keys_of,
    leased,
    leaves_nothing,
    on,
    policy,
    poll,
    pop,
    pushed,
    queue,
    retry,
    running,
    sleep_past,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis


def delete(served: Daemon, q: str, query: str) -> tuple[int, int]:
    """Delete tasks; (count, skipped)."""
    said = ask(served, "DELETE", f"/api/queues/{q}/tasks?{query}").ok()
    assert set(said) == {"success", "count", "skipped"}
    return said["count"], said["skipped"]


def many_dead(served: Daemon, q: str, count: int, task: Any = 0, kind: str = "Oops") -> list[str]:
    ids: list[str] = []
    while len(ids) < count:
        some = min(count - len(ids), 100)
        body = [task] * some
        ids += ask(served, "PUT", f"/api/pushTasks/{q}", body).ok()["ids"]
        held: list[Any] = []
        while len(held) < some:
            held += ask(served, "GET", f"/api/popTasks/{q}?count={some}&wait=0").ok()["tasks"]
        error = {"type": kind, "message": "went wrong"}
        fails = [{"lease": one["lease"], "retry": False, "error": error} for one in held]
        ask(served, "POST", f"/api/ackTasks/{q}", {"fails": fails}).ok()
    return ids


def listed(served: Daemon, q: str, query: str) -> list[str]:
    """The ids of a list, all its pages."""
    ids: list[str] = []
    cursor = ""
    while True:
        page = ask(
            served, "GET", f"/api/queues/{q}/tasks?{query}&limit=2{cursor and f'&cursor={cursor}'}"
        ).ok()
        ids += [task["id"] for task in page["tasks"]]
        if page["cursor"] is None:
            return ids
        cursor = page["cursor"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("worker=w1", "ab"),
        ("worker=w", ""),
        ("error=Dns", "abc"),
        ("error=Dns&worker=w2", "c"),
        ("type=Dns", "abc"),
        ("type=Dn", ""),
        ("type=Dns&message=no%20%23", "ab"),
        ("message=no%20%23", "ab"),
        ("message=no%201", ""),
        ("type=&message=", "d"),
        ("message=", "d"),
        ("reason=cancelled", "e"),
        ("reason=cancelled&type=", ""),
        ("search=no%202", "b"),
        ("search=no&worker=w2", ""),
    ],
)
def test_lists_and_bulk_operations_select_the_same_dead_tasks(
    served: Daemon, reasons: dict[str, str], query: str, expected: str
) -> None:
    letters = {task_id: letter for letter, task_id in reasons.items()}
    assert (
        "".join(sorted(letters[one] for one in listed(served, "reasons", f"state=dead&{query}"))) == expected
    )
    if "search" not in query:
        assert delete(served, "reasons", f"state=dead&{query}&dry_run=1") == (len(expected), 0)
        retried = ask(served, "POST", f"/api/queues/reasons/retry?{query}&dry_run=1").ok()
        assert retried["count"] == len(expected)


@pytest.fixture(scope="module")
def reasons(served: Daemon) -> dict[str, str]:
    """Dead tasks by a letter: who failed them, and with what."""
    deaths: dict[str, tuple[str, Any]] = {
        "a": ("w1", {"type": "Dns", "message": "no 1"}),
        "b": ("w1", {"type": "Dns", "message": "no 2"}),
        "c": ("w2", {"type": "Dns", "message": "other"}),
        "d": ("w2", None),
    }
    ids = {}
    for letter, (worker, error) in deaths.items():
        ids[letter] = pushed(served, "reasons", letter)
        lease = leased(served, "reasons", f"lease=30&wait=0&worker={worker}")["lease"]
        on(served, "fail", "reasons", lease, {"retry": False, **({"error": error} if error else {})}).ok()
    ids["e"] = pushed(served, "reasons", "e")
    cancel(served, "reasons", ids["e"])
    return ids


def test_leased_tasks_are_listed_by_the_worker_that_has_them(served: Daemon, q: str) -> None:
    first, _ = pushed(served, q, 1), pushed(served, q, 2)
    leased(served, q, "lease=30&wait=0&worker=w1")
    leased(served, q, "lease=30&wait=0&worker=w2")
    assert listed(served, q, "state=leased&worker=w1") == [first]


def test_a_filtered_list_reads_at_most_so_much_of_a_page(served: Daemon, q: str) -> None:
    for _ in range(2):
        ask(served, "PUT", f"/api/pushTasks/{q}", [0] * 1000).ok()
    page = ask(served, "GET", f"/api/queues/{q}/tasks?worker=nobody").ok()
    assert page["tasks"] == []
    assert page["cursor"]
    assert listed(served, q, "worker=nobody") == []


def now() -> str:
    return quote(datetime.now(UTC).isoformat())


# Delete


def test_the_dead_are_deleted_by_reason_error_moment_and_number(served: Daemon, q: str) -> None:
    many_dead(served, q, 3, kind="DnsError")
    moment = now()
    time.sleep(0.05)
    many_dead(served, q, 4)
    for _ in range(2):
        cancel(served, q, pushed(served, q, 1))
    assert delete(served, q, "state=dead&dry_run=1") == (9, 0)
    assert delete(served, q, "state=dead&reason=cancelled&dry_run=1") == (2, 0)
    assert delete(served, q, "state=dead&error=nothing") == (0, 0)
    assert delete(served, q, "state=dead&error=DnsError&limit=2") == (2, 0)
    assert delete(served, q, f"state=dead&before={moment}") == (1, 0)
    assert delete(served, q, "state=dead&error=went%20wrong&reason=failed") == (4, 0)
    assert counts(served, q) == {"dead": 2}
    assert delete(served, q, "state=dead") == (2, 0)
    assert counts(served, q) == {}


def test_with_a_limit_the_oldest_are_deleted(served: Daemon, q: str) -> None:
    ids = many_dead(served, q, 5)
    assert delete(served, q, "state=dead&limit=3&dry_run=true") == (3, 0)
    assert delete(served, q, "state=dead&limit=3") == (3, 0)
    assert {row["id"] for row in tasks(served, q, "state=dead")} == set(ids[3:])


@pytest.mark.parametrize("more", ["", "&before=2999-01-01T00:00:00Z"])
def test_of_those_that_wait_the_next_to_be_delivered_are_deleted(served: Daemon, q: str, more: str) -> None:
    for n, priority in enumerate((0, 5, 0, 9, 5)):
        pushed(served, q, n, f"priority={priority}")
    assert delete(served, q, f"state=ready&limit=2{more}") == (2, 0)
    assert [row["task"] for row in tasks(served, q)] == [4, 0, 2]
    for n, delay in enumerate((50, 20, 40)):
        pushed(served, q, n, f"delay={delay}")
    assert delete(served, q, f"state=delayed&limit=1{more}") == (1, 0)
    assert [row["task"] for row in tasks(served, q, "state=delayed")] == [2, 0]


def test_the_done_are_deleted_also_those_that_were_to_be_kept(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    for query in ("", "result=60", "key=k"):
        pushed(served, q, 1, query)
        on(served, "ack", q, leased(served, q)["lease"], b"[1]").ok()
    assert delete(served, q, "state=done&dry_run=1") == (3, 0)
    assert delete(served, q, "state=done&limit=1") == (1, 0)
    assert delete(served, q, "state=done") == (2, 0)
    assert counts(served, q) == {}
    assert not keys_of(module_redis_process, q) & {b"{%b}t" % q.encode(), b"{%b}m" % q.encode()}


def test_the_delayed_are_deleted_with_all_that_was_known_of_them(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    pushed(served, q, 1, "delay=60&key=k&ttl=90&priority=2")
    moment = now()
    time.sleep(0.05)
    pushed(served, q, 2, "delay=60")
    assert delete(served, q, f"state=delayed&before={moment}") == (1, 0)
    assert "duplicate" not in ask(served, "PUT", f"/api/pushTask/{q}?key=k&delay=60", 3).ok()
    assert delete(served, q, "state=delayed&dry_run=1") == (2, 0)
    assert delete(served, q, "state=delayed") == (2, 0)
    leaves_nothing(module_redis_process, q)


def test_the_ready_are_deleted_wherever_they_are_in_the_line(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    for n in range(3):
        pushed(served, q, n)
    moment = now()
    time.sleep(0.05)
    pushed(served, q, "later")
    pushed(served, q, "first", "priority=3&key=k")
    # One that was pushed before and comes after them.
    held = leased(served, q)
    again = leased(served, q)
    on(served, "fail", q, again["lease"], {"delay": 0}).ok()
    on(served, "release", q, held["lease"]).ok()
    assert delete(served, q, f"state=ready&before={moment}&dry_run=1") == (3, 0)
    assert delete(served, q, f"state=ready&before={moment}") == (3, 0)
    assert counts(served, q) == {"ready": 2}
    assert drain(served, q) == ["first", "later"]
    assert delete(served, q, "state=done")[0] == 2
    pushed(served, q, 1)
    module_redis_process.command("LPUSH", q, "[2]")
    assert delete(served, q, "state=ready&dry_run=1") == (2, 0)
    assert delete(served, q, "state=ready&limit=1") == (1, 0)
    assert delete(served, q, "state=ready") == (1, 0)
    leaves_nothing_but_traces(module_redis_process, q)


def leaves_nothing_but_traces(redis: RedisServer, q: str) -> None:
    traces = {b"{%b}a" % q.encode(), b"index"}
    wait_until(lambda: keys_of(redis, q) <= traces, 5, f"no key of {q} but its acknowledged leases")


def test_many_ready_tasks_that_are_deleted_leave_nothing(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    ids = [pushed(served, q, n) for n in range(300)]
    assert delete(served, q, f"state=ready&before={now()}") == (300, 0)
    assert pop(served, q, "wait=0").status == 202
    ask(served, "GET", f"/api/queues/{q}/tasks/{ids[0]}").refused(404, "not_found")
    leaves_nothing(module_redis_process, q)


def test_a_client_that_waits_for_a_deleted_task_is_notified(served: Daemon, q: str) -> None:
    asked = Asked(served, "PUT", f"/api/pushTask/{q}?delay=60", "1", {"Prefer": "wait=20"})
    assert asked.waits(0.3)
    assert delete(served, q, f"state=delayed&before={now()}") == (1, 0)
    assert asked.answer(3).ok()["reason"] == "purged"


def test_many_are_deleted_a_piece_at_a_time(served: Daemon, q: str) -> None:
    many_dead(served, q, 650)
    assert delete(served, q, "state=dead&error=Oops") == (650, 0)
    assert counts(served, q) == {}


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("", "'state'"),
        ("state=leased", "'state'"),
        ("state=ready&reason=failed", "'reason'"),
        ("state=dead&before=yesterday", "'before'"),
        ("state=dead&limit=0", "'limit'"),
        ("state=dead&dry_run=maybe", "'dry_run'"),
        ("state=dead&spread=1", "'spread'"),
        ("state=dead&all=1", "'all'"),
    ],
)
def test_a_delete_names_what_is_wrong_with_it(served: Daemon, q: str, query: str, name: str) -> None:
    ask(served, "DELETE", f"/api/queues/{q}/tasks?{query}").refused(400, "bad_option", name)


# Retry


def test_the_dead_are_retried_by_error_moment_and_number(served: Daemon, q: str) -> None:
    ids = many_dead(served, q, 3, kind="DnsError")
    moment = now()
    time.sleep(0.05)
    ids += many_dead(served, q, 3)
    assert retry(served, q, f"error=DnsError&before={moment}&dry_run=1")["count"] == 3
    assert retry(served, q, "error=DnsError&limit=2") == {"success": True, "count": 2, "skipped": 0}
    assert [row["id"] for row in tasks(served, q)] == ids[:2]
    assert retry(served, q, f"before={moment}")["count"] == 1
    assert retry(served, q, f"id={ids[5]}&error=DnsError") == {"success": True, "count": 0, "skipped": 1}
    assert retry(served, q, "limit=1&error=Oops")["count"] == 1
    assert retry(served, q, "reason=failed")["count"] == 2
    assert [row["id"] for row in tasks(served, q)] == ids


def test_those_whose_key_is_taken_are_skipped_and_do_not_count(served: Daemon, q: str) -> None:
    for n in range(3):
        pushed(served, q, n, f"key=k{n}")
        on(served, "fail", q, leased(served, q)["lease"], {"retry": False}).ok()
    pushed(served, q, "new", "key=k0")
    assert retry(served, q, "limit=1") == {"success": True, "count": 1, "skipped": 1}
    assert retry(served, q) == {"success": True, "count": 1, "skipped": 1}


def test_a_retry_is_spread_over_so_many_seconds(served: Daemon, q: str) -> None:
    ids = many_dead(served, q, 20)
    began = time.time()
    assert retry(served, q, "spread=1000&limit=19")["count"] == 19
    assert counts(served, q) == {"delayed": 19, "dead": 1}
    due = [datetime.fromisoformat(row["due_at"]).timestamp() for row in tasks(served, q, "state=delayed")]
    offsets = sorted(moment - began for moment in due)
    assert offsets[0] > -1
    assert offsets[-1] < 1060
    # Evenly: no gap is larger than three shares.
    assert all(later - sooner < 160 for sooner, later in itertools.pairwise(offsets))
    last = next(one for one in ids if task(served, q, one)["state"] == "dead")
    assert retry(served, q, f"id={last}&spread=1000")["count"] == 1
    assert counts(served, q) == {"delayed": 20}


# Pause


def test_a_pause_ends_by_itself(served: Daemon, q: str) -> None:
    row = ask(served, "POST", f"/api/queues/{q}/pause?seconds=1.5").ok()
    assert row["policy"]["paused"] is True
    until = datetime.fromisoformat(row["policy"]["paused_until"]).timestamp()
    assert until < time.time() + 60
    pushed(served, q, 1)
    assert pop(served, q, "wait=0&lease=5").status == 202
    waiting = poll(served, q)
    assert waiting.answer(6).ok()["task"] == 1
    wait_until(lambda: queue(served, q)["policy"] == {}, 3)


def test_a_pause_without_an_end_lasts_until_somebody_resumes(served: Daemon, q: str) -> None:
    policy(served, q, lease=9)
    ask(served, "POST", f"/api/queues/{q}/pause?seconds=0.2").ok()
    assert ask(served, "POST", f"/api/queues/{q}/pause").ok()["policy"] == {"paused": True, "lease": 9}
    pushed(served, q, 1)
    sleep_past(0.4)
    assert pop(served, q).status == 202
    assert ask(served, "POST", f"/api/queues/{q}/pause?seconds=0").ok()["policy"] == {"lease": 9}
    assert pop(served, q).ok()["task"] == 1
    ask(served, "POST", f"/api/queues/{q}/pause?seconds=500").ok()
    assert policy(served, q, paused=None)["policy"] == {"lease": 9}
    ask(served, "POST", f"/api/queues/{q}/pause?seconds=-1").refused(400, "bad_option", "'seconds'")
    ask(served, "POST", f"/api/queues/{q}/pause?for=1").refused(400, "bad_option", "'for'")


# How many are kept


def test_a_queue_keeps_so_many_dead_at_most_and_the_oldest_go(served: Daemon, q: str) -> None:
    policy(served, q, retention={"dead_max": 3})
    ids = [many_dead(served, q, 1, n)[0] for n in range(6)]
    assert {row["id"] for row in tasks(served, q, "state=dead")} == set(ids[-3:])
    for _ in range(2):
        cancel(served, q, pushed(served, q, 1))
    assert counts(served, q) == {"dead": 3}


def test_a_lower_number_of_the_dead_holds_at_once(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    ids = many_dead(served, q, 230)
    assert policy(served, q, retention={"dead_max": 2})["dead"] == 2
    assert {row["id"] for row in tasks(served, q, "state=dead")} == set(ids[-2:])
    assert module_redis_process.command("HLEN", f"{{{q}}}t") == 2
    for wrong in (-1, 1.5, "x", True):
        said = ask(served, "PATCH", f"/api/queues/{q}", {"retention": {"dead_max": wrong}})
        said.refused(400, "bad_option", "dead_max")


def test_a_new_time_counts_for_those_that_are_dead_already(served: Daemon, q: str) -> None:
    many_dead(served, q, 230)
    time.sleep(0.2)
    assert policy(served, q, retention={"dead": 0.1})["dead"] == 0
    policy(served, q, retention={"dead": 1})
    [one] = many_dead(served, q, 1)
    policy(served, q, retention={"dead": 600})
    sleep_past(1)
    assert task(served, q, one)["state"] == "dead"
    many_dead(served, q, 150)
    policy(served, q, retention={"dead": 1})
    becomes(served, q, 4)


def test_a_time_that_is_taken_back_lets_none_stay_longer(served: Daemon, q: str) -> None:
    policy(served, q, retention={"dead": 1})
    many_dead(served, q, 2)
    policy(served, q, retention=None)
    becomes(served, q, 4)


# A full Redis


@pytest.mark.parametrize("how", ["dead=1", "dead_max=10", "delete", "retry"])
def test_a_redis_full_of_dead_tasks_can_be_emptied(redis_server: RedisServer, how: str) -> None:
    with running(redis_server) as served:
        many_dead(served, "q", 500, "x" * 4000)
        used = int(redis_server.command("INFO", "memory").split(b"used_memory:")[1].split(b"\r\n")[0])
        redis_server.command("CONFIG", "SET", "maxmemory", used - 200_000)
        ask(served, "PUT", "/api/pushTask/q", "x").refused(503, "redis_full")
        assert len(tasks(served, "q", "state=dead&limit=1000")) == 500
        if how == "delete":
            assert delete(served, "q", "state=dead&dry_run=1") == (500, 0)
            assert delete(served, "q", "state=dead&error=Oops&undo=no") == (500, 0)
        elif how == "retry":
            assert retry(served, "q")["count"] == 500
            for _ in range(5):
                held = ask(served, "GET", "/api/popTasks/q?count=100&wait=0").ok()["tasks"]
                ask(served, "POST", "/api/ackTasks/q", {"acks": [one["lease"] for one in held]}).ok()
            assert counts(served, "q") == {"done": 500}
            policy(served, "q", retention={"done": 0})
        else:
            name, value = how.split("=")
            policy(served, "q", retention={name: int(value)})
            becomes(served, "q", 5, **({"dead": 10} if name == "dead_max" else {}))
        wait_until(lambda: ask(served, "PUT", "/api/pushTask/q", "x").status == 200, 5, "room for a task")


# Move


@pytest.mark.parametrize("state", ["ready", "delayed", "dead"])
def test_a_move_of_large_tasks_is_made_of_small_steps(
    served: Daemon, module_redis_process: RedisServer, q: str, state: str
) -> None:
    """One script that copies them all would keep everybody waiting."""
    body = [f"{n} {'x' * 500_000}" for n in range(20)]
    to = f"{q}-to"
    if state == "dead":
        many_dead(served, q, 20, body[0])
    else:
        ask(served, "PUT", f"/api/pushTasks/{q}{'?delay=60' if state == 'delayed' else ''}", body).ok()
    pushed(served, to, "there", "key=k")
    module_redis_process.command("CONFIG", "RESETSTAT")
    said = ask(served, "POST", f"/api/queues/{q}/move?to={to}&state={state}").ok()
    assert said == {"success": True, "count": 20, "skipped": 0}
    calls = module_redis_process.command("INFO", "commandstats").split(b"cmdstat_evalsha:calls=")[1]
    # Three a call; some of the calls may be of the daemon's chores.
    assert int(calls.split(b",")[0]) >= 7
    assert counts(served, to) == ({"ready": 21} if state == "ready" else {"ready": 1, state: 20})
    found = [row["task"].strip('"').split()[0] for row in tasks(served, to, f"state={state}&limit=100")]
    if state == "ready":
        assert found[1:] == [str(n) for n in range(20)]
    ask(served, "DELETE", f"/api/queues/{to}").ok()
    delete(served, to, "state=dead")

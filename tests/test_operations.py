"""The operations of an operator: cancel, retry, run, move, purge, and the rules of a queue."""

from __future__ import annotations

import time
from typing import Any

import pytest

from registry.redis.scripts import load
from tests.live import Daemon, RedisServer
from tests.talk import (
    ask,
    becomes,
    cancel,
    counts,
    drain,
    fresh,
    keys_of,
    leased,
    leaves_nothing,
    move,
    on,
    policy,
    poll,
    push,
    pushed,
    queue,
    retry,
    sleep_past,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis


def dead(served: Daemon, q: str, payload: Any, query: str = "attempts=1") -> str:
    """Push a task to an empty queue and fail it for good."""
    task_id = pushed(served, q, payload, query)
    on(served, "fail", q, leased(served, q)["lease"], {"retry": False}).ok()
    return task_id


# Cancel


def test_cancel_ends_waiting_tasks_and_the_counts_stay_true(served: Daemon, q: str) -> None:
    ids = [pushed(served, q, n) for n in range(5)]
    later = pushed(served, q, "later", "delay=60")
    first = pushed(served, q, "first", "priority=5")
    assert cancel(served, q, ids[2]) == "cancelled"
    assert cancel(served, q, later) == "cancelled"
    assert cancel(served, q, first) == "cancelled"
    assert counts(served, q) == {"ready": 4, "dead": 3}
    row = task(served, q, ids[2])
    assert (row["state"], row["reason"], row["history"]) == ("dead", "cancelled", [])
    assert [row["task"] for row in tasks(served, q)] == [0, 1, 3, 4]
    assert drain(served, q) == [0, 1, 3, 4]
    assert counts(served, q) == {"dead": 3, "done": 4}


def test_cancelled_tasks_at_the_head_leave_no_tombstones(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    policy(served, q, retention={"dead": 0.2})
    ids = [pushed(served, q, n) for n in range(150)]
    for one in ids[:149]:
        cancel(served, q, one)
    assert counts(served, q)["ready"] == 1
    assert leased(served, q, "wait=2&lease=30")["task"] == 149
    policy(served, q, retention=None)
    becomes(served, q, leased=1)
    assert module_redis_process.command("LLEN", q) == 0


def test_cancelled_tasks_leave_nothing_behind_once_forgotten(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    policy(served, q, retention={"dead": 0.2})
    for priority in (0, 3):
        cancel(served, q, pushed(served, q, 1, f"priority={priority}&ttl=50&key=k{priority}"))
    becomes(served, q)
    policy(served, q, retention=None)
    leaves_nothing(module_redis_process, q)


def test_cancel_marks_a_leased_task_and_its_holder_is_notified(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    held = leased(served, q)
    assert cancel(served, q, task_id) == "marked"
    assert task(served, q, task_id)["cancelled"] is True
    assert on(served, "extend", q, held["lease"]).ok()["cancel"] is True
    on(served, "ack", q, held["lease"], b"1").ok()
    assert (task(served, q, task_id)["state"], task(served, q, task_id)["result"]) == ("done", 1)


@pytest.mark.parametrize("how", ["fail", "release", "expiry"])
def test_a_marked_task_does_not_come_back(served: Daemon, q: str, how: str) -> None:
    task_id = pushed(served, q, 1)
    held = leased(served, q, "wait=0&lease=" + ("0.3" if how == "expiry" else "30"))
    cancel(served, q, task_id)
    if how != "expiry":
        on(served, how, q, held["lease"]).ok()
    becomes(served, q, dead=1)
    assert task(served, q, task_id)["reason"] == "cancelled"
    on(served, "ack", q, held["lease"]).refused(409, "lease_lost")


def test_cancel_removes_an_ended_task(served: Daemon, q: str) -> None:
    task_id = dead(served, q, 1)
    assert cancel(served, q, task_id) == "removed"
    done = pushed(served, q, 2)
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    assert cancel(served, q, done) == "removed"
    assert counts(served, q) == {}
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{done}").refused(404, "not_found")


@pytest.mark.parametrize("end", ["putback", "confirm", "lapse"])
def test_a_cancelled_task_that_is_being_handed_over_does_not_come_back(
    served: Daemon, module_redis_process: RedisServer, q: str, end: str
) -> None:
    """Between a pop without lease and its end a task is neither ready nor, as far as anybody asked, leased."""
    task_id = pushed(served, q, "first")
    pushed(served, q, "stays")
    nonce = "0" * 32
    held = 300 if end == "lapse" else 30_000
    common = (1, q, 0, "{registry}", "elsewhere")
    module_redis_process.command("EVAL", load("pop").text, *common, nonce, held, "")
    cancel(served, q, task_id)
    if end == "lapse":
        sleep_past(0.3)
    else:
        words = (f"{task_id}-{nonce}", "") if end == "putback" else (f"{task_id}-{nonce}",)
        module_redis_process.command("EVAL", load(end).text, *common, *words)
    # It was cancelled, unless it was delivered before anybody could know.
    ended = {"done": 1} if end == "confirm" else {"dead": 1}
    if end == "confirm":
        becomes(served, q, ready=1)
    else:
        assert counts(served, q) == {"ready": 1, **ended}
        assert task(served, q, task_id)["reason"] == "cancelled"
    assert drain(served, q) == ["stays"]
    assert counts(served, q) == {"done": 1, **({} if end == "confirm" else ended)}
    assert keys_of(module_redis_process, q).isdisjoint({q.encode(), b"{%b}n" % q.encode()})


# Retry


def test_a_retry_grants_its_attempts_again_and_goes_on_counting(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "attempts=2&backoff=0")
    for attempt in range(1, 7):
        held = leased(served, q)
        assert held["attempt"] == attempt
        state = on(served, "fail", q, held["lease"]).ok()["state"]
        assert state == ("ready" if attempt % 2 else "dead")
        if state == "dead":
            assert retry(served, q, f"id={task_id}") == {"success": True, "count": 1, "skipped": 0}
    assert len(task(served, q, task_id)["history"]) == 6


def test_a_retry_goes_to_the_tail(served: Daemon, q: str) -> None:
    task_id = dead(served, q, "dead")
    pushed(served, q, "waiting")
    retry(served, q, f"id={task_id}")
    assert drain(served, q) == ["waiting", "dead"]


def test_a_retry_of_a_task_that_is_not_dead_is_refused(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    path = f"/api/queues/{q}/retry?id="
    ask(served, "POST", path + task_id).refused(409, "not_dead")
    ask(served, "POST", path + "1" * 24).refused(404, "not_found")
    assert counts(served, q) == {"ready": 1}


def test_a_retry_whose_key_is_taken_is_refused_and_skipped_in_bulk(served: Daemon, q: str) -> None:
    task_id = dead(served, q, 1, "attempts=1&key=k")
    other = dead(served, q, 2)
    pushed(served, q, 3, "key=k")
    ask(served, "POST", f"/api/queues/{q}/retry?id={task_id}").refused(409, "key_taken")
    assert retry(served, q) == {"success": True, "count": 1, "skipped": 1}
    assert counts(served, q) == {"ready": 2, "dead": 1}
    assert task(served, q, other)["state"] == "ready"


def test_a_retried_task_holds_its_key_again(served: Daemon, q: str) -> None:
    task_id = dead(served, q, 1, "attempts=1&key=k")
    retry(served, q, f"id={task_id}")
    assert push(served, q, 2, "key=k").ok()["id"] == task_id


def test_a_bulk_retry_leaves_cancelled_and_expired_alone_unless_named(served: Daemon, q: str) -> None:
    failed = dead(served, q, "failed")
    cancel(served, q, pushed(served, q, "cancelled"))
    pushed(served, q, "expired", "ttl=0.1")
    becomes(served, q, dead=3)
    assert retry(served, q, "dry_run=1")["count"] == 1
    assert counts(served, q) == {"dead": 3}
    assert retry(served, q, "state=dead")["count"] == 1
    assert task(served, q, failed)["state"] == "ready"
    assert retry(served, q)["count"] == 0
    assert retry(served, q, "reason=expired")["count"] == 1
    assert retry(served, q, "reason=cancelled&dry_run=true")["count"] == 1
    assert retry(served, q, "reason=cancelled")["count"] == 1
    sleep_past(0)
    # What was retried has no ttl any more, and no mark.
    assert drain(served, q) == ["failed", "expired", "cancelled"]


def test_a_cancelled_ready_task_that_is_retried_is_delivered_once(served: Daemon, q: str) -> None:
    """Its old element still lies in the list, in front of the new one."""
    pushed(served, q, "first")
    task_id = pushed(served, q, "twice")
    for _ in range(3):
        cancel(served, q, task_id)
        retry(served, q, f"id={task_id}")
    assert counts(served, q) == {"ready": 2}
    assert drain(served, q) == ["first", "twice"]
    becomes(served, q, done=2)


def test_a_bulk_retry_of_many_pages(served: Daemon, q: str) -> None:
    ask(served, "PUT", f"/api/pushTasks/{q}?key=", b"[1]").refused(400, "bad_option")
    ask(served, "PUT", f"/api/pushTasks/{q}?attempts=1", list(range(600))).ok()
    for _ in range(6):
        held = ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0").ok()["tasks"]
        fails = [{"lease": one["lease"]} for one in held]
        ask(served, "POST", f"/api/ackTasks/{q}", {"fails": fails}).ok()
    assert counts(served, q) == {"dead": 600}
    assert retry(served, q, "dry_run=1")["count"] == 600
    assert retry(served, q)["count"] == 600
    assert counts(served, q) == {"ready": 600}


def test_a_retry_names_what_is_wrong_with_it(served: Daemon, q: str) -> None:
    path = f"/api/queues/{q}/retry?"
    ask(served, "POST", path + "state=ready").refused(400, "bad_option", "'state'")
    ask(served, "POST", path + "dry_run=maybe").refused(400, "bad_option", "'dry_run'")
    ask(served, "POST", path + "all=1").refused(400, "bad_option", "'all'")


# Run


def test_run_makes_a_delayed_task_ready_now(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "delay=600")
    waiting = poll(served, q)
    ask(served, "POST", f"/api/queues/{q}/tasks/{task_id}/run").ok()
    assert waiting.answer(3).ok()["task"] == 1
    refused = ask(served, "POST", f"/api/queues/{q}/tasks/{task_id}/run")
    refused.refused(409, "not_delayed", "leased")
    ask(served, "POST", f"/api/queues/{q}/tasks/{'0' * 24}/run").refused(404, "not_found")


# Move


def test_a_move_goes_to_the_tail_with_order_and_ids_kept(served: Daemon, q: str) -> None:
    to = fresh()
    pushed(served, to, "there")
    ids = [pushed(served, q, n) for n in range(3)]
    gone = pushed(served, q, "cancelled")
    ids.append(pushed(served, q, 3))
    important = pushed(served, q, "important", "priority=5&attempts=3")
    cancel(served, q, gone)
    held = leased(served, q)
    assert held["id"] == important
    assert move(served, q, to) == {"success": True, "count": 4, "skipped": 0}
    assert counts(served, q) == {"leased": 1, "dead": 1}
    assert counts(served, to) == {"ready": 5}
    assert [row["id"] for row in tasks(served, to)][1:] == ids
    assert drain(served, to) == ["there", 0, 1, 2, 3]


def test_a_move_keeps_the_options_of_the_push(served: Daemon, q: str) -> None:
    to = fresh()
    task_id = pushed(served, q, 1, "priority=4&attempts=1&lease=7&key=k&ttl=50")
    move(served, q, to)
    assert "duplicate" not in push(served, q, 2, "key=k").ok()
    assert push(served, to, 2, "key=k").ok()["id"] == task_id
    held = leased(served, to, "lease=&wait=0")
    assert (held["id"], held["expires_in"]) == (task_id, 7)
    assert task(served, to, task_id)["priority"] == 4
    assert on(served, "fail", to, held["lease"]).ok()["state"] == "dead"


def test_a_moved_task_still_expires(served: Daemon, q: str) -> None:
    to = fresh()
    pushed(served, q, 1, "ttl=1")
    move(served, q, to)
    assert counts(served, to) == {"ready": 1}
    becomes(served, to, dead=1)


def test_an_expired_task_that_moved_and_is_retried_does_not_expire_again(served: Daemon, q: str) -> None:
    to = fresh()
    pushed(served, q, 1, "ttl=0.2")
    becomes(served, q, dead=1)
    assert move(served, q, to, "state=dead")["count"] == 1
    assert retry(served, to, "reason=expired")["count"] == 1
    # Longer than two sweeps.
    time.sleep(1)
    assert counts(served, to) == {"ready": 1}


def test_delayed_and_dead_tasks_move_too(served: Daemon, q: str) -> None:
    to = fresh()
    dead_one = dead(served, q, "dead")
    delayed = pushed(served, q, "delayed", "delay=0.8")
    assert move(served, q, to, "state=dead")["count"] == 1
    assert move(served, q, to, "state=delayed")["count"] == 1
    assert counts(served, q) == {}
    assert counts(served, to) == {"dead": 1, "delayed": 1}
    assert task(served, to, dead_one)["history"][0]["reason"] == "failed"
    becomes(served, to, dead=1, ready=1)
    assert leased(served, to)["id"] == delayed
    retry(served, to)
    assert drain(served, to) == ["dead"]


def test_a_move_skips_those_whose_key_is_taken_and_they_keep_their_place(served: Daemon, q: str) -> None:
    to = fresh()
    pushed(served, to, "there", "key=k")
    pushed(served, q, 1)
    pushed(served, q, "same", "key=k")
    pushed(served, q, 2)
    assert move(served, q, to) == {"success": True, "count": 2, "skipped": 1}
    assert drain(served, q) == ["same"]
    assert drain(served, to) == ["there", 1, 2]


def test_a_move_skips_any_number_of_tasks_that_cannot_move(served: Daemon, q: str) -> None:
    to = fresh()
    for n in range(205):
        pushed(served, to, n, f"key=k{n}")
        pushed(served, q, n, f"key=k{n}")
    for n in range(5):
        pushed(served, q, f"free {n}")
    assert move(served, q, to) == {"success": True, "count": 5, "skipped": 205}
    assert counts(served, q) == {"ready": 205}
    assert drain(served, q) == list(range(205))


def test_a_move_of_many_keeps_their_order(served: Daemon, module_redis_process: RedisServer, q: str) -> None:
    to = fresh()
    ask(served, "PUT", f"/api/pushTasks/{q}", list(range(450))).ok()
    module_redis_process.command("LPUSH", q, '"raw"')
    assert move(served, q, to)["count"] == 451
    assert drain(served, to) == [*range(450), "raw"]
    leaves_nothing(module_redis_process, q)


def test_a_move_wakes_pollers_of_the_target(served: Daemon, q: str) -> None:
    to = fresh()
    polls = [poll(served, to), poll(served, to)]
    ask(served, "PUT", f"/api/pushTasks/{q}", [1, 2]).ok()
    move(served, q, to)
    assert [one.answer(3).ok()["task"] for one in polls] == [1, 2]


def test_a_move_names_what_is_wrong_with_it(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    path = f"/api/queues/{q}/move"
    ask(served, "POST", path).refused(400, "bad_option", "'to'")
    ask(served, "POST", f"{path}?to={q}").refused(400, "bad_option", "'to'")
    ask(served, "POST", f"{path}?to=a%2Fb").refused(400, "bad_name")
    ask(served, "POST", f"{path}?to=x&state=leased").refused(400, "bad_option", "'state'")
    ask(served, "POST", f"{path}?to=x&from=y").refused(400, "bad_option", "'from'")
    other = fresh()
    module_redis_process.command("SET", other, "text")
    pushed(served, q, 1)
    ask(served, "POST", f"{path}?to={other}").refused(409, "wrong_type")
    assert counts(served, q) == {"ready": 1}


# Purge


def test_a_purge_takes_ready_and_delayed_and_leaves_the_rest(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    policy(served, q, lease=9)
    dead(served, q, 0)
    pushed(served, q, 1)
    held = leased(served, q)
    ask(served, "PUT", f"/api/pushTasks/{q}", list(range(300))).ok()
    ask(served, "PUT", f"/api/pushTasks/{q}?priority=3&ttl=50", list(range(10))).ok()
    ask(served, "PUT", f"/api/pushTasks/{q}?delay=50", list(range(220))).ok()
    cancel(served, q, pushed(served, q, 1))
    module_redis_process.command("LPUSH", q, "1")
    reply = ask(served, "DELETE", f"/api/queues/{q}").ok()
    assert reply == {"success": True, "count": 531, "skipped": 0}
    assert counts(served, q) == {"leased": 1, "dead": 2}
    assert queue(served, q)["policy"] == {"lease": 9}
    on(served, "ack", q, held["lease"]).ok()
    assert ask(served, "DELETE", f"/api/queues/{q}").ok()["count"] == 0


def test_a_purged_queue_leaves_nothing(served: Daemon, module_redis_process: RedisServer, q: str) -> None:
    pushed(served, q, 1, "key=k&ttl=50&priority=2")
    pushed(served, q, 2, "delay=50&ttl=100")
    pushed(served, q, 3)
    ask(served, "DELETE", f"/api/queues/{q}").ok()
    leaves_nothing(module_redis_process, q)

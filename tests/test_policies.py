"""The rules of a queue: how they are set, and what each does."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.live import Daemon, RedisServer, wait_until
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
    pop,
    push,
    pushed,
    queue,
    retry,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis


# Rules


def test_a_policy_is_changed_rule_by_rule_and_null_resets(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    assert policy(served, q, lease=5, rate=2.5)["policy"] == {"lease": 5, "rate": 2.5}
    assert policy(served, q, attempts=3)["policy"] == {"lease": 5, "rate": 2.5, "attempts": 3}
    row = policy(served, q, rate=None, retention={"done": 5})
    assert row["policy"] == {"lease": 5, "attempts": 3, "retention": {"done": 5}}
    assert (row["name"], row["ready"]) == (q, 0)
    assert queue(served, q)["policy"] == row["policy"]
    assert policy(served, q, lease=None, attempts=None, retention=None)["policy"] == {}
    leaves_nothing(module_redis_process, q)


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ({"pause": True}, "'pause'"),
        ({"paused": 1}, "'paused'"),
        ({"paused": "yes"}, "'paused'"),
        ({"max_length": -1}, "'max_length'"),
        ({"max_length": 1.5}, "'max_length'"),
        ({"max_length": True}, "'max_length'"),
        ({"lease": 0}, "'lease'"),
        ({"lease": 43201}, "'lease'"),
        ({"lease": "5"}, "'lease'"),
        ({"attempts": 0}, "'attempts'"),
        ({"backoff": -1}, "'backoff'"),
        ({"ttl": 0}, "'ttl'"),
        ({"rate": 0}, "'rate'"),
        ({"concurrency": 0}, "'concurrency'"),
        ({"concurrency": 1.5}, "'concurrency'"),
        ({"max_run": 0}, "'max_run'"),
        ({"retention": 5}, "'retention'"),
        ({"retention": {"don": 1}}, "'don'"),
        ({"retention": {"done": -1}}, "'retention.done'"),
        ({"retention": {"dead": True}}, "'retention.dead'"),
        ({"lease": 5, "foo": None}, "'foo'"),
    ],
)
def test_a_policy_names_what_is_wrong_with_it(
    served: Daemon, q: str, rules: dict[str, Any], word: str
) -> None:
    ask(served, "PATCH", f"/api/queues/{q}", rules).refused(400, "bad_option", word)
    assert queue(served, q)["policy"] == {}


def test_a_policy_is_an_object(served: Daemon, q: str) -> None:
    ask(served, "PATCH", f"/api/queues/{q}", [1]).refused(400, "bad_json")
    ask(served, "PATCH", f"/api/queues/{q}", b"{").refused(400, "bad_json")
    ask(served, "PATCH", f"/api/queues/{q}", b'{"rate": NaN}').refused(400, "bad_json")
    for rate in (b"1e999", b"1" + b"0" * 400):
        ask(served, "PATCH", f"/api/queues/{q}", b'{"rate": %b}' % rate).refused(400, "bad_option", "'rate'")


def test_a_whole_number_may_have_a_fraction_of_zero(served: Daemon, q: str) -> None:
    row = ask(
        served, "PATCH", f"/api/queues/{q}", b'{"max_length":2.0,"attempts":3e0,"retention":{"done_max":7.0}}'
    )
    assert row.ok()["policy"] == {"max_length": 2, "attempts": 3, "retention": {"done_max": 7}}
    schedule = {"cron": "0 0 * * *", "queue": q, "task": 1, "options": {"attempts": 3.0, "delay": 0.5}}
    row = ask(served, "PUT", f"/api/schedules/{q}", schedule)
    assert row.ok()["options"] == {"attempts": 3, "delay": 0.5}
    assert type(row.json["options"]["attempts"]) is int


def test_a_paused_queue_parks_its_pollers_and_answers_202(served: Daemon, q: str) -> None:
    policy(served, q, paused=True)
    pushed(served, q, 1)
    started = time.monotonic()
    answer = pop(served, q, "wait=0.5&lease=30")
    assert (answer.status, answer.body) == (202, b'{"error":"No tasks available"}')
    assert time.monotonic() - started >= 0.5
    assert pop(served, q, "wait=0").status == 202
    waiting = poll(served, q)
    policy(served, q, paused=False)
    assert waiting.answer(2).ok()["task"] == 1
    assert queue(served, q)["policy"] == {}


def test_a_full_queue_refuses_pushes_and_takes_put_backs(served: Daemon, q: str) -> None:
    policy(served, q, max_length=2)
    pushed(served, q, 1)
    pushed(served, q, 2, "delay=60")
    answer = push(served, q, 3)
    refused = answer.refused(429, "queue_full", "2")
    assert "outcome" not in refused
    assert int(answer.headers["Retry-After"]) >= 1
    push(served, q, 3, "priority=3").refused(429, "queue_full")
    held = leased(served, q)
    pushed(served, q, 4)
    on(served, "release", q, held["lease"]).ok()
    assert counts(served, q) == {"ready": 2, "delayed": 1}
    held = leased(served, q, "wait=0&lease=0.1")
    becomes(served, q, ready=2, delayed=1)
    dead_one = leased(served, q)
    on(served, "fail", q, dead_one["lease"], {"retry": False}).ok()
    assert retry(served, q)["count"] == 1


def test_a_full_queue_counts_no_tombstones(served: Daemon, q: str) -> None:
    policy(served, q, max_length=2)
    pushed(served, q, 1)
    gone = pushed(served, q, 2)
    cancel(served, q, gone)
    pushed(served, q, 3)
    push(served, q, 4).refused(429, "queue_full")


def test_max_length_0_closes_a_queue(served: Daemon, q: str) -> None:
    policy(served, q, max_length=0)
    push(served, q, 4).refused(429, "queue_full")


def test_concurrency_bounds_the_leases_and_wants_them(served: Daemon, q: str) -> None:
    policy(served, q, concurrency=2)
    for n in range(4):
        pushed(served, q, n)
    pop(served, q, "wait=0").refused(409, "lease_required", "lease=")
    held = [leased(served, q) for _ in range(2)]
    assert pop(served, q).status == 202
    got = ask(served, "GET", f"/api/popTasks/{q}?count=5&wait=0")
    assert got.status == 202
    waiting = poll(served, q)
    on(served, "ack", q, held[0]["lease"]).ok()
    third = waiting.answer(2).ok()
    assert third["task"] == 2
    waiting = poll(served, q)
    on(served, "fail", q, held[1]["lease"], {"delay": 60}).ok()
    assert waiting.answer(2).ok()["task"] == 3


def test_a_poll_without_lease_is_reported_although_others_are_parked(served: Daemon, q: str) -> None:
    policy(served, q, concurrency=1)
    parked = poll(served, q)
    pop(served, q, "wait=10").refused(409, "lease_required")
    parked.hang_up()


def test_a_parked_poll_without_lease_is_reported_when_the_rule_comes(served: Daemon, q: str) -> None:
    waiting = poll(served, q, "wait=20")
    policy(served, q, concurrency=1)
    waiting.answer(2).refused(409, "lease_required")


def test_an_expired_lease_frees_its_slot(served: Daemon, q: str) -> None:
    policy(served, q, concurrency=1, backoff=60)
    pushed(served, q, 1)
    pushed(served, q, 2)
    leased(served, q, "wait=0&lease=0.1")
    first = leased(served, q, "wait=3&lease=0.1")
    assert (first["task"], first["attempt"]) == (1, 2)
    assert leased(served, q, "wait=3&lease=30")["task"] == 2


def test_a_rate_bounds_the_starts_of_a_second(served: Daemon, q: str) -> None:
    policy(served, q, rate=5)
    ask(served, "PUT", f"/api/pushTasks/{q}", list(range(30))).ok()
    started = time.monotonic()
    at_once = ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0").ok()["tasks"]
    assert len(at_once) == 5
    assert ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0").json == {"tasks": []}
    for _ in range(7):
        leased(served, q, "wait=5&lease=30")
    # Five more in the second window, and two in the third.
    assert time.monotonic() - started >= 2 - 0.1
    policy(served, q, rate=None)
    assert len(ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0").ok()["tasks"]) == 18


def test_a_limited_poller_is_woken_by_a_new_window(served: Daemon, q: str) -> None:
    policy(served, q, rate=0.8)
    pushed(served, q, 1)
    pushed(served, q, 2)
    assert pop(served, q, "wait=0").json == {"task": 1}
    assert pop(served, q, "wait=0").status == 202
    assert leased(served, q, "wait=5&lease=30")["task"] == 2


def test_a_rule_that_was_reset_leaves_no_trace(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    policy(served, q, rate=100, concurrency=5)
    pushed(served, q, 1)
    held = leased(served, q)
    on(served, "release", q, held["lease"]).ok()
    policy(served, q, rate=None, concurrency=None)
    assert pop(served, q, "wait=0").json == {"task": 1}
    leaves_nothing(module_redis_process, q)


def test_results_that_a_push_asked_for_are_kept_beyond_done_max(served: Daemon, q: str) -> None:
    policy(served, q, retention={"done_max": 2})
    kept = [pushed(served, q, n, "result=60") for n in range(5)]
    others = [pushed(served, q, n) for n in range(5)]
    drain(served, q)
    assert {task(served, q, one)["state"] for one in kept} == {"done"}
    # Nor do they shield the others, although theirs are the oldest.
    found = [ask(served, "GET", f"/api/queues/{q}/tasks/{one}").status for one in others]
    assert found.count(200) <= 2


def test_paths_take_their_methods_only(served: Daemon, q: str) -> None:
    for method, path, allow in (
        ("POST", f"/api/queues/{q}", "DELETE, GET, PATCH"),
        ("GET", f"/api/queues/{q}/retry", "POST"),
        ("GET", f"/api/queues/{q}/move", "POST"),
        ("POST", f"/api/queues/{q}/tasks", "DELETE, GET"),
        ("POST", f"/api/queues/{q}/tasks/1", "DELETE, GET"),
        ("GET", f"/api/queues/{q}/tasks/1/run", "POST"),
        ("POST", f"/api/queues/{q}/tasks/1/why", "GET"),
    ):
        answer = ask(served, method, path)
        answer.refused(405, "method_not_allowed")
        assert answer.headers["Allow"] == allow
    ask(served, "GET", f"/api/queues/{q}/nothing").refused(404, "not_found")


def test_nothing_of_an_unused_queue_is_kept(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    queue(served, q)
    tasks(served, q)
    retry(served, q)
    ask(served, "DELETE", f"/api/queues/{q}").ok()
    move(served, q, fresh())
    wait_until(lambda: not keys_of(module_redis_process, q), 3)

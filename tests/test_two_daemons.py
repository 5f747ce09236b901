"""Two daemons on one Redis are one registry: a change at one is in force at the other within about a second."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    Asked,
    ask,
    becomes,
    counts,
    leased,
    on,
    policy,
    poll,
    pop,
    push,
    pushed,
    queue,
    running,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis
# "Within a second", and what a busy machine adds to it.
ABOUT_A_SECOND = 2.5


@pytest.fixture
def one(pair: tuple[Daemon, Daemon]) -> Daemon:
    return pair[0]


@pytest.fixture
def two(pair: tuple[Daemon, Daemon]) -> Daemon:
    return pair[1]


def test_a_policy_is_in_force_on_every_daemon(one: Daemon, two: Daemon, q: str) -> None:
    policy(one, q, max_length=1, lease=7)
    assert queue(two, q)["policy"] == {"max_length": 1, "lease": 7}
    pushed(two, q, 1)
    push(two, q, 2).refused(429, "queue_full")
    assert leased(two, q, "wait=0&lease=")["expires_in"] == 7
    policy(two, q, max_length=None)
    assert pushed(one, q, 2)


def test_a_pause_and_its_end_hold_across_daemons(one: Daemon, two: Daemon, q: str) -> None:
    waiting = poll(two, q)
    policy(one, q, paused=True)
    pushed(one, q, 1)
    assert waiting.waits(1.5)
    assert pop(two, q).status == 202
    policy(one, q, paused=False)
    assert waiting.answer(ABOUT_A_SECOND).ok()["task"] == 1


def test_what_each_does_wakes_pollers_of_the_other(one: Daemon, two: Daemon, q: str) -> None:
    for how in ("push", "release", "fail", "retry", "run", "move"):
        name = f"{q}{how}"
        if how == "push":
            waiting = poll(two, name)
            pushed(one, name, how)
        elif how == "retry":
            task_id = pushed(one, name, how, "attempts=1")
            on(one, "fail", name, leased(one, name)["lease"]).ok()
            waiting = poll(two, name)
            ask(one, "POST", f"/api/queues/{name}/retry?id={task_id}").ok()
        elif how == "run":
            task_id = pushed(one, name, how, "delay=600")
            waiting = poll(two, name)
            ask(one, "POST", f"/api/queues/{name}/tasks/{task_id}/run").ok()
        elif how == "move":
            pushed(one, f"{name}-from", how)
            waiting = poll(two, name)
            ask(one, "POST", f"/api/queues/{name}-from/move?to={name}").ok()
        else:
            pushed(one, name, how)
            held = leased(one, name)
            waiting = poll(two, name)
            on(one, how, name, held["lease"], b'{"delay":0}' if how == "fail" else b"").ok()
        assert waiting.answer(ABOUT_A_SECOND).ok()["task"] == how


def test_an_expired_lease_of_one_wakes_a_poller_of_the_other(one: Daemon, two: Daemon, q: str) -> None:
    pushed(one, q, 1)
    leased(one, q, "wait=0&lease=0.5")
    waiting = poll(two, q)
    answer = waiting.answer(0.5 + ABOUT_A_SECOND).ok()
    assert (answer["task"], answer["attempt"]) == (1, 2)


def test_a_delay_that_is_due_wakes_a_poller_of_either(one: Daemon, two: Daemon, q: str) -> None:
    polls = [poll(one, q), poll(two, q)]
    for n in range(2):
        pushed(one, q, n, "delay=0.5")
    assert sorted(p.answer(0.5 + ABOUT_A_SECOND).ok()["task"] for p in polls) == [0, 1]


def test_a_freed_slot_wakes_a_poller_of_the_other(one: Daemon, two: Daemon, q: str) -> None:
    policy(one, q, concurrency=1)
    pushed(one, q, 1)
    pushed(one, q, 2)
    held = leased(one, q)
    waiting = poll(two, q)
    assert waiting.waits(1.0)
    on(one, "ack", q, held["lease"]).ok()
    assert waiting.answer(ABOUT_A_SECOND).ok()["task"] == 2


@pytest.mark.parametrize("others", [0, 2])
def test_a_newer_poll_of_a_worker_ends_its_older_one_at_the_other_daemon(
    one: Daemon, two: Daemon, q: str, others: int
) -> None:
    # Also where others are parked at that queue already.
    parked = [poll(two, q) for _ in range(others)]
    older = poll(one, f"{q}-other", f"wait=20&worker={q}")
    newer = poll(two, q, f"wait=20&lease=30&worker={q}")
    assert older.answer(ABOUT_A_SECOND).status == 202
    for n in range(others + 1):
        pushed(one, q, n)
    got = [p.answer(ABOUT_A_SECOND).ok()["task"] for p in [*parked, newer]]
    assert got == list(range(others + 1))


def test_an_ended_poll_of_many_at_the_other_daemon(one: Daemon, two: Daemon, q: str) -> None:
    older = Asked(one, "GET", f"/api/popTasks/{q},{q}-b?wait=20&worker={q}")
    assert older.waits()
    newer = Asked(two, "GET", f"/api/popTasks/{q},{q}-b?wait=20&worker={q}")
    assert older.answer(ABOUT_A_SECOND).body == b'{"tasks":[]}'
    assert newer.waits()
    pushed(one, f"{q}-b", 1)
    assert newer.answer(ABOUT_A_SECOND).ok()["tasks"][0]["task"] == 1


@pytest.mark.parametrize("how", ["ack", "fail", "pop without lease", "expiry"])
def test_prefer_wait_is_answered_whoever_ended_the_task(one: Daemon, two: Daemon, q: str, how: str) -> None:
    query = "?attempts=1" if how in ("fail", "expiry") else ""
    asked = Asked(one, "PUT", f"/api/pushTask/{q}{query}", b"1", {"Prefer": "wait=20"})
    assert asked.waits()
    if how == "pop without lease":
        assert pop(two, q, "wait=0").json == {"task": 1}
    elif how == "expiry":
        leased(two, q, "wait=0&lease=0.2")
    else:
        on(two, how, q, leased(two, q)["lease"], b"{}" if how == "fail" else b'"result"').ok()
    told = asked.answer(0.2 + ABOUT_A_SECOND).ok()
    if how == "ack":
        assert told["result"] == "result"
    elif how == "pop without lease":
        assert (told["state"], told["result"]) == ("done", None)
    else:
        assert told["state"] == "dead"


def test_a_task_can_be_waited_for_at_another_daemon(one: Daemon, two: Daemon, q: str) -> None:
    task_id = pushed(one, q, 1)
    waiting = Asked(two, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=20")
    assert waiting.waits()
    on(one, "ack", q, leased(one, q)["lease"], b"5").ok()
    row = waiting.answer(ABOUT_A_SECOND).ok()
    assert (row["state"], row["result"]) == ("done", 5)


def test_a_cancel_at_one_is_reported_by_the_other_to_the_holder(one: Daemon, two: Daemon, q: str) -> None:
    task_id = pushed(one, q, 1)
    held = leased(one, q)
    ask(two, "DELETE", f"/api/queues/{q}/tasks/{task_id}").ok()
    assert on(one, "extend", q, held["lease"]).ok()["cancel"] is True


def test_a_lease_of_one_may_be_acknowledged_at_the_other(one: Daemon, two: Daemon, q: str) -> None:
    pushed(one, q, 1)
    held = leased(one, q)
    on(two, "extend", q, held["lease"]).ok()
    on(two, "ack", q, held["lease"]).ok()
    on(one, "ack", q, held["lease"]).ok()
    assert task(one, q, held["id"])["state"] == "done"


def test_keys_are_known_to_both(one: Daemon, two: Daemon, q: str) -> None:
    first = push(one, q, 1, Idempotency_Key="i").ok()
    again = push(two, q, 1, Idempotency_Key="i")
    assert again.ok() == first and again.headers["Idempotency-Replayed"] == "true"
    held = leased(one, q, "lease=30&wait=0", Idempotency_Key="p")
    assert leased(two, q, "lease=30&wait=0", Idempotency_Key="p")["lease"] == held["lease"]
    unique = pushed(one, q, 2, "key=k")
    assert push(two, q, 3, "key=k").ok() == {"success": True, "id": unique, "duplicate": True}


def test_parked_pollers_are_summed_over_the_daemons(one: Daemon, two: Daemon, q: str) -> None:
    polls = [poll(one, q), poll(two, q), poll(two, q)]
    for daemon in (one, two):
        wait_until(lambda daemon=daemon: queue(daemon, q)["pollers"] == 3, 5, "three pollers")  # type: ignore[misc]
    polls[1].hang_up()
    wait_until(lambda: queue(one, q)["pollers"] == 2, 5, "two pollers")
    names = [row["name"] for row in ask(two, "GET", f"/api/queues?search={q}").ok()["queues"]]
    assert names == [q]
    for waiting in (polls[0], polls[2]):
        waiting.hang_up()
    wait_until(lambda: queue(two, q)["pollers"] == 0, 9, "none")


def test_a_killed_daemons_leases_come_back_through_the_other(
    two: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    with running(module_redis_process) as third:
        pushed(third, q, 1)
        leased(third, q, "wait=0&lease=1")
        third.kill9()
    assert leased(two, q, "wait=5&lease=30")["attempt"] == 2


def test_a_lost_subscription_loses_no_wake_up(
    one: Daemon, two: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    waiting = poll(two, q)
    module_redis_process.command("CLIENT", "KILL", "TYPE", "pubsub")
    pushed(one, q, 1)
    assert waiting.answer(ABOUT_A_SECOND).ok()["task"] == 1


def test_the_clock_of_redis_may_be_seen_from_both_alike(one: Daemon, two: Daemon, q: str) -> None:
    started = time.time()
    pushed(one, q, 1, "delay=0.6")
    becomes(two, q, 3, ready=1)
    assert time.time() - started >= 0.55
    assert len(tasks(one, q)) == len(tasks(two, q)) == 1
    assert counts(one, q) == counts(two, q)


def test_a_queue_with_a_poller_at_one_is_listed_by_the_other(one: Daemon, two: Daemon, q: str) -> None:
    waiting = poll(one, q)
    wait_until(
        lambda: q in [row["name"] for row in ask(two, "GET", f"/api/queues?search={q}").ok()["queues"]], 5
    )
    waiting.hang_up()


def test_each_knows_when_the_other_was_polled(one: Daemon, two: Daemon, q: str) -> None:
    assert pop(one, q, "wait=0").status == 202
    why = f"/api/queues/{q}/tasks/{pushed(two, q, 1)}/why"

    def told(daemon: Daemon) -> Any:
        [reason] = [r for r in ask(daemon, "GET", why).ok()["reasons"] if r["code"] == "nobody_polls"]
        return reason

    wait_until(lambda: "since the registry started" not in told(two)["text"], 5)
    assert abs(told(one)["seconds"] - told(two)["seconds"]) < 1


def test_of_polls_of_a_worker_at_the_same_time_one_ends(one: Daemon, two: Daemon, q: str) -> None:
    for round_ in range(8):
        worker = f"{q}-{round_}"
        polls = [
            Asked(daemon, "GET", f"/api/popTask/{q}?wait=20&worker={worker}")
            for daemon in (one, two, one, two)
        ]
        wait_until(lambda polls=polls: [p.waits(0.01) for p in polls].count(True) == 3, 3)  # type: ignore[misc]
        time.sleep(0.1)
        assert [p.waits(0.01) for p in polls].count(True) == 3
        for asked in polls:
            asked.hang_up()

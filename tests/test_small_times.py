"""Small promises about time: tasks kept for waiting clients, ttl and delay, lease lengths, jitter."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_twisted

from registry.redis.store import encode_options
from tests.bench import Bench
from tests.live import Daemon
from tests.talk import (
    Asked,
    ask,
    becomes,
    counts,
    fresh,
    leased,
    on,
    policy,
    poll,
    pop,
    push,
    pushed,
    task,
    tasks,
)


def moment(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# What is kept for somebody who waits


@pytest.mark.parametrize("asks", ["result=0.2", "result=0.2&key=one", "result=0.2&priority=3"])
def test_who_waits_finds_the_result_although_the_push_asked_for_less(
    served: Daemon, q: str, asks: str
) -> None:
    task_id = pushed(served, q, 1, asks)
    held = leased(served, q)
    policy(served, q, retention={"done": 0})
    waits = Asked(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=5")
    assert waits.waits(0.3)
    on(served, "ack", q, held["lease"], {"sum": 3}).ok()
    assert waits.answer().ok()["result"] == {"sum": 3}
    time.sleep(1.2)
    assert task(served, q, task_id)["result"] == {"sum": 3}


def test_a_duplicate_that_waits_makes_the_result_of_the_first_stay(served: Daemon, q: str) -> None:
    policy(served, q, retention={"done": 0})
    task_id = pushed(served, q, 1, "key=k&result=0.2")
    held = leased(served, q)
    waits = Asked(served, "PUT", f"/api/pushTask/{q}?key=k", b"1", {"Prefer": "wait=5"})
    assert waits.waits(0.3)
    on(served, "ack", q, held["lease"], "r").ok()
    assert waits.answer().ok()["result"] == "r"
    time.sleep(1.2)
    assert task(served, q, task_id)["result"] == "r"


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_a_duplicate_that_asks_for_longer_gets_longer(bench: Bench) -> None:
    (task_id,) = await bench.push((b"q", b"1"), options={"k": "k", "w": True, "r": 60_000})
    await bench.push((b"q", b"1"), options={"k": "k", "w": True, "r": 500_000})
    assert bench.known(b"q", task_id)["r"] == 500_000
    await bench.push((b"q", b"1"), options={"k": "k", "w": True, "r": 70_000})
    assert bench.known(b"q", task_id)["r"] == 500_000


def test_the_dead_are_kept_for_who_waits_too(served: Daemon, q: str) -> None:
    policy(served, q, retention={"dead": 0})
    task_id = pushed(served, q, 1)
    held = leased(served, q)
    waits = Asked(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=5")
    assert waits.waits(0.3)
    on(served, "fail", q, held["lease"], {"retry": False, "error": "no"}).ok()
    assert waits.answer().ok()["reason"] == "failed"
    time.sleep(1.2)
    assert task(served, q, task_id)["state"] == "dead"
    # Nobody waits for this one.
    pushed(served, q, 2)
    on(served, "fail", q, leased(served, q)["lease"], {"retry": False}).ok()
    becomes(served, q, dead=1)


# A ttl that is over before the task is due


@pytest.mark.parametrize(
    "query", ["ttl=5&delay=5", "ttl=5&delay=60", "ttl=0.001&delay=1e-05", "ttl=5.0&delay=5.0005&priority=3"]
)
def test_a_ttl_not_longer_than_the_delay_is_refused(served: Daemon, q: str, query: str) -> None:
    push(served, q, 1, query).refused(400, "bad_option", "'ttl'")
    ask(served, "PUT", f"/api/pushTasks/{q}?{query}", [1, 2]).refused(400, "bad_option", "'ttl'")
    said = dict(part.split("=") for part in query.split("&"))
    body = {"cron": "0 0 1 1 *", "queue": q, "task": 1, "options": said}
    ask(served, "PUT", f"/api/schedules/{q}", body).refused(400, "bad_option", "'ttl'")
    assert counts(served, q) == {}
    assert ask(served, "GET", f"/api/schedules/{q}").status == 404


def test_a_moment_past_the_ttl_is_refused(served: Daemon, q: str) -> None:
    push(served, q, 1, f"ttl=20&at={moment(60)}").refused(400, "bad_option", "'ttl'", "20 s")
    ask(served, "PUT", f"/api/pushTasks/{q}?ttl=20&at={moment(60)}", [1]).refused(400, "bad_option", "'ttl'")
    assert counts(served, q) == {}
    push(served, q, 1, f"ttl=20&at={moment(5)}").ok()
    push(served, q, 1, f"ttl=20&at={moment(-60)}").ok()
    assert counts(served, q) == {"ready": 1, "delayed": 1}


def test_a_ttl_of_the_policy_counts_as_well(served: Daemon, q: str) -> None:
    policy(served, q, ttl=5)
    push(served, q, 1, "delay=5").refused(400, "bad_option", "'ttl'", "queue")
    push(served, q, 1, f"at={moment(60)}").refused(400, "bad_option", "'ttl'")
    ask(served, "PUT", f"/api/pushTasks/{q}?delay=6", [1, 2]).refused(400, "bad_option", "'ttl'")
    push(served, q, 1, "delay=6", Idempotency_Key="i").refused(400, "bad_option", "'ttl'")
    assert counts(served, q) == {}
    # What the push says itself goes before the policy; and the same key may say it better.
    push(served, q, 1, "delay=6&ttl=7").ok()
    push(served, q, 1, "delay=4", Idempotency_Key="i").ok()
    assert counts(served, q) == {"delayed": 2}


# The length of a lease


@pytest.mark.parametrize("length", ["300", "0.5", "61.5"])
def test_extend_renews_for_as_long_as_the_lease_was_given_for(served: Daemon, q: str, length: str) -> None:
    for query in ("", "lease=20", "priority=2"):
        pushed(served, q, 1, query)
        held = leased(served, q, f"lease={length}&wait=0")
        assert on(served, "extend", q, held["lease"]).ok()["expires_in"] == float(length)
        assert on(served, "extend", q, held["lease"], {"progress": 1}).ok()["expires_in"] == float(length)
        on(served, "ack", q, held["lease"]).ok()


def test_extend_renews_leases_of_many_alike(served: Daemon, q: str) -> None:
    other = fresh()
    for name in (q, q, q, other):
        pushed(served, name)
    for query in ("lease=300&count=2", "lease=250&count=2&order=fair"):
        for held in ask(served, "GET", f"/api/popTasks/{q},{other}?wait=0&{query}").ok()["tasks"]:
            renewed = on(served, "extend", held["queue"], held["lease"]).ok()["expires_in"]
            assert renewed == held["expires_in"] == int(query[6:9])


def test_extend_renews_as_the_policy_said_then(served: Daemon, q: str) -> None:
    policy(served, q, lease=200)
    pushed(served, q)
    pushed(served, q, 1, "lease=30")
    of_the_queue, of_the_task = leased(served, q, "lease=&wait=0"), leased(served, q, "lease=&wait=0")
    policy(served, q, lease=5)
    assert on(served, "extend", q, of_the_queue["lease"]).ok()["expires_in"] == 200
    assert on(served, "extend", q, of_the_task["lease"]).ok()["expires_in"] == 30
    # Within its bound only.
    policy(served, q, max_run=100)
    assert 195 <= on(served, "extend", q, of_the_queue["lease"]).ok()["expires_in"] <= 200


def test_an_extension_that_says_a_length_changes_it(served: Daemon, q: str) -> None:
    pushed(served, q)
    held = leased(served, q, "lease=300&wait=0", Idempotency_Key="pop")
    assert on(served, "extend", q, held["lease"], query="lease=400").ok()["expires_in"] == 400
    assert on(served, "extend", q, held["lease"]).ok()["expires_in"] == 400
    assert pop(served, q, "lease=300&wait=0", Idempotency_Key="pop").ok()["lease"] == held["lease"]
    assert on(served, "extend", q, held["lease"]).ok()["expires_in"] == 400
    on(served, "release", q, held["lease"]).ok()
    # The next lease is another.
    again = leased(served, q, "lease=70&wait=0")
    assert on(served, "extend", q, again["lease"]).ok()["expires_in"] == 70


def test_pollers_that_are_answered_together_keep_their_own_lengths(served: Daemon, q: str) -> None:
    lengths = [100, 200, 100, 300, 200]
    waiting = [poll(served, q, f"wait=20&lease={length}") for length in lengths]
    ask(served, "PUT", f"/api/pushTasks/{q}", [1] * len(lengths)).ok()
    for poller, length in zip(waiting, lengths, strict=True):
        held = poller.answer().ok()
        assert on(served, "extend", q, held["lease"]).ok()["expires_in"] == length


# Jitter


def due(bench: Bench) -> list[int]:
    flat = bench.redis("ZRANGE", "{q}d", 0, -1, "WITHSCORES")
    return [int(float(score)) for score in flat[1::2]]


def spread(moments: list[int], base: int) -> None:
    """No herd: each its own, over the fifth of the backoff that they are spread over."""
    assert len(set(moments)) > 0.8 * len(moments)
    assert max(moments) - min(moments) > 0.1 * base
    assert max(moments) - min(moments) <= 0.2 * base + 1_000


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_what_fails_in_one_call_is_not_due_in_one_moment(bench: Bench) -> None:
    await bench.push(*[(b"q", b"%d" % n) for n in range(40)], options={"b": 600_000})
    held = await bench.pop(*[b"q"] * 40)
    fails = [bench.store.of_lease(b"q", lease, encode_options({"e": {}})) for lease, *_ in held]
    assert await bench.call("fail", fails) == [[0, b"delayed"]] * 40
    spread(due(bench), 600_000)


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_leases_that_lapse_together_are_not_due_in_one_moment(bench: Bench) -> None:
    await bench.push(*[(b"q", b"%d" % n) for n in range(40)], options={"b": 600_000})
    for _ in range(2):
        assert len(await bench.pop(*[b"q"] * 40, lease_ms=1)) == 40
        time.sleep(0.01)
        await bench.sweep()
    # The second lapse waits for the second backoff.
    spread(due(bench), 1_200_000)


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_not_all_are_due_at_the_cap(bench: Bench) -> None:
    await bench.push(*[(b"q", b"%d" % n) for n in range(40)], options={"b": 3_600_000})
    held = await bench.pop(*[b"q"] * 40)
    before = bench.now()
    await bench.call("fail", [bench.store.of_lease(b"q", lease, b"\x80") for lease, *_ in held])
    moments = due(bench)
    assert len(set(moments)) > 30
    assert max(moments) <= bench.now() + 3_600_000
    assert min(moments) >= before + 3_240_000


def test_fails_of_one_request_are_spread(served: Daemon, q: str) -> None:
    body: list[Any] = [1] * 20
    ask(served, "PUT", f"/api/pushTasks/{q}?backoff=100", body).ok()
    held = ask(served, "GET", f"/api/popTasks/{q}?count=20&lease=60").ok()["tasks"]
    ask(served, "POST", f"/api/ackTasks/{q}", {"fails": [{"lease": one["lease"]} for one in held]}).ok()
    assert len({row["due_at"] for row in tasks(served, q, "state=delayed")}) > 15

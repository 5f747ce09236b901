"""Poison: a task on which several workers died is dead, so that it does not kill all of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import pytest_twisted

from registry.redis.store import encode_options
from tests.bench import Bench
from tests.live import Daemon
from tests.talk import (
    ask,
    becomes,
    counts,
    eventually,
    history,
    leased,
    on,
    policy,
    pushed,
    queue,
    retry,
    task,
)
from tests.test_metrics import scrape

# Each attempt: the worker that takes it, and how it ends. A "death" is a lease that runs out.
CASES = [
    ("three workers", {}, "a:death b:death c:death", "poison"),
    ("one worker again and again", {}, "a:death a:death a:death a:death", "delayed"),
    ("two workers in turn", {}, "a:death b:death a:death b:death", "delayed"),
    ("workers without a name are one", {}, ":death :death :death :death", "delayed"),
    ("one without a name, and two with one", {}, "a:death :death b:death", "poison"),
    ("a fail is no death", {}, "a:death b:fail c:death d:fail", "delayed"),
    ("a release is no death", {}, "a:death b:release c:death d:release", "ready"),
    ("others between", {}, "a:death b:fail c:death x:release d:death", "poison"),
    ("a hand-over that expired is no death", {}, "a:death b:handover c:death d:handover", "delayed"),
    ("fewer are allowed", {"poison": 1}, "a:death", "poison"),
    ("more are allowed", {"poison": 5}, "a:death b:death c:death d:death", "delayed"),
    ("more are allowed, and reached", {"poison": 5}, "a:death b:death c:death d:death e:death", "poison"),
    ("off", {"poison": 0}, "a:death b:death c:death d:death", "delayed"),
    ("its attempts end at the same time", {"attempts": 3}, "a:death b:death c:death", "poison"),
    ("its attempts end before", {"attempts": 2}, "a:death b:death", "lease_expired"),
    ("it is cancelled", {}, "a:death b:death c:cancelled", "cancelled"),
    ("after a retry it starts anew", {}, "a:death b:death c:death retry d:death e:death", "delayed"),
    ("after a retry, and three more", {}, "a:death b:death c:death retry c:death b:death a:death", "poison"),
]


async def take(bench: Bench, q: bytes, worker: str, how: str) -> None:
    """The next attempt: this worker gets the task, which ends so."""
    options: dict[str, Any] = {"w": worker} if worker else {}
    if how != "handover":
        options["l"] = True
    nonce = bench.ids.nonce()
    [reply] = await bench.call("pop", [bench.store.pop(q, nonce, 60_000, encode_options(options))])
    assert reply[0] == 0, reply
    lease = reply[1] + b"-" + nonce
    if how == "fail":
        fields = encode_options({"d": 0})
        [reply] = await bench.call("fail", [bench.store.of_lease(q, lease, fields)])
        assert reply[:2] == [0, b"ready"]
        return
    if how == "release":
        assert await bench.call("release", [bench.store.of_lease(q, lease, b"0")]) == [[0]]
        return
    if how == "cancelled":
        await bench.call("cancel", [bench.store.of_lease(q, reply[1])])
    # Its time is over.
    bench.redis("ZADD", b"{%b}l" % q, 1, lease)
    bench.redis("ZADD", "{registry}index", 1, q)
    await bench.sweep()


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_who_died_on_it(bench: Bench) -> None:
    for number, (title, rules, story, expected) in enumerate(CASES):
        q = b"q%d" % number
        await bench.call("policy", [bench.store.of_lease(q, msgspec.msgpack.encode({"set": rules}))])
        [task_id] = await bench.push((q, b"1"), options={"b": 0})
        for step in story.split():
            if step == "retry":
                assert (await bench.call("retry", [bench.store.of_lease(q, task_id, b"")]))[0][0] == 0
                continue
            if bench.known(q, task_id)["s"] == "d":
                # A backoff of 0 ms is over at once.
                await bench.sweep()
            await take(bench, q, *step.split(":"))
        found = bench.known(q, task_id)
        state = {"x": found.get("y"), "d": "delayed", "r": "ready"}[found["s"]]
        if expected == "delayed":
            # Where the sweep saw the delay end in the same moment, it is ready.
            assert state in ("delayed", "ready"), title
        else:
            assert state == expected, title


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_an_undone_retry_counts_as_before(bench: Bench) -> None:
    q = b"q"
    [task_id] = await bench.push((q, b"1"), options={"b": 0})
    for worker in "abc":
        await bench.sweep()
        await take(bench, q, worker, "death")
    before = bench.known(q, task_id)
    assert before["y"] == "poison"
    assert (await bench.call("retry", [bench.store.of_lease(q, task_id, b" 7:0")]))[0][0] == 0
    await bench.call("undo", [bench.store.of_lease(q, b"7", b"0", b"100")])
    after = bench.known(q, task_id)
    assert {key: after.get(key) for key in "synz"} == {key: before.get(key) for key in "synz"}
    assert after["h"] == before["h"]


@pytest.fixture(scope="module")
def poisoned(served: Daemon) -> dict[str, Any]:
    """A task on which three workers died, on a real daemon: its queue and id, and the metrics before."""
    q, before = "poisoned", scrape(served)
    task_id = pushed(served, q, 1, "backoff=0&key=k")
    for worker in ("a", "b", "c"):
        eventually(lambda: counts(served, q).get("ready") == 1)
        leased(served, q, f"lease=0.1&wait=0&worker={worker}")
    becomes(served, q, dead=1)
    return {"queue": q, "id": task_id, "before": before}


def test_what_is_said_of_it(served: Daemon, poisoned: dict[str, Any]) -> None:
    q, task_id = poisoned["queue"], poisoned["id"]
    row = task(served, q, task_id)
    assert (row["state"], row["reason"], row["attempt"]) == ("dead", "poison", 3)
    assert history(served, q, task_id) == [(n, "lease_expired") for n in (1, 2, 3)]
    why = ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}/why").ok()
    assert why["reasons"][0]["code"] == "dead" and why["reasons"][0]["reason"] == "poison"
    assert "a, b, c" in why["sentence"] and "poison" in why["sentence"]
    [group] = ask(served, "GET", f"/api/dead?queue={q}").ok()["groups"]
    assert (group["reason"], group["count"], group["points_to"]) == ("poison", 1, "tasks")
    assert sorted(group["workers"]) == ["a", "b", "c"]

    def ended(outcome: str) -> Any:
        before, now = (
            page.of("registry_tasks_ended_total", queue=q, outcome=outcome)
            for page in (poisoned["before"], scrape(served))
        )
        return now - before

    eventually(lambda: ended("poison") == 1)
    assert ended("dead") == 0


def test_it_is_selected_and_retried_by_its_reason(served: Daemon, poisoned: dict[str, Any]) -> None:
    q, task_id = poisoned["queue"], poisoned["id"]
    assert [
        row["id"]
        for row in ask(served, "GET", f"/api/queues/{q}/tasks?state=dead&reason=poison").ok()["tasks"]
    ] == [task_id]
    assert (
        ask(served, "DELETE", f"/api/queues/{q}/tasks?state=dead&reason=poison&dry_run=1").ok()["count"] == 1
    )
    assert retry(served, q, "reason=lease_expired")["count"] == 0
    assert retry(served, q, "reason=poison&dry_run=1")["count"] == 1
    # It needs no reason= to be retried, as whatever died of its workers.
    assert retry(served, q)["count"] == 1
    # It starts counting anew, and its key is taken again.
    assert pushed(served, q, 2, "key=k") == task_id
    for worker in ("d", "e"):
        eventually(lambda: counts(served, q).get("ready") == 1)
        leased(served, q, f"lease=0.1&wait=0&worker={worker}")
    eventually(lambda: counts(served, q).get("ready") == 1)
    held = leased(served, q, "wait=0&lease=30&worker=f")
    on(served, "ack", q, held["lease"]).ok()
    becomes(served, q, done=1)


def test_a_late_ack_ends_it(served: Daemon, q: str) -> None:
    policy(served, q, poison=1)
    pushed(served, q, 1)
    held = leased(served, q, "lease=0.1&wait=0&worker=a")
    becomes(served, q, dead=1)
    assert on(served, "ack", q, held["lease"]).ok() == {"success": True, "late": True}


@pytest.mark.parametrize("value", [-1, 21, 1.5, True, "3", [3], {}])
def test_a_bad_number(served: Daemon, q: str, value: Any) -> None:
    ask(served, "PATCH", f"/api/queues/{q}", {"poison": value}).refused(400, "bad_option", "'poison'")
    assert queue(served, q)["policy"] == {}


def test_it_is_a_rule_like_the_others(served: Daemon, q: str) -> None:
    assert policy(served, q, poison=0)["policy"] == {"poison": 0}
    assert policy(served, q, poison=20)["policy"] == {"poison": 20}
    assert policy(served, q, poison=None)["policy"] == {}

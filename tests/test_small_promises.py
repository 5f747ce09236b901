"""Small promises of the API that are easily overlooked, one test each."""

from __future__ import annotations

import time
from typing import Any

import pytest
from msgspec import msgpack
from twisted.internet.defer import succeed

from registry.daemon import host_allowed
from registry.queue.operations import Operations
from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    Asked,
    ask,
    becomes,
    counts,
    fresh,
    history,
    leased,
    on,
    policy,
    pop,
    push,
    pushed,
    retry,
    sleep_past,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis


# Pushing


def test_a_push_that_met_its_key_is_remembered_by_its_idempotency_key(served: Daemon, q: str) -> None:
    first = pushed(served, q, 1, "key=k")

    def again(body: int = 1) -> Any:
        return push(served, q, body, "key=k", Idempotency_Key="i")

    assert again().headers.get("idempotency-replayed") is None
    replayed = again()
    assert replayed.ok() == {"success": True, "id": first, "duplicate": True}
    assert replayed.headers["idempotency-replayed"] == "true"
    again(2).refused(422, "idempotency_key_reused")
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    assert again().ok()["id"] == first and counts(served, q) == {"done": 1}


def test_a_task_of_a_batch_may_be_as_deep_as_one_alone(served: Daemon, q: str) -> None:
    def deep(levels: int) -> bytes:
        return b"[" * levels + b"]" * levels

    ask(served, "PUT", f"/api/pushTasks/{q}", b"[1,%b]" % deep(500)).ok()
    refused = ask(served, "PUT", f"/api/pushTasks/{q}", b"[1,%b]" % deep(501)).refused(400, "too_deep")
    assert "byte 503" in refused["error"]
    assert counts(served, q) == {"ready": 2}


def test_a_time_may_keep_its_plus(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "at=2100-01-01T02:00:00+02:00")
    assert tasks(served, q, "state=delayed")[0]["due_at"] == "2100-01-01T00:00:00.000Z"


def test_an_option_that_is_no_text_is_named(served: Daemon, q: str) -> None:
    push(served, q, 1, "key=%FF").refused(400, "bad_option", "'key'", "UTF-8")
    push(served, q, 1, "%FF=1").refused(400, "bad_option", "xff")


@pytest.mark.parametrize("preference", ["wait=1000000", "wait=31622400", "wait=0000005", "wait=5.1234567"])
def test_a_long_preference_is_capped_not_ignored(served: Daemon, q: str, preference: str) -> None:
    asked = Asked(served, "PUT", f"/api/pushTask/{q}", b"1", {"Prefer": preference})
    assert asked.waits(0.2)
    on(served, "ack", q, leased(served, q)["lease"], b'"done"').ok()
    answer = asked.answer()
    assert answer.ok()["result"] == "done"
    assert 5 <= float(answer.headers["preference-applied"].removeprefix("wait=")) <= 55


def test_who_waits_for_the_end_is_reported_it_wherever_the_task_has_moved(served: Daemon, q: str) -> None:
    asked = Asked(served, "PUT", f"/api/pushTask/{q}", b"1", {"Prefer": "wait=10"})
    wait_until(lambda: counts(served, q) == {"ready": 1}, 3)
    looked = Asked(served, "GET", f"/api/queues/{q}/tasks/{tasks(served, q)[0]['id']}?wait=10")
    assert looked.waits(0.2)
    other = fresh()
    ask(served, "POST", f"/api/queues/{q}/move?to={other}").ok()
    on(served, "ack", other, leased(served, other)["lease"], b"7").ok()
    assert asked.answer().ok()["result"] == 7
    assert looked.answer().ok()["queue"] == other


def test_the_backoff_with_its_jitter_is_an_hour_at_most(served: Daemon, q: str) -> None:
    for _ in range(12):
        pushed(served, q, 1, "backoff=3600")
        on(served, "fail", q, leased(served, q)["lease"]).ok()
    before = time.time()
    for row in tasks(served, q, "state=delayed"):
        due = time.mktime(time.strptime(row["due_at"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone
        assert 3000 < due - before <= 3600.5


# Popping


def test_what_was_only_cleared_away_hides_nothing_behind_it(served: Daemon) -> None:
    """The other queue of the same pop is paused; more than a call clears away lies in front of the live one."""
    a, b = fresh(), fresh()
    policy(served, b, paused=True)
    for _ in range(3):
        ask(served, "PUT", f"/api/pushTasks/{a}?ttl=0.05", list(range(100))).ok()
        pushed(served, a, "live")
        time.sleep(0.06)
        answer = ask(served, "GET", f"/api/popTasks/{a},{b}?wait=0").ok()
        assert [one["task"] for one in answer["tasks"]] == ["live"]
        becomes(served, a, 5, dead=100, leased=1)
        ask(served, "DELETE", f"/api/queues/{a}").ok()
        a = fresh()


def test_a_fair_pop_reads_no_whole_queue(served: Daemon, module_redis_process: RedisServer) -> None:
    a, b = fresh(), fresh()
    for name in (a, b):
        ask(served, "PUT", f"/api/pushTasks/{name}", list(range(500))).ok()
    module_redis_process.command("CONFIG", "RESETSTAT")
    given = ask(served, "GET", f"/api/popTasks/{a},{b}?count=6&order=fair&wait=0").ok()["tasks"]
    assert sorted(one["task"] for one in given) == [0, 0, 1, 1, 2, 2]
    assert b"cmdstat_lrange" not in module_redis_process.command("INFO", "commandstats")


def test_what_came_of_an_ack_is_reported_with_a_refusal_of_the_pop_too(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    lease = leased(served, q)["lease"]
    policy(served, q, concurrency=1)
    refused = pop(served, q, f"wait=0&ack={lease}")
    refused.refused(409, "lease_required")
    assert refused.headers["registry-ack"] == "done"
    assert pop(served, q, "wait=0&lease=&ack=never-was").headers["registry-ack"] == "lease_lost"


def test_a_repeated_pop_may_wait_for_another_time(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    first = leased(served, q, "lease=30&wait=5", Idempotency_Key="i")
    assert leased(served, q, "lease=30&wait=0", Idempotency_Key="i")["lease"] == first["lease"]
    assert leased(served, q, "lease=30&ack=x", Idempotency_Key="i")["lease"] == first["lease"]


def test_a_paused_queue_with_a_limit_wants_leases_all_the_same(served: Daemon, q: str) -> None:
    policy(served, q, concurrency=1, paused=True)
    pushed(served, q, 1)
    pop(served, q, "wait=0").refused(409, "lease_required")


# A lease that has run out, and nobody has come by to say so


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.2, 0.3])
def test_a_lease_ends_at_its_time_and_not_at_the_next_sweep(served: Daemon, q: str, wait: float) -> None:
    for task_ in ("acked", "failed", "released"):
        pushed(served, q, task_, "attempts=1")
    held = {one["task"]: one["lease"] for one in (leased(served, q, "lease=0.1&wait=0") for _ in range(3))}
    time.sleep(0.11 + wait)
    on(served, "fail", q, held["failed"]).refused(409, "lease_lost")
    on(served, "release", q, held["released"]).refused(409, "lease_lost")
    assert on(served, "ack", q, held["acked"]).ok() == {"success": True, "late": True}
    becomes(served, q, dead=2, done=1)


def test_a_late_ack_tells_who_it_was_and_counts_after_a_retry_as_well(served: Daemon, q: str) -> None:
    one = pushed(served, q, 1, "attempts=1")
    lease = leased(served, q, "lease=0.1&wait=0&worker=w")["lease"]
    sleep_past(0.1)
    assert retry(served, q)["count"] == 1
    assert on(served, "ack", q, lease).ok()["late"] is True
    row = task(served, q, one)
    assert history(served, q, one) == [(1, "lease_expired"), (1, "done")]
    assert row["history"][1]["worker"] == "w" and row["history"][1]["leased_at"]


def test_a_bound_on_the_run_takes_nothing_away_that_a_pop_granted(served: Daemon, q: str) -> None:
    policy(served, q, max_run=2)
    pushed(served, q, 1)
    lease = leased(served, q, "lease=30&wait=0")["lease"]
    assert 28 < on(served, "extend", q, lease, b"", "lease=100").ok()["expires_in"] <= 30
    assert on(served, "extend", q, lease, b"", "lease=1").ok()["expires_in"] == 1
    assert on(served, "extend", q, lease, b"", "lease=100").ok()["expires_in"] <= 2


def test_a_bound_of_a_fraction_of_a_millisecond(served: Daemon, q: str) -> None:
    policy(served, q, max_run=10.0005)
    pushed(served, q, 1)
    lease = leased(served, q, "lease=1&wait=0", Idempotency_Key="i")["lease"]
    assert 9 < on(served, "extend", q, lease, b"", "lease=100").ok()["expires_in"] <= 10.001


def test_results_of_many_acks_keep_their_bytes(served: Daemon, q: str) -> None:
    results = ['{"a":1,"a":2,"p":"a\\/b","z":-0}', '"\\ud800"', " [1, 2.50] ", "1e999", "null"]
    ids = [pushed(served, q, n) for n in range(len(results))]
    given = ask(served, "GET", f"/api/popTasks/{q}?count=9&wait=0").ok()["tasks"]
    acks = ",".join(
        f'{{"result":{result},"lease":"{one["lease"]}"}}' for one, result in zip(given, results, strict=True)
    )
    Asked(served, "POST", f"/api/ackTasks/{q}", f'{{"acks":[{acks}]}}').answer().ok()
    for task_id, result in zip(ids, results, strict=True):
        body = ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}").body
        assert f'"result":{result.strip()}'.encode() in body


def test_a_release_takes_no_body_that_it_would_not_heed(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    lease = leased(served, q)["lease"]
    on(served, "release", q, lease, {"delay": 50}).refused(400, "bad_option", "delay")
    on(served, "release", q, lease, {}).ok()
    assert counts(served, q) == {"ready": 1}


def test_leases_that_run_out_together_go_back_in_the_order_of_the_queue(served: Daemon, q: str) -> None:
    for n in range(4):
        pushed(served, q, n)
    for length in (0.3, 0.2, 0.1):
        leased(served, q, f"lease={length}&wait=0")
    sleep_past(0.5)
    # However many sweeps saw them end: a later one goes in front.
    assert [row["task"] for row in tasks(served, q)] == [0, 1, 2, 3]


# Operations


def test_a_dry_run_counts_what_the_real_one_would_do(served: Daemon, q: str) -> None:
    for _ in range(2):
        pushed(served, q, 1, "attempts=1&key=k")
        on(served, "fail", q, leased(served, q)["lease"]).ok()
    assert retry(served, q, "dry_run=1") == {"success": True, "count": 1, "skipped": 1}
    pushed(served, q, 2, "key=k")
    assert retry(served, q, "dry_run=1") == {"success": True, "count": 0, "skipped": 2}
    one = tasks(served, q, "state=dead")[0]["id"]
    path = f"/api/queues/{q}/retry?dry_run=1&id="
    ask(served, "POST", path + one).refused(409, "key_taken")
    ask(served, "POST", path + tasks(served, q)[0]["id"]).refused(409, "not_dead")
    ask(served, "POST", path + "never").refused(404, "not_found")
    assert counts(served, q) == {"ready": 1, "dead": 2}


def test_a_retry_of_one_heeds_the_reason(served: Daemon, q: str) -> None:
    one = pushed(served, q, 1, "attempts=1")
    on(served, "fail", q, leased(served, q)["lease"]).ok()
    assert retry(served, q, f"id={one}&reason=expired") == {"success": True, "count": 0, "skipped": 1}
    assert retry(served, q, f"id={one}&reason=failed&dry_run=1")["count"] == 1
    assert counts(served, q) == {"dead": 1}
    assert retry(served, q, f"id={one}&reason=failed")["count"] == 1


def test_a_lower_limit_of_the_done_holds_at_once(served: Daemon, q: str) -> None:
    ids = ask(served, "PUT", f"/api/pushTasks/{q}", list(range(60))).ok()["ids"]
    given = ask(served, "GET", f"/api/popTasks/{q}?count=60&wait=0").ok()["tasks"]
    ask(served, "POST", f"/api/ackTasks/{q}", {"acks": [one["lease"] for one in given]}).ok()
    assert counts(served, q) == {"done": 60}
    assert policy(served, q, retention={"done_max": 2})["done"] == 2
    assert {row["id"] for row in tasks(served, q, "state=done")} == set(ids[-2:])


def test_a_lower_limit_holds_for_more_than_one_call_can_clear_away(served: Daemon, q: str) -> None:
    for _ in range(8):
        ask(served, "PUT", f"/api/pushTasks/{q}", list(range(100))).ok()
        given = ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0").ok()["tasks"]
        ask(served, "POST", f"/api/ackTasks/{q}", {"acks": [one["lease"] for one in given]}).ok()
    assert policy(served, q, retention={"done_max": 2})["done"] == 2


def test_rules_are_written_once_however_long_the_clearing_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second write would undo what somebody else has changed meanwhile."""
    replies = [[0, msgpack.encode({}), left] for left in (900, 400, 0)]
    calls: list[Any] = []

    def one(self: Operations, verb: str, name: bytes, packed: bytes) -> Any:
        calls.append(msgpack.decode(packed))
        return succeed(replies[len(calls) - 1])

    monkeypatch.setattr(Operations, "_run_one", one)
    Operations.__new__(Operations).set_policy(b"q", {"retention": {"done_max": 2}})
    assert calls == [{"set": {"retention": {"done_max": 2}}, "reset": []}, {"t": True}, {"t": True}]


def done(served: Daemon, q: str, task: Any, query: str = "") -> str:
    """Push, lease, acknowledge; the id."""
    task_id = pushed(served, q, task, query)
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    return task_id


def listed(served: Daemon, q: str) -> list[Any]:
    """The payloads of the done, over pages of one."""
    found, cursor = [], ""
    while True:
        page = ask(served, "GET", f"/api/queues/{q}/tasks?state=done&limit=1{cursor}").ok()
        found += [row["task"] for row in page["tasks"]]
        if page["cursor"] is None:
            return found
        cursor = f"&cursor={page['cursor']}"


def test_of_the_done_the_oldest_go_first_whatever_was_asked_to_be_kept(served: Daemon, q: str) -> None:
    policy(served, q, retention={"done_max": 3})
    for n in range(45):
        done(served, q, n, "" if n % 3 == 2 else "result=10000" if n % 3 else "result=60")
    # The newest three that no push asked to keep, and all others.
    assert sorted(listed(served, q)) == [n for n in range(45) if n % 3 != 2 or n > 35]


def test_the_done_are_listed_newest_first_whatever_keeps_them(served: Daemon, q: str) -> None:
    for n in range(8):
        done(served, q, n, "result=60" if n % 3 else "")
        time.sleep(0.002)
    assert listed(served, q) == list(reversed(range(8)))


def test_who_looks_at_a_task_that_moves_is_reported_where_it_is(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    looking = Asked(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=1.5")
    assert looking.waits(0.3)
    to = fresh()
    assert ask(served, "POST", f"/api/queues/{q}/move?to={to}").ok()["count"] == 1
    row = looking.answer().ok()
    assert (row["queue"], row["state"]) == (to, "ready")


def test_who_looks_in_the_wrong_queue_misleads_nobody(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    wrong, to = fresh(), fresh()
    ask(served, "GET", f"/api/queues/{wrong}/tasks/{task_id}?wait=1").refused(404, "not_found")
    first = Asked(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=2")
    assert first.waits(0.2)
    ask(served, "GET", f"/api/queues/{wrong}/tasks/{task_id}?wait=1").refused(404, "not_found")
    ask(served, "POST", f"/api/queues/{q}/move?to={to}").ok()
    ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=1").refused(404, "not_found")
    assert first.answer().ok()["queue"] == to


def test_what_was_asked_to_be_kept_is_so_for_that_time_and_no_longer_beyond_the_limit(
    served: Daemon, q: str
) -> None:
    policy(served, q, retention={"done_max": 3})
    for n in range(20):
        done(served, q, n, "result=0.5")
    assert counts(served, q) == {"done": 20}
    becomes(served, q, 5, done=3)
    assert listed(served, q) == [19, 18, 17]


def test_a_changed_retention_counts_for_what_has_ended_too(served: Daemon, q: str) -> None:
    policy(served, q, retention={"done": 3600, "done_max": 2})
    for n in range(2):
        done(served, q, n)
    policy(served, q, retention={"done": 600, "done_max": 2})
    for n in range(10, 12):
        done(served, q, n)
    assert listed(served, q) == [11, 10]
    policy(served, q, retention={"done": 0.5})
    becomes(served, q, 5)
    assert listed(served, q) == []


def test_paths_below_a_queue_tell_the_methods_they_take(served: Daemon, q: str) -> None:
    one = pushed(served, q, 1)
    for path, takes in {
        "": "DELETE, GET, PATCH",
        "/tasks": "DELETE, GET",
        "/retry": "POST",
        "/pause": "POST",
        "/move": "POST",
        f"/tasks/{one}": "DELETE, GET",
        f"/tasks/{one}/why": "GET",
        f"/tasks/{one}/run": "POST",
    }.items():
        for method in ("PUT", "OPTIONS"):
            answer = ask(served, method, f"/api/queues/{q}{path}")
            assert (answer.status, answer.headers["allow"]) == (405, takes)


def test_null_says_nothing_of_a_field(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    body = {"error": None, "delay": None, "retry": None}
    assert on(served, "fail", q, leased(served, q)["lease"], body).ok()["state"] == "delayed"
    schedule = {"cron": "* * * * *", "queue": q, "task": 1, "timezone": None, "missed": None}
    row = ask(served, "PUT", f"/api/schedules/{q}", schedule).ok()
    assert (row["timezone"], row["missed"]) == ("UTC", "skip")
    ask(served, "PUT", f"/api/schedules/{q}", {**schedule, "queue": "\ud800"}).refused(400, "bad_name")
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_a_limit_of_the_done_is_a_whole_number(served: Daemon, q: str) -> None:
    ask(served, "PATCH", f"/api/queues/{q}", {"retention": {"done_max": 1.5}}).refused(
        400, "bad_option", "done_max"
    )


def test_the_dead_are_searched_by_what_their_error_says(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "attempts=1")
    error = {"type": "E", "message": "it's C:\\x"}
    on(served, "fail", q, leased(served, q)["lease"], {"error": error}).ok()
    for said, found in (("it's", 1), ("C:%5Cx", 1), ("failed", 1), ("message", 0), ("'E'", 0)):
        assert len(tasks(served, q, f"state=dead&search={said}")) == found, said


@pytest.mark.parametrize(
    ("name", "ours"),
    {
        "localhost": True,
        "x.localhost": True,
        "127.9.9.9": True,
        "::1": True,
        "0:0:0:0:0:0:0:1": True,
        "::ffff:127.0.0.1": True,
        "registry.example": True,
        "127.0.0": False,
        "127.0.0.1.example": False,
        "::2": False,
        "example": False,
    }.items(),
)
def test_loopback_has_many_names(name: str, ours: bool) -> None:
    assert host_allowed(("registry.example",))(name.encode()) is ours

"""The requests of a lease holder, and how leases expire, on one daemon."""

from __future__ import annotations

import time

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    ask,
    becomes,
    counts,
    drain,
    fresh,
    history,
    leased,
    on,
    policy,
    poll,
    pop,
    pushed,
    task,
)

pytestmark = pytest.mark.every_redis


# What a pop answers


def test_only_a_request_with_lease_gets_a_leased_answer(served: Daemon, q: str) -> None:
    ids = [pushed(served, q, n) for n in range(2)]
    policy(served, q, lease=5)
    plain = pop(served, q, "wait=0")
    assert plain.body == b'{"task":0}'
    assert (plain.headers["Task-Id"], plain.headers["Task-Attempt"]) == (ids[0], "1")
    with_lease = pop(served, q, "wait=0&lease=")
    body = with_lease.ok()
    assert set(body) == {"task", "id", "lease", "expires_in", "attempt"}
    assert (body["task"], body["id"], body["expires_in"], body["attempt"]) == (1, ids[1], 5, 1)
    assert body["lease"].replace("-", "").replace("_", "").isalnum()


def test_an_empty_lease_means_that_of_the_task_then_of_the_queue_then_60_s(served: Daemon, q: str) -> None:
    pushed(served, q, "own", "lease=7.5")
    pushed(served, q, "none")
    assert leased(served, q, "lease=&wait=0")["expires_in"] == 7.5
    assert leased(served, q, "lease=&wait=0")["expires_in"] == 60
    policy(served, q, lease=9)
    pushed(served, q, "queue's")
    assert leased(served, q, "lease=&wait=0")["expires_in"] == 9
    pushed(served, q, "own wins", "lease=3")
    assert leased(served, q, "lease=&wait=0")["expires_in"] == 3
    pushed(served, q, "the pop wins", "lease=3")
    assert leased(served, q, "lease=4&wait=0")["expires_in"] == 4


@pytest.mark.parametrize("length", ["0", "0.09", "43200.1", "-1", "x", "1e5", "inf"])
def test_a_lease_out_of_bounds_is_refused_and_takes_nothing(served: Daemon, q: str, length: str) -> None:
    pushed(served, q, 1)
    pop(served, q, f"wait=0&lease={length}").refused(400, "bad_option", "'lease'")
    assert counts(served, q) == {"ready": 1}


def test_both_bounds_of_a_lease_are_accepted(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    pushed(served, q, 2)
    assert leased(served, q, "wait=0&lease=43200")["expires_in"] == 43200
    assert leased(served, q, "wait=0&lease=0.1")["expires_in"] == 0.1


def test_a_pop_names_unknown_options(served: Daemon, q: str) -> None:
    pop(served, q, "timeout=3").refused(400, "bad_option", "'timeout'")
    pop(served, q, "wait=-1").refused(400, "bad_option", "'wait'")
    pop(served, q, "wait=0&wait=1").refused(400, "bad_option", "'wait'", "twice")
    pop(served, q, "wait=0&worker=").refused(400, "bad_option", "'worker'")
    pop(served, q, "wait=0&ack=no.lease").refused(400, "bad_option", "'ack'")
    pop(served, q, "wait=0&ack=").refused(400, "bad_option", "'ack'")


# Ack


def test_an_ack_may_be_repeated_and_keeps_its_result(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    pushed(served, q, {"n": 1})
    held = leased(served, q, "lease=30&wait=0&worker=w1")
    first = on(served, "ack", q, held["lease"], b'{"big": 12345678901234567890, "e": 1e999}')
    assert first.body == b'{"success":true}'
    assert on(served, "ack", q, held["lease"]).body == b'{"success":true}'
    row = ask(served, "GET", f"/api/queues/{q}/tasks/{held['id']}")
    assert b'"result":{"big": 12345678901234567890, "e": 1e999}' in row.body
    assert (row.ok()["state"], row.ok()["attempt"]) == ("done", 1)
    [entry] = row.ok()["history"]
    assert (entry["attempt"], entry["worker"], entry["reason"], entry["error"]) == (1, "w1", "done", None)
    assert entry["leased_at"] <= entry["ended_at"] and entry["ended_at"].endswith("Z")
    # Repeats are known for ten minutes.
    forgotten = float(module_redis_process.command("ZSCORE", f"{{{q}}}a", held["lease"]))
    assert 590 < forgotten / 1000 - time.time() <= 600.5


def test_an_empty_ack_is_no_result_and_one_that_is_not_json_is_refused(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    on(served, "ack", q, held["lease"], b"{").refused(400, "bad_json")
    assert counts(served, q) == {"leased": 1}
    on(served, "ack", q, held["lease"]).ok()
    assert task(served, q, held["id"])["result"] is None


def test_a_result_that_is_null_or_false_is_kept_as_it_is(served: Daemon, q: str) -> None:
    for result in (b"null", b"false", b'""'):
        pushed(served, q, 1)
        held = leased(served, q)
        on(served, "ack", q, held["lease"], result).ok()
        assert b'"result":%b' % result in ask(served, "GET", f"/api/queues/{q}/tasks/{held['id']}").body


def test_every_request_of_a_holder_needs_a_held_lease(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    for verb in ("ack", "fail", "release", "extend"):
        for unknown in ("0123456789abcdef-0123", "nonsense", "-", "_" * 160):
            assert "forget" in on(served, verb, q, unknown).refused(409, "lease_lost")["error"]
        for no_lease in ("no.lease", "x" * 161, "%C3%BC"):
            on(served, verb, q, no_lease).refused(400, "bad_option")
    assert counts(served, q) == {"ready": 1}


def test_a_lease_of_one_queue_is_not_valid_in_another(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    on(served, "ack", fresh(), held["lease"]).refused(409, "lease_lost")
    on(served, "ack", q, held["lease"]).ok()


def test_after_an_ack_the_holder_can_do_nothing_else(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    on(served, "ack", q, held["lease"]).ok()
    for verb in ("fail", "release", "extend"):
        on(served, verb, q, held["lease"]).refused(409, "lease_lost")
    assert counts(served, q) == {"done": 1}


def test_a_late_ack_is_accepted_while_the_task_is_ready_again(served: Daemon, q: str) -> None:
    pushed(served, q, "slow")
    pushed(served, q, "other")
    held = leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, ready=2)
    assert on(served, "ack", q, held["lease"], b"7").json == {"success": True, "late": True}
    assert counts(served, q) == {"ready": 1, "done": 1}
    assert task(served, q, held["id"])["result"] == 7
    assert on(served, "ack", q, held["lease"]).status == 200
    assert drain(served, q) == ["other"]
    assert counts(served, q) == {"done": 2}


def test_a_late_ack_is_accepted_while_the_task_waits_for_its_backoff(served: Daemon, q: str) -> None:
    pushed(served, q, "slow", "backoff=60")
    leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, ready=1)
    held = leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, delayed=1)
    assert on(served, "ack", q, held["lease"]).json["late"] is True
    assert counts(served, q) == {"done": 1}


def test_a_late_ack_brings_back_a_task_that_its_last_expired_lease_made_dead(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, "slow", "attempts=1")
    held = leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, dead=1)
    assert task(served, q, task_id)["reason"] == "lease_expired"
    assert on(served, "ack", q, held["lease"], b'"at last"').json["late"] is True
    assert counts(served, q) == {"done": 1}
    row = task(served, q, task_id)
    assert (row["state"], row["result"]) == ("done", "at last")
    assert "reason" not in row


def test_a_lease_is_lost_once_another_worker_has_the_task(served: Daemon, q: str) -> None:
    pushed(served, q, "slow")
    first = leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, ready=1)
    second = leased(served, q)
    assert (second["id"], second["attempt"]) == (first["id"], 2)
    assert second["lease"] != first["lease"]
    for verb in ("ack", "fail", "release", "extend"):
        on(served, verb, q, first["lease"]).refused(409, "lease_lost")
    on(served, "ack", q, second["lease"]).ok()
    on(served, "ack", q, first["lease"]).refused(409, "lease_lost")


def test_a_failed_or_released_lease_takes_no_late_ack(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    for verb in ("release", "fail"):
        held = leased(served, q)
        on(served, verb, q, held["lease"], b'{"delay": 0}' if verb == "fail" else b"").ok()
        on(served, "ack", q, held["lease"]).refused(409, "lease_lost")
    assert counts(served, q) == {"ready": 1}


def test_a_late_ack_names_the_last_lease_only(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "backoff=0.1")
    first = leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, ready=1)
    second = leased(served, q, "lease=0.1&wait=0")
    wait_until(lambda: counts(served, q) in ({"ready": 1}, {"delayed": 1}), 3)
    on(served, "ack", q, first["lease"]).refused(409, "lease_lost")
    assert on(served, "ack", q, second["lease"]).json["late"] is True


def test_late_fails_and_releases_and_extends_are_refused(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, ready=1)
    for verb in ("fail", "release", "extend"):
        on(served, verb, q, held["lease"]).refused(409, "lease_lost")


# Expiry


def test_an_expired_lease_wakes_the_parked_poller_with_the_next_attempt(served: Daemon, q: str) -> None:
    pushed(served, q, "again")
    first = leased(served, q, "lease=0.5&wait=0&worker=gone")
    waiting = poll(served, q)
    second = waiting.answer(4).ok()
    assert (second["task"], second["id"], second["attempt"]) == ("again", first["id"], 2)
    assert history(served, q, first["id"]) == [(1, "lease_expired")]
    [entry] = task(served, q, first["id"])["history"]
    assert entry["worker"] == "gone"


def test_the_first_expired_lease_goes_to_the_head_and_later_ones_wait_for_their_backoff(
    served: Daemon, q: str
) -> None:
    slow = pushed(served, q, "slow", "backoff=30")
    pushed(served, q, "next")
    leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, ready=2)
    assert leased(served, q, "lease=0.1&wait=0")["id"] == slow
    becomes(served, q, ready=1, delayed=1)
    row = task(served, q, slow)
    assert row["attempt"] == 2
    assert [h["attempt"] for h in row["history"]] == [1, 2]
    assert leased(served, q)["task"] == "next"


def test_leases_that_expire_in_one_moment_keep_their_order(served: Daemon, q: str) -> None:
    for n in range(4):
        pushed(served, q, n)
    ask(served, "GET", f"/api/popTasks/{q}?count=3&lease=0.2").ok()
    becomes(served, q, ready=4)
    assert drain(served, q) == [0, 1, 2, 3]


def test_after_its_attempts_a_task_is_dead_with_its_history(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, "bad", "attempts=3&backoff=0")
    leased(served, q, "lease=0.1&wait=0&worker=a")
    becomes(served, q, ready=1)
    held = leased(served, q, "lease=30&wait=0&worker=b")
    error = {"type": "ValueError", "message": "no zone", "trace": "line 1\nline 2"}
    assert on(served, "fail", q, held["lease"], {"error": error}).ok()["state"] == "ready"
    leased(served, q, "lease=0.1&wait=0&worker=c")
    becomes(served, q, dead=1)
    row = task(served, q, task_id)
    assert (row["state"], row["attempt"], row["reason"]) == ("dead", 3, "lease_expired")
    received = [(h["attempt"], h["worker"], h["reason"], h["error"]) for h in row["history"]]
    assert received == [
        (1, "a", "lease_expired", None),
        (2, "b", "failed", error),
        (3, "c", "lease_expired", None),
    ]


def test_an_expired_task_of_three_days_forgets_nothing_before_its_retention(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    pushed(served, q, 1, "attempts=1")
    held = leased(served, q)
    assert on(served, "fail", q, held["lease"]).ok() == {"success": True, "state": "dead"}
    forgotten = float(module_redis_process.command("ZSCORE", f"{{{q}}}x", held["id"]))
    assert abs(forgotten / 1000 - time.time() - 2_592_000) < 5


# Fail


def test_a_failed_task_waits_for_a_backoff_that_doubles(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "backoff=100")
    for attempt in (1, 2, 3):
        held = leased(served, q)
        assert held["attempt"] == attempt
        before = time.time()
        assert on(served, "fail", q, held["lease"]).ok()["state"] == "delayed"
        due = _seconds(task(served, q, task_id)["due_at"]) - before
        base = 100 * 2 ** (attempt - 1)
        assert base * 0.85 <= due <= base * 1.15
        ask(served, "POST", f"/api/queues/{q}/tasks/{task_id}/run").ok()


def test_the_backoff_is_capped_at_an_hour(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "backoff=3600")
    for _ in range(2):
        held = leased(served, q)
        before = time.time()
        on(served, "fail", q, held["lease"]).ok()
        assert 3200 <= _seconds(task(served, q, task_id)["due_at"]) - before <= 4000
        ask(served, "POST", f"/api/queues/{q}/tasks/{task_id}/run").ok()


def test_the_default_backoff_is_10_s(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    held = leased(served, q)
    before = time.time()
    on(served, "fail", q, held["lease"]).ok()
    assert 8.5 <= _seconds(task(served, q, task_id)["due_at"]) - before <= 11.6


def test_fail_with_a_delay_of_its_own(served: Daemon, q: str) -> None:
    pushed(served, q, "first")
    pushed(served, q, "second")
    held = leased(served, q)
    assert on(served, "fail", q, held["lease"], {"delay": 0}).ok()["state"] == "ready"
    second = leased(served, q)
    assert second["task"] == "second"  # what failed goes to the tail
    waiting = leased(served, q)
    assert (waiting["task"], waiting["attempt"]) == ("first", 2)
    assert on(served, "fail", q, waiting["lease"], {"delay": 0.3}).ok()["state"] == "delayed"
    assert leased(served, q, "lease=30&wait=5")["attempt"] == 3


def test_fail_without_retry_is_dead_at_once(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    held = leased(served, q)
    reply = {"error": {"message": "never"}, "retry": False}
    assert on(served, "fail", q, held["lease"], reply).ok() == {"success": True, "state": "dead"}
    row = task(served, q, task_id)
    assert (row["reason"], row["history"][0]["error"]) == ("failed", {"message": "never"})


def test_fail_names_what_is_wrong_with_it(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    for reply, word in (
        ({"delay": -1}, "'delay'"),
        ({"delay": "1"}, "'delay'"),
        ({"retry": 1}, "'retry'"),
        ({"error": 5}, "'error'"),
        ({"error": {"message": 1}}, "'error'"),
        ({"reason": 1}, "'reason'"),
    ):
        on(served, "fail", q, held["lease"], reply).refused(400, "bad_option", word)
    on(served, "fail", q, held["lease"], [1]).refused(400, "bad_json")
    on(served, "fail", q, held["lease"], b"", "delay=3").refused(400, "bad_option", "'delay'")
    assert counts(served, q) == {"leased": 1}


# Release


def test_a_release_goes_back_to_the_head_and_does_not_count(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "attempts=1")
    pushed(served, q, 2)
    for _ in range(3):
        held = leased(served, q)
        assert (held["task"], held["attempt"]) == (1, 1)
        assert on(served, "release", q, held["lease"]).ok() == {"success": True}
    assert counts(served, q) == {"ready": 2}


def test_a_release_with_a_delay_comes_at_its_time(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    on(served, "release", q, held["lease"], b"", "delay=0.4").ok()
    assert counts(served, q) == {"delayed": 1}
    again = leased(served, q, "lease=30&wait=5")
    assert again["attempt"] == 1
    on(served, "release", q, again["lease"], b"", "delay=x").refused(400, "bad_option", "'delay'")
    on(served, "release", q, again["lease"], b"", "later=1").refused(400, "bad_option", "'later'")


def test_a_release_wakes_the_poller_that_waits(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    waiting = poll(served, q)
    on(served, "release", q, held["lease"]).ok()
    assert waiting.answer(3).ok()["task"] == 1


# Extend


def test_extend_keeps_the_lease_and_records_the_progress(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    held = leased(served, q, "lease=0.8&wait=0&worker=w")
    received = on(served, "extend", q, held["lease"], {"progress": 0.4, "message": "half of it"}, "lease=20")
    assert received.ok() == {"expires_in": 20, "cancel": False}
    time.sleep(1.5)
    row = task(served, q, task_id)
    assert (row["state"], row["progress"], row["message"]) == ("leased", 0.4, "half of it")
    assert row["worker"] == "w" and row["lease_ends_at"] > row["leased_at"]
    on(served, "ack", q, held["lease"]).ok()


def test_extend_may_shorten_a_lease_and_keeps_its_length_by_default(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q, "lease=30&wait=0")
    assert on(served, "extend", q, held["lease"]).ok()["expires_in"] == 30
    policy(served, q, lease=33)
    assert on(served, "extend", q, held["lease"]).ok()["expires_in"] == 30
    assert on(served, "extend", q, held["lease"], b"", "lease=0.1").ok()["expires_in"] == 0.1
    becomes(served, q, ready=1)
    on(served, "extend", q, held["lease"]).refused(409, "lease_lost")


def test_extend_names_what_is_wrong_with_it(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    on(served, "extend", q, held["lease"], {"progress": "x"}).refused(400, "bad_option", "'progress'")
    on(served, "extend", q, held["lease"], {"message": 1}).refused(400, "bad_option", "'message'")
    on(served, "extend", q, held["lease"], {"percent": 1}).refused(400, "bad_option", "'percent'")
    on(served, "extend", q, held["lease"], b"", "lease=0").refused(400, "bad_option", "'lease'")
    on(served, "extend", q, held["lease"], b"", "seconds=1").refused(400, "bad_option", "'seconds'")


def test_max_run_bounds_the_sum_of_extends(served: Daemon, q: str) -> None:
    policy(served, q, max_run=2)
    pushed(served, q, 1)
    held = leased(served, q, "lease=1&wait=0")
    received = on(served, "extend", q, held["lease"], b"", "lease=30").ok()
    assert 1.0 < received["expires_in"] <= 2
    time.sleep(0.3)
    assert on(served, "extend", q, held["lease"], b"", "lease=30").ok()["expires_in"] < received["expires_in"]
    becomes(served, q, 4, ready=1)
    on(served, "extend", q, held["lease"]).refused(409, "lease_lost")


# ack= on the next pop


def test_the_next_pop_acknowledges_the_last_task(served: Daemon, q: str) -> None:
    for n in (1, 2):
        pushed(served, q, n)
    first = leased(served, q)
    answer = pop(served, q, f"lease=30&wait=0&ack={first['lease']}")
    assert (answer.headers["Registry-Ack"], answer.ok()["task"]) == ("done", 2)
    assert counts(served, q) == {"leased": 1, "done": 1}
    last = pop(served, q, f"lease=30&wait=0&ack={answer.json['lease']}")
    assert (last.status, last.headers["Registry-Ack"]) == (202, "done")
    assert last.body == b'{"error":"No tasks available"}'


def test_the_ack_of_a_pop_is_done_before_it_parks(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    waiting = poll(served, q, f"lease=30&wait=20&ack={held['lease']}")
    assert counts(served, q) == {"done": 1}
    pushed(served, q, 2)
    answer = waiting.answer(3)
    assert (answer.headers["Registry-Ack"], answer.ok()["task"]) == ("done", 2)


def test_a_pop_continues_whether_or_not_its_ack_succeeds(served: Daemon, q: str) -> None:
    for n in (1, 2, 3):
        pushed(served, q, n, "backoff=50")
    lapsing = leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, ready=3)
    answer = pop(served, q, f"lease=30&wait=0&ack={lapsing['lease']}")
    assert (answer.headers["Registry-Ack"], answer.ok()["task"]) == ("late", 2)
    answer = pop(served, q, f"lease=30&wait=0&ack={lapsing['lease'][:-4]}0000")
    assert (answer.headers["Registry-Ack"], answer.ok()["task"]) == ("lease_lost", 3)
    # Also on a pop without lease.
    pushed(served, q, 4)
    answer = pop(served, q, f"wait=0&ack={answer.json['lease']}")
    assert (answer.headers["Registry-Ack"], answer.body) == ("done", b'{"task":4}')


def _seconds(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()

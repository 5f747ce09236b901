"""The options of a push: how each works, and how invalid values are refused."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    Asked,
    ask,
    becomes,
    counts,
    drain,
    fresh,
    leased,
    leaves_nothing,
    on,
    policy,
    poll,
    pop,
    push,
    pushed,
    sleep_past,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def moment(seconds: float, zone: str = "Z") -> str:
    at = datetime.now(UTC) + timedelta(seconds=seconds)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + zone


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("delay=-1", "'delay'"),
        ("delay=1e9", "'delay'"),
        ("delay=", "'delay'"),
        ("at=tomorrow", "'at'"),
        ("at=2026-01-31", "'at'"),
        ("at=2026-01-31T12:00:00", "'at'"),
        ("at=2026-02-31T12:00:00Z", "'at'"),
        ("delay=1&at=2030-01-31T12:00:00Z", "'delay' and 'at'"),
        ("priority=10", "'priority'"),
        ("priority=-1", "'priority'"),
        ("priority=1.5", "'priority'"),
        ("ttl=0", "'ttl'"),
        ("ttl=x", "'ttl'"),
        ("attempts=0", "'attempts'"),
        ("attempts=1.5", "'attempts'"),
        ("backoff=-1", "'backoff'"),
        ("backoff=3601", "'backoff'"),
        ("lease=0", "'lease'"),
        ("lease=43201", "'lease'"),
        ("key=", "'key'"),
        ("key=a%0Ab", "'key'"),
        ("result=604801", "'result'"),
        ("result=-1", "'result'"),
        ("timeout=5", "'timeout'"),
        ("wait=5", "'wait'"),
        ("priority=1&priority=2", "'priority'"),
    ],
)
def test_a_malformed_option_is_named_and_nothing_is_stored(
    served: Daemon, q: str, query: str, name: str
) -> None:
    push(served, q, 1, query).refused(400, "bad_option", name)
    assert counts(served, q) == {}


def test_both_bounds_are_accepted(served: Daemon, q: str) -> None:
    for query in ("priority=0", "priority=9", "result=604800", "attempts=1", "backoff=0", "backoff=3600"):
        pushed(served, q, 1, query)
    for query in ("lease=0.1", "lease=43200", "delay=0", "key=" + "k" * 255, "ttl=0.5&key=%C3%BC"):
        pushed(served, q, 1, query)
    assert counts(served, q)["ready"] == 11


def test_post_is_put(served: Daemon, q: str) -> None:
    assert ask(served, "POST", f"/api/pushTask/{q}?priority=2", b"1").ok()["success"] is True


# When


def test_a_delayed_task_comes_when_it_is_due_to_a_poller_that_waits(served: Daemon, q: str) -> None:
    started = time.monotonic()
    task_id = pushed(served, q, "later", "delay=0.7")
    assert counts(served, q) == {"delayed": 1}
    assert pop(served, q).status == 202
    row = task(served, q, task_id)
    assert row["state"] == "delayed" and row["due_at"] > row["pushed_at"]
    assert poll(served, q).answer(3).ok()["task"] == "later"
    assert time.monotonic() - started >= 0.7


def test_at_is_a_time_and_a_past_one_means_now(served: Daemon, q: str) -> None:
    started = time.time()
    pushed(served, q, "soon", f"at={moment(0.8)}")
    assert counts(served, q) == {"delayed": 1}
    assert leased(served, q, "wait=5&lease=30")["task"] == "soon"
    assert time.time() - started >= 0.75
    pushed(served, q, "past", f"at={moment(-100)}")
    pushed(served, q, "elsewhere", f"at={moment(-3700 + 3600, '%2B01:00')}")
    assert drain(served, q) == ["past", "elsewhere"]


def test_delayed_tasks_come_in_the_order_of_their_times_to_the_tail(served: Daemon, q: str) -> None:
    pushed(served, q, "c", "delay=0.5")
    pushed(served, q, "b", "delay=0.4")
    pushed(served, q, "a")
    becomes(served, q, ready=3)
    assert drain(served, q) == ["a", "b", "c"]


def test_higher_priorities_go_first_and_equal_ones_in_order(served: Daemon, q: str) -> None:
    for n, priority in enumerate([0, 3, 9, 3, 0, 1]):
        pushed(served, q, n, f"priority={priority}")
    pushed(served, q, 6)
    assert [row["priority"] for row in tasks(served, q)] == [9, 3, 3, 1, 0, 0, 0]
    assert drain(served, q) == [2, 1, 3, 5, 0, 4, 6]


def test_a_priority_survives_a_delay_a_release_and_a_retry(served: Daemon, q: str) -> None:
    pushed(served, q, "plain")
    important = pushed(served, q, "important", "priority=5&delay=0.2&attempts=1")
    becomes(served, q, ready=2)
    held = leased(served, q)
    on(served, "release", q, held["lease"]).ok()
    held = leased(served, q)
    assert held["task"] == "important"
    on(served, "fail", q, held["lease"]).ok()
    ask(served, "POST", f"/api/queues/{q}/retry?id={important}").ok()
    assert drain(served, q) == ["important", "plain"]


# ttl


def test_an_expired_task_is_dead_with_that_reason(served: Daemon, q: str) -> None:
    ready = pushed(served, q, "ready", "ttl=0.3&priority=2")
    late = pushed(served, q, "late", "ttl=0.3&delay=0.25")
    pushed(served, q, "stays", "ttl=60")
    assert task(served, q, ready)["expires_at"] > task(served, q, ready)["pushed_at"]
    becomes(served, q, ready=1, dead=2)
    for one in (ready, late):
        assert (task(served, q, one)["state"], task(served, q, one)["reason"]) == ("dead", "expired")
    assert drain(served, q) == ["stays"]


def test_the_ttl_ends_with_the_first_lease(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "ttl=0.6")
    held = leased(served, q)
    sleep_past(0.6)
    on(served, "release", q, held["lease"]).ok()
    sleep_past(0)
    again = leased(served, q)
    on(served, "fail", q, again["lease"], {"delay": 0.1}).ok()
    assert leased(served, q, "wait=5&lease=30")["task"] == 1


def test_the_ttl_of_a_queue_applies_to_tasks_without_one(served: Daemon, q: str) -> None:
    policy(served, q, ttl=0.3)
    pushed(served, q, "plain")
    pushed(served, q, "with another option", "priority=1")
    pushed(served, q, "its own", "ttl=50")
    ask(served, "PUT", f"/api/pushTasks/{q}?priority=1", [1, 2]).ok()
    becomes(served, q, ready=1, dead=4)
    assert drain(served, q) == ["its own"]


# attempts, backoff, lease


def test_the_attempts_and_backoff_of_a_queue_apply_to_tasks_without_them(served: Daemon, q: str) -> None:
    policy(served, q, attempts=1, backoff=0)
    pushed(served, q, "queue's")
    pushed(served, q, "own", "attempts=2")
    assert on(served, "fail", q, leased(served, q)["lease"]).ok()["state"] == "dead"
    assert on(served, "fail", q, leased(served, q)["lease"]).ok()["state"] == "ready"
    pushed(served, q, "slow", "attempts=2&backoff=50")
    assert on(served, "fail", q, leased(served, q)["lease"]).ok()["state"] == "dead"
    assert on(served, "fail", q, leased(served, q)["lease"]).ok()["state"] == "delayed"


def test_there_are_25_attempts_by_default(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    for attempt in range(1, 26):
        held = leased(served, q)
        assert held["attempt"] == attempt
        state = on(served, "fail", q, held["lease"], {"delay": 0}).ok()["state"]
        assert state == ("dead" if attempt == 25 else "ready")


# key


def test_a_key_blocks_while_its_task_is_ready_delayed_or_leased(served: Daemon, q: str) -> None:
    ready = pushed(served, q, 1, "key=r")
    delayed = pushed(served, q, 2, "key=d&delay=60")
    assert push(served, q, 9, "key=r").ok() == {"success": True, "id": ready, "duplicate": True}
    assert push(served, q, 9, "key=d").ok() == {"success": True, "id": delayed, "duplicate": True}
    held = leased(served, q)
    assert push(served, q, 9, "key=r&priority=3").ok()["duplicate"] is True
    on(served, "fail", q, held["lease"], {"delay": 60}).ok()
    assert push(served, q, 9, "key=r").ok()["duplicate"] is True
    assert counts(served, q) == {"delayed": 2}
    assert task(served, q, ready)["key"] == "r"


def test_a_key_belongs_to_its_queue(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "key=k")
    assert "duplicate" not in push(served, fresh(), 1, "key=k").ok()


def test_a_key_is_free_once_its_task_is_done_or_dead(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "key=k")
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    pushed(served, q, 2, "key=k&attempts=1")
    on(served, "fail", q, leased(served, q)["lease"]).ok()
    assert "duplicate" not in push(served, q, 3, "key=k").ok()
    assert counts(served, q) == {"ready": 1, "dead": 1, "done": 1}


def test_an_expired_task_does_not_block_its_key_even_before_the_sweep(served: Daemon, q: str) -> None:
    first = pushed(served, q, 1, "key=k&ttl=0.001")
    time.sleep(0.003)  # an answer and the next request may take less than the one millisecond
    answer = push(served, q, 2, "key=k").ok()
    assert "duplicate" not in answer and answer["id"] != first
    becomes(served, q, ready=1, dead=1)
    # The first one's end has not freed what is the second one's now.
    assert push(served, q, 3, "key=k").ok()["id"] == answer["id"]


def test_a_key_blocks_while_a_pop_without_lease_hands_it_over_and_not_after(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "key=k")
    assert pop(served, q, "wait=0").body == b'{"task":1}'
    wait_until(lambda: "duplicate" not in push(served, q, 2, "key=k").ok(), 3)


def test_a_key_of_a_cancelled_or_purged_task_is_free(served: Daemon, q: str) -> None:
    one = pushed(served, q, 1, "key=k")
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{one}").ok()
    assert "duplicate" not in push(served, q, 2, "key=k").ok()
    ask(served, "DELETE", f"/api/queues/{q}").ok()
    assert "duplicate" not in push(served, q, 3, "key=k").ok()


def test_a_batch_takes_no_key(served: Daemon, q: str) -> None:
    ask(served, "PUT", f"/api/pushTasks/{q}?key=k", [1]).refused(400, "bad_option", "'key'")


# Idempotency-Key


def test_a_repeated_push_is_answered_with_the_same_id(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    first = push(served, q, {"a": 1}, "priority=2", Idempotency_Key="i1")
    again = push(served, q, {"a": 1}, "priority=2", Idempotency_Key="i1")
    assert first.headers["Idempotency-Replayed"] is None
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.ok() == first.ok()
    assert counts(served, q) == {"ready": 1}
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    assert push(served, q, {"a": 1}, "priority=2", Idempotency_Key="i1").ok() == first.ok()
    # And for a day.
    left = module_redis_process.command("PTTL", f"{{{q}}}i:push:i1")
    assert 86_300_000 < left <= 86_400_000


def test_a_key_with_another_body_or_other_options_is_refused(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "priority=2&lease=5", Idempotency_Key="i1")
    push(served, q, 2, "priority=2&lease=5", Idempotency_Key="i1").refused(422, "idempotency_key_reused")
    push(served, q, 1, "priority=3&lease=5", Idempotency_Key="i1").refused(422, "idempotency_key_reused")
    # The order of options is none of their meaning.
    assert push(served, q, 1, "lease=5&priority=2", Idempotency_Key="i1").status == 200
    assert counts(served, q) == {"ready": 1}


def test_a_key_is_scoped_to_its_queue_and_verb(served: Daemon, q: str) -> None:
    pushed(served, q, 1, Idempotency_Key="i1")
    assert push(served, fresh(), 2, Idempotency_Key="i1").status == 200
    assert ask(served, "PUT", f"/api/pushTasks/{q}", [2], Idempotency_Key="i1").status == 200
    assert pop(served, q, Idempotency_Key="i1").status == 200


def test_a_repeat_is_answered_although_the_queue_is_full_by_now(served: Daemon, q: str) -> None:
    policy(served, q, max_length=1)
    first = push(served, q, 1, Idempotency_Key="i1")
    assert push(served, q, 1, Idempotency_Key="i1").ok() == first.ok()
    assert push(served, q, 1, "key=k").status == 429
    key = fresh()
    policy(served, key, max_length=1)
    held = pushed(served, key, 1, "key=k")
    assert push(served, key, 2, "key=k").ok() == {"success": True, "id": held, "duplicate": True}


@pytest.mark.parametrize("key", ["", '""x' + "y" * 300, "caf\xe9"])
def test_a_malformed_key_is_refused(served: Daemon, q: str, key: str) -> None:
    asked = Asked(served, "PUT", f"/api/pushTask/{q}", b"1", {"Idempotency-Key": key})
    asked.answer().refused(400, "bad_option", "Idempotency-Key")
    assert counts(served, q) == {}


def test_a_done_task_with_a_key_is_there_for_its_repeats(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, Idempotency_Key="i1")
    assert pop(served, q, "wait=0").status == 200
    wait_until(lambda: counts(served, q) == {"done": 1}, 3)
    assert task(served, q, task_id)["state"] == "done"


# traceparent


def test_traceparent_travels_with_the_task(served: Daemon, q: str) -> None:
    for n in range(3):
        pushed(served, q, n, traceparent=TRACE)
    assert pop(served, q).headers["traceparent"] == TRACE
    plain = pop(served, q, "wait=0")
    assert plain.headers["traceparent"] == TRACE and plain.body == b'{"task":1}'
    [one] = ask(served, "GET", f"/api/popTasks/{q}?wait=0").ok()["tasks"]
    assert one["traceparent"] == TRACE


# result, and waiting for it


def test_a_result_is_kept_as_long_as_the_push_asked(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    policy(served, q, retention={"done": 0})
    task_id = pushed(served, q, 1, "result=1")
    forgotten = pushed(served, q, 2)
    for _ in range(2):
        on(served, "ack", q, leased(served, q)["lease"], b'{"ok":1}').ok()
    assert task(served, q, task_id)["result"] == {"ok": 1}
    assert ask(served, "GET", f"/api/queues/{q}/tasks/{forgotten}").status == 404
    wait_until(lambda: ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}").status == 404, 4)


def test_a_result_is_kept_after_a_pop_without_lease_too(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    task_id = pushed(served, q, 1, "result=1")
    assert pop(served, q, "wait=0").status == 200
    becomes(served, q, done=1)
    assert task(served, q, task_id)["result"] is None
    leaves_nothing(module_redis_process, q)


def waiting(served: Daemon, q: str, query: str = "", wait: str = "wait=10") -> Asked:
    asked = Asked(served, "PUT", f"/api/pushTask/{q}{'?' if query else ''}{query}", b"1", {"Prefer": wait})
    assert asked.waits(0.3)
    return asked


def test_prefer_wait_answers_with_the_result(served: Daemon, q: str) -> None:
    asked = waiting(served, q)
    held = leased(served, q)
    assert asked.waits(0.2)
    on(served, "ack", q, held["lease"], b'{"n": 1e999}').ok()
    answer = asked.answer(3)
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert answer.body.endswith(b'"result":{"n": 1e999}}')
    assert (answer.ok()["id"], answer.json["success"]) == (held["id"], True)


def test_prefer_wait_reports_a_dead_task(served: Daemon, q: str) -> None:
    asked = waiting(served, q, "attempts=1")
    on(served, "fail", q, leased(served, q)["lease"]).ok()
    received = asked.answer(3).ok()
    assert (received["state"], received["reason"]) == ("dead", "failed")
    expired = waiting(served, q, "ttl=0.5")
    assert expired.answer(4).ok()["reason"] == "expired"
    cancelled = waiting(served, q)
    [row] = tasks(served, q)
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{row['id']}").ok()
    assert cancelled.answer(3).ok()["reason"] == "cancelled"


def test_prefer_wait_answers_202_with_a_location_when_the_time_is_up(served: Daemon) -> None:
    q = fresh("with:colon%20")
    asked = Asked(served, "PUT", f"/api/pushTask/{q}", b"1", {"Prefer": "respond-async, wait=1"})
    answer = asked.answer(5)
    assert (answer.status, answer.headers["Preference-Applied"]) == (202, "wait=1")
    row = ask(served, "GET", answer.headers["Location"]).ok()
    assert (row["id"], row["state"]) == (answer.json["id"], "ready")


def test_prefer_wait_is_capped_by_max_wait(served: Daemon, q: str) -> None:
    asked = waiting(served, q, wait="wait=1000")
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    assert asked.answer(3).headers["Preference-Applied"] == "wait=55"


def test_a_pop_without_lease_ends_the_wait_with_null(served: Daemon, q: str) -> None:
    asked = waiting(served, q)
    assert pop(served, q, "wait=0").body == b'{"task":1}'
    assert asked.answer(3).body.endswith(b'"result":null}')


def test_prefer_wait_implies_a_minute_of_result(served: Daemon, q: str) -> None:
    policy(served, q, retention={"done": 0})
    asked = waiting(served, q)
    held = leased(served, q)
    on(served, "ack", q, held["lease"], b"3").ok()
    asked.answer(3).ok()
    row = task(served, q, held["id"])
    assert row["result"] == 3


def test_a_duplicate_waits_for_the_first_one(served: Daemon, q: str) -> None:
    first = pushed(served, q, 1, "key=k")
    asked = waiting(served, q, "key=k")
    on(served, "ack", q, leased(served, q)["lease"], b"42").ok()
    received = asked.answer(3).ok()
    assert (received["id"], received["duplicate"], received["result"]) == (first, True, 42)


def test_a_repeat_waits_for_the_first_one_and_is_answered_when_that_has_ended(served: Daemon, q: str) -> None:
    headers = {"Prefer": "wait=10", "Idempotency-Key": "i"}
    polls = [Asked(served, "PUT", f"/api/pushTask/{q}", b"1", headers) for _ in range(2)]
    assert all(one.waits(0.3) for one in polls)
    on(served, "ack", q, leased(served, q)["lease"], b"42").ok()
    answers = [one.answer(3) for one in polls]
    answers.append(Asked(served, "PUT", f"/api/pushTask/{q}", b"1", headers).answer(3))
    assert {answer.ok()["id"] for answer in answers} == {answers[0].json["id"]}
    assert [answer.json["result"] for answer in answers] == [42, 42, 42]
    assert answers[2].headers["Idempotency-Replayed"] == "true"


def test_a_preference_that_cannot_be_read_is_ignored(served: Daemon, q: str) -> None:
    for wait in ("wait=soon", "respond-async", "wait", "waiting=5"):
        asked = Asked(served, "PUT", f"/api/pushTask/{q}", b"1", {"Prefer": wait})
        answer = asked.answer(3)
        assert answer.ok()["success"] is True
        assert answer.headers["Preference-Applied"] is None


def test_the_wait_ends_when_the_task_is_purged(served: Daemon, q: str) -> None:
    asked = waiting(served, q, "delay=60")
    ask(served, "DELETE", f"/api/queues/{q}").ok()
    received = asked.answer(3).ok()
    assert (received["state"], received["reason"]) == ("dead", "purged")


def test_the_wait_ends_when_a_hang_up_ends_what_was_cancelled(served: Daemon, q: str) -> None:
    asked = waiting(served, q)
    for _ in range(8):
        ask(served, "PUT", f"/api/pushTask/{q}", b'"' + b"x" * 900_000 + b'"').ok()
    gone = Asked(served, "GET", f"/api/popTasks/{q}?count=9&lease=600", receive_buffer=4096)
    becomes(served, q, 5, leased=9)
    [first, *_] = tasks(served, q, "state=leased&limit=1")
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{first['id']}").ok()
    assert asked.waits(0.3)
    gone.hang_up()
    assert asked.answer(3).ok()["reason"] == "cancelled"


def test_the_wait_ends_when_its_time_is_up_although_the_task_has_moved(served: Daemon, q: str) -> None:
    asked = Asked(served, "PUT", f"/api/pushTask/{q}", b"1", {"Prefer": "wait=1"})
    becomes(served, q, ready=1)
    to = fresh()
    ask(served, "POST", f"/api/queues/{q}/move?to={to}").ok()
    answer = asked.answer(3)
    assert (answer.status, answer.json["state"]) == (202, "ready")
    assert ask(served, "GET", answer.headers["Location"]).ok()["queue"] == to

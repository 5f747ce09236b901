"""Inspection: lists with cursors, counts, a single task, and why it does not run."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from tests.live import Daemon, RedisServer, wait_until
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
    pushed,
    queue,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def pages(served: Daemon, path: str, what: str, query: str = "") -> list[list[dict[str, Any]]]:
    """Every page of a list, by its cursors."""
    found: list[list[dict[str, Any]]] = []
    cursor = ""
    while True:
        reply = ask(served, "GET", f"{path}?{query}{'&cursor=' + cursor if cursor else ''}").ok()
        assert set(reply) == {what, "cursor"}
        found.append(reply[what])
        cursor = reply["cursor"]
        if cursor is None:
            return found
        assert len(found) < 100, "a cursor that never ends"


# Queues


def test_a_name_that_holds_nothing_is_all_zeros(served: Daemon, q: str) -> None:
    assert queue(served, q) == {
        "name": q,
        "ready": 0,
        "delayed": 0,
        "leased": 0,
        "dead": 0,
        "done": 0,
        "oldest_age": None,
        "pollers": 0,
        "rates": {},
        "policy": {},
    }


def test_a_queue_counts_its_tasks_by_state(served: Daemon, q: str) -> None:
    ask(served, "PUT", f"/api/pushTasks/{q}?attempts=1", list(range(9))).ok()
    pushed(served, q, 1, "delay=60")
    pushed(served, q, 1, "priority=4")
    held = ask(served, "GET", f"/api/popTasks/{q}?count=5&wait=0").ok()["tasks"]
    on(served, "ack", q, held[0]["lease"]).ok()
    on(served, "fail", q, held[1]["lease"], {"retry": False}).ok()
    assert counts(served, q) == {"ready": 5, "delayed": 1, "leased": 3, "dead": 1, "done": 1}


def test_the_oldest_age_is_that_of_the_oldest_ready_task_of_any_priority(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    pushed(served, q, "old")
    time.sleep(0.6)
    pushed(served, q, "new", "priority=9")
    assert 0.5 < queue(served, q)["oldest_age"] < 5
    assert leased(served, q)["task"] == "new"
    assert leased(served, q)["task"] == "old"
    assert queue(served, q)["oldest_age"] is None
    module_redis_process.command("LPUSH", q, "1")
    assert queue(served, q)["oldest_age"] is None
    assert counts(served, q)["ready"] == 1


def test_a_parked_poller_is_counted_and_makes_its_queue_listed(served: Daemon, q: str) -> None:
    waiting = poll(served, q)
    assert queue(served, q)["pollers"] == 1
    rows = ask(served, "GET", f"/api/queues?search={q}").ok()["queues"]
    assert [(row["name"], row["pollers"]) for row in rows] == [(q, 1)]
    waiting.hang_up()
    wait_until(lambda: queue(served, q)["pollers"] == 0, 3)
    assert ask(served, "GET", f"/api/queues?search={q}").ok()["queues"] == []


def test_queues_are_listed_as_long_as_they_hold_anything(served: Daemon) -> None:
    stem = fresh("listed")
    ready, ruled, delayed, empty = (f"{stem}-{word}" for word in ("ready", "ruled", "delayed", "empty"))
    pushed(served, ready, 1)
    pushed(served, delayed, 1, "delay=60")
    policy(served, ruled, lease=5)
    pushed(served, empty, 1)
    pop(served, empty, "wait=0").ok()

    def names() -> list[str]:
        return [row["name"] for row in ask(served, "GET", f"/api/queues?search={stem}").ok()["queues"]]

    wait_until(lambda: names() == [delayed, ready, ruled], 3, "the three that hold something")


def test_a_raw_queue_is_listed_from_its_first_poll_on(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    module_redis_process.command("LPUSH", q, "1", "2")
    leased(served, q)
    rows = ask(served, "GET", f"/api/queues?search={q}").ok()["queues"]
    assert [(row["name"], row["ready"], row["leased"]) for row in rows] == [(q, 1, 1)]


def test_the_list_of_queues_has_pages_by_name_and_by_count(served: Daemon) -> None:
    stem = fresh("paged")
    for n in range(7):
        ask(served, "PUT", f"/api/pushTasks/{stem}-{n}%20%C3%BC", list(range(n + 1))).ok()
    by_name = pages(served, "/api/queues", "queues", f"limit=3&search={stem}")
    assert [len(page) for page in by_name] == [3, 3, 1]
    assert [row["name"] for page in by_name for row in page] == [f"{stem}-{n} ü" for n in range(7)]
    by_ready = pages(served, "/api/queues", "queues", f"limit=3&search={stem}&sort=ready")
    assert [row["ready"] for page in by_ready for row in page] == [7, 6, 5, 4, 3, 2, 1]
    whole = pages(served, "/api/queues", "queues", f"limit=7&search={stem}")
    assert [len(page) for page in whole] == [7]
    oldest = pages(served, "/api/queues", "queues", f"search={stem}&sort=oldest")
    ages = [row["oldest_age"] for row in oldest[0]]
    assert ages == sorted(ages, reverse=True)


def test_a_family_is_one_summed_row(served: Daemon) -> None:
    stem = fresh("results")
    for n in range(3):
        pushed(served, f"{stem}:{n}", n)
    pushed(served, f"{stem}:0", "more")
    pushed(served, stem, 1)
    rows = ask(served, "GET", f"/api/queues?family=:&search={stem}").ok()["queues"]
    assert [(row["name"], row["ready"]) for row in rows] == [(stem, 1), (f"{stem}:*", 4)]
    assert rows[1]["oldest_age"] > 0


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "'limit'"),
        ("limit=1001", "'limit'"),
        ("sort=size", "'sort'"),
        ("family=x", "'family'"),
        ("sort=ready&cursor=x", "'cursor'"),
        ("page=2", "'page'"),
    ],
)
def test_a_list_of_queues_names_what_is_wrong_with_it(served: Daemon, query: str, name: str) -> None:
    ask(served, "GET", f"/api/queues?{query}").refused(400, "bad_option", name)


def test_a_queue_of_a_wrong_type_does_not_break_the_list(
    served: Daemon, module_redis_process: RedisServer
) -> None:
    stem = fresh("broken")
    for n in range(3):
        pushed(served, f"{stem}-{n}", n, "priority=1")
    module_redis_process.command("SET", f"{stem}-1", "text")
    rows = ask(served, "GET", f"/api/queues?search={stem}").ok()["queues"]
    assert [row["name"] for row in rows if row["ready"]] == [f"{stem}-0", f"{stem}-2"]
    ask(served, "GET", f"/api/queues/{stem}-1").refused(409, "wrong_type")


# Tasks


def test_a_task_as_it_is(served: Daemon, q: str) -> None:
    body = b'{"kept": 1e999,  "as":"it is"}'
    task_id = ask(served, "PUT", f"/api/pushTask/{q}?priority=3", body).ok()["id"]
    answer = ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}")
    assert b'"task":' + body in answer.body
    row = answer.ok()
    assert {name: row[name] for name in ("id", "queue", "state", "attempt", "priority", "history")} == {
        "id": task_id,
        "queue": q,
        "state": "ready",
        "attempt": 0,
        "priority": 3,
        "history": [],
    }
    assert (row["progress"], row["result"]) == (None, None)
    assert MOMENT.fullmatch(row["pushed_at"])


def test_a_task_shows_the_options_that_count_in_place_of_the_policy(served: Daemon, q: str) -> None:
    assert "options" not in task(served, q, pushed(served, q, 1))
    given = pushed(served, q, 1, "attempts=3&backoff=0.5&lease=30&result=60&priority=2")
    options = {"attempts": 3, "backoff": 0.5, "lease": 30, "result": 60}
    assert task(served, q, given)["options"] == options
    listed = {one["id"]: one for one in tasks(served, q)}
    assert listed[given]["options"] == options


def test_an_unknown_task_is_404(served: Daemon, q: str) -> None:
    for path in ("0" * 24, "0" * 24 + "/why", "x%20y"):
        ask(served, "GET", f"/api/queues/{q}/tasks/{path}").refused(404, "not_found")
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{'0' * 24}").refused(404, "not_found")


@pytest.mark.parametrize("state", ["ready", "delayed", "leased", "dead", "done"])
def test_every_states_list_has_pages(served: Daemon, q: str, state: str) -> None:
    query = "?delay=60" if state == "delayed" else ""
    ids = ask(served, "PUT", f"/api/pushTasks/{q}{query}", list(range(25))).ok()["ids"]
    if state in ("leased", "dead", "done"):
        held = ask(served, "GET", f"/api/popTasks/{q}?count=25&wait=0").ok()["tasks"]
        if state == "dead":
            for one in held:
                on(served, "fail", q, one["lease"], {"retry": False}).ok()
        if state == "done":
            for one in held:
                on(served, "ack", q, one["lease"]).ok()
    found = pages(served, f"/api/queues/{q}/tasks", "tasks", f"state={state}&limit=10")
    assert [len(page) for page in found if page] == [10, 10, 5]
    rows = [row for page in found for row in page]
    assert sorted(row["id"] for row in rows) == sorted(ids)
    assert {row["state"] for row in rows} == {state}
    if state == "leased":
        ends = {
            ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}").ok()["lease_ends_at"] for task_id in ids
        }
        assert {row["lease_ends_at"] for row in rows} == ends
    if state in ("ready", "delayed", "leased"):
        assert [row["task"] for row in rows] == list(range(25))
    if state in ("dead", "done"):
        moments = [row["ended_at"] for row in rows]
        assert moments == sorted(moments, reverse=True)


def test_the_list_of_ready_is_that_of_delivery_over_all_priorities(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    for n in range(12):
        pushed(served, q, n, f"priority={n % 3 * 4}")
    module_redis_process.command("LPUSH", q, '"raw"', "not json")
    gone = ask(served, "GET", f"/api/queues/{q}/tasks").ok()["tasks"][5]["id"]
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{gone}").ok()
    rows = [row for page in pages(served, f"/api/queues/{q}/tasks", "tasks", "limit=3") for row in page]
    assert [row["task"] for row in rows] == [2, 5, 8, 11, 1, 7, 10, 0, 3, 6, 9, "raw", "not json"]
    assert [row["id"] for row in rows[-2:]] == [None, None]
    assert rows[-1]["pushed_at"] is None


def test_lists_are_searched_in_payload_id_and_error(served: Daemon, q: str) -> None:
    for n in range(30):
        pushed(served, q, {"zone": f"zone-{n}.example"})
    [row] = tasks(served, q, "search=zone-17.")
    assert row["task"] == {"zone": "zone-17.example"}
    assert [found["id"] for found in tasks(served, q, f"search={row['id']}")] == [row["id"]]
    found = pages(served, f"/api/queues/{q}/tasks", "tasks", "search=zone-2&limit=4")
    assert [t["task"]["zone"][5:-8] for page in found for t in page] == [
        "2",
        *(str(n) for n in range(20, 30)),
    ]
    held = leased(served, q)
    on(served, "fail", q, held["lease"], {"retry": False, "error": {"type": "DnsError"}}).ok()
    assert [one["id"] for one in tasks(served, q, "state=dead&search=DnsError")] == [held["id"]]
    assert tasks(served, q, "state=dead&search=nowhere") == []


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("state=running", "'state'"),
        ("limit=0", "'limit'"),
        ("limit=1001", "'limit'"),
        ("cursor=x", "'cursor'"),
        ("cursor=10.0", "'cursor'"),
        ("state=dead&cursor=-1", "'cursor'"),
        ("page=1", "'page'"),
    ],
)
def test_a_list_of_tasks_names_what_is_wrong_with_it(served: Daemon, q: str, query: str, name: str) -> None:
    ask(served, "GET", f"/api/queues/{q}/tasks?{query}").refused(400, "bad_option", name)


def test_a_page_has_100_rows_by_default_and_at_most_1000(served: Daemon, q: str) -> None:
    ask(served, "PUT", f"/api/pushTasks/{q}", list(range(1000))).ok()
    ask(served, "PUT", f"/api/pushTasks/{q}", list(range(50))).ok()
    assert len(tasks(served, q)) == 100
    assert len(tasks(served, q, "limit=1000")) == 1000
    found = pages(served, f"/api/queues/{q}/tasks", "tasks", "limit=1000")
    assert [len(page) for page in found if page] == [1000, 50]


# Waiting for the end of a task


def test_a_wait_answers_when_the_task_ends(served: Daemon, q: str) -> None:
    policy(served, q, retention={"done": 0})
    task_id = pushed(served, q, 1)
    waiting = Asked(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=20")
    assert waiting.waits()
    held = leased(served, q)
    assert waiting.waits()
    on(served, "ack", q, held["lease"], b"[1]").ok()
    row = waiting.answer(2).ok()
    assert (row["state"], row["result"]) == ("done", [1])


def test_a_wait_answers_with_the_task_as_it_is_when_the_time_is_up(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    started = time.monotonic()
    row = task(served, q, task_id, "?wait=0.6")
    assert row["state"] == "ready"
    assert time.monotonic() - started >= 0.6


def test_a_wait_for_an_ended_or_unknown_task_is_answered_at_once(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "attempts=1")
    on(served, "fail", q, leased(served, q)["lease"]).ok()
    assert Asked(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=20").answer(3).ok()["state"] == "dead"
    Asked(served, "GET", f"/api/queues/{q}/tasks/{'0' * 24}?wait=20").answer(3).refused(404, "not_found")
    ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=x").refused(400, "bad_option", "'wait'")


def test_a_wait_ends_with_a_pop_without_lease(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    waiting = Asked(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait=20")
    assert waiting.waits()
    assert pop(served, q, "wait=0").json == {"task": 1}
    assert waiting.answer(2).ok()["state"] == "done"


# Why


def why(served: Daemon, q: str, task_id: str) -> dict[str, Any]:
    reply: dict[str, Any] = ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}/why").ok()
    assert set(reply) == {"id", "state", "sentence", "reasons"}
    assert reply["id"] == task_id
    for reason in reply["reasons"]:
        assert reason["text"] in reply["sentence"]
    return reply


def codes(served: Daemon, q: str, task_id: str) -> list[str]:
    return [reason["code"] for reason in why(served, q, task_id)["reasons"]]


def test_why_states_the_position(served: Daemon, q: str) -> None:
    ids = [pushed(served, q, n) for n in range(3)]
    first = pushed(served, q, 4, "priority=2")
    assert "next" in codes(served, q, first)
    [reason] = [r for r in why(served, q, ids[2])["reasons"] if r["code"] == "position"]
    assert reason["position"] == 3
    # What was cancelled does not go before anything.
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{ids[0]}").ok()
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{ids[1]}").ok()
    [reason] = [r for r in why(served, q, ids[2])["reasons"] if r["code"] == "position"]
    assert reason["position"] == 1


def test_why_states_how_long_no_worker_has_polled(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "delay=60")
    time.sleep(0.3)
    [reason] = [r for r in why(served, q, task_id)["reasons"] if r["code"] == "nobody_polls"]
    assert 0.2 < reason["seconds"] < 5
    assert reason["text"] == "No worker is known to have polled this queue since the registry started."
    waiting = poll(served, q)
    assert codes(served, q, task_id) == ["delayed"]
    waiting.hang_up()
    wait_until(lambda: "nobody_polls" in codes(served, q, task_id), 3)
    for query in (f"popTask/{q}?wait=0", f"popTasks/a,{q}?wait=0"):
        time.sleep(1.1)
        ask(served, "GET", f"/api/{query}")
        [reason] = [r for r in why(served, q, task_id)["reasons"] if r["code"] == "nobody_polls"]
        assert reason["seconds"] < 1
    [reason] = [r for r in why(served, q, task_id)["reasons"] if r["code"] == "nobody_polls"]
    assert re.fullmatch(r"No worker has polled this queue for \d+ s\.", reason["text"])


def test_why_of_every_state(served: Daemon, q: str) -> None:
    delayed = pushed(served, q, 0, "delay=50")
    received = why(served, q, delayed)
    assert received["state"] == "delayed"
    [reason] = [r for r in received["reasons"] if r["code"] == "delayed"]
    # A daemon knows the time of Redis to a few ms.
    assert 45 < reason["seconds"] < 50.1
    task_id = pushed(served, q, 1, "attempts=1")
    held = leased(served, q, "wait=0&lease=30&worker=w7")
    received = why(served, q, task_id)
    assert (received["state"], [r["code"] for r in received["reasons"]]) == ("leased", ["leased"])
    assert "w7" in received["sentence"]
    on(served, "fail", q, held["lease"]).ok()
    assert codes(served, q, task_id) == ["dead"]
    done = pushed(served, q, 2)
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    assert codes(served, q, done) == ["done"]


def test_why_states_the_rules_that_hold_a_task_back(served: Daemon, q: str) -> None:
    policy(served, q, concurrency=1, rate=100)
    pushed(served, q, 1)
    task_id = pushed(served, q, 2)
    assert "concurrency_limited" not in codes(served, q, task_id)
    leased(served, q)
    assert "concurrency_limited" in codes(served, q, task_id)
    policy(served, q, paused=True, concurrency=None)
    assert codes(served, q, task_id)[0] == "paused"
    assert "concurrency_limited" not in codes(served, q, task_id)


def test_why_mentions_the_rate_only_when_it_limits(served: Daemon, q: str) -> None:
    policy(served, q, rate=0.1)
    task_id = pushed(served, q, 1)
    other = pushed(served, q, 2)
    assert "rate_limited" not in codes(served, q, task_id)
    assert leased(served, q)["id"] == task_id
    assert "rate_limited" in codes(served, q, other)
    becomes(served, q, ready=1, leased=1)

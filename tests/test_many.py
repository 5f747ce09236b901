"""Several at once: batches of tasks, pops of several queues, settling many leases, and polls of named workers."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    Answer,
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
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis


def batch(served: Daemon, q: str, body: Any, query: str = "", **headers: str) -> Answer:
    return ask(served, "PUT", f"/api/pushTasks/{q}{'?' if query else ''}{query}", body, **headers)


def pops(served: Daemon, names: str, query: str = "wait=0", **headers: str) -> Answer:
    return ask(served, "GET", f"/api/popTasks/{names}?{query}", **headers)


def given(served: Daemon, names: str, query: str = "wait=0", **headers: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pops(served, names, query, **headers).ok()["tasks"]
    return found


# Batches


def test_a_batch_keeps_each_payloads_own_bytes_and_their_order(served: Daemon, q: str) -> None:
    payloads = [
        b'{"a": 1,  "a":2}',
        b'"\\ud800"',
        b"1e999",
        b"[ ]",
        b"12345678901234567890",
        b"null",
        b'"],["',
    ]
    answer = batch(served, q, b" [ " + b" ,\n".join(payloads) + b" ] ")
    assert set(answer.ok()) == {"success", "ids"}
    ids = answer.json["ids"]
    assert len(set(ids)) == len(payloads)
    for payload, task_id in zip(payloads, ids, strict=True):
        popped = pop(served, q, "wait=0")
        assert popped.body == b'{"task":%b}' % payload
        assert popped.headers["Task-Id"] == task_id


def test_a_batch_of_plain_tasks_leaves_nothing(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    batch(served, q, list(range(1000))).ok()
    assert counts(served, q) == {"ready": 1000}
    for at in range(10):
        assert [one["task"] for one in given(served, q, "wait=0&count=100")] == list(
            range(at * 100, at * 100 + 100)
        )
    assert pops(served, q).status == 202
    other = fresh()
    batch(served, other, [1, 2]).ok()
    for n in (1, 2):
        assert pop(served, other, "wait=0").json == {"task": n}
    leaves_nothing(module_redis_process, other)


@pytest.mark.parametrize("kind", ["application/x-ndjson", "application/x-ndjson; charset=utf-8"])
def test_a_batch_may_be_lines(served: Daemon, q: str, kind: str) -> None:
    body = b'{"a": 1}\r\n\n  "two"  \n[3]'
    assert len(batch(served, q, body, Content_Type=kind).ok()["ids"]) == 3
    assert pop(served, q, "wait=0").body == b'{"task":{"a": 1}}'
    assert drain(served, q) == ["two", [3]]


@pytest.mark.parametrize("body", [b"", b"{}", b"1", b"[]", b"[1,]", b"[1] 2", b'["\x01"]', b"[NaN]", b"[[1]"])
def test_a_batch_that_is_no_array_of_tasks_is_refused_whole(served: Daemon, q: str, body: bytes) -> None:
    batch(served, q, body).refused(400, "bad_json")
    assert counts(served, q) == {}


def test_a_bad_line_is_reported_and_nothing_of_the_batch_is_stored(served: Daemon, q: str) -> None:
    kind = "application/x-ndjson"
    batch(served, q, b'{"a":1}\n{"b":\n3', Content_Type=kind).refused(400, "bad_json")
    batch(served, q, b"\n\n", Content_Type=kind).refused(400, "bad_json")
    assert counts(served, q) == {}


def test_a_batch_has_at_most_1000_tasks(served: Daemon, q: str) -> None:
    batch(served, q, list(range(1001))).refused(400, "bad_json", "1000", "1001")
    assert counts(served, q) == {}


def test_the_options_of_a_batch_are_those_of_each_of_its_tasks(served: Daemon, q: str) -> None:
    batch(served, q, [1, 2], "priority=4&attempts=1&lease=7&delay=0.2").ok()
    assert counts(served, q) == {"delayed": 2}
    becomes(served, q, ready=2)
    held = leased(served, q, "lease=&wait=0")
    assert (held["task"], held["expires_in"]) == (1, 7)
    assert task(served, q, held["id"])["priority"] == 4
    assert on(served, "fail", q, held["lease"]).ok()["state"] == "dead"
    batch(served, q, [1], "timeout=3").refused(400, "bad_option", "'timeout'")


def test_a_batch_fits_whole_or_not_at_all(served: Daemon, q: str) -> None:
    policy(served, q, max_length=3)
    pushed(served, q, 0)
    batch(served, q, [1, 2, 3]).refused(429, "queue_full")
    assert counts(served, q) == {"ready": 1}
    batch(served, q, [1, 2]).ok()
    assert counts(served, q) == {"ready": 3}


def test_a_repeated_batch_is_answered_with_the_same_ids(served: Daemon, q: str) -> None:
    first = batch(served, q, [1, 2], Idempotency_Key="b")
    again = batch(served, q, [1, 2], Idempotency_Key="b")
    assert again.ok() == first.ok()
    assert (first.headers["Idempotency-Replayed"], again.headers["Idempotency-Replayed"]) == (None, "true")
    batch(served, q, [1, 3], Idempotency_Key="b").refused(422, "idempotency_key_reused")
    batch(served, q, [1, 2], "priority=1", Idempotency_Key="b").refused(422, "idempotency_key_reused")
    assert counts(served, q) == {"ready": 2}
    assert push(served, q, 9, Idempotency_Key="b").status == 200  # its own verb's


def test_a_batch_wakes_as_many_pollers_as_it_has_tasks(served: Daemon, q: str) -> None:
    polls = [poll(served, q) for _ in range(4)]
    batch(served, q, [1, 2, 3]).ok()
    assert [one.answer(3).ok()["task"] for one in polls[:3]] == [1, 2, 3]
    assert polls[3].waits()
    polls[3].hang_up()


def test_a_batch_of_a_wrong_type_is_refused(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    module_redis_process.command("SET", q, "text")
    batch(served, q, [1]).refused(409, "wrong_type")
    batch(served, q, [1], "priority=3").refused(409, "wrong_type")
    push(served, q, 1).refused(409, "wrong_type")
    push(served, q, 1, "priority=3").refused(409, "wrong_type")


# Several queues


def test_a_pop_of_many_is_always_leased(served: Daemon, q: str) -> None:
    pushed(served, q, {"n": 1})
    answer = pops(served, q)
    [one] = answer.ok()["tasks"]
    assert set(one) == {"queue", "id", "task", "attempt", "lease", "expires_in"}
    assert (one["queue"], one["attempt"], one["expires_in"]) == (q, 1, 60)
    on(served, "ack", q, one["lease"]).ok()
    empty = pops(served, q)
    assert (empty.status, empty.body) == (202, b'{"tasks":[]}')


def test_strict_empties_the_first_named_first(served: Daemon) -> None:
    a, b = fresh("a"), fresh("b")
    for n in range(3):
        pushed(served, b, f"b{n}")
        pushed(served, a, f"a{n}")
    got = given(served, f"{a},{b}", "wait=0&count=4")
    assert [(one["queue"], one["task"]) for one in got] == [(a, "a0"), (a, "a1"), (a, "a2"), (b, "b0")]
    assert [one["task"] for one in given(served, f"{b},{a}", "wait=0&count=9&order=strict")] == ["b1", "b2"]


def test_fair_rotates_the_start_and_takes_one_of_each_in_turn(served: Daemon) -> None:
    a, b, c = fresh("a"), fresh("b"), fresh("c")
    for name in (a, b, c):
        for n in range(4):
            pushed(served, name, n)
    first = [given(served, f"{a},{b},{c}", "wait=0&order=fair")[0]["queue"] for _ in range(3)]
    assert sorted(first) == sorted([a, b, c])
    got = given(served, f"{a},{b},{c}", "wait=0&order=fair&count=6")
    assert sorted(one["queue"] for one in got[:3]) == sorted([a, b, c])
    assert sorted(one["queue"] for one in got[3:]) == sorted([a, b, c])
    assert [one["task"] for one in got] == [1, 1, 1, 2, 2, 2]


def test_commas_and_other_letters_in_names(served: Daemon, q: str) -> None:
    odd = f"{q},ü x"
    path = f"{q}%2C%C3%BC%20x"
    pushed(served, path, "odd")
    pushed(served, q, "plain")
    got = given(served, f"{path},{q}", "wait=0&count=5")
    assert [(one["queue"], one["task"]) for one in got] == [(odd, "odd"), (q, "plain")]
    pops(served, f"{q},").refused(400, "bad_name")
    pops(served, f"{q},,x").refused(400, "bad_name")
    pops(served, f"{q},%7B").refused(400, "bad_name")


def test_a_queue_named_twice_is_one(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    assert len(given(served, f"{q},{q}", "wait=0&count=5")) == 1


def test_a_pop_of_many_waits_for_any_of_its_queues(served: Daemon) -> None:
    a, b = fresh("a"), fresh("b")
    waiting = Asked(served, "GET", f"/api/popTasks/{a},{b}?wait=20&count=10")
    assert waiting.waits()
    batch(served, b, [1, 2]).ok()
    got = waiting.answer(3).ok()["tasks"]
    # As soon as there is one: a batch is there at once.
    assert [one["task"] for one in got] == [1, 2]
    assert counts(served, a) == {}


def test_a_pop_of_many_that_waits_does_not_take_the_turn_of_others(served: Daemon) -> None:
    a, b = fresh("a"), fresh("b")
    many = Asked(served, "GET", f"/api/popTasks/{a},{b}?wait=20")
    assert many.waits()
    single = poll(served, a)
    pushed(served, a, 1)
    pushed(served, a, 2)
    assert many.answer(3).ok()["tasks"][0]["task"] == 1
    assert single.answer(3).ok()["task"] == 2


def test_a_pop_of_many_ends_with_an_empty_list(served: Daemon, q: str) -> None:
    assert (answer := pops(served, f"{q},{fresh()}", "wait=0.3")).status == 202
    assert answer.body == b'{"tasks":[]}'


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("count=0", "'count'"),
        ("count=101", "'count'"),
        ("count=x", "'count'"),
        ("order=random", "'order'"),
        ("lease=0", "'lease'"),
        ("ack=1a-2", "'ack'"),
        ("timeout=3", "'timeout'"),
        ("wait=x", "'wait'"),
    ],
)
def test_malformed_options_are_named(served: Daemon, q: str, query: str, name: str) -> None:
    pops(served, q, query).refused(400, "bad_option", name)


def test_8_mib_are_the_most_of_one_answer(served: Daemon, q: str) -> None:
    big = b'"' + b"x" * 1_000_000 + b'"'
    for _ in range(12):
        ask(served, "PUT", f"/api/pushTask/{q}", big).ok()
    got = given(served, q, "wait=0&count=100")
    assert len(got) == 8
    assert counts(served, q) == {"ready": 12 - len(got), "leased": len(got)}


def test_each_of_many_has_its_own_default_lease(served: Daemon) -> None:
    a, b = fresh("a"), fresh("b")
    policy(served, b, lease=9)
    pushed(served, a, 1, "lease=7")
    pushed(served, a, 2)
    pushed(served, b, 3)
    assert [one["expires_in"] for one in given(served, f"{a},{b}", "wait=0&count=9")] == [7, 60, 9]
    pushed(served, a, 1, "lease=7")
    assert given(served, a, "wait=0&lease=3")[0]["expires_in"] == 3


def test_a_queue_of_a_wrong_type_keeps_nothing_from_the_others(
    served: Daemon, module_redis_process: RedisServer
) -> None:
    good, bad = fresh("good"), fresh("bad")
    module_redis_process.command("SET", bad, "text")
    pushed(served, good, 1)
    assert [one["task"] for one in given(served, f"{good},{bad}", "wait=0&count=5")] == [1]
    pushed(served, good, 2)
    assert [one["task"] for one in given(served, f"{bad},{good}", "wait=0&count=5")] == [2]
    pops(served, f"{good},{bad}").refused(409, "wrong_type")
    pop(served, bad).refused(409, "wrong_type")


def test_a_paused_queue_among_several_is_passed_over(served: Daemon) -> None:
    a, b = fresh("a"), fresh("b")
    policy(served, a, paused=True)
    pushed(served, a, 1)
    pushed(served, b, 2)
    assert [one["task"] for one in given(served, f"{a},{b}", "wait=0&count=5")] == [2]
    assert pops(served, f"{a},{b}").status == 202


def test_a_repeat_gives_those_still_held_again(served: Daemon) -> None:
    a, b = fresh("a"), fresh("b")
    batch(served, a, [1, 2]).ok()
    batch(served, b, [3]).ok()
    query = "wait=0&count=10&lease=30"
    first = given(served, f"{a},{b}", query, Idempotency_Key="m")
    again = pops(served, f"{a},{b}", query, Idempotency_Key="m")
    assert again.headers["Idempotency-Replayed"] == "true"
    assert [one["lease"] for one in again.ok()["tasks"]] == [one["lease"] for one in first]
    assert [one["task"] for one in again.json["tasks"]] == [1, 2, 3]
    on(served, "ack", a, first[1]["lease"]).ok()
    assert [one["task"] for one in given(served, f"{a},{b}", query, Idempotency_Key="m")] == [1, 3]
    pops(served, f"{a},{b}", "wait=0&count=9&lease=30", Idempotency_Key="m").refused(
        422, "idempotency_key_reused"
    )
    on(served, "ack", a, first[0]["lease"]).ok()
    on(served, "ack", b, first[2]["lease"]).ok()
    assert pops(served, f"{a},{b}", query, Idempotency_Key="m").status == 202


def test_equal_polls_of_many_at_the_same_time_are_one(served: Daemon, q: str) -> None:
    path = f"/api/popTasks/{q},{fresh()}?wait=20&count=5"
    polls = [Asked(served, "GET", path, headers={"Idempotency-Key": "j"}) for _ in range(2)]
    assert all(one.waits() for one in polls)
    pushed(served, q, 1)
    one, two = (asked.answer(3).ok()["tasks"] for asked in polls)
    assert one[0]["lease"] == two[0]["lease"]
    assert counts(served, q) == {"leased": 1}


def test_a_hang_up_puts_all_of_them_back_in_order(served: Daemon, module_redis_process: RedisServer) -> None:
    a, b = fresh("a"), fresh("b")
    batch(served, a, [1, 2, 3]).ok()
    batch(served, b, [4, 5]).ok()
    module_redis_process.pause()
    gone = Asked(served, "GET", f"/api/popTasks/{a},{b}?count=4")
    time.sleep(0.3)
    gone.hang_up()
    time.sleep(0.2)
    module_redis_process.resume()
    wait_until(lambda: (counts(served, a), counts(served, b)) == ({"ready": 3}, {"ready": 2}), 3)
    got = given(served, f"{a},{b}", "wait=0&count=9")
    assert [(one["task"], one["attempt"]) for one in got] == [(n, 1) for n in (1, 2, 3, 4, 5)]


# ackTasks


def test_many_leases_are_settled_in_the_order_of_the_request(served: Daemon, q: str) -> None:
    batch(served, q, list(range(6)), "attempts=2").ok()
    held = [one["lease"] for one in given(served, q, "wait=0&count=6")]
    lost = held[0][:-6] + "000000"
    said = {
        "fails": [
            {"lease": held[3]},
            {"lease": held[2], "delay": 0, "error": {"message": "again"}},
            {"lease": held[4], "retry": False, "error": {"type": "T"}},
            {"lease": lost},
        ],
        "acks": [held[1], lost, {"lease": held[0], "result": {"n": [1]}}],
    }
    results = ask(served, "POST", f"/api/ackTasks/{q}", said).ok()["results"]
    assert results == [
        {"lease": held[1], "status": "done"},
        {"lease": lost, "status": "lease_lost"},
        {"lease": held[0], "status": "done"},
        {"lease": held[3], "status": "delayed"},
        {"lease": held[2], "status": "ready"},
        {"lease": held[4], "status": "dead"},
        {"lease": lost, "status": "lease_lost"},
    ]
    assert counts(served, q) == {"ready": 1, "delayed": 1, "leased": 1, "dead": 1, "done": 2}
    assert task(served, q, held[0].split("-")[0])["result"] == {"n": [1]}
    again = ask(served, "POST", f"/api/ackTasks/{q}", {"acks": [held[1]]}).ok()
    assert again["results"] == [{"lease": held[1], "status": "done"}]


def test_a_late_ack_among_many_says_so(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q, "wait=0&lease=0.1")
    becomes(served, q, ready=1)
    answer = ask(served, "POST", f"/api/ackTasks/{q}", {"acks": [held["lease"]]}).ok()
    assert answer["results"] == [{"lease": held["lease"], "status": "late"}]


def test_the_numbers_of_a_result_among_many_stay_what_they_were(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    body = b'{"acks":[{"lease":"%b","result":{"n":12345678901234567890123,"x":1e999,"s":"\\ud800"}}]}'
    ask(served, "POST", f"/api/ackTasks/{q}", body % held["lease"].encode()).ok()
    answer = ask(served, "GET", f"/api/queues/{q}/tasks/{held['id']}").body
    assert b"12345678901234567890123" in answer and b"1e999" in answer
    assert json.loads(answer)["result"]["s"] == "\ud800"


@pytest.mark.parametrize(
    "said",
    [
        {"acks": "x"},
        {"fails": {}},
        {"acks": [1]},
        {"acks": [{"result": 1}]},
        {"acks": [{"lease": "1a-2", "results": 1}]},
        {"fails": ["1a-2"]},
        {"fails": [{"lease": "1a-2", "delay": -1}]},
        {"fails": [{"lease": "1a-2", "why": 1}]},
        {"acks": ["no.lease"]},
        {"leases": []},
    ],
)
def test_a_malformed_entry_refuses_the_whole(served: Daemon, q: str, said: Any) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    if isinstance(said.get("acks"), list):
        said = {**said, "acks": [held["lease"], *said["acks"]]}
    ask(served, "POST", f"/api/ackTasks/{q}", said).refused(400, "bad_option")
    assert counts(served, q) == {"leased": 1}


def test_nothing_to_settle_is_fine_and_too_much_is_not(served: Daemon, q: str) -> None:
    assert ask(served, "POST", f"/api/ackTasks/{q}", {}).ok() == {"results": []}
    assert ask(served, "POST", f"/api/ackTasks/{q}", b"").ok() == {"results": []}
    ask(served, "POST", f"/api/ackTasks/{q}", {"acks": ["1a-2"] * 1001}).refused(400, "bad_json", "1000")
    ask(served, "POST", f"/api/ackTasks/{q}", [1]).refused(400, "bad_json")


# worker=


def test_a_newer_poll_of_a_worker_ends_its_older_one_also_of_another_queue(served: Daemon) -> None:
    a, b = fresh("a"), fresh("b")
    older = poll(served, a, f"wait=20&lease=30&worker={a}")
    newer = poll(served, b, f"wait=20&lease=30&worker={a}")
    assert is_replaced(older.answer(1))
    pushed(served, b, 1)
    assert newer.answer(3).ok()["task"] == 1


def is_replaced(answer: Answer, body: bytes = b'{"error":"No tasks available"}') -> bool:
    """This poll was ended by a newer one of its worker."""
    told = answer.headers["Registry-Worker"], answer.headers["Retry-After"]
    return (answer.status, answer.body, *told) == (202, body, "replaced", "1")


@pytest.mark.parametrize("key", [None, "a-key"])
def test_polls_of_many_and_of_one_end_each_other(served: Daemon, key: str | None) -> None:
    headers = {"Idempotency-Key": key} if key else {}
    for first, second in (("popTask", "popTasks"), ("popTasks", "popTask")):
        a, b = fresh("a"), fresh("b")
        older = Asked(served, "GET", f"/api/{first}/{a}?wait=20&lease=30&worker={a}", b"", headers)
        assert older.waits()
        newer = Asked(served, "GET", f"/api/{second}/{b}?wait=20&lease=30&worker={a}", b"", headers)
        nothing = b'{"tasks":[]}' if first == "popTasks" else b'{"error":"No tasks available"}'
        assert is_replaced(older.answer(1), nothing)
        pushed(served, b, 2)
        answer = newer.answer(3)
        assert (answer.ok()["tasks"][0] if second == "popTasks" else answer.json)["task"] == 2
        assert "Registry-Worker" not in answer.headers


def test_a_poll_whose_time_is_up_is_not_told_that_it_was_replaced(served: Daemon, q: str) -> None:
    answer = pop(served, q, f"wait=0.3&worker={q}")
    assert (answer.status, answer.headers["Registry-Worker"], answer.headers["Retry-After"]) == (
        202,
        None,
        None,
    )


def test_other_workers_polls_stay(served: Daemon, q: str) -> None:
    first = poll(served, q, "wait=20&worker=one")
    second = poll(served, q, "wait=20&worker=two")
    assert first.waits() and second.waits()
    pushed(served, q, 1)
    assert first.answer(3).json == {"task": 1}
    second.hang_up()


def test_the_poll_that_ended_takes_no_task_with_it(served: Daemon, q: str) -> None:
    older = poll(served, q, f"wait=20&lease=30&worker={q}")
    newer = poll(served, q, f"wait=20&lease=30&worker={q}")
    assert older.answer(1).status == 202
    pushed(served, q, 1)
    pushed(served, q, 2)
    assert newer.answer(3).ok()["task"] == 1
    assert counts(served, q) == {"ready": 1, "leased": 1}
    assert tasks(served, q, "state=leased")[0]["worker"] == q

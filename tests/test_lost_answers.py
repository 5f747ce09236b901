"""Tasks whose answer did not arrive, and the keys that tasks leave behind."""

from __future__ import annotations

import socket
import time

import pytest

from registry.redis.scripts import load
from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    Asked,
    ask,
    becomes,
    counts,
    drain,
    eventually,
    history,
    keys_of,
    leased,
    leaves_nothing,
    on,
    policy,
    poll,
    pop,
    pushed,
    queue,
    sleep_past,
    task,
    tasks,
)

pytestmark = pytest.mark.every_redis


# Losing the answer


def test_a_hang_up_before_the_answer_is_out_puts_a_leased_task_back(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    pushed(served, q, 1, "attempts=1")
    pushed(served, q, 2)
    module_redis_process.pause()
    gone = Asked(served, "GET", f"/api/popTask/{q}?lease=600")
    time.sleep(0.3)
    gone.hang_up()
    time.sleep(0.2)
    module_redis_process.resume()
    becomes(served, q, ready=2)
    held = leased(served, q)
    assert (held["task"], held["attempt"]) == (1, 1)


def test_a_poll_with_many_requests_behind_it_takes_nothing_when_its_client_has_gone(
    served: Daemon, q: str
) -> None:
    host = f"Host: localhost:{served.port}\r\n"
    behind = f"PUT /api/pushTask/{q}-other HTTP/1.1\r\n{host}Content-Length: 1\r\n\r\n1"
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(f"GET /api/popTask/{q}?wait=30 HTTP/1.1\r\n{host}\r\n".encode())
        eventually(lambda: queue(served, q)["pollers"] == 1)
        client.sendall(behind.encode() * 1000)
        time.sleep(0.3)
        assert queue(served, q)["pollers"] == 1
    eventually(lambda: queue(served, q)["pollers"] == 0)
    pushed(served, q, 1)
    assert pop(served, q, "wait=0").json == {"task": 1}


def test_a_client_that_reads_nothing_loses_its_leased_task_to_the_next(served: Daemon, q: str) -> None:
    """The answer is larger than what the kernel's buffers hold: it is not out when the client goes."""
    for n in range(9):
        ask(served, "PUT", f"/api/pushTask/{q}", b'"%d' % n + b"x" * 900_000 + b'"').ok()
    gone = Asked(served, "GET", f"/api/popTasks/{q}?count=8&lease=600", receive_buffer=4096)
    becomes(served, q, 5, ready=1, leased=8)
    gone.hang_up()
    becomes(served, q, 5, ready=9)
    assert leased(served, q)["attempt"] == 1
    assert [one[0] for one in drain(served, q)] == list("12345678")


def test_the_same_key_gets_the_same_lease_again_while_it_holds(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    pushed(served, q, 2)
    first = pop(served, q, "lease=30&wait=0", Idempotency_Key="k1")
    assert first.headers["Idempotency-Replayed"] is None
    again = pop(served, q, "wait=0&lease=30", Idempotency_Key='"k1"')
    assert again.headers["Idempotency-Replayed"] == "true"
    for name in ("task", "id", "lease", "attempt"):
        assert again.ok()[name] == first.ok()[name]
    assert again.json["expires_in"] <= 30
    pop(served, q, "lease=31&wait=0", Idempotency_Key="k1").refused(422, "idempotency_key_reused")
    assert leased(served, q, Idempotency_Key="k2")["task"] == 2
    on(served, "ack", q, first.json["lease"]).ok()
    # No lease is held any more: this is a new pop.
    assert pop(served, q, "lease=30&wait=0", Idempotency_Key="k1").status == 202


def test_a_key_is_good_for_as_long_as_its_lease_was_extended(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    first = leased(served, q, "lease=1&wait=0", Idempotency_Key="long")
    on(served, "extend", q, first["lease"], b"", "lease=30").ok()
    time.sleep(1.6)
    again = pop(served, q, "lease=1&wait=0", Idempotency_Key="long")
    assert again.ok()["lease"] == first["lease"]
    assert again.json["expires_in"] > 20


def test_a_key_whose_lease_ran_out_pops_anew(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    first = leased(served, q, "lease=0.2&wait=0", Idempotency_Key="k")
    sleep_past(0.2)
    again = leased(served, q, "lease=0.2&wait=0", Idempotency_Key="k")
    assert (again["attempt"], again["id"]) == (2, first["id"])
    assert again["lease"] != first["lease"]


def test_an_empty_answer_is_not_remembered(served: Daemon, q: str) -> None:
    assert pop(served, q, "lease=30&wait=0", Idempotency_Key="e").status == 202
    pushed(served, q, 1)
    assert leased(served, q, "lease=30&wait=0", Idempotency_Key="e")["task"] == 1


def test_a_replay_is_answered_although_others_are_parked(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    first = leased(served, q, "lease=30&wait=2", Idempotency_Key="k")
    waiting = poll(served, q)
    again = Asked(served, "GET", f"/api/popTask/{q}?lease=30&wait=2", headers={"Idempotency-Key": "k"})
    assert again.answer(1.5).ok()["lease"] == first["lease"]
    waiting.hang_up()


def test_equal_polls_at_the_same_time_are_one(served: Daemon, q: str) -> None:
    polls = [poll(served, q, "wait=20&lease=30", Idempotency_Key="j") for _ in range(3)]
    assert counts(served, q) == {}
    polls[0].hang_up()
    pushed(served, q, 1)
    pushed(served, q, 2)
    answers = [one.answer(3).ok() for one in polls[1:]]
    assert answers[0]["lease"] == answers[1]["lease"]
    assert counts(served, q) == {"ready": 1, "leased": 1}


def test_a_late_put_back_does_not_take_away_what_a_replay_was_given(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    pushed(served, q, 1)
    module_redis_process.pause()
    path, key = f"/api/popTask/{q}?lease=600&wait=5", {"Idempotency-Key": "k"}
    lost = Asked(served, "GET", path, headers=key)
    time.sleep(0.3)
    lost.hang_up()  # its answer comes, and will be put back
    time.sleep(0.2)
    again = Asked(served, "GET", path, headers=key)
    time.sleep(0.2)
    module_redis_process.resume()
    held = again.answer(5).ok()
    assert held["attempt"] == 1
    time.sleep(0.5)
    assert counts(served, q) == {"leased": 1}
    on(served, "ack", q, held["lease"]).ok()


# Traces


def test_a_pop_without_lease_of_a_plain_task_leaves_no_key_behind(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    pushed(served, q, 1)
    assert keys_of(module_redis_process, q)
    assert pop(served, q, "wait=0").body == b'{"task":1}'
    leaves_nothing(module_redis_process, q)


@pytest.mark.parametrize("query", ["priority=3", "delay=0.1", "ttl=50", "attempts=3&backoff=1", "lease=5"])
def test_nor_do_these_options(served: Daemon, module_redis_process: RedisServer, q: str, query: str) -> None:
    pushed(served, q, 1, query)
    assert pop(served, q, "wait=5").body == b'{"task":1}'
    leaves_nothing(module_redis_process, q)


def test_done_tasks_are_kept_for_their_retention(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    policy(served, q, retention={"done": 0.5})
    pushed(served, q, 1)
    held = leased(served, q)
    on(served, "ack", q, held["lease"], b"5").ok()
    assert task(served, q, held["id"])["result"] == 5
    wait_until(lambda: ask(served, "GET", f"/api/queues/{q}/tasks/{held['id']}").status == 404, 4)
    assert counts(served, q) == {}
    assert on(served, "ack", q, held["lease"]).status == 200  # known longer than the task
    policy(served, q, retention=None)
    # What is left goes with the last trace, ten minutes after the ack.
    assert keys_of(module_redis_process, q) == {b"{%b}a" % q.encode(), b"index"}
    module_redis_process.command("ZADD", f"{{{q}}}a", 1, held["lease"])
    module_redis_process.command("ZADD", "{registry}index", 1, q)
    leaves_nothing(module_redis_process, q)


def test_of_the_done_the_newest_are_kept_up_to_done_max(served: Daemon, q: str) -> None:
    policy(served, q, retention={"done_max": 2})
    ids = [pushed(served, q, n) for n in range(4)]
    drain(served, q)
    assert counts(served, q) == {"done": 2}
    assert [ask(served, "GET", f"/api/queues/{q}/tasks/{one}").status for one in ids] == [404, 404, 200, 200]


def test_the_dead_are_forgotten_after_their_retention(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    policy(served, q, retention={"dead": 0.3})
    pushed(served, q, 1, "attempts=1")
    on(served, "fail", q, leased(served, q)["lease"]).ok()
    assert counts(served, q) == {"dead": 1}
    becomes(served, q)
    policy(served, q, retention=None)
    leaves_nothing(module_redis_process, q)


def test_a_long_history_keeps_its_end(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "attempts=100")
    for _ in range(23):
        held = leased(served, q)
        on(served, "fail", q, held["lease"], {"delay": 0}).ok()
    told = history(served, q, task_id)
    assert told == [(n, "failed") for n in range(4, 24)]


# Others' elements


def test_a_raw_element_is_a_full_citizen_from_its_first_pop_on(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    module_redis_process.command("LPUSH", q, '{"raw": 1}')
    held = leased(served, q, "lease=30&wait=0&worker=w")
    assert (held["task"], held["attempt"]) == ({"raw": 1}, 1)
    on(served, "fail", q, held["lease"], {"delay": 0}).ok()
    again = leased(served, q)
    assert (again["id"], again["attempt"]) == (held["id"], 2)
    assert history(served, q, held["id"]) == [(1, "failed")]
    on(served, "ack", q, again["lease"]).ok()
    assert task(served, q, held["id"])["state"] == "done"


def test_an_element_that_is_not_json_is_dead_with_that_reason(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    module_redis_process.command("LPUSH", q, b"\xff{", "5")
    assert leased(served, q, "lease=30&wait=2")["task"] == 5
    becomes(served, q, leased=1, dead=1)
    answer = ask(served, "GET", f"/api/queues/{q}/tasks?state=dead")
    [row] = answer.ok()["tasks"]
    assert (row["reason"], row["task"]) == ("not_json", "\ufffd{")
    ask(served, "POST", f"/api/queues/{q}/retry?id={row['id']}").refused(409, "not_json")


def test_nor_is_it_served_when_its_first_pop_was_lost_on_the_way(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    """A pop whose answer from Redis never came: nobody has looked at the element yet."""
    module_redis_process.command("LPUSH", q, "nonsense")
    take = script("pop")
    nonce = "0" * 32
    module_redis_process.command("EVAL", take, 1, q, 0, "{registry}", "elsewhere", nonce, 100, "")
    becomes(served, q, ready=1)
    assert [row["task"] for row in tasks(served, q)] == ["nonsense"]
    assert pop(served, q, "wait=0.5").status == 202
    becomes(served, q, dead=1)


def test_every_answer_of_the_workers_is_json_that_nobody_stores(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    held = leased(served, q)
    for answer in (on(served, "extend", q, held["lease"]), on(served, "ack", q, held["lease"])):
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Type"].startswith("application/json")
        assert int(answer.headers["Content-Length"]) == len(answer.body)


def script(verb: str) -> bytes:
    return load(verb).text

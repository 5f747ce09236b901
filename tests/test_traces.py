"""The history of failed attempts is bounded in bytes, whatever the error texts contain."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.live import Daemon, RedisServer
from tests.talk import ask, leased, on, pushed, task, tasks

pytestmark = pytest.mark.every_redis
KINDS = {"ascii": "x", "two": "ü", "three": "€", "four": "𝄞", "escaped": "\\", "control": "\x00"}


def failed(served: Daemon, q: str, error: Any) -> dict[str, Any]:
    """The error of a task's one attempt."""
    task_id = pushed(served, q, 1, "attempts=1")
    on(served, "fail", q, leased(served, q)["lease"], {"error": error}).ok()
    [attempt] = task(served, q, task_id)["history"]
    found: dict[str, Any] = attempt["error"]
    return found


def many(served: Daemon, q: str, count: int) -> list[dict[str, Any]]:
    """So many tasks, leased."""
    held: list[dict[str, Any]] = []
    while len(held) < count:
        held += ask(served, "GET", f"/api/popTasks/{q}?count={count - len(held)}&wait=5&lease=60").ok()[
            "tasks"
        ]
    return held


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_of_an_error_are_cut_by_bytes(served: Daemon, q: str, kind: str) -> None:
    one = KINDS[kind]
    error = failed(
        served, q, {"type": one * 9000, "message": one * 9000, "trace": "first" + one * 9000 + "last"}
    )
    assert error.pop("truncated") is True
    sizes = {name: len(text.encode()) for name, text in error.items()}
    for name, most in {"type": 100, "message": 1000, "trace": 8000}.items():
        assert most - 3 <= sizes[name] <= most
    # Of a trace the end is kept, where the cause stands, and no character is cut in two.
    assert error["trace"] == one * ((8000 - 4) // len(one.encode())) + "last"
    assert error["type"] == one * (100 // len(one.encode()))


def test_what_has_room_is_kept_whole_and_not_said_to_be_cut(served: Daemon, q: str) -> None:
    error = {"type": "é" * 50, "message": "x" * 1000, "trace": "y" * 8000}
    assert failed(served, q, error) == error
    assert failed(served, q, "x" * 2000) == {"message": "x" * 1000, "truncated": True}
    assert failed(served, q, {"message": "a\ud800b"}) == {"message": "a?b"}


def test_many_fails_at_once_are_cut_too(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    lease = leased(served, q)["lease"]
    fails = [{"lease": lease, "error": {"trace": "€" * 8000}, "retry": False}]
    ask(served, "POST", f"/api/ackTasks/{q}", {"fails": fails}).ok()
    [attempt] = task(served, q, task_id)["history"]
    assert attempt["error"] == {"trace": "€" * 2666, "truncated": True}


def test_what_is_known_of_a_task_has_64_kib_and_its_oldest_attempts_go_first(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    key = "𝄞" * 63
    # As long as they may be: the traceparent is one of a later version.
    trace = f"01-{'a' * 32}-{'b' * 16}-01-{'t' * 456}"
    task_id = pushed(
        served, q, 1, f"attempts=100&key={key}", traceparent=trace, tracestate=f"a={'b' * 253},c={'d' * 254}"
    )
    row = task(served, q, task_id)
    assert (len(row["traceparent"]), len(row["tracestate"])) == (512, 512)
    for attempt in range(1, 31):
        held = leased(served, q, f"lease=30&wait=0&worker={key}")
        on(served, "extend", q, held["lease"], {"progress": 0.5, "message": "𝄞" * 1000}).ok()
        error = {"type": "𝄞" * 100, "message": "𝄞" * 1000, "trace": "𝄞" * 8000}
        on(served, "fail", q, held["lease"], {"error": error, "delay": 0}).ok()
        assert module_redis_process.command("HSTRLEN", f"{{{q}}}m", task_id) <= 65_536, attempt
    kept = [one["attempt"] for one in task(served, q, task_id)["history"]]
    assert kept == list(range(31 - len(kept), 31))
    assert len(kept) >= 4
    # Short ones take their places, twenty at most.
    for _ in range(25):
        on(served, "fail", q, leased(served, q)["lease"], {"error": "short", "delay": 0}).ok()
    kept = [one["attempt"] for one in task(served, q, task_id)["history"]]
    assert kept == list(range(36, 56))


def test_the_message_of_a_progress_is_cut_by_bytes(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    held = leased(served, q)
    on(served, "extend", q, held["lease"], {"message": "€" * 1000}).ok()
    assert task(served, q, task_id)["message"] == "€" * 333


@pytest.mark.parametrize("verb", ["ack", "fail", "retry"])
def test_a_call_reads_so_much_of_what_is_known_and_leaves_the_rest_to_the_next(
    served: Daemon, module_redis_process: RedisServer, q: str, verb: str
) -> None:
    count = 60
    ids = ask(served, "PUT", f"/api/pushTasks/{q}?attempts=7&backoff=0", [0] * count).ok()["ids"]
    error = {"trace": "x" * 8000}
    rounds = 7 if verb == "retry" else 6
    for _ in range(rounds):
        held = [one["lease"] for one in many(served, q, count)]
        fails = [{"lease": lease, "error": error, "delay": 0} for lease in held]
        ask(served, "POST", f"/api/ackTasks/{q}", {"fails": fails}).ok()
    held = [] if verb == "retry" else [one["lease"] for one in many(served, q, count)]
    module_redis_process.command("CONFIG", "SET", "slowlog-max-len", 100_000)
    module_redis_process.command("CONFIG", "SET", "slowlog-log-slower-than", 0)
    try:
        module_redis_process.command("SLOWLOG", "RESET")
        if verb == "retry":
            assert ask(served, "POST", f"/api/queues/{q}/retry").ok()["count"] == count
        else:
            body: dict[str, Any] = (
                {"acks": held} if verb == "ack" else {"fails": [{"lease": one} for one in held]}
            )
            results = ask(served, "POST", f"/api/ackTasks/{q}", body).ok()["results"]
            assert [one["lease"] for one in results] == held
            assert {one["status"] for one in results} == {"done" if verb == "ack" else "dead"}
        logged = [entry[3] for entry in reversed(module_redis_process.command("SLOWLOG", "GET", 100_000))]
    finally:
        module_redis_process.command("CONFIG", "SET", "slowlog-log-slower-than", 10_000)
    sizes = [int(words[2]) for words in logged if words[0] == b"EVALSHA" and words[3] == q.encode()]
    sizes = [size for size in sizes if size > 1]
    # Each call is for what the one before left: some 20 tasks of 50 KB are a MiB.
    assert sizes[0] == count and len(sizes) >= 3
    assert all(15 < before - after < 25 for before, after in itertools.pairwise(sizes))
    state = {"ack": "done", "fail": "dead", "retry": "ready"}[verb]
    assert {row["id"] for row in tasks(served, q, f"state={state}&limit=1000")} == set(ids)

"""Orders to workers: told on their answers by every daemon, and in force for their polls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench import Bench
from tests.ctl import Ctl
from tests.live import Daemon, RedisServer, wait_until
from tests.talk import Answer, ask, counts, leased, on, poll, pop, pushed, running

Pair = tuple[Daemon, Daemon]


@pytest.fixture(scope="module")
def served(pair: Pair) -> Daemon:
    """One of the two."""
    return pair[0]


def order(daemon: Daemon, worker: str, word: str) -> Answer:
    return ask(daemon, "POST", f"/api/workers/{worker}", {"order": word})


def is_told(daemon: Daemon, q: str, worker: str, word: str | None) -> None:
    """The daemon tells the worker this, at the latest a second after it was said."""
    wait_until(lambda: pop(daemon, q, f"wait=0&worker={worker}").headers["Registry-Worker"] == word, 5)


def row_of(daemon: Daemon, worker: str) -> dict[str, Any]:
    rows = ask(daemon, "GET", "/api/workers").ok()["workers"]
    return next(row for row in rows if row["worker"] == worker)


def test_an_order_is_in_force_everywhere(pair: Pair, q: str) -> None:
    one, two = pair
    said = order(one, f"{q}%20w", "quiet").ok()
    assert (said["success"], said["worker"], said["order"]) == (True, f"{q} w", "quiet")
    assert pop(one, q, f"wait=0&worker={q}%20w").headers["Registry-Worker"] == "quiet"
    is_told(two, q, f"{q}%20w", "quiet")
    row = row_of(two, f"{q} w")
    assert row["order"] == "quiet" and row["order_until"] == said["until"]
    # Nobody else is told anything, and a plain poll is not either.
    for query in ("wait=0", f"wait=0&worker={q}other"):
        assert "Registry-Worker" not in pop(two, q, query).headers
    assert order(two, f"{q}%20w", "run").ok()["until"] is None
    assert "Registry-Worker" not in pop(two, q, f"wait=0&worker={q}%20w").headers
    is_told(one, q, f"{q}%20w", None)
    assert (row_of(two, f"{q} w")["order"], row_of(two, f"{q} w")["order_until"]) == ("run", None)


def test_a_quiet_worker_gets_no_task_and_its_polls_wait(pair: Pair, q: str) -> None:
    one, two = pair
    parked = poll(one, q, f"wait=20&lease=30&worker={q}")
    order(two, q, "quiet").ok()
    # Its open poll ends, and so it learns of the order.
    answer = parked.answer()
    assert (answer.status, answer.headers["Registry-Worker"]) == (202, "quiet")
    pushed(one, q, 1)
    several = ask(one, "GET", f"/api/popTasks/{q}?wait=0&worker={q}")
    assert (several.json, several.headers["Registry-Worker"]) == ({"tasks": []}, "quiet")
    assert pop(one, q, f"wait=0&worker={q}").status == 202
    held = poll(one, q, f"wait=20&lease=30&worker={q}")
    assert counts(one, q) == {"ready": 1}
    order(two, q, "run").ok()
    answer = held.answer()
    assert answer.status == 202 and "Registry-Worker" not in answer.headers
    assert leased(one, q, f"wait=0&lease=30&worker={q}")["task"] == 1


def test_a_worker_that_is_to_stop_is_told_at_once(served: Daemon, q: str) -> None:
    order(served, q, "stop").ok()
    pushed(served, q, 1)
    answer = pop(served, q, f"wait=20&lease=30&worker={q}")
    assert (answer.status, answer.headers["Registry-Worker"]) == (202, "stop")
    assert "Retry-After" not in answer.headers
    order(served, q, "run").ok()


@pytest.mark.parametrize("verb", ["ack", "fail", "release", "extend"])
def test_a_holder_is_told(served: Daemon, q: str, verb: str) -> None:
    for worker in (q, f"{q}other"):
        pushed(served, q, 1)
        lease = leased(served, q, f"wait=0&lease=30&worker={worker}")["lease"]
        order(served, q, "stop").ok()
        answer = on(served, verb, q, lease)
        assert answer.status == 200
        assert answer.headers["Registry-Worker"] == ("stop" if worker == q else None)
        order(served, q, "run").ok()
        ask(served, "DELETE", f"/api/queues/{q}")
    order(served, q, "stop").ok()
    # A lease that is lost, or is none, is answered as ever.
    on(served, verb, q, f"{'0' * 24}-{'0' * 32}").refused(409, "lease_lost")
    assert on(served, verb, q, "%ff%00").status in (400, 409)
    order(served, q, "run").ok()


@pytest.mark.parametrize("many", [False, True])
def test_a_repeat_gets_the_lease_that_was_lost_on_the_way(served: Daemon, q: str, many: bool) -> None:
    pushed(served, q, 1)
    path = f"/api/popTask{'s' if many else ''}/{q}?wait=0&lease=30&worker={q}"
    first = ask(served, "GET", path, Idempotency_Key=q)
    order(served, q, "stop").ok()
    pushed(served, q, 2)
    again = ask(served, "GET", path, Idempotency_Key=q)
    assert b'"task":1' in again.body and again.headers["Registry-Worker"] == "stop"
    assert again.headers["Idempotency-Replayed"] == "true" and first.status == 200
    assert ask(served, "GET", path, Idempotency_Key=f"{q}new").status == 202
    assert counts(served, q) == {"ready": 1, "leased": 1}
    order(served, q, "run").ok()


def test_an_ack_is_carried_out_all_the_same(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    lease = leased(served, q, f"wait=0&lease=30&worker={q}")["lease"]
    order(served, q, "quiet").ok()
    answer = pop(served, q, f"wait=0&lease=30&worker={q}&ack={lease}")
    assert (answer.status, answer.headers["Registry-Ack"]) == (202, "done")
    assert answer.headers["Registry-Worker"] == "quiet"
    order(served, q, "run").ok()


def test_orders_are_in_the_audit(served: Daemon, q: str) -> None:
    def lines() -> list[Any]:
        found = ask(served, "GET", "/api/audit?action=order").ok()["audit"]
        return [line["options"]["order"] for line in found if line["options"]["worker"] == q]

    assert "Registry-Audit" in order(served, q, "quiet").headers
    order(served, q, "run").ok()
    assert lines() == ["run", "quiet"]
    # It runs already.
    assert "Registry-Audit" not in order(served, q, "run").headers
    assert lines() == ["run", "quiet"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "bad_json"),
        (b"1", "bad_json"),
        (b"{}", "bad_json"),
        ({"order": "dance"}, "bad_json"),
        ({"order": ["run"]}, "bad_json"),
        ({"order": "run", "why": 1}, "bad_json"),
        (b'{"order":"run"' + b" " * 2000 + b"}", "bad_json"),
    ],
)
def test_what_is_no_order(served: Daemon, body: Any, code: str) -> None:
    ask(served, "POST", "/api/workers/w", body).refused(400, code)


@pytest.mark.parametrize("name", ["", "a%0ab", "%ff", "%zz", "x" * 256])
def test_what_is_no_name(served: Daemon, name: str) -> None:
    order(served, name, "run").refused(400, "bad_name")


def test_held_polls_end_with_the_daemon(module_redis_process: RedisServer, q: str) -> None:
    with running(module_redis_process) as daemon:
        order(daemon, q, "quiet").ok()
        held = poll(daemon, q, f"wait=20&worker={q}")
        left = poll(daemon, q, f"wait=20&worker={q}")
        left.hang_up()
        daemon.terminate()
        answer = held.answer()
        assert (answer.status, answer.headers["Connection"]) == (202, "close")
        assert "Traceback" not in daemon.log
        daemon.start().redis_ready()
        # Orders outlive the daemon.
        is_told(daemon, q, q, "quiet")
        order(daemon, q, "run").ok()


@pytest.mark.every_redis
async def test_orders_end_by_themselves_and_are_bounded(bench: Bench) -> None:
    store = bench.store
    for worker, word, ms in (("a\nb", "stop", 60_000), ("a\nb", "quiet", 60_000), ("c", "stop", 1)):
        assert await bench.call("order", [store.order(worker, word, ms)]) == [[0, 1]]
    while bench.now() <= int(bench.redis("ZSCORE", "{registry}orders", "stop\nc")):
        pass
    store.set_clock(bench.now())
    ((word, worker, until),) = await store.orders()
    assert (word, worker) == ("quiet", "a\nb") and until > bench.now()
    assert await bench.call("order", [store.order("a\nb", "run", 0)]) == [[0, 1]]
    assert await bench.call("order", [store.order("a\nb", "run", 0)]) == [[0, 0]]
    assert not bench.redis("EXISTS", "{registry}orders")


def test_the_command_and_a_worker_that_obeys(served: Daemon, tmp_path: Path, q: str) -> None:
    ctl = Ctl(served.url, tmp_path)
    with ctl.process("work", q, "--name", f"{q}w", "--", "true") as one:
        wait_until(lambda: row_of_or_none(served, f"{q}w"), 20)
        assert ctl.ok("worker", f"{q}w", "quiet") == "The worker is told to be quiet.\n"
        pushed(served, q, 1)
        (row,) = [row for row in ctl.rows("workers") if row["worker"] == f"{q}w"]
        assert row["order"] == "quiet" and counts(served, q) == {"ready": 1}
        ctl.ok("worker", f"{q}w", "run")
        wait_until(lambda: counts(served, q) == {"done": 1}, 20)
        ctl.ok("worker", f"{q}w", "stop")
        _, told = one.communicate(timeout=20)
        assert one.returncode == 0 and "The registry tells this worker to stop." in told


def row_of_or_none(daemon: Daemon, worker: str) -> bool:
    return any(
        row["parked"] for row in ask(daemon, "GET", "/api/workers").ok()["workers"] if row["worker"] == worker
    )

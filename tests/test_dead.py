"""``GET /api/dead``: the dead of all queues, grouped by what they died of, and whom a group points to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from registry.queue import survey as surveys
from registry.queue.masking import KEPT, mask
from registry.queue.survey import Cached, survey
from tests.bench import Bench
from tests.callers import Callers, guarded
from tests.ctl import Ctl
from tests.live import Daemon, RedisServer, short_folder, wait_until
from tests.talk import ask, cancel, eventually, leased, on, policy, push, pushed


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        ("", ""),
        ("timeout after 30 s", "timeout after # s"),
        ("timeout after 1.5e-07 s, -3 of 1,024", "timeout after # s, # of #"),
        ("no user 'ann' in \"db 1\"", "no user '…' in \"…\""),
        (r'no "a \" b" here', 'no "…" here'),
        ("can't open 'x' nor `y`, doesn't matter", "can't open '…' nor `…`, doesn't matter"),
        ("‘a’ „b“ “c” «d» '' \"\"", "‘…’ „…“ “…” «…» '…' \"…\""),
        ("one \" alone, and an ' too", "one \" alone, and an ' too"),
        ("at 0x7fFE, id 3fa85f64-5717-4562-b3fc-2c963f66afa6", "at #, id #"),
        ("commit deadbee1 defaced the facade", "commit # defaced the facade"),
        ("2026-01-31T12:00:00Z 10.0.0.1:8080", "#-#-#T#Z #"),
        ("ключ 12 'я'", "ключ # '…'"),
        ("x" * 1000, "x" * KEPT + "…"),
    ],
)
def test_a_message_without_its_particulars(message: str, masked: str) -> None:
    assert mask(message) == masked


@pytest.fixture(scope="module")
def served(pair: tuple[Daemon, Daemon]) -> Daemon:
    """One of the two."""
    return pair[0]


def dead(daemon: Daemon, query: str = "") -> dict[str, Any]:
    found: dict[str, Any] = ask(daemon, "GET", f"/api/dead?{query}").ok()
    return found


def fail(daemon: Daemon, q: str, worker: str, error: dict[str, Any] | None, **more: Any) -> str:
    """Push a task and let it fail on this worker, for good."""
    task_id = pushed(daemon, q, 1)
    named = f"&worker={worker}" if worker else ""
    lease = leased(daemon, q, f"lease=30&wait=0{named}")["lease"]
    said = {"retry": False, **more, **({} if error is None else {"error": error})}
    on(daemon, "fail", q, lease, said).ok()
    return task_id


def finish(daemon: Daemon, q: str, worker: str) -> None:
    pushed(daemon, q, 1)
    on(daemon, "ack", q, leased(daemon, q, f"lease=30&wait=0&worker={worker}")["lease"]).ok()


def told(daemon: Daemon, q: str) -> dict[tuple[Any, Any], tuple[int, str]]:
    """Of each group: how many, and whom it points to."""
    groups = dead(daemon, f"queue={q}")["groups"]
    return {(one["type"], one["message"]): (one["count"], one["points_to"]) for one in groups}


def test_groups(served: Daemon, q: str) -> None:
    ids = [fail(served, q, "w1", {"type": "E", "message": f"no {n} in 'r{n}'"}) for n in range(3)]
    fail(served, q, "", {"type": "E", "message": "gone"})
    fail(served, q, "", {"type": "F", "message": "gone"})
    fail(served, q, "", {"message": "gone"})
    fail(served, q, "", None)
    pushed(served, q, 1, "ttl=0.001")
    cancel(served, q, pushed(served, q, 1))
    push(served, q, 1, "attempts=1")
    leased(served, q, "lease=0.1&wait=0&worker=w1")
    wait_until(lambda: ask(served, "GET", f"/api/queues/{q}").ok()["dead"] == 10)
    found = dead(served, f"queue={q}")
    groups = {(one["reason"], one["type"], one["message"]): one for one in found["groups"]}
    assert {key: one["count"] for key, one in groups.items()} == {
        ("failed", "E", "no # in '…'"): 3,
        ("failed", "E", "gone"): 1,
        ("failed", "F", "gone"): 1,
        ("failed", None, "gone"): 1,
        ("failed", None, None): 1,
        ("expired", "expired", None): 1,
        ("cancelled", "cancelled", None): 1,
        ("lease_expired", "lease_expired", None): 1,
    }
    assert (found["count"], found["complete"], found["left_out"]) == (10, True, 0)
    largest = found["groups"][0]
    assert (largest["queues"], largest["workers"]) == ([q], ["w1"])
    assert largest["first"] < largest["last"] <= found["at"]
    assert (sum(largest["hours"]), len(largest["hours"]), largest["recent"]) == (
        largest["count"],
        24,
        largest["count"],
    )
    assert largest["example"] == {"queue": q, "id": ids[-1]}
    few = dead(served, f"queue={q}&limit=1")
    assert ([one["count"] for one in few["groups"]], few["left_out"], few["count"]) == ([3], 7, 10)


def test_a_worker_that_fails_what_others_finish(served: Daemon, q: str) -> None:
    for _ in range(3):
        fail(served, q, "bad", {"type": "E"})
        finish(served, q, "good")
    fail(served, q, "bad", {"type": "once"})
    assert told(served, q) == {("E", None): (3, "worker"), ("once", None): (1, "unclear")}


def test_tasks_that_fail_on_every_worker(served: Daemon, q: str) -> None:
    for worker in ("a", "b", "c"):
        fail(served, q, worker, {"type": "E"})
    # One task, tried by two workers.
    pushed(served, q, 1, "attempts=2")
    for worker in ("a", "b"):
        lease = leased(served, q, f"lease=30&wait=0&worker={worker}")["lease"]
        on(served, "fail", q, lease, {"delay": 0, "error": {"type": "F"}}).ok()
    ask(served, "PUT", f"/api/pushTask/{q}", 1).ok()
    assert told(served, q) == {("E", None): (3, "tasks"), ("F", None): (1, "tasks")}


@pytest.mark.parametrize("worker", ["only", ""])
def test_what_is_unclear(served: Daemon, q: str, worker: str) -> None:
    # There is no other worker, or none has a name.
    for _ in range(3):
        fail(served, q, worker, {"type": "E"})
    assert told(served, q) == {("E", None): (3, "unclear")}


def test_all_queues_together(pair: tuple[Daemon, Daemon], q: str) -> None:
    one, two = pair
    fail(one, f"{q}a", "", {"type": q})
    for _ in range(2):
        fail(two, f"{q}%3Ab", "", {"type": q})

    def mine() -> list[Any]:
        return [group for group in dead(one)["groups"] if group["type"] == q]

    (group,) = eventually(mine)
    assert (group["count"], group["queues"]) == (3, [f"{q}:b", f"{q}a"])
    assert dead(one, f"queue={q}none")["groups"] == []
    # An answer is kept for a moment, so that it costs little however many ask; then it is made anew.
    ask(one, "DELETE", f"/api/queues/{q}a/tasks?state=dead").ok()
    wait_until(lambda: mine()[0]["count"] == 2)


def test_elements_that_are_not_json_point_to_the_tasks(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    module_redis_process.command("LPUSH", q, "{")
    ask(served, "GET", f"/api/popTask/{q}?wait=0")
    assert told(served, q) == {("not_json", None): (1, "tasks")}


@pytest.mark.parametrize("query", ["queue=", "limit=0", "limit=1001", "limit=x", "state=dead", "queue=a%0a"])
def test_bad_options(served: Daemon, query: str) -> None:
    ask(served, "GET", f"/api/dead?{query}").refused(400, "bad_option")


def test_a_bad_name(served: Daemon) -> None:
    ask(served, "GET", "/api/dead?queue=a{b").refused(400, "bad_name")


def test_who_may_not_see_payloads_sees_no_words_of_workers(module_redis: RedisServer, q: str) -> None:
    callers = Callers(short_folder() / "tokens.json")
    callers.add("states", "view --no-payloads")
    callers.add("admin", "admin")
    with guarded(module_redis, callers):
        daemon = callers.daemon
        callers.ask("admin", "PUT", f"/api/pushTask/{q}", 1).ok()
        path = f"/api/popTask/{q}?lease=30&wait=0&worker=w"
        lease = callers.ask("admin", "GET", path).ok()["lease"]
        said = {"retry": False, "error": {"type": "SECRET", "message": "SECRET"}}
        callers.ask("admin", "POST", f"/api/failTask/{q}/{lease}", said).ok()
        task_id = callers.ask("admin", "PUT", f"/api/pushTask/{q}", 1).ok()["id"]
        callers.ask("admin", "DELETE", f"/api/queues/{q}/tasks/{task_id}").ok()
        answer = callers.ask("states", "GET", "/api/dead")
        assert b"SECRET" not in answer.body and daemon.pid
        rows = {one["reason"]: one for one in answer.ok()["groups"]}
        failed = rows["failed"]
        assert (failed["type"], failed["message"], failed["hidden"], failed["workers"]) == (
            None,
            None,
            True,
            ["w"],
        )
        assert rows["cancelled"]["type"] == "cancelled" and "hidden" not in rows["cancelled"]
        assert b"SECRET" in callers.ask("admin", "GET", "/api/dead").body


def test_the_command(served: Daemon, tmp_path: Path, q: str) -> None:
    ctl = Ctl(served.url, tmp_path)
    fail(served, q, "w1", {"type": "E", "message": "no 7"})
    assert "no #" in ctl.ok("dead", "--queue", q)
    (row,) = ctl.rows("dead", "--queue", q)
    assert (row["message"], row["queues"]) == ("no #", [q])
    assert "There are no dead tasks." in ctl.run("dead", "--queue", f"{q}none").stderr


def test_a_long_queue_is_read_in_pieces(served: Daemon, q: str) -> None:
    policy(served, q, attempts=1)
    ask(served, "PUT", f"/api/pushTasks/{q}", list(range(500))).ok()
    while (popped := ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0&lease=60")).status == 200:
        fails = [
            {"lease": one["lease"], "error": {"message": f"no {one['task']}"}} for one in popped.json["tasks"]
        ]
        ask(served, "POST", f"/api/ackTasks/{q}", {"fails": fails}).ok()
    assert told(served, q) == {(None, "no #"): (500, "unclear")}


@pytest.mark.every_redis
async def test_a_survey_meets_everything_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "RECORDS_PER_CALL", 3)
    monkeypatch.setattr(surveys, "RECORDS_PER_TURN", 4)
    monkeypatch.setattr(surveys, "QUEUES_PER_CALL", 2)
    expected = []
    for name, count in (("a", 10), ("b", 0), ("c", 3), ("d", 7), ("e", 1)):
        for n in range(count):
            # Equal scores: the place is one of them.
            bench.redis("ZADD", f"{{{name}}}x", n // 4, f"{n:024x}")
            bench.redis("HSET", f"{{{name}}}m", f"{n:024x}", f"record {n}")
            expected.append((name.encode(), f"{n:024x}".encode(), n // 4, f"record {n}".encode()))
    for highest_first in (True, False):
        met: list[Any] = []
        complete = await survey(
            bench.store, [b"e", b"d", b"c", b"b", b"a"], "dead", met.append, highest_first
        )
        assert complete is True and sorted(map(tuple, met)) == sorted(expected)
        # The long one lets the others have their turn.
        assert [one.queue for one in met].index(b"d") < len(expected) - 10
    monkeypatch.setattr(surveys, "MAX_RECORDS", 12)
    met = []
    assert await survey(bench.store, [b"a", b"d", b"e"], "dead", met.append, True) is False
    assert {one.queue for one in met} >= {b"a", b"d"}


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_look_that_took_long_is_kept_for_longer() -> None:
    clock, made = Clock(), list[Deferred[int]]()

    def make() -> Deferred[int]:
        made.append(Deferred())
        return made[-1]

    cached: Cached[int] = Cached(clock, 2.0, most=1)
    results: list[Any] = []
    first, second = cached.get("k", make), cached.get("k", make)
    first.addErrback(lambda _: results.append("left"))
    second.addCallback(results.append)
    first.cancel()
    clock.time = 1.0
    made[0].callback(7)
    assert results == ["left", 7] and len(made) == 1
    clock.time = 9.9
    cached.get("k", make).addCallback(results.append)
    assert results[2:] == [7]
    clock.time = 10.1
    cached.get("k", make).addErrback(lambda failure: results.append(type(failure.value)))
    made[1].errback(ValueError())
    assert results[3:] == [ValueError]
    # A failure is not kept.
    cached.get("k", make)
    assert len(made) == 3

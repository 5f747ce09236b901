"""GET /api/stats: what happened when, over all daemons, over restarts, and in bounded room."""

from __future__ import annotations

from typing import Any

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import ask, fresh, leased, on, pop, push, pushed, queue, running

pytestmark = pytest.mark.every_redis
RANGES = {"15m": (10, 90), "1h": (60, 60), "6h": (300, 72), "24h": (900, 96), "7d": (7200, 84)}
COUNTED = ("pushed", "started", "done", "failed", "dead")


def stats(daemon: Daemon, name: str | None = None, range_: str = "15m") -> Any:
    more = "" if name is None else f"&queue={name}"
    return ask(daemon, "GET", f"/api/stats?range={range_}{more}").ok()


def totals(daemon: Daemon, name: str, **wanted: int) -> Any:
    """The answer once the sums of a queue are these; the others are 0."""
    expected = {**dict.fromkeys(COUNTED, 0), **wanted}
    found: list[Any] = []

    def reached() -> bool:
        found[:] = [stats(daemon, name)]
        return bool(found[0]["totals"] == expected)

    wait_until(reached, 15, f"{expected}")
    return found[0]


def test_each_range_has_its_steps_and_counts_what_happened(served: Daemon, q: str) -> None:
    for number in range(4):
        pushed(served, q, number, "attempts=1")
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    on(served, "fail", q, leased(served, q)["lease"]).ok()
    totals(served, q, pushed=4, started=2, done=1, failed=1, dead=1)
    for name, (step, count) in RANGES.items():
        found = stats(served, q, name)
        assert (found["range"], found["step"], len(found["points"])) == (name, step, count)
        assert (found["queue"], found["counted_as"]) == (q, q)
        assert found["totals"] == {"pushed": 4, "started": 2, "done": 1, "failed": 1, "dead": 1}
        times = [point["at"] for point in found["points"]]
        assert (times == sorted(set(times)) and found["final_until"] > times[-2]) or step == 10
        points = [point for point in found["points"] if point["pushed"]]
        assert sum(point["pushed"] for point in points) == 4
        assert any(
            0 < point["run_p50"] <= point["run_p99"] for point in points if point["run_p50"] is not None
        )
        assert any(
            0 < point["wait_p50"] <= point["wait_p99"] for point in points if point["wait_p50"] is not None
        )
    assert ask(served, "GET", "/api/stats").ok()["range"] == "1h"
    everything = stats(served)
    assert everything["counted_as"] is None and everything["totals"]["pushed"] >= 4


def test_a_gap_is_told_from_nothing(served: Daemon) -> None:
    """Of the last hour the daemon ran some seconds; in these nothing happened at this queue."""
    points = stats(served, fresh("idle"))["points"]
    assert points[0] == {**dict.fromkeys(points[0]), "at": points[0]["at"]}
    last = points[-1]
    assert [last[kind] for kind in COUNTED] == [0] * 5
    assert [last[f"{kind}_{share}"] for kind in ("wait", "run") for share in ("p50", "p99")] == [None] * 4
    assert last["oldest_age"] is None
    first = next(at for at, point in enumerate(points) if point["pushed"] is not None)
    assert all(point["pushed"] is not None for point in points[first:])
    assert stats(served, fresh("idle"), "1h")["totals"] == dict.fromkeys(COUNTED, 0)


def test_what_waits_is_seen(served: Daemon, q: str) -> None:
    for number in range(3):
        pushed(served, q, number)
    found = wait_until(lambda: [p for p in stats(served, q)["points"] if p["ready"]], 25)
    assert found[-1]["ready"] == 3 and found[-1]["oldest_age"] > 0
    rows = ask(served, "GET", f"/api/queues?stats=1&search={q}").ok()["queues"]
    [row] = rows
    hour = row["last_hour"]
    assert (hour["step"], len(hour["ready"]), hour["ready"][-1]) == (60, 60, 3) and hour["ready"][0] is None
    assert {kind: hour[kind] for kind in COUNTED} == {**dict.fromkeys(COUNTED, 0), "pushed": 3}
    assert set(row["rates"]) == set(COUNTED)
    assert "last_hour" not in queue(served, q)
    wait_until(
        lambda: ask(served, "GET", f"/api/queues?stats=1&search={q}").ok()["queues"][0]["rates"]["pushed"],
        25,
    )


def test_a_family_is_one(served: Daemon) -> None:
    family = fresh("crawl")
    for number in range(3):
        pushed(served, f"{family}:{number}", number)
    totals(served, f"{family}:*", pushed=3)
    found = stats(served, f"{family}:1")
    assert found["counted_as"] == f"{family}:*" and found["totals"]["pushed"] == 3
    rows = ask(served, "GET", f"/api/queues?stats=1&search={family}&family=:").ok()["queues"]
    assert [row["last_hour"]["pushed"] for row in rows] == [3]
    rows = ask(served, "GET", f"/api/queues?stats=1&search={family}").ok()["queues"]
    assert [(row["last_hour"]["pushed"], set(row["last_hour"]["ready"])) for row in rows] == [
        (None, {None})
    ] * 3


def test_the_first_poll_of_a_version_is_a_mark(served: Daemon, q: str) -> None:
    def marks(name: str | None = None) -> list[str]:
        return [mark["text"] for mark in stats(served, name)["marks"]]

    for agent in (f"{q}/2.4.0", "curl/8.5.0", "python-requests/2.32", f"{q}/2.4.1 (linux)", q, f"{q}/2.4.0"):
        pop(served, q, "wait=0&worker=w1", User_Agent=agent)
    other = fresh("other")
    # Without a name, and at another queue.
    pop(served, other, "wait=0&worker=w2", User_Agent=f"{other}/1")
    wait_until(lambda: len(marks(q)) == 2, 15)
    assert sorted(marks(q)) == [f"{q}/2.4.0", f"{q}/2.4.1"]
    assert {f"{q}/2.4.1", f"{other}/1"} <= set(marks()) and marks(other) == [f"{other}/1"]
    # The first sight counts.
    first = stats(served, q)["marks"]
    pop(served, q, "wait=0&worker=w3", User_Agent=f"{q}/2.4.0")
    pop(served, f"{q}2", "wait=0&worker=w3", User_Agent=f"{q}/2.4.0")
    wait_until(lambda: marks(f"{q}2"), 15)
    assert stats(served, q)["marks"] == first
    assert [mark for mark in stats(served)["marks"] if mark["text"] == f"{q}/2.4.0"] == first[:1]


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("range=1m", "range"),
        ("range=", "range"),
        ("range=1h&range=1h", "range"),
        ("step=10", "step"),
        ("queue=", "queue"),
        ("queue=a%2Fb", "name"),
        ("queue=%7B", "name"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(served: Daemon, query: str, word: str) -> None:
    answer = ask(served, "GET", f"/api/stats?{query}")
    assert answer.status == 400 and word in answer.json["error"]
    assert ask(served, "GET", "/api/queues?stats=1&limit=101").status == 400
    assert ask(served, "GET", "/api/queues?stats=perhaps").status == 400


def test_daemons_add_up_and_a_restart_loses_nothing(
    module_redis_process: RedisServer, served: Daemon
) -> None:
    name = fresh("sum")
    with running(module_redis_process) as one, running(module_redis_process) as two:
        push(one, name, 1).ok()
        for number in range(2):
            push(two, name, number).ok()
        for daemon in (one, two):
            assert ask(daemon, "GET", f"/api/popTask/{name}?wait=0").status == 200
        # What they have not added yet, they add when they stop.
        one.terminate()
        two.terminate()
        totals(served, name, pushed=3, started=2, done=2)
        one.start().redis_ready()
        push(one, name, 1).ok()
        totals(one, name, pushed=4, started=2, done=2)

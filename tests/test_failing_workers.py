"""A worker that fails what others finish is named: counts by worker over all daemons, the rule, and where it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from registry.queue import worker_counts
from registry.queue.worker_counts import PERIOD, WorkerCounts, judge
from tests.ctl import Ctl
from tests.live import Daemon, wait_until
from tests.talk import ask, leased, on, policy, pushed
from tests.test_roster import row_of, workers

# By worker: how many tasks are done, and how many failed; then those that fail what others finish.
RULE = [
    ({"bad": (0, 5), "good": (5, 0)}, {"bad"}),
    ({"bad": (0, 4), "good": (50, 0)}, set()),
    ({"bad": (5, 5), "good": (50, 0)}, set()),
    ({"bad": (5, 6), "good": (50, 0)}, {"bad"}),
    ({"bad": (0, 50), "good": (4, 0)}, set()),
    ({"bad": (0, 50)}, set()),
    ({"bad": (0, 50), "other": (9, 1)}, {"bad"}),
    ({"bad": (0, 50), "other": (8, 2)}, set()),
    ({"bad": (0, 50), "a": (5, 0), "b": (4, 1)}, {"bad"}),
    # A new version on two workers: neither excuses the other.
    ({"bad": (0, 9), "too": (1, 8), "good": (30, 1)}, {"bad", "too"}),
    ({"a": (0, 9), "b": (0, 9), "c": (0, 9)}, set()),
    ({}, set()),
]


@pytest.mark.parametrize(("ended", "failing"), RULE)
def test_who_fails_what_others_finish(ended: dict[str, tuple[int, int]], failing: set[str]) -> None:
    assert set(judge({worker: {b"q": counts} for worker, counts in ended.items()})) == failing


def test_queues_are_judged_one_by_one() -> None:
    found = judge(
        {
            "one": {b"a": (0, 9), b"b": (90, 0), b"c": (0, 20)},
            "two": {b"a": (9, 0), b"b": (9, 0), b"c": (20, 1)},
            "three": {b"d": (100, 0)},
        }
    )
    assert set(found) == {"one"}
    verdict = found["one"]
    # Where it failed most.
    assert (verdict.queue, verdict.done, verdict.failed) == (b"c", 0, 20)
    assert (verdict.others, verdict.others_done, verdict.others_failed) == (1, 20, 1)


def test_counts_are_of_two_periods() -> None:
    counts = WorkerCounts()
    assert counts.recent(0) == {}
    counts.add("w", b"q", done=2)
    counts.add("w", b"r", failed=1)
    assert counts.recent(PERIOD - 1) == {"w": [(b"q", 2, 0), (b"r", 0, 1)]}
    assert counts.recent(PERIOD) == {"w": [(b"q", 2, 0), (b"r", 0, 1)]}
    counts.add("w", b"q", done=1, failed=1)
    assert counts.recent(2 * PERIOD - 1)["w"][0] == (b"q", 3, 1)
    assert counts.recent(2 * PERIOD) == {"w": [(b"q", 1, 1)]}
    # A process that was asleep for long forgets all.
    assert counts.recent(9 * PERIOD) == {}


def test_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_counts, "MAX_PAIRS", 3)
    counts = WorkerCounts()
    for number in range(9):
        counts.add(f"w{number}", b"q", done=1)
    counts.add("w0", b"q", done=1)
    assert counts.recent(0) == {"w0": [(b"q", 2, 0)], "w1": [(b"q", 1, 0)], "w2": [(b"q", 1, 0)]}


def end(daemon: Daemon, other: Daemon, q: str, worker: str, done: int = 0, failed: int = 0) -> None:
    """The worker takes tasks at one daemon, and says at the other how they ended."""
    for number in range(done + failed):
        pushed(daemon, q, number)
        lease = leased(daemon, q, f"lease=30&wait=0&worker={worker}", User_Agent=f"{worker[-3:]}/2.4 (test)")[
            "lease"
        ]
        if number < done:
            on(other, "ack", q, lease).ok()
        else:
            said = {"retry": False, "error": {"type": "E", "message": f"no {number}"}}
            on(other, "fail", q, lease, said).ok()


def test_a_worker_that_fails_is_named(pair: tuple[Daemon, Daemon], q: str, tmp_path: Path) -> None:
    one, two = pair
    good, bad = f"{q}good", f"{q}bad"
    # Nothing done is kept: only the counts say that others finish.
    policy(one, q, retention={"done": 0})
    end(one, two, q, good, done=3)
    end(two, one, q, good, done=3)
    end(one, two, q, bad, failed=6)
    row = row_of(one, bad, failed=6, failing=True)
    assert (row["done"], row["version"]) == (0, "bad/2.4")
    verdict = row["verdict"]
    assert verdict == {
        "code": "fails_what_others_finish",
        "sentence": f"It failed 6 of 6 tasks of {q} in the last minutes; another worker finished 6 of 6.",
        "queue": q, "done": 0, "failed": 6, "others_done": 6, "others_failed": 0,
    }  # fmt: skip
    for daemon in pair:
        row = row_of(daemon, good, done=6, failed=0)
        assert (row["failing"], row["verdict"]) == (False, None)
        row_of(daemon, bad, failed=6, failing=True)

    def group() -> Any:
        [found] = ask(one, "GET", f"/api/dead?queue={q}").ok()["groups"]
        return found if found["points_to"] == "worker" else None

    assert wait_until(group, 10, "the dead point to the worker")["worker"] == bad
    ctl = Ctl(one.url, tmp_path)
    result = ctl.run("workers")
    [line] = [line for line in result.stdout.splitlines() if line.startswith(f"{bad} ")]
    assert " failing " in line and line.split()[-1] == "(test)"
    assert f"{bad} is failing: It failed 6 of 6" in result.stderr
    assert bad in ctl.ok("dead", "--queue", q)


def test_what_counts(served: Daemon, q: str) -> None:
    """Acks and fails of every form; neither a release nor a pop without a lease, nor workers without a name."""
    name = f"{q}w"
    ask(served, "PUT", f"/api/pushTasks/{q}%3Ax", list(range(12))).ok()
    query = f"lease=30&wait=0&worker={name}"
    path = f"{q}%3Ax"
    held = ask(served, "GET", f"/api/popTasks/{path}?count=4&{query}").ok()["tasks"]
    fails = [{"lease": held[2]["lease"]}, {"lease": held[3]["lease"]}]
    ask(
        served,
        "POST",
        f"/api/ackTasks/{path}",
        {"acks": [held[0]["lease"], held[1]["lease"]], "fails": fails},
    ).ok()
    first = leased(served, path, query)
    second = leased(served, path, f"{query}&ack={first['lease']}")
    on(served, "release", path, second["lease"]).ok()
    assert ask(served, "GET", f"/api/popTask/{path}?wait=0&worker={name}").status == 200
    on(served, "ack", path, leased(served, path)["lease"]).ok()
    late = leased(served, path, f"lease=0.1&wait=0&worker={name}")
    wait_until(lambda: ask(served, "GET", f"/api/queues/{path}").ok()["leased"] == 0, 5, "the lease is over")
    on(served, "ack", path, late["lease"]).ok()
    # A repeat is no second task.
    on(served, "ack", path, late["lease"]).ok()
    row = row_of(served, name, done=4, failed=2)
    assert row["failing"] is False
    assert all(row["done"] == row["failed"] == 0 for key, row in workers(served).items() if key is None)


def test_a_worker_without_a_program_has_no_version(served: Daemon, q: str) -> None:
    ask(served, "GET", f"/api/popTask/{q}?wait=0&worker={q}")
    assert row_of(served, q)["version"] is None

"""Every acknowledged push is delivered, stored or dead, whatever is taken away: recorded, then judged.

The first half proves the judge: a made-up history in which a promise is broken must not pass.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.history.checker import Checker, check
from tests.history.record import Fault, Given, History, Pop, Push, Settle, Silence, Stored
from tests.history.run import run
from tests.live import RedisServer

AFTERWARDS = 240.0  # for the drain, with room for a busy machine


def push(value: int, begin: float = 0.0, outcome: Any = "ok", **more: Any) -> Push:
    ids = more.pop("ids", [f"t{value}"] if outcome == "ok" else [])
    return Push("q", begin, begin + 0.1, 0, outcome, [value], ids, **more)


def pop(value: int, at: float = 1.0, lease: str = "", attempt: int = 1, **more: Any) -> Pop:
    seconds = more.pop("seconds", 10.0 if lease else 0.0)
    given = Given(more.pop("queue", "q"), value, more.pop("id", f"t{value}"), attempt, lease, seconds)
    begin = more.pop("begin", at)
    return Pop(["q"], begin, at + 0.1, 0, "ok", bool(lease), [given], **more)


def settle(
    verb: str, lease: str, at: float, answer: str, outcome: Any = "ok", seconds: float = 0.0
) -> Settle:
    return Settle(verb, "q", at, at + 0.1, 0, outcome, lease, answer, seconds)


def history(*records: Any, left_behind: tuple[str, ...] = ()) -> History:
    made = History(left_behind=list(left_behind))
    places: dict[type, list[Any]] = {
        Push: made.pushes,
        Pop: made.pops,
        Settle: made.settles,
        Fault: made.faults,
        Silence: made.silences,
        Stored: made.stored,
    }
    for record in records:
        places[type(record)].append(record)
    return made


GOOD = {
    "handed over": [push(1), pop(1)],
    "acknowledged": [push(1), pop(1, lease="a"), settle("ack", "a", 2, "done")],
    "acknowledged twice": [
        push(1), pop(1, lease="a"), settle("ack", "a", 2, "done"), settle("ack", "a", 3, "done"),
    ],
    "ready at the end is stuck, dead is not": [push(1), Stored("q", "t1", 1, "dead")],
    "poison": [push(1), Stored("q", "t1", 1, "dead", "poison", ["a", "b", "a", None])],
    "three died on it, and the last one was late": [
        push(1), pop(1, lease="a", seconds=1), settle("ack", "a", 3, "late"),
        Stored("q", "t1", 1, "done", "", ["a", "b", "c"]),
    ],
    "one died on it again and again": [push(1), Stored("q", "t1", 1, "dead", "lease_expired", ["a", "a", "a"])],
    "refused and never seen": [push(1, outcome="refused")],
    "unknown and never seen": [push(1, outcome="unknown")],
    "unknown and delivered": [push(1, outcome="unknown"), pop(1)],
    "unknown, then repeated": [push(1, outcome="unknown"), push(1, begin=1), pop(1, at=2)],
    "expired": [
        push(1), pop(1, lease="a", seconds=1), pop(1, at=3, lease="b", attempt=2), settle("ack", "b", 4, "done"),
    ],
    "expired, then acknowledged late": [push(1), pop(1, lease="a", seconds=1), settle("ack", "a", 3, "late")],
    "failed": [
        push(1), pop(1, lease="a"), settle("fail", "a", 2, "ready"), pop(1, at=3, lease="b", attempt=2),
        settle("ack", "b", 4, "done"),
    ],
    "released, nobody knows": [
        push(1), pop(1, lease="a"), settle("release", "a", 2, "", "unknown"), pop(1, at=3, lease="b"),
        settle("ack", "b", 4, "done"),
    ],
    "the ack unknown, and it is gone": [push(1), pop(1, lease="a"), settle("ack", "a", 2, "", "unknown")],
    "the answer repeated by its key": [
        push(1), pop(1, lease="a", idempotency="k"), pop(1, at=2, lease="a", idempotency="k"),
        settle("ack", "a", 3, "done"),
    ],
    "a hand-over that the daemon did not live to confirm": [
        push(1), pop(1), Fault("kill daemon", 1.0, 3.0, 0), pop(1, at=32, attempt=2),
    ],
    "lost on the way to a client that hung up": [
        push(1), Pop(["q"], 1, 2, 0, "unknown", False, hung_up=True, blind=True),
    ],
    "a key, and a duplicate of it": [
        push(1, key="k"), push(2, begin=1, key="k", ids=["t1"], duplicate=True), pop(1, at=2, lease="a"),
        settle("ack", "a", 3, "done"),
    ],
    "a key again after its task was done": [
        push(1, key="k"), pop(1, at=2, lease="a"), settle("ack", "a", 3, "done"),
        push(2, begin=4, key="k"), pop(2, at=5, lease="b"), settle("ack", "b", 6, "done"),
    ],
    "a duplicate that was cut off before the ack, and repeated by its Idempotency-Key after it": [
        push(1, key="k"), pop(1, lease="a"), push(2, begin=1.5, outcome="unknown", key="k", idempotency="i"),
        settle("ack", "a", 2, "done"), push(2, begin=3, key="k", idempotency="i", ids=["t1"], duplicate=True),
    ],
    "a key again after the task of a push that was cut off, and is repeated then": [
        push(1, outcome="unknown", key="k", idempotency="i"), pop(1, lease="a"), settle("ack", "a", 2, "done"),
        push(2, begin=3, key="k"), push(1, begin=4, key="k", idempotency="i"), pop(2, at=5, lease="b"),
        settle("ack", "b", 6, "done"),
    ],
}  # fmt: skip

BAD = {
    "LOST": [push(1)],
    "t1 of q is LOST": [push(1), pop(1, lease="a")],
    "LOST: a hang-up of a leased pop takes nothing": [
        push(1), Pop(["q"], 1, 2, 0, "unknown", True, hung_up=True, blind=True),
    ],
    "LOST: one hang-up takes one task": [
        push(1), push(2), Pop(["q"], 1, 2, 0, "unknown", False, hung_up=True, blind=True),
    ],
    "LOST: a hang-up before the push takes nothing": [
        Pop(["q"], 1, 2, 0, "unknown", False, hung_up=True, blind=True), push(1, begin=3),
    ],
    "never pushed": [pop(1)],
    "though its push was answered": [push(1, outcome="refused", status=503), pop(1)],
    "though its push was answered, duplicate": [
        push(1, key="k"), push(2, begin=1, key="k", ids=["t1"], duplicate=True), pop(1), pop(2),
    ],
    "delivered from other": [push(1), pop(1, queue="other")],
    "stored 2 times": [push(1, outcome="unknown"), push(1, begin=1), pop(1, at=2, id="t9")],
    "at once": [push(1), Stored("q", "t1", 1, "dead"), Stored("q", "t1", 1, "ready")],
    "is done, and nobody": [push(1), Stored("q", "t1", 1, "done")],
    "is poison, and only": [push(1), Stored("q", "t1", 1, "dead", "poison", ["a", "a", None])],
    "which is not poison": [push(1), Stored("q", "t1", 1, "dead", "failed", ["a", "b", None])],
    "is stuck": [push(1), Stored("q", "t1", 1, "ready")],
    "delivered after its ack": [
        push(1), pop(1, lease="a", seconds=1), settle("ack", "a", 1.5, "done"),
        pop(1, at=9, lease="b", attempt=2),
    ],
    "delivered after its ack, by a key": [
        push(1), pop(1, lease="a", idempotency="k"), settle("ack", "a", 1.5, "done"),
        pop(1, at=2, lease="a", idempotency="k"),
    ],
    "under two leases": [
        push(1), pop(1, lease="a", seconds=1), pop(1, at=3, lease="b", attempt=2),
        settle("ack", "b", 4, "done"), settle("ack", "a", 4, "late"),
    ],
    "told that the lease is lost": [
        push(1), pop(1, lease="a"), settle("ack", "a", 2, "done"), settle("ack", "a", 3, "lease_lost", "refused"),
    ],
    "given to two requests": [
        push(1), pop(1, lease="a"), pop(1, at=2, lease="a"), settle("ack", "a", 3, "done"),
    ],
    "without a reason": [
        push(1), pop(1, lease="a"), pop(1, at=3, lease="b", attempt=2), settle("ack", "b", 4, "done"),
    ],
    "without a reason: extended meanwhile": [
        push(1), pop(1, lease="a", seconds=1), settle("extend", "a", 1.5, "extended", seconds=5),
        pop(1, at=3, lease="b", attempt=2), settle("ack", "b", 4, "done"),
    ],
    "without a reason: a poll that parked long before": [
        push(1), pop(1, begin=-9, at=1, lease="a", seconds=2), pop(1, at=2, lease="b", attempt=2),
        settle("ack", "b", 4, "done"),
    ],
    "without a reason: handed over twice": [push(1), pop(1), pop(1, at=40, attempt=2)],
    "without a reason: the hand-over has not lapsed": [
        push(1), pop(1), Fault("kill daemon", 1.0, 3.0, 0), pop(1, at=20, attempt=2),
    ],
    "without a reason: another daemon was killed": [
        push(1), pop(1), Fault("kill daemon", 1.0, 3.0, 1), pop(1, at=40, attempt=2),
    ],
    "told dead": [push(1), pop(1, lease="a"), settle("fail", "a", 2, "dead")],
    "which has not that key": [push(1), pop(1), push(2, key="k", ids=["t1"], duplicate=True)],
    "which was done before": [
        push(1, key="k"), pop(1, lease="a"), settle("ack", "a", 2, "done"),
        push(2, begin=3, key="k", ids=["t1"], duplicate=True),
    ],
    "which was done before: the first try had failed": [
        push(1, key="k"), pop(1, lease="a"), push(2, begin=1.5, outcome="refused", key="k", idempotency="i"),
        settle("ack", "a", 2, "done"), push(2, begin=3, key="k", idempotency="i", ids=["t1"], duplicate=True),
    ],
    "which was done before: the first try came later too": [
        push(1, key="k"), pop(1, lease="a"), settle("ack", "a", 2, "done"),
        push(2, begin=3, outcome="unknown", key="k", idempotency="i"),
        push(2, begin=4, key="k", idempotency="i", ids=["t1"], duplicate=True),
    ],
    "which was done before: another request was cut off": [
        push(1, key="k"), pop(1, lease="a"), push(3, begin=1.5, outcome="unknown", key="k", idempotency="j"),
        settle("ack", "a", 2, "done"), push(2, begin=3, key="k", idempotency="i", ids=["t1"], duplicate=True),
    ],
    "at the same time": [
        push(1, key="k"), push(2, begin=1, key="k"), pop(1, at=2, lease="a"), settle("ack", "a", 3, "done"),
        pop(2, at=4, lease="b"), settle("ack", "b", 5, "done"),
    ],
    "no answer": [Silence("/api/popTask/q", 1, 12, 0)],
}  # fmt: skip


@pytest.mark.parametrize("records", GOOD.values(), ids=GOOD)
def test_a_good_history_passes(records: list[Any]) -> None:
    assert check(history(*records)) == []


@pytest.mark.parametrize(("told", "records"), BAD.items(), ids=BAD)
def test_a_broken_promise_is_reported(told: str, records: list[Any]) -> None:
    violations = check(history(*records))
    expected = told.split(":")[0].split(",")[0].removeprefix("t1 of q is ")
    assert any(expected in violation for violation in violations), violations


def test_a_key_left_behind_is_reported() -> None:
    assert check(history(left_behind=("reply:1",))) != []


def test_a_history_outlives_its_run(tmp_path: Path) -> None:
    made = history(push(1), pop(1, lease="a"), settle("ack", "a", 2, "done"), Fault("kill redis", 1, 2))
    made.left_behind = ["k"]
    made.save(tmp_path / "history.jsonl")
    assert History.load((tmp_path / "history.jsonl").read_text().splitlines()) == made


@pytest.mark.timeout(0)  # the run has a bound of its own, for its length is an option
def test_nothing_is_lost_and_nothing_repeated_without_a_reason(
    request: pytest.FixtureRequest,
    redis_server: RedisServer,
    daemon: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """Two daemons on one Redis, both killed and started again, while many clients push, pop and hang up."""
    seconds = request.config.getoption("--history-seconds")
    seed = request.config.getoption("--history-seed")
    if seed is None:
        seed = random.randrange(1_000_000)
    print(f"history seed {seed}, {seconds:g} s")
    redis_server.stop()
    redis_server.start("--appendonly", "yes", "--appendfsync", "always")
    daemons = [daemon(redis=redis_server, env={"ACCESS_LOG": "no"}) for _ in range(2)]
    for one in daemons:
        one.redis_ready()
    made = asyncio.run(asyncio.wait_for(run(daemons, redis_server, seconds, seed), seconds + AFTERWARDS))
    made.save(tmp_path / "history.jsonl")
    checker = Checker(made)
    violations = checker.check()
    print(made.counts(), dict(checker.explained))
    for number, one in enumerate(daemons):
        (tmp_path / f"daemon{number}.log").write_text(one.log)
        assert "Traceback" not in one.log, f"daemon {number} of seed {seed} logged:\n{one.log[-5000:]}"
    some = "\n".join(violations[:20])
    assert not violations, f"{len(violations)} of seed {seed}, all in {tmp_path}:\n{some}"
    # A run in which nothing happens proves nothing.
    assert len(made.pushes) > 5 * seconds and len(made.faults) > seconds / 20

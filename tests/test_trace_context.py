"""Trace context: ``traceparent`` and ``tracestate`` go unchanged through every road of a task; what is malformed is ignored."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.ctl import Ctl
from tests.live import Daemon, RedisServer
from tests.talk import ask, cancel, counts, eventually, fresh, leased, move, on, pop, pushed, retry, task

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# Entries of several tracing systems, with what the grammar allows.
STATE = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE, 1a-b_c*d/e@v=!x y~,,z=0"
TRACE = {"traceparent": PARENT, "tracestate": STATE}
IDS = PARENT[2:]


def trace_in(headers: Any) -> dict[str, str]:
    return {name: headers[name] for name in TRACE if headers.get(name) is not None}


def popped(daemon: Daemon, q: str, query: str = "lease=30&wait=5") -> dict[str, str]:
    """The trace context of the next task."""
    answer = pop(daemon, q, query)
    assert answer.status == 200, answer
    return trace_in(answer.headers)


def held(daemon: Daemon, q: str, query: str = "lease=30&wait=5") -> str:
    return str(leased(daemon, q, query)["lease"])


# The roads: each brings one task, pushed with a trace, to where it can be popped again from the queue that is returned.


def straight(daemon: Daemon, q: str) -> str:
    pushed(daemon, q, 1, "backoff=0", **TRACE)
    return q


def in_a_batch(daemon: Daemon, q: str) -> str:
    ask(daemon, "PUT", f"/api/pushTasks/{q}", [1], **TRACE).ok()
    return q


def in_a_large_batch(daemon: Daemon, q: str) -> str:
    ask(daemon, "PUT", f"/api/pushTasks/{q}", ["x" * 600_000, "y" * 600_000], **TRACE).ok()
    return q


def delayed(daemon: Daemon, q: str) -> str:
    pushed(daemon, q, 1, "delay=0.1&priority=7", **TRACE)
    return q


def run_now(daemon: Daemon, q: str) -> str:
    task_id = pushed(daemon, q, 1, "delay=600", **TRACE)
    ask(daemon, "POST", f"/api/queues/{q}/tasks/{task_id}/run").ok()
    return q


def idempotent(daemon: Daemon, q: str) -> str:
    pushed(daemon, q, 1, "key=k&result=60", Idempotency_Key="once", **TRACE)
    return q


def failed(daemon: Daemon, q: str) -> str:
    straight(daemon, q)
    on(daemon, "fail", q, held(daemon, q), {"delay": 0.1}).ok()
    return q


def released(daemon: Daemon, q: str) -> str:
    straight(daemon, q)
    on(daemon, "release", q, held(daemon, q)).ok()
    return q


def lapsed(daemon: Daemon, q: str) -> str:
    straight(daemon, q)
    held(daemon, q, "lease=0.1&wait=5")
    return q


def retried(daemon: Daemon, q: str) -> str:
    straight(daemon, q)
    on(daemon, "fail", q, held(daemon, q), {"retry": False}).ok()
    assert retry(daemon, q)["count"] == 1
    return q


def moved(daemon: Daemon, q: str) -> str:
    straight(daemon, q)
    assert move(daemon, q, f"{q}to")["count"] == 1
    return f"{q}to"


def moved_when_dead(daemon: Daemon, q: str) -> str:
    straight(daemon, q)
    on(daemon, "fail", q, held(daemon, q), {"retry": False}).ok()
    assert move(daemon, q, f"{q}to", "state=dead")["count"] == 1
    assert retry(daemon, f"{q}to")["count"] == 1
    return f"{q}to"


def undone(daemon: Daemon, q: str) -> str:
    straight(daemon, q)
    answer = ask(daemon, "DELETE", f"/api/queues/{q}")
    ask(daemon, "POST", f"/api/audit/{answer.headers['Registry-Audit']}/undo").ok()
    return q


def uncancelled(daemon: Daemon, q: str) -> str:
    task_id = pushed(daemon, q, 1, **TRACE)
    answer = ask(daemon, "DELETE", f"/api/queues/{q}/tasks/{task_id}")
    ask(daemon, "POST", f"/api/audit/{answer.headers['Registry-Audit']}/undo").ok()
    return q


def exported(daemon: Daemon, q: str) -> str:
    straight(daemon, q)
    lines = ask(daemon, "GET", f"/api/queues/{q}/export").body.splitlines()
    ask(daemon, "POST", f"/api/queues/{q}to/import", lines[1].rstrip(b",")).ok()
    return f"{q}to"


def scheduled(daemon: Daemon, q: str) -> str:
    body = {"cron": "0 0 1 1 *", "queue": q, "task": 1, "options": {**TRACE, "attempts": 3}}
    ask(daemon, "PUT", f"/api/schedules/{q}", body).ok()
    ask(daemon, "POST", f"/api/schedules/{q}/run").ok()
    shown = ask(daemon, "GET", f"/api/schedules/{q}").ok()["options"]
    assert shown == {**TRACE, "attempts": 3}
    return q


def run_with_a_trace(daemon: Daemon, q: str) -> str:
    other = {"traceparent": PARENT.replace("4", "5")}
    body = {"cron": "0 0 1 1 *", "queue": q, "task": 1, "options": other}
    ask(daemon, "PUT", f"/api/schedules/{q}", body).ok()
    ask(daemon, "POST", f"/api/schedules/{q}/run", **TRACE).ok()
    return q


ROADS = [
    straight, in_a_batch, in_a_large_batch, delayed, run_now, idempotent, failed, released, lapsed, retried, moved,
    moved_when_dead, undone, uncancelled, exported, scheduled, run_with_a_trace,
]  # fmt: skip


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
def test_every_road_keeps_it(served: Daemon, q: str, road: Any) -> None:
    name = road(served, q)
    eventually(lambda: counts(served, name).get("ready"))
    # With a lease; again after a release, several at once; the repeat of a pop; and without a lease.
    assert popped(served, name, "lease=0.1&wait=5") == TRACE
    eventually(lambda: counts(served, name).get("ready"))
    for _ in range(2):
        path = f"/api/popTasks/{name}?lease=30&wait=5"
        [one] = ask(served, "GET", path, Idempotency_Key="again").ok()["tasks"]
        assert trace_in(one) == TRACE
    assert trace_in(task(served, name, one["id"])) == TRACE
    on(served, "release", name, one["lease"]).ok()
    assert popped(served, name, "wait=5") == TRACE


@pytest.mark.every_redis
def test_a_tick_of_a_schedule_has_it(served: Daemon, module_redis_process: RedisServer, q: str) -> None:
    body = {"cron": "0 0 1 1 *", "queue": q, "task": 1, "options": TRACE}
    ask(served, "PUT", f"/api/schedules/{q}", body).ok()
    module_redis_process.command("ZADD", "{registry}ticks", int(time.time() * 1000), q)
    eventually(lambda: counts(served, q).get("ready"), 10)
    assert popped(served, q) == TRACE


VALID = [
    PARENT,
    PARENT[:-2] + "00",
    f"cc{IDS}",
    f"01{IDS}-what-the-future-will-be like",
]
INVALID = [
    "", "x", PARENT[:-1], f"{PARENT}0", f"{PARENT}-more", f"ff{IDS}", f"0{IDS}", f"cc{IDS}0", PARENT.upper(),
    f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    PARENT.replace("-", "_"), f"cc{IDS}-\x80", f"cc{IDS}-{'x' * 512}", f"{PARENT}, {PARENT}",
]  # fmt: skip


@pytest.mark.parametrize("parent", VALID)
def test_a_well_formed_traceparent_is_kept(served: Daemon, q: str, parent: str) -> None:
    pushed(served, q, 1, traceparent=parent)
    assert popped(served, q) == {"traceparent": parent}


@pytest.mark.parametrize("parent", INVALID)
def test_a_malformed_traceparent_is_ignored_with_its_tracestate(served: Daemon, q: str, parent: str) -> None:
    pushed(served, q, 1, traceparent=parent, tracestate=STATE)
    assert popped(served, q) == {}


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("a=1", "a=1"),
        ("a=1 ,\tb=2", "a=1 ,\tb=2"),
        (f"a={'x' * 256}", f"a={'x' * 256}"),
        (",".join(f"k{n}=v" for n in range(32)), ",".join(f"k{n}=v" for n in range(32))),
        (",".join(f"k{n}={'v' * 50}" for n in range(20)), ",".join(f"k{n}={'v' * 50}" for n in range(9))),
        ("", None),
        (" , ,", None),
        ("a", None),
        ("A=1", None),
        ("a=", None),
        ("a=1=2", None),
        ("=1", None),
        ("a=\x80", None),
        (f"a={'x' * 257}", None),
        (f"a={'x' * 600}", None),
        (",".join(f"k{n}=v" for n in range(33)), None),
    ],
)
def test_a_tracestate_is_kept_cut_or_ignored_alone(
    served: Daemon, q: str, state: str, kept: str | None
) -> None:
    pushed(served, q, 1, traceparent=PARENT, tracestate=state)
    assert popped(served, q) == {"traceparent": PARENT, **({} if kept is None else {"tracestate": kept})}


def test_a_tracestate_without_a_traceparent_is_ignored(served: Daemon, q: str) -> None:
    pushed(served, q, 1, tracestate=STATE)
    assert popped(served, q) == {}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"traceparent": "x"}, "'traceparent'"),
        ({"traceparent": 7}, "'traceparent'"),
        ({"traceparent": PARENT, "tracestate": "x"}, "'tracestate'"),
        ({"tracestate": "a=b"}, "'tracestate'"),
    ],
)
def test_a_schedule_refuses_what_is_malformed(served: Daemon, q: str, options: Any, word: str) -> None:
    body = {"cron": "0 0 1 1 *", "queue": q, "task": 1, "options": options}
    ask(served, "PUT", f"/api/schedules/{q}", body).refused(400, "bad_option", word)


def test_the_query_of_a_push_has_no_such_option(served: Daemon, q: str) -> None:
    ask(served, "PUT", f"/api/pushTask/{q}?traceparent={PARENT}", 1).refused(400, "bad_option", "traceparent")


def test_the_command_line_passes_it_on(served: Daemon, tmp_path: Path) -> None:
    ctl, q = Ctl(served.url, tmp_path), fresh()
    ctl.ok("push", q, "1", "--traceparent", PARENT, "--tracestate", STATE)
    script = 'printf "\\"%s %s\\"" "$TRACEPARENT" "$TRACESTATE"'
    with ctl.process("work", q, "--once", "--", "sh", "-c", script) as one:
        _, told = one.communicate(timeout=20)
    assert one.returncode == 0, told
    [done] = ask(served, "GET", f"/api/queues/{q}/tasks?state=done").ok()["tasks"]
    assert done["result"] == f"{PARENT} {STATE}"


def test_a_cancelled_task_keeps_it(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, **TRACE)
    cancel(served, q, task_id)
    assert trace_in(task(served, q, task_id)) == TRACE

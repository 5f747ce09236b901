"""Durations in every place of a request, as programs print them: rounded up to the ms, or refused."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from registry.duration import FOREVER_MS, milliseconds
from tests.live import Daemon
from tests.talk import ask, fresh, leased, on, policy, pop, push, pushed, task

# As JavaScript, Python, Go, C and people print them, and the ms that they are.
PRINTED = [
    ("7", 7_000),
    ("7.0", 7_000),
    ("5.", 5_000),
    (".5", 500),
    ("00.5", 500),
    ("0.30000000000000004", 301),
    ("0.1", 100),
    ("1.005", 1_005),
    ("16.350000000000001", 16_351),
    ("1e0", 1_000),
    ("1.5e1", 15_000),
    ("1E+2", 100_000),
    ("2e+00", 2_000),
    ("3000000e-6", 3_000),
    ("0.299999999999999988897769753748434596", 300),
    ("0.5" + "0" * 400 + "1", 501),
]
NO_DURATIONS = (
    "",
    "+5",
    "-5",
    "-0",
    "nan",
    "NaN",
    "inf",
    "Infinity",
    "0x10",
    "1_0",
    "1e",
    "e5",
    ".",
    "1,5",
    "5s",
    " 5",
    "5 ",
    "٣",
)


@pytest.mark.parametrize(("text", "ms"), PRINTED)
def test_a_notation_of_a_number_is_read_and_rounded_up(text: str, ms: int) -> None:
    assert milliseconds(text) == ms


@pytest.mark.parametrize("text", [*NO_DURATIONS, "1e+", "--1", "1e5.5", "1" * 20_000 + "x"])
def test_what_is_no_number_is_no_duration(text: str) -> None:
    assert milliseconds(text) is None


def test_the_smallest_and_the_largest_are_read_at_once() -> None:
    assert [milliseconds(text) for text in ("1e-05", "1e-400", "1e-" + "9" * 5000, "0e" + "9" * 50)] == [
        1,
        1,
        1,
        0,
    ]
    assert {milliseconds(text) for text in ("1e300", "1e" + "9" * 5000, "9" * 50_000, "1e999999999")} == {
        FOREVER_MS
    }


def test_a_number_counts_as_it_is_printed() -> None:
    assert [milliseconds(number) for number in (0.1 + 0.2, 0.1, 0.07, 3, 1e-5, 0)] == [
        301,
        100,
        70,
        3_000,
        1,
        0,
    ]
    assert [milliseconds(number) for number in (True, -0.0, -1, float("nan"), float("inf"))] == [None] * 5


def escaped(text: str) -> str:
    return text.replace("+", "%2B").replace(" ", "%20").replace("٣", "%D9%A3").replace(",", "%2C")


def test_a_push_takes_them_in_each_of_its_options(served: Daemon, q: str) -> None:
    for text, ms in PRINTED:
        task_id = pushed(served, q, 1, f"delay={escaped(text)}&ttl=1e5&backoff=0.30000000000000004")
        row = task(served, q, task_id)
        due, made = (datetime.fromisoformat(row[name]) for name in ("due_at", "pushed_at"))
        assert round((due - made).total_seconds() * 1000) == ms, text
    for option in ("delay", "ttl", "backoff", "lease", "result"):
        for text in NO_DURATIONS:
            push(served, q, 1, f"{option}={escaped(text)}").refused(400, "bad_option", f"'{option}'")
        push(served, fresh(), 1, f"{option}=16.350000000000001").ok()


def test_a_plus_that_was_not_escaped_is_understood(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "lease=1e+02")
    assert leased(served, q, "lease=&wait=0")["expires_in"] == 100


def test_the_length_of_a_lease_is_rounded_up(served: Daemon, q: str) -> None:
    for text, ms in PRINTED:
        pushed(served, q)
        one = leased(served, q, f"lease={escaped(text)}&wait=1e-05")
        assert one["expires_in"] == ms / 1000, text
        again = on(served, "extend", q, one["lease"], query=f"lease={escaped(text)}").ok()
        assert again["expires_in"] == ms / 1000, text
        on(served, "ack", q, one["lease"]).ok()
    many = ask(served, "GET", f"/api/popTasks/{q}?wait=0.0&lease=0.30000000000000004&count=1")
    assert many.status == 202
    for text in NO_DURATIONS[1:]:
        pop(served, q, f"wait=0&lease={escaped(text)}").refused(400, "bad_option", "'lease'")
        pop(served, q, f"wait={escaped(text)}").refused(400, "bad_option", "'wait'")
        ask(served, "GET", f"/api/popTasks/{q}?wait={escaped(text)}").refused(400, "bad_option", "'wait'")


def test_the_bounds_count_for_what_was_rounded(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "lease=43200.0")
    push(served, q, 1, "lease=43200.0000001").refused(400, "bad_option", "43200")
    push(served, q, 1, "ttl=0.0").refused(400, "bad_option", "'ttl'")
    push(served, q, 1, "ttl=1e-9").ok()


def fails(delay: str, lease: str) -> bytes:
    return b'{"fails":[{"lease":"%b","delay":%b}]}' % (lease.encode(), delay.encode())


@pytest.mark.parametrize("delay", ["0.30000000000000004", "1e-05", "1E+2", "31536000.000000001"])
def test_fail_takes_what_json_can_write(served: Daemon, q: str, delay: str) -> None:
    pushed(served, q)
    pushed(served, q)
    body = b'{"delay":%b}' % delay.encode()
    assert on(served, "fail", q, leased(served, q)["lease"], body).ok()["state"] == "delayed"
    settled = ask(served, "POST", f"/api/ackTasks/{q}", fails(delay, leased(served, q)["lease"])).ok()
    assert settled["results"][0]["status"] == "delayed"


@pytest.mark.parametrize("delay", ["-1", "-0", "-0.0", "true", '"5"', "1e999", "[]"])
def test_fail_refuses_what_is_no_duration(served: Daemon, q: str, delay: str) -> None:
    pushed(served, q)
    lease = leased(served, q)["lease"]
    on(served, "fail", q, lease, b'{"delay":%b}' % delay.encode()).refused(400, "bad_option", "'delay'")
    ask(served, "POST", f"/api/ackTasks/{q}", fails(delay, lease)).refused(400, "bad_option", "'delay'")
    on(served, "ack", q, lease).ok()


def test_a_policy_keeps_whole_ms(served: Daemon, q: str) -> None:
    rules = policy(
        served, q, lease=0.30000000000000004, ttl=1e-05, backoff=16.3500001, max_run=60,
        retention={"done": 0.1 + 0.2, "dead": 5.0, "done_max": 7},
    )["policy"]  # fmt: skip
    assert rules == {
        "lease": 0.301, "ttl": 0.001, "backoff": 16.351, "max_run": 60,
        "retention": {"done": 0.301, "dead": 5, "done_max": 7},
    }  # fmt: skip
    policy(served, q, ttl=None)
    pushed(served, q)
    assert leased(served, q, "lease=&wait=0")["expires_in"] == 0.301


@pytest.mark.parametrize("rule", ["lease", "ttl", "backoff", "max_run", "retention.done", "retention.dead"])
def test_a_policy_refuses_what_is_no_duration(served: Daemon, q: str, rule: str) -> None:
    for value in ("-1", "-0.0", "true", '"5"', "1e999", "9" * 400):
        said = json.dumps({rule.partition(".")[2]: None} if "." in rule else None)
        body = f'{{"{rule.partition(".")[0]}":{said.replace("null", value)}}}'
        ask(served, "PATCH", f"/api/queues/{q}", body.encode()).refused(400, "bad_option", rule)


def test_a_schedule_takes_them_in_its_options(served: Daemon, q: str) -> None:
    def put(delay: Any) -> Any:
        body = {"cron": "0 0 1 1 *", "queue": q, "task": 1, "options": {"delay": delay}}
        return ask(served, "PUT", f"/api/schedules/{q}", body)

    assert put("0.30000000000000004").ok()["options"] == {"delay": "0.30000000000000004"}
    assert put("1e-05").status == 200
    for wrong in ("+1", "-1", "nan", -1, True):
        put(wrong).refused(400, "bad_option")


def test_a_preference_is_understood_in_any_notation(served: Daemon, q: str) -> None:
    for text, applied in (
        ("0.30000000000000004", "0.301"),
        ("1E-1", "0.1"),
        ("1e-05", "0.001"),
        (".1", "0.1"),
    ):
        answer = push(served, q, 1, Prefer=f"respond-async, wait={text}")
        assert answer.headers["Preference-Applied"] == f"wait={applied}"
    for text in ("-1", "+1", "nan", "0x1", ""):
        assert push(served, q, 1, Prefer=f"wait={text}").headers["Preference-Applied"] is None


def test_the_wait_for_the_end_of_a_task_takes_them(served: Daemon, q: str) -> None:
    task_id = pushed(served, q)
    assert task(served, q, task_id, "?wait=1e-05")["state"] == "ready"
    assert task(served, q, task_id, "?wait=0.050000000000000003")["state"] == "ready"
    for text in NO_DURATIONS:
        ask(served, "GET", f"/api/queues/{q}/tasks/{task_id}?wait={escaped(text)}").refused(
            400, "bad_option", "'wait'"
        )

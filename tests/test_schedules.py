"""Tasks on a clock: each tick pushes once whoever sees it, and missed ticks follow their policy.

A tick is made due by moving it: its time in Redis is set to a moment that has passed.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import ask, becomes, counts, drain, fresh, leased, on, policy, poll, pop, task, tasks

pytestmark = pytest.mark.every_redis


def put(served: Daemon, name: str, **said: Any) -> dict[str, Any]:
    row: dict[str, Any] = ask(served, "PUT", f"/api/schedules/{name}", said).ok()
    return row


def get(served: Daemon, name: str) -> dict[str, Any]:
    row: dict[str, Any] = ask(served, "GET", f"/api/schedules/{name}").ok()
    return row


def due(redis: RedisServer, name: str, minutes_ago: int) -> int:
    """Make the tick of that whole minute the next one of this schedule; the minute's time, ms."""
    # Late in a minute the next tick would come in between, and this one be a minute late.
    left = 60 - time.time() % 60
    if left < 12:
        time.sleep(left + 0.1)
    at = int(time.time() // 60 - minutes_ago) * 60_000
    redis.command("ZADD", "{registry}ticks", at, name)
    return at


def next_tick(redis: RedisServer, name: str) -> float:
    return float(redis.command("ZSCORE", "{registry}ticks", name))


def test_a_schedule_is_kept_listed_replaced_and_dropped(served: Daemon, q: str) -> None:
    row = put(served, q, cron="0 3 * * *", timezone="Europe/Vienna", queue=q, task={"n": 1})
    assert {name: row[name] for name in ("name", "cron", "timezone", "queue", "task", "missed")} == {
        "name": q,
        "cron": "0 3 * * *",
        "timezone": "Europe/Vienna",
        "queue": q,
        "task": {"n": 1},
        "missed": "skip",
    }
    assert row["options"] == {}
    assert row["last_at"] is None
    assert get(served, q) == row
    rows = ask(served, "GET", "/api/schedules").ok()["schedules"]
    assert [one for one in rows if one["name"] == q] == [row]
    put(served, q, cron="*/5 * * * *", queue=q, task=2, options={"priority": 3}, missed="once")
    assert (get(served, q)["task"], get(served, q)["options"]) == (2, {"priority": 3})
    ask(served, "DELETE", f"/api/schedules/{q}").ok()
    for method in ("GET", "DELETE"):
        ask(served, method, f"/api/schedules/{q}").refused(404, "not_found")


def test_the_next_tick_is_told_in_utc_by_the_schedules_own_zone(served: Daemon, q: str) -> None:
    row = put(served, q, cron="30 12 * * *", timezone="Asia/Kolkata", queue=q, task=1)
    assert row["next_at"].endswith("T07:00:00.000Z")
    now = datetime.now(UTC)
    assert now < datetime.fromisoformat(row["next_at"]) <= now + timedelta(days=1)
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_the_hour_that_is_skipped_and_the_one_that_comes_twice() -> None:
    from registry.queue.schedules import ticks

    def times(cron: str, after: str, count: int) -> list[str]:
        start = int(datetime.fromisoformat(after).timestamp() * 1000)
        found = ticks(cron, "Europe/Vienna", start)
        return [datetime.fromtimestamp(next(found) / 1000, UTC).strftime("%m-%d %H:%M") for _ in range(count)]

    # In spring 02:30 does not exist, and in autumn it comes twice: a daily task runs once on both days.
    assert len({one[:5] for one in times("30 2 * * *", "2026-03-28T00:00:00Z", 3)}) == 3
    assert len({one[:5] for one in times("30 2 * * *", "2026-10-24T00:00:00Z", 3)}) == 3
    # And one each hour runs each hour.
    hours = times("0 * * * *", "2026-10-24T23:30:00Z", 4)
    assert hours == ["10-25 00:00", "10-25 01:00", "10-25 02:00", "10-25 03:00"]


def test_a_tick_is_pushed_once_by_two_daemons_with_its_bytes_and_options(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    body = b'{"cron":"* * * * *","queue":"%b","task":{"a": 1e999,  "a":2},"options":{"priority":4,"lease":7}}'
    ask(served, "PUT", f"/api/schedules/{q}", body % q.encode()).ok()
    waiting = poll(served, q, "wait=20&lease=")
    at = due(module_redis_process, q, 0)
    answer = waiting.answer(5)
    assert b'"task":{"a": 1e999,  "a":2}' in answer.body
    assert answer.ok()["expires_in"] == 7
    assert task(served, q, answer.json["id"])["priority"] == 4
    wait_until(lambda: next_tick(module_redis_process, q) > at, 3, "the next tick")
    # Again, as after a crash between the push and the advance: the tick has been pushed already.
    due_again = due(module_redis_process, q, 0)
    wait_until(lambda: next_tick(module_redis_process, q) > due_again, 5, "the next tick")
    time.sleep(1.2)
    assert sum(counts(served, q).values()) == (1 if due_again == at else 2)
    row = get(served, q)
    assert row["last_at"] is not None and row["missed_count"] == 0
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_missed_ticks_are_skipped_and_counted(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    put(served, q, cron="* * * * *", queue=q, task=1)
    due(module_redis_process, q, 7)
    wait_until(lambda: get(served, q)["missed_count"] > 0, 5, "the ticks to be missed")
    row = get(served, q)
    # The one of this minute is still in time, and that of the minute before may be.
    pushed = sum(counts(served, q).values())
    assert 1 <= pushed <= 2
    assert row["missed_count"] + pushed == 8
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_of_missed_ticks_one_is_made_up_for(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    hour = (datetime.now(UTC) - timedelta(hours=2)).hour
    put(served, q, cron=f"0 {hour} * * *", queue=q, task=1, missed="once")
    two_days_ago = datetime.now(UTC).replace(hour=hour, minute=0, second=0, microsecond=0) - timedelta(days=3)
    module_redis_process.command("ZADD", "{registry}ticks", int(two_days_ago.timestamp() * 1000), q)
    becomes(served, q, 5, ready=1)
    wait_until(lambda: get(served, q)["missed_count"] > 0, 3)
    time.sleep(1.2)
    assert counts(served, q) == {"ready": 1}
    assert get(served, q)["next_at"] > datetime.now(UTC).strftime("%Y-%m-%dT%H:%M")
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_a_dropped_schedule_pushes_no_more_and_what_it_pushed_stays(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    put(served, q, cron="* * * * *", queue=q, task=1)
    due(module_redis_process, q, 0)
    becomes(served, q, 5, ready=1)
    ask(served, "DELETE", f"/api/schedules/{q}").ok()
    due(module_redis_process, q, 0)
    wait_until(lambda: module_redis_process.command("ZSCORE", "{registry}ticks", q) is None, 5)
    assert counts(served, q) == {"ready": 1}
    assert pop(served, q, "wait=0").json == {"task": 1}


def test_what_a_schedule_pushed_is_a_task_like_any_other(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    put(served, q, cron="* * * * *", queue=q, task="x", options={"attempts": 1, "key": "only"})
    due(module_redis_process, q, 0)
    becomes(served, q, 5, ready=1)
    assert tasks(served, q)[0]["key"] == "only"
    # While it waits, the next tick finds its key taken.
    due(module_redis_process, q, 0)
    time.sleep(2)
    assert counts(served, q) == {"ready": 1}
    on(served, "fail", q, leased(served, q)["lease"]).ok()
    assert counts(served, q) == {"dead": 1}
    assert drain(served, q) == []
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_schedules_are_listed_a_page_at_a_time(served: Daemon, q: str) -> None:
    names = [f"{q}-{end}" for end in ("a b", "c%", "\u00fc", "\U0001f600")]
    for name in names:
        put(served, quote(name), cron="0 0 1 1 *", queue=q, task=1)
    found, cursor = [], ""
    while True:
        page = ask(served, "GET", f"/api/schedules?limit=1{cursor}").ok()
        found += [row["name"] for row in page["schedules"]]
        if page["cursor"] is None:
            break
        cursor = f"&cursor={quote(page['cursor'])}"
    assert found == sorted(found) and set(names) <= set(found)
    for name in names:
        ask(served, "DELETE", f"/api/schedules/{quote(name)}").ok()


def test_many_that_are_refused_do_not_starve_the_others(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    policy(served, q, max_length=0)
    names = [f"{q}-{at}" for at in range(101)]
    for name in names[:100]:
        put(served, name, cron="0 0 1 1 *", queue=q, task=1)
    put(served, names[100], cron="0 0 1 1 *", queue=f"{q}-other", task=1)
    try:
        now = int(time.time() * 1000)
        scores = [part for at, name in enumerate(names) for part in (now - 20_000 + at, name)]
        module_redis_process.command("ZADD", "{registry}ticks", *scores)
        wait_until(lambda: counts(served, f"{q}-other") == {"ready": 1}, 10)
    finally:
        for name in names:
            ask(served, "DELETE", f"/api/schedules/{name}").ok()


def test_a_queue_that_refuses_does_not_stop_the_other_schedules(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    full = fresh("a-full")
    ask(served, "PATCH", f"/api/queues/{full}", {"max_length": 0}).ok()
    put(served, full, cron="* * * * *", queue=full, task=1)
    put(served, q, cron="* * * * *", queue=q, task=1)
    due(module_redis_process, full, 0)
    due(module_redis_process, q, 0)
    becomes(served, q, 5, ready=1)
    # It is tried again until it can.
    ask(served, "PATCH", f"/api/queues/{full}", {"max_length": None}).ok()
    becomes(served, full, 5, ready=1)
    for name in (q, full):
        ask(served, "DELETE", f"/api/schedules/{name}").ok()


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"cron": "* * * *"}, "'cron'"),
        ({"cron": "every day"}, "'cron'"),
        ({"cron": "0 0 30 2 *"}, "'cron'"),
        ({"cron": 5}, "'cron'"),
        ({"timezone": "Vienna"}, "'timezone'"),
        ({"timezone": 1}, "'timezone'"),
        ({"timezone": "../etc/passwd"}, "'timezone'"),
        ({"missed": "all"}, "'missed'"),
        ({"options": []}, "'options'"),
        ({"options": {"at": "2026-01-31T12:00:00Z"}}, "'at'"),
        ({"options": {"priority": 10}}, "'priority'"),
        ({"options": {"colour": 1}}, "'colour'"),
        ({"options": {"key": {}}}, "'key'"),
        ({"options": {"key": ["a"]}}, "'key'"),
        ({"options": {"key": True}}, "'key'"),
        ({"options": {"key": None}}, "'key'"),
        ({"options": {"key": "\ud800"}}, "'key'"),
        ({"every": 5}, "'every'"),
        ({"queue": 5}, "'queue'"),
    ],
)
def test_a_schedule_names_what_is_wrong_with_it(
    served: Daemon, q: str, said: dict[str, Any], word: str
) -> None:
    whole = {"cron": "* * * * *", "queue": q, "task": 1, **said}
    ask(served, "PUT", f"/api/schedules/{q}", whole).refused(400, "bad_option", word)
    ask(served, "GET", f"/api/schedules/{q}").refused(404, "not_found")


def test_a_schedules_task_keeps_its_bytes_whatever_json_it_is(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    body = (
        b'{"cron": "* * * * *", "qu\\u0065ue" : "%b", "task":  {"a":[1e999, "\\ud800}"]} , "missed":"once"}'
    )
    ask(served, "PUT", f"/api/schedules/{q}", body % q.encode()).ok()
    due(module_redis_process, q, 1)
    becomes(served, q, 5, ready=1)
    assert pop(served, q, "wait=0").body == b'{"task":{"a":[1e999, "\\ud800}"]}}'
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_a_schedule_needs_its_fields_and_a_name(served: Daemon, q: str) -> None:
    whole = {"cron": "* * * * *", "queue": q, "task": 1}
    for field in whole:
        said = {name: value for name, value in whole.items() if name != field}
        ask(served, "PUT", f"/api/schedules/{q}", said).refused(400, "bad_option", f"'{field}'")
    ask(served, "PUT", f"/api/schedules/{q}", {**whole, "queue": "a{b"}).refused(400, "bad_name")
    ask(served, "PUT", "/api/schedules/a%2Fb", whole).refused(400, "bad_name")
    ask(served, "PUT", f"/api/schedules/{q}", b"{").refused(400, "bad_json")
    # null is a task like any other value.
    put(served, q, **{**whole, "task": None})
    assert get(served, q)["task"] is None
    ask(served, "DELETE", f"/api/schedules/{q}").ok()

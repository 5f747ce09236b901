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
from tests.talk import ask, becomes, counts, drain, fresh, leased, on, policy, poll, pop, push, task, tasks

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
    assert row["paused"] is False
    assert row["last_at"] is None
    assert get(served, q) == row
    rows = ask(served, "GET", "/api/schedules").ok()["schedules"]
    assert [one for one in rows if one["name"] == q] == [row]
    put(served, q, cron="*/5 * * * *", queue=q, task=2, options={"priority": 3}, missed="once")
    assert (get(served, q)["task"], get(served, q)["options"]) == (2, {"priority": 3})
    ask(served, "DELETE", f"/api/schedules/{q}").ok()
    for method in ("GET", "DELETE"):
        ask(served, method, f"/api/schedules/{q}").refused(404, "not_found")


def test_the_next_tick_is_reported_in_utc_by_the_schedules_own_zone(served: Daemon, q: str) -> None:
    row = put(served, q, cron="30 12 * * *", timezone="Asia/Kolkata", queue=q, task=1)
    assert row["next_at"].endswith("T07:00:00.000Z")
    now = datetime.now(UTC)
    assert now < datetime.fromisoformat(row["next_at"]) <= now + timedelta(days=1)
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


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


def test_one_of_the_missed_ticks_is_made_up_for(
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


def test_a_deleted_schedule_pushes_nothing_more_and_its_tasks_stay(
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


def test_a_task_of_a_schedule_is_like_any_other(
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
        ({"paused": 1}, "'paused'"),
        ({"cron": "0 0 31 2 *"}, "'cron' never matches"),
        ({"queue": 5}, "'queue'"),
    ],
)
def test_a_schedule_names_what_is_wrong_with_it(
    served: Daemon, q: str, said: dict[str, Any], word: str
) -> None:
    whole = {"cron": "* * * * *", "queue": q, "task": 1, **said}
    ask(served, "PUT", f"/api/schedules/{q}", whole).refused(400, "bad_option", word)
    ask(served, "GET", f"/api/schedules/{q}").refused(404, "not_found")


@pytest.mark.parametrize(
    "said",
    [
        b'{"options":{"delay":0.5x}}',
        b'{"options":{"priority":10}}',
        b'{"options":{"key":true}}',
        b'{"options":{"delay":1e999}}',
        b'{"options":{"delay":-0.5}}',
        b'{"options":{"result":99999999999999999999999999}}',
        b'{"cron":"0 0 31 2 *"}',
        b'{"timezone":"Nowhere/Else"}',
        b'{"timezone":["UTC"]}',
        b'{"missed":{}}',
        b'{"paused":1}',
        b'{"queue":"a/b"}',
        b'{"queue":"\\ud800"}',
        b'{"colour":1}',
    ],
)
def test_a_refused_put_changes_nothing(
    served: Daemon, module_redis_process: RedisServer, q: str, said: bytes
) -> None:
    def raw() -> Any:
        command = module_redis_process.command
        return command("HGET", "{registry}schedules", q), command("ZSCORE", "{registry}ticks", q)

    put(served, q, cron="0 3 * * *", queue=q, task=1, options={"delay": 0.25})
    before = raw()
    whole = b'{"cron":"*/5 * * * *","queue":"%b","task":2,' % q.encode() + said[1:]
    answer = ask(served, "PUT", f"/api/schedules/{q}", whole)
    assert answer.status == 400 and answer.json["code"] in ("bad_option", "bad_name", "bad_json"), answer
    assert raw() == before
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


@pytest.mark.parametrize(
    ("options", "shown", "known"),
    [
        (b'{"delay":0.5}', {"delay": 0.5}, {"state": "delayed"}),
        (b'{"delay":5e-1}', {"delay": 0.5}, {"state": "delayed"}),
        (b'{"delay":"0.5"}', {"delay": "0.5"}, {"state": "delayed"}),
        (b'{"ttl":86400.25,"lease":1.5,"backoff":0.5}', {"ttl": 86400.25, "lease": 1.5, "backoff": 0.5}, {}),
        (b'{"key":1e999}', {"key": "1e999"}, {"key": "1e999"}),
        (b'{"key":0.5}', {"key": 0.5}, {"key": "0.5"}),
        (b'{"key":%b}' % (b"9" * 30), {"key": "9" * 30}, {"key": "9" * 30}),
        (b'{"key":%b}' % (b"9" * 250), {"key": "9" * 250}, {"key": "9" * 250}),
        (b'{"priority":4}', {"priority": 4}, {"priority": 4}),
        (b"null", {}, {}),
    ],
)
def test_an_option_may_be_any_number(
    served: Daemon, q: str, options: bytes, shown: dict[str, Any], known: dict[str, Any]
) -> None:
    body = b'{"cron":"0 3 * * *","queue":"%b","task":1,"options":%b}' % (q.encode(), options)
    row = ask(served, "PUT", f"/api/schedules/{q}", body).ok()
    assert row["options"] == shown
    assert get(served, q) == row
    pushed_id = ask(served, "POST", f"/api/schedules/{q}/run").ok()["id"]
    assert known.items() <= task(served, q, pushed_id).items()
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_a_schedule_is_run_now(served: Daemon, q: str) -> None:
    ask(served, "POST", f"/api/schedules/{q}/run").refused(404, "not_found")
    row = put(
        served, q, cron="0 3 * * *", queue=f"{q}-to", task={"n": 1}, options={"key": "only"}, paused=True
    )
    answer = ask(served, "POST", f"/api/schedules/{q}/run").ok()
    assert answer == {"success": True, "id": answer["id"]}
    assert ask(served, "POST", f"/api/schedules/{q}/run", {}).ok() == {**answer, "duplicate": True}
    assert pop(served, f"{q}-to", "wait=0").json == {"task": {"n": 1}}
    assert get(served, q) == row
    ask(served, "POST", f"/api/schedules/{q}/run", {"delay": 1}).refused(400, "bad_option")
    ask(served, "POST", f"/api/schedules/{q}/run?delay=1").refused(400, "bad_option", "'delay'")
    ask(served, "GET", f"/api/schedules/{q}/run").refused(405, "method_not_allowed")
    ask(served, "POST", f"/api/schedules/{q}/walk").refused(404, "not_found")
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


@pytest.mark.parametrize("options", [{}, {"priority": 3}])
def test_a_tick_leaves_as_little_behind_as_a_push(
    served: Daemon, module_redis_process: RedisServer, q: str, options: dict[str, Any]
) -> None:
    def push_one() -> None:
        put(served, q, cron="0 3 * * *", queue=q, task=1, options=options)
        due(module_redis_process, q, 0)
        becomes(served, q, 5, ready=1)

    def keys() -> Any:
        return sorted(module_redis_process.command("KEYS", f"*{q}*"))

    push_one()
    assert pop(served, q, "wait=0").status == 200
    becomes(served, q, 5)
    assert keys() == []
    assert not module_redis_process.command("ZSCORE", "{registry}index", q)
    policy(served, q, retention={"done": 0})
    ask(served, "DELETE", f"/api/schedules/{q}").ok()
    push_one()
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    assert counts(served, q) == {}
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_no_producer_can_take_a_ticks_place(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    put(served, q, cron="* * * * *", queue=q, task="tick")
    at = int(time.time() // 60) * 60_000
    for minute in range(-2, 3):
        for name in (f"{q}@{at + minute * 60_000}", f'"{q}@{at + minute * 60_000}"'):
            push(served, q, "other", Idempotency_Key=name).ok()
            ask(served, "PUT", f"/api/pushTasks/{q}", ["other"], Idempotency_Key=name).ok()
    due(module_redis_process, q, 0)
    wait_until(lambda: "tick" in [row["task"] for row in tasks(served, q)], 5)
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


def test_the_task_of_a_schedule_keeps_its_bytes(
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


@pytest.mark.parametrize("again", [{}, {"task": 2}, {"queue": "new"}, {"cron": "0 0 1 1 *"}])
def test_a_tick_that_is_due_is_not_lost_when_its_schedule_is_put_again(
    served: Daemon, module_redis_process: RedisServer, q: str, again: dict[str, Any]
) -> None:
    """As by a program that declares its schedules at its start. A queue that is full keeps the tick due meanwhile."""
    said = {"cron": "0 3 * * *", "queue": q, "task": 1}
    put(served, q, **said)
    policy(served, q, max_length=0)
    at = due(module_redis_process, q, 0)
    again = {**again, **({"queue": f"{q}new"} if "queue" in again else {})}
    put(served, q, **{**said, **again})
    policy(served, q, max_length=None)
    becomes(served, again.get("queue", q), 5, ready=1)
    row = get(served, q)
    assert (datetime.fromisoformat(row["last_at"]).timestamp(), row["missed_count"]) == (at / 1000, 0)
    ask(served, "DELETE", f"/api/schedules/{q}").ok()


@pytest.mark.parametrize(
    ("options", "ttl", "ok"),
    [
        ({"delay": 10}, 5, False),
        ({"delay": 10}, 10, False),
        ({"delay": 10}, 11, True),
        ({"delay": 10, "ttl": 20}, 5, True),
        ({"priority": 3}, 5, True),
        ({"delay": 10}, None, True),
        ({"delay": 10, "ttl": 10}, None, False),
    ],
)
def test_a_schedule_whose_tasks_would_expire_before_they_are_due_is_refused(
    served: Daemon, q: str, options: dict[str, float], ttl: float | None, ok: bool
) -> None:
    policy(served, q, ttl=ttl)
    before = put(served, q, cron="0 3 * * *", queue=q, task=1)
    said = {"cron": "0 4 * * *", "queue": q, "task": 2, "options": options}
    answer = ask(served, "PUT", f"/api/schedules/{q}", said)
    if ok:
        assert answer.ok()["task"] == 2
    else:
        answer.refused(400, "bad_option", "expire")
        assert get(served, q) == before
    ask(served, "DELETE", f"/api/schedules/{q}").ok()

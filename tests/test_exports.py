"""Export and import of a queue: an import restores what was deleted, and a second import changes nothing."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.live import Daemon, RedisServer
from tests.talk import (
    Answer,
    ask,
    cancel,
    counts,
    drain,
    fresh,
    keys_of,
    leased,
    on,
    poll,
    pop,
    push,
    pushed,
    queue,
    task,
    tasks,
)


def export(daemon: Daemon, name: str, query: str = "") -> list[dict[str, Any]]:
    """Every record, over all pages."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = ask(daemon, "GET", f"/api/queues/{name}/export?limit=3{query}{cursor}").ok()
        found += page["tasks"]
        if page["cursor"] is None:
            return found
        cursor = f"&cursor={page['cursor']}"


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"\n".join(json.dumps(one).encode() for one in records)


def restore(daemon: Daemon, name: str, records: list[dict[str, Any]]) -> Answer:
    return ask(daemon, "POST", f"/api/queues/{name}/import", lines(records))


def wipe(redis: RedisServer, name: str) -> None:
    for key in keys_of(redis, name) - {b"index"}:
        redis.command("DEL", key)


def seen_of(daemon: Daemon, name: str) -> dict[str, Any]:
    """What a client sees of a queue: every task of every state, in order."""
    return {
        state: [{**one, "queue": None} for one in tasks(daemon, name, f"state={state}&limit=1000")]
        for state in ("ready", "delayed", "leased", "dead", "done")
    }


def fill(daemon: Daemon, name: str) -> None:
    """Tasks of every kind, in every state but leased."""
    push(daemon, name, {"plain": 1})
    push(daemon, name, b'{"big": 123456789012345678901234567890, "e": 1e5, "s": "\\ud800", "s": 1}')
    push(daemon, name, b'{"lines":\n[1,\r\n2]}')
    push(daemon, name, [1], "priority=7&attempts=3&backoff=2.5&lease=33&ttl=5000&key=one&result=60")
    push(
        daemon,
        name,
        [2],
        "priority=7",
        Idempotency_Key="ik",
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        tracestate="a=b",
    )
    push(daemon, name, "x" * 70_000)
    push(daemon, name, "later", "delay=4000&key=two&ttl=5000")
    push(daemon, name, "later too", "at=2031-01-01T00:00:00Z&priority=3")
    one = pushed(daemon, name, "to be cancelled", "priority=9")
    cancel(daemon, name, one)
    for how in ("fail", "dead", "release", "done", "null", "progress"):
        pushed(daemon, name, how, "priority=9&result=900")
        got = leased(daemon, name, "lease=60&wait=0&worker=w1")
        assert got["task"] == how
        error = {"type": "T", "message": "m\x00\u2028", "trace": "t" * 5000}
        if how == "fail":
            on(daemon, "fail", name, got["lease"], {"error": error, "delay": 3000}).ok()
        elif how == "dead":
            on(daemon, "fail", name, got["lease"], {"error": error, "retry": False}).ok()
        elif how == "done":
            on(daemon, "ack", name, got["lease"], b'{"r":\n1.10}').ok()
        elif how == "null":
            on(daemon, "ack", name, got["lease"], b"null").ok()
        elif how == "progress":
            on(daemon, "extend", name, got["lease"], {"progress": 0.5, "message": "half"}).ok()
            on(daemon, "fail", name, got["lease"], {"delay": 3500}).ok()
        else:
            on(daemon, "release", name, got["lease"], query="delay=3600").ok()


@pytest.mark.every_redis
def test_an_export_that_was_wiped_and_imported_is_the_same_queue(
    served: Daemon, module_redis: RedisServer, q: str
) -> None:
    fill(served, q)
    before, records, held = seen_of(served, q), export(served, q), counts(served, q)
    assert held == {"ready": 6, "delayed": 5, "dead": 2, "done": 2}
    assert [one["state"] for one in records] == ["ready"] * 6 + ["delayed"] * 5 + ["dead"] * 2 + ["done"] * 2
    wipe(module_redis, q)
    assert counts(served, q) == {}

    said = restore(served, q, records).ok()
    assert said == {"success": True, "count": 15, "skipped": 0, "key_taken": []}
    assert seen_of(served, q) == before
    assert export(served, q) == records
    # Nothing is stored a second time, or twice in one request.
    for again in (records, records + records):
        assert restore(served, q, again).ok()["count"] == 0
    assert seen_of(served, q) == before
    # What is stored is in force: the order, the options, the bytes, the unique key, the attempts.
    assert push(served, q, 0, "key=one").ok()["duplicate"]
    first = leased(served, q, "lease=&wait=0")
    assert (first["task"], first["expires_in"], first["attempt"]) == ([1], 33, 1)
    assert on(served, "fail", q, first["lease"]).ok()["state"] == "delayed"
    assert drain(served, q)[:2] == [[2], {"plain": 1}]
    late = next(one for one in tasks(served, q, "state=delayed") if one["task"] == "fail")
    ask(served, "POST", f"/api/queues/{q}/tasks/{late['id']}/run").ok()
    assert leased(served, q)["attempt"] == 2


def test_the_bytes_of_payloads_and_results_stay_the_same(
    served: Daemon, module_redis: RedisServer, q: str
) -> None:
    payloads = [b'{"a":\n1}', b" 1.10 ", b'"\\ud800"', b"1e999", b'{"k":1,"k":2}', b"[" * 499 + b"]" * 499]
    for payload in payloads:
        push(served, q, payload).ok()
    answer = ask(served, "GET", f"/api/queues/{q}/export").body
    wipe(module_redis, q)
    rows = [line.rstrip(b",") for line in answer.split(b"\n")[1:-1]]
    ask(served, "POST", f"/api/queues/{q}/import", b"\n".join(rows)).ok()
    for payload in payloads:
        assert pop(served, q, "wait=0").body == b'{"task":%b}' % payload


@pytest.mark.every_redis
def test_a_leased_task_is_given_back_uncounted(served: Daemon, module_redis: RedisServer, q: str) -> None:
    push(served, q, 1, "key=k")
    push(served, q, 2)
    push(served, q, 3)
    held = [leased(served, q, "lease=60&wait=0&worker=w1") for _ in range(2)]
    records = export(served, q)
    assert [one["state"] for one in records] == ["ready", "leased", "leased"]
    wipe(module_redis, q)
    assert restore(served, q, records).ok()["count"] == 3
    [attempt] = task(served, q, held[0]["id"])["history"]
    assert (attempt["reason"], attempt["worker"]) == ("released", "w1") and attempt["leased_at"]
    assert push(served, q, 0, "key=k").ok()["duplicate"]
    again = [leased(served, q) for _ in range(3)]
    assert sorted(one["task"] for one in again[:2]) == [1, 2] and again[2]["task"] == 3
    assert [one["attempt"] for one in again] == [1, 1, 1]


@pytest.mark.every_redis
def test_an_imported_task_does_not_wake_its_own_tombstone(served: Daemon, q: str) -> None:
    pushed(served, q, "first")
    pushed(served, q, "middle")
    last = pushed(served, q, "last")
    records = export(served, q)
    cancel(served, q, last)  # its element stays in the list, in the middle of others
    cancel(served, q, last)  # forgotten
    pushed(served, q, "newest")
    assert restore(served, q, records).ok()["count"] == 1
    assert counts(served, q) == {"ready": 4}
    assert drain(served, q) == ["first", "middle", "newest", "last"]
    assert export(served, q, "&state=ready") == []


@pytest.mark.every_redis
def test_a_task_whose_key_is_taken_is_reported_and_left_out(
    served: Daemon, module_redis: RedisServer, q: str
) -> None:
    one = pushed(served, q, 1, "key=k")
    records = export(served, q)
    wipe(module_redis, q)
    other = pushed(served, q, 2, "key=k")
    said = restore(served, q, records).ok()
    assert said == {"success": True, "count": 0, "skipped": 1, "key_taken": [one]}
    assert [row["id"] for row in tasks(served, q)] == [other]


def test_an_element_of_another_program_needs_an_id(served: Daemon, module_redis: RedisServer, q: str) -> None:
    for element in (b'{"raw": 1}', b"no JSON \xff"):
        module_redis.command("LPUSH", q, element)
    records = export(served, q)
    assert [one["id"] for one in records] == [None, None]
    assert base64.b64decode(records[1]["payload_base64"]) == b"no JSON \xff"
    restore(served, q, records).refused(400, "bad_json", "Line 1", "id")
    module_redis.command("DEL", q)
    named = [{**one, "id": f"{number:011x}A{number:012x}"} for number, one in enumerate(records)]
    assert restore(served, q, named).ok()["count"] == 2
    assert leased(served, q)["task"] == {"raw": 1}
    assert pop(served, q, "wait=0&lease=9").status == 202
    assert counts(served, q) == {"leased": 1, "dead": 1}


@pytest.mark.every_redis
def test_times_that_are_over_take_effect(served: Daemon, module_redis: RedisServer, q: str) -> None:
    push(served, q, "due", "delay=1000")
    push(served, q, "over", "ttl=1000")
    due, over = sorted(export(served, q), key=lambda one: str(one["task"]))
    wipe(module_redis, q)
    due["due_at"] = over["expires_at"] = 1000
    restore(served, q, [due, over]).ok()
    assert leased(served, q, "lease=30&wait=5")["task"] == "due"
    assert ask(served, "GET", f"/api/queues/{q}/tasks/{over['id']}?wait=5").ok()["reason"] == "expired"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "x"}, "id"),
        ({"id": None}, "id"),
        ({"state": "asleep"}, "state"),
        ({"state": "delayed"}, "due_at"),
        ({"priority": 10}, "priority"),
        ({"priority": "1"}, "priority"),
        ({"key": ""}, "key"),
        ({"history": [{"number": "1"}]}, "history"),
        ({"history": [{}] * 21}, "history"),
        ({"error": "text"}, "error"),
        ({"nonsense": 1}, "nonsense"),
        ({"payload_base64": "%"}, "payload_base64"),
        ({"payload_base64": None, "id": f"{0:011x}A{1:012x}"}, "payload_base64"),
        ({"result_base64": 1234}, "result_base64"),
        ({"progress": 10**400}, "progress"),
        ({"payload_base64": base64.b64encode(b"{").decode()}, "JSON"),
        ({"message": "m" * 200_000}, "limit"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_line_that_is_no_task_is_named_and_nothing_is_stored(
    served: Daemon, q: str, change: dict[str, Any], words: str
) -> None:
    good = {"id": "0" * 24, "state": "ready", "task": 1}
    restore(served, q, [good, {**good, **change}]).refused(400, "bad_json", "Line 2", words)
    assert counts(served, q) == {}


@pytest.mark.parametrize("body", [b"", b"\n \n", b"[1]", b"1", b'{"id":1'], ids=repr)
def test_a_body_that_is_no_export_is_refused(served: Daemon, q: str, body: bytes) -> None:
    ask(served, "POST", f"/api/queues/{q}/import", body).refused(400, "bad_json")


def test_an_import_wakes_pollers_passes_the_length_limit_and_keeps_large_payloads_in_order(
    served: Daemon, module_redis: RedisServer, q: str
) -> None:
    tasks_ = [str(number) * (100_000 if number % 3 == 0 else 1) for number in range(9)]
    for one in tasks_:
        push(served, q, one)
    records = export(served, q)
    wipe(module_redis, q)
    ask(served, "PATCH", f"/api/queues/{q}", {"max_length": 1}).ok()
    restore(served, q, records).ok()
    assert queue(served, q)["ready"] == 9
    assert drain(served, q) == tasks_
    other = fresh()
    waiting = poll(served, other)
    restore(served, other, [{"id": "0" * 24, "state": "ready", "task": 1}]).ok()
    assert waiting.answer().task == 1


def test_an_export_has_a_cursor_of_its_own(served: Daemon, q: str) -> None:
    push(served, q, 1)
    for cursor in ("x", "ready~x", "asleep~", "dead~9"):
        ask(served, "GET", f"/api/queues/{q}/export?cursor={cursor}").refused(400, "bad_option")
    assert export(served, q, "&state=dead") == [] and len(export(served, q, "&state=ready")) == 1

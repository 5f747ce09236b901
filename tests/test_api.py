"""The seed's two endpoints, over real HTTP against the daemon in this process and a real Redis.

Each test runs twice: over a connection of the daemon, and over a stock server of twisted.web and the Klein resource.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
import treq

from tests.conftest import LoggedErrors
from tests.in_process import MAX_TASK, World, running, until
from tests.live import RedisServer


@pytest.fixture(params=[False, True], ids=["connection", "klein"])
def world(
    request: pytest.FixtureRequest, module_redis: RedisServer, tmp_path: Any, logged_errors: LoggedErrors
) -> Iterator[World]:
    yield from running(module_redis, request.param, str(tmp_path), logged_errors)


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest_twisted.ensureDeferred
async def test_a_push_answers_with_its_id(world: World, method: str) -> None:
    answer = await world.push(b'{"a": 1}', method=method)
    assert answer.status == 200
    assert re.fullmatch(rb'\{"success":true,"id":"[A-Za-z0-9_-]+"\}', answer.body)
    assert world.redis("HGETALL", "{q}t") == [answer.json["id"].encode(), b'{"a": 1}']
    assert world.redis("LLEN", "q") == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest_twisted.ensureDeferred
async def test_a_pop_answers_with_the_task_and_no_other_key(world: World, method: str) -> None:
    pushed = await world.push(b'{"a": 1}')
    answer = await world.pop(method=method)
    assert (answer.status, answer.body) == (200, b'{"task":{"a": 1}}')
    assert answer.header(b"Task-Id") == pushed.json["id"].encode()
    assert answer.header(b"Task-Attempt") == b"1"
    await world.nothing_is_left()  # it was confirmed once its answer was written


@pytest_twisted.ensureDeferred
async def test_an_empty_queue_is_answered_202_with_exactly_this_body(world: World) -> None:
    for query in ("?wait=0", "", "?wait=0.1", "?wait=.1", "?wait=5000"):  # the last is capped to MAX_WAIT
        answer = await world.pop(query=query)
        assert (answer.status, answer.body) == (202, b'{"error":"No tasks available"}')
    assert world.stored() == set()
    assert world.daemon.queues.wait_lists.lists == {}


@pytest_twisted.ensureDeferred
async def test_a_parked_poller_is_answered_by_a_push(world: World) -> None:
    parked = world.request("GET", "/api/popTask/q?wait=0.6")
    await until(lambda: world.daemon.queues.wait_lists.parked == 1)
    await world.push(b"1")
    response = await parked
    assert (response.code, await treq.content(response)) == (200, b'{"task":1}')
    await world.nothing_is_left()


@pytest_twisted.ensureDeferred
async def test_a_poller_that_hangs_up_leaves_the_wait_list(world: World) -> None:
    parked = [world.request("GET", "/api/popTask/q?wait=0.6") for _ in range(3)]
    await until(lambda: world.daemon.queues.wait_lists.parked == 3)
    for one in parked:
        one.addErrback(lambda failure: None)
        one.cancel()
    await until(lambda: not world.daemon.queues.wait_lists.lists)
    assert world.daemon.queues.wait_lists.parked == 0
    await world.push(b"1")
    assert (await world.pop()).body == b'{"task":1}'


PAYLOADS = {
    "spaces": b' \t{"a" :\r\n [ 1 ,2 ] }\n',
    "order and duplicate keys": b'{"b":1,"a":2,"b":3}',
    "numbers as they were written": b"[1e5,1E+5,-0,0.10,1e999,3.141592653589793238462643383279]",
    "a big integer": b"9" * 5000,
    "a lone surrogate": b'"\\ud800"',
    "escapes": b'"\\u00fc\\/\\n\\u0000"',
    "utf-8": '["ü","✓","😀","\x7f","\u2028"]'.encode(),
    "html": b'"<script>alert(1)</script>"',
    "a string": b'""',
    "zero": b"0",
    "null": b"null",
    "false": b"false",
    "500 deep": b"[" * 500 + b"]" * 500,
    "as large as it may be": b'"' + b"x" * (MAX_TASK - 2) + b'"',
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
@pytest_twisted.ensureDeferred
async def test_the_bytes_of_a_payload_are_not_touched(world: World, payload: bytes) -> None:
    assert (await world.push(payload)).status == 200
    assert world.redis("HVALS", "{q}t") == [payload]
    assert (await world.pop()).body == b'{"task":' + payload + b"}"


@pytest_twisted.ensureDeferred
async def test_the_content_type_is_not_looked_at(world: World) -> None:
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", "?"):
        answer = await world.ask("POST", "/api/pushTask/q", b'{"a":1}', Content_Type=kind)
        assert answer.status == 200
    assert world.redis("LLEN", "q") == 4


NAMES = {
    "zoneCheck": b"zoneCheck",
    "queue_results:0b0e1c2e-9d0e-4b0e-8e59-6a3c2f6f9a11": b"queue_results:0b0e1c2e-9d0e-4b0e-8e59-6a3c2f6f9a11",
    "queue_results%3Aone": b"queue_results:one",
    "a%20b": b"a b",
    "a+b": b"a+b",
    "a%2520b": b"a%20b",
    "a%252Fb": b"a%2Fb",
    "a%2Cb": b"a,b",
    "a,b;c=d": b"a,b;c=d",
    "a%3Fb%23c": b"a?b#c",
    "%5Ba%5D": b"[a]",
    "...": b"...",
    "%22%5C%3C%3E": b'"\\<>',
    "z%C3%BCrich": "zürich".encode(),
    "%F0%9F%98%80": "😀".encode(),
    "u%CC%88": "u\u0308".encode(),
    "x" * 255: b"x" * 255,
    "%C3%BC" * 127: "ü".encode() * 127,
}


@pytest.mark.parametrize(("path", "name"), NAMES.items(), ids=[n[:24] for n in NAMES])
@pytest_twisted.ensureDeferred
async def test_a_name_is_percent_decoded_once(world: World, path: str, name: bytes) -> None:
    assert (await world.push(b"1", path)).status == 200
    assert world.redis("LLEN", name) == 1
    assert world.redis("ZRANGE", "{registry}index", 0, -1) == [name]
    assert (await world.pop(path)).body == b'{"task":1}'
    await world.nothing_is_left()


@pytest_twisted.ensureDeferred
async def test_an_empty_retention_is_none(world: World) -> None:
    await world.ask("PATCH", "/api/queues/q", b'{"lease":5,"retention":{"done":1}}')
    answer = await world.ask("PATCH", "/api/queues/q", b'{"retention":{}}')
    assert json.loads(answer.body)["policy"] == {"lease": 5}


@pytest_twisted.ensureDeferred
async def test_tasks_that_other_programs_push_are_served_like_any_other(world: World) -> None:
    world.redis("LPUSH", "q", ' {"raw" : 1}')
    world.redis("LPUSH", "q", "not json", b"\xff", "[2]")
    first = await world.pop()
    assert first.body == b'{"task": {"raw" : 1}}'
    assert re.fullmatch(rb"[A-Za-z0-9_-]+", first.header(b"Task-Id") or b"")
    assert first.header(b"Task-Attempt") == b"1"
    assert (await world.pop()).body == b'{"task":[2]}'
    assert (await world.pop()).status == 202
    await until(lambda: world.redis("ZCARD", "{q}x") == 2)
    await until(lambda: set(world.redis("HVALS", "{q}t")) == {b"not json", b"\xff"})


@pytest_twisted.ensureDeferred
async def test_first_in_first_out(world: World) -> None:
    for at in range(20):
        await world.push(b"%d" % at)
    assert [(await world.pop()).json["task"] for _ in range(20)] == list(range(20))


@pytest_twisted.ensureDeferred
async def test_health(world: World) -> None:
    assert (await world.ask("GET", "/healthz")).json["version"]
    assert (await world.ask("GET", "/readyz")).status == 200

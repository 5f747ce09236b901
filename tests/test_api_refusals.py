"""Every error of the API, over real HTTP against the daemon in this process and a real Redis.

Each test runs twice: over a connection of the daemon, and over a stock server of twisted.web and the Klein resource.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted

from registry.queue import batching
from tests.conftest import LoggedErrors
from tests.in_process import MAX_TASK, Answer, World, pause, running, until
from tests.live import RedisServer


def refused(answer: Answer, status: int, code: str) -> str:
    """The sentence of a refusal, which has the shape of all refusals."""
    assert (answer.status, answer.json.get("code")) == (status, code), answer.body
    sentence: str = answer.json["error"]
    assert len(sentence) > 10
    assert sentence[0].isupper()
    assert sentence.endswith((".", ".)", "!"))
    return sentence


@pytest.fixture(params=[False, True], ids=["connection", "klein"])
def world(
    request: pytest.FixtureRequest, module_redis: RedisServer, tmp_path: Any, logged_errors: LoggedErrors
) -> Iterator[World]:
    yield from running(module_redis, request.param, str(tmp_path), logged_errors)


@pytest.fixture
def connected(module_redis: RedisServer, tmp_path: Any, logged_errors: LoggedErrors) -> Iterator[World]:
    """For what a connection judges before an endpoint is asked."""
    yield from running(module_redis, False, str(tmp_path), logged_errors)


NOT_JSON = {
    # what: (bytes, where)
    "empty": (b"", None),
    "blank": (b" \n", None),
    "NaN": (b'{"a":NaN}', 5),
    "Infinity": (b"[1,Infinity]", 3),
    "minus Infinity": (b"[-Infinity]", None),
    "trailing garbage": (b'{"a":1} x', 8),
    "two values": (b"1 2", 2),
    "a trailing comma": (b"[1,]", 3),
    "single quotes": (b"{'a':1}", 1),
    "a leading zero": (b"[01]", None),
    "cut off": (b'{"a":', 5),
    "an open string": (b'"abc', None),
    "a control character in a string": (b'"a\x01b"', 2),
    "invalid utf-8": (b'["\xff"]', 2),
    "an overlong encoding": (b'"\xc0\xaf"', 1),
    "a surrogate in utf-8": (b'"\xed\xa0\x80"', 1),
    "a byte order mark": (b"\xef\xbb\xbf{}", 0),
    "utf-16": ("{}".encode("utf-16"), 0),
    "501 deep": (b"[" * 501 + b"]" * 501, None),
    "thousands deep": (b"[" * 10_000, None),
    "a form": (b"a=1&b=2", 0),
    "a comment": (b"[1/*one*/]", 2),
}


@pytest.mark.parametrize(("body", "where"), NOT_JSON.values(), ids=NOT_JSON)
@pytest_twisted.ensureDeferred
async def test_what_is_not_json_is_refused_with_its_position(
    world: World, body: bytes, where: int | None
) -> None:
    answer = await world.push(body)
    assert answer.status == 400
    sentence = refused(answer, 400, answer.json["code"])
    assert re.search(r"\d", sentence) or not body.strip()
    if where is not None:
        assert re.search(rf"\b{where}\b", sentence), sentence
    assert world.stored() == set()


BAD_NAMES = {
    "an encoded slash": "a%2Fb",
    "an encoded slash alone": "%2F",
    "an encoded slash, small": "a%2fb",
    "nul": "a%00b",
    "line end": "a%0D%0Ab",
    "delete": "a%7F",
    "c1 control": "a%C2%85",
    "opening brace": "%7Ba",
    "closing brace": "a%7D",
    "a dot": "%2E",
    "two dots": "%2e.",
    "half a percent": "a%2",
    "percent and letters": "a%zz",
    "a lone percent": "a%",
    "256 bytes": "x" * 256,
    "256 bytes decoded": "%C3%BC" * 128,
}


@pytest.mark.parametrize("path", BAD_NAMES.values(), ids=BAD_NAMES)
@pytest_twisted.ensureDeferred
async def test_a_bad_name_is_reported_and_nothing_stored(world: World, path: str) -> None:
    refused(await world.push(b"1", path), 400, "bad_name")
    refused(await world.pop(path), 400, "bad_name")
    assert world.stored() == set()
    assert world.daemon.queues.wait_lists.lists == {}


@pytest_twisted.ensureDeferred
async def test_a_name_that_is_not_utf_8_is_reported_and_nothing_stored(connected: World) -> None:
    refused(await connected.push(b"1", "a%FF"), 400, "bad_name")
    refused(await connected.pop("a%FF"), 400, "bad_name")
    assert connected.stored() == set()


@pytest.mark.parametrize("path", ["/api/popTask/q", "/api/pushTask/q"])
@pytest_twisted.ensureDeferred
async def test_head_and_options_take_no_task(world: World, path: str) -> None:
    await world.push(b"1")
    stored = world.stored()
    for method in ("HEAD", "OPTIONS"):
        answer = await world.ask(method, path)
        assert answer.status == 405
        assert answer.header(b"Allow")
        if method == "HEAD":
            assert answer.body == b""
        else:
            refused(answer, 405, "method_not_allowed")
    await pause(0.1)
    assert world.stored() == stored
    assert (await world.pop()).body == b'{"task":1}'


@pytest_twisted.ensureDeferred
async def test_another_method_is_405_and_tells_those_that_are_allowed(world: World) -> None:
    await world.push(b"1")
    for method, path, allowed in (
        ("GET", "/api/pushTask/q", {"PUT", "POST"}),
        ("DELETE", "/api/pushTask/q", {"PUT", "POST"}),
        ("PUT", "/api/popTask/q", {"GET", "POST"}),
        ("DELETE", "/api/popTask/q", {"GET", "POST"}),
        ("PATCH", "/api/popTask/q", {"GET", "POST"}),
        ("POST", "/healthz", {"GET"}),
    ):
        answer = await world.ask(method, path)
        refused(answer, 405, "method_not_allowed")
        assert set((answer.header(b"Allow") or b"").decode().split(", ")) - {"HEAD", "OPTIONS"} == allowed
    assert world.redis("LLEN", "q") == 1


@pytest_twisted.ensureDeferred
async def test_another_path_is_404_in_json(world: World) -> None:
    for path in (
        "/nothing",
        "/api",
        "/api/",
        "/api/popTask",
        "/api/popTask/",
        "/api/popTask/a/b",
        "/api/popTask/q/",
        "//api/popTask/q",
        "/api//popTask/q",
        "/api/poptask/q",
        "/API/popTask/q",
        "/api/popTaskX/q",
    ):
        answer = await world.ask("GET", path)
        assert answer.status in (404, 400), path
        refused(answer, answer.status, "not_found" if answer.status == 404 else "bad_name")
        assert answer.header(b"Location") is None
    assert world.stored() == set()


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("?nothing=1", "nothing"),
        ("?timeout=5", "timeout"),
        ("?wait=1&wai=2", "wai"),
        ("?wait=", "wait"),
        ("?wait", "wait"),
        ("?wait=soon", "wait"),
        ("?wait=-1", "wait"),
        ("?wait=nan", "wait"),
        ("?wait=inf", "wait"),
        ("?wait=1e", "wait"),
        ("?wait=1_0", "wait"),
        ("?wait=%D9%A3", "wait"),
        ("?wait=1&wait=1", "wait"),
        ("?%77ait=x", "wait"),
        ("?w%FF=1", "UTF-8"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_option_that_is_unknown_or_malformed_is_named(world: World, query: str, named: str) -> None:
    await world.push(b"1")
    assert named in refused(await world.pop(query=query), 400, "bad_option")
    assert world.redis("LLEN", "q") == 1


@pytest_twisted.ensureDeferred
async def test_a_wait_beyond_the_longest_is_capped_however_long(world: World) -> None:
    for wait in ("86401", "99999999999999999999", "0.00000000001"):
        await world.push(b"1")
        assert (await world.pop(query=f"?wait={wait}")).status == 200


@pytest_twisted.ensureDeferred
async def test_an_unknown_option_of_a_push_is_named_and_nothing_stored(world: World) -> None:
    for name in ("nothing", "timeout", "wait", "Delay"):
        answer = await world.ask("PUT", f"/api/pushTask/q?{name}=1", b"1")
        assert name in refused(answer, 400, "bad_option")
    assert world.stored() == set()


@pytest_twisted.ensureDeferred
async def test_a_task_past_the_limit_is_413_and_not_stored(connected: World) -> None:
    sentence = refused(await connected.push(b'"' + b"x" * (MAX_TASK - 1) + b'"'), 413, "body_too_large")
    assert str(MAX_TASK) in sentence.replace(",", "")
    assert connected.stored() == set()


@pytest_twisted.ensureDeferred
async def test_one_task_of_a_batch_past_the_limit_is_413_and_none_is_stored(world: World) -> None:
    batch = b'[1,"' + b"x" * (MAX_TASK - 1) + b'"]'
    refused(await world.ask("PUT", "/api/pushTasks/q", batch), 413, "body_too_large")
    assert world.stored() == set()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/api/%70ushTask/q"),
        ("PUT", "/api/pushTask%2Fq"),
        ("PUT", "/api%2FpushTask/q"),
        ("GET", "/api%2Fqueues/q"),
        ("GET", "/api/queues%2Fq%2Ftasks"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_word_of_the_path_that_is_percent_encoded_is_404(
    world: World, method: str, path: str
) -> None:
    refused(await world.ask(method, path, b"1"), 404, "not_found")
    assert world.stored() == set()


MALFORMED = {
    "a rule of thousands of digits": ("PATCH", "queues/q", b'{"max_length":' + b"9" * 4500 + b"}"),
    "a cron of thousands of digits": (
        "PUT",
        "schedules/s",
        b'{"cron":"' + b"9" * 5000 + b' * * * *","queue":"q","task":1}',
    ),
    "a cron of six fields": ("PUT", "schedules/s", b'{"cron":"* * * * * *","queue":"q","task":1}'),
    "a time past the calendar's end": ("PUT", "pushTask/q?at=9999-12-31T23:59:59-23:59", b"1"),
    "a time before its beginning": ("PUT", "pushTask/q?at=0001-01-01T00:00:00%2B23:59", b"1"),
}


@pytest.mark.parametrize(("method", "path", "body"), MALFORMED.values(), ids=MALFORMED)
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_read_is_400_and_not_stored(
    world: World, method: str, path: str, body: bytes
) -> None:
    refused(await world.ask(method, f"/api/{path}", body), 400, "bad_option")
    assert world.stored() == set()


@pytest_twisted.ensureDeferred
async def test_the_position_in_a_batch_of_lines_counts_from_the_beginning(world: World) -> None:
    lines = {"Content-Type": "application/x-ndjson"}
    answer = await world.ask("PUT", "/api/pushTasks/q", b"11\n22\n3x\n", **lines)
    assert "at byte 7" in refused(answer, 400, "bad_json")


@pytest_twisted.ensureDeferred
async def test_head_gets_the_headers_of_a_get(world: World) -> None:
    for path, status in (
        ("schedules/s", 404),
        ("queues/q", 200),
        ("queues/q/tasks", 200),
        ("queues/q/retry", 405),
    ):
        answer = await world.ask("HEAD", f"/api/{path}")
        assert (answer.status, answer.body) == (status, b"")


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_type_is_409_for_that_queue_alone(world: World) -> None:
    world.redis("SET", "taken", "not ours")
    looked = await world.ask("GET", "/api/queues/taken/tasks")
    for answer in (await world.push(b"1", "taken"), await world.pop("taken"), looked):
        refused(answer, 409, "wrong_type")
    assert (await world.push(b"1")).status == 200
    assert (await world.pop()).status == 200
    await until(lambda: world.stored() == {b"taken"})
    assert world.redis("GET", "taken") == b"not ours"


@pytest_twisted.ensureDeferred
async def test_a_full_redis_is_503_redis_full(world: World) -> None:
    await world.push(b"1")
    world.redis("CONFIG", "SET", "maxmemory", "1")
    try:
        answer = await world.push(b"2")
        refused(answer, 503, "redis_full")
        assert answer.json["outcome"] == "not_applied"
        assert int(answer.header(b"Retry-After") or 0) >= 1
        assert (await world.pop()).body == b'{"task":1}'
        await world.nothing_is_left()
    finally:
        world.redis("CONFIG", "SET", "maxmemory", "0")


@pytest_twisted.ensureDeferred
async def test_too_much_waiting_for_redis_is_503_overloaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "MAX_WAITING_BYTES", -1)
    for answer in (await world.push(b"1"), await world.pop()):
        refused(answer, 503, "overloaded")
        assert answer.json["outcome"] == "not_applied"
        assert int(answer.header(b"Retry-After") or 0) >= 1
    monkeypatch.undo()
    assert world.stored() == set()


@pytest_twisted.ensureDeferred
async def test_while_it_stops_new_requests_are_503_shutting_down(world: World) -> None:
    world.daemon.queues.draining = True
    for answer in (await world.push(b"1"), await world.pop()):
        refused(answer, 503, "shutting_down")
        assert answer.json["outcome"] == "not_applied"
        assert int(answer.header(b"Retry-After") or 0) >= 1
    assert world.stored() == set()


@pytest_twisted.ensureDeferred
async def test_what_nobody_foresaw_is_500_with_an_incident_that_is_in_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch, logged_errors: LoggedErrors
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(world.daemon.queues.store, "push", broken)
    answer = await world.push(b"1")
    assert answer.status == 500
    sentence = refused(answer, 500, answer.json["code"])
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    [event] = logged_errors.flush(RuntimeError)
    assert str(event["incident"]) in sentence


@pytest_twisted.ensureDeferred
async def test_a_foreign_host_is_421(connected: World) -> None:
    await connected.push(b"1")
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1"):
        answer = await connected.ask("GET", "/api/popTask/q?wait=0", Host=host)
        assert answer.status == 421
        refused(answer, 421, answer.json["code"])
    for host in ("localhost", "127.0.0.1:1", "LocalHost:3000", "[::1]:3000"):
        assert (await connected.ask("GET", "/api/popTask/empty?wait=0", Host=host)).status == 202
    assert connected.redis("LLEN", "q") == 1


@pytest_twisted.ensureDeferred
async def test_a_page_of_another_site_takes_nothing(connected: World) -> None:
    await connected.push(b"1")
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        for method, path in (("GET", "/api/popTask/q"), ("POST", "/api/pushTask/q")):
            answer = await connected.ask(method, path, None if method == "GET" else b"2", **headers)
            refused(answer, 403, answer.json["code"])
    assert connected.redis("LLEN", "q") == 1

"""A result, an error or a message above its limit: the task still ends as it should."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import Daemon, RedisServer
from tests.talk import Answer, Asked, ask, becomes, history, leased, pushed, running, task

MIB = 1024 * 1024
LONG = json.dumps("x" * (MIB + 1000)).encode()


def say(daemon: Daemon, verb: str, name: str, lease: str, body: bytes, query: str = "") -> Answer:
    return Asked(daemon, "POST", f"/api/{verb}Task/{name}/{lease}{query}", body).answer(20)


def held(daemon: Daemon, name: str, query: str = "result=60") -> tuple[str, str]:
    """A task under a lease: its id, and the lease."""
    pushed(daemon, name, 1, query)
    found = leased(daemon, name)
    return found["id"], found["lease"]


@pytest.mark.every_redis
def test_an_ack_with_too_large_a_result_is_done(served: Daemon, q: str) -> None:
    task_id, lease = held(served, q)
    for _ in range(2):
        answer = say(served, "ack", q, lease, LONG)
        assert answer.ok() == {"success": True, "result": "too_large"}
    row = task(served, q, task_id)
    assert (row["state"], row["result"]) == ("done", None)
    (attempt,) = row["history"]
    assert (attempt["reason"], attempt["result"]) == ("done", "too_large")


def test_a_result_of_just_the_limit_is_kept(served: Daemon, q: str) -> None:
    task_id, lease = held(served, q)
    result = json.dumps("x" * (MIB - 2)).encode()
    assert len(result) == MIB
    assert say(served, "ack", q, lease, result).ok() == {"success": True}
    row = task(served, q, task_id)
    assert row["result"] == "x" * (MIB - 2)
    assert "result" not in row["history"][0]


def test_a_late_ack_with_too_large_a_result_is_reported_both(served: Daemon, q: str) -> None:
    pushed(served, q, 1, "result=60&attempts=1")
    found = leased(served, q, "lease=0.1&wait=0")
    becomes(served, q, dead=1)
    answer = say(served, "ack", q, found["lease"], LONG)
    assert answer.ok() == {"success": True, "late": True, "result": "too_large"}
    assert task(served, q, found["id"])["state"] == "done"


def test_a_large_result_of_a_lost_lease_is_reported_so(served: Daemon, q: str) -> None:
    assert say(served, "ack", q, "a-b", LONG).refused(409, "lease_lost")


def test_what_is_too_large_and_not_json_is_refused_with_its_position(served: Daemon, q: str) -> None:
    _, lease = held(served, q)
    for verb in ("ack", "fail", "extend", "release"):
        say(served, verb, q, lease, LONG[:-1]).refused(400, "bad_json", f"byte {len(LONG) - 1}")
    assert say(served, "ack", q, lease, b"1").ok() == {"success": True}


def test_only_a_body_over_16_mib_is_413(served: Daemon, q: str) -> None:
    _, lease = held(served, q)
    limit = 16 * MIB
    for path in (f"ackTask/{q}/{lease}", f"failTask/{q}/{lease}", f"extendTask/{q}/{lease}", f"ackTasks/{q}"):
        head = f"POST /api/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {limit + 1}\r\n"
        with socket.create_connection(("127.0.0.1", served.port), 10) as connection:
            connection.sendall(head.encode() + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 413")
    answer = say(served, "ack", q, lease, b'"' + b"x" * (limit - 2) + b'"')
    assert answer.ok() == {"success": True, "result": "too_large"}


def test_a_large_result_in_chunks_is_dropped_as_well(served: Daemon, q: str) -> None:
    task_id, lease = held(served, q)
    with socket.create_connection(("127.0.0.1", served.port), 10) as connection:
        connection.sendall(
            f"POST /api/ackTask/{q}/{lease} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            "Expect: 100-continue\r\nConnection: close\r\n\r\n".encode()
        )
        for at in range(0, len(LONG), 65536):
            chunk = LONG[at : at + 65536]
            connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        connection.sendall(b"0\r\n\r\n")
        said = b""
        while data := connection.recv(65536):
            said += data
    assert said.endswith(b'{"success":true,"result":"too_large"}')
    assert history(served, q, task_id) == [(1, "done")]


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        ({"trace": "a" + "x" * 1_400_000 + "end"}, {"trace": "x" * 7997 + "end"}),
        ({"message": "m" * 1_400_000}, {"message": "m" * 1000}),
        ({"type": "t" * 1_400_000, "trace": "short"}, {"type": "t" * 100, "trace": "short"}),
        ("m" * 1_400_000, {"message": "m" * 1000}),
        ({"trace": "\U0001f600" * 400_000}, {"trace": "\U0001f600" * 2000}),
        ({"message": "m" * 1001}, {"message": "m" * 1000}),
    ],
    ids=["trace", "message", "type", "a text", "astral", "a little more"],
)
def test_a_fail_with_too_large_an_error_is_cut(
    served: Daemon, q: str, error: Any, kept: dict[str, str]
) -> None:
    task_id, lease = held(served, q)
    body = json.dumps({"error": error, "retry": False}).encode()
    assert say(served, "fail", q, lease, body).ok() == {"success": True, "state": "dead"}
    (attempt,) = task(served, q, task_id)["history"]
    assert (attempt["reason"], attempt["error"]) == ("failed", {**kept, "truncated": True})
    ask(served, "DELETE", f"/api/queues/{q}/tasks/{task_id}")


def test_an_error_that_is_kept_whole_is_not_marked(served: Daemon, q: str) -> None:
    task_id, lease = held(served, q)
    error = {"type": "t" * 100, "message": "m" * 1000, "trace": "x" * 8000}
    say(served, "fail", q, lease, json.dumps({"error": error, "retry": False}).encode()).ok()
    assert task(served, q, task_id)["history"][0]["error"] == error


def test_a_large_message_of_a_heartbeat_is_cut(served: Daemon, q: str) -> None:
    task_id, lease = held(served, q)
    body = json.dumps({"progress": 0.5, "message": "m" * 1_400_000}).encode()
    assert say(served, "extend", q, lease, body, "?lease=30").ok()["expires_in"] == 30
    row = task(served, q, task_id)
    assert (row["progress"], row["message"]) == (0.5, "m" * 1000)
    say(served, "release", q, lease, b" " * 1_400_000).ok()


def test_many_acks_of_which_one_has_too_large_a_result(served: Daemon, q: str) -> None:
    leases = [held(served, q) for _ in range(3)]
    body = (
        b'{"acks":[{"lease":"%b","result":"\\ud800"},{"lease":"%b","result":%b}],"fails":[{"lease":"%b","error":%b}]}'
        % (leases[0][1].encode(), leases[1][1].encode(), LONG, leases[2][1].encode(), LONG)
    )
    answer = Asked(served, "POST", f"/api/ackTasks/{q}", body).answer(20).ok()
    assert answer["results"] == [
        {"lease": leases[0][1], "status": "done"},
        {"lease": leases[1][1], "status": "done", "result": "too_large"},
        {"lease": leases[2][1], "status": "delayed"},
    ]
    rows = [task(served, q, task_id) for task_id, _ in leases]
    assert rows[0]["result"] == "\ud800"
    assert (rows[1]["result"], rows[1]["history"][0]["result"]) == (None, "too_large")
    assert rows[2]["history"][0]["error"] == {"message": "x" * 1000, "truncated": True}


def test_of_a_lost_lease_nothing_is_said_to_be_dropped(served: Daemon, q: str) -> None:
    body = b'{"acks":[{"lease":"a-b","result":%b}]}' % LONG
    answer = Asked(served, "POST", f"/api/ackTasks/{q}", body).answer(20).ok()
    assert answer["results"] == [{"lease": "a-b", "status": "lease_lost"}]


@pytest.fixture(scope="module")
def small(module_redis_process: RedisServer) -> Iterator[Daemon]:
    with running(
        module_redis_process, MAX_RESULT_BYTES="10", MAX_BATCH_BYTES="5000", MAX_TASK_BYTES="1000"
    ) as one:
        yield one


def test_the_limits_are_settings(small: Daemon, q: str) -> None:
    pushed(small, q, 1, "result=60")
    lease = leased(small, q)["lease"]
    body = b'"%b"' % (b"x" * 5000)
    for path in (f"pushTasks/{q}", f"ackTasks/{q}", f"ackTask/{q}/{lease}", f"failTask/{q}/{lease}"):
        Asked(small, "POST", f"/api/{path}", body).answer().refused(413, "body_too_large", "5000")
    Asked(small, "POST", f"/api/pushTask/{q}", body).answer().refused(413, "body_too_large", "1000")
    assert say(small, "ack", q, lease, b'"123456789"').ok()["result"] == "too_large"
    pushed(small, q, 1, "result=60")
    assert say(small, "ack", q, leased(small, q)["lease"], b'"12345678"').ok() == {"success": True}


def test_a_large_batch_is_pushed_whole(served: Daemon, q: str) -> None:
    tasks = [{"n": n, "half": "\ud800", "text": "x" * 15_000} for n in range(1000)]
    body = json.dumps(tasks).encode()
    assert len(body) > 14 * MIB
    ids = Asked(served, "POST", f"/api/pushTasks/{q}", body).answer(20).ok()["ids"]
    assert len(set(ids)) == 1000
    found = leased(served, q)
    assert (found["id"], found["task"]) == (ids[0], tasks[0])
    ask(served, "DELETE", f"/api/queues/{q}")

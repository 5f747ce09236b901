"""A Redis that answers but cannot be used, and unusual ways to end the daemon."""

from __future__ import annotations

import os
import pty
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from tests.bench import SCHEMA, Bench
from tests.live import Daemon, RedisServer, wait_until
from tests.talk import Asked, ask, counts, fresh, leased, on, pop, push, pushed, running, tasks

every_redis = pytest.mark.every_redis


@pytest.fixture
def served(redis_server: RedisServer) -> Iterator[Daemon]:
    with running(redis_server) as daemon:
        yield daemon


def ready(daemon: Daemon) -> int:
    return ask(daemon, "GET", "/readyz").status


@every_redis
def test_readyz_asks_redis_and_does_not_wait_for_long(served: Daemon, redis_server: RedisServer) -> None:
    assert ready(served) == 200
    redis_server.pause()
    try:
        began = time.monotonic()
        refused = ask(served, "GET", "/readyz").refused(503, "redis_unavailable", "does not answer")
        assert time.monotonic() - began < 3 and refused["outcome"] == "not_applied"
    finally:
        redis_server.resume()
    wait_until(lambda: ready(served) == 200, 10)


@every_redis
def test_a_demoted_master_is_reported_of_and_left(served: Daemon, redis_server: RedisServer) -> None:
    q = fresh()
    pushed(served, q, 1)
    connections = redis_server.command("INFO", "stats").split(b"total_connections_received:")[1].split()[0]
    redis_server.command("SLAVEOF", "127.0.0.1", "1")
    assert push(served, q, 2).json["outcome"] == "not_applied"
    wait_until(lambda: ready(served) == 503, 5)
    assert "READONLY" in served.log
    # A name that leads to the new master by now is looked up again.
    time.sleep(1)
    now = redis_server.command("INFO", "stats").split(b"total_connections_received:")[1].split()[0]
    assert int(now) > int(connections) + 1
    # Not at each new connection.
    assert served.log.count("READONLY You") <= 3
    redis_server.command("SLAVEOF", "NO", "ONE")
    wait_until(lambda: push(served, q, 2).status == 200, 10)
    wait_until(lambda: ready(served) == 200, 10)


@every_redis
def test_a_redis_that_refuses_writes_is_not_ready_and_the_log_says_so(
    served: Daemon, redis_server: RedisServer
) -> None:
    if redis_server.version.startswith("3."):
        pytest.skip("Redis 3.2 lets scripts write all the same")
    redis_server.command("CONFIG", "SET", "min-slaves-to-write", "1")
    refused = push(served, fresh(), 1).refused(503, "redis_unavailable", "NOREPLICAS")
    assert refused["outcome"] == "not_applied"
    assert ready(served) == 503
    assert "NOREPLICAS" in served.log
    redis_server.command("CONFIG", "SET", "min-slaves-to-write", "0")
    assert ready(served) == 200
    assert push(served, fresh(), 1).status == 200


@every_redis
def test_scripts_that_are_forbidden_make_it_not_ready(served: Daemon, redis_server: RedisServer) -> None:
    if int(redis_server.version.split(".")[0]) < 6:
        pytest.skip("this Redis knows no users")
    redis_server.command("ACL", "SETUSER", "default", "-evalsha")
    push(served, fresh(), 1).refused(503, "redis_unavailable", "NOPERM")
    assert ready(served) == 503
    wait_until(lambda: "NOPERM" in served.log, 3)


@every_redis
def test_a_full_redis_is_still_connected_to(served: Daemon, redis_server: RedisServer) -> None:
    """It can only be drained by those who are let in."""
    q = fresh()
    pushed(served, q, "x")
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    redis_server.command("CLIENT", "KILL", "TYPE", "normal")
    wait_until(lambda: ready(served) == 200, 10)
    push(served, q, 1).refused(503, "redis_full")
    assert pop(served, q, "wait=0").status == 200


@every_redis
def test_a_full_redis_knows_what_it_has(served: Daemon, redis_server: RedisServer) -> None:
    q = fresh()
    one = pushed(served, q, "x", "key=k")
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    assert push(served, q, "x", "key=k", Idempotency_Key="i").ok() == {
        "success": True,
        "id": one,
        "duplicate": True,
    }


@every_redis
def test_an_emptied_redis_is_noticed(served: Daemon, redis_server: RedisServer) -> None:
    pushed(served, fresh(), 1)
    redis_server.command("FLUSHALL")
    wait_until(lambda: "have vanished from Redis" in served.log, 6)
    assert redis_server.command("GET", SCHEMA) == b"1"
    time.sleep(2.5)
    assert served.log.count("have vanished") == 1
    assert push(served, fresh(), 1).status == 200


@every_redis
def test_a_redis_that_comes_back_empty_is_noticed(served: Daemon, redis_server: RedisServer) -> None:
    pushed(served, fresh(), 1)
    redis_server.kill()
    redis_server.start()
    wait_until(lambda: "have vanished from Redis" in served.log, 10)


@every_redis
def test_what_redis_refuses_for_a_moment_is_settled_all_the_same(
    served: Daemon, redis_server: RedisServer
) -> None:
    """And the log holds no traceback for each chore meanwhile."""
    if redis_server.version.startswith("3."):
        pytest.skip("Redis 3.2 lets scripts write all the same")
    q = fresh()
    pushed(served, q, 1)
    connection = Asked(served, "GET", f"/api/popTask/{q}?wait=0")
    assert not connection.waits(2)
    redis_server.command("CONFIG", "SET", "min-slaves-to-write", "1")
    push(served, q, 2).refused(503, "redis_unavailable")
    time.sleep(2.5)
    redis_server.command("CONFIG", "SET", "min-slaves-to-write", "0")
    assert connection.answer().status == 200
    wait_until(lambda: push(served, q, 2).status == 200, 5)
    wait_until(lambda: len(redis_server.command("KEYS", f"{{{q}}}l")) == 0, 6)
    assert "Traceback" not in served.log


@pytest_twisted.ensureDeferred
async def test_a_clock_that_was_set_is_followed(module_redis: RedisServer) -> None:
    bench = await Bench(module_redis).start()
    try:
        for wrong in (-600_000, 600_000):
            bench.store.set_clock(bench.now() + wrong)
            await bench.sweep()
            assert abs(bench.store.now_ms() - bench.now()) < 500
    finally:
        await bench.stop()


def test_the_daemons_own_clock_may_be_set(monkeypatch: pytest.MonkeyPatch, module_redis: RedisServer) -> None:
    bench = Bench(module_redis)
    bench.store.set_clock(5_000_000)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert abs(bench.store.now_ms() - 5_000_000) < 1000


# The end


def connected(daemon: Daemon) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=10)


def request(daemon: Daemon, path: str) -> bytes:
    return f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1".encode()


def all_of(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    connection.close()
    return found


def test_new_requests_of_a_stopping_daemon_are_reported(served: Daemon) -> None:
    """On connections that were idle, whatever road they took, as long as something is under way."""
    q = fresh()
    half = connected(served)
    half.sendall(request(served, f"/api/pushTask/{q}")[:-1])
    fresh_one, used, behind = (connected(served) for _ in range(3))
    used.sendall(request(served, f"/api/pushTask/{q}"))
    assert used.recv(65536).startswith(b"HTTP/1.1 200")
    behind.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert behind.recv(65536).startswith(b"HTTP/1.1 200")
    os.kill(served.pid, signal.SIGTERM)
    time.sleep(0.5)
    for connection in (fresh_one, used, behind):
        connection.sendall(request(served, f"/api/pushTask/{q}"))
        told = all_of(connection)
        assert told.startswith(b"HTTP/1.1 503") and b"shutting_down" in told
        assert b"\r\nConnection: close\r\n" in told
    half.sendall(b"1")
    assert all_of(half).startswith(b"HTTP/1.1 503")
    served.wait()


def test_what_the_kernel_has_accepted_is_answered_at_the_end(served: Daemon) -> None:
    parked = Asked(served, "GET", f"/api/popTask/{fresh()}?wait=20")
    assert parked.waits(0.3)
    os.kill(served.pid, signal.SIGSTOP)
    late = [connected(served) for _ in range(20)]
    for connection in late:
        connection.sendall(request(served, f"/api/pushTask/{fresh()}"))
    os.kill(served.pid, signal.SIGTERM)
    os.kill(served.pid, signal.SIGCONT)
    for connection in late:
        assert all_of(connection).split(b" ")[1] in (b"200", b"503")
    drained = parked.answer()
    assert drained.status == 202 and drained.headers["connection"] == "close"
    assert 1 <= int(drained.headers["retry-after"]) <= 3
    served.wait()


@contextmanager
def inherited(hang_up: signal.Handlers) -> Iterator[None]:
    """What is started meanwhile finds SIGHUP like this, whatever these tests were started under."""
    before = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nohup_keeps_it_running(redis_server: RedisServer) -> None:
    with inherited(signal.SIG_IGN), running(redis_server) as daemon:
        os.kill(daemon.pid, signal.SIGHUP)
        time.sleep(0.5)
        assert push(daemon, fresh(), 1).status == 200


def on_a_terminal(name: str) -> tuple[str, ...]:
    """twistd as a shell starts it: the terminal is its controlling one, because it leads its session when it opens it."""
    program = "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.argv[2], sys.argv[2:])"
    twistd = str(Path(sys.executable).parent / "twistd")
    return "python", "-c", program, name, twistd, "-n", "--pidfile="


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_closed_terminal_ends_it_as_sigterm_does(redis_server: RedisServer, processes: str) -> None:
    ours, its = pty.openpty()
    settings = {"REDIS_URL": redis_server.url, "PROCESSES": processes}
    daemon = Daemon((), settings, on_a_terminal(os.ttyname(its)))
    try:
        with inherited(signal.SIG_DFL):
            daemon.start()
        q = fresh()
        pushed(daemon, q, 1)
        parked: Any = Asked(daemon, "GET", f"/api/popTask/{fresh()}?wait=20")
        # Sent by somebody, the signal does not end it.
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: "SIGHUP" in daemon.log)
        assert parked.waits(0.3)
        os.close(its)
        os.close(ours)
        assert parked.answer().status == 202
        daemon.wait()
        assert "the terminal was closed" in daemon.log and "registry has stopped" in daemon.log
    finally:
        daemon.remove()
    with running(redis_server) as daemon:
        assert leased(daemon, q)["task"] == 1


@every_redis
def test_a_start_at_an_empty_redis_that_is_full(redis_server: RedisServer) -> None:
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    with running(redis_server) as daemon:
        push(daemon, fresh(), 1).refused(503, "redis_full")
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
        assert push(daemon, fresh(), 1).status == 200
        wait_until(lambda: redis_server.command("GET", SCHEMA) == b"1", 5)
        assert "vanished" not in daemon.log


@every_redis
def test_a_key_of_another_program_in_the_place_of_the_schema(redis_server: RedisServer) -> None:
    redis_server.command("SET", SCHEMA, "theirs")
    one = Daemon((), {"REDIS_URL": redis_server.url}, ("twistd", "-n", "--pidfile="))
    try:
        one.start(wait=False)
        assert one.wait() == 1
        assert "{registry}schema in this Redis is not the registry's" in one.log
        assert "Traceback" not in one.log
    finally:
        one.remove()


# Of a request that needs Redis more than once


def cut(redis: RedisServer, *commands: str) -> None:
    """End every connection whose last command was one of these."""
    for line in redis.command("CLIENT", "LIST").decode().splitlines():
        said = dict(part.split("=", 1) for part in line.split() if "=" in part)
        if said["cmd"].split("|")[0] in commands:
            redis.command("CLIENT", "KILL", "ID", said["id"])


def kept(redis: RedisServer) -> None:
    """Start it anew, as one that keeps what it has."""
    redis.stop()
    redis.start("--appendonly", "yes", "--appendfsync", "always")


def test_a_push_that_was_stored_is_no_failure_when_redis_goes_while_it_waits(
    redis_server: RedisServer,
) -> None:
    kept(redis_server)
    with running(redis_server) as daemon:
        q = fresh()
        waiting = Asked(daemon, "PUT", f"/api/pushTask/{q}", b"1", {"Prefer": "wait=2"})
        wait_until(lambda: counts(daemon, q) == {"ready": 1})
        redis_server.kill()
        answer = waiting.answer()
        assert answer.status == 202 and answer.json["success"] is True
        where = answer.headers["Location"]
        assert where == f"/api/queues/{q}/tasks/{answer.json['id']}"
        for refused in (ask(daemon, "GET", where), ask(daemon, "GET", f"/api/queues/{q}/tasks")):
            refused.refused(503, "redis_unavailable")
        assert "Unhandled error" not in daemon.log and "FirstError" not in daemon.log
        redis_server.start("--appendonly", "yes", "--appendfsync", "always")
        # The connection of the look-ups comes back by itself, maybe a moment after that of the scripts.
        wait_until(lambda: ask(daemon, "GET", where).status == 200)
        assert ask(daemon, "GET", where).ok()["state"] == "ready"


def test_a_policy_that_was_stored_is_not_said_to_be_not_applied(redis_server: RedisServer) -> None:
    """The rules are written over one connection, and the queue is read over others: those are cut, and cannot come back."""
    with running(redis_server) as daemon:
        clients = redis_server.command("CLIENT", "LIST").decode().splitlines()
        ours = [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in clients]
        # Those of the scripts and of the notices stay, and the one that cuts is the third.
        with redis_server.connection() as command:
            command("CONFIG", "SET", "maxclients", 3)
            for one in ours:
                if one["cmd"] not in ("evalsha", "subscribe", "client", "client|list"):
                    command("CLIENT", "KILL", "ID", one["id"])
            answer = ask(daemon, "PATCH", f"/api/queues/{fresh()}", {"lease": 5})
            assert answer.refused(503, "redis_unavailable")["outcome"] == "unknown"


@every_redis
def test_a_lost_notice_of_an_end_costs_a_second_at_most(served: Daemon, redis_server: RedisServer) -> None:
    q = fresh()
    waiting = Asked(served, "PUT", f"/api/pushTask/{q}", b"1", {"Prefer": "wait=30"})
    wait_until(lambda: counts(served, q) == {"ready": 1})
    looking = Asked(served, "GET", f"/api/queues/{q}/tasks/{tasks(served, q)[0]['id']}?wait=30")
    lease = leased(served, q)["lease"]
    assert waiting.waits(0.1)
    cut(redis_server, "subscribe")
    on(served, "ack", q, lease, b"7").ok()
    assert waiting.answer(15).json["result"] == 7
    assert looking.answer(15).json["state"] == "done"


@every_redis
def test_a_bulk_retry_ends_although_workers_fail_at_once(served: Daemon) -> None:
    q = fresh()
    ask(served, "PUT", f"/api/pushTasks/{q}?attempts=1000", [1] * 600).ok()
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            given = ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=1&lease=30").json["tasks"]
            fails = [{"lease": one["lease"], "retry": False} for one in given]
            ask(served, "POST", f"/api/ackTasks/{q}", {"fails": fails}).ok()

    workers = [threading.Thread(target=work) for _ in range(2)]
    try:
        for worker in workers:
            worker.start()
        wait_until(lambda: counts(served, q) == {"dead": 600}, 20)
        retried = Asked(served, "POST", f"/api/queues/{q}/retry").answer(20).ok()
        assert retried == {"success": True, "count": 600, "skipped": 0}
    finally:
        over.set()
        for worker in workers:
            worker.join()

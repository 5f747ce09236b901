"""The daemon as clients and operators see it: real processes, sockets and signals."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.links import A_SENTENCE
from tests.live import Daemon, RedisServer, wait_until
from tests.talk import Answer, Asked

every_redis = pytest.mark.every_redis
SEED_WORKER = Path(__file__).parent / "workers" / "seed_worker.js"


def pop(daemon: Daemon, name: str = "q", wait: float | None = None) -> Asked:
    query = "" if wait is None else f"?wait={wait}"
    return Asked(daemon, "GET", f"/api/popTask/{name}{query}")


def push(daemon: Daemon, task: Any, name: str = "q", seconds: float = 10) -> Answer:
    return Asked(daemon, "PUT", f"/api/pushTask/{name}", json.dumps(task).encode()).answer(seconds)


def pushed(daemon: Daemon, *tasks: Any, name: str = "q") -> None:
    for task in tasks:
        answer = push(daemon, task, name)
        assert answer.status == 200, answer.body


def settle(daemon: Daemon) -> None:
    """What was sent on other connections before has been read by the daemon, and carried out by Redis."""
    for _ in range(3):
        assert Asked(daemon, "GET", "/healthz").answer().status == 200
        time.sleep(0.1)


def parked(daemon: Daemon, count: int, name: str = "q", wait: float = 50) -> list[Asked]:
    polls = [pop(daemon, name, wait) for _ in range(count)]
    settle(daemon)
    return polls


def stored(redis: RedisServer) -> set[bytes]:
    """Every key that is left of tasks and queues; not what the daemons keep about themselves."""
    keys = set(redis.command("KEYS", "*"))
    return {key for key in keys if not key.startswith(b"{registry}") or key == b"{registry}index"}


def nothing_is_left(redis: RedisServer) -> None:
    wait_until(lambda: not stored(redis), 5, "an empty Redis")


@pytest.fixture
def served(daemon: StartDaemon, redis_server: RedisServer) -> Daemon:
    """A daemon on ``redis_server``."""
    return daemon(redis=redis_server, env={"REDIS_WAIT": "0.5"}).redis_ready()


@pytest.fixture
def pair(daemon: StartDaemon, redis_server: RedisServer) -> tuple[Daemon, Daemon]:
    """Two daemons on one Redis."""
    return daemon(redis=redis_server).redis_ready(), daemon(redis=redis_server).redis_ready()


@every_redis
def test_a_task_goes_in_and_out_and_leaves_nothing(served: Daemon, redis_server: RedisServer) -> None:
    answer = push(served, {"zone": "example.org"})
    assert (answer.status, answer.json["success"]) == (200, True)
    popped = pop(served).answer()
    assert popped.body == b'{"task":{"zone": "example.org"}}'
    assert popped.headers["Task-Id"] == answer.json["id"]
    nothing_is_left(redis_server)
    assert pop(served, wait=0).answer().status == 202


@every_redis
def test_200_parked_pollers_do_not_make_a_push_wait(served: Daemon, redis_server: RedisServer) -> None:
    polls = parked(served, 200)
    # In the program of 2018 a push waited for a connection that the pollers held, up to 10 s.
    assert push(served, "elsewhere", "other", seconds=5).status == 200
    assert pop(served, "other").answer(5).task == "elsewhere"
    assert push(served, 1, seconds=5).status == 200
    assert polls[0].answer(5).task == 1
    assert polls[1].waits()
    assert redis_server.command("CLIENT", "LIST").count(b"\n") <= 10
    pushed(served, *range(2, 201))
    # TaskFilter of two requests sent at the same time is read first is the kernel's word: their order is proven on a clock.
    assert sorted(poll.answer().task for poll in polls[1:]) == list(range(2, 201))
    nothing_is_left(redis_server)


@every_redis
def test_after_10_hang_ups_20_of_20_are_delivered(served: Daemon, redis_server: RedisServer) -> None:
    gone = parked(served, 10)
    there = parked(served, 1)[0]
    for at, poll in enumerate(gone):
        poll.hang_up(reset=at % 2 == 0)
    settle(served)
    pushed(served, *range(20))
    assert there.answer().task == 0
    assert [pop(served, wait=2).answer().task for _ in range(19)] == list(range(1, 20))
    nothing_is_left(redis_server)


@every_redis
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_hang_up_while_the_pop_is_under_way_puts_the_task_back_at_the_head(
    served: Daemon, redis_server: RedisServer, reset: bool
) -> None:
    pushed(served, 1, 2)
    redis_server.pause()
    gone = pop(served)
    time.sleep(0.3)
    gone.hang_up(reset)
    time.sleep(0.3)
    redis_server.resume()
    settle(served)
    wait_until(lambda: redis_server.command("LLEN", "q") == 2, 5, "the task to come back")
    first = pop(served).answer()
    assert (first.task, first.headers["Task-Attempt"]) == (1, "1")
    assert pop(served).answer().task == 2
    nothing_is_left(redis_server)


def test_a_task_that_was_put_back_goes_to_the_next_waiting_poller(
    served: Daemon, redis_server: RedisServer
) -> None:
    pushed(served, 1)
    redis_server.pause()
    gone = pop(served)
    time.sleep(0.3)
    gone.hang_up(reset=False)
    there = pop(served, wait=20)
    time.sleep(0.3)
    redis_server.resume()
    assert there.answer().task == 1


@every_redis
def test_a_push_through_one_daemon_wakes_a_poller_of_another(pair: tuple[Daemon, Daemon]) -> None:
    one, two = pair
    first, second = parked(two, 2, wait=30)
    pushed(one, 1)
    assert first.answer(5).task == 1
    assert second.waits()
    pushed(one, 2)
    assert second.answer(5).task == 2


@every_redis
def test_order_holds_across_daemons(pair: tuple[Daemon, Daemon]) -> None:
    for at in range(40):
        pushed(pair[at % 2], at)
    assert [pop(pair[at // 3 % 2]).answer().task for at in range(40)] == list(range(40))


@every_redis
def test_plain_json_that_another_program_pushes_reaches_a_parked_poller(
    served: Daemon, redis_server: RedisServer
) -> None:
    polls = parked(served, 2, wait=30)
    redis_server.command("LPUSH", "q", '{"raw":  1}', "nonsense", "[2]")
    first = polls[0].answer(5)
    assert first.body == b'{"task":{"raw":  1}}'
    assert first.headers["Task-Id"]
    assert polls[1].answer(5).task == [2]
    wait_until(lambda: redis_server.command("HVALS", "{q}t") == [b"nonsense"], 5, "the rest to be done")
    assert redis_server.command("ZCARD", "{q}x") == 1  # it is among the dead


@every_redis
def test_redis_may_end_and_come_back_while_polls_are_parked(
    served: Daemon, redis_server: RedisServer
) -> None:
    polls = parked(served, 5, wait=50)
    redis_server.kill()
    for asked in (push(served, 0), pop(served, "other", wait=1).answer(5)):
        assert asked.status == 503
        assert asked.json["code"] == "redis_unavailable"
        assert asked.json["outcome"] == "not_applied"
        assert A_SENTENCE.fullmatch(asked.json["error"]), asked.json
        assert int(asked.headers["Retry-After"]) >= 1
    assert Asked(served, "GET", "/healthz").answer().status == 200
    unready = Asked(served, "GET", "/readyz").answer()
    assert unready.status == 503
    assert A_SENTENCE.fullmatch(unready.json["error"]), unready.json
    assert polls[0].waits(1)
    redis_server.start()
    served.redis_ready()
    pushed(served, *range(5))
    assert [poll.answer(5).task for poll in polls] == list(range(5))
    nothing_is_left(redis_server)


@every_redis
def test_a_flushed_script_cache_goes_unnoticed(served: Daemon, redis_server: RedisServer) -> None:
    [poll] = parked(served, 1)
    redis_server.command("SCRIPT", "FLUSH")
    pushed(served, 1, 2)
    assert poll.answer().task == 1
    redis_server.command("SCRIPT", "FLUSH")
    assert pop(served).answer().task == 2
    nothing_is_left(redis_server)


@every_redis
def test_a_stopped_redis_is_503_and_carries_nothing_out_later(
    served: Daemon, redis_server: RedisServer
) -> None:
    [poll] = parked(served, 1, "parked")
    redis_server.pause()
    asked = [Asked(served, "PUT", "/api/pushTask/q", b"%d" % at) for at in range(5)]
    asked.append(pop(served, "empty", wait=2))
    outcomes = []
    for request in asked:
        answer = request.answer(6)  # a call to Redis has 3 s
        assert answer.status == 503
        assert answer.json["code"] == "redis_unavailable"
        assert answer.headers["Retry-After"]
        outcomes.append(answer.json["outcome"])
    # At most two calls are under way; what was gathering behind them has never been sent.
    assert outcomes[0] == "unknown"
    assert set(outcomes) <= {"unknown", "not_applied"}
    later = push(served, 6, seconds=3)
    assert (later.status, later.json["outcome"]) == (503, "not_applied")
    redis_server.resume()
    served.redis_ready()
    settle(served)
    assert stored(redis_server) == set()
    pushed(served, "new", name="parked")
    assert poll.answer(5).task == "new"


@every_redis
def test_a_full_redis_refuses_pushes_and_is_drained_by_pops(
    served: Daemon, redis_server: RedisServer
) -> None:
    pushed(served, *range(10))
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    refused = push(served, "no")
    assert refused.status == 503
    assert (refused.json["code"], refused.json["outcome"]) == ("redis_full", "not_applied")
    assert [pop(served).answer().task for _ in range(10)] == list(range(10))
    nothing_is_left(redis_server)


def test_sigterm_answers_200_parked_polls_and_a_second_one_is_harmless(
    served: Daemon, redis_server: RedisServer
) -> None:
    polls = parked(served, 200)
    os.kill(served.pid, signal.SIGTERM)
    os.kill(served.pid, signal.SIGTERM)
    for poll in polls:
        answer = poll.answer(10)
        assert (answer.status, answer.body) == (202, b'{"error":"No tasks available"}')
        assert answer.headers["Connection"].lower() == "close"
    # twistd ends itself by the signal it got once everything has been stopped.
    assert served.wait(20) in (0, -signal.SIGTERM)
    assert "registry has stopped" in served.log
    assert "Traceback" not in served.log
    nothing_is_left(redis_server)
    with pytest.raises(ConnectionRefusedError):
        pop(served)


def test_requests_under_way_at_sigterm_are_finished(served: Daemon, redis_server: RedisServer) -> None:
    pushed(served, "old", name="other")
    redis_server.pause()
    one, two = Asked(served, "PUT", "/api/pushTask/q", b"1"), pop(served, "other")
    time.sleep(0.3)
    os.kill(served.pid, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(served.pid, signal.SIGTERM)
    redis_server.resume()
    assert one.answer().status == 200
    assert two.answer().task == "old"
    served.wait(20)
    assert "Traceback" not in served.log
    assert stored(redis_server) == {b"q", b"{q}t", b"{registry}index"}  # and "old" was confirmed


def test_keys_of_a_newer_daemon_end_the_start_with_one_sentence(
    daemon: StartDaemon, redis_server: RedisServer
) -> None:
    redis_server.command("SET", "{registry}schema", "99")
    one = daemon(redis=redis_server, wait=False)
    assert one.wait(20) == 1
    assert "registry stops: The keys in this Redis are of version 99" in one.log
    assert "Traceback" not in one.log


@every_redis
def test_a_killed_daemon_with_its_private_redis_keeps_everything(
    daemon: StartDaemon, redis_binary: str
) -> None:
    one = daemon(env={"REDIS_SERVER": redis_binary}).redis_ready()
    pushed(one, *range(50))
    assert pop(one).answer().task == 0
    time.sleep(0.2)  # its confirm is out within a tenth of a second
    [poll] = parked(one, 1, "idle")
    one.kill9()
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        poll.answer()
    one.start().redis_ready()
    assert [pop(one).answer().task for _ in range(49)] == list(range(1, 50))
    assert pop(one, wait=0).answer().status == 202
    one.terminate()
    one.start().redis_ready()
    assert pop(one, wait=0).answer().status == 202


class Client(threading.Thread):
    """Pops over one connection until ``done``; when a daemon is gone it goes on with the other one."""

    def __init__(self, ports: list[int], got: list[int], done: Callable[[], bool]) -> None:
        super().__init__(daemon=True)
        self.ports = ports
        self.got = got
        self.done = done
        self.failures: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=20)
        while not self.done():
            try:
                connection.request("GET", "/api/popTask/q?wait=1")
                answer = Answer(connection.getresponse())
            except (OSError, http.client.HTTPException):
                connection.close()
                self.ports.reverse()
                connection = http.client.HTTPConnection("127.0.0.1", self.ports[0], timeout=20)
                time.sleep(0.05)
                continue
            if answer.status == 200:
                self.got.append(answer.task)
            elif answer.status != 202:
                self.failures.append(f"{answer.status} {answer.body!r}")
        connection.close()


@every_redis
@pytest.mark.slow
@pytest.mark.timeout(120)
def test_1000_of_1000_are_delivered_although_a_daemon_is_killed(
    pair: tuple[Daemon, Daemon], redis_server: RedisServer
) -> None:
    one, two = pair
    everything = set(range(1000))
    connection = http.client.HTTPConnection("127.0.0.1", two.port, timeout=20)
    for at in everything:
        connection.request("PUT", "/api/pushTask/q", str(at))
        assert Answer(connection.getresponse()).status == 200
    connection.close()
    got: list[int] = []
    # What the killed daemon held comes back after the 30 s of a hand-over.
    end = time.monotonic() + 45
    clients = [
        Client(
            [one.port, two.port] if at % 2 else [two.port, one.port],
            got,
            lambda: len(set(got)) == 1000 or time.monotonic() > end,
        )
        for at in range(8)
    ]
    for client in clients:
        client.start()
    wait_until(lambda: len(got) > 300, 30, "300 tasks delivered")
    one.kill9()
    for client in clients:
        client.join(60)
    assert set(got) == everything
    assert [client.failures for client in clients if client.failures] == []
    # What was delivered and not confirmed yet when the daemon died comes a second time.
    wait_until(lambda: not redis_server.command("EXISTS", "{q}l"), 45, "the end of every hand-over")
    again = []
    while (answer := pop(two, wait=0).answer()).status == 200:
        again.append((answer.task, answer.headers["Task-Attempt"]))
    assert {attempt for _, attempt in again} <= {"2"}
    assert len(got) + len(again) < 1100
    nothing_is_left(redis_server)


@pytest.fixture
def seed_worker(served: Daemon) -> Iterator[subprocess.Popen[str]]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: the worker of 2018 is a Node program")
    worker = subprocess.Popen(
        [node, str(SEED_WORKER), "zoneCheck"],
        env={"PATH": os.environ["PATH"], "REGISTRY_URL": served.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()
        if worker.stdout is not None:
            worker.stdout.close()


def test_a_node_worker_of_2018_works_unchanged(
    daemon: StartDaemon, served: Daemon, redis_server: RedisServer, seed_worker: subprocess.Popen[str]
) -> None:
    for _ in range(10):
        request = str(uuid.uuid4())
        results = [pop(served, f"queue_results:{request}", wait=20)]
        pushed(served, {"uuid": request, "steps": 3, "zone": "bücher.example"}, name="zoneCheck")
        for step in (1, 2, 3):
            assert results[-1].answer(10).task == {"step": step, "of": 3, "zone": "bücher.example"}
            if step < 3:
                results.append(pop(served, f"queue_results:{request}", wait=20))
    nothing_is_left(redis_server)
    # It sits out a restart: a cut connection and a 503 are both "try again".
    served.terminate()
    served.start().redis_ready()
    request = str(uuid.uuid4())
    pushed(served, {"uuid": request, "steps": 1, "zone": "."}, name="zoneCheck")
    assert pop(served, f"queue_results:{request}", wait=20).answer(15).task["step"] == 1
    assert seed_worker.poll() is None
    seed_worker.kill()
    output, _ = seed_worker.communicate()
    assert output.count('task ["task"]') == 11  # no other key in the body
    assert "unexpected" not in output

"""Redis is away for a moment, and clients of 2018, which never retry, do not notice."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.live import Daemon, RedisServer, processes_in, wait_until
from tests.talk import Answer, Asked, ask, counts, fresh, leased, on, policy, poll, pop, push, pushed, running

every_redis = pytest.mark.every_redis
KEPT = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(scope="module")
def kept_process(redis_binary: str) -> Iterator[RedisServer]:
    server = RedisServer(redis_binary)
    try:
        yield server.start(*KEPT)
    finally:
        server.remove()


@pytest.fixture(scope="module")
def served_process(kept_process: RedisServer) -> Iterator[Daemon]:
    with running(kept_process) as one:
        yield one


@pytest.fixture
def kept(kept_process: RedisServer) -> RedisServer:
    """A Redis that comes back with what it had. It runs."""
    if not kept_process.running:
        kept_process.start()
    return kept_process


@pytest.fixture
def served(served_process: Daemon, kept: RedisServer) -> Daemon:
    """A daemon on it, ready."""
    return served_process.redis_ready()


class Clients:
    """Programs of 2018: workers in a loop without a pause, and a producer that never tries again."""

    def __init__(self, daemon: Daemon, workers: int = 4) -> None:
        self.daemon = daemon
        self.queue = fresh()
        self.got: list[Any] = []
        self.pushed: list[Any] = []
        self.refused: list[Any] = []
        self.polls: Counter[int] = Counter()
        self.between = threading.Lock()  # held while a push is under way
        self._pushing = self._working = True
        self._threads = [threading.Thread(target=self._work) for _ in range(workers)]
        self._threads.append(threading.Thread(target=self._produce))
        for thread in self._threads:
            thread.start()

    def _ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        return Asked(self.daemon, method, path, body).answer(30)

    def _work(self) -> None:
        while self._working:
            answer = self._ask("GET", f"/api/popTask/{self.queue}")
            self.polls[answer.status] += 1
            if answer.status == 200:
                self.got.append(answer.json["task"])

    def _produce(self) -> None:
        number = 0
        while self._pushing:
            number += 1
            with self.between:
                answer = self._ask("PUT", f"/api/pushTask/{self.queue}", b"%d" % number)
            (self.pushed if answer.status == 200 else self.refused).append(
                number if answer.status == 200 else answer.json
            )
            time.sleep(0.02)

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing is on its way to Redis: whatever was is unknown, and that is another matter."""
        wait_until(lambda: len(self.pushed) > 3)
        with self.between:
            wait_until(lambda: len(self.got) >= len(self.pushed))
            time.sleep(0.2)
            yield

    def go_on(self) -> None:
        """Redis is back: work goes on."""
        before = len(self.got)
        wait_until(lambda: len(self.got) > before + 10, 20)

    def end(self) -> None:
        self._pushing = False
        self._threads[-1].join(20)
        wait_until(lambda: len(self.got) >= len(self.pushed))
        self._working = False
        for _ in self._threads[:-1]:
            push(self.daemon, self.queue, "end")
        for thread in self._threads:
            thread.join(20)


def killed(redis: RedisServer) -> None:
    redis.kill()
    time.sleep(1.2)
    redis.start()


def ended(redis: RedisServer) -> None:
    redis.stop()
    redis.start()


def stopped(redis: RedisServer) -> None:
    redis.pause()
    time.sleep(1.2)
    redis.resume()


def loading(redis: RedisServer) -> None:
    if int(redis.version.split(".")[0]) < 7:
        pytest.skip("this Redis cannot be told to load slowly")
    fill = "for i = 1, 3000 do redis.call('SET', 'other:' .. i, i) end"
    redis.command("EVAL", fill, 0)
    redis.kill()
    # Between the keys it answers, once in so many bytes.
    slow = ("--key-load-delay", "600", "--loading-process-events-interval-bytes", "1024")
    redis.start(*KEPT, *slow)
    redis.arguments = KEPT


@pytest.mark.parametrize("away", [killed, ended, stopped, loading])
def test_programs_of_2018_lose_nothing_and_do_not_spin(
    served: Daemon, kept: RedisServer, away: Callable[[RedisServer], None]
) -> None:
    daemon = served
    clients = Clients(daemon)
    try:
        with clients.at_rest():
            before = sum(clients.polls.values())
            gone = threading.Thread(target=away, args=(kept,))
            gone.start()
            if away is not stopped:
                wait_until(lambda: ask(daemon, "GET", "/readyz").status == 503)
        gone.join(30)
        # A worker asks again only when it was given a task.
        assert sum(clients.polls.values()) - before <= len(clients.got) + 4
        clients.go_on()
    finally:
        clients.end()
    assert not clients.refused
    assert sorted(set(clients.got) - {"end"}) == clients.pushed
    assert set(clients.polls) <= {200, 202}
    assert sum(clients.polls.values()) <= len(clients.pushed) + 20


def named(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def test_a_private_redis_that_is_killed_is_not_noticed_either(daemon: StartDaemon) -> None:
    one = daemon().redis_ready()
    clients = Clients(one)
    try:
        with clients.at_rest():
            [server] = [pid for pid in processes_in(one.data_dir) if "-server" in named(pid)]
            os.kill(server, signal.SIGKILL)
            wait_until(lambda: ask(one, "GET", "/readyz").status == 503)
        clients.go_on()
    finally:
        clients.end()
    assert not clients.refused
    assert sorted(set(clients.got) - {"end"}) == clients.pushed
    assert sum(clients.polls.values()) <= len(clients.pushed) + 20


def test_a_redis_that_hangs_for_long_loses_nothing_that_was_answered(kept: RedisServer) -> None:
    """What was sent to it is unknown after 3 s; what came later is held, and then not applied."""
    with running(kept, REDIS_WAIT="1") as daemon:
        clients = Clients(daemon)
        try:
            with clients.at_rest():
                before = sum(clients.polls.values())
                kept.pause()
            wait_until(lambda: len(clients.refused) >= 3, 20)
            assert sum(clients.polls.values()) - before <= len(clients.got) + 4
            kept.resume()
            clients.go_on()
        finally:
            clients.end()
        assert [one["outcome"] for one in clients.refused[:2]] == ["unknown", "not_applied"]
        assert {one["code"] for one in clients.refused} == {"redis_unavailable"}
        assert set(clients.pushed) <= set(clients.got)
        assert set(clients.polls) <= {200, 202}


def gone(daemon: Daemon, redis: RedisServer) -> None:
    redis.kill()
    wait_until(lambda: ask(daemon, "GET", "/readyz").status == 503)


CHANGES = {
    "push": ("PUT", "pushTask/{q}", b"1"),
    "pushTasks": ("PUT", "pushTasks/{q}", b"[1,2]"),
    "ack": ("POST", "ackTask/{q}/{0}", b"7"),
    "fail": ("POST", "failTask/{q}/{1}", b"{}"),
    "release": ("POST", "releaseTask/{q}/{2}", b""),
    "extend": ("POST", "extendTask/{q}/{3}?lease=500", b""),
    "ackTasks": ("POST", "ackTasks/{q}", b'{"acks":["{4}"],"fails":[{"lease":"{5}"}]}'),
    "policy": ("PATCH", "queues/{other}", b'{"max_length":7}'),
    "cancel": ("DELETE", "queues/{q}/tasks/{id}", b""),
}


def changes(q: str, other: str, leases: list[dict[str, Any]]) -> dict[str, tuple[str, str, bytes]]:
    def filled(text: str) -> str:
        text = text.replace("{q}", q).replace("{other}", other).replace("{id}", leases[6]["id"])
        for at, lease in enumerate(leases):
            text = text.replace(f"{{{at}}}", lease["lease"])
        return text

    return {
        what: (method, "/api/" + filled(path), filled(body.decode()).encode())
        for what, (method, path, body) in CHANGES.items()
    }


@every_redis
def test_changes_are_held_and_carried_out(served: Daemon, kept: RedisServer) -> None:
    daemon = served
    q, other = fresh(), fresh()
    for at in range(7):
        pushed(daemon, q, at, "backoff=0&attempts=2")
    asks = changes(q, other, [leased(daemon, q, "lease=100") for _ in range(7)])
    gone(daemon, kept)
    held = {what: Asked(daemon, *request) for what, request in asks.items()}
    assert all(request.waits(0.05) for request in held.values())
    kept.start()
    reply = {what: request.answer(20).ok() for what, request in held.items()}
    assert reply["ack"] == {"success": True}
    assert reply["fail"]["state"] == "delayed" or reply["fail"]["state"] == "ready"
    assert reply["extend"]["expires_in"] == 500
    assert reply["ackTasks"]["results"][0]["status"] == "done"
    assert reply["policy"]["policy"]["max_length"] == 7
    assert reply["cancel"]["how"] == "marked"
    wait_until(lambda: counts(daemon, q) == {"ready": 6, "leased": 2, "done": 2}, 5)


def test_changes_that_were_held_too_long_are_not_applied(kept: RedisServer) -> None:
    with running(kept, REDIS_WAIT="1") as daemon:
        q, other = fresh(), fresh()
        for at in range(7):
            pushed(daemon, q, at)
        asks = changes(q, other, [leased(daemon, q, "lease=100") for _ in range(7)])
        gone(daemon, kept)
        paths = (
            "popTask/a?wait=3&worker=a",
            "popTask/b?wait=3&lease=5&worker=b",
            "popTasks/a,b?wait=3&worker=c",
        )
        polls = [Asked(daemon, "GET", f"/api/{path}{name}") for path in paths for name in ("", "2")]
        held = [Asked(daemon, *request) for request in asks.values() for _ in range(2)]
        assert all(request.waits(0.01) for request in [*held, *polls])
        for request in held:
            refused = request.answer().refused(503, "redis_unavailable")
            assert refused["outcome"] == "not_applied", refused
        # A poll waits for as long as it wanted to.
        assert all(request.waits(0.01) for request in polls)
        for request in polls:
            assert request.answer().refused(503, "redis_unavailable")["outcome"] == "not_applied"
        pop(daemon, "a", "wait=0").refused(503, "redis_unavailable")
        kept.start()
        daemon.redis_ready()
        assert counts(daemon, q) == {"leased": 7} and counts(daemon, other) == {}


@every_redis
def test_polls_of_every_kind_wait_and_are_served_in_their_order(served: Daemon, kept: RedisServer) -> None:
    daemon = served
    q, plain, many = fresh(), fresh(), fresh()
    pushed(daemon, q, "worked on")
    lease = leased(daemon, q, "lease=100")["lease"]
    gone(daemon, kept)
    first = [poll(daemon, plain, "wait=20") for _ in range(2)]
    several = Asked(daemon, "GET", f"/api/popTasks/{many},{fresh()}?wait=20&count=2")
    keyed = [poll(daemon, q, f"wait=20&lease=50&ack={lease}", Idempotency_Key="k") for _ in range(2)]
    held = [Asked(daemon, "PUT", f"/api/pushTask/{plain}", b"%d" % at) for at in range(2)]
    held += [Asked(daemon, "PUT", f"/api/pushTask/{to}", b"3") for to in (q, many)]
    assert several.waits(0.1)
    kept.start()
    for one in held:
        one.answer().ok()
    assert sorted(one.answer().task for one in first) == [0, 1]
    assert [one["task"] for one in several.answer().ok()["tasks"]] == [3]
    again = [one.answer() for one in keyed]
    assert [one.headers["Registry-Ack"] for one in again] == ["done"] * 2
    assert again[0].ok()["lease"] == again[1].ok()["lease"]


@every_redis
def test_a_held_push_is_stored_once_with_its_key_and_waited_for(served: Daemon, kept: RedisServer) -> None:
    daemon = served
    q = fresh()
    gone(daemon, kept)
    twins = [Asked(daemon, "PUT", f"/api/pushTask/{q}", b"1", {"Idempotency-Key": "k"}) for _ in range(2)]
    waiting = Asked(daemon, "PUT", f"/api/pushTask/{q}", b"2", {"Prefer": "wait=20"})
    assert waiting.waits(0.2)
    kept.start()
    first, second = [twin.answer() for twin in twins]
    assert first.ok()["id"] == second.ok()["id"]
    assert {one.headers.get("Idempotency-Replayed") for one in (first, second)} == {None, "true"}
    for _ in range(2):
        one = leased(daemon, q, "lease=30&wait=5")
        on(daemon, "ack", q, one["lease"], b'"done"').ok()
    assert waiting.answer().ok()["result"] == "done"


def test_a_client_that_hangs_up_meanwhile_has_pushed(served: Daemon, kept: RedisServer) -> None:
    daemon = served
    q = fresh()
    gone(daemon, kept)
    for _ in range(2):
        impatient = Asked(daemon, "PUT", f"/api/pushTask/{q}", b"1")
        assert impatient.waits(0.1)
        impatient.hang_up()
    kept.start()
    wait_until(lambda: ask(daemon, "GET", f"/api/queues/{q}").status == 200)
    wait_until(lambda: counts(daemon, q) == {"ready": 2})


def test_a_daemon_that_stops_does_not_wait_for_redis(kept: RedisServer) -> None:
    with running(kept, REDIS_WAIT="60") as daemon:
        gone(daemon, kept)
        held = [Asked(daemon, "PUT", "/api/pushTask/q", b"1") for _ in range(4)]
        held += [Asked(daemon, "POST", "/api/ackTask/q/a-b") for _ in range(4)]
        assert all(one.waits(0.1) for one in held)
        parked = poll(daemon, "q", "wait=50")
        os.kill(daemon.pid, signal.SIGTERM)
        for one in held:
            assert one.answer(20).json["outcome"] == "not_applied"
        assert parked.answer(20).status == 202
        daemon.wait()


def test_the_rules_of_a_queue_are_reported_as_soon_as_redis_is_back(
    served: Daemon, kept: RedisServer
) -> None:
    """They are changed over one connection, and read over another, which comes back by itself."""
    daemon = served
    q = fresh()
    for length in range(1, 4):
        gone(daemon, kept)
        asked = Asked(daemon, "PATCH", f"/api/queues/{q}", b'{"max_length":%d}' % length)
        assert asked.waits(0.1)
        kept.start()
        assert asked.answer().ok()["policy"]["max_length"] == length
    assert policy(daemon, q)["policy"] == {"max_length": 3}


def test_a_worker_that_polls_again_meanwhile_ends_the_poll_that_it_left_behind(
    served: Daemon, kept: RedisServer, q: str
) -> None:
    older = poll(served, q, f"wait=20&lease=60&worker={q}")
    kept.kill()
    newer = poll(served, q, f"wait=20&lease=60&worker={q}")
    assert older.answer(5).headers["Registry-Worker"] == "replaced"
    kept.start()
    pushed(served.redis_ready(), q, 1)
    assert newer.answer().ok()["attempt"] == 1

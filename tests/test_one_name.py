"""Two live workers with the same ``worker=`` name: both are served, and no task is put back because of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator

import pytest

from tests.conftest import StartDaemon
from tests.live import Daemon, RedisServer, wait_until
from tests.talk import Asked, ask, fresh, policy, poll, pushed, task
from tests.test_many import is_replaced

pytestmark = pytest.mark.every_redis


class Worker:
    """One that polls again as soon as it is answered, whatever the answer says, until it is stopped."""

    def __init__(self, daemon: Daemon, path: str) -> None:
        self.daemon, self.path = daemon, path
        self.polls: list[tuple[float, bool]] = []  # when each was answered, and whether it was replaced
        self.tasks: list[int] = []
        self.attempts: list[int] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        # A hard stop for what would spin for ever.
        while not self._stopped and len(self.polls) < 20_000:
            connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", self.path)
                answer = connection.getresponse()
                body = json.loads(answer.read())
                self.polls.append((time.monotonic(), answer.headers["Registry-Worker"] == "replaced"))
                for one in body.get("tasks", [body] if "task" in body else []):
                    self.tasks.append(one["task"])
                    self.attempts.append(one["attempt"])

    def stop(self) -> None:
        self._stopped = True

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def working(*workers: tuple[Daemon, str]) -> Iterator[list[Worker]]:
    started = [Worker(*one) for one in workers]
    try:
        yield started
    finally:
        for one in started:
            one.stop()
        for one in started:
            one.join()


@pytest.mark.parametrize("verb", ["popTask", "popTasks"])
@pytest.mark.parametrize("queues", [1, 2])
@pytest.mark.parametrize("daemons", [1, 2])
def test_both_are_served_and_wait_for_their_tasks(
    pair: tuple[Daemon, Daemon], verb: str, queues: int, daemons: int
) -> None:
    names = [fresh() for _ in range(queues)]
    at = [pair[0], pair[daemons - 1]]
    paths = [f"/api/{verb}/{name}?wait=1&lease=60&worker={names[0]}" for name in (names[0], names[-1])]
    began = time.monotonic()
    with working(*zip(at, paths, strict=True)) as workers:
        time.sleep(1)
        ids = [pushed(at[0], names[n % queues], n) for n in range(60)]
        wait_until(lambda: sum(len(one.tasks) for one in workers) >= 60, 20)
    taken = time.monotonic() - began
    assert sorted(n for one in workers for n in one.tasks) == list(range(60))
    assert {n for one in workers for n in one.attempts} == {1}
    assert all(task(at[0], names[n % queues], ids[n])["history"] == [] for n in (0, 1, 30, 59))
    replaced = sorted(at for one in workers for at, ended in one.polls if ended)
    assert 1 <= len(replaced) <= 1 + taken / 5
    # One poll for each task or second, and no more.
    assert sum(len(one.polls) for one in workers) < 60 + 4 * taken + 10


def test_the_log_warns_of_it_once_a_minute(pair: tuple[Daemon, Daemon], q: str) -> None:
    def warnings() -> int:
        return sum(one.log.count(f"poll as worker='{q}'") for one in pair)

    polls = [poll(pair[n % 2], q, f"wait=20&worker={q}") for n in range(2)]
    assert is_replaced(polls[0].answer(3))
    assert warnings() == 0
    polls += [poll(pair[n % 2], q, f"wait=20&worker={q}") for n in range(4)]
    wait_until(lambda: warnings() > 0, 3)
    assert [one.waits(0.01) for one in polls[1:]] == [True] * 5
    assert warnings() == 1
    for one in polls[1:]:
        one.hang_up()


def test_over_several_processes(daemon: StartDaemon, redis_server: RedisServer, q: str) -> None:
    served = daemon("--processes", "2", redis=redis_server)
    polls = [Asked(served, "GET", f"/api/popTask/{q}?wait=20&worker={q}") for _ in range(8)]
    wait_until(lambda: [one.waits(0.01) for one in polls].count(False) == 1, 5)
    time.sleep(0.5)
    waiting = [one for one in polls if one.waits(0.01)]
    assert len(waiting) == 7
    for n in range(7):
        pushed(served, q, n)
    assert sorted(one.answer(5).ok()["task"] for one in waiting) == list(range(7))


def test_a_worker_that_polls_alone_ends_what_it_left_behind_every_five_seconds(
    pair: tuple[Daemon, Daemon], module_redis_process: RedisServer, q: str
) -> None:
    for n in range(2):
        older = poll(pair[0], q, f"wait=20&lease=30&worker={q}")
        newer = poll(pair[n], q, f"wait=20&lease=30&worker={q}")
        assert is_replaced(older.answer(3))
        pushed(pair[0], q, n)
        assert newer.answer(3).ok()["task"] == n
        # Five seconds pass.
        assert 0 < module_redis_process.command("PTTL", f"{{registry}}worker:replaced:{q}") <= 5000
        module_redis_process.command("DEL", f"{{registry}}worker:replaced:{q}")


def test_a_poll_that_asks_when_a_newer_one_comes_keeps_what_it_is_given(
    pair: tuple[Daemon, Daemon], q: str
) -> None:
    # Both asks travel together: the older one's task must not go back to the queue for the newer one.
    for n in range(20):
        worker = f"{q}-{n}"
        ids = [pushed(pair[0], q, m) for m in range(2)]
        polls = [Asked(pair[0], "GET", f"/api/popTask/{q}?wait=5&lease=60&worker={worker}") for _ in range(2)]
        assert sorted(one.answer(3).ok()["id"] for one in polls) == sorted(ids)


def test_a_paused_queue_is_no_reason_to_keep_the_older_poll(served: Daemon, q: str) -> None:
    policy(served, q, paused=True)
    older = poll(served, q, f"wait=20&worker={q}")
    newer = poll(served, q, f"wait=20&worker={q}")
    assert is_replaced(older.answer(3))
    policy(served, q, paused=False)
    pushed(served, q, 1)
    assert newer.answer(3).json == {"task": 1}
    assert ask(served, "GET", f"/api/queues/{q}").ok()["ready"] == 0

"""``registryctl work`` while the daemon and Redis are killed and restarted: every task ends as its command's exit code says.

``--work-tasks=10000`` runs the whole of it, with ten restarts; the default is short.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.ctl import ctl_of
from tests.live import Daemon, RedisServer, wait_until
from tests.talk import ask

# What a task does by its number, and how often of a hundred: ends well, fails, floods both outputs, is killed, hangs, has a wrong
# payload, or comes too early (released once, done at the second time).
KINDS = {"ok": 70, "fail": 8, "flood": 5, "kill": 6, "hang": 1, "data": 5, "early": 5}
ENDS = {"fail": "3", "flood": "4", "kill": "SIGKILL", "hang": "timeout", "data": "65"}
COMMAND = """read -r n kind
echo "$REGISTRY_TASK_ID" >>"$RUNS"
case $kind in
fail) echo no >&2; exit 3 ;;
flood) head -c 200000 /dev/zero >&2; head -c 200000 /bin/sh; exit 4 ;;
kill) kill -9 $$ ;;
hang) trap : TERM; sleep 60; sleep 60 ;;
data) exit 65 ;;
early) mkdir "$RUNS.$n" 2>/dev/null && exit 75 ;;
esac
echo "$n"
"""
# Each of the two attempts that a failing task has, and no more; the registry is away for less than a lease.
OPTIONS = "attempts=2&backoff=0.2&lease=60&result=3600"


def kind_of(number: int) -> str:
    at = (number * 37) % 100
    for kind, share in KINDS.items():
        at -= share
        if at < 0:
            return kind
    raise AssertionError


def push_all(daemon: Daemon, name: str, count: int) -> dict[str, str]:
    """Push the tasks; the kind of each by its id."""
    found: dict[str, str] = {}
    for begin in range(0, count, 1000):
        numbers = range(begin, min(begin + 1000, count))
        body = [[number, kind_of(number)] for number in numbers]
        ids = ask(daemon, "POST", f"/api/pushTasks/{name}?{OPTIONS}", body).ok()["ids"]
        found.update(zip(ids, map(kind_of, numbers), strict=True))
    return found


def has_ended(daemon: Daemon, name: str, count: int, worker: subprocess.Popen[str]) -> bool:
    """Whether so many tasks have ended; not while nobody answers. The worker must be running."""
    assert worker.poll() is None
    try:
        row = ask(daemon, "GET", f"/api/queues/{name}").json
        return int(row["done"] + row["dead"]) >= count
    except (OSError, KeyError, ValueError):
        return False


def rows(daemon: Daemon, name: str, state: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = ask(daemon, "GET", f"/api/queues/{name}/tasks?state={state}&limit=1000{cursor}").ok()
        found += page["tasks"]
        if page["cursor"] is None:
            return found
        cursor = f"&cursor={page['cursor']}"


def restart(daemon: Daemon, redis: RedisServer, how: int) -> None:
    """Kill or end the daemon, or Redis, and start it again a little later."""
    if how == 2:
        redis.kill()
        time.sleep(random.uniform(0, 0.5))
        redis.start()
        daemon.redis_ready()
        return
    if how == 1:
        daemon.terminate()
    else:
        daemon.kill9()
    time.sleep(random.uniform(0, 0.5))
    daemon.start()


@pytest.mark.timeout(1800)
def test_every_task_ends_as_its_command_says_while_daemon_and_redis_are_restarted(
    daemon: StartDaemon, redis_server: RedisServer, request: pytest.FixtureRequest, tmp_path: Path, q: str
) -> None:
    count = request.config.getoption("--work-tasks")
    restarts = 10 if count >= 5000 else 3
    redis_server.stop()
    redis_server.start("--appendonly", "yes", "--appendfsync", "always")
    one = daemon(redis=redis_server).redis_ready()
    kinds = push_all(one, q, count)
    runs = tmp_path / "runs"
    command = tmp_path / "command"
    # The payload is an array: [12,"ok"].
    command.write_text("#!/bin/sh\ntr -d '[]\"' | tr , ' ' | {\n" + COMMAND + "}\n")
    command.chmod(0o755)
    options = (
        "--concurrency",
        "8",
        "--timeout",
        "5",
        "--kill-after",
        "0.2",
        "--delay",
        "0.3",
        "--grace",
        "20",
    )
    ctl = ctl_of(one, tmp_path)
    log = tmp_path / "log"
    with (
        log.open("w") as errors,
        ctl.process(
            "work", q, *options, "--", str(command), env={"RUNS": str(runs)}, stderr=errors
        ) as worker,
    ):
        for number in range(restarts):
            due = int((number + 0.5) * count / restarts)
            wait_until(partial(has_ended, one, q, due, worker), 900, f"{due} tasks")
            # A Redis that is killed as often as its daemon would take most of the time.
            restart(one, redis_server, number % 3)
        wait_until(partial(has_ended, one, q, count, worker), 900, f"the end of {count} tasks")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0, log.read_text()
    check(rows(one, q, "done"), rows(one, q, "dead"), kinds, runs)
    shutil.rmtree(tmp_path, ignore_errors=True)


def check(done: list[dict[str, Any]], dead: list[dict[str, Any]], kinds: dict[str, str], runs: Path) -> None:
    """Each task is done or dead for its reason, and no command ran more often than it had to."""
    assert len(done) + len(dead) == len(kinds)
    times = Counter(runs.read_text().split())
    wrong = []
    for row in done + dead:
        kind = kinds[row["id"]]
        type_ = ENDS.get(kind)
        reasons = [end["reason"] for end in row["history"]]
        if type_ is None:
            right = row["state"] == "done" and row["result"] == row["task"][0] and row["attempt"] == 1
            right = right and reasons == (["released", "done"] if kind == "early" else ["done"])
        else:
            attempts = 1 if kind == "data" else 2
            types = [(end["error"] or {}).get("type") for end in row["history"]]
            right = row["state"] == "dead" and row["reason"] == "failed" and types == [type_] * attempts
        expected = {"ok": 1, "data": 1}.get(kind, 2)
        if not right or times[row["id"]] != expected:
            wrong.append((kind, times[row["id"]], row))
    assert not wrong, (len(wrong), wrong[:3])

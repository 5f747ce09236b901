"""The Redis password must not be visible in child processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from tests.live import RedisServer, children_of, wait_until


@pytest.mark.parametrize("given", ["file", "environment", "env file", "option"])
def test_the_password_of_redis_is_in_no_environment_and_no_list_of_processes(
    daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path, given: str
) -> None:
    redis_server.stop()
    redis_server.start("--requirepass", "hunter2")
    (tmp_path / "url").write_text(redis_server.url)
    env = {"REDIS_URL_FILE": str(tmp_path / "url")} if given == "file" else {}
    options = [f"--redis-url={redis_server.url}"] if given == "option" else []
    if given == "environment":
        env["REDIS_URL"] = redis_server.url
    one = daemon("--processes=2", *options, env=env, wait=False) if given != "env file" else None
    if one is None:
        one = daemon("--processes=2", wait=False)
        one.terminate()
        (one.folder / ".env").write_text(f"REDIS_URL={redis_server.url}\n")
        one.start(wait=False)
    wait_until(one._healthy, 20, "an answer")
    one.redis_ready()
    children = children_of(one.pid)
    assert len(children) == 2
    os.kill(children[0], signal.SIGKILL)  # its successor gets it too
    wait_until(lambda: len(set(children_of(one.pid)) - {children[0]}) == 2, 20, "its successor")
    one.redis_ready()
    for pid in children_of(one.pid):
        for what in ("environ", "cmdline"):
            assert b"hunter2" not in Path(f"/proc/{pid}/{what}").read_bytes()
    assert "hunter2" not in one.log

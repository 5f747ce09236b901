"""The start of the daemon: where it listens, what it waits for, and its messages when it cannot start."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from tests.live import RedisServer, free_port, wait_until
from tests.talk import Asked, push


def test_the_first_request_after_a_start_waits_for_redis(
    daemon: StartDaemon, redis_server: RedisServer
) -> None:
    redis_server.pause()
    one = daemon(redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in one.log, 20, "its port")
    first = Asked(one, "PUT", "/api/pushTask/q", b"1")
    assert first.waits(0.5)
    redis_server.resume()
    assert first.answer().status == 200


def test_without_redis_it_serves_all_the_same(daemon: StartDaemon, redis_server: RedisServer) -> None:
    redis_server.kill()
    one = daemon(redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in one.log, 20, "its port")
    answer = push(one, "q", 1)
    assert answer.status == 503
    assert answer.json["code"] == "redis_unavailable"


def test_a_stop_while_it_waits_for_redis_is_clean(daemon: StartDaemon, redis_server: RedisServer) -> None:
    redis_server.kill()
    one = daemon(redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in one.log, 20, "its port")
    assert one.terminate(10) == -15
    assert "Traceback" not in one.log


def log_of_start(daemon: StartDaemon, redis: RedisServer, listeners: int, *options: str) -> str:
    one = daemon(*options, redis=redis, wait=False)
    wait_until(lambda: one.log.count("listening on") == listeners, 20, "its ports")
    one.terminate()
    return one.log


BOTH = pytest.mark.parametrize("processes", ["1", "2"])


@BOTH
def test_addresses_are_shown_as_a_person_writes_them(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path, processes: str
) -> None:
    places = [rf"--listen=tcp6:{free_port()}:interface=\:\:1", f"--listen=unix:{short_dir}/sock"]
    log = log_of_start(daemon, redis_server, 2, f"--processes={processes}", *places)
    assert "listening on [::1]:" in log
    assert re.search(rf"listening on {short_dir}/sock(,|$)", log, re.MULTILINE)
    assert "anybody" not in log


@BOTH
def test_who_can_be_reached_by_others_is_warned_once(
    daemon: StartDaemon, redis_server: RedisServer, processes: str
) -> None:
    one, other = free_port(), free_port()
    places = [f"--listen=tcp:{one}", f"--listen=tcp:{other}:interface=0.0.0.0"]
    places.append("--allow-anonymous=1")
    log = log_of_start(daemon, redis_server, 2, f"--processes={processes}", *places)
    (line,) = [line for line in log.splitlines() if "anybody" in line]
    assert "#critical]" in line
    assert f"0.0.0.0:{one} or 0.0.0.0:{other}" in line
    assert "ALLOWED_HOSTS" in line


@BOTH
@pytest.mark.parametrize(
    ("listen", "said"),
    [
        (
            "foo:1",
            "registry stops: LISTEN contains 'foo:1', which cannot be used: Unknown endpoint type: 'foo'.",
        ),
        ("tcp6:8080:interface=::1", "registry stops: LISTEN contains 'tcp6:8080:interface=::1', whose parts"),
        ("tcp:99999", "registry stops: LISTEN contains 'tcp:99999', which cannot be used: "),
        ("unix:/no/such", "registry stops: LISTEN contains 'unix:/no/such', which cannot be used: "),
        ("ssl:0:privateKey=/no/key", "LISTEN contains 'ssl:0:privateKey=/no/key', which cannot be used: "),
        ("tcp:0:interface=192.0.2.1", "set HOST (or LISTEN) to an address of this machine."),
    ],
)
def test_a_bad_listen_is_named(
    daemon: StartDaemon, redis_server: RedisServer, processes: str, listen: str, said: str
) -> None:
    one = daemon(f"--listen={listen}", f"--processes={processes}", redis=redis_server, wait=False)
    assert one.wait(20) == 1
    assert said in one.log
    assert "Traceback" not in one.log


@BOTH
def test_what_is_in_use_already_is_named_with_its_setting(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path, processes: str
) -> None:
    path = short_dir / "sock"
    first = daemon(f"--listen=unix:{path}", redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in first.log, 20, "its socket")
    again = daemon(f"--listen=unix:{path}", f"--processes={processes}", redis=redis_server, wait=False)
    assert again.wait(20) == 1
    assert f"Cannot listen on {path}: " in again.log
    assert "; stop what listens there, or set LISTEN." in again.log
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one = daemon(f"--port={port}", f"--processes={processes}", redis=redis_server, wait=False)
        assert one.wait(20) == 1
    assert f"Cannot listen on 127.0.0.1:{port}: [Errno 98] Address already in use; stop what" in one.log
    assert "or set PORT (or LISTEN)." in one.log

"""A Redis that refuses calls or cannot be reached: the messages for producers and for the operator."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.redis.faults import public_text, refusal_text
from tests.conftest import StartDaemon
from tests.live import ROOT, Daemon, RedisServer, wait_until
from tests.talk import ask, pop, push, running

BARE = (
    "WRONGPASS",
    "invalid",
    "SSL",
    "routines",
    "127.0.0.1",
    "localhost",
    "111",
    "NOAUTH",
    "ERR ",
    "errno",
    "[",
)
OURS = "operator of the registry"


def told(daemon: Daemon) -> set[str]:
    """What a producer and a worker are told once the daemon has tried."""
    ready = ask(daemon, "GET", "/readyz").refused(503, "redis_unavailable")
    assert ready["outcome"] == "not_applied"
    return {
        answer.refused(503, "redis_unavailable")["error"]
        for answer in (push(daemon, "q", 1), pop(daemon, "q", "wait=0.1"), ask(daemon, "GET", "/api/queues"))
    }


def refuse_password(redis: RedisServer) -> str:
    redis.command("CONFIG", "SET", "requirepass", "right")
    redis.password = "right"
    return redis.url.replace(":right@", ":wrong@")


def want_password(redis: RedisServer) -> str:
    url = redis.url
    redis.command("CONFIG", "SET", "requirepass", "right")
    redis.password = "right"
    return url


def speak_no_tls(redis: RedisServer) -> str:
    return redis.url.replace("redis://", "rediss://")


def have_few_databases(redis: RedisServer) -> str:
    return redis.url.replace("/0", "/99")


@pytest.mark.parametrize(
    ("no", "words"),
    [
        (refuse_password, "password"),
        (want_password, "password"),
        (speak_no_tls, ""),
        (have_few_databases, "database"),
    ],
)
@pytest.mark.every_redis
def test_producers_are_reported_whose_fault_it_is(
    daemon: StartDaemon, redis_server: RedisServer, no: Callable[[RedisServer], str], words: str
) -> None:
    url = no(redis_server)
    one = daemon(env={"REDIS_URL": url, "REDIS_WAIT": "0.1"})
    wait_until(lambda: "scripts: Redis at" in one.log)
    for sentence in told(one):
        assert sentence.endswith(".") and not [word for word in BARE if word in sentence], sentence
        assert words in sentence
        if words:
            assert OURS in sentence
    assert "Traceback" not in one.log


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("WRONGPASS invalid username-password pair or user is disabled.", "password"),
        ("ERR invalid password", "password"),
        ("ERR Client sent AUTH, but no password is set", "password"),
        ("NOAUTH Authentication required.", "password"),
        ("NOPERM this user has no permissions to run the 'ping' command", "permission"),
        ("DENIED Redis is running in protected mode because", "the registry's host"),
        ("[('SSL routines', '', 'certificate verify failed')]", "TLS"),
        ("ERR DB index is out of range", "database"),
        ("this is not the Redis protocol: b'HTTP/1.1'", "not Redis"),
        ("cannot connect: DNS lookup failed: the look-up of redis.lan did not end within 3 s.", "host name"),
        ("cannot connect: [Errno 2] No such file or directory: '/etc/ca.pem'", "file"),
        ("ERR unknown command 'AUTH'", "cannot use its Redis"),
        ("", "cannot use its Redis"),
    ],
)
def test_what_only_an_operator_can_mend(text: str, words: str) -> None:
    told = public_text(text)
    assert words in told and OURS in told and "redis.lan" not in told and "/etc" not in told


@pytest.mark.parametrize(
    "text",
    [
        "cannot connect: Connection was refused by other side: 111: Connection refused.",
        "the connection was lost: Connection was closed cleanly.",
        "LOADING Redis is loading the dataset in memory",
        "BUSY Redis is busy running a script.",
        "READONLY You can't write against a read only replica.",
        "ERR max number of clients reached",
        "Redis did not answer within 3 s",
        "not connected to Redis yet",
    ],
)
def test_what_passes_by_itself(text: str) -> None:
    assert "Redis" in public_text(text) and OURS not in public_text(text)


def test_what_redis_refuses_is_reported_with_its_meaning() -> None:
    assert (
        "NOPERM" in refusal_text("NOPERM")
        and "lacks a permission" in refusal_text("NOPERM")
        and OURS in refusal_text("NOPERM")
    )
    assert OURS in refusal_text("CROSSSLOT") and OURS not in refusal_text("LOADING")


@pytest.mark.parametrize("keeps", ["yes", "no"])
@pytest.mark.every_redis
def test_a_redis_that_may_not_be_asked_how_it_keeps_things(redis_server: RedisServer, keeps: str) -> None:
    redis_server.stop()
    redis_server.start("--appendonly", keeps, "--rename-command", "CONFIG", "")
    with running(redis_server) as daemon:
        assert "nothing on disk" not in daemon.log
        warnings = ask(daemon, "GET", "/readyz").ok()["warnings"]
        [warning] = [one for one in warnings if "cannot tell" in one.lower()]
        assert ("how soon" if keeps == "yes" else "snapshots") in warning and "CONFIG GET" in warning
        assert warning in daemon.log


def test_a_user_who_may_not_ask_anything(redis_server: RedisServer) -> None:
    if int(redis_server.version.split(".")[0]) < 6:
        pytest.skip("this Redis knows no users")
    redis_server.command("ACL", "SETUSER", "default", "-info", "-config")
    with running(redis_server) as daemon:
        warnings = ask(daemon, "GET", "/readyz").ok()["warnings"]
        assert [one for one in warnings if "evicts tasks" in one and "cannot tell" in one.lower()]
        assert [one for one in warnings if "Cannot tell what" in one]
        assert "nothing on disk" not in daemon.log and "Redis  " not in daemon.log


HANGS = """
import socket, time
real = socket.getaddrinfo
def hanging(host, *args, **named):
    if host in ("redis.hangs", b"redis.hangs"):
        time.sleep(3600)
    return real(host, *args, **named)
socket.getaddrinfo = hanging
"""


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_name_whose_look_up_hangs(daemon: StartDaemon, tmp_path: Path, scheme: str) -> None:
    """The C library takes half a minute for it, and more; here an hour."""
    (tmp_path / "sitecustomize.py").write_text(HANGS)
    env = {"REDIS_URL": f"{scheme}://redis.hangs:6379", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    one = daemon(env=env)
    wait_until(lambda: "the look-up of redis.hangs did not end within 3 s" in one.log, 20)
    threads = len(os.listdir(f"/proc/{one.pid}/task"))
    wait_until(lambda: "look-ups: Redis at" in one.log, 20)
    push(one, "q", 1).refused(503, "redis_unavailable", "host name", OURS)
    # No attempt has left another one behind.
    assert len(os.listdir(f"/proc/{one.pid}/task")) <= threads
    os.kill(one.pid, signal.SIGTERM)
    one.wait()
    assert "registry has stopped" in one.log and "Traceback" not in one.log


def test_a_name_that_is_none(daemon: StartDaemon) -> None:
    one = daemon(env={"REDIS_URL": "redis://no-such-host.invalid:6379", "REDIS_WAIT": "0.1"})
    wait_until(lambda: "the look-up of no-such-host.invalid" in one.log, 30)
    refused = push(one, "q", 1).refused(503, "redis_unavailable", "host name", OURS)
    assert "no-such-host" not in refused["error"]

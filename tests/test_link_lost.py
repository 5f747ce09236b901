"""Connections to Redis, and every way in which they are lost."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from txredisapi import ResponseError

from registry.redis.link import error_text, error_word, pack
from tests.links import DEADLINE, every_redis, failure_of, make, outcome_of, sleep, until, version
from tests.live import RedisServer
from tests.redis_proxy import RedisProxy, redis_proxy

__all__ = ["make", "redis_proxy"]  # fixtures


# -- a Redis that goes away


@every_redis
@pytest_twisted.ensureDeferred
async def test_killed_and_back(redis_server: RedisServer, make: Any) -> None:
    readied: list[int] = []
    link = make(redis_server.url, on_ready=lambda link: readied.append(1))
    await until(lambda: link.ready)
    waiting = link.call(pack("BLPOP", "never", 30))
    redis_server.kill()
    assert await outcome_of(waiting) == "unknown"
    assert not link.ready
    await until(lambda: "refused" in link.last_error)
    for refused in (link.call(pack("SET", "k", "v")), link.command("SET", "k", "v")):
        assert refused.called
        assert await outcome_of(refused) == "not_applied"
    redis_server.start()
    await until(lambda: link.ready, 2.5)
    assert readied == [1, 1]
    assert await link.command("GET", "k") is None  # nothing had been queued


@pytest_twisted.ensureDeferred
async def test_not_there_at_the_start(redis_server: RedisServer, make: Any) -> None:
    redis_server.stop()
    over_tcp, over_unix = make(redis_server.url), make(redis_server.unix_url)
    await until(lambda: "cannot connect" in over_tcp.last_error and "cannot connect" in over_unix.last_error)
    redis_server.start()
    await until(lambda: over_tcp.ready and over_unix.ready, 2.5)


@every_redis
@pytest_twisted.ensureDeferred
async def test_stopped_and_continued(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.url)
    await until(lambda: link.ready)
    redis_server.pause()
    try:
        begun = time.monotonic()
        first = link.call(pack("INCR", "n"))
        assert await outcome_of(first) == "unknown"
        assert 0.5 * DEADLINE < time.monotonic() - begun < DEADLINE + 2
        assert not link.ready
        await sleep(2 * DEADLINE)  # the kernel goes on taking connections; they must not count
        assert not link.ready
        assert "did not answer" in link.last_error
    finally:
        redis_server.resume()
    await until(lambda: link.ready, 3)
    assert await link.command("GET", "n") == b"1"  # the unknown one has run


@pytest_twisted.ensureDeferred
async def test_an_idle_link_notices_a_stopped_redis(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.url)
    await until(lambda: link.ready)
    redis_server.pause()
    try:
        await until(lambda: not link.ready, 1 + DEADLINE + 3)
    finally:
        redis_server.resume()
    await until(lambda: link.ready, 3)


@pytest_twisted.ensureDeferred
async def test_time_lost_by_this_process_is_not_held_against_redis(
    redis_server: RedisServer, make: Any
) -> None:
    away = 0.0
    link = make(redis_server.url, monotonic=lambda: time.monotonic() + away)
    await until(lambda: link.ready)
    answer = link.call(pack("BLPOP", "never", 1))
    await sleep(0.2)
    link.command_seconds = 5.0
    away = 100.0
    assert await answer is None
    assert link.ready


@every_redis
@pytest_twisted.ensureDeferred
async def test_client_kill(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.url)
    await until(lambda: link.ready)

    def renewed(before: object) -> bool:
        return link.ready and link._protocol is not before

    for _ in range(3):
        before = link._protocol
        redis_server.command("CLIENT", "KILL", "TYPE", "normal")
        await until(partial(renewed, before), 2.5)


@every_redis
@pytest_twisted.ensureDeferred
async def test_too_many_clients(redis_server: RedisServer, make: Any) -> None:
    first = make(redis_server.url)
    await until(lambda: first.ready)
    await first.command("CONFIG", "SET", "maxclients", "1")
    second = make(redis_server.url + "?db=1")
    await until(lambda: "max number of clients" in second.last_error or "lost" in second.last_error)
    await sleep(0.3)
    assert not second.ready
    await first.command("CONFIG", "SET", "maxclients", "100")
    await until(lambda: second.ready, 2.5)


@every_redis
@pytest_twisted.ensureDeferred
async def test_a_replica_ends_the_link_until_it_is_a_master(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.url)
    await until(lambda: link.ready)
    await link.command("SET", "k", "v")
    await link.command("SLAVEOF", "127.0.0.1", "1")
    before = link._protocol
    good, bad = link.call(pack("GET", "k")), link.call(pack("SET", "k", "w"))
    late = link.call(pack("GET", "k"))
    assert await good == b"v"
    assert str(await failure_of(bad)).startswith("READONLY")
    assert await late == b"v"  # what was in flight is still answered
    await until(lambda: link.ready and link._protocol is not before)
    redis_server.command("SLAVEOF", "NO", "ONE")
    assert await link.command("SET", "k", "x") == b"OK"


@pytest.mark.parametrize(
    "text",
    [
        "READONLY You can't",
        "ERR READONLY You can't",
        "ERR Error running script (call to f_3b4f): @user_script:23: @user_script: 302: -READONLY You can't",
    ],
)
def test_what_an_error_says_that_a_script_came_upon(text: str) -> None:
    assert error_text(ResponseError(text)) == "READONLY You can't"
    assert error_word(ResponseError(text)) == "READONLY"


@every_redis
@pytest_twisted.ensureDeferred
async def test_a_redis_that_loads_its_data(redis_server: RedisServer, make: Any) -> None:
    if version(redis_server) < (6,):
        pytest.skip("key-load-delay, which makes loading slow, came with Redis 6")
    redis_server.stop()
    redis_server.start("--appendonly", "yes", "--appendfsync", "no")
    redis_server.command("EVAL", "for i = 1, 5000 do redis.call('SET', i, i) end", 0)
    redis_server.stop()
    arguments = ("--appendonly", "yes", "--aof-use-rdb-preamble", "no", "--key-load-delay", "300")
    redis_server.start(*arguments, wait=False)
    link = make(redis_server.url, command_seconds=3.0)
    await until(lambda: "LOADING" in link.last_error)
    assert link.in_flight <= 1  # our own PING
    assert await outcome_of(link.command("PING")) == "not_applied"
    await until(lambda: link.ready, 20)
    assert await link.command("GET", "5000") == b"5000"
    assert b"total_connections_received:1\r" in await link.command("INFO", "stats")


class Recited(Protocol):
    """A Redis that answers each chunk with the next line of a list, then with PONG."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(self.lines.pop(0) if self.lines else b"+PONG\r\n")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([b"-LOADING x\r\n", b"-BUSY x\r\n"], "BUSY"),
        ([b"-MASTERDOWN x\r\n"], "MASTERDOWN"),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], "protocol"),
        ([b"+PONG\r\n+MORE\r\n"], "out of turn"),
        ([b"-ERR unknown command `AUTH`, with args beginning with: `hunter2`\r\n"], "***"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_strange_greetings_are_survived(lines: list[bytes], word: str, make: Any) -> None:
    listen: Any = reactor.listenTCP  # type: ignore[attr-defined]
    port = listen(0, Factory.forProtocol(lambda: Recited(lines)), interface="127.0.0.1")
    at = port.getHost().port
    try:
        secret = "" if word != "***" else ":hunter2@"
        link = make(f"redis://{secret}127.0.0.1:{at}")
        await until(lambda: word in link.last_error)
        assert "hunter2" not in link.last_error
        await until(lambda: link.ready, 5)
        await link.stop()
    finally:
        await port.stopListening()


# -- a network that misbehaves


@pytest_twisted.ensureDeferred
async def test_a_black_hole(redis_proxy: RedisProxy, make: Any) -> None:
    link = make(redis_proxy.url)
    await until(lambda: link.ready)
    redis_proxy.set("blackhole")
    assert await outcome_of(link.call(pack("INCR", "n"))) == "unknown"
    await sleep(2 * DEADLINE)
    assert not link.ready
    redis_proxy.set("pass")
    await until(lambda: link.ready, 3)
    assert await link.command("GET", "n") is None


@pytest.mark.parametrize("mode", ["refuse", "accept_then_close", "rst"])
@pytest_twisted.ensureDeferred
async def test_connections_that_fail_at_once(mode: str, redis_proxy: RedisProxy, make: Any) -> None:
    link = make(redis_proxy.url.replace("127.0.0.1", ":pw@127.0.0.1") + "1")
    plain = make(redis_proxy.url)
    await until(lambda: plain.ready)
    waiting = plain.call(pack("BLPOP", "never", 30))
    redis_proxy.set(mode)
    assert await outcome_of(waiting) == "unknown"
    await sleep(0.5)
    assert not plain.ready
    assert redis_proxy.accepted < 30  # it waits longer each time
    redis_proxy.set("pass")
    await until(lambda: plain.ready, 2.5)
    assert not link.ready


@pytest_twisted.ensureDeferred
async def test_a_reply_that_is_cut(redis_proxy: RedisProxy, make: Any) -> None:
    link = make(redis_proxy.url)
    await until(lambda: link.ready)
    await link.command("SET", "k", b"x" * 100)
    redis_proxy.set("cut", down=50)
    assert await outcome_of(link.call(pack("GET", "k"))) == "unknown"
    redis_proxy.set("pass")
    await until(lambda: link.ready, 2.5)
    assert await link.command("GET", "k") == b"x" * 100


@pytest_twisted.ensureDeferred
async def test_slow_is_not_gone(redis_proxy: RedisProxy, make: Any) -> None:
    redis_proxy.set("pass", delay=0.1)
    link = make(redis_proxy.url, command_seconds=2.0)
    await until(lambda: link.ready)
    answers = [link.call(pack("INCR", "n")) for _ in range(100)]
    assert [await answer for answer in answers] == list(range(1, 101))

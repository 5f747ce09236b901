"""Connections to a working Redis: replies, passwords, readiness, stopping, pools."""

from __future__ import annotations

from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from txredisapi import ResponseError

from registry.redis.host import HostEndpoint
from registry.redis.link import Link, Pool, pack, parse_redis_url
from tests.links import DEADLINE, every_redis, failure_of, make, outcome_of, sleep, until, version
from tests.live import RedisServer
from tests.redis_proxy import RedisProxy, redis_proxy

__all__ = ["make", "redis_proxy"]  # fixtures


# -- a good Redis


@every_redis
@pytest_twisted.ensureDeferred
async def test_replies_keep_their_types_and_their_order(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.unix_url)
    await until(lambda: link.ready)
    assert link.last_error == ""
    await link.command("SET", "k", b"007")
    script = "return {1, false, ARGV[1], {2}}"
    answers = [
        link.call(pack("GET", "k")),
        link.call(pack("GET", "none")),
        link.call(pack("INCR", "n")),
        link.call(pack("LPUSH", "k", "x")),
        link.call(pack("EVAL", script, 0, b"\xff")),
        link.call(pack("EVALSHA", "0" * 40, 0)),
        link.call(pack("PING")),
    ]
    assert link.in_flight == 7
    assert await answers[0] == b"007"
    assert await answers[1] is None
    assert await answers[2] == 1
    assert str(await failure_of(answers[3])).startswith("WRONGTYPE")
    assert await answers[4] == [1, None, b"\xff", [2]]
    error = await failure_of(answers[5])
    assert isinstance(error, ResponseError)
    assert str(error).startswith("NOSCRIPT")
    assert await answers[6] == b"PONG"
    assert link.in_flight == 0
    assert link.ready


@every_redis
@pytest_twisted.ensureDeferred
async def test_txredisapi_commands_work_on_the_same_connection(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.url)
    await until(lambda: link.ready)
    await link._protocol.set("k", "1")
    assert await link._protocol.get("k") == b"1"
    assert await link._protocol.lrange("none", 0, -1) == []


@pytest_twisted.ensureDeferred
async def test_a_cancelled_command_leaves_the_order_alone(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.url)
    await until(lambda: link.ready)
    first, second, third = (link.call(pack("INCR", "n")) for _ in range(3))
    second.cancel()
    assert isinstance(await failure_of(second), CancelledError)
    assert (await first, await third) == (1, 3)  # the second has run all the same
    assert await link.call(pack("GET", "n")) == b"3"


@pytest_twisted.ensureDeferred
async def test_a_cancelled_command_may_be_refused_or_lost(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.url)
    await until(lambda: link.ready)
    refused = link.call(pack("NOSUCH"))
    lost = link.call(pack("BLPOP", "never", 5))
    for one in (refused, lost):
        one.cancel()
        await failure_of(one)
    redis_server.kill()
    await until(lambda: not link.ready)


@every_redis
@pytest_twisted.ensureDeferred
async def test_a_password_and_a_database(redis_server: RedisServer, make: Any) -> None:
    redis_server.stop()
    redis_server.start("--requirepass", "s3/cret")
    link = make(f"redis://:s3%2Fcret@127.0.0.1:{redis_server.port}/3")
    await until(lambda: link.ready)
    await link.command("SET", "k", "v")
    info = redis_server.command("INFO", "keyspace")
    assert b"db3:keys=1" in info
    assert b"db0" not in info


@every_redis
@pytest_twisted.ensureDeferred
async def test_a_user(redis_server: RedisServer, make: Any) -> None:
    if version(redis_server) < (6,):
        # There are no users; URLs that name one were common all the same, and clients ignored the name.
        redis_server.command("CONFIG", "SET", "requirepass", "pw")
    else:
        redis_server.command("ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all")
    link = make(f"redis://worker:pw@127.0.0.1:{redis_server.port}")
    await until(lambda: link.ready)
    if version(redis_server) >= (6,):
        assert await link.command("ACL", "WHOAMI") == b"worker"


@every_redis
@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_never_the_end(redis_server: RedisServer, make: Any) -> None:
    redis_server.command("CONFIG", "SET", "requirepass", "old")
    redis_server.password = "old"
    link = make(f"redis://:new@127.0.0.1:{redis_server.port}")
    await until(lambda: "password" in link.last_error)
    assert await outcome_of(link.call(pack("PING"))) == "not_applied"
    redis_server.command("CONFIG", "SET", "requirepass", "new")
    await until(lambda: link.ready, 5)


@every_redis
@pytest_twisted.ensureDeferred
async def test_a_password_that_is_missing_or_too_much(redis_server: RedisServer, make: Any) -> None:
    too_much = make(f"redis://:hunter2@127.0.0.1:{redis_server.port}")
    await until(lambda: "cannot connect" not in too_much.last_error and "yet" not in too_much.last_error)
    if version(redis_server) < (6,):
        assert "no password is set" in too_much.last_error
    else:
        await until(lambda: "password" in too_much.last_error)
    assert "hunter2" not in too_much.last_error
    redis_server.command("CONFIG", "SET", "requirepass", "hunter2")
    missing = make(redis_server.url)
    await until(lambda: "NOAUTH" in missing.last_error)
    await until(lambda: too_much.ready, 5)


@pytest_twisted.ensureDeferred
async def test_a_database_that_is_not_there(redis_server: RedisServer, make: Any) -> None:
    link = make(f"redis://127.0.0.1:{redis_server.port}/99")
    await until(lambda: "DB index" in link.last_error)


# -- being ready, and stopping


@pytest_twisted.ensureDeferred
async def test_on_ready_comes_first(redis_server: RedisServer, make: Any) -> None:
    gate: Deferred[None] = Deferred()
    seen: list[Any] = []

    async def greet(link: Link) -> None:
        seen.append(await link.command("ECHO", "early"))
        seen.append(await outcome_of(link.call(pack("PING"))))
        await gate

    link = make(redis_server.url, on_ready=lambda link: Deferred.fromCoroutine(greet(link)))
    await until(lambda: len(seen) == 2)
    assert (seen, link.ready) == ([b"early", "not_applied"], False)
    gate.callback(None)
    await until(lambda: link.ready)


@pytest_twisted.ensureDeferred
async def test_on_ready_that_fails_is_tried_again(
    redis_server: RedisServer, make: Any, logged_errors: Any
) -> None:
    tries: list[int] = []

    def greet(link: Link) -> Any:
        tries.append(1)
        if len(tries) == 1:
            raise KeyError("a bug")
        return link.command("NOSUCH") if len(tries) == 2 else None

    link = make(redis_server.url, on_ready=greet)
    await until(lambda: link.ready, 6)
    assert len(tries) == 3
    assert len(logged_errors.flush(KeyError)) == 1


@pytest_twisted.ensureDeferred
async def test_stopping_waits_for_what_is_under_way(redis_server: RedisServer, make: Any) -> None:
    link = make(redis_server.url, command_seconds=5.0)
    await until(lambda: link.ready)
    waiting = link.call(pack("BLPOP", "list", 3))
    await sleep(0.05)
    stopped = link.stop()
    assert await outcome_of(link.call(pack("PING"))) == "not_applied"
    redis_server.command("RPUSH", "list", "last words")
    assert await waiting == [b"list", b"last words"]
    await stopped
    await link.stop()
    assert not link.ready
    link.start()
    await until(lambda: link.ready)


@pytest_twisted.ensureDeferred
async def test_stopping_in_every_state(redis_server: RedisServer, redis_proxy: RedisProxy) -> None:
    for mode, pause in (("blackhole", 0.1), ("refuse", 0.1), ("pass", 0.0), ("rst", 0.02)):
        redis_proxy.set(mode)
        link = Link(reactor, parse_redis_url(redis_proxy.url), command_seconds=DEADLINE)
        link.start()
        await sleep(pause)
        await link.stop()
        await link.stop()
        assert not link.ready


@pytest_twisted.ensureDeferred
async def test_a_pool_grows_only_when_it_is_busy(redis_server: RedisServer) -> None:
    links: list[Link] = []

    def make_link() -> Link:
        links.append(Link(reactor, parse_redis_url(redis_server.url), command_seconds=5.0))
        return links[-1]

    pool = Pool(make_link, 2)
    assert await outcome_of(pool.command("PING")) == "not_applied"
    pool.start()
    await until(lambda: pool.ready)
    for _ in range(5):
        assert await pool.command("PING") == b"PONG"
    assert len(links) == 1
    slow = [pool.command("BLPOP", "list", 2) for _ in range(2)]
    await until(lambda: len(links) == 2 and links[1].ready)
    assert await pool.command("RPUSH", "list", "a", "b") == 2
    assert [await one for one in slow] == [[b"list", b"a"], [b"list", b"b"]]
    for _ in range(5):
        pool.command("PING")
    assert len(links) == 2
    await pool.stop()
    assert not pool.ready


@pytest_twisted.ensureDeferred
async def test_connections_that_share_a_look_up_are_all_made(redis_server: RedisServer) -> None:
    endpoint = HostEndpoint(reactor, "localhost", redis_server.port, DEADLINE)
    factory = Factory.forProtocol(Protocol)
    for one in await gatherResults([endpoint.connect(factory) for _ in range(3)]):
        one.transport.abortConnection()

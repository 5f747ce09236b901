"""Notices from other daemons."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import pytest_twisted
from twisted.internet import reactor

from registry.redis.link import parse_redis_url
from registry.redis.subscriber import Subscriber
from tests.links import DEADLINE, every_redis, sleep, until
from tests.live import RedisServer


@every_redis
@pytest_twisted.ensureDeferred
async def test_notices_come_back_by_themselves(redis_server: RedisServer) -> None:
    got: list[tuple[bytes, bytes]] = []
    subscribed: list[int] = []
    subscriber = Subscriber(
        reactor,
        parse_redis_url(redis_server.url),
        [b"one", b"two"],
        lambda channel, payload: got.append((channel, payload)),
        lambda: subscribed.append(1),
        command_seconds=DEADLINE,
    )

    def listening(times: int) -> bool:
        return len(subscribed) == times and subscriber.ready

    def heard(notices: int) -> bool:
        return len(got) == notices

    subscriber.start()
    try:
        for turn in range(1, 4):
            await until(partial(listening, turn), 2.5)
            assert redis_server.command("PUBLISH", "one", b"\xff%d" % turn) == 1
            assert redis_server.command("PUBLISH", "two", "message") == 1
            await until(partial(heard, 2 * turn))
            assert got[-2:] == [(b"one", b"\xff%d" % turn), (b"two", b"message")]
            redis_server.command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(partial(listening, 4), 2.5)
        await sleep(1.6)  # long enough for a PING, whose answer has another form here
        assert subscriber.ready
        assert len(subscribed) == 4
    finally:
        await subscriber.stop()


@pytest_twisted.ensureDeferred
async def test_a_notice_that_breaks_its_reader(redis_server: RedisServer, logged_errors: Any) -> None:
    got: list[bytes] = []

    def read(channel: bytes, payload: bytes) -> None:
        got.append(payload)
        raise KeyError(payload)

    subscriber = Subscriber(reactor, parse_redis_url(redis_server.url), [b"c"], read, lambda: None)
    subscriber.start()
    await until(lambda: subscriber.ready)
    redis_server.command("PUBLISH", "c", "1")
    redis_server.command("PUBLISH", "c", "2")
    await until(lambda: got == [b"1", b"2"])
    assert subscriber.ready
    await subscriber.stop()
    assert len(logged_errors.flush(KeyError)) == 2


@pytest_twisted.ensureDeferred
async def test_a_stopped_redis_silences_notices_for_a_while(redis_server: RedisServer) -> None:
    subscribed: list[int] = []
    subscriber = Subscriber(
        reactor,
        parse_redis_url(redis_server.unix_url),
        [b"c"],
        lambda channel, payload: None,
        lambda: subscribed.append(1),
        command_seconds=DEADLINE,
    )
    subscriber.start()
    try:
        await until(lambda: subscriber.ready)
        with contextlib.ExitStack() as stack:
            redis_server.pause()
            stack.callback(redis_server.resume)
            await until(lambda: not subscriber.ready, 6)
        await until(lambda: len(subscribed) == 2, 3)
    finally:
        await subscriber.stop()

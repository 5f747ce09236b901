"""Registries on one Redis: with prefixes that overlap they are warned of each other."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred

from registry.redis import prefixes
from registry.redis.keys import PREFIXES
from tests.conftest import StartDaemon
from tests.live import Daemon, RedisServer, wait_until

pytestmark = pytest.mark.every_redis


@pytest.mark.parametrize(
    ("one", "other", "overlaps"),
    [
        (b"", b"stage:", True),
        (b"a:", b"a:b:", True),
        (b"a", b"ab", True),
        (b"a:", b"b:", False),
        (b"a:", b"A:", False),
        (b"stage:", b"stage:", False),
        (b"", b"", False),
        ("ä:".encode(), "äö:".encode(), False),
        ("ä".encode(), "äö:".encode(), True),
    ],
)
def test_which_overlap(one: bytes, other: bytes, overlaps: bool) -> None:
    assert prefixes.overlap(one, other) is prefixes.overlap(other, one) is overlaps


def look(server: RedisServer, prefix: bytes, now_ms: int) -> list[str]:
    def command(*words: Any) -> Deferred[Any]:
        return maybeDeferred(server.command, *words)

    found: list[list[str]] = []
    prefixes.find_overlaps(command, prefix, now_ms).addCallback(found.append)
    return found[0]


def test_a_prefix_is_forgotten_when_it_is_no_longer_used(redis_server: RedisServer) -> None:
    now = int(time.time() * 1000)
    assert look(redis_server, b"", now) == []
    assert redis_server.command("KEYS", "*") == []  # without a prefix nothing is left behind
    assert look(redis_server, b"a:b:", now) == []
    assert look(redis_server, b"c:", now) == []
    (told,) = look(redis_server, b"a:", now + 1000)
    assert told.startswith(
        'Another registry uses this Redis with KEY_PREFIX "a:b:", and this one with KEY_PREFIX "a:"'
    )
    assert 'the queue "mail" of one is the queue "b:mail" of the other' in told
    assert len(look(redis_server, b"", now + 1000)) == 3
    assert look(redis_server, b"a:", now + prefixes.LIFE_MS + 500) == []
    assert 0 < redis_server.command("PTTL", PREFIXES) <= prefixes.LIFE_MS


def test_a_user_who_may_not_look_serves_all_the_same(redis_server: RedisServer) -> None:
    redis_server.command("SET", PREFIXES, "of another program")
    from txredisapi import ResponseError

    def command(*words: Any) -> Deferred[Any]:
        def refuse() -> None:
            raise ResponseError("NOPERM this user has no permissions to access one of the keys")

        return maybeDeferred(refuse)

    found: list[list[str]] = []
    prefixes.find_overlaps(command, b"a:", 1).addCallback(found.append)
    assert found == [[]]


def warnings(daemon: Daemon) -> list[str]:
    with urllib.request.urlopen(f"{daemon.url}/readyz") as answer:
        return [text for text in json.load(answer)["warnings"] if "KEY_PREFIX" in text]


def test_both_say_so_in_the_log_and_in_readyz(daemon: StartDaemon, redis_server: RedisServer) -> None:
    apart = daemon("--key-prefix=other:", redis=redis_server).redis_ready()
    assert warnings(apart) == []
    stage = daemon("--key-prefix=stage:", redis=redis_server).redis_ready()
    assert warnings(stage) == []
    bare = daemon(redis=redis_server).redis_ready()
    assert len(warnings(bare)) == 2
    assert (
        '#critical] Another registry uses this Redis with KEY_PREFIX "stage:", and this one with no'
        in bare.log
    )
    # The others, which were there before, look once a minute, and on each new connection.
    redis_server.command("CLIENT", "KILL", "TYPE", "normal")
    wait_until(
        lambda: stage.redis_ready() and warnings(stage), 20, "the warning of the one that was there before"
    )
    assert 'uses this Redis with no KEY_PREFIX, and this one with KEY_PREFIX "stage:"' in stage.log

"""Helpers for the tests of the connections to Redis."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

from registry.errors import RedisUnavailable
from registry.redis.link import Link, parse_redis_url
from tests.live import RedisServer

every_redis = pytest.mark.every_redis
# What a client is told; two full stops at its end were put together from pieces.
A_SENTENCE = re.compile(r"[A-Z].*[^.]\.", re.DOTALL)
DEADLINE = 0.6  # of a command, in these tests


async def sleep(seconds: float) -> None:
    await task.deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come true"
        await sleep(0.01)


async def failure_of(answer: Deferred[Any]) -> Exception:
    try:
        result = await answer
    except Exception as error:
        return error
    raise AssertionError(f"answered {result!r}")


async def outcome_of(answer: Deferred[Any]) -> str:
    error = await failure_of(answer)
    assert isinstance(error, RedisUnavailable), error
    assert A_SENTENCE.fullmatch(str(error)), error
    return error.outcome


def version(server: RedisServer) -> tuple[int, ...]:
    return tuple(int(part) for part in server.version.split("."))


@pytest.fixture
def make() -> Iterator[Callable[..., Link]]:
    """Make and start links; they are stopped at the end."""
    made: list[Link] = []

    def link(url: str, **options: Any) -> Link:
        options.setdefault("command_seconds", DEADLINE)
        one = Link(reactor, parse_redis_url(url), **options)
        made.append(one)
        one.start()
        return one

    yield link
    for one in made:
        pytest_twisted.blockon(one.stop())

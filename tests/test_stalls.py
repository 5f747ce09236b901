"""A blocked reactor is logged with the code that was running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from registry.stalls import StallWatch

reactor: Any = _reactor


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "registry.stalls":
            found.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def dawdle(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


async def turn(seconds: float) -> None:
    waited: Deferred[None] = Deferred()
    reactor.callLater(seconds, waited.callback, None)
    await waited


@pytest_twisted.ensureDeferred
async def test_a_stall_is_logged_with_what_was_running(lines: list[str]) -> None:
    watch = StallWatch(reactor.callLater)
    watch.start()
    try:
        reactor.callLater(0, dawdle, 1.0)
        await turn(0.3)
        assert len(lines) == 1
        assert lines[0].startswith("the reactor was blocked for ")
        assert "dawdle (test_stalls.py:" in lines[0]
    finally:
        watch.stop()


def test_what_comes_in_time_is_not_logged(lines: list[str]) -> None:
    clock = [0.0]
    calls: list[Any] = []

    class Call:
        def active(self) -> bool:
            return False

    def later(seconds: float, f: Any) -> Call:
        calls.append(f)
        return Call()

    watch = StallWatch(later, lambda: clock[0])
    watch.start()
    for pause in (0.1, 0.2, 0.34):
        clock[0] += pause
        calls.pop()()
    assert not lines
    clock[0] += 0.36
    calls.pop()()
    watch.stop()
    assert len(lines) == 1

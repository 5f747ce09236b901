"""Which poll of a worker ends when several daemons hear of its polls."""

from __future__ import annotations

from functools import partial

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from zope.interface import implementer

from registry.errors import RedisUnavailable
from registry.queue.workers import ANNOUNCED_SECONDS, Workers


class Told:
    """The polls of two daemons, whose notices come in the order in which Redis carried them out."""

    def __init__(self) -> None:
        self.time = 0.0
        self.away = False
        self.said: dict[tuple[str, str], float] = {}
        self.daemons = [Workers(self.once, lambda: self.time) for _ in range(2)]
        self.ended: list[str] = []

    def once(self, what: str, worker: str, ms: int) -> Deferred[bool]:
        if self.away:
            return fail(RedisUnavailable("Redis is away."))
        if self.time < self.said.get((what, worker), 0.0):
            return succeed(False)
        self.said[what, worker] = self.time + ms / 1000
        return succeed(True)

    def poll(self, at: int, name: str) -> str:
        self.daemons[at].begin_poll("w", lambda: self.ended.append(name))
        return self.daemons[at].serial

    def announce(self, mark: str) -> None:
        for daemon in self.daemons:
            daemon.announced(mark, "w")


def test_of_polls_on_their_way_at_once_the_last_one_redis_saw_stays() -> None:
    told = Told()
    first, second = told.poll(0, "first"), told.poll(1, "second")
    told.announce(second)
    assert told.ended == []
    told.announce(first)
    assert told.ended == ["second"]


def test_a_later_poll_elsewhere_ends_an_announced_one() -> None:
    told = Told()
    told.announce(told.poll(0, "first"))
    told.announce(told.poll(1, "second"))
    assert told.ended == ["first"]


def test_a_newer_poll_here_ends_the_older_one_at_once() -> None:
    told = Told()
    told.poll(0, "first")
    told.poll(0, "second")
    assert told.ended == ["first"]


def test_the_notice_of_an_older_poll_says_nothing_of_a_newer_one() -> None:
    told = Told()
    over = told.daemons[0].begin_poll("w", lambda: told.ended.append("first"))
    first = told.daemons[0].serial
    over()
    second = told.poll(0, "second")
    told.announce(first)
    elsewhere = told.poll(1, "third")
    told.announce(elsewhere)
    assert told.ended == []
    told.announce(second)
    assert told.ended == ["third"]


def test_a_lost_notice_keeps_no_poll_for_long() -> None:
    told = Told()
    told.poll(0, "first")
    told.time = ANNOUNCED_SECONDS
    told.announce(told.poll(1, "second"))
    assert told.ended == ["first"]


@pytest.mark.parametrize("daemons", [(0, 0, 0, 0), (0, 1, 0, 1)])
def test_a_name_ends_one_poll_in_five_seconds_the_oldest_first(daemons: tuple[int, ...]) -> None:
    told = Told()
    for at, name in zip(daemons, ("a", "b", "c", "d"), strict=True):
        told.announce(told.poll(at, name))
    assert told.ended == ["a"]
    told.time = 4.9
    told.announce(told.poll(0, "e"))
    assert set(told.ended) == {"a"}


def test_after_five_seconds_the_oldest_that_is_open_ends() -> None:
    told = Told()
    over = {name: told.daemons[0].begin_poll("w", partial(told.ended.append, name)) for name in "abc"}
    over["a"]()
    told.time = 5.0
    told.poll(0, "d")
    assert told.ended == ["a", "b"]


def test_while_redis_is_away_a_name_still_ends_one_poll_in_five_seconds() -> None:
    told = Told()
    told.away = True
    over = [told.daemons[0].begin_poll("w", partial(told.ended.append, str(n))) for n in range(3)]
    assert told.ended == ["0"]
    over.pop(0)()
    told.time = 4.9
    over.append(told.daemons[0].begin_poll("w", lambda: told.ended.append("3")))
    assert told.ended == ["0"]
    told.time = 5
    over.append(told.daemons[0].begin_poll("w", lambda: told.ended.append("4")))
    assert told.ended == ["0", "1"]
    for one in over:
        one()
        one()
    assert told.daemons[0]._open == {}


@implementer(ILogObserver)
class Warnings:
    """The workers that the log warned of."""

    def __init__(self) -> None:
        self.workers: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if event["log_level"] is LogLevel.warn and "worker" in event:
            self.workers.append(event["worker"])


def test_two_that_bear_one_name_are_warned_of_once_a_minute() -> None:
    told, warnings = Told(), Warnings()
    globalLogPublisher.addObserver(warnings)
    try:
        for second in range(0, 119, 3):
            told.time = float(second)
            told.announce(told.poll(second % 2, "any"))
    finally:
        globalLogPublisher.removeObserver(warnings)
    assert warnings.workers == ["w", "w"]

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

    def poll(self, at: int, name: str, owner: str = "") -> str:
        self.daemons[at].begin_poll("w", lambda: self.ended.append(name), owner)
        return self.daemons[at].serial + (f" {owner}" if owner else "")

    def announce(self, mark: str) -> None:
        for daemon in self.daemons:
            daemon.announced(mark, "w")


def test_of_polls_on_their_way_at_once_the_last_one_redis_saw_stays() -> None:
    received = Told()
    first, second = received.poll(0, "first"), received.poll(1, "second")
    received.announce(second)
    assert received.ended == []
    received.announce(first)
    assert received.ended == ["second"]


def test_a_later_poll_elsewhere_ends_an_announced_one() -> None:
    received = Told()
    received.announce(received.poll(0, "first"))
    received.announce(received.poll(1, "second"))
    assert received.ended == ["first"]


def test_a_newer_poll_here_ends_the_older_one_at_once() -> None:
    received = Told()
    received.poll(0, "first")
    received.poll(0, "second")
    assert received.ended == ["first"]


def test_a_poll_ends_only_those_of_its_own_token() -> None:
    told = Told()
    for daemon in (0, 1):
        for owner in ("mine", "other", ""):
            told.announce(told.poll(daemon, f"{owner or 'nobody'} at {daemon}", owner))
    # Each ended its own, and the limit of one in five seconds is of each.
    assert told.ended == ["mine at 0", "other at 0", "nobody at 0"]
    told.time = 6.0
    told.poll(1, "mine at 1 again", "mine")
    assert told.ended[3:] == ["mine at 1"]


def test_the_notice_of_an_older_poll_says_nothing_of_a_newer_one() -> None:
    received = Told()
    over = received.daemons[0].begin_poll("w", lambda: received.ended.append("first"))
    first = received.daemons[0].serial
    over()
    second = received.poll(0, "second")
    received.announce(first)
    elsewhere = received.poll(1, "third")
    received.announce(elsewhere)
    assert received.ended == []
    received.announce(second)
    assert received.ended == ["third"]


def test_a_lost_notice_keeps_no_poll_for_long() -> None:
    received = Told()
    received.poll(0, "first")
    received.time = ANNOUNCED_SECONDS
    received.announce(received.poll(1, "second"))
    assert received.ended == ["first"]


@pytest.mark.parametrize("daemons", [(0, 0, 0, 0), (0, 1, 0, 1)])
def test_a_name_ends_one_poll_in_five_seconds_the_oldest_first(daemons: tuple[int, ...]) -> None:
    received = Told()
    for at, name in zip(daemons, ("a", "b", "c", "d"), strict=True):
        received.announce(received.poll(at, name))
    assert received.ended == ["a"]
    received.time = 4.9
    received.announce(received.poll(0, "e"))
    assert set(received.ended) == {"a"}


def test_after_five_seconds_the_oldest_that_is_open_ends() -> None:
    received = Told()
    over = {name: received.daemons[0].begin_poll("w", partial(received.ended.append, name)) for name in "abc"}
    over["a"]()
    received.time = 5.0
    received.poll(0, "d")
    assert received.ended == ["a", "b"]


def test_while_redis_is_away_a_name_still_ends_one_poll_in_five_seconds() -> None:
    received = Told()
    received.away = True
    over = [received.daemons[0].begin_poll("w", partial(received.ended.append, str(n))) for n in range(3)]
    assert received.ended == ["0"]
    over.pop(0)()
    received.time = 4.9
    over.append(received.daemons[0].begin_poll("w", lambda: received.ended.append("3")))
    assert received.ended == ["0"]
    received.time = 5
    over.append(received.daemons[0].begin_poll("w", lambda: received.ended.append("4")))
    assert received.ended == ["0", "1"]
    for one in over:
        one()
        one()
    assert received.daemons[0]._open == {}


@implementer(ILogObserver)
class Warnings:
    """The workers that the log warned of."""

    def __init__(self) -> None:
        self.workers: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if event["log_level"] is LogLevel.warn and "worker" in event:
            self.workers.append(event["worker"])


def test_two_that_bear_one_name_are_warned_of_once_a_minute() -> None:
    received, warnings = Told(), Warnings()
    globalLogPublisher.addObserver(warnings)
    try:
        for second in range(0, 119, 3):
            received.time = float(second)
            received.announce(received.poll(second % 2, "any"))
    finally:
        globalLogPublisher.removeObserver(warnings)
    assert warnings.workers == ["w", "w"]

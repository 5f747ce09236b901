"""Which of a worker's polls is the newest, when they are told of to several daemons."""

from __future__ import annotations

from registry.queue.workers import ANNOUNCED_SECONDS, Workers


class Told:
    """The polls of two daemons, whose notices come in the order in which Redis carried them out."""

    def __init__(self) -> None:
        self.time = 0.0
        self.daemons = [Workers(lambda: self.time) for _ in range(2)]
        self.ended: list[str] = []

    def poll(self, at: int, name: str) -> str:
        self.daemons[at].polls("w", lambda: self.ended.append(name))
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
    first = told.poll(0, "first")
    second = told.poll(0, "second")
    assert told.ended == ["first"]
    told.announce(first)  # that of the ended one says nothing of the newer one
    told.announce(told.poll(1, "third"))
    assert told.ended == ["first"]
    told.announce(second)
    assert told.ended == ["first", "third"]


def test_a_lost_notice_keeps_no_poll_for_long() -> None:
    told = Told()
    told.poll(0, "first")
    told.time = ANNOUNCED_SECONDS
    told.announce(told.poll(1, "second"))
    assert told.ended == ["first"]

"""One descriptor for all connections: which are read by epoll, and which by their own transport."""

# mypy: allow-untyped-calls

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from registry.http.epoll import EpollReader
from tests.conftest import LoggedErrors


class Reactor:
    """Knows whom it watches."""

    def __init__(self) -> None:
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)


class Transport:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.calls: list[str] = []

    def getHandle(self) -> socket.socket:
        return self.sock

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: self.calls.append(name)


class Connection:
    """A socket pair: ``peer`` is the client's side."""

    def __init__(self, reading: EpollReader) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.transport: Any = Transport(ours)
        self.got: list[bytes] = []
        self.then: Callable[[], None] = lambda: None
        self.fd = reading.add(self)

    def dataReceived(self, data: bytes) -> None:
        self.got.append(data)
        self.then()

    def close(self) -> None:
        self.transport.sock.close()
        self.peer.close()


@pytest.fixture(autouse=True)
def no_turn_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine logging a failure alone takes a turn's time."""
    monkeypatch.setattr("registry.http.epoll.monotonic", lambda: 0.0)


@pytest.fixture
def reactor() -> Reactor:
    return Reactor()


@pytest.fixture
def reading(reactor: Reactor) -> EpollReader:
    return EpollReader(reactor)


@pytest.fixture
def two(reading: EpollReader) -> Iterator[list[Connection]]:
    both = [Connection(reading), Connection(reading)]
    yield both
    for one in both:
        one.close()


def test_the_reactor_watches_one_descriptor_while_there_are_connections(
    reactor: Reactor, reading: EpollReader, two: list[Connection]
) -> None:
    assert reactor.readers == [reading]
    assert [one.transport.calls for one in two] == [["stopReading"]] * 2
    two[0].peer.send(b"a")
    two[1].peer.send(b"b")
    reading.doRead()
    assert [one.got for one in two] == [[b"a"], [b"b"]]
    for one in two:
        reading.remove(one.fd, one)
    assert reactor.readers == []


@pytest.mark.parametrize("reset", [False, True])
def test_an_end_is_left_to_the_transport_to_find(
    reactor: Reactor, reading: EpollReader, two: list[Connection], reset: bool
) -> None:
    if reset:
        two[0].transport.sock.send(b"never read")
    two[0].peer.close()
    reading.doRead()
    assert two[0].transport.calls == ["stopReading", "startReading"]
    assert not two[0].got
    two[1].peer.send(b"b")
    reading.doRead()
    assert two[1].got == [b"b"]


def test_a_connection_that_fails_is_cut_and_the_others_go_on(
    reading: EpollReader, two: list[Connection], logged_errors: LoggedErrors
) -> None:
    def fails() -> None:
        raise RuntimeError("on purpose")

    two[0].then = fails
    for one in two:
        one.peer.send(b"a")
    reading.doRead()
    assert two[0].transport.calls == ["stopReading", "abortConnection"]
    assert two[1].got == [b"a"]
    assert len(logged_errors.flush(RuntimeError)) == 1


def test_of_a_connection_that_is_not_read_the_end_is_watched_for(
    reactor: Reactor, reading: EpollReader, two: list[Connection]
) -> None:
    one = two[0]
    reading.remove(one.fd, one)
    assert reading.watch_end(one.transport, one) == one.fd
    one.peer.send(b"a")
    reading.doRead()
    assert not one.got and one.transport.calls == ["stopReading"]
    one.peer.shutdown(socket.SHUT_WR)
    reading.doRead()
    assert not one.got and one.transport.calls == ["stopReading", "abortConnection"]
    reading.remove(two[1].fd, two[1])
    assert reactor.readers == []


def test_a_connection_that_ended_when_another_was_read_is_not_read(
    reading: EpollReader, two: list[Connection]
) -> None:
    for at, one in enumerate(two):
        other = two[1 - at]
        one.then = lambda other=other: reading.remove(other.fd, other)  # type: ignore[misc]
        one.peer.send(b"a")
    reading.doRead()
    assert sorted(len(one.got) for one in two) == [0, 1]


def test_a_descriptor_that_was_used_again_stays_with_its_new_connection(
    reading: EpollReader, two: list[Connection]
) -> None:
    old = two[0]
    old.close()
    reading.remove(old.fd, old)
    new = Connection(reading)
    assert new.fd == old.fd
    reading.remove(old.fd, old)
    new.peer.send(b"a")
    reading.doRead()
    assert new.got == [b"a"]
    reading.remove(new.fd, new)
    new.close()


def test_a_reactor_that_stops_ends_all_connections(reading: EpollReader, two: list[Connection]) -> None:
    reading.connectionLost(Failure(ConnectionDone()))
    assert [one.transport.calls for one in two] == [["stopReading", "connectionLost"]] * 2


def test_a_turn_ends_in_time_and_the_rest_is_read_in_the_next(
    reading: EpollReader, two: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("registry.http.epoll.monotonic", lambda: now[0])

    def takes_long() -> None:
        now[0] += 1

    for one in two:
        one.then = takes_long
        one.peer.send(b"a")
    reading.doRead()
    assert sorted(len(one.got) for one in two) == [0, 1]
    for one in two:
        one.peer.send(b"b")
    # Whose turn did not come is first in the next one.
    reading.doRead()
    assert sorted(one.got for one in two) == [[b"a"], [b"ab"]]
    reading.doRead()
    assert sorted(b"".join(one.got) for one in two) == [b"ab", b"ab"]

"""A master that Sentinels watch: finds it, connects to it, and notices when another server takes its place.

What a Sentinel says is a hint. It may go on naming a server that was demoted, so every connection asks the server itself
with ROLE, in ``link.py``. A server that is not a master is passed over for a while if the Sentinels name another one.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

import hiredis
from twisted.internet.defer import Deferred, fail, inlineCallbacks
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from registry.redis.address import RedisAddress
from registry.redis.protocol import pack

# All in seconds: how long a Sentinel may take to answer; how long the other Sentinels may take after the first has answered;
# how often the Sentinels are asked whether the master has changed; how long a server that was not a master is passed over.
ANSWER_SECONDS = 1.0
OTHERS_SECONDS = 0.2
WATCH_SECONDS = 1.0
PASSED_OVER_SECONDS = 10.0

Place = tuple[str, int]


class SentinelError(Exception):
    """No Sentinel names the master. The text says why, without passwords."""


class SentinelAddress:
    """The address of a master by its name. It stands in for a `RedisAddress`.

    ``server`` is the address of the master without host and port: TLS, user, password and database. ``generation`` grows when
    another server becomes the master; a link that connected before must connect again.
    """

    is_master_required = True
    _log = Logger()

    def __init__(
        self,
        sentinels: tuple[RedisAddress, ...],
        master: str,
        server: RedisAddress,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.sentinels = sentinels
        self.master = master
        self.server = server
        self.generation = 0
        self.current: RedisAddress | None = None
        self._now = now
        self._passed_over: dict[Place, float] = {}
        self._watch_call: Any = None
        self._asking: Deferred[Any] | None = None

    @property
    def username(self) -> str | None:
        """The user on the master."""
        return self.server.username

    @property
    def password(self) -> str | None:
        """The password on the master."""
        return self.server.password

    @property
    def db(self) -> int:
        """The database on the master."""
        return self.server.db

    def __str__(self) -> str:
        scheme = "rediss+sentinel" if self.server.kind == "tls" else "redis+sentinel"
        text = f"{scheme}://{','.join(sentinel.place for sentinel in self.sentinels)}/{self.master}"
        return f"{text} (master {self.current.place})" if self.current is not None else text

    def check_files(self) -> None:
        """Raise ValueError, with one sentence, when a file that the URL names cannot be used."""
        for address in (self.server, *self.sentinels):
            address.check_files()

    def endpoint(self, reactor: Any, timeout: float = 3.0) -> IStreamClientEndpoint:
        """A client endpoint that finds the master at each connection, and then connects to it within ``timeout`` seconds."""
        return _MasterEndpoint(self, reactor, timeout)

    def pass_over(self) -> None:
        """The server that was found is not a master: prefer others that the Sentinels name."""
        if self.current is not None:
            self._passed_over[_place(self.current)] = self._now() + PASSED_OVER_SECONDS

    # -- finding the master

    @inlineCallbacks
    def find(self, reactor: Any) -> Any:
        """Fires with the `RedisAddress` of the server that most Sentinels call the master. Fails with `SentinelError`."""
        votes, errors = yield _Survey(reactor, self).done
        if not votes:
            raise SentinelError("; ".join(dict.fromkeys(errors)) or "no Sentinel answered")
        now = self._now()
        self._passed_over = {place: until for place, until in self._passed_over.items() if until > now}
        preferred = [place for place, _ in votes.most_common() if place not in self._passed_over]
        found = preferred[0] if preferred else votes.most_common(1)[0][0]
        return self._set_current(found)

    def _set_current(self, place: Place) -> RedisAddress:
        current = self.current
        if current is None or _place(current) != place:
            self.current = replace(self.server, host=place[0], port=place[1])
            if current is not None:
                self.generation += 1
                self._log.info(
                    "the master {master} is now the Redis at {place}",
                    master=self.master,
                    place=self.current.place,
                )
        assert self.current is not None
        return self.current

    # -- noticing that it has changed

    def start(self, reactor: Any) -> None:
        """Ask the Sentinels from time to time whether the master has changed."""

        def ask() -> None:
            self._asking = self._look_again(reactor)
            self._asking.addErrback(lambda _: None).addBoth(again)

        def again(_: Any) -> None:
            self._asking = None
            if self._watch_call is not None:
                self._watch_call = reactor.callLater(WATCH_SECONDS, ask)

        self._watch_call = reactor.callLater(WATCH_SECONDS, ask)

    def stop(self) -> None:
        """Stop asking."""
        call, self._watch_call = self._watch_call, None
        if call is not None and call.active():
            call.cancel()
        if self._asking is not None:
            self._asking.cancel()

    @inlineCallbacks
    def _look_again(self, reactor: Any) -> Any:
        votes, _ = yield _Survey(reactor, self).done
        # A single Sentinel may be wrong, or cut off from the others.
        for place, count in votes.items():
            if (
                2 * count > len(self.sentinels)
                and self.current is not None
                and place not in self._passed_over
            ):
                self._set_current(place)


class _Survey:
    """Asks all Sentinels at once. ``done`` fires with the votes by place, and the errors of those that named none.

    It fires when a majority agrees, when all have answered, or some time after the first has named a master.
    """

    def __init__(self, reactor: Any, address: SentinelAddress) -> None:
        self.done: Deferred[tuple[Counter[Place], list[str]]] = Deferred(lambda _: self._cancel())
        self._reactor = reactor
        self._votes: Counter[Place] = Counter()
        self._errors: list[str] = []
        self._left = self._all = len(address.sentinels)
        self._timer: Any = None
        self._asked = [_ask(reactor, sentinel, address.master) for sentinel in address.sentinels]
        for sentinel, answer in zip(address.sentinels, list(self._asked), strict=True):
            answer.addCallbacks(self._named, self._failed, errbackArgs=(sentinel,))

    def _named(self, place: Place) -> None:
        self._votes[place] += 1
        if self._timer is None:
            self._timer = self._reactor.callLater(OTHERS_SECONDS, self._end)
        self._count(2 * self._votes[place] > self._all)

    def _failed(self, failure: Failure, sentinel: RedisAddress) -> None:
        text = failure.getErrorMessage() or type(failure.value).__name__
        if sentinel.password:
            text = text.replace(sentinel.password, "***")
        self._errors.append(f"the Sentinel at {sentinel.place}: {text}")
        self._count(False)

    def _count(self, is_decided: bool) -> None:
        self._left -= 1
        if is_decided or not self._left:
            self._end()

    def _end(self) -> None:
        if not self.done.called:
            self._cancel()
            self.done.callback((self._votes, self._errors))

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        # The survey counts no further answers.
        self._left = self._all + 1
        for answer in self._asked:
            answer.addErrback(lambda _: None).cancel()


@implementer(IStreamClientEndpoint)
class _MasterEndpoint:
    """Connects to whichever server is the master now."""

    def __init__(self, address: SentinelAddress, reactor: Any, timeout: float) -> None:
        self._address = address
        self._reactor = reactor
        self._timeout = timeout

    @inlineCallbacks
    def connect(self, factory: Any) -> Any:
        server = yield self._address.find(self._reactor)
        protocol = yield server.endpoint(self._reactor, self._timeout).connect(factory)
        if self._address.current is not server:
            # Another link has learned meanwhile that this is no longer the master.
            protocol.transport.abortConnection()
        return protocol


class _Question(Protocol):
    """One question to one Sentinel: ``answer`` fires with the last reply."""

    def __init__(self, commands: list[bytes]) -> None:
        self._commands = deque(commands)
        self._reader = hiredis.Reader()
        self.answer: Deferred[Any] = Deferred(lambda _: self.transport.abortConnection())  # type: ignore[union-attr]

    def connectionMade(self) -> None:
        self._send()

    def _send(self) -> None:
        self.transport.write(self._commands.popleft())  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            reply = self._reader.gets()
        except hiredis.HiredisError as error:
            reply = SentinelError(f"this is not the Redis protocol: {error}")
        if reply is False or self.answer.called:
            return
        if not isinstance(reply, Exception) and self._commands:
            self._send()
            return
        self.answer.callback(reply) if not isinstance(reply, Exception) else self.answer.errback(reply)
        self.transport.abortConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = Failure(ConnectionError())) -> None:  # noqa: B008
        if not self.answer.called:
            self.answer.errback(SentinelError("it closed the connection"))


def _ask(reactor: Any, sentinel: RedisAddress, master: str) -> Deferred[Place]:
    """Fires with the place of the master according to one Sentinel, within `ANSWER_SECONDS`."""
    commands = []
    if sentinel.password is not None:
        user = () if sentinel.username is None else (sentinel.username,)
        commands.append(pack("AUTH", *user, sentinel.password))
    commands.append(pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", master))
    factory = Factory.forProtocol(lambda: _Question(commands))
    factory.noisy = False
    try:
        question: Deferred[Any] = sentinel.endpoint(reactor, ANSWER_SECONDS).connect(factory)
    except Exception as error:
        return fail(error)

    def named(reply: Any) -> Place:
        if reply is None:
            raise SentinelError(f"it knows no master named {master!r}")
        if not (isinstance(reply, list) and len(reply) == 2 and bytes(reply[1]).isdigit()):
            raise SentinelError("its answer is not an address")
        return reply[0].decode("utf-8", "replace"), int(reply[1])

    def late(*_: Any) -> Any:
        raise SentinelError("it did not answer in time")

    question.addCallback(lambda protocol: protocol.answer)
    return question.addCallback(named).addTimeout(ANSWER_SECONDS, reactor, late)


def _place(address: RedisAddress) -> Place:
    return address.host, address.port

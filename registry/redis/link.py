"""Supervised connections to Redis. Each is ready or not, always reconnects, and never queues without bound.

The cycle: connect, AUTH, SELECT, PING until Redis is neither loading nor busy, ``on_ready``, ready; when the
connection is lost, a short wait, and again.

Only a ready link takes commands; each is written at once and answered in order. A reply that misses the
deadline ends the connection, and the commands in flight fail as ``unknown``: Redis may still carry them out,
as a stopped Redis does when it is continued.
"""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    fail,
    gatherResults,
    inlineCallbacks,
    maybeDeferred,
    succeed,
)
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import ResponseError

from registry.errors import RedisUnavailable
from registry.redis.address import RedisAddress, parse_redis_url
from registry.redis.faults import public_text
from registry.redis.protocol import LinkProtocol, pack
from registry.redis.topology import Address
from registry.sockets import set_tcp_options

__all__ = ["Link", "Pool", "RedisAddress", "pack", "parse_redis_url"]

# LAST_RETRY is the longest that a held request waits when Redis is back already.
FIRST_RETRY, LAST_RETRY = 0.05, 0.5
REFUSED_RETRY = 2.0  # a wrong password need not stay wrong: it may be rotated
REFUSALS = {"WRONGPASS", "NOAUTH", "NOPERM", "DENIED", "ERR"}
IDLE_PING = 1.0
LOADING_PING = 0.2
# A connection that was ready for a shorter time keeps its backoff. Else the link would reconnect twenty times a
# second to a replica that passes the greeting and refuses every write.
STABLE_SECONDS = 1.0


class Link:
    """One supervised connection; ready when the Deferred that ``on_ready(link)`` may return has fired.

    ``ready`` is for reading only; ``last_error`` is one sentence, "" when all is well.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: Address,
        *,
        name: str = "redis",
        on_ready: Callable[[Link], Any] | None = None,
        command_seconds: float = 3.0,
        monotonic: Callable[[], float] = time.monotonic,
        protocol: Callable[[Link], LinkProtocol] = LinkProtocol,
    ) -> None:
        self.address = address
        self.name = name
        self.ready = False
        self.last_error = "not connected to Redis yet"
        self.command_seconds = command_seconds
        self.on_attempt: Callable[[], None] = lambda: None  # called after each attempt to connect
        self._reactor = reactor
        self._on_ready = on_ready
        self._monotonic = monotonic
        self._make_protocol = protocol
        self._protocol: LinkProtocol | None = None
        self._handshake_done = False
        self._handshake_call: Deferred[Any] | None = None
        self._connecting: Deferred[Any] | None = None
        self._running = False
        self._stopped: list[Deferred[None]] = []
        self._retry: Any = None
        self._delay = FIRST_RETRY
        self._generation = address.generation
        self._refused = False
        self._ready_since = 0.0
        self.away_since = monotonic()  # when it was ready last
        self._logged_at: dict[str, float] = {}
        self._tick_every = max(0.02, min(0.25, command_seconds / 12))
        self._tick: Any = None
        self._ticked = 0.0
        self._marks: deque[tuple[float, int]] = deque()
        self._seen, self._quiet_since = 0, 0.0

    # -- commands ------------------------------------------------------------------------------------------

    def call(self, encoded: bytes) -> Deferred[Any]:
        """Send one command that ``pack()`` made; the reply is bytes, int, None or a list of these.

        Fails with RedisUnavailable, ``not_applied`` at once when the link is not ready, ``unknown`` when the
        connection is lost or the answer does not come in time; with ResponseError for an error reply.
        Cancelling drops the reply and never the command.
        """
        if not self.ready:
            return fail(self.unavailable())
        return self._send(encoded)

    def command(self, *args: bytes | str | int) -> Deferred[Any]:
        """Pack and send, as ``call``; also works while ``on_ready`` runs, which needs it."""
        if not self._handshake_done:
            return fail(self.unavailable())
        return self._send(pack(*args))

    def unavailable(self) -> RedisUnavailable:
        """The error for a client that says why nothing can be sent."""
        return RedisUnavailable(public_text(self.last_error or "no connection to Redis"))

    @property
    def in_flight(self) -> int:
        """Commands written and not answered, our own PINGs included."""
        return len(self._protocol.waiting) if self._protocol is not None else 0

    def _send(self, encoded: bytes) -> Deferred[Any]:  # rebound to the protocol's own at each connection
        return fail(self.unavailable())

    # -- start, stop, supervision ----------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and reconnect until ``stop``."""
        if not self._running:
            self._running = True
            self._delay = FIRST_RETRY
            if self._protocol is None:  # else it is still closing, and `lost` connects again
                self._connect()

    def stop(self) -> Deferred[None]:
        """Take no more commands, await the replies in flight (bounded by the deadline), close; fires when closed."""
        self._running = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._connecting is not None:
            self._connecting.cancel()
        if self._protocol is None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped.append(stopped)
        self.last_error = "the connection to Redis is closed"
        if self._handshake_done:
            self.retire("the connection to Redis is closed")
        else:
            self.abort("the connection to Redis is closed")
        return stopped

    def _connect(self) -> None:
        self._retry = None
        factory = Factory.forProtocol(lambda: self._make_protocol(self))
        factory.noisy = False

        def attempt() -> Any:
            return self.address.endpoint(self._reactor, self.command_seconds).connect(factory)

        self._connecting = maybeDeferred(attempt)
        self._connecting.addCallbacks(lambda protocol: None, self._not_connected)

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        if self._running:
            self._failed(f"cannot connect: {failure.getErrorMessage() or type(failure.value).__name__}")
            self._schedule()
            self.on_attempt()

    def connected(self, protocol: LinkProtocol) -> None:
        """Called by the protocol when it has a transport."""
        self._connecting = None
        if not self._running:
            protocol.transport.abortConnection()
            return
        self._protocol = protocol
        self._refused = False
        self._generation = self.address.generation
        self._marks.clear()
        self._seen, self._quiet_since = 0, self._monotonic()
        set_tcp_options(protocol.transport, idle=5, interval=2, count=3, unread_ms=8000)
        self._ticked = self._monotonic()
        self._tick = self._reactor.callLater(self._tick_every, self._on_tick)
        self._handshake_call = self._handshake(protocol)
        self._handshake_call.addErrback(self._handshake_failed, protocol)

    @inlineCallbacks
    def _handshake(self, protocol: LinkProtocol) -> Any:
        address = self.address
        if address.password is not None:
            try:
                yield protocol.auth(address.password, address.username)
            except ResponseError as error:
                if address.username is None or "wrong number of arguments" not in str(error):
                    raise
                # Before Redis 6 there are no users; old URLs name one all the same, and clients ignored it.
                yield protocol.auth(address.password)
        if address.db:
            yield protocol.select(address.db)
        while True:
            try:
                yield protocol.execute_command("PING")
                break
            except ResponseError as error:
                word = error_word(error)
                if word == "MISCONF":  # its disk fails: reads still work, and writes get their own error
                    break
                if word not in ("LOADING", "BUSY"):
                    raise
                self._failed(str(error))
                yield deferLater(self._reactor, LOADING_PING)
        if address.is_master_required:
            role = (yield protocol.execute_command("ROLE"))[0]
            if role != b"master":
                address.pass_over()
                raise RedisUnavailable(
                    f"the server is not the master: its role is {role.decode('ascii', 'replace')}"
                )
        self._handshake_done = True
        self._send = protocol.send  # type: ignore[method-assign]
        if self._on_ready is not None:
            yield maybeDeferred(self._on_ready, self)
        if protocol is self._protocol and self._handshake_done:
            self.ready = True
            self._ready_since = self._monotonic()
            self.last_error = ""
            if self._logged_at:
                self._logged_at.clear()
                self._log.info(
                    "{name}: Redis at {address} is ready", name=self.name, address=str(self.address)
                )
            self.on_attempt()

    def _handshake_failed(self, failure: Failure, protocol: LinkProtocol) -> None:
        if protocol is not self._protocol or failure.check(CancelledError):
            return
        text = failure.getErrorMessage()
        if failure.check(ResponseError):
            # Too many clients is a fault that passes soon, as a failover does; a person must correct the others.
            self._refused = error_word(failure.value) in REFUSALS and "max number of clients" not in text
        elif not failure.check(RedisUnavailable):
            self._log.failure("{name}: the first commands on a connection failed", failure, name=self.name)
        if not protocol.close_reason:
            self.abort(text)

    def lost(self, protocol: LinkProtocol, text: str) -> None:
        """Called by the protocol when its transport is gone."""
        if protocol is not self._protocol:
            return
        self._tick.cancel()
        self._unready(text)
        self._protocol = None
        if self._handshake_call is not None:
            self._handshake_call.cancel()
            self._handshake_call = None
        if self._running:
            self._failed(text)
            self._schedule()
            self.on_attempt()
        stopped, self._stopped = self._stopped, []
        for waiting in stopped:
            waiting.callback(None)

    def abort(self, text: str) -> None:
        """Close the connection now; the commands in flight fail as ``unknown``."""
        protocol = self._protocol
        if protocol is not None:
            protocol.close_reason = text
            self._unready(text)
            protocol.transport.abortConnection()

    def retire(self, text: str) -> None:
        """Take no more commands; close as soon as those in flight are answered."""
        protocol = self._protocol
        if protocol is None:
            return
        if not protocol.waiting:
            self.abort(text)
        elif not protocol.close_reason:
            protocol.close_reason = text
            self._unready(text, fail_all=False)

    def _unready(self, text: str, fail_all: bool = True) -> None:
        was_ready, self.ready, self._handshake_done = self.ready, False, False
        self.__dict__.pop("_send", None)
        if was_ready:
            self.away_since = self._monotonic()
            if self._monotonic() - self._ready_since >= STABLE_SECONDS:
                self._delay = FIRST_RETRY
            if self._running:
                self.last_error = self._mask_password(text)
        if fail_all and self._protocol is not None:
            self._protocol.fail_all(text)

    def _schedule(self) -> None:
        delay = REFUSED_RETRY if self._refused else self._delay
        self._delay = min(LAST_RETRY, self._delay * 2)
        self._retry = self._reactor.callLater(delay * random.uniform(0.75, 1.0), self._connect)

    def connect_now(self) -> None:
        """Connect now if the next attempt is scheduled for later."""
        if self._retry is not None:
            self._retry.cancel()
            self._connect()

    def report(self, text: str) -> None:
        """Record what is wrong with this Redis although it answers; log each text once a minute at most."""
        if self.ready:
            self._failed(text)

    def _failed(self, text: str) -> None:
        """Record what is wrong; log each text once a minute at most."""
        self.last_error = text = self._mask_password(text)
        now = self._monotonic()
        if now - self._logged_at.get(text, now - 60.0) >= 60.0:
            if len(self._logged_at) > 50:
                self._logged_at.clear()
            self._logged_at[text] = now
            address = str(self.address)
            self._log.warn("{name}: Redis at {address}: {text}", name=self.name, address=address, text=text)

    def _mask_password(self, text: str) -> str:
        # Some servers quote the arguments of a command that they do not know.
        password = self.address.password
        return text.replace(password, "***") if password else text

    def on_error_reply(self, error: ResponseError) -> None:
        """Called by the protocol on an error reply: some mean that this connection has become useless."""
        if not self._handshake_done:
            return
        word = error_word(error)
        # LOADING: a replica loads a new copy; a new connection sends PING until that is done.
        if word in ("READONLY", "MASTERDOWN", "NOAUTH", "LOADING"):
            self.retire(error_text(error))

    def _on_tick(self) -> None:
        """Watch the oldest unanswered command without a timer or a timestamp per command.

        A mark is (time, how many commands had been written by then): while fewer have been answered, the
        oldest unanswered command is at least as old as the mark.
        """
        now = self._monotonic()
        held_up = now - self._ticked - self._tick_every
        self._ticked = now
        self._tick = self._reactor.callLater(self._tick_every, self._on_tick)
        protocol = self._protocol
        if protocol is None:
            return
        if self._generation != self.address.generation:
            self.retire("another server is now the master")
        marks = self._marks
        if held_up > 0.5:
            # This process was stopped (SIGSTOP, suspend), and replies may be unread: do not count that time.
            self._marks = marks = deque((then + held_up, count) for then, count in marks)
        while marks and marks[0][1] <= protocol.answered:
            marks.popleft()
        if marks and now - marks[0][0] >= self.command_seconds:
            self.abort(f"Redis did not answer within {self.command_seconds:g} s")
            return
        if protocol.waiting:
            written = protocol.answered + len(protocol.waiting)
            if not marks or marks[-1][1] != written:
                marks.append((now, written))
        elif protocol.answered != self._seen:
            self._seen, self._quiet_since = protocol.answered, now
        elif self._handshake_done and now - self._quiet_since >= IDLE_PING:
            protocol.send(PING).addErrback(lambda failure: None)


PING = pack(b"PING")
# What precedes the text of an error in a script: before Redis 7 it names the place in the script; from 7 on it is there where
# the script raised again what it had caught.
_OF_A_SCRIPT = re.compile(
    r"\AERR (?:Error running script .* -(?=[A-Z]+ )|(?=(?:READONLY|MISCONF|NOREPLICAS) ))"
)


def first_error(failure: Failure) -> Failure:
    """The first failure, taken out of the one that `gatherResults` wraps around it."""
    first: Failure = failure.value.subFailure  # type: ignore[union-attr]
    return first


def error_text(error: ResponseError) -> str:
    """The text of an error reply, without what Redis puts in front of an error in a script."""
    text = str(error)
    in_front = _OF_A_SCRIPT.search(text)
    return text[in_front.end() :] if in_front else text


def error_word(error: ResponseError) -> str:
    """The first word of an error reply, which names its kind: READONLY, NOSCRIPT, OOM, …"""
    return error_text(error).split(" ", 1)[0]


class Pool:
    """Up to ``size`` links, opened when the others are busy; for commands that need not stay in order."""

    def __init__(self, make_link: Callable[[], Link], size: int) -> None:
        self._make_link = make_link
        self._size = max(1, size)
        self._links: list[Link] = []
        self._waiting: list[tuple[Deferred[None], int]] = []

    @property
    def ready(self) -> bool:
        """Whether a command would be sent now."""
        return any(link.ready for link in self._links)

    def start(self) -> None:
        """Open the first link."""
        if not self._links:
            self._open()

    def stop(self) -> Deferred[None]:
        """Close all, as ``Link.stop``."""
        links, self._links = self._links, []
        self._attempted()
        return gatherResults([link.stop() for link in links]).addCallback(lambda _: None)

    def call(self, encoded: bytes) -> Deferred[Any]:
        """As ``Link.call``, on the ready link with the least in flight."""
        usable = [link for link in self._links if link.ready]
        if not usable:
            return fail(self._links[0].unavailable() if self._links else RedisUnavailable(public_text("")))
        best = min(usable, key=lambda link: link.in_flight)
        if best.in_flight and len(usable) == len(self._links) < self._size:
            self._open()
        return best.call(encoded)

    def command(self, *args: bytes | str | int) -> Deferred[Any]:
        """Pack and send, as ``call``."""
        return self.call(pack(*args))

    def _open(self) -> None:
        link = self._make_link()
        link.on_attempt = self._attempted
        self._links.append(link)
        link.start()

    def soon(self) -> Deferred[None]:
        """Fires when a link is ready, or new attempts to connect have failed. To be called when Redis is known to be back."""
        if self.ready or not self._links:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        # Two attempts for each link: the first may have begun before Redis was back.
        self._waiting.append((waiting, 2 * len(self._links)))
        for link in self._links:
            link.connect_now()
        return waiting

    def _attempted(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter, attempts in waiting:
            if attempts > 1 and self._links and not self.ready:
                self._waiting.append((waiter, attempts - 1))
            elif not waiter.called:
                waiter.callback(None)

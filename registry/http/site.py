"""The web server below the application: `make_site`, the requests it hands on, and `drained`.

What is malformed, too large, too slow or sent by a page of another site ends in `registry.http.channel` and
`registry.http.screening`; a resource sees only requests whose body is complete, in memory and within limits.
"""

# mypy: allow-untyped-calls
# twisted.web's Request and Site are mostly untyped.

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from registry.http.channel import IDLE, Channel, Limits, new_request_id, too_large
from registry.http.screening import ALLOW, Refusal, sane_request_id

__all__ = ["Limits", "RegistryRequest", "RegistrySite", "drained", "make_site"]


class RegistryRequest(Request):  # type: ignore[misc]
    """A request with an id that is in its answer and in the log.

    ``request_id`` (bytes) is there as soon as a resource sees it. Setting the answer's header ``Connection:
    close`` before the first write closes the connection after it.
    """

    defaultContentType = b"application/json"
    request_id = b""
    body_limit = 0
    received = 0  # bytes of the body so far

    def __init__(self, channel: Channel, *args: Any, **kwargs: Any) -> None:
        super().__init__(channel, *args, **kwargs)
        self.began = time.monotonic()
        self.connection = channel  # `channel` itself is taken away when the answer is finished

    def handleContentChunk(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > self.body_limit:
            self.connection.refuse(too_large(self.body_limit))
        else:
            super().handleContentChunk(data)

    def process(self) -> None:
        given = self.requestHeaders.getRawHeaders(b"x-request-id", ())
        self.request_id = sane_request_id(given) or new_request_id()
        if self.method == b"OPTIONS" and self.uri in (b"*", b"/"):
            # What proxies ask to see whether somebody is there. No resource is asked.
            self.setHeader(b"Allow", ALLOW)
            self.setHeader(b"Cache-Control", b"no-store")
            self.setHeader(b"Content-Length", b"0")
            self.finish()
            return
        super().process()

    def write(self, data: bytes) -> None:
        if not self.startedWriting:
            headers = self.responseHeaders
            headers.setRawHeaders(b"X-Request-Id", [self.request_id])
            headers.setRawHeaders(b"Server", [b"registry"])
            headers.setRawHeaders(b"X-Content-Type-Options", [b"nosniff"])
            if self.connection.site.draining:
                headers.setRawHeaders(b"Connection", [b"close"])
            if b"close" in headers.getRawHeaders(b"Connection", ()):
                self.connection.persistent = False
                headers.removeHeader(b"Keep-Alive")
        super().write(data)

    def processingFailed(self, reason: Failure) -> Failure:
        self._log.failure("Incident {incident}", failure=reason, incident=self.request_id.decode("ascii"))
        if self.finished or self._disconnected:
            return reason
        if self.startedWriting:
            # Half an answer cannot be taken back; a cut connection is not mistaken for a whole one.
            self.connection.abort()
            return reason
        incident = self.request_id.decode("ascii")
        sentence = f"Something went wrong on our side; the log tells more under the incident {incident}."
        body = Refusal(500, "internal_error", sentence).body()
        self.setResponseCode(500)
        self.setHeader(b"Content-Type", b"application/json")
        self.setHeader(b"Cache-Control", b"no-store")
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()
        return reason


class RegistrySite(Site):  # type: ignore[misc]
    """Made by `make_site`. ``connections``: the open `Channel`s; ``draining``: none stays open."""

    _log = Logger()

    def __init__(
        self,
        resource: IResource,
        *,
        reactor: IReactorTime,
        max_body: int,
        big_bodies: Callable[[bytes], int | None] | None,
        access_log: Callable[[RegistryRequest], None] | None,
        host_allowed: Callable[[bytes], bool],
        limits: Limits,
    ) -> None:
        super().__init__(
            resource,
            requestFactory=RegistryRequest,
            parsePOSTFormSubmission=False,
            timeout=limits.idle_seconds,
            reactor=reactor,
        )
        self.max_body = max_body
        self.big_bodies = big_bodies
        self.access_log = access_log
        self.host_allowed = host_allowed
        self.limits = limits
        self.connections: set[Channel] = set()
        self.draining = False
        self._undrained: dict[Channel, int] = {}
        self._tick_call: Any = None

    # twisted.web would make a channel that can turn into HTTP/2, past everything that is guarded here.
    def protocol(self) -> Channel:  # type: ignore[override]
        return Channel(self.limits)

    def acceptableProtocols(self) -> list[bytes]:
        return [b"http/1.1"]

    def getContentFile(self, length: int | None) -> BytesIO:
        """Bodies are bounded, so they stay in memory; never a temporary file."""
        return BytesIO()

    def limit_of(self, path: bytes) -> int:
        """How many bytes a body sent to ``path`` may have."""
        return (self.big_bodies and self.big_bodies(path)) or self.max_body

    def drain(self) -> None:
        """From now on every answer closes its connection. Idle ones stay open for `close_idle`."""
        self.draining = True

    @property
    def under_way(self) -> bool:
        """Whether a request is being read or answered."""
        return any(channel.phase != IDLE for channel in self.connections)

    def close_idle(self) -> None:
        """End the connections without a request."""
        for channel in list(self.connections):
            if channel.phase == IDLE:
                channel.close()
                # TLS waits for the client's own goodbye, which not every client says.
                channel.when_drained(partial(self._wait_no_longer, channel))

    def _wait_no_longer(self, channel: Channel, lost: Exception | None) -> None:
        if lost is None:
            self.reactor.callLater(self.limits.goodbye_seconds, channel.close_beneath)

    # The log file and its clock, twisted.web's own, are not used.
    def startFactory(self) -> None:
        pass

    def stopFactory(self) -> None:
        if self._tick_call is not None:
            self._tick_call.cancel()
            self._tick_call = None

    def log(self, request: Any) -> None:
        if self.access_log is not None:
            # An exception here would leave the connection in the middle of its request for ever.
            self.guarded(self.access_log, request)

    def guarded(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            function(argument)
        except Exception:
            self._log.failure("A callback of the web server failed")

    # One timer for all answers on their way out, not one each. It counts its own ticks, so that a clock that
    # is set an hour forward does not end every connection.
    def watch(self, channel: Channel) -> None:
        self._undrained[channel] = 0
        if self._tick_call is None:
            self._tick_call = self.reactor.callLater(1, self._tick)

    def unwatch(self, channel: Channel) -> None:
        self._undrained.pop(channel, None)

    def _tick(self) -> None:
        self._tick_call = None
        for channel, ticks in list(self._undrained.items()):
            self._undrained[channel] = ticks + 1
            if ticks >= self.limits.drain_seconds:
                channel.abort()
        if self._undrained:
            self._tick_call = self.reactor.callLater(1, self._tick)


def make_site(
    resource: IResource,
    *,
    reactor: IReactorTime,
    max_body: int,
    big_bodies: Callable[[bytes], int | None] | None = None,
    access_log: Callable[[RegistryRequest], None] | None = None,
    host_allowed: Callable[[bytes], bool],
    limits: Limits | None = None,
) -> RegistrySite:
    """The factory that serves ``resource``.

    ``max_body`` bounds bodies in bytes; ``big_bodies(path)`` may name another bound for a raw path without
    its query (None or 0: no other). ``access_log(request)`` is called after each answer, refusals included.
    ``host_allowed(name)`` is asked with the Host in lower case, without port and brackets.
    """
    return RegistrySite(
        resource,
        reactor=reactor,
        max_body=max_body,
        big_bodies=big_bodies,
        access_log=access_log,
        host_allowed=host_allowed,
        limits=limits or Limits(),
    )


def drained(request: IRequest, left: Callable[[], None], lost: Callable[[], None]) -> None:
    """Call ``left()`` when the whole answer has left the connection's own buffer for the kernel.

    May be called before the answer is written or right after ``request.finish()``. ``lost()`` comes instead
    when the connection is lost first, also because 20 s went by after the finish and it was aborted. Exactly
    one of them is called, once; ``lost`` at once when the connection is lost already. Over TLS "the answer"
    is what the TLS layer has encrypted by the next turn of the reactor: one that waits for its peer may hold
    more.
    """
    asked: Any = request
    channel: Channel = asked.connection

    def tell(error: Exception | None) -> None:
        if error is None:
            left()
        else:
            lost()

    if asked.finished or channel.lost:
        channel.when_drained(tell)
        return
    finished: Deferred[None] = asked.notifyFinish()
    finished.addCallbacks(
        lambda _: channel.when_drained(tell), lambda _: channel.when_drained(tell, ConnectionLost())
    )

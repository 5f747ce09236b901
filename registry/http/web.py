"""What Klein and twisted.web need to serve the same endpoints as our own connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.web.server import NOT_DONE_YET
from werkzeug.routing import PathConverter
from zope.interface import implementer

from registry.http.auth import ANYONE
from registry.http.codec import COMMON, Answer, retry_after_seconds
from registry.http.stream import Source


class AnyPath(PathConverter):  # type: ignore[misc]
    """Any part of a path. Werkzeug matches the decoded path; the table of routes splits the raw path, and decides."""

    regex = r"(?s:.*)"
    part_isolating = False


class WebHead:
    """The head of a request of twisted.web."""

    __slots__ = ("access", "address", "get", "method", "path", "query", "request_id")
    request_id: bytes

    def __init__(self, request: Any) -> None:
        self.access = ANYONE
        self.method: bytes = request.method
        target: bytes = request.uri
        if target[:1] != b"/" and b"://" in target:
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        self.path, _, self.query = target.partition(b"?")
        self.get: Callable[[bytes], bytes | None] = request.getHeader
        self.address: str = getattr(request.getClientAddress(), "host", None) or "-"


@implementer(IPushProducer)
class WebStream:
    """A `registry.http.stream.Sink` on a request of twisted.web. At most one piece is written before its buffer is empty again."""

    def __init__(self, request: Any, source: Source) -> None:
        self._request = request
        self._source = source
        self._is_full = self._wakes = self._is_over = False

    def begin(self) -> int:
        """Send the head of the answer, and then what the source has."""
        request, source = self._request, self._source
        headers = request.responseHeaders
        own = (
            (b"X-Request-Id", request.registry_id),
            (b"Content-Type", source.media),
            (b"Connection", b"close"),
        )
        for name, value in (*COMMON, *own, *source.headers):
            headers.setRawHeaders(name, [value])
        request.notifyFinish().addBoth(lambda _: self._closed())
        if request.method == b"HEAD":
            request.finish()
            return NOT_DONE_YET
        request.write(b"")
        request.registerProducer(self, True)
        source.begin(self)
        return NOT_DONE_YET

    def _closed(self) -> None:
        self._is_over = True
        self._source.closed()

    def wake(self) -> None:
        """The source may have a piece."""
        self._wakes = self._is_full
        if not self._is_full and not self._is_over and (piece := self._source.piece()):
            self._request.write(piece)

    def check_again(self) -> None:
        """The site checks tokens when a request begins; our own connections check them while it lasts, too."""

    def end(self, last: bytes) -> None:
        """End the stream with these bytes."""
        if not self._is_over:
            self._request.unregisterProducer()
            self._request.write(last)
            self._request.finish()

    def pauseProducing(self) -> None:
        self._is_full = True

    def resumeProducing(self) -> None:
        self._is_full = False
        if self._wakes:
            self.wake()

    def stopProducing(self) -> None:
        """The client has gone: see `_closed`."""


def write_answer(
    request: Any,
    answer: Answer,
    stopping: bool,
    delivered: Callable[[Answer], None],
    lost: Callable[[Answer], None],
) -> Any:
    """Write an answer to a request of twisted.web; ``stopping``: the daemon stops.

    Its tasks are confirmed when twisted.web has finished it (``delivered``), or put back if the client has gone (``lost``).
    """
    request.setResponseCode(answer.status)
    headers = request.responseHeaders
    own = [(b"X-Request-Id", request.registry_id)]
    if answer.status != 304:
        own.append((b"Content-Length", b"%d" % len(answer.body)))
    if answer.media:
        own += [(b"Content-Type", answer.media), (b"Cache-Control", answer.cache)]
    for name, value in (*COMMON, *own, *answer.headers):
        headers.setRawHeaders(name, [value])
    if answer.status == 202 and stopping:
        headers.setRawHeaders(b"Connection", [b"close"])
        headers.setRawHeaders(b"Retry-After", [b"%d" % retry_after_seconds()])
    if not answer.deliveries:
        return answer.body
    finished: Deferred[None] = request.notifyFinish()
    finished.addCallbacks(lambda _: delivered(answer), lambda _: lost(answer))
    request.write(answer.body)
    request.finish()
    return NOT_DONE_YET

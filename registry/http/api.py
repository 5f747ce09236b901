"""The HTTP API, every route of it, as a Klein app.

PUT|POST  /api/pushTask/{worker}    a task, any JSON value
GET|POST  /api/popTask/{worker}     ?wait=
GET       /healthz                  the process, with its version
GET       /readyz                   Redis too
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from registry import __version__
from registry.errors import NotFound
from registry.http.site import drained
from registry.http.verbs import Verbs
from registry.http.wire import JSON, NO_STORE, Answer, error_answer, failure_answer, json_answer, name_from

log = Logger()


class Api:
    """Routes to verbs. ``redis_state()`` tells whether Redis can be used, and a sentence when not."""

    app = Klein()
    # Redirects would be built from the client's Host; a double slash is simply another path.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    app.url_map.redirect_defaults = False

    def __init__(self, verbs: Verbs, redis_state: Callable[[], str], stopping: Callable[[], bool]) -> None:
        self._verbs = verbs
        self._redis_state = redis_state
        self._stopping = stopping

    def resource(self) -> Any:
        """The resource that a site serves."""
        return self.app.resource()

    @app.route("/api/pushTask/<path:worker>", methods=["PUT", "POST"])
    def push_task(self, request: IRequest, worker: str) -> Deferred[bytes]:
        return self._answer(request, self._verbs.push)

    @app.route("/api/popTask/<path:worker>", methods=["GET", "POST"])
    def pop_task(self, request: IRequest, worker: str) -> Deferred[bytes]:
        return self._answer(request, self._verbs.pop)

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: IRequest) -> Deferred[bytes]:
        return self._say(request, json_answer(200, {"status": "ok", "version": __version__}))

    @app.route("/readyz", methods=["GET"])
    def readyz(self, request: IRequest) -> Deferred[bytes]:
        why = "The registry is stopping." if self._stopping() else self._redis_state()
        if why:
            return self._say(request, error_answer(503, "not_ready", why, 2))
        return self._say(request, json_answer(200, {"status": "ready", "version": __version__}))

    @app.handle_errors(HTTPException)
    def http_error(self, request: IRequest, failure: Failure) -> Deferred[bytes]:
        error = failure.value
        if isinstance(error, MethodNotAllowed):
            allow = ", ".join(sorted(set(error.valid_methods or ()) - {"HEAD", "OPTIONS"}))
            answer = error_answer(405, "method_not_allowed", f"This path takes {allow}.")
            answer.headers += ((b"Allow", allow.encode()),)
        else:
            answer = error_answer(404, "not_found", "There is nothing at this path.")
        return self._say(request, answer)

    def _answer(
        self, request: IRequest, verb: Callable[..., Deferred[Answer]], *args: bytes
    ) -> Deferred[bytes]:
        # Werkzeug runs a GET route for HEAD; it must never take a task.
        if request.method == b"HEAD":
            return self._say(request, _no_head(request))
        _, _, query = request.uri.partition(b"?")
        body = request.content.read()
        d = maybeDeferred(lambda: verb(_segment(request, 3), query, request.getHeader, body))
        d.addErrback(_as_answer)
        return d.addCallback(lambda answer: self._say(request, answer))

    def _say(self, request: IRequest, answer: Answer) -> Any:
        """Write the answer whole. What it hands over is settled once it has left for the kernel, or was lost."""
        request.setResponseCode(answer.status)
        headers = request.responseHeaders
        headers.setRawHeaders(JSON[0], [JSON[1]])
        headers.setRawHeaders(NO_STORE[0], [NO_STORE[1]])
        headers.setRawHeaders(b"Content-Length", [b"%d" % len(answer.body)])
        for name, value in answer.headers:
            headers.setRawHeaders(name, [value])
        if answer.status == 202 and self._stopping():
            headers.setRawHeaders(b"Connection", [b"close"])
        if not answer.taken:
            return answer.body
        request.write(answer.body)
        request.finish()
        drained(request, lambda: self._verbs.delivered(answer), lambda: self._verbs.lost(answer))
        return NOT_DONE_YET


def _segment(request: IRequest, at: int) -> bytes:
    """A segment of the path as it came, so that an encoded slash stays within it."""
    path, _, _ = request.uri.partition(b"?")
    if path[:1] != b"/":
        path = request.path
    segments = path.split(b"/")
    if len(segments) != at + 1:
        raise NotFound("There is nothing at this path.")
    return name_from(segments[at])


def _no_head(request: IRequest) -> Answer:
    answer = error_answer(405, "method_not_allowed", "This path takes no HEAD.")
    answer.headers += ((b"Allow", b"GET, POST"),)
    return answer


def _as_answer(failure: Failure) -> Any:
    # The client has gone: Klein throws the answer away.
    if failure.check(CancelledError):
        return failure
    return failure_answer(failure)

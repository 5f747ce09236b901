"""The HTTP API, every route of it, as a Klein app. What producers and workers ask for is told in ``verbs.py``.

GET               /api/queues                          ?cursor limit search sort family
GET|PATCH|DELETE  /api/queues/{q}                      PATCH: rules of its policy, null resets · DELETE purges
GET|DELETE        /api/queues/{q}/tasks                ?state cursor limit search · DELETE ?state reason error before limit dry_run
GET|DELETE        /api/queues/{q}/tasks/{id}           GET ?wait · DELETE cancels
GET               /api/queues/{q}/tasks/{id}/why       why it is not running
POST              /api/queues/{q}/tasks/{id}/run       a delayed task now
POST              /api/queues/{q}/retry                ?state=dead id reason error before limit spread dry_run
POST              /api/queues/{q}/pause                ?seconds
POST              /api/queues/{q}/move                 ?to state
GET               /api/schedules                       all schedules
GET|PUT|DELETE    /api/schedules/{name}                a task on a clock
POST              /api/schedules/{name}/run            push its task now
GET               /healthz /readyz                     the process, and Redis too
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import PathConverter

from registry import __version__
from registry.errors import NotFound, RedisUnavailable, ShuttingDown
from registry.http.admin import Admin, Ask, WrongMethod
from registry.http.site import drained
from registry.http.verbs import ROUTES, Verbs
from registry.http.wire import (
    JSON,
    NO_STORE,
    Answer,
    come_back,
    error_answer,
    failure_answer,
    json_answer,
    options,
)
from registry.queue.reply import Reply, as_deferred

log = Logger()


# What a path takes is told where its parts are known.
EVERY_METHOD = ["GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS"]


class AnyPath(PathConverter):  # type: ignore[misc]
    """The rest of a path, line ends too: what a name may hold is said in one place, and not by a 404."""

    regex = r"(?s:.+?)"
    part_isolating = False


class Api:
    """Routes to verbs. ``redis_state()`` fires with what is wrong with Redis as a sentence, "" for nothing."""

    app = Klein()
    # Redirects would be built from the client's Host; a double slash is simply another path.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    app.url_map.redirect_defaults = False
    app.url_map.converters["path"] = AnyPath

    def __init__(
        self,
        verbs: Verbs,
        admin: Admin,
        redis_state: Callable[[], Deferred[str]],
        stopping: Callable[[], bool],
        warnings: Callable[[], list[str]],
    ) -> None:
        self._verbs = verbs
        self._admin = admin
        self._redis_state = redis_state
        self._stopping = stopping
        self._warnings = warnings

    def resource(self) -> Any:
        """The resource that a site serves."""
        return self.app.resource()

    @app.route("/api/<any(pushTask, pushTasks):word>/<path:rest>", methods=["PUT", "POST"])
    @app.route("/api/<any(popTask, popTasks):word>/<path:rest>", methods=["GET", "POST"])
    @app.route(
        "/api/<any(ackTask, failTask, releaseTask, extendTask, ackTasks):word>/<path:rest>", methods=["POST"]
    )
    def work(self, request: IRequest, word: str, rest: str) -> Any:
        return self._answer(request, self._work)

    @app.route("/api/<any(pushTask, pushTasks, ackTasks):word>/", methods=["PUT", "POST"])
    @app.route("/api/<any(popTask, popTasks):word>/", methods=["GET", "POST"])
    def nameless(self, request: IRequest, word: str) -> Any:
        return self._answer(request, self._work)

    @app.route("/api/queues", methods=["GET"])
    def queues(self, request: IRequest) -> Any:
        return self._answer(request, lambda ask: self._admin.queues(ask.query))

    @app.route("/api/queues/<path:rest>", methods=EVERY_METHOD)
    def queue(self, request: IRequest, rest: str) -> Any:
        return self._answer(request, self._admin.queue_path)

    @app.route("/api/schedules", methods=["GET"])
    def schedules(self, request: IRequest) -> Any:
        return self._answer(request, lambda ask: self._admin.schedules(ask.query))

    @app.route("/api/schedules/<path:rest>", methods=EVERY_METHOD)
    def schedule(self, request: IRequest, rest: str) -> Any:
        return self._answer(request, self._admin.schedule_path)

    def _work(self, ask: Ask) -> Deferred[Answer]:
        """A route of the verbs, found by the path as it came."""
        word, *segments = ask.segments[1:]
        route = ROUTES[word]
        if len(segments) != route.segments:
            raise NotFound("There is nothing at this path.")
        # Werkzeug runs a GET route for HEAD; it must never take a task.
        if ask.method not in route.methods:
            raise WrongMethod(route.methods)
        verb: Callable[..., Reply | Deferred[Answer]] = getattr(self._verbs, route.verb)
        return as_deferred(verb(*segments, ask.query, ask.header, ask.body))

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: IRequest) -> Any:
        return self._answer(request, self._health)

    @app.route("/readyz", methods=["GET"])
    def readyz(self, request: IRequest) -> Any:
        return self._answer(request, self._readiness)

    def _health(self, ask: Ask) -> Answer:
        options(ask.query, {})
        return json_answer(200, {"status": "ok", "version": __version__})

    @inlineCallbacks
    def _readiness(self, ask: Ask) -> Any:
        options(ask.query, {})
        if self._stopping():
            raise ShuttingDown()
        why = yield self._redis_state()
        if why:
            raise RedisUnavailable(why, retry_after=2)
        return json_answer(200, {"status": "ready", "version": __version__, "warnings": self._warnings()})

    @app.handle_errors(HTTPException)
    def http_error(self, request: IRequest, failure: Failure) -> Any:
        error = failure.value
        if isinstance(error, MethodNotAllowed):
            answer = method_answer(set(error.valid_methods or ()) - {"HEAD", "OPTIONS"})
        else:
            answer = error_answer(404, "not_found", "There is nothing at this path.")
        return self._say(request, answer)

    def _answer(self, request: IRequest, verb: Callable[[Ask], Any]) -> Any:
        path, _, query = request.uri.partition(b"?")
        if path[:1] != b"/":
            path = request.path
        # Werkzeug reads several slashes at the front as one.
        if path[:2] == b"//":
            return self._say(request, error_answer(404, "not_found", "There is nothing at this path."))
        segments = path.split(b"/")[1:]
        # Werkzeug has found the route in the decoded path, the verbs cut the names from the path as it came.
        if b"%" in b"".join(segments[:2]):
            return self._say(request, error_answer(404, "not_found", "There is nothing at this path."))
        body = request.content.read()
        request.content.close()
        ask = Ask(request.method, segments, query, request.getHeader, body)
        d = maybeDeferred(verb, ask)
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
            headers.setRawHeaders(b"Retry-After", [b"%d" % come_back()])
        if not answer.taken:
            return answer.body
        request.write(answer.body)
        request.finish()
        drained(request, lambda: self._verbs.delivered(answer), lambda: self._verbs.lost(answer))
        return NOT_DONE_YET


def _as_answer(failure: Failure) -> Any:
    # The client has gone: Klein throws the answer away.
    if failure.check(CancelledError):
        return failure
    error = failure.value
    if isinstance(error, WrongMethod):
        return method_answer(method.decode() for method in error.allowed)
    return failure_answer(failure)


def method_answer(methods: Iterable[str]) -> Answer:
    """405, with what the path takes."""
    allow = ", ".join(sorted(methods))
    answer = error_answer(405, "method_not_allowed", f"This path takes {allow}.")
    answer.headers += ((b"Allow", allow.encode()),)
    return answer

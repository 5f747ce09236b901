"""All routes of the HTTP API, as a Klein app. ``tasks.py`` lists the requests of producers and workers.

A connection finds a route by the method and the raw path (`Api.find`) and runs its endpoint; the Klein resource serves the same
endpoints to any other twisted.web server. An endpoint takes a `Request` and returns an `Answer`, or a Deferred of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks, maybeDeferred, succeed
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from werkzeug.exceptions import HTTPException

from registry import __version__
from registry.errors import RedisUnavailable, RegistryError, ShuttingDown
from registry.http import admin, options
from registry.http.admin import Admin
from registry.http.audit import AUDIT_OPTIONS, UNDO
from registry.http.auth import ANYONE, STRANGER, Access, Gate, describe, describe_rights
from registry.http.charts import STATS_OPTIONS
from registry.http.codec import (
    Answer,
    error_to_answer,
    failure_answer,
    json_answer,
)
from registry.http.events import EVENTS_OPTIONS, Events
from registry.http.finder import Finder
from registry.http.findings import FindingList
from registry.http.orders import Orders
from registry.http.overview import DEAD_OPTIONS, WORKERS_OPTIONS
from registry.http.parser import Found, check_right, new_id
from registry.http.reference import Reference
from registry.http.request import Match, Request, Route
from registry.http.schedules import SCHEDULES_OPTIONS
from registry.http.sessions import Sessions
from registry.http.static import Static
from registry.http.tasks import Tasks
from registry.http.token_list import TOKENS_OPTIONS, TokenList
from registry.http.validation import Refusal, sane_request_id
from registry.http.web import AnyPath, WebHead, WebStream, write_answer
from registry.queue.promise import Promise, as_deferred

SESSION = "/api/session"
# The text format of Prometheus.
METRICS = b"text/plain; version=0.0.4; charset=utf-8"
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


app = Klein()
# No redirects: they would be built from the client's Host. A path with a double slash is simply a different path.
app.url_map.merge_slashes = False
app.url_map.strict_slashes = True
app.url_map.redirect_defaults = False
app.url_map.converters["default"] = AnyPath
ROUTES: list[Route] = []


def route(methods: str, path: str, *, right: str, **more: Any) -> Callable[[Endpoint], Endpoint]:
    """Declare an endpoint: ``methods`` with | between them, ``path`` with varying segments in <…>; see `Route`."""

    def declare(endpoint: Endpoint) -> Endpoint:
        row = Route(frozenset(methods.encode().split(b"|")), path, endpoint.__name__, right, **more)
        ROUTES.append(row)

        def serve(api: Api, request: IRequest, **_: str) -> Any:
            return api.serve(request)

        serve.__name__ = endpoint.__name__
        app.route(path, methods=methods.split("|"))(serve)
        return endpoint

    return declare


class Api:
    """The endpoints. ``redis_state()`` fires with a sentence about what is wrong with Redis, "" for nothing.

    ``stopping()`` returns whether the daemon is stopping, ``warnings()`` what an operator should know; ``environment``: the
    setting ENVIRONMENT.
    """

    app = app

    def __init__(
        self,
        verbs: Tasks,
        operations: Admin,
        redis_state: Callable[[], Deferred[str]],
        stopping: Callable[[], bool],
        warnings: Callable[[], list[str]],
        gate: Gate | None = None,
        sessions: Sessions | None = None,
        tokens: TokenList | None = None,
        metrics: Callable[[], Deferred[bytes]] | None = None,
        orders: Orders | None = None,
        static: Static | None = None,
        environment: str = "",
        reference: Reference | None = None,
        findings: FindingList | None = None,
        events: Events | None = None,
    ) -> None:
        self._tasks = verbs
        self._orders: Any = orders
        # Empty as long as no worker has an order.
        self._standing = orders.standing if orders is not None else {}
        self._admin = operations
        self._redis_state = redis_state
        self._stopping = stopping
        self._warnings = warnings
        self._metrics = metrics
        self._findings = findings
        self._events = events
        self._gate = gate or Gate()
        self._token_list = tokens or TokenList(self._gate, lambda: succeed({}))
        self._sessions = sessions or Sessions(self._gate)
        self._static = static or Static()
        self._environment = environment
        self._reference = reference
        # The busiest two do without the step through this class.
        direct = {verb: getattr(verbs, verb, None) for verb in ("push", "pop")}
        self._finder = Finder((row, direct.get(row.verb) or getattr(self, row.verb)) for row in ROUTES)
        self.find = self._finder.find

    # Producers and workers

    @route("PUT|POST", "/api/pushTask/<name>", right="push", options=options.PUSH_OPTIONS)
    def push(self, request: Request) -> Any:
        return self._tasks.push(request)

    @route("PUT|POST", "/api/pushTasks/<name>", right="push", options=options.PUSH_MANY_OPTIONS, body="batch")
    def push_many(self, request: Request) -> Any:
        return self._tasks.push_many(request)

    @route(
        "GET|POST",
        "/api/popTask/<name>",
        right="pop",
        options=options.POP_OPTIONS,
        takes_task=True,
        parks=True,
    )
    def pop(self, request: Request) -> Any:
        return self._tasks.pop(request)

    @route(
        "GET|POST",
        "/api/popTasks/<names>",
        right="pop",
        options=options.POP_MANY_OPTIONS,
        takes_task=True,
        parks=True,
    )
    def pop_many(self, request: Request) -> Any:
        return self._tasks.pop_many(request)

    @route("POST", "/api/ackTask/<name>/<lease>", right="pop", body="result")
    def ack(self, request: Request) -> Any:
        verb = self._tasks.ack
        return self._orders.told_holder(verb, request) if self._standing else verb(request)

    @route("POST", "/api/failTask/<name>/<lease>", right="pop", body="result")
    def fail(self, request: Request) -> Any:
        verb = self._tasks.fail
        return self._orders.told_holder(verb, request) if self._standing else verb(request)

    @route(
        "POST", "/api/releaseTask/<name>/<lease>", right="pop", options=options.RELEASE_OPTIONS, body="result"
    )
    def release(self, request: Request) -> Any:
        verb = self._tasks.release
        return self._orders.told_holder(verb, request) if self._standing else verb(request)

    @route(
        "POST", "/api/extendTask/<name>/<lease>", right="pop", options=options.EXTEND_OPTIONS, body="result"
    )
    def extend(self, request: Request) -> Any:
        verb = self._tasks.extend
        return self._orders.told_holder(verb, request) if self._standing else verb(request)

    @route("POST", "/api/ackTasks/<name>", right="pop", body="batch")
    def settle(self, request: Request) -> Any:
        return self._tasks.settle(request)

    # Queues

    @route("GET", "/api/queues", right="view", options=admin.QUEUES_OPTIONS)
    def queues(self, request: Request) -> Any:
        return self._admin.queues(request)

    @route("GET", "/api/queues/<name>", right="view")
    def queue(self, request: Request) -> Any:
        return self._admin.queue(request)

    @route("PATCH", "/api/queues/<name>", right="operate")
    def patch(self, request: Request) -> Any:
        return self._admin.patch(request)

    @route("DELETE", "/api/queues/<name>", right="operate", options=UNDO)
    def purge(self, request: Request) -> Any:
        return self._admin.purge(request)

    @route("POST", "/api/queues/<name>/pause", right="operate", options=admin.PAUSE_OPTIONS)
    def pause(self, request: Request) -> Any:
        return self._admin.pause(request)

    @route("POST", "/api/queues/<name>/retry", right="operate", options=admin.RETRY_OPTIONS)
    def retry(self, request: Request) -> Any:
        return self._admin.retry(request)

    @route("POST", "/api/queues/<name>/move", right="operate", options=admin.MOVE_OPTIONS)
    def move(self, request: Request) -> Any:
        return self._admin.move(request)

    @route("GET", "/api/queues/<name>/export", right="operate", options=admin.EXPORT_OPTIONS)
    def export(self, request: Request) -> Any:
        return self._admin.export(request)

    @route("POST", "/api/queues/<name>/import", right="admin", body="batch")
    def restore(self, request: Request) -> Any:
        return self._admin.restore(request)

    # Tasks

    @route("GET", "/api/queues/<name>/tasks", right="view", options=admin.TASKS_OPTIONS)
    def tasks(self, request: Request) -> Any:
        return self._admin.tasks(request)

    @route("DELETE", "/api/queues/<name>/tasks", right="operate", options=admin.DELETE_OPTIONS)
    def delete(self, request: Request) -> Any:
        return self._admin.delete(request)

    @route(
        "GET",
        "/api/queues/<name>/tasks/<id>",
        right="view",
        options=admin.TASK_OPTIONS,
        parks=True,
        or_push=True,
    )
    def task(self, request: Request) -> Any:
        return self._admin.task(request)

    @route("DELETE", "/api/queues/<name>/tasks/<id>", right="operate", options=UNDO)
    def cancel(self, request: Request) -> Any:
        return self._admin.cancel(request)

    @route("GET", "/api/queues/<name>/tasks/<id>/why", right="view", or_push=True)
    def why(self, request: Request) -> Any:
        return self._admin.why(request)

    @route("POST", "/api/queues/<name>/tasks/<id>/run", right="operate")
    def run(self, request: Request) -> Any:
        return self._admin.run(request)

    # All queues together

    @route("GET", "/api/dead", right="view", options=DEAD_OPTIONS)
    def dead(self, request: Request) -> Any:
        return self._admin.overview.dead(request)

    @route("GET", "/api/workers", right="view", options=WORKERS_OPTIONS)
    def workers(self, request: Request) -> Any:
        return self._admin.overview.workers(request)

    @route("POST", "/api/workers/<worker>", right="operate")
    def order(self, request: Request) -> Any:
        return self._admin.overview.order(request)

    @route("GET", "/api/findings", right="view")
    def findings(self, request: Request) -> Any:
        assert self._findings is not None
        return self._findings.list(request)

    @route("GET", "/api/events", right="view", options=EVENTS_OPTIONS, streams=True)
    def events(self, request: Request) -> Any:
        assert self._events is not None
        return self._events.open(request)

    @route("GET", "/api/stats", right="view", options=STATS_OPTIONS)
    def stats(self, request: Request) -> Any:
        return self._admin.stats.stats(request)

    # Schedules

    @route("GET", "/api/schedules", right="view", options=SCHEDULES_OPTIONS)
    def schedules(self, request: Request) -> Any:
        return self._admin.schedules.list(request)

    @route("GET", "/api/schedules/<name>", right="view")
    def schedule(self, request: Request) -> Any:
        return self._admin.schedules.get(request)

    @route("PUT", "/api/schedules/<name>", right="operate")
    def put_schedule(self, request: Request) -> Any:
        return self._admin.schedules.put(request)

    @route("DELETE", "/api/schedules/<name>", right="operate")
    def drop_schedule(self, request: Request) -> Any:
        return self._admin.schedules.drop(request)

    @route("POST", "/api/schedules/<name>/run", right="operate")
    def run_schedule(self, request: Request) -> Any:
        return self._admin.schedules.run(request)

    # The audit

    @route("GET", "/api/audit", right="view", options=AUDIT_OPTIONS)
    def audit(self, request: Request) -> Any:
        return self._admin.trail.lines(request)

    @route("POST", "/api/audit/<id>/undo", right="operate")
    def undo(self, request: Request) -> Any:
        return self._admin.trail.undo(request)

    # Tokens

    @route("GET", "/api/token", right="any")
    def token(self, request: Request) -> Answer:
        return json_answer(200, {**describe(request.caller.access), "address": request.caller.address})

    @route("POST", SESSION, right="sign-in")
    def sign_in(self, request: Request) -> Answer:
        return self._sessions.sign_in(request, request.is_secure)

    @route("GET", SESSION, right="any")
    def session(self, request: Request) -> Answer:
        return json_answer(200, describe(request.access))

    @route("DELETE", SESSION, right="open")
    def sign_out(self, request: Request) -> Answer:
        return self._sessions.sign_out(request.is_secure)

    @route("GET", "/api/tokens", right="operate", options=TOKENS_OPTIONS)
    def tokens(self, request: Request) -> Any:
        return self._token_list.list(request)

    # The dashboard

    @route("GET", "/", right="open")
    def page(self, request: Request) -> Answer:
        return self._static.page(request)

    @route("GET", "/dashboard/<file>", right="open")
    def page_file(self, request: Request) -> Answer:
        return self._static.file(request)

    @route("GET", "/dashboard/<folder>/<file>", right="open")
    def page_file_below(self, request: Request) -> Answer:
        return self._static.file(request)

    @route("GET", "/api/me", right="any")
    def me(self, request: Request) -> Answer:
        warnings = self._warnings() if request.access.may("view") else []
        return json_answer(
            200,
            {
                **describe_rights(request.access),
                "needs_token": self._gate.is_closed,
                "environment": self._environment or None,
                "version": __version__,
                "warnings": warnings,
            },
        )

    # The process

    @route("GET", "/healthz", right="open")
    def healthz(self, request: Request) -> Answer:
        return json_answer(200, {"status": "ok", "version": __version__})

    @route("GET", "/readyz", right="open")
    @inlineCallbacks
    def readyz(self, request: Request) -> Any:
        details = request.caller.access.may("view")
        if self._stopping():
            raise ShuttingDown()
        why = yield self._redis_state()
        if why:
            raise RedisUnavailable(why if details else "the registry is not ready", retry_after=2)
        if not details:
            return json_answer(200, {"status": "ready"})
        return json_answer(200, {"status": "ready", "version": __version__, "warnings": self._warnings()})

    @route("GET", "/metrics", right="view")
    def metrics(self, request: Request) -> Any:
        assert self._metrics is not None
        return self._metrics().addCallback(lambda page: Answer(200, page, media=METRICS))

    @route("GET", "/openapi.json", right="open")
    def openapi(self, request: Request) -> Answer:
        assert self._reference is not None
        return self._reference.document(ROUTES, request)

    @route("GET", "/docs", right="open")
    def docs(self, request: Request) -> Answer:
        assert self._reference is not None
        return self._reference.page(ROUTES, request)

    def answered(self) -> Iterator[tuple[str, str, int, int]]:
        """How many answers there were: path of the route, name of its endpoint, status, count; both empty for unknown paths."""
        for row in ROUTES:
            for status, count in self._finder.found[row.verb][0].counts.items():
                yield row.path, row.verb, status, count
        for status, count in self._finder.unknown.items():
            yield "", "", status, count

    def resource(self) -> Any:
        """The Klein resource of all endpoints, for a server of twisted.web."""
        return self.app.resource()

    def serve(self, request: Any) -> Any:
        """Answer a request of twisted.web."""
        head = WebHead(request)
        given = request.requestHeaders.getRawHeaders(b"x-request-id", ())
        head.request_id = request.registry_id = sane_request_id(given) or new_id()
        try:
            head.access = self._admit(request, head)
            match = self._finder.table.find(head.method, head.path)
            answer = maybeDeferred(self._run, match, head, request.content.read())
        except RegistryError as error:
            return self._write(request, error_to_answer(error))
        except Refusal as refusal:
            return self._write(request, Answer(refusal.status, refusal.body(), tuple(refusal.headers)))
        answer.addErrback(_answer_to)
        return answer.addCallback(lambda found: self._write(request, found))

    def _admit(self, request: Any, head: WebHead) -> Access:
        """Check the token of a request of twisted.web, and its rights; raises `Refusal`, or `BadName`."""
        if not self._gate.is_closed:
            return ANYONE
        found, name = Found(None), b""
        segments: tuple[bytes, ...] = ()
        try:
            match = self._finder.table.find(head.method, head.path)
            found, name, segments = self._finder.found[match.route.verb][0], match.name(), match.segments
        except RegistryError:
            # Said later, to whoever may come in.
            found = Found(None)
        given = request.requestHeaders.getRawHeaders(b"authorization", ())
        access = self._gate.identify(given)
        if access is None:
            if found.right != "open":
                raise self._gate.unknown(given, head.address)
            access = STRANGER
        check_right(access, found, name, segments)
        return access

    def _run(self, match: Match, head: WebHead, body: bytes) -> Any:
        head.access.is_used = True
        parsed = Request(
            match.name(),
            match.segments,
            head.query,
            match.options(head.query),
            head.get,
            body,
            head.access,
            head.address,
            head.request_id,
        )
        answer = getattr(self, match.route.verb)(parsed)
        return as_deferred(answer) if isinstance(answer, Promise) else answer

    @app.handle_errors(HTTPException)
    def not_found(self, request: IRequest, failure: Failure) -> Any:
        """Werkzeug found no endpoint. The table finds none either, and its error gives the reason."""
        return self.serve(request)

    def _write(self, request: Any, answer: Any) -> Any:
        if not isinstance(answer, Answer):
            return WebStream(request, answer).begin()
        tasks = self._tasks
        return write_answer(request, answer, self._stopping(), tasks.delivered, tasks.lost)


def _answer_to(failure: Failure) -> Any:
    # The client has gone: Klein throws the answer away.
    return failure if failure.check(CancelledError) else failure_answer(failure)

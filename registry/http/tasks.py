"""The requests of producers and workers: bytes in, an `Answer` out, independent of the transport.

PUT|POST  /api/pushTask/{worker}             any JSON value        -> 200 {"success":true,"id":"…"}
PUT|POST  /api/pushTasks/{worker}            a JSON array, ndjson  -> 200 {"success":true,"ids":[…]}
GET|POST  /api/popTask/{worker}              ?wait lease ack worker -> 200 {"task":<payload>} · 202 {"error":"No tasks available"}
GET|POST  /api/popTasks/{a},{b}              ?count wait lease order worker -> 200 {"tasks":[…]} · 202 {"tasks":[]}
POST      /api/ackTask/{worker}/{lease}      a result, or nothing  -> 200 {"success":true}
POST      /api/failTask/{worker}/{lease}     {"error","delay","retry"} -> 200 {"success":true,"state":"…"}
POST      /api/releaseTask/{worker}/{lease}  ?delay                -> 200 {"success":true}
POST      /api/extendTask/{worker}/{lease}   ?lease, {"progress","message"} -> 200 {"expires_in":…,"cancel":false}
POST      /api/ackTasks/{worker}             {"acks":[…],"fails":[…]} -> 200 {"results":[…]}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote_from_bytes

from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred, DeferredList, inlineCallbacks
from twisted.python.failure import Failure

from registry.config import Config
from registry.errors import BadOption, Conflict, NotFound, Replaced, TooLarge, Unavailable
from registry.http.codec import Answer, Raw, dumps, failure_answer, json_answer, names_from
from registry.http.json_check import check_json, checking, is_plain
from registry.http.json_cut import Part, Payload
from registry.http.options import (
    Acked,
    Failed,
    extend_options,
    fail_options,
    fingerprint,
    idempotency_key,
    lease_id,
    members,
    ms,
    no_members,
    payloads,
    prefer_wait,
    push_options,
    settle_entries,
)
from registry.http.orders import Orders
from registry.http.request import Request
from registry.http.turns import Steps, Turns, at_once
from registry.model import FailOptions, PopOptions, PushOptions, Task, text_of
from registry.queue.completions import Completions
from registry.queue.delivery import Delivery, Pushed
from registry.queue.inspector import Inspector
from registry.queue.leases import LEASE_LOST, TOO_LARGE, Leases, status
from registry.queue.pollers import HANDOVER_MS, LEASED
from registry.queue.promise import Promise, as_deferred
from registry.queue.queues import Queues
from registry.queue.singleflight import Singleflight

NOTHING = Answer(202, b'{"error":"No tasks available"}')
NOTHING_OF_MANY = Answer(202, b'{"tasks":[]}')
# Further headers for a poll that was ended by a newer one of the same worker.
REPLACED = ((b"Registry-Worker", b"replaced"), (b"Retry-After", b"1"))
SUCCESS = b'{"success":true}'
ACKED = Answer(200, SUCCESS)
# Options that may differ in a repeated pop: how long it waits, and what it acknowledges.
ITS_OWN = ("wait", "ack")
LONG = 256 * 1024  # bodies up to this many bytes are parsed in one turn

T = TypeVar("T")


class Tasks:
    """The requests of producers and workers. Every verb takes a `Request`."""

    def __init__(
        self, queues: Queues, inspector: Inspector, completions: Completions, turns: Turns, config: Config
    ) -> None:
        self._queues = queues
        self._turns = turns
        self._polls = queues.polls
        self.orders = Orders(queues)
        self._leases = Leases(queues)
        self._inspector = inspector
        self._completions = completions
        self._singleflight = Singleflight()
        self._max_task = config.max_task_bytes
        self._max_result = config.max_result_bytes
        self._short_result = min(LONG, config.max_result_bytes)
        self._wait = config.queue_timeout
        self._max_wait = max(config.max_wait, config.queue_timeout)
        self._base = config.base_path.encode()
        self._fair_turn = 0

    # Pushing

    def push(self, request: Request, is_checked: bool = False) -> Promise | Deferred[Answer]:
        """Push one task into a queue. ``is_checked``: its body is JSON."""
        body = request.body
        if not is_checked:
            if len(body) > LONG:
                return self._read(checking(body), body, lambda _: self.push(request, True))
            if not is_plain(body):
                check_json(body)
        options = push_options(request.options, request.header, request.query, body)
        if options is None or not options.awaited:
            promise = Promise(_pushed)
            self._queues.push_for(promise, request.name, body, options)
            return promise
        wait = min(prefer_wait(request.header) or 0.0, self._max_wait)
        return self._push_and_wait(request, options, wait)

    def _read(
        self, steps: Steps[T], body: bytes, then: Callable[[T], Promise | Deferred[Answer]]
    ) -> Deferred[Answer]:
        """Parse a body and pass the result to ``then``; a long body is parsed over several turns of the reactor."""
        if len(body) <= LONG:
            return as_deferred(then(at_once(steps)))
        return self._turns.run(steps).addCallback(lambda read: as_deferred(then(read)))

    @inlineCallbacks
    def _push_and_wait(self, request: Request, options: PushOptions, wait: float) -> Any:
        name = request.name
        pushed = yield self._queues.push(name, request.body, options)
        answer = {"success": True, "id": pushed.id}
        headers = [(b"Preference-Applied", b"wait=%b" % f"{wait:.15g}".encode())]
        if pushed.duplicate:
            answer["duplicate"] = True
        if pushed.replayed:
            headers.append((b"Idempotency-Replayed", b"true"))
        ended = self._completions.wait(name, pushed.id, wait)
        end = None
        try:
            # Look only after subscribing: an end before this line is seen here, a later one by ``ended``.
            try:
                view = yield self._inspector.task(name, pushed.id)
            except Unavailable:
                # The task is stored; ``ended`` still fires when Redis is back.
                view = None
            if view is None or view.state not in ("done", "dead"):
                end = yield ended
                # The task may have moved meanwhile.
                name = end.queue
                view = yield self._inspector.task(name, pushed.id)
        except NotFound:
            # The push succeeded; since then, the task was purged or moved to another queue.
            if end is not None and end.ended:
                return json_answer(200, {**answer, "state": "dead", "reason": "purged"}, headers)
            view = None
        except Unavailable:
            # The task is stored; its later state is unknown.
            view = None
        finally:
            ended.addErrback(lambda _: None)
            ended.cancel()
        if view is None or request.caller.access.is_over:
            # The push was accepted; a token that was revoked meanwhile reads nothing any more.
            return json_answer(202, answer, [*headers, _location(self._base, name, pushed.id)])
        if view.state == "done":
            return json_answer(200, {**answer, "state": "done", "result": result_of(view.task)}, headers)
        if view.state == "dead":
            return json_answer(200, {**answer, "state": "dead", "reason": view.task.reason}, headers)
        return json_answer(
            202, {**answer, "state": view.state}, [*headers, _location(self._base, name, pushed.id)]
        )

    def push_many(self, request: Request) -> Deferred[Answer]:
        """Push all tasks of the body, or none."""
        return self._read(
            payloads(request.header, request.body),
            request.body,
            lambda found: self._push_many(request, found),
        )

    def _push_many(self, request: Request, found: list[Payload]) -> Deferred[Answer]:
        if max(map(len, found)) > self._max_task:
            raise TooLarge(f"A task in the batch is larger than the limit of {self._max_task} bytes.")
        options = push_options(request.options, request.header, request.query, request.body)
        if options is not None and options.awaited:
            # Nobody waits for the end of a batch.
            options = replace(options, awaited=False)

        def stored(answered: tuple[list[bytes], bool]) -> Answer:
            ids, replayed = answered
            headers = ((b"Idempotency-Replayed", b"true"),) if replayed else ()
            return Answer(200, b'{"success":true,"ids":["%b"]}' % b'","'.join(ids), headers)

        return self._queues.push_many(request.name, found, options).addCallback(stored)

    # Popping

    def pop(self, request: Request) -> Promise | Deferred[Answer]:
        """The next task of a queue. Cancel the returned object when the client leaves."""
        name, given = request.name, request.options
        wait = min(given.get("wait", self._wait), self._max_wait)
        leased = "lease" in given
        length = ms(given["lease"]) if leased else HANDOVER_MS
        key = idempotency_key(request.header) if leased else None
        if key is None and "worker" not in given and "ack" not in given:
            promise = Promise(_popped)
            promise.request = self._polls.pop_for(promise, name, wait, length, LEASED if leased else None)
            return promise
        worker, owner = given.get("worker"), None
        if worker is not None:
            owner = self._polled(worker, (name,), request)
        acked = None
        if "ack" in given:
            # Sent before the pop on the same Redis connection, so it is done before the poll is parked.
            acked = self._leases.ack(name, given["ack"]).addErrback(_lost)
        options = PopOptions(leased=leased, worker=worker, owner=owner)
        if key is None:
            popped = self._pop(name, wait, length, options)
        else:
            digest = fingerprint(request.query, request.body, ignoring=ITS_OWN)
            keyed = replace(options, idempotency_key=key, fingerprint=digest)
            popped = self._singleflight.join(
                (b"pop", name, key, digest, wait), lambda: self._pop(name, wait, length, keyed)
            )
        d = popped.addCallback(_popped).addErrback(_replaced, NOTHING)
        if worker is not None:
            d.addCallback(self.orders.add_order, worker)
        return d if acked is None else self._with_ack(d, acked)

    def _pop(self, name: bytes, wait: float, length: int, options: PopOptions) -> Deferred[Delivery | None]:
        def ask(wait: float, options: PopOptions) -> Deferred[Delivery | None]:
            return self._polls.pop(name, wait, length, options)

        return ask(wait, options) if options.worker is None else self.orders.pop(ask, wait, options, None)

    def _with_ack(self, popped: Deferred[Answer], acked: Deferred[str]) -> Deferred[Answer]:
        """The pop's answer, with the outcome of the ack in a header."""

        def both(results: list[tuple[bool, Any]]) -> Any:
            (pop_ok, answer), (ack_ok, status) = results
            if not pop_ok:
                if not ack_ok:
                    return status
                if answer.check(CancelledError):
                    return answer
                # The pop was refused, but the ack was not.
                answer = failure_answer(answer)
            elif not ack_ok:
                # The outcome of the ack is unknown. Put the popped task back, or it would wait until its lease ends.
                self.lost(answer)
                return status
            headers = (*answer.headers, (b"Registry-Ack", status.encode()))
            return Answer(answer.status, answer.body, headers, answer.deliveries)

        def not_acked(failure: Failure) -> Failure:
            # The poll's answer is of no more use, and the request may be tried again.
            popped.cancel()
            return failure

        asks: list[Deferred[Any]] = [popped, acked.addErrback(not_acked)]
        return DeferredList(asks, consumeErrors=True).addCallback(both)

    def _polled(self, worker: str, names: Iterable[bytes], request: Request) -> str | None:
        """Remember that a worker polls; returns the name of its token."""
        self._queues.roster.polled(worker, names, request.caller.address, request.header(b"user-agent"))
        return request.access.name or None

    def pop_many(self, request: Request) -> Deferred[Answer]:
        """Several tasks of several queues, always leased. Cancel the Deferred when the client leaves."""
        raw, given = request.segments[0], request.options
        names = names_from(raw)
        if len(names) > 100:
            raise BadOption("At most 100 queues can be popped at once.")
        worker, owner = given.get("worker"), None
        if worker is not None:
            owner = self._polled(worker, names, request)
        wait = min(given.get("wait", self._wait), self._max_wait)
        start = None
        if given.get("order") == "fair":
            self._fair_turn += 1
            start = self._fair_turn % len(names)
        length = ms(given.get("lease", 0.0))

        options = PopOptions(count=given.get("count", 1), start=start, worker=worker, owner=owner)

        def ask(wait: float, options: PopOptions) -> Deferred[list[Delivery]]:
            return self._polls.pop_many(names, wait, length, options)

        key = idempotency_key(request.header)
        if key is None:
            popped = self.orders.pop(ask, wait, options, [])
        else:
            digest = fingerprint(request.query, raw, request.body, ignoring=ITS_OWN)
            keyed = replace(options, idempotency_key=key, fingerprint=digest)
            popped = self._singleflight.join(
                (b"pops", raw, key, digest, wait), lambda: self.orders.pop(ask, wait, keyed, [])
            )
        d = popped.addCallback(_popped_many).addErrback(_replaced, NOTHING_OF_MANY)
        return d if worker is None else d.addCallback(self.orders.add_order, worker)

    # Working

    def ack(self, request: Request) -> Promise | Deferred[Answer]:
        """Complete a task; the body is its result, which is not kept if it is too large."""
        name, lease, body = request.name, lease_id(request.segments[1]), request.body
        if len(body) > self._short_result:
            return self._read(checking(body), body, lambda _: self._ack(name, lease, body))
        if body and not is_plain(body):
            check_json(body)
        promise = Promise(_acked)
        self._leases.ack_for(promise, name, lease, body)
        return promise

    def _ack(self, name: bytes, lease: bytes, result: bytes) -> Promise:
        if len(result) <= self._max_result:
            promise = Promise(_acked)
        else:
            promise, result = Promise(_acked_without_result), TOO_LARGE
        self._leases.ack_for(promise, name, lease, result)
        return promise

    def fail(self, request: Request) -> Deferred[Answer]:
        """Record that the attempt failed."""
        name, lease, body = request.name, lease_id(request.segments[1]), request.body

        def parsed() -> Steps[FailOptions]:
            return (yield from fail_options((yield from members(body, "error", "delay", "retry"))))

        def read(options: FailOptions) -> Deferred[Answer]:
            d = self._leases.fail(name, lease, options)
            return d.addCallback(lambda state: json_answer(200, {"success": True, "state": state}))

        return self._read(parsed(), body, read)

    def release(self, request: Request) -> Deferred[Answer]:
        """Put the task back; the attempt is not counted."""
        name, lease, body = request.name, lease_id(request.segments[1]), request.body
        delay = request.options.get("delay", 0.0)

        def read(_: object) -> Deferred[Answer]:
            d = self._leases.release(name, lease, ms(delay))
            return d.addCallback(lambda _: Answer(200, SUCCESS))

        sentence = "A release takes no body; give the delay in the query, as ?delay=SECONDS."
        return self._read(no_members(body, sentence), body, read)

    def extend(self, request: Request) -> Deferred[Answer]:
        """Extend a lease, for a holder that is alive and needs more time."""
        name, lease, body = request.name, lease_id(request.segments[1]), request.body
        length = request.options.get("lease", 0.0)

        def read(fields: dict[str, Part]) -> Deferred[Answer]:
            d = self._leases.extend(name, lease, ms(length), extend_options(fields))
            return d.addCallback(
                lambda state: json_answer(200, {"expires_in": _seconds(state[0]), "cancel": state[1]})
            )

        return self._read(members(body, "progress", "message"), body, read)

    def settle(self, request: Request) -> Deferred[Answer]:
        """Process many acks and fails, each with its own status: the acks in their order, then the fails in theirs."""
        name, body = request.name, request.body

        def read(found: tuple[list[Acked], list[Failed]]) -> Deferred[Answer]:
            acks, fails = found
            kept = [(lease, self._kept(result)) for lease, result in acks]
            dropped = [result is TOO_LARGE for _, result in kept] + [False] * len(fails)
            leases = [lease for lease, _ in kept] + [lease for lease, _ in fails]

            def settled(statuses: list[str]) -> Answer:
                results = b",".join(
                    b'{"lease":"%b","status":"%b"%b}'
                    % (
                        lease,
                        status.encode(),
                        b',"result":"too_large"' if too_large and status != LEASE_LOST else b"",
                    )
                    for lease, status, too_large in zip(leases, statuses, dropped, strict=True)
                )
                return Answer(200, b'{"results":[%b]}' % results)

            return self._leases.settle(name, kept, fails).addCallback(settled)

        return self._read(settle_entries(body), body, read)

    def _kept(self, result: Part | None) -> bytes:
        if result is None:
            return b""
        # As its original bytes, like the result of a single ack.
        return TOO_LARGE if len(result) > self._max_result else result.whole()

    # Hand-over

    def delivered(self, answer: Answer) -> None:
        """The answer is in the kernel: confirm the tasks that it handed over without a lease."""
        for delivery in answer.deliveries:
            if not delivery.leased:
                self._queues.handover.confirm(delivery)

    def lost(self, answer: Answer) -> None:
        """The answer was not sent: put back the tasks that it handed over."""
        # In the order they were taken, which the script keeps for tasks of the same moment.
        for delivery in answer.deliveries:
            self._queues.handover.put_back(delivery)


def _location(base: bytes, name: bytes, task_id: bytes) -> tuple[bytes, bytes]:
    quoted = quote_from_bytes(name, safe="").encode()
    return b"Location", b"%b/api/queues/%b/tasks/%b" % (base, quoted, task_id)


def _pushed(pushed: Pushed) -> Answer:
    headers = ((b"Idempotency-Replayed", b"true"),) if pushed.replayed else ()
    if pushed.duplicate:
        return Answer(200, b'{"success":true,"id":"%b","duplicate":true}' % pushed.id, headers)
    return Answer(200, b'{"success":true,"id":"%b"}' % pushed.id, headers)


def _trace(trace: bytes) -> tuple[tuple[bytes, bytes], ...]:
    parent, _, state = trace.partition(b"\n")
    return ((b"traceparent", parent), (b"tracestate", state))[: 2 if state else 1]


def _popped(delivery: Delivery | None) -> Answer:
    if delivery is None:
        return NOTHING
    headers: tuple[tuple[bytes, bytes], ...] = (
        (b"Task-Id", delivery.id),
        (b"Task-Attempt", b"%d" % delivery.attempt),
    )
    if delivery.trace:
        headers += _trace(delivery.trace)
    if not delivery.leased:
        return Answer(200, b'{"task":%b}' % delivery.payload, headers, (delivery,))
    if delivery.replayed:
        headers += ((b"Idempotency-Replayed", b"true"),)
    body = b'{"task":%b,"id":"%b","lease":"%b","expires_in":%b,"attempt":%d}' % (
        delivery.payload,
        delivery.id,
        delivery.lease,
        _seconds_text(delivery.lease_ms),
        delivery.attempt,
    )
    return Answer(200, body, headers, (delivery,))


def _popped_many(given: list[Delivery]) -> Answer:
    if not given:
        return NOTHING_OF_MANY
    names: dict[bytes, bytes] = {}
    tasks = b",".join(
        b'{"queue":%b,"id":"%b","task":%b,"attempt":%d,"lease":"%b","expires_in":%b%b}'
        % (
            names.get(one.name) or names.setdefault(one.name, dumps(one.name)),
            one.id,
            one.payload,
            one.attempt,
            one.lease,
            _seconds_text(one.lease_ms),
            b"".join(b',"%b":%b' % (name, dumps(value)) for name, value in _trace(one.trace))
            if one.trace
            else b"",
        )
        for one in given
    )
    headers = ((b"Idempotency-Replayed", b"true"),) if given[0].replayed else ()
    return Answer(200, b'{"tasks":[%b]}' % tasks, headers, tuple(given))


def _replaced(failure: Failure, nothing: Answer) -> Answer:
    failure.trap(Replaced)
    return Answer(nothing.status, nothing.body, REPLACED)


def _acked(reply: list[Any]) -> Answer:
    if not reply[0] and reply[1] == b"done":
        return ACKED
    return Answer(200, SUCCESS if status(reply) == "done" else b'{"success":true,"late":true}')


def _acked_without_result(reply: list[Any]) -> Answer:
    more = b"" if status(reply) == "done" else b',"late":true'
    return Answer(200, b'{"success":true%b,"result":"too_large"}' % more)


def _lost(failure: Failure) -> str:
    error = failure.value
    if isinstance(error, Conflict) and error.code == "lease_lost":
        return error.code
    failure.raiseException()
    raise AssertionError


def result_of(task: Task) -> Raw | None:
    """The result of a done task as the bytes that were sent, or None."""
    result = text_of(task.result)
    return Raw(result) if result else None


@lru_cache(maxsize=256)
def _seconds_text(duration_ms: int) -> bytes:
    return dumps(_seconds(duration_ms))


def _seconds(duration_ms: int) -> float | int:
    whole, rest = divmod(int(duration_ms), 1000)
    return whole if not rest else duration_ms / 1000

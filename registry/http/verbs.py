"""What the requests of producers and workers mean, for both doors: bytes in, an `Answer` out. No transport in here.

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

from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

from twisted.internet.defer import CancelledError, Deferred, DeferredList, inlineCallbacks
from twisted.python.failure import Failure

from registry.config import Config
from registry.errors import BadBody, BadOption, Conflict, NotFound, Replaced, TooLarge, Unavailable
from registry.http import asked
from registry.http.asked import Header, lease_id, ms
from registry.http.json_check import check_json
from registry.http.wire import Answer, Raw, dumps, failure_answer, json_answer, name_from, options
from registry.queue.endings import Endings
from registry.queue.joining import Joining
from registry.queue.leases import Leases, status
from registry.queue.looking import Looking
from registry.queue.many import ManyPoller
from registry.queue.queues import HANDOVER_MS, Queues
from registry.queue.reply import Reply
from registry.queue.taken import Pushed, Taken

NOTHING = Answer(202, b'{"error":"No tasks available"}')
NOTHING_OF_MANY = Answer(202, b'{"tasks":[]}')
# What a poll is told beside that, when a newer one of its worker ended it.
REPLACED = ((b"Registry-Worker", b"replaced"), (b"Retry-After", b"1"))
SUCCESS = b'{"success":true}'
NO_OPTIONS: dict[str, Any] = {}
# What a repeated pop may say anew: how long this one waits, and what it acknowledges on its way.
ITS_OWN = ("wait", "ack")
# What a pop with lease and nothing else tells its script.
LEASED = {"l": True}
# Acks and fails in one request.
MOST_SETTLED = 1000


class Route(NamedTuple):
    """A path ``/api/{word}/{segment}…``: methods, the verb's name, how many segments follow the word."""

    methods: tuple[bytes, ...]
    verb: str
    segments: int


ROUTES = {
    b"pushTask": Route((b"PUT", b"POST"), "push", 1),
    b"popTask": Route((b"GET", b"POST"), "pop", 1),
    b"pushTasks": Route((b"PUT", b"POST"), "push_many", 1),
    b"popTasks": Route((b"GET", b"POST"), "pop_many", 1),
    b"ackTask": Route((b"POST",), "ack", 2),
    b"failTask": Route((b"POST",), "fail", 2),
    b"releaseTask": Route((b"POST",), "release", 2),
    b"extendTask": Route((b"POST",), "extend", 2),
    b"ackTasks": Route((b"POST",), "settle", 1),
}


class Verbs:
    """The requests of producers and workers. Every verb takes its raw segments of the path, query, headers and body."""

    def __init__(self, queues: Queues, looking: Looking, endings: Endings, config: Config) -> None:
        self._queues = queues
        self._leases = Leases(queues)
        self._looking = looking
        self._endings = endings
        self._joining = Joining()
        self._max_task = config.max_task_bytes
        self._wait = config.queue_timeout
        self._max_wait = max(config.max_wait, config.queue_timeout)
        self._turn = 0

    # Pushing

    def push(self, raw: bytes, query: bytes, header: Header, body: bytes) -> Reply | Deferred[Answer]:
        """One task into a queue."""
        check_json(body)
        name = name_from(raw)
        said = asked.push_options(query, header, body)
        if "w" not in said:
            reply = Reply(_pushed)
            self._queues.push_for(reply, name, body, said)
            return reply
        return self._push_and_wait(name, body, said, min(asked.prefer_wait(header) or 0.0, self._max_wait))

    @inlineCallbacks
    def _push_and_wait(self, name: bytes, body: bytes, said: dict[str, Any], wait: float) -> Any:
        pushed = yield self._queues.push(name, body, said)
        answer = {"success": True, "id": pushed.id}
        headers = [(b"Preference-Applied", b"wait=%b" % f"{wait:.15g}".encode())]
        if pushed.duplicate:
            answer["duplicate"] = True
        if pushed.replayed:
            headers.append((b"Idempotency-Replayed", b"true"))
        ended = self._endings.wait(name, pushed.id, wait)
        told = None
        try:
            # Asked for only now, so that an end before this line is seen here, and one after it by the line above.
            try:
                view = yield self._looking.task(name, pushed.id)
            except Unavailable:
                # The task is stored; whoever waits is told of its end all the same once Redis is back.
                view = None
            if view is None or view.state not in ("done", "dead"):
                told = yield ended
                # It may have moved meanwhile.
                name = told.queue
                view = yield self._looking.task(name, pushed.id)
        except NotFound:
            # The push was carried out all the same: the task was purged since, or has moved to another queue.
            if told is not None and told.ended:
                return json_answer(200, {**answer, "state": "dead", "reason": "purged"}, headers)
            view = None
        except Unavailable:
            # The task is stored; its later state is unknown.
            view = None
        finally:
            ended.addErrback(lambda _: None)
            ended.cancel()
        if view is None:
            return json_answer(202, answer, [*headers, _location(name, pushed.id)])
        if view.state == "done":
            return json_answer(200, {**answer, "state": "done", "result": result_of(view.known)}, headers)
        if view.state == "dead":
            return json_answer(200, {**answer, "state": "dead", "reason": view.known.get("y")}, headers)
        return json_answer(202, {**answer, "state": view.state}, [*headers, _location(name, pushed.id)])

    def push_many(self, raw: bytes, query: bytes, header: Header, body: bytes) -> Deferred[Answer]:
        """All tasks of the body, or none."""
        found = asked.payloads(header, body)
        if max(map(len, found)) > self._max_task:
            raise TooLarge(f"A task of the batch is over the limit of {self._max_task} bytes.")
        said = asked.push_options(query, header, body, asked.PUSH_MANY_OPTIONS)
        said.pop("w", None)

        def stored(answered: tuple[list[bytes], bool]) -> Answer:
            ids, replayed = answered
            headers = ((b"Idempotency-Replayed", b"true"),) if replayed else ()
            return Answer(200, b'{"success":true,"ids":["%b"]}' % b'","'.join(ids), headers)

        return self._queues.push_many(name_from(raw), found, said).addCallback(stored)

    # Popping

    def pop(self, raw: bytes, query: bytes, header: Header, body: bytes) -> Reply | Deferred[Answer]:
        """The next task of a queue. Cancel what is returned when the client has gone."""
        name = name_from(raw)
        said = _pop_options(query) if query else NO_OPTIONS
        wait = min(said.get("wait", self._wait), self._max_wait)
        leased = "lease" in said
        length = ms(said["lease"]) if leased else HANDOVER_MS
        key = asked.idempotency_key(header) if leased else None
        if key is None and "worker" not in said and "ack" not in said:
            reply = Reply(_popped)
            reply.request = self._queues.pop_for(reply, name, wait, length, LEASED if leased else None)
            return reply
        packed: dict[str, Any] = {"l": True} if leased else {}
        if "worker" in said:
            packed["w"] = said["worker"]
        acked = None
        if "ack" in said:
            # Sent before the pop, on the same connection: it is done before anything is parked.
            acked = self._leases.ack(name, lease_id(said["ack"].encode(), "The option 'ack'")).addErrback(
                _lost
            )
        if key is None:
            popped = self._queues.pop(name, wait, length, packed)
        else:
            print_ = asked.fingerprint(query, body, but=ITS_OWN)
            packed.update(ik=key, ih=print_)
            popped = self._joining.join(
                (b"pop", name, key, print_, wait), lambda: self._queues.pop(name, wait, length, packed)
            )
        d = popped.addCallback(_popped).addErrback(_replaced, NOTHING)
        return d if acked is None else self._with_ack(d, acked)

    def _with_ack(self, popped: Deferred[Answer], acked: Deferred[str]) -> Deferred[Answer]:
        """The pop's answer, told what came of the ack."""

        def both(results: list[tuple[bool, Any]]) -> Any:
            (pop_ok, answer), (ack_ok, status) = results
            if not pop_ok:
                if not ack_ok:
                    return status
                if answer.check(CancelledError):
                    return answer
                # Refused, but the ack was not.
                answer = failure_answer(answer)
            elif not ack_ok:
                # Nobody knows whether the ack was carried out; the task taken meanwhile must not wait for its lease to end.
                self.lost(answer)
                return status
            headers = (*answer.headers, (b"Registry-Ack", status.encode()))
            return Answer(answer.status, answer.body, headers, answer.taken)

        def not_acked(failure: Failure) -> Failure:
            # What the poll would be told is of no use any more, and this may be tried again.
            popped.cancel()
            return failure

        asks: list[Deferred[Any]] = [popped, acked.addErrback(not_acked)]
        return DeferredList(asks, consumeErrors=True).addCallback(both)

    def pop_many(self, raw: bytes, query: bytes, header: Header, body: bytes) -> Deferred[Answer]:
        """Several tasks of several queues, always leased. Cancel the Deferred when the client has gone."""
        names = [name_from(part) for part in raw.split(b",")]
        if len(names) > 100:
            raise BadOption("At most 100 queues can be popped at once.")
        said = options(query, asked.POP_MANY_OPTIONS)
        wait = min(said.get("wait", self._wait), self._max_wait)
        packed: dict[str, Any] = {"c": said.get("count", 1)}
        if said.get("order") == "fair":
            self._turn += 1
            packed["s"] = self._turn % len(names)
        if "worker" in said:
            packed["w"] = said["worker"]
        length = ms(said.get("lease", 0.0))

        def start() -> Deferred[list[Taken]]:
            return ManyPoller(self._queues, names, wait, length, packed).reply

        key = asked.idempotency_key(header)
        if key is None:
            return start().addCallback(_popped_many).addErrback(_replaced, NOTHING_OF_MANY)
        print_ = asked.fingerprint(query, raw, body, but=ITS_OWN)
        packed.update(ik=key, ih=print_)
        popped = self._joining.join((b"pops", raw, key, print_, wait), start)
        return popped.addCallback(_popped_many).addErrback(_replaced, NOTHING_OF_MANY)

    # Working

    def ack(self, raw: bytes, lease: bytes, query: bytes, header: Header, body: bytes) -> Reply:
        """The work is done; the body is its result."""
        options(query, {})
        if body:
            check_json(body)
        reply = Reply(_acked)
        self._leases.ack_for(reply, name_from(raw), lease_id(lease), body)
        return reply

    def fail(self, raw: bytes, lease: bytes, query: bytes, header: Header, body: bytes) -> Deferred[Answer]:
        """The attempt failed."""
        options(query, {})
        error, delay_ms, retry = asked.failing(asked.json_object(body, ("error", "delay", "retry")))
        d = self._leases.fail(name_from(raw), lease_id(lease), error, delay_ms, retry)
        return d.addCallback(lambda state: json_answer(200, {"success": True, "state": state}))

    def release(
        self, raw: bytes, lease: bytes, query: bytes, header: Header, body: bytes
    ) -> Deferred[Answer]:
        """The task goes back, the attempt not counted."""
        delay = options(query, asked.RELEASE_OPTIONS).get("delay", 0.0)
        if asked.json_object(body, None):
            raise BadOption(
                "The delay of a release is an option in the query, ?delay=SECONDS; it has no body."
            )
        d = self._leases.release(name_from(raw), lease_id(lease), ms(delay))
        return d.addCallback(lambda _: Answer(200, SUCCESS))

    def extend(self, raw: bytes, lease: bytes, query: bytes, header: Header, body: bytes) -> Deferred[Answer]:
        """The holder is alive and needs more time."""
        length = options(query, asked.EXTEND_OPTIONS).get("lease", 0.0)
        said = asked.json_object(body, ("progress", "message"))
        progress, message = said.get("progress"), said.get("message")
        if progress is not None:
            if (
                isinstance(progress, bool)
                or not isinstance(progress, int | float)
                or not -1e15 < progress < 1e15
            ):
                raise BadOption("The field 'progress' is a number.")
            progress = float(progress)
        if message is not None and not isinstance(message, str):
            raise BadOption("The field 'message' is text.")
        text = None if message is None else asked.shortened(message, asked.PROGRESS_BYTES)
        d = self._leases.extend(name_from(raw), lease_id(lease), ms(length), progress, text)
        return d.addCallback(
            lambda told: json_answer(200, {"expires_in": _seconds(told[0]), "cancel": told[1]})
        )

    def settle(self, raw: bytes, query: bytes, header: Header, body: bytes) -> Deferred[Answer]:
        """Many acks and fails, each answered by itself, in the order of the request."""
        options(query, {})
        name = name_from(raw)
        said = asked.json_object(body, ("acks", "fails"))
        acks, fails = said.get("acks", []), said.get("fails", [])
        if not isinstance(acks, list) or not isinstance(fails, list):
            raise BadOption("The fields 'acks' and 'fails' are arrays.")
        if len(acks) + len(fails) > MOST_SETTLED:
            raise BadBody(f"At most {MOST_SETTLED} leases can be settled at once.")
        given = [
            _ack_entry(entry, raw) for entry, raw in zip(acks, asked.elements(body, "acks"), strict=True)
        ]
        failed = [_fail_entry(entry) for entry in fails]
        leases = [entry[0] for entry in given] + [entry[0] for entry in failed]

        def settled(statuses: list[str]) -> Answer:
            results = b",".join(
                b'{"lease":"%b","status":"%b"}' % (lease, status.encode())
                for lease, status in zip(leases, statuses, strict=True)
            )
            return Answer(200, b'{"results":[%b]}' % results)

        return self._leases.settle(name, given, failed).addCallback(settled)

    # Hand-over

    def delivered(self, answer: Answer) -> None:
        """The answer has left for the kernel: what it handed over without lease is done."""
        for taken in answer.taken:
            if not taken.leased:
                self._queues.handover.confirm(taken)

    def lost(self, answer: Answer) -> None:
        """The answer did not get out: what it handed over goes back."""
        # In the order they were taken, which the script keeps for those of one moment.
        for taken in answer.taken:
            self._queues.handover.put_back(taken)


def _location(name: bytes, task_id: bytes) -> tuple[bytes, bytes]:
    return b"Location", b"/api/queues/%b/tasks/%b" % (quote_from_bytes(name, safe="").encode(), task_id)


def _pushed(pushed: Pushed) -> Answer:
    headers = ((b"Idempotency-Replayed", b"true"),) if pushed.replayed else ()
    if pushed.duplicate:
        return Answer(200, b'{"success":true,"id":"%b","duplicate":true}' % pushed.id, headers)
    return Answer(200, b'{"success":true,"id":"%b"}' % pushed.id, headers)


def _popped(taken: Taken | None) -> Answer:
    if taken is None:
        return NOTHING
    headers: tuple[tuple[bytes, bytes], ...] = (
        (b"Task-Id", taken.id),
        (b"Task-Attempt", b"%d" % taken.attempt),
    )
    if taken.traceparent:
        headers += ((b"traceparent", taken.traceparent),)
    if not taken.leased:
        return Answer(200, b'{"task":%b}' % taken.payload, headers, (taken,))
    if taken.replayed:
        headers += ((b"Idempotency-Replayed", b"true"),)
    body = b'{"task":%b,"id":"%b","lease":"%b","expires_in":%b,"attempt":%d}' % (
        taken.payload,
        taken.id,
        taken.lease,
        _seconds_text(taken.lease_ms),
        taken.attempt,
    )
    return Answer(200, body, headers, (taken,))


def _popped_many(given: list[Taken]) -> Answer:
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
            b',"traceparent":%b' % dumps(one.traceparent) if one.traceparent else b"",
        )
        for one in given
    )
    headers = ((b"Idempotency-Replayed", b"true"),) if given[0].replayed else ()
    return Answer(200, b'{"tasks":[%b]}' % tasks, headers, tuple(given))


def _replaced(failure: Failure, nothing: Answer) -> Answer:
    failure.trap(Replaced)
    return Answer(nothing.status, nothing.body, REPLACED)


def _acked(reply: list[Any]) -> Answer:
    return Answer(200, SUCCESS if status(reply) == "done" else b'{"success":true,"late":true}')


def _lost(failure: Failure) -> str:
    error = failure.value
    if isinstance(error, Conflict) and error.code == "lease_lost":
        return error.code
    failure.raiseException()
    raise AssertionError


def _ack_entry(entry: Any, raw: bytes) -> tuple[bytes, bytes]:
    if isinstance(entry, str):
        return lease_id(entry.encode("utf-8", "replace"), "An element of 'acks'"), b""
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("lease"), str)
        or set(entry) - {"lease", "result"}
    ):
        raise BadOption('An element of "acks" is a lease, or an object with lease and result.')
    # A result is kept as the bytes it came in, as that of a single ack is.
    result = (asked.member(raw, "result") or b"") if entry.get("result") is not None else b""
    return lease_id(entry["lease"].encode("utf-8", "replace"), "A lease in 'acks'"), result


def _fail_entry(entry: Any) -> tuple[bytes, tuple[dict[str, str] | None, int | None, bool]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("lease"), str):
        raise BadOption('An element of "fails" is an object with lease, error, delay and retry.')
    if set(entry) - {"lease", "error", "delay", "retry"}:
        raise BadOption('An element of "fails" is an object with lease, error, delay and retry.')
    return lease_id(entry["lease"].encode("utf-8", "replace"), "A lease in 'fails'"), asked.failing(entry)


def result_of(known: dict[str, Any]) -> Any:
    """The result of a done task as the bytes that were sent, or None."""
    value = known.get("v")
    return Raw(value.encode() if isinstance(value, str) else value) if value else None


@lru_cache(maxsize=256)
def _seconds_text(duration_ms: int) -> bytes:
    return dumps(_seconds(duration_ms))


@lru_cache(maxsize=256)
def _pop_options(query: bytes) -> dict[str, Any]:
    # Pollers ask the same again and again. Nobody may change what is returned.
    return options(query, asked.POP_OPTIONS)


def _seconds(duration_ms: int) -> float | int:
    whole, rest = divmod(int(duration_ms), 1000)
    return whole if not rest else duration_ms / 1000

"""What push and pop mean. No HTTP, no JSON and no Redis in here.

A pop asks the store at once; when there is nothing it is parked in this process. A push, or a notice from another
daemon, wakes exactly one poller, which asks again. A question on its way to Redis is never cancelled: when its poller
has gone, what comes back is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import (
    BadOption,
    Conflict,
    KeyReused,
    QueueFull,
    RedisUnavailable,
    RegistryError,
    ShuttingDown,
)
from registry.queue.batching import Batching
from registry.queue.names import Ids, check_name
from registry.queue.waiting import Poller, Waiting
from registry.redis.store import Entry, Store, encode_options, refusal

log = Logger()

# A task popped without lease is held this long at most while its answer is written, ms.
HANDOVER_MS = 30_000
# Confirms are gathered this long, s: they wait for nobody, and must be out within a tenth of a second.
CONFIRM_SECONDS = 0.02
# Confirms and put-backs that found no Redis are kept until the hand-over has lapsed by itself; how many at most.
MAX_UNSETTLED = 100_000


class Pushed:
    """The answer to a push: ``id``, whether an equal ``key`` was there (duplicate), or the same request before (replayed)."""

    __slots__ = ("duplicate", "id", "replayed")

    def __init__(self, task_id: bytes, how: int = 0) -> None:
        self.id = task_id
        self.duplicate = how == 1
        self.replayed = how == 2


class Taken:
    """A task under a lease: ``payload`` is the bytes that were pushed, ``lease_ms`` the length of the lease."""

    __slots__ = ("attempt", "id", "lease", "lease_ms", "name", "payload", "raw", "traceparent")

    def __init__(self, name: bytes, nonce: bytes, reply: list[Any]) -> None:
        self.name = name
        _, self.id, self.payload, self.attempt, self.raw, self.lease_ms, self.traceparent = reply
        self.lease = self.id + b"-" + nonce


class Queues:
    """The queues of one store, as this process serves them.

    ``later(seconds, f, *args)`` calls back in time. ``is_json(bytes)`` judges what other programs put into a list.
    """

    def __init__(self, store: Store, later: Callable[..., Any], is_json: Callable[[bytes], bool]) -> None:
        self._store = store
        self._later = later
        self._is_json = is_json
        self.ids = Ids(store.now_ms)
        self.waiting = Waiting()
        self.batching = Batching(self._send, later)
        self.draining = False
        self._confirming: list[Entry] = []
        self._unsettled: list[tuple[str, Entry]] = []

    def _send(self, verb: str, entries: Any) -> Deferred[list[Any]]:
        return self._store.call(verb, entries, bounded=verb in ("push", "pop"))

    # Push

    def push(self, name: bytes, payload: bytes, options: dict[str, Any] | None = None) -> Deferred[Pushed]:
        """Store a task; fires with `Pushed` once Redis has it. ``payload`` is opaque, and kept as it is."""
        check_name(name)
        task_id = self.ids.task()
        entry = self._store.push(name, task_id, payload, encode_options(options) if options else b"")

        def stored(reply: list[Any]) -> Pushed:
            if reply[0]:
                raise denied(reply)
            if len(reply) > 1:
                return Pushed(reply[1], reply[2])
            if name in self.waiting.lines:
                self.wake(name)
            return Pushed(task_id)

        return self._add("push", entry).addCallback(stored)

    def _add(self, verb: str, entry: Entry) -> Deferred[Any]:
        if self.draining and verb == "push":
            return fail(ShuttingDown("The registry is stopping; try again in a moment."))
        try:
            return self.batching.add(verb, entry)
        except RegistryError:
            return fail()

    # Pop

    def pop(
        self, name: bytes, wait: float, lease_ms: int = HANDOVER_MS, options: bytes = b""
    ) -> Deferred[Taken | None]:
        """Take the next task, waiting up to ``wait`` seconds; fires with None when there was none.

        Cancel it when the client has gone: parked, it leaves the line; asking, what comes is put back.
        """
        check_name(name)
        if self.draining:
            return fail(ShuttingDown("The registry is stopping; try again in a moment."))
        poller = Poller(name, lease_ms, options, self._hang_up)
        poller.ticket = self.waiting.ticket()
        if wait > 0:
            poller.timer = self._later(wait, self._time_up, poller)
            line = self.waiting.lines.get(name)
            if line is not None and line.parked and self._store.ready:
                self.waiting.park(poller)
                return poller.reply
        else:
            poller.expired = True
        self._ask(poller)
        return poller.reply

    def _ask(self, poller: Poller) -> None:
        poller.asking = True
        poller.asked += 1
        poller.nonce = self.ids.nonce()
        self.waiting.line(poller.name).asking += 1
        entry = self._store.pop(poller.name, poller.nonce, poller.lease_ms, poller.options)
        self._add("pop", entry).addCallbacks(
            self._told, self._not_told, callbackArgs=(poller,), errbackArgs=(poller,)
        ).addErrback(lambda f: log.failure("a pop was told what it cannot take", f))

    def _told(self, reply: list[Any], poller: Poller) -> None:
        name, code = poller.name, reply[0]
        line = self.waiting.lines[name]
        line.asking -= 1
        poller.asking = False
        if code == 0:
            taken = Taken(name, poller.nonce, reply)
            if taken.raw and not self._is_json(taken.payload):
                self._bury_raw(taken)
                self._again(poller)
            elif poller.over:
                self.put_back(taken)
            else:
                self._finish(poller, taken)
            if poller.relay:
                self.wake(name, relay=True)
            if not line.asking and not line.parked:
                self.waiting.lines.pop(name, None)
        elif code == 2:
            self._again(poller)
        elif code in (1, 3):
            if line.missed:
                line.missed -= 1
                self._again(poller)
            elif poller.over:
                self.waiting.tidy(name, line)
            elif poller.expired or self.draining:
                self._finish(poller, None)
                self.waiting.tidy(name, line)
            else:
                poller.relay = False
                self.waiting.park(poller)
        else:
            self.waiting.tidy(name, line)
            self._fail(poller, Failure(denied(reply)))

    def _again(self, poller: Poller) -> None:
        if poller.over:
            # Whoever is next takes over the reason to look.
            line = self.waiting.lines[poller.name]
            self.waiting.tidy(poller.name, line)
            self.wake(poller.name, relay=True)
        else:
            self._ask(poller)

    def _not_told(self, failure: Failure, poller: Poller) -> None:
        line = self.waiting.lines[poller.name]
        line.asking -= 1
        poller.asking = False
        stays = failure.check(RedisUnavailable) and poller.asked > 1 and not poller.expired
        if stays and not poller.over and not self.draining:
            # It was parked before; it stays parked until Redis is back or its time is up.
            self.waiting.park(poller)
            return
        self.waiting.tidy(poller.name, line)
        self._fail(poller, failure)

    def _finish(self, poller: Poller, answer: Taken | None) -> None:
        poller.over = True
        if poller.timer is not None and poller.timer.active():
            poller.timer.cancel()
        poller.timer = None
        poller.reply.callback(answer)

    def _fail(self, poller: Poller, failure: Failure) -> None:
        if poller.over:
            return
        poller.over = True
        if poller.timer is not None and poller.timer.active():
            poller.timer.cancel()
        poller.timer = None
        poller.reply.errback(failure)

    def _time_up(self, poller: Poller) -> None:
        if poller.over:
            return
        if poller.asking:
            poller.expired = True
        else:
            self._finish(poller, None)
            self.waiting.leave(poller)

    def _hang_up(self, poller: Poller) -> None:
        if poller.over:
            return
        poller.over = True
        if poller.timer is not None and poller.timer.active():
            poller.timer.cancel()
        poller.timer = None
        if not poller.asking:
            self.waiting.leave(poller)

    def _bury_raw(self, taken: Taken) -> None:
        """An element of another program that is not JSON must not block the queue: it is dead, with its reason."""
        log.warn(
            "an element that is not JSON was pushed to the list of {name!r} by another program",
            name=taken.name,
        )
        self._settle("bury", self._store.of_lease(taken.name, taken.lease, b"not_json"))

    # Waking

    def wake(self, name: bytes, relay: bool = False) -> None:
        """One parked poller of this queue looks again; with ``relay`` the next does too, until one finds nothing."""
        poller = self.waiting.next(name)
        if poller is not None:
            poller.relay = relay
            self._ask(poller)

    def wake_all(self) -> None:
        """Every queue with parked pollers is asked again: a notice may have been lost."""
        for name in self.waiting.names():
            self.wake(name, relay=True)

    def end_polls(self) -> None:
        """Answer every parked poller that there is nothing."""
        for poller in self.waiting.pollers():
            self._finish(poller, None)
            self.waiting.leave(poller)

    # Hand-over

    def confirm(self, taken: Taken) -> None:
        """The answer with this task has been written: the task is done."""
        self._confirming.append(self._store.of_lease(taken.name, taken.lease))
        if len(self._confirming) == 1:
            self._later(CONFIRM_SECONDS, self._send_confirms)

    def _send_confirms(self) -> None:
        entries, self._confirming = self._confirming, []
        for entry in entries:
            self._settle("confirm", entry)

    def put_back(self, taken: Taken) -> None:
        """The client was lost before it had this task: back to the head, the attempt not counted."""
        name = taken.name
        self._settle("putback", self._store.of_lease(name, taken.lease), lambda: self.wake(name))

    def _settle(self, verb: str, entry: Entry, then: Callable[[], None] | None = None) -> None:
        def settled(_: object) -> None:
            if then is not None:
                then()

        def failed(failure: Failure) -> None:
            # The entry names its own record, and finds it gone when it was carried out after all: it may be sent again.
            if failure.check(RedisUnavailable, ShuttingDown) and len(self._unsettled) < MAX_UNSETTLED:
                again = Entry(entry.key, entry.args)
                self._unsettled.append((verb, again))
            else:
                log.failure("a {verb} was refused", failure, verb=verb)

        self._add(verb, entry).addCallbacks(settled, failed)

    @property
    def settled(self) -> bool:
        """Nothing is on its way to Redis, and every answer that was written is confirmed."""
        return self.batching.idle and not self._confirming

    def redis_is_back(self) -> None:
        """Send again what found no Redis, and let every line look again."""
        unsettled, self._unsettled = self._unsettled, []
        for verb, entry in unsettled:
            self._settle(verb, entry)
        self.wake_all()


def denied(reply: list[Any]) -> Exception:
    """What a script's code means; the codes are told at the top of each Lua file."""
    code = reply[0]
    if code == 4:
        return Conflict("lease_required", "This queue limits how many run at once: pop with lease=.")
    if code == 5:
        return KeyReused("This Idempotency-Key came before with another body or other options.")
    if code == 6:
        return Conflict("wrong_type", "The key of this queue's name holds something else than a list.")
    if code == 9:
        return QueueFull(f"The queue is full: it may hold {reply[1]} tasks.")
    if code in (7, 8):
        return refusal(reply[1].decode("utf-8", "replace"))
    return BadOption(f"The request was refused ({code}).")

"""The queues of one store in this process: pushes, and sending a request of any kind to Redis.

`polls` has the life of a poll; `handover` has the life of a task until its answer has been sent. While Redis is away, pollers are
parked as if their queues were empty, and requests that change something are held (see `batching`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import stopping
from registry.model import PushOptions
from registry.queue.batching import Batching
from registry.queue.delivery import Pushed
from registry.queue.handover import Handover
from registry.queue.heartbeat import Heartbeat
from registry.queue.names import Ids, check_name
from registry.queue.orders import Orders
from registry.queue.pending import PendingPush
from registry.queue.pollers import Polls
from registry.queue.promise import Receiver
from registry.queue.roster import Roster
from registry.queue.staging import is_large, stage
from registry.queue.tally import Tally
from registry.queue.wait_lists import WaitLists
from registry.redis.faults import error_from_reply
from registry.redis.store import Entry, Store, encode_options

log = Logger()
T = TypeVar("T")

# A Redis that was paused must not run these minutes later, for clients that have given up.
BOUNDED = frozenset({"push", "pushmany", "pop", "popmany", "schedule"})


class Queues:
    """The queues of one store in this process.

    ``later(seconds, f, *args)`` calls ``f`` after that time. ``is_json(bytes)`` checks elements that other programs pushed.
    ``now()`` is a monotonic time in seconds. ``redis_wait``: how long a request is held while Redis is away, s.
    """

    def __init__(
        self,
        store: Store,
        later: Callable[..., Any],
        is_json: Callable[[bytes], bool],
        now: Callable[[], float] = time.monotonic,
        redis_wait: float = 0.0,
    ) -> None:
        self.store = store
        self.later = later
        self.ids = Ids()
        self.batching = Batching(self._send, later, store.away, redis_wait, now)
        # ``carry(verb, entry)`` sends an entry with the next group. Its ``reply`` receives what Redis answers.
        self.carry = self.batching.add
        self.tally = Tally(store)
        self.batching.replied = self.tally.replied
        self.draining = False
        self.wait_lists = WaitLists(later)
        self.handover = Handover(self)
        self.polls = Polls(self, is_json, now)
        self.orders = Orders(store, self.polls.workers, later, self.ask)
        self.roster = Roster(store, self.polls.workers, self.orders.standing, now, self.tally.workers)
        self.heartbeat = Heartbeat(store, self.wait_lists, self.polls.last_polls, now, self.roster)

    def _send(self, verb: str, entries: Any) -> Deferred[list[Any]]:
        if verb in ("putback", "release"):
            # Sort by id, which is the order of the pushes, whatever the order in which their connections ended.
            entries.sort(key=_args)
        answer = self.store.call(verb, entries, bounded=verb in BOUNDED)
        if verb == "push" and self.wait_lists.parked and self.store.ready:
            for entry in entries:
                entry.reply.sent()
        return answer

    # Push

    def push(self, name: bytes, payload: bytes, options: PushOptions | None = None) -> Deferred[Pushed]:
        """Store a task. Fires with `Pushed` once Redis has it. ``payload`` is opaque and stored unchanged."""
        pushed: Deferred[Pushed] = Deferred()
        self.push_for(pushed, name, payload, options)
        return pushed

    def push_for(
        self, receiver: Receiver, name: bytes, payload: bytes, options: PushOptions | None = None
    ) -> None:
        """Like `push`, for a ``receiver``."""
        check_name(name)
        if self.draining:
            receiver.errback(Failure(stopping()))
            return
        tail = self.ids.tail()
        entry = self.store.push(name, tail, payload, encode_options(options) if options else b"")
        entry.reply = PendingPush(
            self.wait_lists, name, tail, receiver, options is None or _is_ready_at_once(options)
        )
        self.carry("push", entry)

    def push_many(
        self, name: bytes, payloads: Sequence[bytes | memoryview], options: PushOptions | None = None
    ) -> Deferred[tuple[list[bytes], bool]]:
        """Store all payloads or none. Fires with their ids, and whether the same request was answered before."""
        check_name(name)
        tails = [self.ids.tail() for _ in payloads]
        encoded = encode_options(options) if options else b""
        if self.draining:
            return fail(stopping())
        if is_large(payloads):
            d = stage(self, name, tails, payloads)
            d.addCallback(
                lambda head: self.ask("pushmany", self.store.push_staged(name, head, tails, encoded))
            )
        else:
            d = self.ask("pushmany", self.store.push_many(name, tails, payloads, encoded))

        def stored(reply: list[Any]) -> tuple[list[bytes], bool]:
            if reply[0]:
                raise error_from_reply(reply)
            if len(reply) > 2:
                return reply[1].split(b","), True
            self.tally.of(name).pushed += len(tails)
            for _ in tails:
                if name not in self.wait_lists.lists:
                    break
                self.wait_lists.wake(name)
            return [reply[1] + tail for tail in tails], False

        return d.addCallback(stored)

    def ask(self, verb: str, entry: Entry) -> Deferred[Any]:
        """Send an entry of any verb with the next group. Fires with its reply."""
        reply: Deferred[Any] = Deferred()
        entry.reply = reply
        self.carry(verb, entry)
        return reply

    def turn(self, value: T) -> Deferred[T]:
        """Fires with ``value`` in a later turn of the reactor, so that other requests run first."""
        turn: Deferred[T] = Deferred()
        self.later(0, turn.callback, value)
        return turn

    @property
    def settled(self) -> bool:
        """Whether nothing is on its way to Redis and every written answer is confirmed."""
        return self.batching.idle and not self.handover.gathering

    def redis_is_back(self) -> None:
        """Send what was held or not settled while Redis was away, and wake a poller of every queue with parked pollers."""
        self.wait_lists.forget_failures()
        self.batching.flush()
        self.handover.settle_again()
        self.wait_lists.wake_all()


def _is_ready_at_once(options: PushOptions) -> bool:
    """Whether the task of a push is certainly ready after it: it has no delay, and cannot be a duplicate or a replay."""
    return (
        options.delay is None
        and options.due_at is None
        and options.key is None
        and options.idempotency_key is None
    )


def _args(entry: Entry) -> bytes:
    return entry.args

"""What push and pop mean. No HTTP, no JSON and no Redis in here.

A pop asks the store at once; when there is nothing it is parked in this process. A push, or a notice from another
daemon, wakes exactly one poller, which asks again. A question on its way to Redis is never cancelled: when its poller
has gone, what comes back is put back.

While Redis is away a poller is parked as if its queue were empty, and what changes something is held (see `Batching`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import RedisUnavailable, RegistryError, Replaced, stopping
from registry.model import PushOptions
from registry.queue.batching import Batching
from registry.queue.carried import Storing
from registry.queue.handover import Handover
from registry.queue.heartbeat import Heartbeat
from registry.queue.names import Ids, check_name, is_foreign
from registry.queue.promise import Promise, Receiver, as_deferred, unknown_first
from registry.queue.staging import is_large, stage
from registry.queue.taken import Pushed, Taken, denied
from registry.queue.waiting import Poller, Waiting, too_many_wait
from registry.queue.workers import Workers
from registry.redis.store import Entry, Store, encode_options

log = Logger()
T = TypeVar("T")

# A task popped without lease is held this long at most while its answer is written, ms.
HANDOVER_MS = 30_000
# Queues with parked pollers that are asked again in one turn of the reactor, when all of them are.
WAKES_A_TURN = 500
# Queues of which the time of the last poll is remembered.
MOST_REMEMBERED = 10_000
# A Redis that was paused must not run these, minutes later, for clients that have long given up.
BOUNDED = frozenset({"push", "pushmany", "pop", "popmany", "schedule"})


class Queues:
    """The queues of one store, as this process serves them.

    ``later(seconds, f, *args)`` calls back in time. ``is_json(bytes)`` judges what other programs put into a list.
    ``now`` tells a time in seconds that never jumps. ``redis_wait``: how long a request is held while Redis is away, s.
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
        self._is_json = is_json
        self._now = now
        self.ids = Ids()
        self.waiting = Waiting()
        self.batching = Batching(self._send, later, store.away, redis_wait, now)
        self.workers = Workers(store.once, now)
        self.draining = False
        self._polled: OrderedDict[bytes, float] = OrderedDict()  # the one polled longest ago first
        self._heartbeat = Heartbeat(store, self.waiting, lambda: self._polled, now)
        self.handover = Handover(self)

    def _send(self, verb: str, entries: Any) -> Deferred[list[Any]]:
        if verb in ("putback", "release"):
            # Those of one moment keep the order of their ids, in which they were pushed, however their connections ended.
            entries.sort(key=_args)
        answer = self.store.call(verb, entries, bounded=verb in BOUNDED)
        if verb == "push" and self.waiting.parked and self.store.ready:
            for entry in entries:
                entry.reply.sent()
        return answer

    # Push

    def push(self, name: bytes, payload: bytes, options: PushOptions | None = None) -> Deferred[Pushed]:
        """Store a task; fires with `Pushed` once Redis has it. ``payload`` is opaque, and kept as it is."""
        pushed: Deferred[Pushed] = Deferred()
        self.push_for(pushed, name, payload, options)
        return pushed

    def push_for(
        self, told: Receiver, name: bytes, payload: bytes, options: PushOptions | None = None
    ) -> None:
        """As `push`, on behalf of ``told``."""
        check_name(name)
        if self.draining:
            told.errback(Failure(stopping()))
            return
        tail = self.ids.tail()
        entry = self.store.push(name, tail, payload, encode_options(options) if options else b"")
        entry.reply = Storing(self, name, tail, told, options is None or _is_ready_at_once(options))
        self.carry("push", entry)

    def push_many(
        self, name: bytes, payloads: Sequence[bytes | memoryview], options: PushOptions | None = None
    ) -> Deferred[tuple[list[bytes], bool]]:
        """Store all of these, or none; fires with their ids, and whether the same request was answered before."""
        check_name(name)
        tails = [self.ids.tail() for _ in payloads]
        packed = encode_options(options) if options else b""
        if self.draining:
            return fail(stopping())
        if is_large(payloads):
            d = stage(self, name, tails, payloads)
            d.addCallback(
                lambda head: self.ask("pushmany", self.store.push_staged(name, head, tails, packed))
            )
        else:
            d = self.ask("pushmany", self.store.push_many(name, tails, payloads, packed))

        def stored(reply: list[Any]) -> tuple[list[bytes], bool]:
            if reply[0]:
                raise denied(reply)
            if len(reply) > 2:
                return reply[1].split(b","), True
            for _ in tails:
                if name not in self.waiting.lines:
                    break
                self.wake(name)
            return [reply[1] + tail for tail in tails], False

        return d.addCallback(stored)

    def ask(self, verb: str, entry: Entry) -> Deferred[Any]:
        """Carry one entry of any verb in the next group; fires with its reply."""
        reply: Deferred[Any] = Deferred()
        entry.reply = reply
        self.carry(verb, entry)
        return reply

    def carry(self, verb: str, entry: Entry, large: bool = False) -> None:
        """Carry one entry in the next group; its ``reply`` is told. ``large`` as in `Batching.add`."""
        try:
            self.batching.add(verb, entry, large)
        except RegistryError:
            entry.reply.errback(Failure())

    # Pop

    def pop(
        self, name: bytes, wait: float, lease_ms: int = HANDOVER_MS, options: dict[str, Any] | None = None
    ) -> Deferred[Taken | None]:
        """Take the next task, waiting up to ``wait`` seconds; fires with None when there was none.

        ``options``: l leased, w worker, ik and ih its Idempotency-Key and fingerprint, as in ``pop.lua``.

        Cancel it when the client has gone: parked, it leaves the line; asking, what comes is put back.
        """
        reply = Promise(_itself)
        reply.request = self.pop_for(reply, name, wait, lease_ms, options)
        return as_deferred(reply)

    def pop_for(
        self,
        told: Receiver,
        name: bytes,
        wait: float,
        lease_ms: int = HANDOVER_MS,
        options: dict[str, Any] | None = None,
    ) -> Poller | None:
        """As `pop`, on behalf of ``told``; call ``hang_up()`` of what is returned when the client has gone."""
        check_name(name)
        if self.draining:
            told.errback(Failure(stopping()))
            return None
        if wait > 0 and not self.waiting.has_room(1):
            told.errback(Failure(too_many_wait()))
            return None
        poller = Poller(self, name, lease_ms, options, told)
        if options is not None and options.get("w"):
            poller.polling = self.workers.polls(options["w"], lambda: self._replace(poller))
        poller.ticket = self.waiting.ticket()
        if wait > 0:
            poller.until = self.polled(name) + wait
            line = self.waiting.lines.get(name)
            # One with a key may have been given its lease already, and one with a worker is told to the other daemons.
            asks = options is not None and ("ik" in options or "w" in options)
            # A queue may refuse the one kind and let the other wait.
            if (
                line is not None
                and line.parked
                and line.parked[-1].leased == poller.leased
                and self.store.ready
                and not asks
            ):
                self._park(poller)
                return poller
        else:
            self.polled(name)
            poller.expired = True
        self._ask(poller)
        return poller

    def polled(self, name: bytes) -> float:
        """Remember that this queue is polled now, and return the time."""
        self._polled[name] = at = self._now()
        self._polled.move_to_end(name)
        if len(self._polled) > MOST_REMEMBERED:
            self._polled.popitem(last=False)
        return at

    def _park(self, poller: Poller) -> None:
        if poller.timer is None:
            # Not before: most pops are answered at once, and a timer costs as much as the rest of them.
            left = max(0.0, poller.until - self._now())
            poller.timer = self.later(left, self._time_up, poller)
        self.waiting.park(poller)

    def _ask(self, poller: Poller) -> None:
        poller.asking = True
        poller.asked += 1
        poller.nonce = self.ids.nonce()
        self.waiting.line(poller.name).asking += 1
        packed = b""
        if poller.options:
            packed = self._pop_options(poller, poller.options)
        entry = self.store.pop(poller.name, poller.nonce, poller.lease_ms, packed)
        entry.reply = poller
        self.carry("pop", entry)

    def _pop_options(self, poller: Poller, options: dict[str, Any]) -> bytes:
        more = {}
        if "ik" in options:
            more["k"] = poller.nonce.decode()
        if "w" in options and poller.asked == 1:
            more["n"] = self.workers.serial
        return encode_options({**options, **more} if more else options)

    def answered(self, poller: Poller, reply: list[Any]) -> None:
        """Redis has answered a poller's question."""
        name, code = poller.name, reply[0]
        poller.failure = None
        line = self.waiting.lines[name]
        line.asking -= 1
        poller.asking = False
        if code == 0:
            taken = Taken(name, poller.nonce, poller.leased, reply)
            if not self.is_sound(taken):
                self._again(poller)
            elif poller.over:
                self.handover.put_back(taken)
            else:
                self._finish(poller, taken)
            if poller.relay or line.missed:
                line.missed = 0
                self.wake(name, relay=True)
            self.waiting.tidy(name, line)
        elif code == 2:
            self._again(poller)
        elif code in (1, 3):
            if line.missed:
                line.missed = 0
                poller.relay = True
                self._again(poller)
            elif poller.over:
                self.waiting.tidy(name, line)
            elif poller.replaced:
                self.waiting.tidy(name, line)
                self._fail(poller, Failure(Replaced()))
            elif poller.expired or self.draining:
                self._finish(poller, None)
                self.waiting.tidy(name, line)
            else:
                poller.relay = False
                self._park(poller)
            if len(reply) > 2:
                self.wake_later(name, reply[2])
        else:
            had_reason = bool(line.missed) or poller.waited
            line.missed = 0
            self.waiting.tidy(name, line)
            self._fail(poller, Failure(denied(reply)))
            if had_reason:
                # What it was refused may be given to another.
                self.wake(name, relay=True)

    def _again(self, poller: Poller) -> None:
        if poller.replaced:
            self._fail(poller, Failure(Replaced()))
        if poller.over:
            # Whoever is next takes over the reason to look.
            line = self.waiting.lines[poller.name]
            self.waiting.tidy(poller.name, line)
            self.wake(poller.name, relay=True)
        else:
            self._ask(poller)

    def unanswered(self, poller: Poller, failure: Failure) -> None:
        """A poller's question was not carried out, or nobody knows."""
        line = self.waiting.lines[poller.name]
        line.asking -= 1
        poller.asking = False
        poller.failure = failure = unknown_first(poller.failure, failure)
        stays = failure.check(RedisUnavailable) and not poller.expired
        if stays and not poller.over and not self.draining:
            # Until Redis is back, or its time is up: who answers such a poll at once is asked again at once.
            self._park(poller)
            return
        self.waiting.tidy(poller.name, line)
        self._fail(poller, failure)

    def _over(self, poller: Poller) -> None:
        poller.over = True
        if poller.timer is not None:
            if poller.timer.active():
                poller.timer.cancel()
            poller.timer = None
        if poller.polling is not None:
            poller.polling()

    def _finish(self, poller: Poller, answer: Taken | None) -> None:
        self._over(poller)
        poller.told.callback(answer)

    def _fail(self, poller: Poller, failure: Failure) -> None:
        if not poller.over:
            self._over(poller)
            poller.told.errback(failure)

    def _time_up(self, poller: Poller) -> None:
        if poller.over:
            return
        if poller.asking:
            poller.expired = True
            return
        failure = self.away(poller.failure)
        if failure is None:
            self._finish(poller, None)
        else:
            self._fail(poller, failure)
        self.waiting.leave(poller)

    def away(self, failure: Failure | None) -> Failure | None:
        """Why a poll whose time is up cannot be told that there is nothing: its last question failed, or Redis is away."""
        if failure is None and (error := self.store.away()) is not None:
            return Failure(error)
        return failure

    def _replace(self, poller: Poller) -> None:
        """A newer poll of its worker takes over. A question on its way is waited for: what it brings is not put back."""
        if poller.over:
            return
        if poller.asking:
            poller.expired = poller.replaced = True
        else:
            self._fail(poller, Failure(Replaced()))
            self.waiting.leave(poller)

    def hung_up(self, poller: Poller) -> None:
        """The client of a poller has gone."""
        if poller.over:
            return
        self._over(poller)
        # Nobody is left to be told, and each would keep the other until the garbage collector comes.
        poller.told = None
        if not poller.asking:
            self.waiting.leave(poller)

    def is_sound(self, taken: Taken) -> bool:
        """An element of another program that is not JSON must not block the queue: it is made dead, with its reason."""
        if not is_foreign(taken.id) or self._is_json(taken.payload):
            return True
        log.warn(
            "an element that is not JSON was pushed to the list of {name!r} by another program",
            name=taken.name,
        )
        self.handover.bury(taken, b"not_json")
        return False

    # Waking

    def wake(self, name: bytes, relay: bool = False) -> None:
        """One parked poller of this queue looks again; with ``relay`` the next does too, until one finds nothing."""
        line = self.waiting.lines.get(name)
        if relay and line is not None and line.asking:
            # Who asks now stands before those parked: it looks again when it is told "nothing", else it passes the reason on.
            line.missed += 1
            return
        poller = self.waiting.next(name)
        if poller is None:
            return
        if poller.owner is not None:
            poller.owner.woken(poller)
        else:
            poller.relay = relay
            self._ask(poller)

    def wake_later(self, name: bytes, ms: int) -> None:
        """The rate of this queue lets no task start before that: its parked pollers look again then."""
        line = self.waiting.lines.get(name)
        if line is not None and line.parked:
            line.look_later(self.later(ms / 1000, self.wake, name, True))

    def wake_early(self, name: bytes) -> Poller | None:
        """A push to this queue was just sent: a parked poller asks right behind it, a round trip sooner than when it is woken."""
        line = self.waiting.lines.get(name)
        if line is None or line.asking:
            # Whoever asks already may be told "nothing", and then stands before all others.
            return None
        poller = self.waiting.next(name)
        if poller is None:
            return None
        if poller.owner is not None:
            self.waiting.park(poller)
            return None
        poller.relay = False
        self._ask(poller)
        return poller

    def wake_all(self) -> None:
        """Every queue with parked pollers is asked again: a notice may have been lost."""
        self._wake_from(self.waiting.names(), 0)

    def _wake_from(self, names: list[bytes], at: int) -> None:
        for name in names[at : at + WAKES_A_TURN]:
            self.wake(name, relay=True)
        if at + WAKES_A_TURN < len(names):
            self.later(0, self._wake_from, names, at + WAKES_A_TURN)

    def turn(self, value: T) -> Deferred[T]:
        """Fires with ``value`` when others have had their turn."""
        turn: Deferred[T] = Deferred()
        self.later(0, turn.callback, value)
        return turn

    def end_polls(self) -> None:
        """Answer every parked poller that there is nothing."""
        # All answers first, and only then what each of them entails: ten thousand must not wait for each other.
        with self.batching.corked():
            for poller in self.waiting.pollers():
                if poller.over:
                    continue
                if poller.owner is not None:
                    poller.owner.end()
                else:
                    self._finish(poller, None)
                    self.waiting.leave(poller)

    def beat(self) -> Deferred[None]:
        """Tell the other daemons who is parked here."""
        return self._heartbeat.beat()

    def pollers(self) -> Deferred[dict[bytes, int]]:
        """Parked pollers by queue, over all daemons."""
        return self._heartbeat.pollers()

    def silent_ms(self, name: bytes) -> Deferred[int | None]:
        """Fires with how long ago this queue was last polled, over all daemons; None when that is not known."""
        return self._heartbeat.silent_ms(name)

    @property
    def settled(self) -> bool:
        """Nothing is on its way to Redis, and every answer that was written is confirmed."""
        return self.batching.idle and not self.handover.gathering

    def redis_is_back(self) -> None:
        """Send again what found no Redis, and let every line look again."""
        self.waiting.forget_failures()
        self.batching.flush()
        self.handover.settle_again()
        self.wake_all()


def _is_ready_at_once(options: PushOptions) -> bool:
    """Whether the task of a push is certainly ready after it: not delayed, there already, or pushed before."""
    return (
        options.delay is None
        and options.due_at is None
        and options.key is None
        and options.idempotency_key is None
    )


def _itself(value: Any) -> Any:
    return value


def _args(entry: Entry) -> bytes:
    return entry.args

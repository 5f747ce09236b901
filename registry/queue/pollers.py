"""The two kinds of poller, for one queue and for several, and `Polls`, which starts them.

Each kind defines how it asks, which wait lists it is in, and which pollers it wakes. The states that both share are in `polls`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry.errors import Overloaded, RegistryError, stopping
from registry.model import PopOptions
from registry.queue.batching import Batching
from registry.queue.delivery import Delivery, delivery_of
from registry.queue.handover import Handover
from registry.queue.names import Ids, check_name, is_foreign
from registry.queue.polls import CLOSED, Poller
from registry.queue.promise import Receiver
from registry.queue.wait_lists import PARKED, WaitList, WaitLists
from registry.queue.workers import Workers
from registry.redis.store import Entry, Store, encode_options

log = Logger()

# A task popped without a lease is held for at most this long while its answer is written, ms.
HANDOVER_MS = 30_000
# The options of a pop with a lease and nothing else.
LEASED = PopOptions(leased=True)
_ENCODED_LEASED = encode_options(LEASED)
# The time of the last poll is remembered for at most this many queues.
MAX_REMEMBERED = 10_000


class OnePoller(Poller):
    """A poller of one queue. Its result is a `Delivery`, or None. The poller itself is the entry in the wait list."""

    __slots__ = ("wait_list",)
    wait_list: WaitList
    alone = True

    def ask(self) -> None:
        polls = self.polls
        self.questions += 1
        self.nonce = nonce = polls.ids.nonce()
        self.wait_list = wait_list = polls.wait_lists.of(self.name)
        wait_list.in_flight += 1
        options = self.options
        if options is None:
            encoded = b""
        elif options is LEASED:
            encoded = _ENCODED_LEASED
        else:
            encoded = encode_options(polls.options_of(self, options))
        entry = polls.store.pop(self.name, nonce, self.lease_ms, encoded)
        entry.reply = self
        polls.carry("pop", entry)

    def _waits_behind_others(self) -> bool:
        wait_list = self.polls.wait_lists.lists.get(self.name)
        options = self.options
        return (
            wait_list is not None
            and bool(wait_list.parked)
            # A queue may refuse pops with a lease and let those without one wait, or the reverse.
            and wait_list.parked[-1].leased == self.leased
            and self.polls.store.ready
            # A poll with a key may have its lease already; a poll with a worker must be published to the other daemons.
            and (options is None or (options.idempotency_key is None and options.worker is None))
        )

    def _landed(self) -> int:
        wait_list = self.wait_list
        wait_list.in_flight -= 1
        return wait_list.pending_wakes

    def _forget_pending_wake(self) -> None:
        self.wait_list.pending_wakes = 0

    def _pass_on(self) -> None:
        self.polls.wait_lists.wake(self.name, wake_next=True)

    def _enter_lists(self) -> None:
        self.wait_list = self.polls.wait_lists.park(self)

    def _leave_lists(self, was_parked: bool) -> None:
        if was_parked:
            self.polls.wait_lists.leave(self)
        elif not self.wait_list.in_flight:
            self.polls.wait_lists.tidy(self.name, self.wait_list)

    def _read(self, reply: list[Any]) -> Delivery | None:
        delivery = delivery_of(self.name, self.nonce, self.leased, reply)
        return delivery if not is_foreign(delivery.id) or self.polls.is_valid(delivery) else None

    def _put_back(self, found: Delivery) -> None:
        self.polls.handover.put_back(found)

    def _answer_nothing(self) -> None:
        self._answer(None)

    def _wake_later(self, reply: list[Any]) -> None:
        self.polls.wait_lists.wake_later(self.name, reply[2])


class ManyPoller(Poller):
    """A poller of several queues, for several tasks. Its result is a list of `Delivery`, empty if there is no task.

    In each wait list it either has a place, or its question counts as in flight. While it asks, it gives up only the places that
    were woken: inserting a hundred places again, each by its ticket, would cost more than the question.
    """

    __slots__ = ("_in_flight", "_names", "_pending", "_places")

    def __init__(
        self, polls: Polls, receiver: Receiver, names: Sequence[bytes], lease_ms: int, options: PopOptions
    ) -> None:
        super().__init__(polls, receiver, names[0], lease_ms, options)
        self._names = names
        self._places: dict[bytes, _Place] = {}
        self._in_flight: list[WaitList] = []
        self._pending = False

    def place_woken(self, place: _Place, wake_next: bool) -> None:
        """The wait list of one of its queues has removed its place, and wakes it."""
        del self._places[place.name]
        if self.state == PARKED:
            self.woken(wake_next)
        else:
            self._pending = True

    def ask(self) -> None:
        polls = self.polls
        self.questions += 1
        self.nonce = polls.ids.nonce()
        for name in self._names:
            if name not in self._places:
                wait_list = polls.wait_lists.of(name)
                wait_list.in_flight += 1
                self._in_flight.append(wait_list)
        assert self.options is not None
        options = polls.options_of(self, self.options)
        entry = polls.store.pop_many(self._names, self.nonce, self.lease_ms, options)
        entry.reply = self
        polls.carry("popmany", entry)

    def _waits_behind_others(self) -> bool:
        return False

    def _landed(self) -> int:
        for wait_list in self._in_flight:
            wait_list.in_flight -= 1
            if wait_list.pending_wakes:
                wait_list.pending_wakes = 0
                self._pending = True
        self._in_flight.clear()
        return self._pending

    def _forget_pending_wake(self) -> None:
        self._pending = False

    def _pass_on(self) -> None:
        for name in self._names:
            self.polls.wait_lists.wake(name, wake_next=True)

    def _enter_lists(self) -> None:
        for name in self._names:
            if name not in self._places:
                place = self._places[name] = _Place(self, name)
                self.polls.wait_lists.park(place)

    def _leave_lists(self, was_parked: bool) -> None:
        wait_lists = self.polls.wait_lists
        places, self._places = self._places, {}
        for name in self._names:
            place = places.get(name)
            if place is not None:
                place.state = CLOSED
                wait_lists.leave(place)
            elif (wait_list := wait_lists.lists.get(name)) is not None:
                wait_lists.tidy(name, wait_list)

    def _read(self, reply: list[Any]) -> list[Delivery]:
        # Other pollers may have parked behind its places while it asked.
        self.wake_next = True
        name_of = self.polls.store.name_of
        deliveries = [delivery_of(name_of(one[8]), self.nonce, True, one) for one in reply[1:]]
        is_valid = self.polls.is_valid
        return [one for one in deliveries if not is_foreign(one.id) or is_valid(one)]

    def _put_back(self, found: list[Delivery]) -> None:
        for one in found:
            self.polls.handover.put_back(one)

    def _answer_nothing(self) -> None:
        self._answer([])

    def _wake_later(self, reply: list[Any]) -> None:
        for ms, key in zip(reply[2::2], reply[3::2], strict=False):
            self.polls.wait_lists.wake_later(self.polls.store.name_of(key), ms)


class _Place:
    """The place of a `ManyPoller` in one wait list."""

    __slots__ = ("name", "poller", "state", "ticket")
    alone = False
    leased = True

    def __init__(self, poller: ManyPoller, name: bytes) -> None:
        self.poller = poller
        self.name = name
        self.ticket = poller.ticket
        self.state: int = PARKED

    def woken(self, wake_next: bool) -> None:
        self.state = CLOSED
        self.poller.place_woken(self, wake_next)

    def forget_failure(self) -> None:
        self.poller.forget_failure()

    def end(self) -> None:
        self.poller.end()


class Queues(Protocol):
    """The part of `Queues` that this module uses."""

    store: Store
    later: Callable[..., Any]
    ids: Ids
    batching: Batching
    handover: Handover
    wait_lists: WaitLists
    draining: bool

    def carry(self, verb: str, entry: Entry) -> None: ...


class Polls:
    """The polls of this process.

    ``is_json(bytes)`` checks elements that other programs pushed. ``now()`` is a monotonic time in seconds.
    """

    def __init__(self, queues: Queues, is_json: Callable[[bytes], bool], now: Callable[[], float]) -> None:
        self.queues = queues
        self._is_json = is_json
        self.store = queues.store
        self.later = queues.later
        self.ids = queues.ids
        self.carry = queues.carry
        self.handover = queues.handover
        self.now = now
        self.wait_lists = queues.wait_lists
        self.workers = Workers(queues.store.once, now)
        # When each queue was polled last; the one polled longest ago comes first.
        self.last_polls: OrderedDict[bytes, float] = OrderedDict()

    def pop(
        self, name: bytes, wait: float, lease_ms: int = HANDOVER_MS, options: PopOptions | None = None
    ) -> Deferred[Delivery | None]:
        """Take the next task, waiting up to ``wait`` seconds. Fires with None if there was none.

        Cancel the Deferred when the client has disconnected.
        """
        poller: Poller | None = None

        def cancelled(_: object) -> None:
            if poller is not None:
                poller.hang_up()

        popped: Deferred[Delivery | None] = Deferred(cancelled)
        poller = self.pop_for(popped, name, wait, lease_ms, options)
        return popped

    def pop_for(
        self,
        receiver: Receiver,
        name: bytes,
        wait: float,
        lease_ms: int = HANDOVER_MS,
        options: PopOptions | None = None,
    ) -> Poller | None:
        """Like `pop`, for a ``receiver``. Call ``hang_up()`` of the returned poller when the client has disconnected."""
        check_name(name)
        if self.queues.draining or (wait > 0 and not self.wait_lists.has_room(1)):
            receiver.errback(Failure(self._reason_to_refuse()))
            return None
        poller = OnePoller(self, receiver, name, lease_ms, options)
        poller.begin(self.polled(name), wait)
        return poller

    def pop_many(
        self, names: Sequence[bytes], wait: float, lease_ms: int, options: PopOptions
    ) -> Deferred[list[Delivery]]:
        """Take up to ``options.count`` tasks of these queues, like `pop`. Fires with an empty list if there were none."""
        names = [check_name(name) for name in dict.fromkeys(names)]
        popped: Deferred[list[Delivery]] = Deferred(lambda _: poller.hang_up())
        if self.queues.draining or (wait > 0 and not self.wait_lists.has_room(len(names))):
            popped.errback(Failure(self._reason_to_refuse()))
            return popped
        poller = ManyPoller(self, popped, names, lease_ms, options)
        poller.begin(max([self.polled(name) for name in names]), wait)
        return popped

    def _reason_to_refuse(self) -> RegistryError:
        if self.queues.draining:
            return stopping()
        return Overloaded("Too many polls are waiting; try again in a moment, or poll fewer queues at once.")

    def options_of(self, poller: Poller, options: PopOptions) -> PopOptions:
        """The options of its next question. A key adds the nonce of the answer; a worker adds its new poll to the first one."""
        if options.idempotency_key is not None:
            options = replace(options, answer=poller.nonce.decode())
        if options.worker is not None and poller.questions == 1:
            serial = self.workers.serial
            options = replace(options, poll=f"{serial} {options.owner}" if options.owner else serial)
        return options

    def polled(self, name: bytes) -> float:
        """Remember that this queue is polled now, and return the time."""
        self.last_polls[name] = now = self.now()
        self.last_polls.move_to_end(name)
        if len(self.last_polls) > MAX_REMEMBERED:
            self.last_polls.popitem(last=False)
        return now

    def is_valid(self, delivery: Delivery) -> bool:
        """Whether a task of another program can be handed out. One that is not JSON would block its queue: bury it."""
        if self._is_json(delivery.payload):
            return True
        log.warn(
            "another program pushed an element that is not JSON to the queue {name!r}; it is now dead",
            name=delivery.name,
        )
        self.handover.bury(delivery, b"not_json")
        return False

    def away(self, failure: Failure | None) -> Failure | None:
        """Why a poll whose time is up cannot be answered "nothing": its last question failed, or Redis is away. Else None."""
        if failure is None and (error := self.store.away()) is not None:
            return Failure(error)
        return failure

    def end_all(self) -> None:
        """Answer "nothing" to every parked poller."""
        # All answers come first, and the work that follows from them after that: ten thousand must not wait for each other.
        with self.queues.batching.corked():
            for one in self.wait_lists:
                one.end()

"""A poller for several queues and several tasks: it stands in the line of each queue, and asks for all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from registry.errors import RedisUnavailable, RegistryError, Replaced, stopping
from registry.queue.names import check_name
from registry.queue.promise import unknown_first
from registry.queue.taken import Taken, denied
from registry.queue.waiting import Poller, too_many_wait

if TYPE_CHECKING:
    from registry.queue.queues import Queues


class ManyPoller:
    """One request for up to ``count`` tasks of these queues; ``reply`` fires with a list of `Taken`, empty for none."""

    def __init__(
        self, queues: Queues, names: Sequence[bytes], wait: float, lease_ms: int, options: dict[str, Any]
    ) -> None:
        self._queues = queues
        self._names = [check_name(name) for name in dict.fromkeys(names)]
        self._lease_ms = lease_ms
        self._options = options
        self._places: dict[bytes, Poller] = {}
        self._ticket = queues.waiting.ticket()
        self._nonce = b""
        self._asked = 0
        self._missed = False
        self._asking = self._over = self._replaced = False
        self._expired = wait <= 0
        self.failure: Failure | None = None
        self._polling: Callable[[], None] | None = None
        self.reply: Deferred[list[Taken]] = Deferred(lambda _: self._hang_up())
        self._timer = queues.later(wait, self._time_up) if wait > 0 else None
        refusal: RegistryError | None = None
        if queues.draining:
            refusal = stopping()
        elif wait > 0 and not queues.waiting.has_room(len(self._names)):
            refusal = too_many_wait()
        if refusal is not None:
            self._fail(Failure(refusal))
            return
        if options.get("w"):
            self._polling = queues.workers.polls(options["w"], self._replace)
        for name in self._names:
            queues.polled(name)
        self._stand_in_lines()
        self._ask()

    def _stand_in_lines(self) -> None:
        """A place in every line, from before the question on: what is pushed meanwhile is then noticed."""
        if len(self._places) == len(self._names):
            return
        for name in self._names:
            if name in self._places:
                continue
            place = Poller(self._queues, name, 0, None, None)
            place.owner = self
            place.ticket = self._ticket
            self._queues.waiting.park(place)
            self._places[name] = place

    def _leave_lines(self) -> None:
        places, self._places = self._places, {}
        for place in places.values():
            if not place.over:
                place.over = True
                self._queues.waiting.leave(place)

    def woken(self, place: Poller) -> None:
        """The line of one of our queues has called this place, and taken it out."""
        del self._places[place.name]
        place.over = True
        if self._asking:
            self._missed = True
        else:
            self._ask()

    def _ask(self) -> None:
        self._asking, self._missed = True, False
        self._asked += 1
        self._nonce = self._queues.ids.nonce()
        options = dict(self._options)
        if "ik" in options:
            options["k"] = self._nonce.decode()
        if "w" in options and self._asked == 1:
            options["n"] = self._queues.workers.serial
        entry = self._queues.store.pop_many(self._names, self._nonce, self._lease_ms, options)
        self._queues.ask("popmany", entry).addCallbacks(self._told, self._not_told)

    def _told(self, reply: list[Any]) -> None:
        self._asking = False
        self.failure = None
        code = reply[0]
        if code == 0:
            name_of = self._queues.store.name_of
            taken = [Taken(name_of(one[8]), self._nonce, True, one) for one in reply[1:]]
            good = [one for one in taken if self._queues.is_sound(one)]
            if self._over:
                for one in good:
                    self._queues.handover.put_back(one)
            elif good:
                self._finish(good)
            elif self._replaced:
                self._fail(Failure(Replaced()))
            else:
                self._ask()
            # Others may have parked behind this place while it asked.
            for name in self._names:
                self._queues.wake(name, relay=True)
        elif self._over:
            return
        elif self._replaced and code in (1, 2, 3):
            self._fail(Failure(Replaced()))
            # What it was woken for is for others now.
            for name in self._names:
                self._queues.wake(name, relay=True)
        elif code == 2 or (code in (1, 3) and self._missed):
            self._stand_in_lines()
            self._ask()
        elif code in (1, 3):
            if self._expired or self._queues.draining:
                self._finish([])
            else:
                self._stand_in_lines()
            for ms, key in zip(reply[2::2], reply[3::2], strict=False):
                self._queues.wake_later(self._queues.store.name_of(key), ms)
        else:
            self._fail(Failure(denied(reply)))

    def _not_told(self, failure: Failure) -> None:
        self._asking = False
        if self._over:
            return
        self.failure = failure = unknown_first(self.failure, failure)
        if failure.check(RedisUnavailable) and not self._expired and not self._queues.draining:
            self._stand_in_lines()
        else:
            self._fail(failure)

    def _close(self) -> None:
        self._over = True
        if self._polling is not None:
            self._polling()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._leave_lines()

    def _finish(self, taken: list[Taken]) -> None:
        self._close()
        self.reply.callback(taken)

    def _fail(self, failure: Failure) -> None:
        self._close()
        self.reply.errback(failure)

    def _time_up(self) -> None:
        if self._asking:
            self._expired = True
        elif not self._over:
            failure = self._queues.away(self.failure)
            if failure is None:
                self._finish([])
            else:
                self._fail(failure)

    def end(self) -> None:
        """Answer that there is nothing: the daemon stops."""
        if not self._over:
            self._finish([])

    def _replace(self) -> None:
        if self._asking:
            # What it brings is not put back.
            self._expired = self._replaced = True
        elif not self._over:
            self._fail(Failure(Replaced()))

    def _hang_up(self) -> None:
        if not self._over:
            self._close()

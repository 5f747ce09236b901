"""What a request will be answered, as the busiest verbs hand it up: a Deferred cut down to what they need of one.

A Deferred's chain of callbacks, and its care for what they return, cost more than the rest of what a push does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from registry.errors import Unavailable, partly


class Told(Protocol):
    """Whoever is told how something went: a Deferred, a `Reply`."""

    def callback(self, result: Any, /) -> Any: ...

    def errback(self, fail: Any, /) -> Any: ...


_NOTHING = object()


class Reply:
    """Is told once, by ``callback(value)`` or ``errback(failure)``, and tells ``make(value)`` to whom `addCallbacks` named.

    ``request``: what `cancel` calls ``hang_up()`` of, if anything.
    """

    __slots__ = ("_make", "_no", "_ok", "_told", "request")

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self._ok: Callable[[Any], Any] | None = None
        self._no: Callable[[Failure], Any] | None = None
        self._told: Any = _NOTHING
        self.request: Any = None

    def callback(self, value: Any) -> None:
        """How it went."""
        # What asked knows this reply, and each would keep the other until the garbage collector comes.
        self.request = None
        try:
            value = self._make(value)
        except Exception:
            self.errback(Failure())
            return
        if self._ok is None:
            self._told = value
        else:
            self._ok(value)

    def errback(self, failure: Failure) -> None:
        """It went wrong."""
        self.request = None
        if self._no is None:
            self._told = failure
        else:
            self._no(failure)

    def addCallbacks(self, ok: Callable[[Any], Any], no: Callable[[Failure], Any]) -> None:
        """Whom to tell; called once."""
        told = self._told
        if told is _NOTHING:
            self._ok, self._no = ok, no
        elif isinstance(told, Failure):
            no(told)
        else:
            ok(told)

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        if self.request is not None:
            self.request.hang_up()


def as_deferred(reply: Reply | Deferred[Any]) -> Deferred[Any]:
    """The same as a Deferred, for those who need all that one can do."""
    if isinstance(reply, Deferred):
        return reply
    deferred: Deferred[Any] = Deferred(lambda _: reply.cancel())

    def ok(value: Any) -> None:
        # Cancelled ones are told by Twisted; a push goes on all the same.
        if not deferred.called:
            deferred.callback(value)

    def no(failure: Failure) -> None:
        if not deferred.called:
            deferred.errback(failure)

    reply.addCallbacks(ok, no)
    return deferred


def after(applied: object, asked: Deferred[Any]) -> Deferred[Any]:
    """What is asked when something of the request was ``applied`` already: then no failure of it means that nothing was."""

    def failed(failure: Failure) -> Failure:
        error = failure.value
        return Failure(partly(error)) if isinstance(error, Unavailable) else failure

    return asked.addErrback(failed) if applied else asked


def unknown_first(before: Failure | None, failure: Failure) -> Failure:
    """Of the failed questions of one poll the one to tell: where one may have been carried out, nobody knows."""
    return before if before is not None and getattr(before.value, "outcome", "") == "unknown" else failure


class Gathering:
    """The replies of many entries, told to ``told`` as one list in their order, or as the first failure among them.

    Told when all of them are known: a failure beside which others were carried out has an unknown outcome.
    """

    __slots__ = ("_failure", "_left", "_outcomes", "_replies", "_told")

    def __init__(self, count: int, told: Told) -> None:
        self._left = count
        self._replies: list[Any] = [None] * count
        self._told = told
        self._failure: Failure | None = None
        self._outcomes: set[str] = set()

    def part(self, at: int) -> Told:
        """What the entry at this place is to tell."""
        return _Part(self, at)

    def one(self, at: int, reply: Any) -> None:
        """The entry at this place has its reply."""
        self._replies[at] = reply
        self._known("applied")

    def failed(self, failure: Failure) -> None:
        """An entry was not carried out, or nobody knows."""
        if self._failure is None:
            self._failure = failure
        self._known(getattr(failure.value, "outcome", "unknown"))

    def _known(self, outcome: str) -> None:
        self._outcomes.add(outcome)
        self._left -= 1
        if self._left:
            return
        failure = self._failure
        if failure is None:
            self._told.callback(self._replies)
        elif len(self._outcomes) > 1 and isinstance(failure.value, Unavailable):
            self._told.errback(Failure(partly(failure.value)))
        else:
            self._told.errback(failure)


class _Part:
    __slots__ = ("_all", "_at")

    def __init__(self, gathering: Gathering, at: int) -> None:
        self._all = gathering
        self._at = at

    def callback(self, reply: Any) -> None:
        self._all.one(self._at, reply)

    def errback(self, failure: Failure) -> None:
        self._all.failed(failure)

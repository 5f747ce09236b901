"""The result of a request in flight, for the busiest verbs: a minimal Deferred.

The callback chain of a Deferred, and its handling of return values, cost more than the rest of a push.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from registry.errors import Unavailable, partly


class Receiver(Protocol):
    """Receives a result: exactly one of these methods is called, once. A Deferred, a `Promise` or a poller."""

    def callback(self, result: Any, /) -> Any: ...

    def errback(self, fail: Any, /) -> Any: ...


_PENDING = object()


class Promise(Struct, eq=False):
    """Receives one value or failure, and passes ``convert(value)`` or the failure on to the functions given to `addCallbacks`.

    ``request``: its ``hang_up()`` is called by `cancel`.
    """

    _convert: Callable[[Any], Any]
    request: Any = None
    _on_result: Callable[[Any], Any] | None = None
    _on_failure: Callable[[Failure], Any] | None = None
    _result: Any = _PENDING

    def callback(self, value: Any) -> None:
        """The request has a result."""
        # The request refers to this promise; the cycle would stay in memory until the garbage collector runs.
        self.request = None
        try:
            value = self._convert(value)
        except Exception:
            self.errback(Failure())
            return
        if self._on_result is None:
            self._result = value
        else:
            self._on_result(value)

    def errback(self, failure: Failure) -> None:
        """The request has failed."""
        self.request = None
        if self._on_failure is None:
            self._result = failure
        else:
            self._on_failure(failure)

    def addCallbacks(self, on_result: Callable[[Any], Any], on_failure: Callable[[Failure], Any]) -> None:
        """Set the functions to call with the result or the failure. To be called exactly once."""
        result = self._result
        if result is _PENDING:
            self._on_result, self._on_failure = on_result, on_failure
        elif isinstance(result, Failure):
            on_failure(result)
        else:
            on_result(result)

    def cancel(self) -> None:
        """The client has disconnected."""
        if self.request is not None:
            self.request.hang_up()


def as_deferred(promise: Promise | Deferred[Any]) -> Deferred[Any]:
    """The same result as a Deferred."""
    if isinstance(promise, Deferred):
        return promise
    deferred: Deferred[Any] = Deferred(lambda _: promise.cancel())

    def on_result(value: Any) -> None:
        # A cancelled Deferred has already failed, but a push continues.
        if not deferred.called:
            deferred.callback(value)

    def on_failure(failure: Failure) -> None:
        if not deferred.called:
            deferred.errback(failure)

    promise.addCallbacks(on_result, on_failure)
    return deferred


def after(applied: object, rest: Deferred[Any]) -> Deferred[Any]:
    """The ``rest`` of a request. If something was ``applied`` already, its failure says that the request was partly applied."""

    def failed(failure: Failure) -> Failure:
        error = failure.value
        return Failure(partly(error)) if isinstance(error, Unavailable) else failure

    return rest.addErrback(failed) if applied else rest


def unknown_first(before: Failure | None, failure: Failure) -> Failure:
    """The failure of two questions that a poll reports: the earlier one if its outcome is unknown, else the later one."""
    return before if before is not None and getattr(before.value, "outcome", "") == "unknown" else failure


class Gathering:
    """Collects the replies of many entries. ``receiver`` receives one list in their order, or the first failure.

    It is called when all replies are known: if some entries failed and others were applied, the outcome is unknown.
    """

    __slots__ = ("_failure", "_left", "_outcomes", "_receiver", "_replies")

    def __init__(self, count: int, receiver: Receiver) -> None:
        self._left = count
        self._replies: list[Any] = [None] * count
        self._receiver = receiver
        self._failure: Failure | None = None
        self._outcomes: set[str] = set()

    def part(self, at: int) -> Receiver:
        """The receiver of the reply at this place."""
        return _Part(self, at)

    def replied(self, at: int, reply: Any) -> None:
        """The entry at this place has its reply."""
        self._replies[at] = reply
        self._count("applied")

    def failed(self, failure: Failure) -> None:
        """An entry was not applied, or its outcome is unknown."""
        if self._failure is None:
            self._failure = failure
        self._count(getattr(failure.value, "outcome", "unknown"))

    def _count(self, outcome: str) -> None:
        self._outcomes.add(outcome)
        self._left -= 1
        if self._left:
            return
        failure = self._failure
        if failure is None:
            self._receiver.callback(self._replies)
        elif len(self._outcomes) > 1 and isinstance(failure.value, Unavailable):
            self._receiver.errback(Failure(partly(failure.value)))
        else:
            self._receiver.errback(failure)


class _Part:
    __slots__ = ("_at", "_gathering")

    def __init__(self, gathering: Gathering, at: int) -> None:
        self._gathering = gathering
        self._at = at

    def callback(self, reply: Any) -> None:
        self._gathering.replied(self._at, reply)

    def errback(self, failure: Failure) -> None:
        self._gathering.failed(failure)

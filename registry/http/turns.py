"""Long work in steps: at each ``yield`` of a generator, the reactor may do other work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from time import monotonic
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")
# A generator that yields None after each step and returns the result.
Steps = Generator[None, None, T]

# The longest time that is spent on such work in one turn of the reactor, s; the last step may pass it.
TURN_SECONDS = 0.004


def at_once(steps: Steps[T]) -> T:
    """Run all the steps now and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


class Turns:
    """Runs the long work of all requests, a few ms in each turn of the reactor, one step of each in rotation.

    ``later(seconds, f)`` schedules a call of ``f``. ``now()`` is a monotonic time in seconds.
    """

    def __init__(self, later: Callable[..., Any], now: Callable[[], float] = monotonic) -> None:
        self._later = later
        self._now = now
        self._waiting: deque[tuple[Steps[Any], Deferred[Any]]] = deque()
        self._is_scheduled = False

    def run(self, steps: Steps[T]) -> Deferred[T]:
        """Run these steps, beginning with the next turn; fires with their result. After a cancel, no further step is run."""
        done: Deferred[T] = Deferred()
        self._waiting.append((steps, done))
        if not self._is_scheduled:
            self._is_scheduled = True
            # Not in this turn: the caller that read the body first releases it.
            self._later(0, self._turn)
        return done

    def pause(self) -> Deferred[None]:
        """Fires when the caller may go on with its long work: in a later turn, in rotation with the work of other requests."""
        return self.run(iter(()))  # type: ignore[arg-type]

    def _turn(self) -> None:
        waiting, began = self._waiting, self._now()
        took = 0.0
        while waiting and took < TURN_SECONDS:
            self._step(*waiting.popleft())
            took = self._now() - began
        self._is_scheduled = bool(waiting)
        if waiting:
            # Leave the others as much time: their push takes several turns, and waits for one of these at most.
            self._later(took, self._turn)

    def _step(self, steps: Steps[Any], done: Deferred[Any]) -> None:
        if done.called:
            return
        try:
            next(steps)
        except StopIteration as end:
            done.callback(end.value)
        except Exception:
            done.errback()
        else:
            self._waiting.append((steps, done))

"""Long work in steps: at each ``yield`` of a generator, the reactor may do other work."""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import monotonic
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")
# A generator that yields None after each step and returns the result.
Steps = Generator[None, None, T]


def at_once(steps: Steps[T]) -> T:
    """Run all the steps now and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def in_turns(steps: Steps[T], later: Callable[..., Any]) -> Deferred[T]:
    """Run each step in its own turn of the reactor, starting with the next turn; fires with the result.

    ``later(seconds, f)`` schedules a call of ``f``. After a cancel, no further step is run.
    """
    done: Deferred[T] = Deferred()

    def step() -> None:
        if done.called:
            return
        began = monotonic()
        try:
            next(steps)
        except StopIteration as end:
            done.callback(end.value)
        except Exception:
            done.errback()
        else:
            # Leave the others as much time as the step took: their push takes several turns, and waits for at most one step.
            later(monotonic() - began, step)

    # Not in this turn: the caller that read the body first releases it.
    later(0, step)
    return done

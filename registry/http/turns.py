"""Long work in steps: each ``yield`` of a generator is a place where others may have their turn."""

from __future__ import annotations

from collections.abc import Callable, Generator
from time import monotonic
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")
# A generator that gives nothing until it returns.
Steps = Generator[None, None, T]


def at_once(steps: Steps[T]) -> T:
    """Take all the steps; what the last one returns is returned."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


def in_turns(steps: Steps[T], later: Callable[..., Any]) -> Deferred[T]:
    """Take a step in a turn of the reactor of its own, from the next one on; fires with what the last one returns.

    ``later(seconds, f)`` runs ``f`` then. Cancelled, no further step is taken.
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
            # As much time for the others: a push of theirs takes several turns, and waits for one step at the most.
            later(monotonic() - began, step)

    # Whoever has read the body lets go of it first.
    later(0, step)
    return done

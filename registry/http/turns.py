"""Long work in steps: each `yield` of a generator is a place where others may have their turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")
Steps = Iterator[None]


def at_once(steps: Any) -> Any:
    """Run all steps; what the generator returns is returned."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def in_turns(steps: Any, later: Callable[..., Any]) -> Deferred[Any]:
    """Run a step in each turn of the reactor, from now on; fires with what the generator returns.

    ``later(0, f)`` runs ``f`` in the next turn. Cancelled, no further step is taken.
    """
    done: Deferred[Any] = Deferred(lambda _: steps.close())

    def step() -> None:
        if done.called:
            return
        try:
            next(steps)
        except StopIteration as end:
            done.callback(end.value)
        except Exception:
            done.errback()
        else:
            later(0, step)

    step()
    return done

"""The replies of the push and pop scripts as objects."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Pushed(Struct, frozen=True, gc=False):
    """The result of a push. ``duplicate``: a task with the same ``key`` exists. ``replayed``: the same request came before."""

    id: bytes
    duplicate: bool = False
    replayed: bool = False


class Delivery(Struct, eq=False):
    """A task under a lease. ``payload``: the bytes that were pushed. ``lease_ms``: the length of the lease.

    ``leased``: the client asked for the lease; if False, it is the internal lease of a hand-over. ``replayed``: the same
    request got it before. ``holders``: how many answers contain it. ``answer``: the nonce of its answer. A put-back names it, so that
    it does not take the task from another answer to the same request. ``trace``: the traceparent of the push, and on another line
    the tracestate, if there is one; None for none.
    """

    name: bytes
    leased: bool
    id: bytes
    payload: bytes
    attempt: int
    lease_ms: int
    trace: bytes | None
    lease: bytes
    answer: bytes
    replayed: bool = False
    holders: int = 1


def delivery_of(name: bytes, nonce: bytes, leased: bool, reply: list[Any]) -> Delivery:
    """The task of a pop's reply; ``nonce``: of the question."""
    _, task_id, payload, attempt, _, lease_ms, trace, *more = reply
    if more and more[0] == 1:
        # The same request got it before.
        lease = b"%b-%b" % (task_id, more[2])
        return Delivery(name, leased, task_id, payload, attempt, lease_ms, trace, lease, nonce, True)
    lease = b"%b-%b" % (task_id, nonce)
    return Delivery(name, leased, task_id, payload, attempt, lease_ms, trace, lease, nonce)

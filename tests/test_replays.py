"""A lost answer does not take away a lease that another answer to the same request has given."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted

from registry.redis.store import encode_options
from tests.bench import Bench

pytestmark = pytest.mark.every_redis


async def pop(bench: Bench, answer: bytes) -> bytes:
    """The lease that the request with the key ``k`` is given in this answer."""
    options = encode_options({"l": True, "ik": "k", "ih": "print", "k": answer.decode()})
    [reply] = await bench.call("pop", [bench.store.pop(b"q", answer, 30_000, options)])
    assert reply[0] == 0
    return bytes(reply[1] + b"-" + (reply[9] if len(reply) > 7 else answer))


async def lost(bench: Bench, lease: bytes, answer: bytes) -> int:
    [reply] = await bench.call("putback", [bench.store.of_lease(b"q", lease, answer)])
    return int(reply[0])


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
@pytest_twisted.ensureDeferred
async def test_a_lease_goes_back_with_the_last_answer_that_gave_it(bench: Bench, order: Any) -> None:
    first, second = (name.encode() for name in order)
    [task] = await bench.push((b"q", b"1"))
    lease = await pop(bench, b"one")
    assert await pop(bench, b"two") == lease
    assert await lost(bench, lease, first) == 1
    assert bench.known(b"q", task)["s"] == "l"
    assert await lost(bench, lease, first) == 1  # said again, it is not taken for the other
    assert await lost(bench, lease, second) == 0
    assert bench.known(b"q", task)["s"] == "r"
    assert bench.known(b"q", task)["a"] == 0


@pytest_twisted.ensureDeferred
async def test_answers_that_are_repeated_for_ever_are_not_all_remembered(bench: Bench) -> None:
    [task] = await bench.push((b"q", b"1"))
    for n in range(30):
        lease = await pop(bench, b"answer%d" % n)
    assert len(bench.known(b"q", task)["o"]["k"]) == 20
    assert await lost(bench, lease, b"answer0") == 1

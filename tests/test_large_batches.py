"""Batches too large for one call: they block Redis only briefly, and are still stored completely or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, succeed

from registry.errors import RedisUnavailable
from registry.queue.staging import PART, is_large, stage
from tests.bench import INDEX, Bench
from tests.live import Daemon, RedisServer
from tests.talk import (
    Answer,
    ask,
    counts,
    drain,
    keys_of,
    leased,
    leaves_nothing,
    policy,
    poll,
    pop,
    pushed,
    task,
)

pytestmark = pytest.mark.every_redis

# Some of these together are more than a part, and one is less.
SOME = [f"{at}{'x' * 300_000}" for at in range(12)]


def batch(served: Daemon, q: str, tasks: Any, query: str = "", **headers: str) -> Answer:
    return ask(served, "PUT", f"/api/pushTasks/{q}{'?' if query else ''}{query}", tasks, **headers)


def largest_call(redis: RedisServer) -> int:
    """Bytes of the largest argument of the scripts that Redis was called with lately."""
    found = [b" ".join(words) for _, _, _, words, *_ in redis.command("SLOWLOG", "GET", 1000)]
    return max(int(size) for call in found for size in re.findall(rb"\((\d+) more bytes\)", call))


def test_no_call_carries_more_than_a_part(served: Daemon, module_redis_process: RedisServer, q: str) -> None:
    redis = module_redis_process
    redis.command("CONFIG", "SET", "slowlog-max-len", "1000")
    redis.command("CONFIG", "SET", "slowlog-log-slower-than", "0")
    redis.command("SLOWLOG", "RESET")
    batch(served, q, SOME).ok()
    redis.command("CONFIG", "SET", "slowlog-log-slower-than", "10000")
    assert 300_000 < largest_call(redis) < PART + 10_000
    assert [pop(served, q, "wait=0").json["task"] for _ in SOME] == SOME
    leaves_nothing(redis, q)


def test_its_tasks_are_reported_in_order_and_keep_their_options(served: Daemon, q: str) -> None:
    before = pushed(served, q, "before")
    ids = batch(served, q, SOME, "priority=3&attempts=7").ok()["ids"]
    low = batch(served, q, SOME).ok()["ids"]
    assert len({before, *ids, *low}) == 25
    given = [leased(served, q) for _ in range(25)]
    assert [one["id"] for one in given] == [*ids, before, *low]
    assert [one["task"] for one in given] == [*SOME, "before", *SOME]
    assert task(served, q, ids[5])["priority"] == 3
    assert batch(served, q, SOME, "delay=60").ok()
    assert counts(served, q) == {"leased": 25, "delayed": 12}


def test_pollers_that_wait_get_its_tasks(served: Daemon, q: str) -> None:
    waiting = [poll(served, q) for _ in range(3)]
    batch(served, q, SOME).ok()
    assert {asked.answer().json["task"] for asked in waiting} == set(SOME[:3])
    assert counts(served, q) == {"ready": 9, "leased": 3}


@pytest.mark.parametrize("kind", ["full queue", "wrong type", "expires first"])
def test_one_that_is_refused_leaves_nothing(
    served: Daemon, module_redis_process: RedisServer, q: str, kind: str
) -> None:
    redis, query = module_redis_process, ""
    if kind == "full queue":
        policy(served, q, max_length=11)
    elif kind == "wrong type":
        redis.command("SET", q, "theirs")
    else:
        policy(served, q, ttl=5)
        query = "delay=10"
    before = keys_of(redis, q)
    answer = batch(served, q, SOME, query)
    assert answer.status == {"full queue": 429, "wrong type": 409, "expires first": 400}[kind]
    assert keys_of(redis, q) == before


def test_a_redis_that_is_full_before_the_last_part_keeps_none(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    redis = module_redis_process
    used = int(re.search(rb"used_memory:(\d+)", redis.command("INFO", "memory"))[1])  # type: ignore[index]
    redis.command("CONFIG", "SET", "maxmemory", used + 3_500_000)
    try:
        answer = batch(served, q, SOME)
        assert answer.status == 503
        assert (answer.json["code"], answer.json["outcome"]) == ("redis_full", "not_applied")
        leaves_nothing(redis, q)
    finally:
        redis.command("CONFIG", "SET", "maxmemory", "0")


def test_a_repeat_with_its_key_is_the_same_batch(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    first = batch(served, q, SOME, Idempotency_Key="one")
    again = batch(served, q, SOME, Idempotency_Key="one")
    assert again.ok() == first.ok()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert batch(served, q, SOME[::-1], Idempotency_Key="one").status == 422
    assert module_redis_process.command("HLEN", f"{{{q}}}t") == 12
    assert drain(served, q) == SOME


# Without its daemon


@pytest_twisted.ensureDeferred
async def test_what_a_killed_daemon_left_is_forgotten_and_cannot_be_pushed(bench: Bench) -> None:
    tails = [bench.ids.tail() for _ in range(3)]
    [reply] = await bench.call("stage", [bench.store.stage(b"q", b"", tails, [b"1", b"2", b"3"])])
    head = reply[1]
    assert await bench.pop(b"q") == [[1]]
    assert await bench.store.counts([b"q"]) == [(0, 0, 0, 0, 0, None, None)]
    await bench.sweep()
    assert bench.redis("HLEN", "{q}t") == 3
    bench.redis("ZADD", "{q}b", 1, head + tails[0], 1, head + tails[1])
    bench.redis("ZADD", INDEX, 1, "q")
    await bench.sweep()
    assert bench.redis("HKEYS", "{q}t") == [head + tails[2]]
    assert await bench.call("pushmany", [bench.store.push_staged(b"q", head, tails, b"")]) == [[13]]
    assert keys_of(bench.server, "q") == set()


class Carrier:
    """Answers what it is asked with the next of these, a reply or a failure."""

    def __init__(self, bench: Bench, *answers: Any) -> None:
        self.store = bench.store
        self.answers = list(answers)
        self.asked: list[str] = []

    def ask(self, verb: str, entry: Any) -> Deferred[Any]:
        self.asked.append(verb)
        answer = self.answers.pop(0)
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)


@pytest_twisted.ensureDeferred
async def test_a_part_without_an_answer_is_a_batch_that_was_not_applied(bench: Bench) -> None:
    lost = RedisUnavailable("gone", outcome="unknown")
    carrier = Carrier(bench, [0, b"head"], lost, [0])
    payloads: Sequence[bytes] = [b"1" * PART] * 3
    with pytest.raises(RedisUnavailable) as caught:
        await stage(carrier, b"q", [b"a", b"b", b"c"], payloads)
    assert caught.value.outcome == "not_applied"
    assert lost.outcome == "unknown"
    assert carrier.asked == ["stage", "stage", "unstage"]


def test_what_fits_in_a_part_is_not_large() -> None:
    assert not is_large([b"1" * (PART // 2)] * 2)
    assert is_large([b"1" * (PART // 2), b"1", b"1" * (PART // 2)])


# Large entries of other requests


def test_acks_with_large_results_keep_the_order_of_their_request(served: Daemon, q: str) -> None:
    pushed(served, q, "task", "result=60")
    one = leased(served, q)
    large = json.dumps("r" * 200_000)
    body = '{"acks":[{"lease":"%s","result":%s},{"lease":"%s","result":"second"}],"fails":[{"lease":"%s"}]}'
    answer = ask(
        served,
        "POST",
        f"/api/ackTasks/{q}",
        (body % (one["lease"], large, one["lease"], one["lease"])).encode(),
    )
    assert [entry["status"] for entry in answer.ok()["results"]] == ["done", "done", "lease_lost"]
    assert task(served, q, one["id"])["result"] == "r" * 200_000

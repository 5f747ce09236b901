"""The store on real redis-servers: a full one, a flushed script cache, a wrong clock, a newer schema."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from registry.errors import RedisFull, RedisUnavailable
from registry.redis.store import NewerSchema
from tests.bench import SCHEMA, Bench
from tests.live import RedisServer

pytestmark = pytest.mark.every_redis


@pytest_twisted.ensureDeferred
async def test_a_full_redis_refuses_pushes_and_can_be_drained(bench: Bench) -> None:
    await bench.push(*[(b"q", b"%d" % i) for i in range(20)])
    bench.redis("LPUSH", "raw", "7")
    bench.redis("CONFIG", "SET", "maxmemory", "1")
    try:
        keys = bench.keys()
        refused = await bench.push((b"q", b"no"), (b"new", b"no"))
        assert [reply[0] for reply in refused] == [7, 7]
        [refused_one] = await bench.push((b"new", b"no"), options={"k": "key", "x": 1000})
        assert refused_one[0] == 7
        assert bench.keys() == keys
        assert bench.redis("LLEN", "q") == 20
        taken = await bench.pop(*[b"q"] * 20, b"raw")
        assert [t[1] for t in taken] == [b"%d" % i for i in range(20)] + [b"7"]
        assert await bench.put_back((b"q", taken[0][0])) == [[0]]
        assert bench.payloads(b"q") == [b"0"]
        [again] = await bench.pop(b"q")
        held = [again[0], *[t[0] for t in taken[1:20]]]
        assert await bench.confirm(*[(b"q", lease) for lease in held], (b"raw", taken[20][0])) == [[0]] * 21
        assert bench.keys() == set()
    finally:
        bench.redis("CONFIG", "SET", "maxmemory", "0")
    assert isinstance((await bench.push((b"q", b"yes")))[0], bytes)


@pytest_twisted.ensureDeferred
async def test_a_whole_call_that_redis_refuses_is_worded_by_what_it_means() -> None:
    from registry.redis.faults import error_from_redis

    assert isinstance(error_from_redis("OOM command not allowed when used memory > 'maxmemory'."), RedisFull)
    other = error_from_redis("MISCONF Redis is configured to save RDB snapshots")
    assert isinstance(other, RedisUnavailable)
    assert other.outcome == "not_applied"
    assert "MISCONF" in str(other)


@pytest_twisted.ensureDeferred
async def test_pops_stop_at_a_byte_budget_and_ask_to_come_again(bench: Bench) -> None:
    payload = b'"' + b"x" * 600_000 + b'"'
    for _ in range(3):
        await bench.push((b"q", payload))
    taken = await bench.pop(b"q", b"q", b"q")
    assert [t[1] for t in taken[:2]] == [payload] * 2
    assert taken[2] == [2]
    assert bench.redis("LLEN", "q") == 1


@pytest_twisted.ensureDeferred
async def test_a_flushed_script_cache_is_filled_again_and_the_order_kept(bench: Bench) -> None:
    bench.redis("SCRIPT", "FLUSH")
    tails = [bench.ids.tail() for _ in range(2)]
    calls = [
        bench.store.call("push", [bench.store.push(b"q", i, p, b"")], bounded=True)
        for i, p in zip(tails, (b"1", b"2"), strict=True)
    ]
    assert [[code for code, _ in replies] for replies in await gatherResults(calls)] == [[0], [0]]
    assert bench.payloads(b"q") == [b"1", b"2"]
    bench.redis("SCRIPT", "FLUSH")
    [(lease, *_)] = await bench.pop(b"q")
    bench.redis("SCRIPT", "FLUSH")
    assert await bench.put_back((b"q", lease)) == [[0]]
    bench.redis("SCRIPT", "FLUSH")
    assert await bench.sweep() == [0, 0]
    await bench.pop(b"q")
    stats = bench.redis("INFO", "commandstats")
    evals = int(stats.split(b"cmdstat_eval:calls=")[1].split(b",")[0])
    await bench.pop(b"q")
    assert b"cmdstat_eval:calls=%d," % evals in bench.redis("INFO", "commandstats")


@pytest_twisted.ensureDeferred
async def test_a_call_whose_clock_was_wrong_takes_the_right_time_and_is_sent_once_more(bench: Bench) -> None:
    bench.store.set_clock(bench.now() - 60_000)
    [task] = await bench.push((b"q", b"1"))
    assert bench.ready(b"q") == [b"\x01" + task]
    assert abs(bench.store.now_ms() - bench.now()) < 1_000


@pytest_twisted.ensureDeferred
async def test_what_reaches_redis_after_its_deadline_is_not_carried_out(module_redis: RedisServer) -> None:
    times = iter([0.0])
    bench = await Bench(module_redis, monotonic=lambda: next(times, 10.0)).start()
    try:
        for verb in ("push", "pop"):
            bench.store.set_clock(bench.now() - 60_000)
            # A push's id and the deadline are made at 0 s, and everything after that happens at 10 s.
            times = iter([0.0, 0.0] if verb == "push" else [0.0])
            with pytest.raises(RedisUnavailable) as refused:
                await (bench.push((b"q", b"1")) if verb == "push" else bench.pop(b"q"))
            assert refused.value.outcome == "not_applied"
            assert bench.keys() == set()
    finally:
        await bench.stop()


@pytest_twisted.ensureDeferred
async def test_confirms_and_put_backs_carry_no_deadline(bench: Bench) -> None:
    await bench.push((b"q", b"1"), (b"q", b"2"))
    one, two = await bench.pop(b"q", b"q")
    bench.store.set_clock(bench.now() - 60_000)
    assert await bench.put_back((b"q", one[0])) == [[0]]
    assert await bench.confirm((b"q", two[0])) == [[0]]
    assert bench.payloads(b"q") == [b"1"]


@pytest_twisted.ensureDeferred
async def test_a_prefix_keeps_two_registries_apart(bench: Bench, module_redis: RedisServer) -> None:
    other = await Bench(module_redis, "left:").start()
    try:
        await bench.push((b"q", b"1"))
        [task] = await other.push((b"q", b"2"))
        assert bench.redis("LRANGE", "left:q", 0, -1) == [b"\x01" + task]
        assert (await other.pop(b"q"))[0][1] == b"2"
        assert await other.pop(b"q") == [[1]]
        assert bench.payloads(b"q") == [b"1"]
        assert other.store.name_of(b"left:q") == b"q"
        assert {b"{left:q}t", b"{left:registry}index"} < bench.keys()
    finally:
        await other.stop()


@pytest_twisted.ensureDeferred
async def test_one_command_tells_whether_anything_waits_in_the_first_list_or_that_of_a_priority(
    bench: Bench,
) -> None:
    waiting = bench.store.any_waiting
    assert await waiting([b"a", b"b"], 9) == 0
    await bench.push((b"a", b"1"))
    await bench.push((b"b", b"1"), options={"p": 9})
    assert await waiting([b"a"], 9) == await waiting([b"a"], 1) == await waiting([b"b"], 9) == 1
    assert await waiting([b"b"], 1) == 0
    assert await waiting([b"a", b"b", b"c"], 9) == 2


@pytest_twisted.ensureDeferred
async def test_keys_of_a_newer_registry_are_left_alone(bench: Bench) -> None:
    await bench.store.on_connect()
    assert bench.redis("GET", SCHEMA) == b"1"
    bench.redis("SET", SCHEMA, "2")
    with pytest.raises(NewerSchema, match="upgrade this daemon"):
        await bench.store.on_connect()


@pytest_twisted.ensureDeferred
async def test_few_reads_of_payloads_are_under_way_at_a_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push would wait in Redis behind all of them."""
    pool = bench.store._pool
    under_way: list[int] = []
    waiting: list[Deferred[Any]] = []

    def call(encoded: bytes) -> Deferred[Any]:
        waiting.append(Deferred())
        under_way.append(sum(not d.called for d in waiting))
        return waiting[-1]

    monkeypatch.setattr(pool, "call", call)
    reads = [bench.store.tasks(b"q", [b"0" * 24], 100, b"") for _ in range(20)]
    while any(not d.called for d in waiting):
        next(d for d in waiting if not d.called).callback([0, 1, 0])
    assert [await read for read in reads] == [(1, 0, [])] * 20
    assert max(under_way) == 2

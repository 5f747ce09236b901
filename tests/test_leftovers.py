"""Keys that a script must not leave behind, and calls that must not be refused or slow, on every Redis version."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from msgspec import msgpack

from registry.model import PopOptions
from registry.redis.store import encode_options
from tests.bench import DEATHS, Bench, wait

pytestmark = pytest.mark.every_redis


async def cancel(bench: Bench, name: bytes, task: bytes) -> Any:
    return (await bench.call("cancel", [bench.store.of_lease(name, task)]))[0]


async def rules(bench: Bench, name: bytes, **values: Any) -> None:
    packed = msgpack.encode({"set": values, "reset": []})
    assert (await bench.call("policy", [bench.store.of_lease(name, packed)]))[0][0] == 0


async def gone_on_its_way(bench: Bench) -> bytes:
    """A plain task is handed out, and cancelled and forgotten meanwhile; its lease, of 60 ms."""
    [task] = await bench.push((b"q", b"1"))
    [(lease, *_)] = await bench.pop(b"q", lease_ms=60)
    assert [(await cancel(bench, b"q", task))[1] for _ in range(2)] == [b"cancelled", b"removed"]
    return bytes(lease)


# What was cancelled and forgotten while it was on its way to a client


@pytest_twisted.ensureDeferred
async def test_a_confirm_leaves_nothing_of_it(bench: Bench) -> None:
    await bench.confirm((b"q", await gone_on_its_way(bench)))
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_a_put_back_leaves_nothing_of_it(bench: Bench) -> None:
    await bench.put_back((b"q", await gone_on_its_way(bench)))
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_its_hand_over_that_expires_leaves_nothing_of_it(bench: Bench) -> None:
    await gone_on_its_way(bench)
    await wait(0.07)
    await bench.sweep()
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_nor_where_the_dead_are_not_kept(bench: Bench) -> None:
    await rules(bench, b"q", retention={"dead": 0})
    [task] = await bench.push((b"q", b"1"))
    await bench.pop(b"q", lease_ms=60)
    await cancel(bench, b"q", task)
    await bench.sweep()
    await wait(0.07)
    await bench.sweep()
    assert bench.keys() == {b"{q}c", b"{registry}index"}


# Numbers


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("seconds", [0.3333, 1.001, 4.35])
async def test_a_lease_of_a_policy_need_be_no_whole_number_of_ms(bench: Bench, seconds: float) -> None:
    await rules(bench, b"q", lease=seconds)
    await bench.push((b"q", b"1"))
    nonce = bench.ids.nonce()
    options = encode_options({"l": True, "ik": "K", "ih": "h", "k": nonce.decode()})
    [reply] = await bench.call("pop", [bench.store.pop(b"q", nonce, 0, options)])
    assert reply[0] == 0 and reply[5] == round(seconds * 1000)
    lease = reply[1] + b"-" + nonce
    extended = await bench.call("extend", [bench.store.of_lease(b"q", lease, b"0", b"")])
    assert extended == [[0, round(seconds * 1000), 0]]


@pytest_twisted.ensureDeferred
async def test_raw_elements_get_ids_of_one_length_however_many_a_call_takes(bench: Bench) -> None:
    for _ in range(5):
        bench.redis("LPUSH", "q", *[b'"raw"'] * 1000)
    entries = [
        bench.store.pop_many([b"q"], bench.ids.nonce(), 30_000, PopOptions(count=100)) for _ in range(50)
    ]
    given = [task for reply in await bench.call("popmany", entries) for task in reply[1:]]
    ids = {task[1] for task in given}
    assert len(given) == len(ids) == 5000
    assert {len(task_id) for task_id in ids} == {24}


@pytest_twisted.ensureDeferred
async def test_an_ack_of_the_same_lease_at_another_queue_is_none(bench: Bench) -> None:
    await bench.push((b"q", b"1"))
    nonce = bench.ids.nonce()
    [reply] = await bench.call("pop", [bench.store.pop(b"q", nonce, 5000, encode_options({"l": True}))])
    lease = reply[1] + b"-" + nonce
    acks = [bench.store.of_lease(name, lease, b"") for name in (b"q", b"other", b"q")]
    [[*done, run], *others] = await bench.call("ack", acks)
    assert [done, *others] == [[0, b"done"], [1], [0, b"done"]] and run >= 0


# How much at once


@pytest_twisted.ensureDeferred
async def test_a_sweep_stops_after_so_many_moves_and_goes_on_with_the_rest(bench: Bench) -> None:
    names = [b"q%d" % at for at in range(10)]
    for name in names:
        await bench.push(*[(name, b"1")] * 20, options={"x": 1})
    await wait(0.01)
    queues, moves, *_ = await bench.store.sweep(100, 30)
    assert queues < 10 and 30 <= moves <= 60
    while (await bench.store.sweep(100, 30))[1]:
        pass
    assert [bench.redis("ZCARD", b"{%b}x" % name) for name in names] == [20] * 10


@pytest_twisted.ensureDeferred
async def test_a_backlog_of_one_queue_does_not_keep_the_sweeper_from_the_others(bench: Bench) -> None:
    await bench.push(*[(b"big", b"1")] * 500, options={"d": 1})
    await wait(0.01)
    await bench.push((b"small", b"1"), options={"d": 1})
    await wait(0.01)
    for _ in range(2):
        await bench.store.sweep(100, 30)
    assert len(bench.ready(b"small")) == 1
    assert bench.redis("ZCARD", "{big}d") > 400


@pytest_twisted.ensureDeferred
async def test_put_backs_of_very_many_queues_in_one_call(bench: Bench) -> None:
    names = [b"q%d" % at for at in range(1400)]
    held = []
    for at in range(0, len(names), 100):
        some = names[at : at + 100]
        ids = await bench.push(*[(name, b"1") for name in some])
        held += [(name, lease) for name, (lease, *_) in zip(some, await bench.pop(*some), strict=True)]
        for _ in range(2):
            await bench.call("cancel", [bench.store.of_lease(*one) for one in zip(some, ids, strict=True)])
    assert await bench.put_back(*held) == [[0]] * len(names)
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_traces_of_acks_go_some_at_a_time(bench: Bench) -> None:
    await bench.push((b"q", b"1"))
    bench.redis("ZADD", "{q}a", *[part for at in range(900) for part in (1, b"l%d" % at)])
    bench.redis("ZADD", "{registry}index", 1, "q")
    await bench.store.sweep(100, 30)
    assert bench.redis("ZCARD", "{q}a") == 600
    while (await bench.store.sweep(100, 30))[1]:
        pass
    assert bench.redis("ZCARD", "{q}a") == 0


@pytest_twisted.ensureDeferred
async def test_pops_of_a_long_queue_keep_its_order_and_do_not_walk_over_it(bench: Bench) -> None:
    """Before Redis 7, LRANGE walks to the oldest elements from the newest one on."""
    ids: list[bytes] = []
    for _ in range(35):
        tails = [bench.ids.tail() for _ in range(1000)]
        [reply] = await bench.call("pushmany", [bench.store.push_many(b"q", tails, [b"1"] * 1000, b"")])
        ids += [reply[1] + tail for tail in tails]
    bench.redis("CONFIG", "RESETSTAT")
    given = [*await bench.pop(*[b"q"] * 16), *await bench.pop(*[b"q"] * 16)]
    assert [lease.split(b"-")[0] for lease, *_ in given] == ids[:32]
    if int(bench.server.version.split(".")[0]) < 7:
        assert b"cmdstat_lrange" not in bench.redis("INFO", "commandstats")


# A full Redis


@pytest_twisted.ensureDeferred
async def test_a_full_redis_refuses_nothing_that_leads_to_less(bench: Bench) -> None:
    await rules(bench, b"limited", rate=0.01)
    await bench.push((b"limited", b"1"), (b"limited", b"2"), (b"q", b"1"))
    await bench.pop(b"limited")
    [task] = await bench.push((b"q", b"2"), options={"p": 1})
    asked = bench.ids.nonce(), bench.ids.nonce()
    options = [encode_options({"l": True, "ik": "K", "ih": "h", "k": nonce.decode()}) for nonce in asked]
    pops = [bench.store.pop(b"q", nonce, 30_000, o) for nonce, o in zip(asked, options, strict=True)]
    [first] = await bench.call("pop", pops[:1])
    lease = first[1] + b"-" + asked[0]
    [task] = await bench.push((b"other", b"1"))
    bench.redis("CONFIG", "SET", "maxmemory", "1")
    try:
        assert (await bench.pop(b"limited"))[0][:2] == [3, b"rate_limited"]
        assert (await bench.call("pop", pops[1:]))[0][1] == first[1]
        for answer in asked:
            await bench.call("putback", [bench.store.of_lease(b"q", lease, answer)])
        assert bench.redis("ZCARD", "{q}l") == 0
        assert (await bench.call("watch", [bench.store.of_lease(b"other", task)]))[0][0] == 0
        await rules(bench, b"other", paused=True)
        assert await cancel(bench, b"other", task) == [0, b"cancelled"]
    finally:
        bench.redis("CONFIG", "SET", "maxmemory", "0")


@pytest_twisted.ensureDeferred
async def test_a_sweep_collects_the_numbers_of_deaths_and_leaves_none(bench: Bench) -> None:
    died: list[tuple[bytes, int]] = []

    def collect(name: bytes, count: int, poisoned: int) -> None:
        died.append((name, count))

    # One on its own, two that a sweep finds, and one that a worker gave up.
    await cancel(bench, b"a", (await bench.push((b"a", b"1")))[0])
    await bench.push((b"a", b"2"), (b"b", b"3"), options={"x": 1})
    await wait(0.01)
    await bench.push((b"c", b"4"))
    [(lease, *_)] = await bench.pop(b"c")
    await bench.call("fail", [bench.store.of_lease(b"c", lease, msgpack.encode({"n": True}))])
    await bench.store.sweep(100, 200, collect)
    assert bench.redis("EXISTS", DEATHS) == 0
    total = {name: sum(count for one, count in died if one == name) for name, _ in died}
    assert total == {b"a": 2, b"b": 1, b"c": 1}
    died.clear()
    await bench.store.sweep(100, 200, collect)
    assert died == []

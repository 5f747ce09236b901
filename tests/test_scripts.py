"""Each script on every Redis version: its reply, and what it stores."""

from __future__ import annotations

import pytest
import pytest_twisted

from tests.bench import FAR, HANDOVER, INDEX, Bench, wait

pytestmark = pytest.mark.every_redis


@pytest_twisted.ensureDeferred
async def test_a_push_is_an_element_a_payload_and_a_line_in_the_index(bench: Bench) -> None:
    [task] = await bench.push((b"q", b'{"a": 1}'))
    assert bench.keys() == {b"q", b"{q}t", INDEX}
    assert bench.ready(b"q") == [b"\x01" + task]
    assert bench.redis("HGETALL", "{q}t") == [task, b'{"a": 1}']
    assert float(bench.redis("ZSCORE", INDEX, "q")) == FAR


@pytest_twisted.ensureDeferred
async def test_a_pop_holds_the_task_until_it_is_confirmed_and_a_confirm_leaves_nothing(bench: Bench) -> None:
    [task] = await bench.push((b"q", b"1"))
    before = bench.now()
    [(lease, payload, attempt, raw)] = await bench.pop(b"q")
    assert (payload, attempt, raw) == (b"1", 1, 0)
    assert lease.startswith(task + b"-")
    assert bench.keys() == {b"{q}t", b"{q}l", INDEX}
    [held, until] = bench.redis("ZRANGE", "{q}l", 0, -1, "WITHSCORES")
    assert held == lease
    assert before + HANDOVER <= int(until) <= bench.now() + HANDOVER
    assert bench.redis("HGET", "{q}t", task) == b"1"
    assert int(float(bench.redis("ZSCORE", INDEX, "q"))) == int(until)
    assert await bench.confirm((b"q", lease)) == [[0]]
    assert bench.keys() == set()
    assert await bench.confirm((b"q", lease)) == [[1]]
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_an_empty_queue_answers_nothing_and_leaves_nothing(bench: Bench) -> None:
    assert await bench.pop(b"q", b"other") == [[1], [1]]
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_short_lived_queues_leave_nothing_behind(bench: Bench) -> None:
    names = [b"queue_results:%d" % i for i in range(50)]
    for _ in range(3):
        await bench.push(*[(name, b"[]") for name in names])
        taken = await bench.pop(*names)
        held = [(name, t[0]) for name, t in zip(names, taken, strict=True)]
        assert await bench.confirm(*held) == [[0]] * 50
        assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_first_in_first_out_within_a_call_and_across_calls(bench: Bench) -> None:
    await bench.push((b"q", b"1"), (b"q", b"2"), (b"other", b"0"))
    await bench.push((b"q", b"3"))
    assert bench.payloads(b"q") == [b"1", b"2", b"3"]
    assert [t[1] for t in await bench.pop(b"q", b"q")] == [b"1", b"2"]
    assert [t[1] for t in await bench.pop(b"q")] == [b"3"]


@pytest_twisted.ensureDeferred
async def test_a_payload_is_opaque_bytes(bench: Bench) -> None:
    payloads = [bytes(range(256)), b"\x01like an element", b' { "a" :1e999 }\r\n', b'"\\ud800"', b"007", b""]
    await bench.push(*[(b"q", p) for p in payloads])
    taken = await bench.pop(*[b"q"] * len(payloads))
    assert [t[1] for t in taken] == payloads
    await bench.put_back(*[(b"q", t[0]) for t in taken])
    assert bench.payloads(b"q") == payloads


@pytest_twisted.ensureDeferred
async def test_128_entries_of_128_queues_travel_in_one_call_each_with_its_own_reply(bench: Bench) -> None:
    names = [b"q%d" % i for i in range(128)]
    bench.redis("CONFIG", "RESETSTAT")
    pushed = await bench.push(*[(n, b'"%b"' % n) for n in names])
    assert all(isinstance(reply, bytes) for reply in pushed)
    taken = await bench.pop(*names)
    assert [t[1] for t in taken] == [b'"%b"' % n for n in names]
    assert await bench.confirm(*[(n, t[0]) for n, t in zip(names, taken, strict=True)]) == [[0]] * 128
    assert b"cmdstat_evalsha:calls=3," in bench.redis("INFO", "commandstats")
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_type_concerns_its_own_entry_only(bench: Bench) -> None:
    bench.redis("SET", "b", "not ours")
    first, refused, last = await bench.push((b"a", b"1"), (b"b", b"2"), (b"c", b"3"))
    assert isinstance(first, bytes)
    assert isinstance(last, bytes)
    assert refused[0] == 6
    assert bench.keys() == {b"a", b"{a}t", b"b", b"c", b"{c}t", INDEX}
    assert sorted(bench.redis("ZRANGE", INDEX, 0, -1)) == [b"a", b"c"]
    taken = await bench.pop(b"a", b"b", b"c")
    assert [t[0] if t[0] == 6 else t[1] for t in taken] == [b"1", 6, b"3"]
    await bench.confirm((b"a", taken[0][0]), (b"c", taken[2][0]))
    assert bench.keys() == {b"b"}
    assert bench.redis("GET", "b") == b"not ours"
    [refused] = await bench.push((b"b", b"2"), options={"x": 1000})
    assert refused[0] == 6
    assert bench.keys() == {b"b"}


@pytest_twisted.ensureDeferred
async def test_an_expired_hand_over_lapses_in_a_full_redis_too(bench: Bench) -> None:
    await bench.push((b"q", b"1"))
    await bench.pop(b"q", lease_ms=1)
    await wait(0.01)
    bench.redis("CONFIG", "SET", "maxmemory", "1")
    try:
        assert await bench.sweep() == [1, 1]
        assert bench.payloads(b"q") == [b"1"]
    finally:
        bench.redis("CONFIG", "SET", "maxmemory", "0")


@pytest_twisted.ensureDeferred
async def test_put_backs_of_one_moment_keep_their_order_and_a_later_one_goes_in_front(bench: Bench) -> None:
    await bench.push(*[(b"q", b"%d" % i) for i in range(1, 6)])
    one, two, three, four = await bench.pop(*[b"q"] * 4)
    assert await bench.put_back((b"q", two[0]), (b"q", three[0]), (b"q", four[0])) == [[0]] * 3
    assert bench.payloads(b"q") == [b"2", b"3", b"4", b"5"]
    await bench.put_back((b"q", one[0]))
    assert bench.payloads(b"q") == [b"1", b"2", b"3", b"4", b"5"]
    again = await bench.pop(*[b"q"] * 5)
    assert [(t[1], t[2]) for t in again] == [(b"%d" % i, 1) for i in range(1, 6)]  # no attempt was counted
    await bench.confirm(*[(b"q", t[0]) for t in again])
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_a_put_back_or_confirm_of_what_is_gone_changes_nothing(bench: Bench) -> None:
    await bench.push((b"q", b"1"))
    [(lease, *_)] = await bench.pop(b"q")
    assert await bench.put_back((b"q", lease)) == [[0]]
    stored = bench.redis("HGETALL", "{q}t")
    assert await bench.put_back((b"q", lease)) == [[1]]
    assert await bench.confirm((b"q", lease)) == [[1]]
    assert await bench.bury(b"q", lease, b"why") == [1]
    assert bench.payloads(b"q") == [b"1"]
    assert bench.redis("HGETALL", "{q}t") == stored


@pytest_twisted.ensureDeferred
async def test_the_first_expired_hand_over_goes_to_the_head_and_counts(bench: Bench) -> None:
    [first, *_] = await bench.push((b"q", b"1"), (b"q", b"2"), (b"q", b"3"))
    leases = [t[0] for t in await bench.pop(b"q", b"q", lease_ms=20)]
    assert await bench.sweep() == [0, 0]
    await wait(0.03)
    assert await bench.sweep() == [1, 2]
    assert bench.payloads(b"q") == [b"1", b"2", b"3"]
    assert bench.redis("EXISTS", "{q}l") == 0
    assert bench.known(b"q", first)["h"][0]["r"] == "handover_expired"
    assert await bench.confirm((b"q", leases[0])) == [[1]]
    again = await bench.pop(b"q", b"q", b"q")
    assert [(t[1], t[2]) for t in again] == [(b"1", 2), (b"2", 2), (b"3", 1)]
    await bench.confirm(*[(b"q", t[0]) for t in again])
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_the_second_expired_hand_over_waits_for_its_backoff(bench: Bench) -> None:
    [task, _] = await bench.push((b"q", b"1"), (b"q", b"2"))
    for _ in range(2):
        await bench.pop(b"q", lease_ms=1)
        await wait(0.01)
        await bench.sweep()
    assert bench.payloads(b"q") == [b"2"]
    due = int(bench.redis("ZSCORE", "{q}d", task))
    assert bench.now() + 5_000 < due < bench.now() + 30_000
    bench.redis("ZADD", "{q}d", bench.now(), task)
    bench.redis("ZADD", INDEX, bench.now(), "q")
    await bench.sweep()
    assert bench.payloads(b"q") == [b"2", b"1"]  # a delay that is due goes to the tail


@pytest_twisted.ensureDeferred
async def test_a_sweep_of_many_lapsed_hand_overs_keeps_their_order(bench: Bench) -> None:
    await bench.push(*[(b"q", b"%d" % i) for i in range(100)])
    for _ in range(10):
        await bench.pop(*[b"q"] * 10, lease_ms=1)
    await wait(0.01)
    await bench.sweep()
    assert bench.payloads(b"q") == [b"%d" % i for i in range(100)]


@pytest_twisted.ensureDeferred
async def test_a_raw_element_of_another_program_is_served_and_gets_an_id(bench: Bench) -> None:
    bench.redis("LPUSH", "q", '{"raw": 1}')
    [task] = await bench.push((b"q", b"2"))
    bench.redis("LPUSH", "q", "[3]")
    taken = await bench.pop(b"q", b"q", b"q")
    assert [(t[1], t[2], t[3]) for t in taken] == [(b'{"raw": 1}', 1, -1), (b"2", 1, 0), (b"[3]", 1, -1)]
    raw_ids = [taken[i][0].split(b"-")[0] for i in (0, 2)]
    assert raw_ids[0] != raw_ids[1]
    assert set(bench.redis("HKEYS", "{q}t")) == {task, *raw_ids}
    assert await bench.put_back((b"q", taken[0][0])) == [[0]]
    [again] = await bench.pop(b"q")
    assert (again[0].split(b"-")[0], again[1], again[2]) == (raw_ids[0], b'{"raw": 1}', 1)
    assert again[3] > 0  # ready since it was put back
    await bench.confirm((b"q", again[0]), *[(b"q", t[0]) for t in taken[1:]])
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_a_queue_that_holds_raw_elements_and_ours_is_in_the_index(bench: Bench) -> None:
    bench.redis("LPUSH", "q", "1")
    await bench.push((b"q", b"2"))
    assert bench.redis("ZRANGE", INDEX, 0, -1) == [b"q"]


@pytest_twisted.ensureDeferred
async def test_the_buried_are_dead_with_their_reason_until_they_are_forgotten(bench: Bench) -> None:
    bench.redis("LPUSH", "q", "not json")
    [(lease, payload, _, since)] = await bench.pop(b"q")
    assert (payload, since) == (b"not json", -1)
    task = lease.split(b"-")[0]
    assert await bench.bury(b"q", lease, b"not_json") == [0]
    assert bench.keys() == {b"{q}t", b"{q}m", b"{q}x", INDEX}
    assert bench.redis("HGET", "{q}t", task) == b"not json"
    told = bench.known(b"q", task)
    assert (told["s"], told["y"]) == ("x", "not_json")
    forgotten = int(bench.redis("ZSCORE", "{q}x", task))
    assert abs(forgotten - bench.now() - 30 * 86_400_000) < 5_000
    bench.redis("ZADD", "{q}x", bench.now(), task)
    bench.redis("ZADD", INDEX, bench.now(), "q")
    await bench.sweep()
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_an_element_whose_task_is_gone_is_skipped(bench: Bench) -> None:
    bench.redis("LPUSH", "q", b"\x01" + b"e" * 24, b"\x01" + b"f" * 24 + b":1")
    await bench.push((b"q", b"1"))
    [(lease, payload, *_)] = await bench.pop(b"q")
    assert payload == b"1"
    await bench.confirm((b"q", lease))
    assert bench.keys() == set()


@pytest_twisted.ensureDeferred
async def test_a_queue_in_an_unexpected_state_does_not_keep_the_others_from_being_swept(bench: Bench) -> None:
    await bench.push((b"a", b"1"), (b"b", b"2"))
    await bench.pop(b"a", b"b", lease_ms=1)
    bench.redis("DEL", "{a}l")
    bench.redis("SET", "{a}l", "nonsense")
    await wait(0.01)
    await bench.sweep()
    assert bench.payloads(b"b") == [b"2"]
    assert int(bench.redis("ZSCORE", INDEX, "a")) > bench.now()


@pytest_twisted.ensureDeferred
async def test_one_entry_confirms_many_leases(bench: Bench) -> None:
    await bench.push(*[(b"q", b"%d" % i) for i in range(1200)])
    leases = []
    for _ in range(10):
        leases += [lease for lease, *_ in await bench.pop(*[b"q"] * 120)]
    assert await bench.confirm((b"q", leases[0])) == [[0]]
    assert await bench.confirm((b"q", b" ".join(leases)), (b"q", b"")) == [[1], [0]]
    assert await bench.confirm((b"q", b" ".join(leases[:3]))) == [[3]]
    assert bench.keys() == set()

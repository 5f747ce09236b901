"""Each verb on real redis-servers, of every version there is: what is answered, and what is then stored."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, gatherResults
from twisted.internet.task import deferLater

from registry.errors import RedisFull, RedisUnavailable
from registry.queue.names import Ids
from registry.redis.address import parse_redis_url
from registry.redis.link import Link, Pool
from registry.redis.store import NewerSchema, Store, encode_options
from tests.live import RedisServer

pytestmark = pytest.mark.every_redis

HANDOVER = 30_000
SCHEMA = b"{registry}schema"
INDEX = b"{registry}index"
FAR = 1e14


class Bench:
    """A store on a real server, asked one verb at a time; ``keys`` looks past it at what Redis holds."""

    def __init__(self, server: RedisServer, prefix: str = "", **clocks: Any) -> None:
        self.server = server
        address = parse_redis_url(server.unix_url)
        self.link = Link(reactor, address, name="scripts", on_ready=lambda link: self.store.greet())
        self.pool = Pool(lambda: Link(reactor, address, name="look-ups"), 1)
        self.store = Store(self.link, self.pool, prefix, **clocks)
        self.ids = Ids(self.store.now_ms)

    async def start(self) -> Bench:
        self.link.start()
        self.pool.start()
        end = time.monotonic() + 5
        while not self.link.ready:
            assert time.monotonic() < end, self.link.last_error
            await wait(0.01)
        return self

    async def stop(self) -> None:
        await gatherResults([self.link.stop(), self.pool.stop()])

    async def call(self, verb: str, entries: list[Any]) -> list[Any]:
        """One script call with all of these entries; its replies."""
        replies: list[Any] = await self.store.call(verb, entries, bounded=verb in ("push", "pop"))
        assert len(replies) == len(entries)
        return replies

    async def push(self, *tasks: tuple[bytes, bytes], options: dict[str, Any] | None = None) -> list[Any]:
        """Push (queue, payload) pairs in one call; the ids of those stored, the refusals of the others."""
        ids = [self.ids.task() for _ in tasks]
        packed = encode_options(options) if options else b""
        entries = [self.store.push(name, i, body, packed) for i, (name, body) in zip(ids, tasks, strict=True)]
        replies = await self.call("push", entries)
        return [i if reply == [0] else reply for i, reply in zip(ids, replies, strict=True)]

    async def pop(self, *names: bytes, lease_ms: int = HANDOVER) -> list[Any]:
        """Pop from each queue in one call: (lease, payload, attempt, raw), or the reply's code."""
        nonces = [self.ids.nonce() for _ in names]
        entries = [self.store.pop(name, n, lease_ms, b"") for name, n in zip(names, nonces, strict=True)]
        found = []
        for nonce, reply in zip(nonces, await self.call("pop", entries), strict=True):
            found.append((reply[1] + b"-" + nonce, reply[2], reply[3], reply[4]) if reply[0] == 0 else reply)
        return found

    async def confirm(self, *held: tuple[bytes, bytes]) -> list[Any]:
        """End hand-overs, (queue, lease) each."""
        return await self.call("confirm", [self.store.of_lease(name, lease) for name, lease in held])

    async def put_back(self, *held: tuple[bytes, bytes]) -> list[Any]:
        entries = [self.store.of_lease(name, lease, b"") for name, lease in held]
        return await self.call("putback", entries)

    async def bury(self, name: bytes, lease: bytes, reason: bytes) -> Any:
        return (await self.call("bury", [self.store.of_lease(name, lease, reason)]))[0]

    async def sweep(self) -> list[int]:
        swept: list[int] = await self.store.sweep(100, 200)
        return swept

    # What Redis holds

    def redis(self, *words: str | bytes | int) -> Any:
        return self.server.command(*words)

    def keys(self) -> set[bytes]:
        """Every key but the mark of the schema."""
        return set(self.redis("KEYS", "*")) - {SCHEMA}

    def ready(self, name: bytes) -> list[bytes]:
        """The elements of a ready list, the next one first."""
        return list(reversed(self.redis("LRANGE", name, 0, -1)))

    def payloads(self, name: bytes) -> list[bytes]:
        """The payloads of a ready list, the next one first."""
        return [self.redis("HGET", b"{%b}t" % name, e[1:].split(b":")[0]) for e in self.ready(name)]

    def known(self, name: bytes, task_id: bytes) -> Any:
        packed = self.redis("HGET", b"{%b}m" % name, task_id)
        return packed and msgspec.msgpack.decode(packed)

    def now(self) -> int:
        seconds, micros = self.redis("TIME")
        return int(seconds) * 1000 + int(micros) // 1000


def wait(seconds: float) -> Deferred[None]:
    """Let the reactor run that long."""
    waited: Deferred[None] = deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]
    return waited


@pytest.fixture
def bench(module_redis: RedisServer) -> Iterator[Bench]:
    one = Bench(module_redis)
    pytest_twisted.blockon(ensureDeferred(one.start()))
    try:
        yield one
    finally:
        pytest_twisted.blockon(ensureDeferred(one.stop()))


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
    before = int(bench.redis("INFO", "commandstats").split(b"cmdstat_evalsha:calls=")[1].split(b",")[0])
    pushed = await bench.push(*[(n, b'"%b"' % n) for n in names])
    assert all(isinstance(reply, bytes) for reply in pushed)
    taken = await bench.pop(*names)
    assert [t[1] for t in taken] == [b'"%b"' % n for n in names]
    assert await bench.confirm(*[(n, t[0]) for n, t in zip(names, taken, strict=True)]) == [[0]] * 128
    after = int(bench.redis("INFO", "commandstats").split(b"cmdstat_evalsha:calls=")[1].split(b",")[0])
    assert after - before == 3
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
async def test_a_whole_call_that_redis_refuses_is_worded_by_what_it_means() -> None:
    from registry.redis.store import refusal

    assert isinstance(refusal("OOM command not allowed when used memory > 'maxmemory'."), RedisFull)
    other = refusal("MISCONF Redis is configured to save RDB snapshots")
    assert isinstance(other, RedisUnavailable)
    assert other.outcome == "not_applied"
    assert "MISCONF" in str(other)


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
    assert [(t[1], t[2], t[3]) for t in taken] == [(b'{"raw": 1}', 1, 1), (b"2", 1, 0), (b"[3]", 1, 1)]
    raw_ids = [taken[i][0].split(b"-")[0] for i in (0, 2)]
    assert raw_ids[0] != raw_ids[1]
    assert set(bench.redis("HKEYS", "{q}t")) == {task, *raw_ids}
    assert await bench.put_back((b"q", taken[0][0])) == [[0]]
    [again] = await bench.pop(b"q")
    assert (again[0].split(b"-")[0], again[1], again[2], again[3]) == (raw_ids[0], b'{"raw": 1}', 1, 0)
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
    [(lease, payload, _, raw)] = await bench.pop(b"q")
    assert (payload, raw) == (b"not json", 1)
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
    ids = [bench.ids.task() for _ in range(2)]
    calls = [
        bench.store.call("push", [bench.store.push(b"q", i, p, b"")], bounded=True)
        for i, p in zip(ids, (b"1", b"2"), strict=True)
    ]
    assert await gatherResults(calls) == [[[0]], [[0]]]
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
    times = iter([0.0])  # the deadline is set at 0 s, and everything after that happens at 10 s
    bench = await Bench(module_redis, monotonic=lambda: next(times, 10.0)).start()
    try:
        for verb in ("push", "pop"):
            times = iter([0.0])
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
async def test_one_command_tells_whether_anything_waits_in_any_priority(bench: Bench) -> None:
    waiting = bench.store.any_waiting
    assert await waiting([b"a", b"b"]) == 0
    await bench.push((b"a", b"1"))
    await bench.push((b"b", b"1"), options={"p": 9})
    assert await waiting([b"a"]) == await waiting([b"b"]) == 1
    assert await waiting([b"a", b"b", b"c"]) == 2


@pytest_twisted.ensureDeferred
async def test_keys_of_a_newer_registry_are_left_alone(bench: Bench) -> None:
    await bench.store.greet()
    assert bench.redis("GET", SCHEMA) == b"1"
    bench.redis("SET", SCHEMA, "2")
    with pytest.raises(NewerSchema, match="upgrade this daemon"):
        await bench.store.greet()


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

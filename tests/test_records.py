"""The records of `registry.model`: they match the catalogue of the scripts, and their encoding never changes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from msgspec import Struct, msgpack, structs
from msgspec.structs import replace

from registry import model
from registry.model import (
    Attempt,
    Code,
    Error,
    ExtendOptions,
    FailOptions,
    Lease,
    Policy,
    PolicyChange,
    PopOptions,
    PushOptions,
    Retention,
    Schedule,
    Task,
    decode_policy,
    decode_task,
    text_of,
)
from registry.redis.store import encode_options
from tests.bench import Bench

ROOT = Path(model.__file__).parent.parent
CATALOGUE = files("registry.redis").joinpath("lua", "base.lua").read_text("utf-8").partition("\nredis.")[0]


def test_the_catalogue_of_the_scripts_has_the_same_records_with_the_same_fields_in_the_same_order() -> None:
    received: dict[str, list[tuple[str, str]]] = {}
    for line in CATALOGUE.partition("\n-- Records")[2].partition("\n-- Codes")[0].splitlines():
        if found := re.fullmatch(r"-- ([A-Z]\w+): .*", line):
            received[found[1]] = []
        elif found := re.fullmatch(r"--   (\w+|-) +([a-z_]+)  ?.*", line):
            letter, name = found[1], found[2]
            received[list(received)[-1]].append((name if letter == "-" else letter, name))
    known = {
        kind.__name__: [(field.encode_name, field.name) for field in structs.fields(kind)]
        for kind in _records()
        # The scripts do not look into a schedule.
        if kind is not Schedule
    }
    assert list(received) == list(known)
    assert received == known


def test_the_catalogue_of_the_scripts_has_the_same_codes_and_states() -> None:
    received = re.findall(r"^--   (\d+) +([A-Z_]+)  ", CATALOGUE, re.MULTILINE)
    assert received == [(str(value), name) for name, value in vars(Code).items() if name.isupper()]
    [states] = re.findall(r"^--   s   state +(.*);", CATALOGUE, re.MULTILINE)
    assert states == ", ".join(f"{letter} {name}" for letter, name in model.STATES.items())


@pytest.mark.parametrize(
    ("record", "packed"),
    [
        (PushOptions(), {}),
        (
            PushOptions(1, 2, 3, 4, 5, 6, 0, 8, "k", "t", "s", True, "ik", "ih"),
            {"d": 1, "at": 2, "p": 3, "x": 4, "l": 5, "r": 6, "b": 0, "n": 8, "k": "k", "tp": "t", "ts": "s", "w": True,
             "ik": "ik", "ih": "ih"},
        ),
        (PopOptions(leased=True), {"l": True}),
        (
            PopOptions(True, None, None, "w", "ik", "ih", "answer", "serial"),
            {"l": True, "w": "w", "ik": "ik", "ih": "ih", "k": "answer", "n": "serial"},
        ),
        (PopOptions(count=1, start=0, queues=["a", "b"]), {"c": 1, "s": 0, "q": ["a", "b"]}),
        (FailOptions(), {}),
        (
            FailOptions(Error("type", "message", "trace", True), 0, True),
            {"e": {"type": "type", "message": "message", "trace": "trace", "truncated": True}, "d": 0, "n": True},
        ),
        (
            Schedule(1, 2, "* * * * *", "UTC", "q", b"1", {"delay": 0.5}, PushOptions(delay=500, key="k"), "once", True),
            {
                "missed_count": 1, "last": 2, "cron": "* * * * *", "timezone": "UTC", "queue": "q", "task": b"1",
                "options": {"delay": 0.5}, "packed": {"d": 500, "k": "k"}, "missed": "once", "paused": True,
            },
        ),
        (
            Schedule(cron="* * * * *", queue="q", task=b"1"),
            {
                "missed_count": 0, "last": None, "cron": "* * * * *", "timezone": "UTC", "queue": "q", "task": b"1",
                "options": {}, "packed": {}, "missed": "skip", "paused": False,
            },
        ),
        (ExtendOptions(0.5, "m"), {"p": 0.5, "m": "m"}),
        (PolicyChange({"rate": 1.5}, ["lease"]), {"set": {"rate": 1.5}, "reset": ["lease"]}),
        (PolicyChange(pause=5), {"p": 5}),
        (PolicyChange(trim_only=True, dead_from="0", only_shorter=False), {"t": True, "x": "0"}),
        (PolicyChange(trim_only=True, dead_from="0", only_shorter=True), {"t": True, "x": "0", "y": True}),
    ],
)  # fmt: skip
def test_a_record_is_packed_to_the_bytes_that_a_dict_of_letters_was(
    record: Struct, packed: dict[str, Any]
) -> None:
    assert msgpack.encode(record) == msgpack.encode(packed)


def test_a_record_of_a_task_has_names() -> None:
    task = decode_task(
        msgpack.encode(
            {
                "s": "e", "a": 2, "p": 9, "k": "key", "x": 1.5, "o": {"i": "id-nonce", "w": "worker", "k": ["n"]},
                "h": [{"a": 1, "r": "failed", "e": {"type": "T"}}, {"a": 2, "e": []}], "v": '"é"', "unheard of": 1,
            }
        )
    )  # fmt: skip
    assert (task.state, task.attempt, task.priority, task.key, task.expires_at) == ("e", 2, 9, "key", 1.5)
    assert task.lease is not None
    assert (task.lease.id, task.lease.worker, task.lease.answers) == ("id-nonce", "worker", ["n"])
    assert [attempt.error for attempt in task.history] == [Error("T"), []]
    assert text_of(task.result) == '"é"'.encode()


@pytest.mark.parametrize("packed", [None, b"", b"\x80", b"\x90"])
def test_nothing_and_an_empty_table_of_lua_are_a_plain_task_and_no_rules(packed: bytes | None) -> None:
    assert decode_task(packed) == model.Task()
    assert decode_policy(packed) == Policy()
    assert text_of(decode_task(packed).result) == b""


def test_a_policy_has_names_and_an_empty_table_in_it_is_no_failure() -> None:
    packed = {"paused": True, "rate": 2, "lease": 0.5, "retention": {"done": 1, "dead_max": 0}}
    assert decode_policy(msgpack.encode(packed)) == Policy(
        paused=True, rate=2, lease=0.5, retention=Retention(done=1, dead_max=0)
    )
    assert decode_policy(msgpack.encode({"retention": []})).retention == []


@pytest.mark.parametrize("length", [0, 1, 31, 32, 255, 256, 65_535, 65_536])
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_result_of_any_length_is_the_bytes_that_were_packed(length: int, kind: type) -> None:
    text = b"x" * length
    packed = msgpack.encode({"v": text.decode() if kind is str else text})
    assert text_of(decode_task(packed).result) == text


def test_the_scripts_use_every_letter_of_a_task_and_no_other() -> None:
    used = set()
    for path in (ROOT / "redis" / "lua").glob("*.lua"):
        used |= set(re.findall(r"\btask\.(\w+)", path.read_text("utf-8")))
    assert used == _letters(Task)


@pytest.mark.every_redis
@pytest_twisted.ensureDeferred
async def test_what_the_scripts_keep_of_a_task_in_its_life_has_a_name_each(bench: Bench) -> None:
    async def say(verb: str, *args: bytes) -> Any:
        [reply] = await bench.call(verb, [bench.store.of_lease(b"q", *args)])
        assert reply[0] == Code.OK, (verb, reply)
        return reply

    async def pop(options: PopOptions) -> bytes:
        nonce = bench.ids.nonce()
        if options.idempotency_key is not None:
            options = replace(options, answer=nonce.decode())
        entry = bench.store.pop(b"q", nonce, 0, encode_options(options))
        [reply] = await bench.call("pop", [entry])
        return bytes(reply[1]) + b"-" + nonce

    def known(task_id: bytes) -> Task:
        raw = bench.known(b"q", task_id)
        assert set(raw) <= _letters(Task)
        assert set(raw.get("o", {})) <= _letters(Lease)
        assert all(set(attempt) <= _letters(Attempt) for attempt in raw.get("h", []))
        return decode_task(bench.redis("HGET", "{q}m", task_id))

    tail = bench.ids.tail()
    options = PushOptions(
        priority=3, ttl=60_000, lease_length=5_000, keep_result=9_000, backoff=0, attempts=4, key="key",
        traceparent="trace", tracestate="state", awaited=True, idempotency_key="ik", fingerprint="ih",
    )  # fmt: skip
    [reply] = await bench.call("push", [bench.store.push(b"q", tail, b"1", encode_options(options))])
    task_id = reply[1] + tail
    task = known(task_id)
    assert (task.state, task.priority, task.attempts, task.backoff, task.lease_length) == (
        "r",
        3,
        4,
        0,
        5_000,
    )
    assert (task.key, task.keep_result, task.traceparent, task.tracestate) == ("key", 9_000, "trace", "state")
    assert task.awaited and task.idempotent and task.expires_at is not None

    lease = await pop(PopOptions(leased=True, worker="one", idempotency_key="ik", fingerprint="ih"))
    await say("extend", lease, b"7000", encode_options(ExtendOptions(0.5, "half")))
    task = known(task_id)
    assert (task.state, task.attempt, task.progress, task.message) == ("l", 1, 0.5, "half")
    assert task.lease is not None
    assert (task.lease.id, task.lease.length, task.lease.worker) == (lease.decode(), 7_000, "one")
    assert (
        task.lease.answers == [lease.decode().split("-")[1]] and task.lease.memory and not task.lease.hidden
    )

    await say("fail", lease, encode_options(FailOptions(Error("T", "m", truncated=True), 60_000)))
    task = known(task_id)
    assert (task.state, task.error, task.lease) == ("d", Error("T", "m", truncated=True), None)
    [attempt] = task.history
    assert (attempt.number, attempt.worker, attempt.reason, attempt.error) == (1, "one", "failed", task.error)
    assert task.due_at is not None and attempt.leased_at is not None and attempt.ended_at is not None

    await say("run", task_id)
    lease = await pop(PopOptions())
    task = known(task_id)
    assert task.lease is not None and task.lease.hidden and task.ready_since is not None
    await bench.put_back((b"q", lease))
    assert known(task_id).at_head
    await say("ack", await pop(PopOptions(leased=True)), b"\xff")
    task = known(task_id)
    assert (task.state, task.history[-1].reason, task.history[-1].result) == ("e", "done", "too_large")
    assert task.kept_until is not None and task.ended_at is not None and task.last_lease is not None


def test_no_letter_of_a_record_is_used_above_the_scripts() -> None:
    letters = {
        field.encode_name
        for kind in _records()
        for field in structs.fields(kind)
        if field.encode_name != field.name
    }
    # The query of a push has an option of this name.
    letters.remove("at")
    for path in ROOT.rglob("*.py"):
        if path == Path(model.__file__):
            continue
        used = [
            f"{path.name}:{key.lineno} {key.value!r}"
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            for key in _keys(node)
            if isinstance(key, ast.Constant) and key.value in letters
        ]
        assert not used, "a field of a record goes by its letter; registry/model has its name"


def _keys(node: ast.AST) -> Iterator[ast.expr | None]:
    """What this looks up, or puts, in a mapping."""
    if isinstance(node, ast.Subscript):
        yield node.slice
    elif isinstance(node, ast.Dict):
        yield from node.keys
    elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
        yield node.left
    elif (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("get", "pop")
    ):
        yield from node.args[:1]


def _records() -> list[type[Struct]]:
    kinds = [kind for kind in vars(model).values() if isinstance(kind, type) and issubclass(kind, Struct)]
    return [kind for kind in kinds if kind.__module__ == model.__name__]


def _letters(kind: type[Struct]) -> set[str]:
    return {field.encode_name for field in structs.fields(kind)}

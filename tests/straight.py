"""Calls the store and waits for each answer, with a clock that does not advance by itself."""

from __future__ import annotations

import socket
from typing import Any

import hiredis
from msgspec import msgpack
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure
from txredisapi import ResponseError

from registry.redis.link import pack
from registry.redis.scripts import Script
from registry.redis.store import Store
from tests.live import RedisServer
from tests.model import Queue

START = 1_800_000_000_000  # ms


class Straight:
    """In place of a connection under the reactor: sends, and waits for the reply."""

    ready = True

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.reader = hiredis.Reader()

    def reply(self) -> Any:
        while (reply := self.reader.gets()) is False:
            self.reader.feed(self.socket.recv(1 << 20))
        return reply

    def call(self, packed: bytes) -> Deferred[Any]:
        self.socket.sendall(packed)
        reply = self.reply()
        return fail(ResponseError(str(reply))) if isinstance(reply, Exception) else succeed(reply)

    def command(self, *words: str | bytes | int) -> Deferred[Any]:
        return self.call(pack(*words))


class Driver:
    """A store whose scripts read their time from two keys, asked by a program that waits."""

    def __init__(self, server: RedisServer) -> None:
        self.now = START
        self.link = Straight(server.path)
        links: Any = self.link
        self.store = Store(links, links, monotonic=lambda: self.now / 1000)
        for verb, script in self.store.scripts.items():
            text = script.text.replace(b"call('TIME')", b"call('MGET', 'clock:s', 'clock:us')")
            assert text != script.text, verb
            # The jitter of a backoff: half of it, which is none.
            text = text.replace(b"redis.sha1hex(id .. clock[1] .. clock[2])", b"'80000000'")
            sha = wait(self.link.command("SCRIPT", "LOAD", text))
            self.store.scripts[verb] = Script(verb, text, sha)

    def stop(self) -> None:
        self.link.socket.close()

    def reset(self) -> None:
        self.redis("FLUSHALL")
        self.set_clock(START)

    def set_clock(self, now: int) -> None:
        self.now = now
        self.redis("MSET", "clock:s", now // 1000, "clock:us", now % 1000 * 1000)

    def redis(self, *words: str | bytes | int) -> Any:
        return wait(self.link.command(*words))

    def together(self, *commands: tuple[bytes | int, ...]) -> list[Any]:
        self.link.socket.sendall(b"".join(pack(*words) for words in commands))
        return [self.link.reply() for _ in commands]

    def call(self, verb: str, *entries: Any) -> list[Any]:
        replies: list[Any] = wait(self.store.call(verb, entries, bounded=verb in ("push", "pop")))
        assert len(replies) == len(entries)
        return replies

    def say(self, verb: str, name: bytes, *words: bytes) -> Any:
        return self.call(verb, self.store.of_lease(name, *words))[0]

    def sweep(self) -> None:
        while wait(self.store.sweep(100, 1000))[1]:
            pass


def wait(answer: Deferred[Any]) -> Any:
    """The result of a Deferred that has one."""
    found: list[Any] = []
    answer.addBoth(found.append)
    if isinstance(found[0], Failure):
        found[0].raiseException()
    return found[0]


def compare(driver: Driver, name: bytes, queue: Queue) -> None:
    """Redis holds what the model of this queue holds, in every state, and counts it so."""
    tag = b"{%b}" % name
    lines = [(b"LRANGE", tag + b"%d" % p if p else name, 0, -1) for p in range(10)]
    sets = [(b"ZRANGE", tag + kind, 0, -1, b"WITHSCORES") for kind in (b"d", b"l", b"x", b"e", b"f", b"a")]
    hashes = [(b"HGETALL", tag + kind) for kind in (b"t", b"m", b"k")]
    found = driver.together(*hashes, *lines, *sets)
    payloads, packed, keys = (_pairs(flat) for flat in found[:3])
    metas = {task_id: msgpack.decode(m) for task_id, m in packed.items()}
    assert payloads == {task.id: task.payload for task in queue.tasks.values()}
    assert set(metas) <= set(payloads)
    for p, elements in enumerate(found[3:13]):
        alive = [one for one in (_alive(e, payloads, metas) for e in reversed(elements)) if one is not None]
        assert alive == [one if isinstance(one, bytes) else one.id for one in queue.ready[p]]
    delayed, held, dead, done, asked_for, acked = (
        {member: int(float(score)) for member, score in _pairs(flat).items()} for flat in found[13:]
    )
    assert delayed == {task.id: task.due for task in queue.of("d")}
    assert held == {task.lease: task.ends for task in queue.of("l")}
    assert dead == {task.id: task.forgotten for task in queue.of("x")}
    ended = queue.of("e")
    assert done == {task.id: task.ended for task in ended if task.asked_until is None}
    assert asked_for == {task.id: task.asked_until for task in ended if task.asked_until is not None}
    assert acked == queue.acked
    assert keys == {key.encode(): task_id for key, task_id in queue.keys.items()}
    for task in queue.tasks.values():
        if task.id in metas and not (task.state == "l" and task.plain):
            m = metas[task.id]
            assert (m["s"], m.get("a") or 0, m.get("k")) == (task.state, task.attempt, task.key)
            assert task.state != "x" or m["y"] == task.reason
    counted = wait(driver.store.counts([name]))[0]
    ready = sum(map(len, queue.ready.values()))
    assert counted[:5] == (ready, *(len(queue.of(state)) for state in "dlxe"))


def _pairs(flat: list[Any]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _alive(element: bytes, payloads: dict[bytes, bytes], metas: dict[bytes, Any]) -> bytes | None:
    """The id of an element whose task is ready, the payload of a raw one, None for a tombstone."""
    if element[:1] != b"\1":
        return element
    task_id, _, generation = element[1:].partition(b":")
    m = metas.get(task_id)
    stale = task_id not in payloads or (m and (m["s"] != "r" or m.get("g", 0) != int(generation or 0)))
    return None if stale else task_id

"""A store on a real redis-server, for the tests of the scripts behind it."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from registry.queue.names import Ids
from registry.redis.address import parse_redis_url
from registry.redis.link import Link, Pool
from registry.redis.store import Store, encode_options
from tests.live import RedisServer

HANDOVER = 30_000
SCHEMA = b"{registry}schema"
DEATHS = b"{registry}deaths"
INDEX = b"{registry}index"
FAR = 1e14


class Bench:
    """A store on a real server, asked one verb at a time; ``keys`` looks past it at what Redis holds."""

    def __init__(self, server: RedisServer, prefix: str = "", **clocks: Any) -> None:
        self.server = server
        address = parse_redis_url(server.unix_url)
        self.link = Link(reactor, address, name="scripts", on_ready=lambda link: self.store.on_connect())
        self.pool = Pool(lambda: Link(reactor, address, name="look-ups"), 1)
        self.store = Store(self.link, self.pool, prefix, **clocks)
        self.ids = Ids()

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
        tails = [self.ids.tail() for _ in tasks]
        packed = encode_options(options) if options else b""
        entries = [
            self.store.push(name, i, body, packed) for i, (name, body) in zip(tails, tasks, strict=True)
        ]
        replies = await self.call("push", entries)
        return [
            reply[1] + tail if reply[0] == 0 and len(reply) == 2 else reply
            for tail, reply in zip(tails, replies, strict=True)
        ]

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
        """Every key but the mark of the schema, and the numbers of deaths, which the next sweep collects."""
        return set(self.redis("KEYS", "*")) - {SCHEMA, DEATHS}

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

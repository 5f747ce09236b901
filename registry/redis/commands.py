"""How a store talks to Redis: scripts and commands, over the ordered connection or over a pool of a few others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.python.failure import Failure

from registry.errors import RedisUnavailable
from registry.redis.faults import raise_domain_error
from registry.redis.keys import Keys, bulk
from registry.redis.link import Link, Pool, first_error
from registry.redis.protocol import pack
from registry.redis.scripts import Script, load

# Verb -> arguments per entry. The sweep and the scripts that only read have no entries.
VERBS = {
    "push": 3,
    "pop": 3,
    "confirm": 1,
    "putback": 2,
    "bury": 2,
    "pushmany": 2,
    "stage": 2,
    "unstage": 2,
    "popmany": 3,
    "ack": 2,
    "fail": 2,
    "release": 2,
    "extend": 3,
    "cancel": 1,
    "retry": 2,
    "run": 1,
    "watch": 1,
    "policy": 1,
    "purge": 1,
    "move": 4,
    "delete": 2,
    "schedule": 8,
    "restore": 3,
    "undo": 3,
    "audit": 3,
    "order": 3,
    "counts": 0,
    "glance": 0,
    "died": 0,
    "fields": 0,
    "ready": 0,
    "scored": 0,
    "records": 0,
    "why": 0,
    "sweep": 0,
    "stats": 0,
    "probe": 0,
}
# How many reads of payloads are under way at most. More would not be faster, and pushes would wait behind all of them.
MAX_PAYLOAD_READS = 2


# These verbs give a task to a worker, or take it back. If Redis forgets one, the task is delivered once more.
NOT_REPLICATED = frozenset({"pop", "popmany", "confirm", "putback", "watch"})


class Replicas:
    """Waits until replicas have what was written. ``count``: how many; ``milliseconds``: for how long."""

    def __init__(self, count: int, milliseconds: int) -> None:
        self._count = count
        self._wait = pack("WAIT", count, milliseconds)

    def hold(self, link: Link, answer: Deferred[Any]) -> Deferred[Any]:
        """The answer of a command that was just sent, when enough replicas have acknowledged it.

        WAIT is sent right behind the command, on the same connection. With too few replicas the answer fails as ``unknown``.
        """
        acknowledged = link.call(self._wait)

        def check(reply: Any) -> Any:
            return acknowledged.addCallback(self._enough, reply)

        def failed(failure: Failure) -> Failure:
            acknowledged.addErrback(lambda _: None)
            return failure

        return answer.addCallbacks(check, failed)

    def _enough(self, found: int, reply: Any) -> Any:
        if found < self._count:
            raise RedisUnavailable(
                f"Redis has stored the change, but only {found} of {self._count} replicas have acknowledged it; "
                "repeat the request with its Idempotency-Key.",
                outcome="unknown",
            )
        return reply


class Commands:
    """The connections, the scripts and the key names of one store."""

    def __init__(
        self,
        link: Link,
        pool: Pool,
        key_prefix: str = "",
        *,
        monotonic: Callable[[], float] = time.monotonic,
        replicas: Replicas | None = None,
    ) -> None:
        self._replicas = replicas
        self._link = link
        self._pool = pool
        self.keys = Keys(key_prefix)
        self.process = os.urandom(6).hex().encode()
        self.scripts: dict[str, Script] = {verb: load(verb) for verb in VERBS}
        # The arguments after the not-after time of each call. A notice names the daemon that can ignore it: after a push the one
        # that pushed, which has already woken its own pollers; otherwise none.
        space = bulk(self.keys.space)
        self._common = space + bulk(self.process)
        self._common_for_all = space + bulk(b"-")
        # Reads of payloads that are under way: each may keep Redis, and a turn of the reactor, busy for some ms.
        self._payload_reads = DeferredSemaphore(MAX_PAYLOAD_READS)
        # Redis's time, continued with the monotonic clock, which nobody sets.
        self._monotonic = monotonic
        self._offset = time.time() - monotonic()

    def now_ms(self) -> int:
        """Redis's current time in ms, as nearly as this process knows it."""
        return int((self._monotonic() + self._offset) * 1000)

    def set_clock(self, redis_ms: int) -> None:
        """Set the clock to the time from a reply of Redis, ms."""
        self._offset = redis_ms / 1000 - self._monotonic()

    def _run_once(self, verb: str, args: bytes, count: int) -> Deferred[Any]:
        """Run a script without entries over the ordered connection."""
        args = bulk(b"0") + bulk(b"0") + self._common_for_all + args
        return self.scripts[verb].run(lambda head: self._link.call(b"*%d\r\n%b%b" % (6 + count, head, args)))

    def _read(self, verb: str, names: Sequence[bytes], *args: bytes | str | int) -> Deferred[list[Any]]:
        """Run a script that only reads, over the pool. Its Lua file describes ``args``."""
        lists = [self.keys.list_key(name) for name in names]
        words = pack(len(lists), *lists, 0, self.keys.space, self.process, *args).partition(b"\r\n")[2]
        count = 6 + len(lists) + len(args)
        d = self.scripts[verb].run(lambda head: self._call_pool(b"*%d\r\n%b%b" % (count, head, words)))
        return d.addErrback(raise_domain_error)

    def _ask(self, *args: bytes | str | int) -> Deferred[Any]:
        """Send one command over the pool."""
        return self._call_pool(pack(*args)).addErrback(raise_domain_error)

    def _ask_each(self, *commands: tuple[bytes | str | int, ...]) -> Deferred[list[Any]]:
        """Send several commands at once; fires with their replies, in order, or fails with the first failure among them."""
        d: Deferred[list[Any]] = gatherResults(
            [self._ask(*command) for command in commands], consumeErrors=True
        )
        return d.addErrback(first_error)

    def _call_pool(self, encoded: bytes) -> Deferred[Any]:
        if self._pool.ready or not self._link.ready:
            return self._pool.call(encoded)
        # Redis is back, and the pool's connections follow within a moment.
        return self._pool.soon().addCallback(lambda _: self._pool.call(encoded))

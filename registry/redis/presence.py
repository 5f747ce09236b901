"""What the daemons on one Redis tell each other about themselves: heartbeats, and marks that something was done about a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.redis import prefixes
from registry.redis.commands import Commands

# When a token was used last is forgotten after this time, ms, and of all tokens but the latest: a daemon that was not running when
# a token was revoked cannot know that.
FORGOTTEN_MS = 400 * 24 * 3600 * 1000
MAX_TOKENS = 10_000


class Health(NamedTuple):
    """How Redis is. ``used``: its memory, ``limit``: its maxmemory, bytes, 0 for none; ``persists``: it could write to disk."""

    used: int
    limit: int
    persists: bool


class Presence(Commands):
    """The part of the store for the daemons themselves."""

    @inlineCallbacks
    def beat(self, content: bytes, life_ms: int) -> Any:
        """Write this process's heartbeat, with ``content`` as its content, for ``life_ms``."""
        keys = self.keys
        yield self._ask(b"SET", keys.beat(self.process), content, b"PX", life_ms)
        yield self._ask(b"ZADD", keys.beats, self.now_ms() + life_ms, self.process)
        yield self._ask(b"ZREMRANGEBYSCORE", keys.beats, b"-inf", self.now_ms() - life_ms)

    def beat_workers(self, content: bytes, life_ms: int) -> Deferred[Any]:
        """Write what this process knows of its workers, for ``life_ms``."""
        return self._ask(b"SET", self.keys.roster(self.process), content, b"PX", life_ms)

    def other_beats(self) -> Deferred[list[bytes]]:
        """The contents of the heartbeats of all other processes."""
        return self._of_others(self.keys.beat)

    def other_workers(self) -> Deferred[list[bytes]]:
        """What all other processes know of their workers."""
        return self._of_others(self.keys.roster)

    @inlineCallbacks
    def _of_others(self, key_of: Callable[[bytes], bytes]) -> Any:
        processes = yield self._ask(b"ZRANGE", self.keys.beats, 0, -1)
        others = [key_of(process) for process in processes if process != self.process]
        beats = (yield self._ask(b"MGET", *others)) if others else []
        return [beat for beat in beats if beat]

    @inlineCallbacks
    def share(self, daemon: str, slot: int, numbers: bytes, life_s: int) -> Any:
        """Write the numbers of one process of a daemon; all of them are forgotten after ``life_s``."""
        key = self.keys.metrics(daemon)
        yield self._ask_each((b"HSET", key, slot, numbers), (b"EXPIRE", key, life_s))

    @inlineCallbacks
    def shared(self, daemon: str) -> Any:
        """Fires with the numbers of all processes of a daemon, by slot."""
        flat = yield self._ask(b"HGETALL", self.keys.metrics(daemon))
        return {int(slot): numbers for slot, numbers in zip(flat[::2], flat[1::2], strict=True)}

    @inlineCallbacks
    def health(self) -> Any:
        """Fires with the `Health` of Redis."""
        memory, persistence = yield self._ask_each((b"INFO", b"memory"), (b"INFO", b"persistence"))
        info = dict(
            line.split(b":", 1) for line in (memory + b"\r\n" + persistence).split(b"\r\n") if b":" in line
        )
        return Health(
            int(info.get(b"used_memory", 0)),
            int(info.get(b"maxmemory", 0)),
            # A server that keeps no snapshots tells of the last one, which was none, that it was all right.
            info.get(b"rdb_last_bgsave_status", b"ok") == b"ok"
            and (info.get(b"aof_enabled") != b"1" or info.get(b"aof_last_write_status", b"ok") == b"ok"),
        )

    def orders(self) -> Deferred[list[tuple[str, str, int]]]:
        """The orders that stand: order, worker, and until when, ms."""

        def read(found: list[bytes]) -> list[tuple[str, str, int]]:
            pairs = (
                (member.decode(), int(float(until)))
                for member, until in zip(found[::2], found[1::2], strict=True)
            )
            return [(*member.split("\n", 1), until) for member, until in pairs]  # type: ignore[misc]

        d = self._ask(b"ZRANGEBYSCORE", self.keys.orders, self.now_ms(), b"+inf", b"WITHSCORES")
        return d.addCallback(read)

    def once(self, what: str, worker: str, ms: int) -> Deferred[bool]:
        """Mark ``what`` as done about this worker; fires with False when a daemon did so in the last ``ms``."""
        d = self._ask(b"SET", self.keys.worker_mark(what, worker), b"1", b"NX", b"PX", ms)
        return d.addCallback(lambda reply: reply is not None)

    @inlineCallbacks
    def tokens_used(self, used: set[str], gone: set[str]) -> Any:
        """The tokens with these ids were used now; forget those that are ``gone``."""
        key, now_ms = self.keys.tokens, self.now_ms()
        if used:
            yield self._ask(b"ZADD", key, *(part for token in used for part in (now_ms, token)))
            yield self._ask(b"ZREMRANGEBYSCORE", key, b"-inf", now_ms - FORGOTTEN_MS)
            yield self._ask(b"ZREMRANGEBYRANK", key, 0, -MAX_TOKENS - 1)
        if gone:
            yield self._ask(b"ZREM", key, *gone)

    @inlineCallbacks
    def last_used(self) -> Any:
        """When the tokens were used last, ms, by their ids."""
        reply = yield self._ask(b"ZRANGE", self.keys.tokens, 0, -1, b"WITHSCORES")
        return {token.decode(): int(float(at)) for token, at in zip(reply[::2], reply[1::2], strict=True)}

    def overlaps(self, *, on_connect: bool = False) -> Deferred[list[str]]:
        """A warning for each other registry on this Redis that takes our tasks. ``on_connect``: ask over the ordered connection,
        which is not ready yet."""
        command = self._link.command if on_connect else self._ask
        d: Deferred[list[str]] = prefixes.find_overlaps(command, self.keys.prefix, self.now_ms())
        return d

"""Every key name and every script of the registry, typed. Whoever calls this needs to know no Redis.

An entry is one request within a call: the key of its queue and its arguments, already encoded for the wire, because
one call carries up to 128 of them. What a reply means is said at the top of each Lua file.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.logger import Logger
from txredisapi import ResponseError

from registry.errors import Conflict, RedisFull, RedisUnavailable
from registry.redis.faults import refused
from registry.redis.link import Link, Pool, error_word, first_error
from registry.redis.scripts import Script, load

log = Logger()

SCHEMA = b"1"
# What Redis says when its own state is in the way.
_REFUSALS = re.compile(
    r"\b(MISCONF|READONLY|LOADING|MASTERDOWN|NOREPLICAS|BUSY|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|CROSSSLOT|NOAUTH|NOPERM|UNKILLABLE)\b"
)
# What Redis refuses writes with until somebody makes room, on a disk or in memory, or a replica comes back.
PASSES = ("MISCONF", "NOREPLICAS", "OOM")
CALL_SECONDS = 3.0
# A reply that came within this time, s, tells what Redis's clock says now.
CLOCK_SECONDS = 0.1
CLOCK_JUMP_MS = 250


def bulk(value: bytes) -> bytes:
    """One RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


class Entry:
    """One request on its way into a script call.

    ``reply`` is told its own element of the reply: whatever has ``callback`` and ``errback``; without one, a Deferred is
    made where somebody asks for it. ``came`` and ``until``: set by whoever gathers entries, and holds them while Redis is away.
    """

    __slots__ = ("args", "came", "key", "reply", "size", "until")

    came: float
    until: float
    weight = 1  # how many others of its verb it is worth in a call

    def __init__(self, key: bytes, args: bytes) -> None:
        self.key = key
        self.args = args
        self.size = len(args) + len(key)
        self.reply: Any = None


class WideEntry(Entry):
    """An entry that asks several queues."""

    __slots__ = ("weight",)


class Store:
    """The tasks in one Redis, as scripts over one ordered connection and look-ups over a few others.

    ``key_prefix`` goes in front of every queue's list; registries with different prefixes share a Redis unseen.
    """

    def __init__(
        self,
        link: Link,
        pool: Pool,
        key_prefix: str = "",
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._pool = pool
        self.prefix = prefix = key_prefix.encode()
        # Of a queue's list, by the queue's name; most names come again and again.
        self._bulk_key = lru_cache(maxsize=4096)(lambda name: bulk(prefix + name))
        self.space = b"{%bregistry}" % self.prefix
        self.process = os.urandom(6).hex().encode()
        # The time is Redis's, carried on by a clock that nobody sets.
        self._monotonic = monotonic
        self._offset = time.time() - monotonic()
        self._knew_keys = False
        self._scripts: dict[str, Script] = {}
        self._heads: dict[str, tuple[bytes, int]] = {}
        self._common = bulk(self.space) + bulk(self.process)
        # Notices of pushes are not for the daemon that made them, which has woken its own pollers already; all others are.
        self._common_for_all = bulk(self.space) + bulk(b"-")
        for verb, stride in VERBS.items():
            script = load(verb)
            self._scripts[verb] = script
            self._heads[verb] = (b"$7\r\nEVALSHA\r\n" + bulk(script.sha), stride)

    @property
    def ready(self) -> bool:
        """Whether a call would be sent now."""
        return self._link.ready

    def away(self) -> RedisUnavailable | None:
        """Why no call would be sent now, or None."""
        link = self._link
        return None if link.ready else link.unavailable()

    def now_ms(self) -> int:
        """The time as Redis tells it, as nearly as this process knows, in ms."""
        return int((self._monotonic() + self._offset) * 1000)

    def list_key(self, name: bytes) -> bytes:
        """The key of a queue's list."""
        return self.prefix + name

    def name_of(self, key: bytes) -> bytes:
        """The queue whose list has this key."""
        return key[len(self.prefix) :]

    # What each verb takes, encoded. See the Lua file of the same name.

    def push(self, name: bytes, tail: bytes, payload: bytes, options: bytes) -> Entry:
        """``tail`` is that of the task's id; ``options`` is empty or msgpack."""
        return Entry(
            self._bulk_key(name),
            b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (len(tail), tail, len(payload), payload, len(options), options),
        )

    def pop(self, name: bytes, nonce: bytes, lease_ms: int, options: bytes) -> Entry:
        """``lease_ms`` 0 asks for the task's own; ``options`` is empty or msgpack."""
        length = b"%d" % lease_ms
        return Entry(
            self._bulk_key(name),
            b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (len(nonce), nonce, len(length), length, len(options), options),
        )

    def push_many(
        self, name: bytes, tails: Sequence[bytes], payloads: Sequence[bytes | memoryview], options: bytes
    ) -> Entry:
        """One entry for a whole batch."""
        return Entry(
            self._bulk_key(name), _bulk_of([b"\x92", *_texts(tails), *_texts(payloads)]) + bulk(options)
        )

    def stage(
        self, name: bytes, head: bytes, tails: Sequence[bytes], payloads: Sequence[bytes | memoryview]
    ) -> Entry:
        """A part of a batch; ``head`` is that of its ids, empty for the first part."""
        return Entry(
            self._bulk_key(name), bulk(head) + _bulk_of([b"\x92", *_texts(tails), *_texts(payloads)])
        )

    def unstage(self, name: bytes, head: bytes, tails: Sequence[bytes]) -> Entry:
        """What `stage` stored is forgotten."""
        return Entry(self._bulk_key(name), bulk(head) + _bulk_of(_texts(tails)))

    def push_staged(self, name: bytes, head: bytes, tails: Sequence[bytes], options: bytes) -> Entry:
        """The parts of a batch become its tasks."""
        parts = [b"\x92", *_texts(tails), msgpack.encode(head.decode())]
        return Entry(self._bulk_key(name), _bulk_of(parts) + bulk(options))

    def pop_many(self, names: Sequence[bytes], nonce: bytes, lease_ms: int, options: dict[str, Any]) -> Entry:
        """``options`` as in ``popmany.lua`` without ``q``."""
        packed = msgpack.encode({**options, "q": [(self.prefix + name).decode() for name in names]})
        entry = WideEntry(bulk(self.prefix + names[0]), bulk(nonce) + bulk(b"%d" % lease_ms) + bulk(packed))
        entry.weight = len(names)
        return entry

    def schedule(
        self,
        name: bytes,
        queue: bytes,
        was: tuple[bytes, int | None],
        becomes: tuple[bytes, int | None],
        push: tuple[bytes, bytes, bytes] = (b"", b"", b""),
    ) -> Entry:
        """What was known of a schedule and its next tick, what they become, and what ``push`` takes of a task to be pushed."""
        times = [b"" if at is None else b"%d" % at for at in (was[1], becomes[1])]
        args = (name, was[0], times[0], becomes[0], times[1], *push)
        return Entry(self._bulk_key(queue), b"".join(map(bulk, args)))

    def of_lease(self, name: bytes, lease: bytes, *more: bytes) -> Entry:
        """Confirm, put back, and every other verb whose first argument is a lease or a task's id."""
        args = b"$%d\r\n%b\r\n" % (len(lease), lease)
        return Entry(self._bulk_key(name), args + b"".join(map(bulk, more)) if more else args)

    def call(self, verb: str, entries: Sequence[Entry], *, bounded: bool) -> Deferred[list[Any]]:
        """Carry the entries in one call; fires with one reply element per entry, in order.

        ``bounded``: a Redis that reads the call after its deadline must refuse it. Fails with `RedisUnavailable`.
        """
        deadline = self._monotonic() + CALL_SECONDS
        head, stride = self._heads[verb]
        keys = b"".join([e.key for e in entries])
        args = b"".join([e.args for e in entries])
        count = len(entries)
        script = self._scripts[verb]
        common = self._common if verb in ("push", "pushmany", "putback") else self._common_for_all

        def send(command: bytes, parts: int) -> Deferred[Any]:
            not_after = b"%d" % (
                (self.now_ms() + int((deadline - self._monotonic()) * 1000)) if bounded else 0
            )
            return self._link.call(
                b"*%d\r\n%b%b%b%b%b%b"
                % (parts, command, bulk(b"%d" % count), keys, bulk(not_after), common, args)
            )

        parts = 6 + count + count * stride

        def refused(failure: Any) -> Any:
            error = failure.value
            if isinstance(error, ResponseError) and str(error).startswith("NOSCRIPT"):
                return send(b"$4\r\nEVAL\r\n" + bulk(script.text), parts)
            return failure

        def attempt() -> Deferred[Any]:
            return send(head, parts).addErrback(refused)

        def answered(reply: list[Any]) -> Any:
            if count and reply and reply[0] == b"LATE":
                self.set_clock(reply[1])
                if self._monotonic() < deadline - 0.05:
                    return attempt().addCallback(still)
                raise RedisUnavailable("Redis read the request too late, and did not carry it out.")
            return reply

        def still(reply: list[Any]) -> Any:
            if reply and reply[0] == b"LATE":
                raise RedisUnavailable("Redis read the request too late, and did not carry it out.")
            return reply

        d = attempt()
        if bounded:
            d.addCallback(answered)
        d.addErrback(self._refused)
        return d

    def _refused(self, failure: Any) -> Any:
        """As `_as_domain`; what says that Redis takes no writes, or not ours, is told in the log as well."""
        error = failure.value
        if isinstance(error, ResponseError) and (found := _REFUSALS.search(str(error))):
            self._link.complain(f"Redis refuses the scripts: {str(error)[found.start() :]}")
        return _as_domain(failure)

    def set_clock(self, redis_ms: int) -> None:
        """Take the time a reply of Redis told."""
        self._offset = redis_ms / 1000 - self._monotonic()

    def greet(self) -> Deferred[None]:
        """On each new connection: learn the clock, check the schema, load the scripts. Fails when a newer daemon's keys are found."""
        d = self._link.command(b"TIME")
        d.addCallback(lambda t: self.set_clock(int(t[0]) * 1000 + int(t[1]) // 1000))
        d.addCallback(lambda _: self._learn_schema())

        def load_all(_: object) -> Deferred[Any]:
            last: Deferred[Any] | None = None
            for script in self._scripts.values():
                last = self._link.command(b"SCRIPT", b"LOAD", script.text)
                last.addErrback(
                    lambda f: log.warn("Redis did not load a script: {why}", why=f.getErrorMessage())
                )
            assert last is not None
            return last

        return d.addCallback(load_all).addCallback(lambda _: self._try_a_script())

    @inlineCallbacks
    def _try_a_script(self) -> Any:
        """Fails where this connection can be of no use: a replica in the master's place, a user without the right to write."""
        probe = self._scripts["probe"]
        try:
            yield self._link.command(b"EVALSHA", probe.sha, 0, 0, self.space, b"-")
        except ResponseError as error:
            # What passes by itself has its own answer to each request, and its own line in the log.
            if error_word(error) not in (*PASSES, "BUSY", "NOSCRIPT"):
                raise

    @inlineCallbacks
    def _learn_schema(self) -> Any:
        """Check whose keys these are, and say that they are ours where nobody has."""
        key = self.space + b"schema"
        found = yield self._link.command(b"GET", key)
        if found is None:
            try:
                yield self._link.command(b"SET", key, SCHEMA, b"NX")
            except ResponseError as error:
                if error_word(error) not in PASSES:
                    raise
                # It is written when Redis takes writes.
                return
            if self._knew_keys:
                log.critical(
                    "The keys of the registry have vanished from Redis (FLUSHALL, or another server in its place): "
                    "the tasks that were there are lost"
                )
        self._knew_keys = True
        if found is not None and not found.isdigit():
            raise NewerSchema(
                f"The key {key.decode()} in this Redis is not the registry's: another program has taken it."
            )
        if found is not None and int(found) > int(SCHEMA):
            raise NewerSchema(
                f"The keys in this Redis are of version {found.decode()}, newer than this daemon's {SCHEMA.decode()}: "
                "upgrade this daemon."
            )

    @inlineCallbacks
    def watch_keys(self) -> Any:
        """Notice when somebody has emptied this Redis: nothing in it would tell, and the tasks are gone."""
        try:
            yield self._learn_schema()
        except NewerSchema as error:
            # The next greeting finds it too, and says what comes of it.
            self._link.retire(str(error))
        except ResponseError as error:
            self._link.complain(str(error))

    def sweep(self, queues: int, moves: int) -> Deferred[list[int]]:
        """Let time do its work on the queues that are due; fires with [queues swept, moves made]."""
        asked = self._monotonic()

        def swept(reply: list[int]) -> list[int]:
            # Redis's clock may be set at any time. A reply that took long tells nothing about it, and the time it took on its way
            # is no reason to step back.
            if self._monotonic() - asked < CLOCK_SECONDS and abs(reply[2] - self.now_ms()) > CLOCK_JUMP_MS:
                self.set_clock(reply[2])
            return reply[:2]

        d = self._without_keys("sweep", bulk(b"%d" % queues) + bulk(b"%d" % moves), 2)
        return d.addErrback(self._refused).addCallback(swept)

    def probe(self) -> Deferred[None]:
        """Fails when Redis takes no writes, or not from us. That it is full is no failure: pops go on."""
        return self._without_keys("probe", b"", 0).addErrback(self._refused).addCallback(lambda _: None)

    def _without_keys(self, verb: str, args: bytes, count: int) -> Deferred[Any]:
        args = self._common_for_all + args
        script = self._scripts[verb]

        def send(head: bytes) -> Deferred[Any]:
            return self._link.call(b"*%d\r\n%b$1\r\n0\r\n$1\r\n0\r\n%b" % (6 + count, head, args))

        def refused(failure: Any) -> Any:
            if isinstance(failure.value, ResponseError) and str(failure.value).startswith("NOSCRIPT"):
                return send(b"$4\r\nEVAL\r\n" + bulk(script.text))
            return failure

        return send(self._heads[verb][0]).addErrback(refused)

    def read(self, verb: str, names: Sequence[bytes], *args: bytes | str | int) -> Deferred[list[Any]]:
        """Run a script that only reads, over one of the other connections. What ``args`` are is told in its Lua file."""
        script = self._scripts[verb]
        keys = [self.prefix + name for name in names]
        rest: tuple[bytes | str | int, ...] = (len(keys), *keys, 0, self.space, self.process, *args)
        d = self._look(b"EVALSHA", script.sha, *rest)

        def refused(failure: Any) -> Any:
            if isinstance(failure.value, ResponseError) and str(failure.value).startswith("NOSCRIPT"):
                return self._pool.command(b"EVAL", script.text, *rest)
            return failure

        return d.addErrback(refused).addErrback(_as_domain)

    def tag(self, name: bytes) -> bytes:
        """What all keys of a queue beside its list begin with."""
        return b"{%b%b}" % (self.prefix, name)

    def any_waiting(self, names: Sequence[bytes], priority: int) -> Deferred[int]:
        """How many lists of these queues hold something, of those of priority 0 and of this one. One command."""
        keys = [self._bulk_key(name) for name in names]
        keys += [bulk(b"{%b%b}%d" % (self.prefix, name, priority)) for name in names]
        return self._link.call(b"*%d\r\n$6\r\nEXISTS\r\n%b" % (1 + len(keys), b"".join(keys)))

    def lookup(self, *args: bytes | str | int) -> Deferred[Any]:
        """A command that only reads, over one of the other connections."""
        return self._look(*args).addErrback(_as_domain)

    def _look(self, *args: bytes | str | int) -> Deferred[Any]:
        if self._pool.ready or not self._link.ready:
            return self._pool.command(*args)
        # Redis is back, and the connections of the look-ups are only a moment behind.
        return self._pool.soon().addCallback(lambda _: self._pool.command(*args))

    def once(self, what: str, worker: str, ms: int) -> Deferred[bool]:
        """Whether no daemon was told so of this worker in the last ``ms``."""
        key = self.space + f"worker:{what}:{worker}".encode()
        return self.lookup(b"SET", key, b"1", b"NX", b"PX", ms).addCallback(lambda reply: reply is not None)

    def lookups(self, *commands: tuple[bytes | str | int, ...]) -> Deferred[list[Any]]:
        """Several at once; fires with their replies, in order, or fails with the first failure among them."""
        d: Deferred[list[Any]] = gatherResults(
            [self.lookup(*command) for command in commands], consumeErrors=True
        )
        return d.addErrback(first_error)


# Verb -> arguments per entry. The sweep and what only reads have no entries.
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
    "counts": 0,
    "fields": 0,
    "position": 0,
    "ready": 0,
    "scored": 0,
    "sweep": 0,
    "probe": 0,
}


class ScriptError(Exception):
    """A script went wrong in a way that no state of Redis explains."""


class NewerSchema(Exception):
    """The keys in this Redis were written by a newer registry, or by no registry at all."""


def _as_domain(failure: Any) -> Any:
    """Redis's own refusals of a whole call, as what they mean for a request."""
    error = failure.value
    if isinstance(error, ResponseError):
        raise refusal(str(error)) from None
    return failure


def refusal(text: str) -> Exception:
    """The domain's word for an error of Redis: what was refused was not applied."""
    if "OOM command" in text:
        return RedisFull("Redis is full and takes no more tasks; pops still work.")
    if text.startswith("WRONGTYPE"):
        return Conflict("wrong_type", "A key in Redis holds something else than the registry keeps there.")
    found = _REFUSALS.search(text)
    if found is None:
        # Not Redis's state but a fault of ours, or of the keys.
        return ScriptError(text)
    word = found[0]
    return RedisUnavailable(refused(word), retry_after=5 if word == "MISCONF" else 1)


def _texts(values: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    # msgpack's type for bytes is unknown to the scripts' decoder: an array of its type for text, written by hand.
    parts: list[bytes | memoryview] = [b"\xdd" + len(values).to_bytes(4, "big")]
    for value in values:
        parts += (b"\xdb" + len(value).to_bytes(4, "big"), value)
    return parts


def _bulk_of(parts: Sequence[bytes | memoryview]) -> bytes:
    # They may be large: their bytes are put together once.
    return b"".join([b"$%d\r\n" % sum(map(len, parts)), *parts, b"\r\n"])


def encode_options(options: dict[str, Any]) -> bytes:
    """Options of an entry as the scripts read them; nothing at all for none."""
    return msgpack.encode(options) if options else b""

"""The store: one typed method for each script and each look-up. Whoever calls this needs to know no Redis.

An entry is one request within a call: the key of its queue and its arguments, already encoded for the wire, because
one call carries up to 128 of them. What a reply means is said at the top of each Lua file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, msgpack
from msgspec.structs import replace
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from txredisapi import ResponseError

from registry.errors import RedisUnavailable
from registry.model import PopOptions
from registry.redis.commands import VERBS
from registry.redis.faults import IN_THE_WAY, as_domain
from registry.redis.keys import bulk
from registry.redis.link import error_word
from registry.redis.lookups import Lookups
from registry.redis.presence import Presence
from registry.redis.schedule_store import ScheduleStore

log = Logger()

SCHEMA = b"1"
_NO_OPTIONS = msgpack.encode({})
# What Redis refuses writes with until somebody makes room, on a disk or in memory, or a replica comes back.
PASSES = ("MISCONF", "NOREPLICAS", "OOM")
CALL_SECONDS = 3.0
# A reply that came within this time, s, tells what Redis's clock says now.
CLOCK_SECONDS = 0.1
CLOCK_JUMP_MS = 250


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


class Store(Lookups, ScheduleStore, Presence):
    """The tasks in one Redis, as scripts over one ordered connection and look-ups over a few others.

    ``key_prefix`` goes in front of every queue's list; registries with different prefixes share a Redis unseen.
    """

    _knew_keys = False

    @property
    def ready(self) -> bool:
        """Whether a call would be sent now."""
        return self._link.ready

    def away(self) -> RedisUnavailable | None:
        """Why no call would be sent now, or None."""
        link = self._link
        return None if link.ready else link.unavailable()

    def name_of(self, key: bytes) -> bytes:
        """The queue whose list has this key."""
        return self.keys.name_of(key)

    # What each verb takes, encoded. See the Lua file of the same name.

    def push(self, name: bytes, tail: bytes, payload: bytes, options: bytes) -> Entry:
        """``tail`` is that of the task's id; ``options`` is empty or msgpack."""
        return Entry(
            self.keys.bulk_list(name),
            b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (len(tail), tail, len(payload), payload, len(options), options),
        )

    def pop(self, name: bytes, nonce: bytes, lease_ms: int, options: bytes) -> Entry:
        """``lease_ms`` 0 asks for the task's own; ``options`` is empty or msgpack."""
        length = b"%d" % lease_ms
        return Entry(
            self.keys.bulk_list(name),
            b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
            % (len(nonce), nonce, len(length), length, len(options), options),
        )

    def push_many(
        self, name: bytes, tails: Sequence[bytes], payloads: Sequence[bytes | memoryview], options: bytes
    ) -> Entry:
        """One entry for a whole batch."""
        return Entry(
            self.keys.bulk_list(name), _bulk_of([b"\x92", *_texts(tails), *_texts(payloads)]) + bulk(options)
        )

    def stage(
        self, name: bytes, head: bytes, tails: Sequence[bytes], payloads: Sequence[bytes | memoryview]
    ) -> Entry:
        """A part of a batch; ``head`` is that of its ids, empty for the first part."""
        return Entry(
            self.keys.bulk_list(name), bulk(head) + _bulk_of([b"\x92", *_texts(tails), *_texts(payloads)])
        )

    def unstage(self, name: bytes, head: bytes, tails: Sequence[bytes]) -> Entry:
        """What `stage` stored is forgotten."""
        return Entry(self.keys.bulk_list(name), bulk(head) + _bulk_of(_texts(tails)))

    def push_staged(self, name: bytes, head: bytes, tails: Sequence[bytes], options: bytes) -> Entry:
        """The parts of a batch become its tasks."""
        parts = [b"\x92", *_texts(tails), msgpack.encode(head.decode())]
        return Entry(self.keys.bulk_list(name), _bulk_of(parts) + bulk(options))

    def pop_many(self, names: Sequence[bytes], nonce: bytes, lease_ms: int, options: PopOptions) -> Entry:
        """``lease_ms`` 0 asks for each task's own."""
        packed = msgpack.encode(
            replace(options, queues=[self.keys.list_key(name).decode() for name in names])
        )
        entry = WideEntry(self.keys.bulk_list(names[0]), bulk(nonce) + bulk(b"%d" % lease_ms) + bulk(packed))
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
        return Entry(self.keys.bulk_list(queue), b"".join(map(bulk, args)))

    def move(self, name: bytes, to: bytes, state: str, most: int, skipped: int) -> Entry:
        """So many tasks of a state to the tail of another queue; ``skipped``: so many could not go before."""
        args = (self.keys.list_key(to), state.encode(), b"%d" % most, b"%d" % skipped)
        return Entry(self.keys.bulk_list(name), b"".join(map(bulk, args)))

    def purge(self, name: bytes, state: str, most: int) -> Entry:
        """So many ready and delayed tasks, or of one of both states."""
        return Entry(self.keys.bulk_list(name), bulk(f"{most} {state}".rstrip().encode()))

    def of_lease(self, name: bytes, lease: bytes, *more: bytes) -> Entry:
        """Confirm, put back, and every other verb whose first argument is a lease or a task's id."""
        args = b"$%d\r\n%b\r\n" % (len(lease), lease)
        return Entry(self.keys.bulk_list(name), args + b"".join(map(bulk, more)) if more else args)

    def call(self, verb: str, entries: Sequence[Entry], *, bounded: bool) -> Deferred[list[Any]]:
        """Carry the entries in one call; fires with one reply element per entry, in order.

        ``bounded``: a Redis that reads the call after its deadline must refuse it. Fails with `RedisUnavailable`.
        """
        deadline = self._monotonic() + CALL_SECONDS
        keys = b"".join([e.key for e in entries])
        args = b"".join([e.args for e in entries])
        count = len(entries)
        parts = 6 + count + count * VERBS[verb]
        run = self.scripts[verb].run
        common = self._common if verb in ("push", "pushmany", "putback") else self._common_for_all

        def send(head: bytes) -> Deferred[Any]:
            not_after = b"%d" % (
                (self.now_ms() + int((deadline - self._monotonic()) * 1000)) if bounded else 0
            )
            return self._link.call(
                b"*%d\r\n%b%b%b%b%b%b"
                % (parts, head, bulk(b"%d" % count), keys, bulk(not_after), common, args)
            )

        def answered(reply: list[Any]) -> Any:
            if count and reply and reply[0] == b"LATE":
                self.set_clock(reply[1])
                if self._monotonic() < deadline - 0.05:
                    return run(send).addCallback(still)
                raise RedisUnavailable("Redis read the request too late, and did not carry it out.")
            return reply

        def still(reply: list[Any]) -> Any:
            if reply and reply[0] == b"LATE":
                raise RedisUnavailable("Redis read the request too late, and did not carry it out.")
            return reply

        d = run(send)
        if bounded:
            d.addCallback(answered)
        d.addErrback(self._refused)
        return d

    def _refused(self, failure: Any) -> Any:
        """As `as_domain`; what says that Redis takes no writes, or not ours, is told in the log as well."""
        error = failure.value
        if isinstance(error, ResponseError) and (found := IN_THE_WAY.search(str(error))):
            self._link.complain(f"Redis refuses the scripts: {str(error)[found.start() :]}")
        return as_domain(failure)

    def greet(self) -> Deferred[None]:
        """On each new connection: learn the clock, check the schema, load the scripts. Fails when a newer daemon's keys are found."""
        d = self._link.command(b"TIME")
        d.addCallback(lambda t: self.set_clock(int(t[0]) * 1000 + int(t[1]) // 1000))
        d.addCallback(lambda _: self._learn_schema())

        def load_all(_: object) -> Deferred[Any]:
            last: Deferred[Any] | None = None
            for script in self.scripts.values():
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
        probe = self.scripts["probe"]
        try:
            yield self._link.command(b"EVALSHA", probe.sha, 0, 0, self.keys.space, b"-")
        except ResponseError as error:
            # What passes by itself has its own answer to each request, and its own line in the log.
            if error_word(error) not in (*PASSES, "BUSY", "NOSCRIPT"):
                raise

    @inlineCallbacks
    def _learn_schema(self) -> Any:
        """Check whose keys these are, and say that they are ours where nobody has."""
        key = self.keys.schema
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

        d = self._run_once("sweep", bulk(b"%d" % queues) + bulk(b"%d" % moves), 2)
        return d.addErrback(self._refused).addCallback(swept)

    def probe(self) -> Deferred[None]:
        """Fails when Redis takes no writes, or not from us. That it is full is no failure: pops go on."""
        return self._run_once("probe", b"", 0).addErrback(self._refused).addCallback(lambda _: None)

    def any_waiting(self, names: Sequence[bytes], priority: int) -> Deferred[int]:
        """How many lists of these queues hold something, of those of priority 0 and of this one. One command."""
        keys = [self.keys.bulk_list(name) for name in names]
        keys += [bulk(self.keys.ready_list(name, priority)) for name in names]
        return self._link.call(b"*%d\r\n$6\r\nEXISTS\r\n%b" % (1 + len(keys), b"".join(keys)))


class NewerSchema(Exception):
    """The keys in this Redis were written by a newer registry, or by no registry at all."""


def _texts(values: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    # msgpack's type for bytes is unknown to the scripts' decoder: an array of its type for text, written by hand.
    parts: list[bytes | memoryview] = [b"\xdd" + len(values).to_bytes(4, "big")]
    for value in values:
        parts += (b"\xdb" + len(value).to_bytes(4, "big"), value)
    return parts


def _bulk_of(parts: Sequence[bytes | memoryview]) -> bytes:
    # They may be large: their bytes are put together once.
    return b"".join([b"$%d\r\n" % sum(map(len, parts)), *parts, b"\r\n"])


def encode_options(options: Struct | dict[str, Any] | None) -> bytes:
    """Options of an entry as the scripts read them; nothing at all for none."""
    encoded = msgpack.encode(options) if options else b""
    return b"" if encoded == _NO_OPTIONS else encoded

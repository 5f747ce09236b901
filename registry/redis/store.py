"""The store: one typed method for each script and each look-up. Callers need not know Redis.

An entry is one request within a call: the key of its queue and its arguments, already encoded for the wire, because
one call carries up to 128 of them. The top of each Lua file says what a reply means.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, msgpack
from msgspec.structs import replace
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger
from txredisapi import ResponseError

from registry.errors import RedisUnavailable
from registry.model import PopOptions, Task
from registry.redis.audit_store import AuditStore
from registry.redis.commands import NOT_REPLICATED, VERBS
from registry.redis.faults import STATE_ERRORS, raise_domain_error
from registry.redis.keys import bulk
from registry.redis.link import error_word
from registry.redis.lookups import Lookups
from registry.redis.presence import Presence
from registry.redis.schedule_store import ScheduleStore
from registry.redis.stats_store import StatsStore

log = Logger()

SCHEMA = b"1"
_NO_OPTIONS = msgpack.encode({})
# The error words by which Redis refuses writes until somebody makes room, on a disk or in memory, or a replica comes back.
TEMPORARY_REFUSALS = ("MISCONF", "NOREPLICAS", "OOM")
CALL_SECONDS = 3.0
# Only a reply that came within this time, s, is used to correct the clock.
CLOCK_SECONDS = 0.1
CLOCK_JUMP_MS = 250


class Entry(Struct, eq=False):
    """One request on its way into a script call. ``size``: the bytes of ``key`` and ``args``.

    ``reply`` receives this entry's element of the reply: any object with ``callback`` and ``errback``, set by the caller.
    ``added_at`` and ``until``: set by the code that gathers entries and holds them while Redis is away.
    ``weight``: how many plain entries of its verb it counts as in a call.
    """

    key: bytes
    args: bytes
    size: int
    reply: Any = None
    added_at: float = 0.0
    until: float | None = None
    weight: int = 1


def entry_of(key: bytes, args: bytes) -> Entry:
    """An entry of a verb that is not among the busiest."""
    return Entry(key, args, len(key) + len(args))


class Store(Lookups, ScheduleStore, AuditStore, StatsStore, Presence):
    """The tasks in one Redis: scripts over one ordered connection, and look-ups over a few others.

    ``key_prefix`` precedes the name of every queue's list; registries whose prefixes do not overlap can share a Redis.
    """

    _schema_seen = False

    @property
    def ready(self) -> bool:
        """Whether a call would be sent now."""
        return self._link.ready

    def away(self) -> RedisUnavailable | None:
        """The error that says why no call would be sent now, or None."""
        link = self._link
        return None if link.ready else link.unavailable()

    @property
    def seconds_away(self) -> float:
        """For how long no call could be sent."""
        return 0.0 if self._link.ready else self._monotonic() - self._link.away_since

    def name_of(self, key: bytes) -> bytes:
        """The queue whose list has this key."""
        return self.keys.name_of(key)

    def queue_of(self, entry: Entry) -> bytes:
        """The queue that this entry asks; of several, the first."""
        return self.name_of_bulk(entry.key)

    def name_of_bulk(self, key: bytes) -> bytes:
        """The queue whose list has this key, given as a bulk string."""
        return self.keys.name_of(key.partition(b"\r\n")[2][:-2])

    @property
    def colons(self) -> int:
        """How many colons the prefix has, which precede the name of a queue in the key of an entry."""
        return self.keys.prefix.count(b":")

    # The arguments of each verb, encoded. See the Lua file of the same name.

    def push(self, name: bytes, tail: bytes, payload: bytes, options: bytes) -> Entry:
        """``tail`` is the tail of the task's id; ``options`` is empty or msgpack."""
        key = self.keys.bulk_list(name)
        args = b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(tail),
            tail,
            len(payload),
            payload,
            len(options),
            options,
        )
        return Entry(key, args, len(key) + len(args))

    def pop(self, name: bytes, nonce: bytes, lease_ms: int, options: bytes) -> Entry:
        """``lease_ms`` 0 asks for the task's own; ``options`` is empty or msgpack."""
        key, length = self.keys.bulk_list(name), b"%d" % lease_ms
        args = b"$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            len(nonce),
            nonce,
            len(length),
            length,
            len(options),
            options,
        )
        return Entry(key, args, len(key) + len(args))

    def push_many(
        self, name: bytes, tails: Sequence[bytes], payloads: Sequence[bytes | memoryview], options: bytes
    ) -> Entry:
        """One entry for a whole batch."""
        return entry_of(
            self.keys.bulk_list(name), _bulk_of([b"\x92", *_texts(tails), *_texts(payloads)]) + bulk(options)
        )

    def stage(
        self, name: bytes, head: bytes, tails: Sequence[bytes], payloads: Sequence[bytes | memoryview]
    ) -> Entry:
        """One part of a batch; ``head`` is the head of its ids, empty for the first part."""
        return entry_of(
            self.keys.bulk_list(name), bulk(head) + _bulk_of([b"\x92", *_texts(tails), *_texts(payloads)])
        )

    def unstage(self, name: bytes, head: bytes, tails: Sequence[bytes]) -> Entry:
        """Forget what `stage` stored."""
        return entry_of(self.keys.bulk_list(name), bulk(head) + _bulk_of(_texts(tails)))

    def push_staged(self, name: bytes, head: bytes, tails: Sequence[bytes], options: bytes) -> Entry:
        """Turn the staged parts of a batch into tasks."""
        parts = [b"\x92", *_texts(tails), msgpack.encode(head.decode())]
        return entry_of(self.keys.bulk_list(name), _bulk_of(parts) + bulk(options))

    def pop_many(self, names: Sequence[bytes], nonce: bytes, lease_ms: int, options: PopOptions) -> Entry:
        """``lease_ms`` 0 asks for each task's own."""
        encoded = msgpack.encode(
            replace(options, queues=[self.keys.list_key(name).decode() for name in names])
        )
        wide = entry_of(self.keys.bulk_list(names[0]), bulk(nonce) + bulk(b"%d" % lease_ms) + bulk(encoded))
        wide.weight = len(names)
        return wide

    def schedule(
        self,
        name: bytes,
        queue: bytes,
        before: tuple[bytes, int | None],
        after: tuple[bytes, int | None],
        push: tuple[bytes, bytes, bytes] = (b"", b"", b""),
    ) -> Entry:
        """Change a schedule and push a task for it. ``before``, ``after``: its record and its next tick, ms, before and after.

        ``push``: the tail of the id, the payload and the options of the task. An empty tail pushes nothing: the options
        are only checked.
        """
        times = [b"" if tick is None else b"%d" % tick for tick in (before[1], after[1])]
        args = (name, before[0], times[0], after[0], times[1], *push)
        return entry_of(self.keys.bulk_list(queue), b"".join(map(bulk, args)))

    def move(self, name: bytes, to: bytes, state: str, limit: int, skipped: int) -> Entry:
        """Move at most ``limit`` tasks of a state to the tail of another queue; ``skipped``: how many could not be moved before."""
        args = (self.keys.list_key(to), state.encode(), b"%d" % limit, b"%d" % skipped)
        return entry_of(self.keys.bulk_list(name), b"".join(map(bulk, args)))

    def purge(self, name: bytes, state: str, limit: int, aside: str) -> Entry:
        """Forget at most ``limit`` ready and delayed tasks, or only those of ``state``. ``aside``: `Progress.place`."""
        return entry_of(self.keys.bulk_list(name), bulk(f"{limit} {state} {aside}".rstrip().encode()))

    def delete(self, name: bytes, ids: Sequence[bytes], letter: str, aside: str) -> Entry:
        """Forget tasks that are in the state of this letter."""
        return self.of_lease(name, b" ".join(ids), f"{letter} {aside}".rstrip().encode())

    def undo(self, name: bytes, operation: int, number: int | str, limit: int) -> Entry:
        """Bring back at most ``limit`` of the tasks that are set aside in this list of an operation."""
        return self.of_lease(name, b"%d" % operation, str(number).encode(), b"%d" % limit)

    def audit(self, what: str, serial: int | None, text: bytes = b"") -> Entry:
        """Begin a line of the audit, or change the one with this serial."""
        args = what.encode(), b"" if serial is None else b"%d" % serial, text
        return entry_of(bulk(self.keys.audit), b"".join(map(bulk, args)))

    def order(self, worker: str, order: str, length_ms: int) -> Entry:
        """Tell a worker to run, be quiet or stop, for so long."""
        args = worker.encode(), order.encode(), b"%d" % length_ms
        return entry_of(bulk(self.keys.orders), b"".join(map(bulk, args)))

    def restore(self, name: bytes, task_id: bytes, payload: bytes, task: Task) -> Entry:
        """Store a task of an export again; ``task`` is all but its id and its payload."""
        args = (task_id, payload, msgpack.encode(task))
        return entry_of(self.keys.bulk_list(name), b"".join(map(bulk, args)))

    def ack(self, name: bytes, lease: bytes, result: bytes) -> Entry:
        """``result`` is JSON, or empty for none."""
        key = self.keys.bulk_list(name)
        args = b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(lease), lease, len(result), result)
        return Entry(key, args, len(key) + len(args))

    def of_lease(self, name: bytes, lease: bytes, *more: bytes) -> Entry:
        """An entry of confirm, put back, or any other verb whose first argument is a lease or a task's id."""
        args = b"$%d\r\n%b\r\n" % (len(lease), lease)
        return entry_of(self.keys.bulk_list(name), args + b"".join(map(bulk, more)) if more else args)

    def call(self, verb: str, entries: Sequence[Entry], *, bounded: bool) -> Deferred[list[Any]]:
        """Send the entries in one call; fires with one reply element per entry, in order.

        ``bounded``: a Redis that reads the call after its deadline must refuse it. Fails with `RedisUnavailable`.
        """
        deadline = self._monotonic() + CALL_SECONDS
        keys = b"".join([e.key for e in entries])
        args = b"".join([e.args for e in entries])
        count = len(entries)
        parts = 6 + count + count * VERBS[verb]
        run = self.scripts[verb].run
        replicas = None if verb in NOT_REPLICATED else self._replicas
        common = self._common if verb in ("push", "pushmany", "putback") else self._common_for_all

        def send(head: bytes) -> Deferred[Any]:
            not_after = b"%d" % (
                (self.now_ms() + int((deadline - self._monotonic()) * 1000)) if bounded else 0
            )
            answer = self._link.call(
                b"*%d\r\n%b%b%b%b%b%b"
                % (parts, head, bulk(b"%d" % count), keys, bulk(not_after), common, args)
            )
            return answer if replicas is None else replicas.hold(self._link, answer)

        def retry_late(reply: list[Any]) -> Any:
            if count and reply and reply[0] == b"LATE":
                self.set_clock(reply[1])
                if self._monotonic() < deadline - 0.05:
                    return run(send).addCallback(fail_late)
                raise RedisUnavailable("Redis received the request too late and did not carry it out.")
            return reply

        def fail_late(reply: list[Any]) -> Any:
            if reply and reply[0] == b"LATE":
                raise RedisUnavailable("Redis received the request too late and did not carry it out.")
            return reply

        d = run(send)
        if bounded:
            d.addCallback(retry_late)
        d.addErrback(self._refused)
        return d

    def _refused(self, failure: Any) -> Any:
        """As `raise_domain_error`; also logs an error that means that Redis takes no writes, or none of ours."""
        error = failure.value
        if isinstance(error, ResponseError) and (found := STATE_ERRORS.search(str(error))):
            self._link.report(f"Redis refuses the scripts: {str(error)[found.start() :]}")
        return raise_domain_error(failure)

    @inlineCallbacks
    def session_secret(self) -> Any:
        """What the sessions of the dashboard are signed with, 64 bytes; whoever asks first makes it. b"" where Redis refuses."""
        key = self.keys.session_secret
        try:
            found = yield self._link.command(b"GET", key)
            if not found:
                yield self._link.command(b"SET", key, os.urandom(32).hex(), b"NX")
                found = yield self._link.command(b"GET", key)
        except ResponseError as error:
            log.warn("nobody can sign in to the dashboard: Redis says {why}", why=str(error))
            return b""
        return found or b""

    def on_connect(self) -> Deferred[None]:
        """On each new connection: set the clock, check the schema, load the scripts. Fails when it finds a newer daemon's keys."""
        d = self._link.command(b"TIME")
        d.addCallback(lambda t: self.set_clock(int(t[0]) * 1000 + int(t[1]) // 1000))
        d.addCallback(lambda _: self._check_schema())

        def load_all(_: object) -> Deferred[Any]:
            last: Deferred[Any] | None = None
            for script in self.scripts.values():
                last = self._link.command(b"SCRIPT", b"LOAD", script.text)
                last.addErrback(
                    lambda f: log.warn("Redis did not load a script: {why}", why=f.getErrorMessage())
                )
            assert last is not None
            return last

        return d.addCallback(load_all).addCallback(lambda _: self._test_script())

    @inlineCallbacks
    def _test_script(self) -> Any:
        """Fails where this connection is useless: a replica in the master's place, a user without the right to write."""
        probe = self.scripts["probe"]
        try:
            yield self._link.command(b"EVALSHA", probe.sha, 0, 0, self.keys.space, b"-")
        except ResponseError as error:
            # An error that passes by itself is reported to each request, and logged, elsewhere.
            if error_word(error) not in (*TEMPORARY_REFUSALS, "BUSY", "NOSCRIPT"):
                raise

    @inlineCallbacks
    def _check_schema(self) -> Any:
        """Check that the keys in this Redis are ours; write our schema where there is none."""
        key = self.keys.schema
        found = yield self._link.command(b"GET", key)
        if found is None:
            try:
                yield self._link.command(b"SET", key, SCHEMA, b"NX")
            except ResponseError as error:
                if error_word(error) not in TEMPORARY_REFUSALS:
                    raise
                # A later check writes it, once Redis takes writes.
                return
            if self._schema_seen:
                log.critical(
                    "The keys of the registry have vanished from Redis (FLUSHALL, or another server in its place): "
                    "the tasks that were there are lost"
                )
        self._schema_seen = True
        if found is not None and not found.isdigit():
            raise NewerSchema(
                f"The key {key.decode()} in this Redis is not the registry's: another program uses it."
            )
        if found is not None and int(found) > int(SCHEMA):
            raise NewerSchema(
                f"The keys in this Redis are of version {found.decode()}, newer than this daemon's {SCHEMA.decode()}: "
                "upgrade this daemon."
            )

    @inlineCallbacks
    def check_keys(self) -> Any:
        """Notice when somebody has emptied this Redis: the tasks are gone, and no error of Redis reports it."""
        try:
            yield self._check_schema()
        except NewerSchema as error:
            # The next greeting finds it too, and reports it.
            self._link.retire(str(error))
        except ResponseError as error:
            self._link.report(str(error))

    def sweep(
        self,
        queues: int,
        moves: int,
        died: Callable[[bytes, int, int], None] = lambda name, count, poisoned: None,
    ) -> Deferred[list[int]]:
        """Sweep at most ``queues`` queues that are due, ``moves`` moves per queue and kind; fires with [queues swept, moves made].

        ``died(name, count, poisoned)`` is called for each queue some of whose tasks became dead since the last sweep of any
        daemon, ``poisoned`` of them as poison.
        """
        sent_at = self._monotonic()

        def swept(reply: list[Any]) -> list[int]:
            # Redis's clock may be set at any time. A reply that took long is no evidence of that, and its delay is no reason to
            # set our clock back.
            if self._monotonic() - sent_at < CLOCK_SECONDS and abs(reply[2] - self.now_ms()) > CLOCK_JUMP_MS:
                self.set_clock(reply[2])
            poisoned = dict(zip(reply[3][::2], reply[3][1::2], strict=True))
            for key, count in zip(reply[4::2], reply[5::2], strict=True):
                died(self.name_of(key), int(count), poisoned.pop(key, 0))
            return reply[:2]

        d = self._run_once("sweep", bulk(b"%d" % queues) + bulk(b"%d" % moves), 2)
        return d.addErrback(self._refused).addCallback(swept)

    def probe(self) -> Deferred[None]:
        """Fails when Redis takes no writes, or none from us. A full Redis is no failure: pops still work."""
        return self._run_once("probe", b"", 0).addErrback(self._refused).addCallback(lambda _: None)

    def any_waiting(self, names: Sequence[bytes], priority: int) -> Deferred[int]:
        """How many ready lists of these queues hold something: those of priority 0 and of ``priority``. One command."""
        keys = [self.keys.bulk_list(name) for name in names]
        keys += [bulk(self.keys.ready_list(name, priority)) for name in names]
        return self._link.call(b"*%d\r\n$6\r\nEXISTS\r\n%b" % (1 + len(keys), b"".join(keys)))


class NewerSchema(Exception):
    """The keys in this Redis were written by a newer registry, or by no registry at all."""


def _texts(values: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    # The scripts' decoder does not know msgpack's type for bytes, so this writes an array of msgpack's text type by hand.
    parts: list[bytes | memoryview] = [b"\xdd" + len(values).to_bytes(4, "big")]
    for value in values:
        parts += (b"\xdb" + len(value).to_bytes(4, "big"), value)
    return parts


def _bulk_of(parts: Sequence[bytes | memoryview]) -> bytes:
    # The parts may be large, so their bytes are joined only once.
    return b"".join([b"$%d\r\n" % sum(map(len, parts)), *parts, b"\r\n"])


def encode_options(options: Struct | dict[str, Any] | None) -> bytes:
    """The options of an entry as the scripts read them; empty for none."""
    encoded = msgpack.encode(options) if options else b""
    return b"" if encoded == _NO_OPTIONS else encoded

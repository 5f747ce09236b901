"""All names of keys and channels; no other Python module makes any. The top of ``lua/base.lua`` says what each key holds.

The scripts get the keys of the queues' lists and the space, and make the other names from these in the same way.
"""

from __future__ import annotations

from functools import lru_cache

# Where registries with different prefixes find each other: among the keys of the registry without a prefix.
PREFIXES = b"{registry}prefixes"
UNPREFIXED_SCHEMA = b"{registry}schema"


def bulk(value: bytes) -> bytes:
    """One RESP bulk string."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


class Keys:
    """The names of the keys of one registry; its prefix precedes the name of every queue's list."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = start = prefix.encode()
        # The keys for all queues together begin with this; no queue's list can have such a name.
        self.space = space = b"{%bregistry}" % start
        self.index = space + b"index"
        self.schema = space + b"schema"
        self.schedules = space + b"schedules"
        self.ticks = space + b"ticks"
        self.beats = space + b"beats"
        self.audit = space + b"audit"
        self.tokens = space + b"tokens"
        # The set of the orders, and the channel that tells of a change.
        self.orders = space + b"orders"
        self.session_secret = space + b"session-secret"
        # When each version of a worker was first seen; a mark that some daemon looks at all queues for the charts.
        self.sights = space + b"sights"
        self.stats_look = space + b"stats:look"
        # Channels.
        self.wake = space + b"wake"
        self.ended = space + b"ended"
        self.moved = space + b"moved"
        self.worker = space + b"worker"
        # From a queue's name to its list as a bulk string; cached, because most names recur.
        self.bulk_list = lru_cache(maxsize=4096)(lambda name: bulk(start + name))

    def list_key(self, name: bytes) -> bytes:
        """The ready list of priority 0, which other programs may push to."""
        return self.prefix + name

    def name_of(self, key: bytes) -> bytes:
        """The queue whose list has this key."""
        return key[len(self.prefix) :]

    def ready_list(self, name: bytes, priority: int) -> bytes:
        """The ready list of a priority."""
        return self._of(name, b"%d" % priority) if priority else self.list_key(name)

    def payloads(self, name: bytes) -> bytes:
        """Task id -> payload."""
        return self._of(name, b"t")

    def metas(self, name: bytes) -> bytes:
        """Task id -> its record, all but the payload."""
        return self._of(name, b"m")

    def leases(self, name: bytes) -> bytes:
        """Lease id -> its end, ms."""
        return self._of(name, b"l")

    def aside(self, name: bytes, operation: int, number: int | str) -> bytes:
        """A list of what an operation deleted; the last one is called "left"."""
        return b"undo:" + self._of(name, f"{operation}:{number}".encode())

    def _of(self, name: bytes, kind: bytes) -> bytes:
        return b"{%b%b}%b" % (self.prefix, name, kind)

    def beat(self, process: bytes) -> bytes:
        """The heartbeat of a process."""
        return self.space + b"beat:" + process

    def roster(self, process: bytes) -> bytes:
        """What a process knows of its workers."""
        return self.space + b"roster:" + process

    def metrics(self, daemon: str) -> bytes:
        """The numbers of the processes of a daemon: slot -> numbers."""
        return self.space + b"metrics:" + daemon.encode()

    def stats(self, length: int, at: int) -> bytes:
        """What the charts show of a step of time: label -> numbers. ``length`` and begin of the step in s."""
        return self.space + b"stats:%d:%d" % (length, at)

    def worker_mark(self, what: str, worker: str) -> bytes:
        """A mark that ``what`` was done about a worker; it exists for as long as that must not be repeated."""
        return self.space + f"worker:{what}:{worker}".encode()

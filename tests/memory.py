"""Queues over a store in memory, with a clock that the test advances, and polls of them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from registry.errors import RedisUnavailable
from registry.model import PopOptions
from registry.queue.pollers import HANDOVER_MS
from registry.queue.queues import Queues
from registry.redis.store import Entry

HEAD, TAIL = True, False


class Memory:
    """A store in memory. Calls wait for ``run`` and their answers for ``reply`` while ``slow``."""

    process = b"here"
    colons = 0

    def __init__(self) -> None:
        self.ready = True
        self.slow = False
        self.lists: dict[bytes, deque[tuple[bytes, bytes, int]]] = {}
        self.held: dict[bytes, tuple[bytes, bytes, bytes, int]] = {}
        self.dead: list[tuple[bytes, bytes]] = []
        self.asked: list[tuple[str, int]] = []
        self.error: Exception | None = None
        self._sent: deque[tuple[str, Sequence[Any], Deferred[Any]]] = deque()
        self._done: deque[tuple[Any, Deferred[Any]]] = deque()
        self._raw = itertools.count()

    def away(self) -> RedisUnavailable | None:
        return None if self.ready else RedisUnavailable("gone")

    def now_ms(self) -> int:
        return 1_700_000_000_000

    def once(self, what: str, worker: str, ms: int) -> Deferred[bool]:
        raise AssertionError("no poll of these tests names its worker")

    # An entry carries what it asks as it is; its bytes are counted for the bounds.
    def push(self, name: bytes, tail: bytes, payload: bytes, options: bytes) -> Entry:
        return Entry(name, (tail, payload), 2)  # type: ignore[arg-type]

    def pop(self, name: bytes, nonce: bytes, lease_ms: int, options: bytes) -> Entry:
        assert lease_ms == HANDOVER_MS
        return Entry(name, (nonce,), 2)  # type: ignore[arg-type]

    def pop_many(self, names: Sequence[bytes], nonce: bytes, lease_ms: int, options: PopOptions) -> Entry:
        return Entry(names[0], (names, nonce, options.count), 2)  # type: ignore[arg-type]

    def name_of(self, key: bytes) -> bytes:
        return key

    def queue_of(self, entry: Entry) -> bytes:
        return entry.key

    def ack(self, name: bytes, lease: bytes, result: bytes) -> Entry:
        return self.of_lease(name, lease, result)

    def of_lease(self, name: bytes, lease: bytes, *more: bytes) -> Entry:
        return Entry(name, (lease, *more), 2)  # type: ignore[arg-type]

    def call(self, verb: str, entries: Sequence[Any], *, bounded: bool) -> Deferred[list[Any]]:
        assert bounded == (verb in ("push", "pop", "popmany"))
        answer: Deferred[list[Any]] = Deferred()
        self._sent.append((verb, entries, answer))
        self.asked.append((verb, len(entries)))
        if not self.slow:
            self.run()
            self.reply()
        return answer

    def run(self) -> None:
        """Redis carries out what was sent."""
        while self._sent:
            verb, entries, answer = self._sent.popleft()
            if self.error is not None:
                self._done.append((self.error, answer))
            else:
                self._done.append(([getattr(self, f"_{verb}")(e.key, *e.args) for e in entries], answer))

    def reply(self) -> None:
        """Its answers arrive."""
        while self._done:
            result, answer = self._done.popleft()
            answer.errback(result) if isinstance(result, Exception) else answer.callback(result)

    def put(
        self, name: bytes, payload: bytes, head: bool = TAIL, task: bytes = b"", attempt: int = 0
    ) -> None:
        """A task that comes from elsewhere; without an id it is another program's."""
        line = self.lists.setdefault(name, deque())
        (line.appendleft if head else line.append)((task, payload, attempt))

    def payloads(self, name: bytes) -> list[bytes]:
        return [payload for _, payload, _ in self.lists.get(name, ())]

    def _push(self, name: bytes, tail: bytes, payload: bytes) -> list[Any]:
        head = b"%011x000" % self.now_ms()
        self.put(name, payload, task=head + tail)
        return [0, head]

    def _pop(self, name: bytes, nonce: bytes) -> list[Any]:
        line = self.lists.get(name)
        if not line:
            return [1]
        task, payload, attempt = line.popleft()
        since = 0 if task else -1
        task = task or b"%011xA%012x" % (self.now_ms(), next(self._raw))  # the A of what nobody checked
        self.held[task + b"-" + nonce] = (name, task, payload, attempt + 1)
        return [0, task, payload, attempt + 1, since, HANDOVER_MS, False]

    def _popmany(self, first: bytes, names: Sequence[bytes], nonce: bytes, count: int) -> list[Any]:
        given: list[Any] = []
        for name in names:
            while len(given) < count and self.lists.get(name):
                given.append([*self._pop(name, nonce), 0, name, nonce])
        return [0, *given] if given else [1]

    def _confirm(self, name: bytes, leases: bytes) -> list[Any]:
        return [sum(self.held.pop(lease, None) is None for lease in leases.split())]

    def _putback(self, name: bytes, lease: bytes, *more: bytes) -> list[Any]:
        if lease not in self.held:
            return [1]
        _, task, payload, attempt = self.held.pop(lease)
        self.put(name, payload, HEAD, task, attempt - 1)
        return [0]

    def _bury(self, name: bytes, lease: bytes, reason: bytes) -> list[Any]:
        self.dead.append((self.held.pop(lease)[2], reason))
        return [0]


class World:
    """Queues over a `Memory`, on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Memory()
        self.queues = Queues(
            self.store,  # type: ignore[arg-type]
            self.clock.callLater,
            lambda b: b[:1] != b"?",
            self.clock.seconds,
        )

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        # Answers ask again: their questions go at the end of the next turn.
        for _ in range(10):
            self.clock.advance(0)

    def pop(self, name: bytes = b"q", wait: float = 10.0) -> Poll:
        return Poll(self, name, wait)

    def parked(self, count: int, name: bytes = b"q") -> list[Poll]:
        polls = [self.pop(name) for _ in range(count)]
        self.turn()
        assert self.queues.wait_lists.parked == count
        return polls

    def push(self, payload: bytes, name: bytes = b"q") -> Deferred[Any]:
        pushed = self.queues.push(name, payload)
        self.turn()
        return pushed

    def pops(self) -> int:
        """How many questions were asked so far."""
        return sum(count for verb, count in self.store.asked if verb == "pop")

    def settled(self) -> bool:
        return self.queues.settled

    def nothing_left(self) -> bool:
        wait_lists = self.queues.wait_lists
        return not wait_lists.lists and not wait_lists.parked and not self.clock.getDelayedCalls()


class Poll:
    """One pop; ``got`` is the payload, ``None`` for nothing, an exception, or ``...`` while it waits."""

    def __init__(self, world: World, name: bytes, wait: float) -> None:
        self.got: Any = ...
        self.taken: Any = None
        self.reply = world.queues.polls.pop(name, wait)
        self.reply.addCallbacks(self._on_result, lambda failure: setattr(self, "got", failure.value))

    def _on_result(self, taken: Any) -> None:
        self.taken = taken
        self.got = taken and taken.payload

    @property
    def waits(self) -> bool:
        return self.got is ...

    def hang_up(self) -> None:
        self.reply.cancel()

"""What the charts show, as it is stored: sums by step of time and label, and when each version of a worker was first seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import msgpack
from twisted.internet.defer import Deferred, inlineCallbacks

from registry.redis.commands import Commands
from registry.redis.faults import raise_domain_error
from registry.redis.keys import bulk

# Index of a number -> number.
Numbers = dict[int, int]
# First sights of versions that are kept, the latest of them.
MAX_SIGHTS = 1000
_decode = msgpack.Decoder(list[int]).decode


class StatsStore(Commands):
    """The part of the store for the charts."""

    def add_stats(
        self, number: int, age_ms: int, lengths: Sequence[int], numbers: Mapping[bytes, Numbers]
    ) -> Deferred[Any]:
        """Add these numbers by label, which were counted ``age_ms`` ago, to the steps of all lengths.

        ``number``: of this call of this process; a call with the same or a lower one is ignored. 0 for one without numbers.
        ``lengths``: the length of a step and how long it is kept, s, and so on.
        """
        args = [b"%d" % age_ms, self.process, b"%d" % number if number else b"", msgpack.encode(lengths)]
        for label, one in numbers.items():
            args += (label, msgpack.encode([part for pair in one.items() for part in pair]))
        d = self._run_once("stats", b"".join(map(bulk, args)), len(args))
        return d.addErrback(raise_domain_error)

    @inlineCallbacks
    def stats(self, steps: Sequence[tuple[int, int]], labels: Sequence[bytes]) -> Any:
        """Fires with the numbers of each of these labels, for each step (its length and its begin, s); None for those without."""
        words = [(b"HMGET", self.keys.stats(*step), *labels) for step in steps]
        found = (yield self._ask_each(*words)) if words else []
        return [[None if one is None else _numbers(one) for one in row] for row in found]

    def may_look(self, ms: int) -> Deferred[bool]:
        """Whether no daemon has looked at all queues for the charts in the last ``ms``; they all look at the same ones."""
        d = self._ask(b"SET", self.keys.stats_look, self.process, b"NX", b"PX", ms)
        return d.addCallback(lambda reply: reply is not None)

    def rest_from_looking(self, ms: int) -> Deferred[Any]:
        """No daemon looks at all queues in the next ``ms``."""
        return self._ask(b"SET", self.keys.stats_look, self.process, b"PX", ms)

    @inlineCallbacks
    def add_sights(self, sights: Mapping[bytes, int]) -> Any:
        """Store when these were first seen, ms; those that are there already keep their time."""
        key = self.keys.sights
        pairs = [part for sight, at in sights.items() for part in (at, sight)]
        yield self._ask_each((b"ZADD", key, b"NX", *pairs), (b"ZREMRANGEBYRANK", key, 0, -MAX_SIGHTS - 1))

    @inlineCallbacks
    def sights(self) -> Any:
        """Fires with when each was first seen, ms, the latest last."""
        found = yield self._ask(b"ZRANGE", self.keys.sights, 0, -1, b"WITHSCORES")
        return {sight: int(float(at)) for sight, at in zip(found[::2], found[1::2], strict=True)}


def _numbers(stored: bytes) -> Numbers:
    if not stored:
        return {}
    flat = _decode(stored)
    return dict(zip(flat[::2], flat[1::2], strict=True))

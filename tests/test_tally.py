"""What is counted for each queue: labels of families, prefixes with colons, and the bound."""

from __future__ import annotations

import pytest

from registry.queue.tally import MAX_QUEUES, OTHER, Tally
from registry.redis.keys import Keys
from registry.redis.store import Entry, entry_of

NOW_MS = 1_700_000_000_000


class Names:
    """The part of the store that a tally uses."""

    def __init__(self, prefix: str) -> None:
        self.keys = Keys(prefix)
        self.colons = prefix.count(":")

    def now_ms(self) -> int:
        return NOW_MS

    def name_of(self, key: bytes) -> bytes:
        return self.keys.name_of(key)

    def queue_of(self, entry: Entry) -> bytes:
        return self.name_of_bulk(entry.key)

    def name_of_bulk(self, key: bytes) -> bytes:
        return self.keys.name_of(key.partition(b"\r\n")[2][:-2])


def counted(tally: Tally, keys: Keys, *names: bytes) -> dict[bytes, int]:
    entries = [entry_of(keys.bulk_list(name), b"") for name in names]
    tally.replied("push", entries, [[0, b"head"]] * len(names), 0.001)
    return {label: one.pushed for label, one in tally.queues.items()}


@pytest.mark.parametrize("prefix", ["", "app", "app:", "a:b:"])
def test_a_family_is_one_label_and_other_names_are_their_own(prefix: str) -> None:
    names = Names(prefix)
    tally = Tally(names)
    found = counted(tally, names.keys, b"z", b"r:1", b"r:22", b"r:3:4", b"z", b"app", b"a")
    assert found == {b"z": 2, b"r:*": 3, b"app": 1, b"a": 1}


def test_past_two_hundred_the_rest_is_one_label() -> None:
    names = Names("")
    tally = Tally(names)
    several = [b"q%d" % number for number in range(MAX_QUEUES + 50)]
    for _ in range(2):
        found = counted(tally, names.keys, *several)
    assert len(found) == MAX_QUEUES + 1
    assert found.pop(OTHER) == 100
    assert set(found) == set(several[:MAX_QUEUES]) and set(found.values()) == {2}


def test_a_wait_begins_when_the_task_became_ready() -> None:
    names = Names("")
    tally = Tally(names)
    entries = [entry_of(names.keys.bulk_list(b"q"), b"")] * 6

    def popped(since: int, pushed_ms: int = NOW_MS - 7_000, *more: object) -> list[object]:
        return [0, b"%011x0000000000000" % pushed_ms, b"1", 1, since, 60_000, None, *more]

    replies = [
        popped(0),  # since its push
        popped(0),
        popped(NOW_MS - 30),  # since a delay ended
        popped(0, NOW_MS + 50),  # the clock of Redis is ahead
        popped(-1),  # an element of another program
        popped(-1, NOW_MS, 1, b"q", b"nonce"),  # a repeat of an earlier pop
    ]
    tally.replied("pop", entries, replies, 0.001)
    tally.replied("pop", entries[:2], [[1], [2]], 0.001)
    assert tally.queues[b"q"].started == 5
    assert (sum(tally.waits.counts), tally.waits.total) == (4, 14_030)
    by_bound = dict(zip((*tally.waits.bounds, 0), tally.waits.counts, strict=True))
    assert {bound: count for bound, count in by_bound.items() if count} == {5: 1, 50: 1, 10_000: 2}
    sizes = tally.group_sizes
    assert (sum(sizes.counts), sizes.total) == (2, 8)

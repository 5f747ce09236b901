"""How many tasks each worker finished and failed lately, and which worker fails what the others finish.

Counted by the process that saw the acks and fails, per worker and queue (or family, for names with a colon), for the current five
minutes and the five before. Only leases of workers with a name are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

# The length of a period, s. What is told is of the current period and the one before.
PERIOD = 300.0
# One period has at most this many pairs of a worker and a queue; more are not counted.
MAX_PAIRS = 10_000
# A worker fails if it failed this many, and more than this share of what ended there; the others finished at least this many, and
# this share of theirs.
FEWEST_FAILS, FAILS_ABOVE = 5, 0.5
FEWEST_OTHERS, OTHERS_FINISH = 5, 0.9

# A worker and the label of a queue.
Pair = tuple[str, bytes]
# How many of its tasks are done, and how many attempts failed.
Ended = tuple[int, int]


class WorkerCounts:
    """The counts of one process."""

    def __init__(self) -> None:
        self._current: dict[Pair, list[int]] = {}
        self._before: dict[Pair, list[int]] = {}
        self._turns_at: float | None = None

    def add(self, worker: str, label: bytes, *, done: int = 0, failed: int = 0) -> None:
        """Add tasks of this worker that have ended."""
        found = self._current.get((worker, label))
        if found is None:
            if len(self._current) >= MAX_PAIRS:
                return
            found = self._current[worker, label] = [0, 0]
        found[0] += done
        found[1] += failed

    def recent(self, now: float) -> dict[str, list[tuple[bytes, int, int]]]:
        """By worker: each queue, and how many were done and failed there. To be called at least once in a period."""
        if self._turns_at is None:
            self._turns_at = now + PERIOD
        elif now >= self._turns_at:
            missed = now >= self._turns_at + PERIOD
            self._before, self._current = {} if missed else self._current, {}
            self._turns_at = now + PERIOD
        found: dict[str, list[tuple[bytes, int, int]]] = {}
        for worker, label in dict.fromkeys((*self._current, *self._before)):
            pair = worker, label
            done, failed = map(
                sum, zip(self._current.get(pair, (0, 0)), self._before.get(pair, (0, 0)), strict=True)
            )
            found.setdefault(worker, []).append((label, done, failed))
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """A worker fails what others finish. ``queue``: a queue or a family; ``others``: how many other workers there are."""

    queue: bytes
    done: int
    failed: int
    others: int
    others_done: int
    others_failed: int


def judge(ended: Mapping[str, Mapping[bytes, Ended]]) -> dict[str, Verdict]:
    """The workers that fail what others finish, each with the queue where it failed most.

    ``ended``: by worker and queue, over all daemons. Workers that fail as much as the one in question are none of the others.
    """
    by_queue: dict[bytes, dict[str, Ended]] = {}
    for worker, queues in ended.items():
        for queue, counts in queues.items():
            by_queue.setdefault(queue, {})[worker] = counts
    found: dict[str, Verdict] = {}
    for queue, workers in by_queue.items():
        for worker, verdict in _of_queue(queue, workers):
            if worker not in found or found[worker].failed < verdict.failed:
                found[worker] = verdict
    return found


def _of_queue(queue: bytes, workers: Mapping[str, Ended]) -> Iterator[tuple[str, Verdict]]:
    suspects = [worker for worker, counts in workers.items() if _fails(counts)]
    others = [counts for worker, counts in workers.items() if worker not in suspects]
    done, failed = _sum(others)
    if done + failed < FEWEST_OTHERS or done < OTHERS_FINISH * (done + failed):
        return
    for worker in suspects:
        yield worker, Verdict(queue, *workers[worker], len(others), done, failed)


def _fails(counts: Ended) -> bool:
    done, failed = counts
    return failed >= FEWEST_FAILS and failed > FAILS_ABOVE * (done + failed)


def _sum(counts: Iterable[Ended]) -> Ended:
    done = failed = 0
    for one in counts:
        done, failed = done + one[0], failed + one[1]
    return done, failed

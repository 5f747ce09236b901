"""Alternating rounds (A B A B …), medians and ratios: other load on the machine then affects both alike."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rig import accounting
from rig.programs import Server

# Confirms leave within 100 ms of an answer, and belong to it.
SETTLE_SECONDS = 0.4


@dataclass(frozen=True)
class Row:
    """A line of the table. ``measured`` and ``goal`` have the same unit; the goal is a maximum unless ``at_least``, None for none."""

    work: str
    measured: float
    goal: float | None
    unit: str = "×"
    at_least: bool = False
    detail: str = ""

    @property
    def met(self) -> bool:
        if self.goal is None:
            return True
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    def __str__(self) -> str:
        result = f"{self.measured:.2f} {self.unit}  {self.work}"
        if self.goal is not None:
            bound = "at least" if self.at_least else "at most"
            result += f": {bound} {self.goal:g} {self.unit}, {'met' if self.met else 'MISSED'}"
        return result + (f"\n    {self.detail}" if self.detail else "")


def report(rows: Sequence[Row]) -> None:
    """Print the rows. With BENCHMARK_JSON, append them to that file too, for ``table.py``."""
    for row in rows:
        print(row, flush=True)
    path = os.environ.get("BENCHMARK_JSON")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(asdict(row)) + "\n")


def options(text: str, rounds: int = 7, seconds: float = 4) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"alternating rounds [{rounds}]")
    parser.add_argument("--seconds", type=float, default=seconds, help=f"length of a round [{seconds:g}]")
    parser.add_argument("--connections", type=int, default=50, help="keep-alive connections [50]")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it runs")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.seconds = 1, 1.0
    return given


@dataclass
class Cost:
    """CPU of one piece of work, microseconds a unit: of the server, of its Redis."""

    shares: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.shares.values())


def measure(roots: Mapping[str, int], work: Callable[[], int], settle: float = SETTLE_SECONDS) -> Cost:
    """``work`` returns how many units it did; what the programs used meanwhile is shared out over them."""
    before = accounting.cpus(roots)
    count = work()
    time.sleep(settle)
    after = accounting.cpus(roots)
    if not count:
        raise RuntimeError("a round did no work")
    return Cost({name: (after[name] - before[name]) * 1e6 / count for name in roots})


def alternate(servers: Sequence[Server], rounds: int, one_round: Callable[[Server], None]) -> None:
    """So many rounds on each server in turn; the servers are closed at the end."""
    try:
        for _ in range(rounds):
            for server in servers:
                one_round(server)
    finally:
        for server in servers:
            server.close()


class Costs:
    """Costs by contender and kind of work, over rounds."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[Cost]] = {}

    def add(self, who: str, what: str, cost: Cost) -> None:
        self._found.setdefault((who, what), []).append(cost)

    def has(self, who: str, what: str) -> bool:
        return (who, what) in self._found

    def median(self, who: str, what: str) -> float:
        return statistics.median(cost.total for cost in self._found[who, what])

    def describe(self, who: str, what: str) -> str:
        """``registry 30.1 µs (server 20.0 + redis 10.1)``"""
        found = self._found[who, what]
        shares = [
            f"{name} {statistics.median(cost.shares[name] for cost in found):.1f}" for name in found[0].shares
        ]
        return f"{who} {self.median(who, what):.1f} µs ({' + '.join(shares)})"

    def ratio(self, above: tuple[str, str], below: tuple[str, str]) -> float:
        """Median of the ratios of each pair of rounds that followed one another."""
        pairs = zip(self._found[above], self._found[below], strict=False)
        return statistics.median(a.total / b.total for a, b in pairs)

    def spread(self, above: tuple[str, str], below: tuple[str, str]) -> str:
        ratios = [a.total / b.total for a, b in zip(self._found[above], self._found[below], strict=False)]
        return f"{min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds"

    def row(
        self,
        work: str,
        above: tuple[str, str],
        below: tuple[str, str],
        goal: float | None,
        at_least: bool = False,
    ) -> Row:
        detail = f"{self.describe(*above)}; {self.describe(*below)}; {self.spread(above, below)}"
        return Row(work, self.ratio(above, below), goal, "×", at_least, detail)

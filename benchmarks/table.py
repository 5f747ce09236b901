"""Every row of the table in docs/performance.md, each from its own benchmark, as Markdown.

python benchmarks/table.py [--rounds 7] [--seconds 4] [--only push_pop,cycle]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rig.rounds import Row

HERE = Path(__file__).parent
# Some of these ignore --rounds.
PARTS = ("push_pop", "short_queues", "cycle", "parked", "handoff", "fsync", "processes", "tokens")


def rows_of(part: str, options: list[str]) -> list[Row]:
    with tempfile.NamedTemporaryFile("r") as file:
        subprocess.run(
            [sys.executable, str(HERE / f"{part}.py"), *options],
            env={**os.environ, "BENCHMARK_JSON": file.name},
            check=False,
        )
        return [Row(**json.loads(line)) for line in file]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument(
        "--only", default=",".join(PARTS), help="run only these benchmarks, separated by commas"
    )
    parser.add_argument("--quick", action="store_true", help="one short round each, to see that they run")
    given = parser.parse_args()
    options = ["--quick"] if given.quick else ["--rounds", str(given.rounds), "--seconds", str(given.seconds)]
    lines = ["| work | measured | goal | | shown by | of it |", "|---|---|---|---|---|---|"]
    for part in given.only.split(","):
        for row in rows_of(part, options if part != "parked" else options[:1] if given.quick else []):
            bound = "" if row.goal is None else f"{'≥' if row.at_least else '≤'} {row.goal:g} {row.unit}"
            verdict = "" if row.goal is None else "met" if row.met else "**missed**"
            lines.append(
                f"| {row.work} | {row.measured:.2f} {row.unit} | {bound} | {verdict} | `{part}.py` | {row.detail} |"
            )
    print("\n".join(lines))


if __name__ == "__main__":
    main()

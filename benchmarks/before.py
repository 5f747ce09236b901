"""CPU of this checkout against that of an earlier commit, in one run: push, pop, leased cycle and batches.

python benchmarks/before.py [COMMIT] [--rounds 7] [--seconds 4] [--connections 50]

COMMIT is any revision that git accepts [HEAD]; HEAD measures the uncommitted changes. A ratio below 1 means that this
checkout is cheaper.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import cycle
import push_pop
from rig.programs import ROOT, Registry, Server, start
from rig.rounds import Costs, alternate, options, parse, report

KINDS = ("push", "pop", "cycle", "batches")


def one_round(server: Server, costs: Costs, given: argparse.Namespace) -> None:
    push_pop.one_round(server, costs, given)
    for kind in ("cycle", "batches"):
        cycle.one_round(server, kind, costs, given)


def main() -> None:
    parser = options(str(__doc__))
    parser.add_argument("commit", nargs="?", default="HEAD", help="the commit to compare with [HEAD]")
    given = parse(parser)
    with tempfile.TemporaryDirectory(prefix="rb") as folder:
        before = Path(folder) / "before"
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", "--quiet", str(before), given.commit],
            check=True,
        )
        try:
            compare(before, given)
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(before)], check=True)


def compare(before: Path, given: argparse.Namespace) -> None:
    servers = start(partial(Registry, name="now"), partial(Registry, checkout=before, name="before"))
    costs = Costs()
    alternate(servers, given.rounds, lambda server: one_round(server, costs, given))
    report(
        [costs.row(f"{kind} against {given.commit}", ("now", kind), ("before", kind), None) for kind in KINDS]
    )


if __name__ == "__main__":
    main()

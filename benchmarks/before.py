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

from cycle import batches, single
from rig import load, sockets
from rig.programs import ROOT, Registry, Server, start
from rig.rounds import Costs, measure, options, parse, tell

KINDS = ("push", "pop", "cycle", "batches")
QUEUE = "zoneCheck"


def fixed(
    server: Server, method: str, path: str, body: bytes, given: argparse.Namespace, seconds: float
) -> int:
    done = load.fixed(server.port, method, path, body, given.connections, seconds)
    if done.failed:
        raise RuntimeError(f"{server.name}: {done.failed} of {done.requests} requests failed")
    return done.requests


def driven(server: Server, kind: str, given: argparse.Namespace) -> int:
    from cycle import Count

    count = Count()
    talks = [(single if kind == "cycle" else batches)(count) for _ in range(given.connections)]
    sockets.drive(server.port, talks, seconds=given.seconds)
    return count.done


def one_round(server: Server, costs: Costs, given: argparse.Namespace) -> None:
    push = partial(fixed, server, "PUT", f"/api/pushTask/{QUEUE}", load.task(), given, given.seconds)
    pop = partial(fixed, server, "GET", f"/api/popTask/{QUEUE}?wait=0", b"", given, given.seconds / 2)
    costs.add(server.name, "push", measure(server.roots, push))
    costs.add(server.name, "pop", measure(server.roots, pop))
    line = sockets.Line(server.port)
    line.ask("DELETE", f"/api/queues/{QUEUE}")
    line.socket.close()
    for kind in ("cycle", "batches"):
        costs.add(server.name, kind, measure(server.roots, partial(driven, server, kind, given)))
    server.trim_log()


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
    try:
        for _ in range(given.rounds):
            for server in servers:
                one_round(server, costs, given)
    finally:
        for server in servers:
            server.close()
    tell(
        [costs.row(f"{kind} against {given.commit}", ("now", kind), ("before", kind), None) for kind in KINDS]
    )


if __name__ == "__main__":
    main()

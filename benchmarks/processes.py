"""CPU of a push, leased pop and ack with two processes compared with one, and how the two share the work.

python benchmarks/processes.py [--rounds 7] [--seconds 4] [--connections 50]
"""

from __future__ import annotations

import argparse
from functools import partial

from cycle import Count, single
from rig import accounting, sockets
from rig.programs import Registry
from rig.rounds import Costs, Row, measure, options, parse, report


def cycles_done(server: Registry, given: argparse.Namespace) -> int:
    count = Count()
    talks = [single(count) for _ in range(given.connections)]
    sockets.drive(server.port, talks, seconds=given.seconds)
    return count.done


def main() -> None:
    given = parse(options(str(__doc__)))
    servers = {"one": Registry(), "two": Registry("--processes", "2")}
    costs = Costs()
    used: dict[int, float] = {}
    try:
        family = accounting.family(servers["two"].pid)
        if len(family) < 2:
            print("This daemon does not start a second process with --processes 2: nothing to measure.")
            return
        for _ in range(given.rounds):
            for name, server in servers.items():
                before = {pid: accounting.cpu(pid) for pid in family[1:]}
                costs.add(name, "cycle", measure(server.roots, partial(cycles_done, server, given)))
                if name == "two":
                    for pid in before:
                        used[pid] = used.get(pid, 0) + accounting.cpu(pid) - before[pid]
                server.trim_log()
    finally:
        for server in servers.values():
            server.close()
    # Count the processes that used more than a tenth of the busiest one's CPU; the parent, which only watches, used less.
    shares = sorted(share for share in used.values() if share > max(used.values()) / 10)
    parts = ", ".join(f"{100 * share / sum(shares):.0f} %" for share in shares)
    report(
        [
            costs.row(
                "two processes, CPU of push, leased pop, ack against one",
                ("two", "cycle"),
                ("one", "cycle"),
                1.1,
            ),
            Row(
                "two processes: the lesser one's share of the CPU",
                100 * shares[0] / sum(shares) if len(shares) > 1 else 0,
                35,
                "%",
                True,
                parts,
            ),
        ]
    )


if __name__ == "__main__":
    main()

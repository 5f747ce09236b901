"""The cost of the 2018 program's real workload, one short-lived queue per task, compared with the same pushes and pops on
one queue.

python benchmarks/short_queues.py [--rounds 7] [--seconds 4] [--connections 50]
"""

from __future__ import annotations

import argparse

from rig import load
from rig.programs import Registry, Server, Webdis, start
from rig.rounds import Costs, measure, options, parse, report

# At most so many pushed tasks are not popped yet when wrk stops. Each round uses new queues, so they add up.
LEFT = 64 + 64
PATHS = {
    ("registry", "one queue"): ("/api/pushTask/zoneCheck", "/api/popTask/zoneCheck?wait=0"),
    ("registry", "a queue a task"): (
        "/api/pushTask/queue_results:b5ccf1d2-%d",
        "/api/popTask/queue_results:b5ccf1d2-%d?wait=0",
    ),
    ("webdis", "one queue"): ("/LPUSH/zoneCheck", "/RPOP/zoneCheck"),
    ("webdis", "a queue a task"): ("/LPUSH/queue_results:b5ccf1d2-%d", "/RPOP/queue_results:b5ccf1d2-%d"),
}


def one_round(server: Server, what: str, costs: Costs, given: argparse.Namespace) -> None:
    push, pop = PATHS[server.name, what]

    def work() -> int:
        done = load.turns(server.port, push, pop, load.task(), given.connections, given.seconds)
        return done.served(server.name)

    costs.add(server.name, what, measure(server.roots, work))
    assert server.redis is not None
    left = server.redis.command("DBSIZE")
    if server.name == "registry" and left > 4 * given.rounds * LEFT:
        print(f"{left} keys are left in Redis: drained queues leave something behind.")
    server.trim_log()


def main() -> None:
    given = parse(options(str(__doc__)))
    servers = {server.name: server for server in start(Registry, Webdis)}
    costs = Costs()
    try:
        for _ in range(given.rounds):
            for who, what in PATHS:
                if who in servers:
                    one_round(servers[who], what, costs, given)
    finally:
        for server in servers.values():
            server.close()
    rows = [
        costs.row(
            "one short-lived queue a task, against one queue",
            ("registry", "a queue a task"),
            ("registry", "one queue"),
            1.3,
        )
    ]
    if "webdis" in servers:
        for what in ("one queue", "a queue a task"):
            title = f"push and pop in turn, {what}, against webdis"
            rows.append(costs.row(title, ("registry", what), ("webdis", what), None))
    report(rows)


if __name__ == "__main__":
    main()

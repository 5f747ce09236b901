"""CPU of a push and of a pop, daemon and Redis together, compared with webdis (one Redis command per request) and the
program of 2018.

python benchmarks/push_pop.py [--rounds 7] [--seconds 4] [--connections 50]
"""

from __future__ import annotations

import argparse
import contextlib

from rig import load
from rig.programs import Express, Registry, Server, Webdis, start
from rig.rounds import Costs, Row, alternate, measure, options, parse, report
from rig.sockets import Line

PATHS = {
    "registry": ("/api/pushTask/zoneCheck", "/api/popTask/zoneCheck?wait=0"),
    "webdis": ("/LPUSH/zoneCheck", "/RPOP/zoneCheck"),
    "2018": ("/api/pushTask/zoneCheck", "/api/popTask/zoneCheck"),
}


def one_round(server: Server, costs: Costs, given: argparse.Namespace) -> None:
    """Push for the whole time, then pop the pushed tasks for half of it."""
    assert server.redis is not None
    ours = isinstance(server, Registry)
    push, pop = PATHS["registry" if ours else server.name]

    def work(method: str, path: str, body: bytes, seconds: float) -> int:
        return load.fixed(server.port, method, path, body, given.connections, seconds).served(server.name)

    costs.add(
        server.name, "push", measure(server.roots, lambda: work("PUT", push, load.task(), given.seconds))
    )
    if not ours:
        # A pop that is more than twice as fast as a push would empty the queue.
        server.redis.pipeline([("LPUSH", "zoneCheck", *[load.task()] * 1000)] * 50)
    costs.add(server.name, "pop", measure(server.roots, lambda: work("GET", pop, b"", given.seconds / 2)))
    if not server.redis.command("LLEN", "zoneCheck"):
        print(f"The queue of {server.name} ran empty: some of its pops had nothing to do.")
    if ours:
        with contextlib.closing(Line(server.port)) as line:
            line.ask("DELETE", "/api/queues/zoneCheck")
    else:
        server.redis.command("DEL", "zoneCheck")
    server.trim_log()


def main() -> None:
    given = parse(options(str(__doc__)))
    servers = start(Registry, Webdis, Express)
    costs = Costs()
    alternate(servers, given.rounds, lambda server: one_round(server, costs, given))
    rows: list[Row] = []
    mine = "registry"
    for what, goal in (("push", 1.0), ("pop", 1.2)):
        if costs.has("webdis", what):
            rows.append(costs.row(f"{what} against webdis", (mine, what), ("webdis", what), goal))
        if costs.has("2018", what):
            times = 12.0 if what == "push" else None
            rows.append(
                costs.row(f"{what}: how much less than in 2018", ("2018", what), (mine, what), times, True)
            )
        if not costs.has("webdis", what) and not costs.has("2018", what):
            print(f"{what}: {costs.describe(mine, what)}, with no peer to compare it to")
    report(rows)


if __name__ == "__main__":
    main()

"""Throughput and p99 of pushes and pops against the number of connections, the size of a task and the depth of the
queue, compared with webdis; saved as pictures.

python benchmarks/curves.py [--seconds 2] [--folder docs]

The pictures need matplotlib (pip install matplotlib); without it the numbers are only printed. The daemon is one process
on one core, and the load generator uses the other cores. Throughput therefore depends on the machine as much as on the
daemon: compare the shapes of the curves rather than their heights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from depth import fill
from push_pop import PATHS
from rig import load, pictures
from rig.programs import Registry, Server, Webdis, start
from rig.rounds import options, parse
from rig.sockets import Line

CONNECTIONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
SIZES = (64, 256, 1024, 4096, 16384, 65536, 262144)
DEPTHS = (0, 1_000, 10_000, 100_000, 1_000_000)
Points = dict[str, list[tuple[float, float, float]]]


def push(server: Server, connections: int, size: int, seconds: float) -> load.Load:
    return load.fixed(server.port, "PUT", PATHS[server.name][0], load.task(size), connections, seconds)


def pop(server: Server, connections: int, seconds: float) -> load.Load:
    return load.fixed(server.port, "GET", PATHS[server.name][1], b"", connections, seconds)


def empty(server: Server) -> None:
    assert server.redis is not None
    if server.name == "registry":
        with closing(Line(server.port)) as line:
            line.ask("DELETE", "/api/queues/zoneCheck")
    else:
        server.redis.command("DEL", "zoneCheck")
    server.trim_log()


def deepen(server: Server, depth: int) -> None:
    """Push until the queue has ``depth`` tasks; it is never made shorter."""
    assert server.redis is not None
    missing = depth - int(server.redis.command("LLEN", "zoneCheck"))
    if server.name == "registry":
        with closing(Line(server.port)) as line:
            fill(line, "zoneCheck", max(0, missing))
    else:
        for _ in range(max(0, missing) // 1000):
            server.redis.command("LPUSH", "zoneCheck", *[load.task()] * 1000)


def curve(
    servers: list[Server],
    values: tuple[int, ...],
    measured: Callable[[Server, int], list[tuple[str, load.Load]]],
) -> Points:
    """Measure every server in turn for each value, so that other work on the machine affects all of them alike."""
    points: Points = {}
    for value in values:
        for server in servers:
            for what, done in measured(server, value):
                name = f"{server.name}, {what}"
                points.setdefault(name, []).append((value, done.requests / done.seconds, done.p99))
                print(
                    f"{value:>8}  {name}: {done.requests / done.seconds:.0f}/s, p99 {done.p99:.2f} ms",
                    flush=True,
                )
    return points


def main() -> None:
    parser = options(str(__doc__), seconds=2)
    parser.add_argument("--folder", default="docs", help="folder for the pictures [docs]")
    given = parse(parser)

    def some(values: tuple[int, ...]) -> tuple[int, ...]:
        return values[:2] if given.quick else values

    def by_connections(server: Server, connections: int) -> list[tuple[str, load.Load]]:
        pushed = push(server, connections, 60, given.seconds)
        popped = pop(server, connections, given.seconds / 2)
        empty(server)
        return [("push", pushed), ("pop", popped)]

    def by_size(server: Server, size: int) -> list[tuple[str, load.Load]]:
        pushed = push(server, given.connections, size, given.seconds)
        popped = pop(server, given.connections, given.seconds / 2)
        empty(server)
        return [("push", pushed), ("pop", popped)]

    def by_depth(server: Server, depth: int) -> list[tuple[str, load.Load]]:
        deepen(server, depth)
        pushed = push(server, given.connections, 60, given.seconds)
        popped = pop(server, given.connections, given.seconds / 2)
        return [("push", pushed), ("pop", popped)]

    drawn: list[tuple[str, str, str, Points]] = []
    servers = start(Registry, Webdis)
    try:
        drawn.append(
            (
                "connections",
                "60-byte tasks",
                "connections",
                curve(servers, some(CONNECTIONS), by_connections),
            )
        )
        title = f"{given.connections} connections"
        drawn.append(("sizes", title, "bytes of a task", curve(servers, some(SIZES), by_size)))
        drawn.append(("depths", title, "tasks in the queue before", curve(servers, some(DEPTHS), by_depth)))
    finally:
        for server in servers:
            server.close()
    if importlib.util.find_spec("matplotlib") is None:
        print("No pictures: matplotlib is not installed (pip install matplotlib).")
        return
    Path(given.folder).mkdir(exist_ok=True)
    for name, title, x, points in drawn:
        pictures.save_curves(str(Path(given.folder) / f"curve-{name}.png"), title, x, points)


if __name__ == "__main__":
    main()

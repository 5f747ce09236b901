"""The cost of a full Redis, compared with an empty one: push, pop and ack with a million ready tasks, 100,000 leased,
100,000 delayed and 10,000 queues; cancel and ttl in the middle of the million; queries; bytes of memory per task.

python benchmarks/depth.py [--rounds 5] [--ready 1000000] [--tasks 10000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import closing
from functools import partial

from cycle import LEASE
from rig import load, sockets
from rig.programs import Registry
from rig.rounds import Costs, Row, measure, options, parse, report
from rig.sockets import Line

BIG = "zoneCheck"
CALL = 1000
TTL_SECONDS = 4


def fill(line: Line, queue: str, count: int, query: str = "") -> list[str]:
    """Push ``count`` tasks, a thousand per request. Returns their ids."""
    ids: list[str] = []
    for at in range(0, count, CALL):
        many = min(CALL, count - at)
        body = b"[" + b",".join([load.task()] * many) + b"]"
        ids += json.loads(line.ask("PUT", f"/api/pushTasks/{queue}{query}", body))["ids"]
    return ids


def fill_all(full: Registry, given: argparse.Namespace) -> tuple[float, list[str]]:
    """Fill one Redis. Returns the bytes per ready task, and ids from the middle of the big queue."""
    assert full.redis is not None
    with closing(Line(full.port)) as line:
        used = int(full.redis.info("memory")["used_memory"])
        fill(line, BIG, given.ready // 2)
        middle = fill(line, BIG, given.tasks)
        fill(line, BIG, given.ready - given.ready // 2 - given.tasks)
        each = (int(full.redis.info("memory")["used_memory"]) - used) / given.ready
        fill(line, BIG, given.ready // 10, "?delay=86400")
        fill(line, "held", given.ready // 10)
        for _ in range(0, given.ready // 10, 100):
            line.ask("GET", "/api/popTasks/held?count=100&lease=40000&wait=0")
    numbers = list(range(given.ready // 100))
    run(full, [_pushes([f"few:{n}" for n in part]) for part in _deal(numbers, given.connections)])
    return each, middle


def _deal(things: list[int], hands: int) -> list[list[int]]:
    return [things[at::hands] for at in range(hands)]


def _pushes(queues: list[str]) -> sockets.Talk:
    for queue in queues:
        yield sockets.request("PUT", f"/api/pushTask/{queue}", load.task())


def _pops(count: int, leases: list[bytes]) -> sockets.Talk:
    text = sockets.request("GET", f"/api/popTask/{BIG}?lease=600&wait=0")
    for _ in range(count):
        answer = yield text
        found = LEASE.search(answer)
        if found is None:
            raise RuntimeError(f"nothing was popped: {answer!r}")
        leases.append(found[1])


def _each(method: str, paths: list[str]) -> sockets.Talk:
    for path in paths:
        answer = yield sockets.request(method, path)
        if answer[9:12] != b"200":
            raise RuntimeError(f"{method} {path}: {answer!r}")


def run(server: Registry, talks: list[sockets.Talk]) -> int:
    return sockets.drive(server.port, talks)


def one_round(server: Registry, who: str, costs: Costs, tasks: int, connections: int) -> None:
    """The same number of pushes, leased pops and acks, so that the number of ready tasks stays the same."""
    share = max(1, tasks // connections)
    leases: list[bytes] = []
    costs.add(
        who,
        "push",
        measure(server.roots, lambda: run(server, [_pushes([BIG] * share) for _ in range(connections)])),
    )
    costs.add(
        who,
        "leased pop",
        measure(server.roots, lambda: run(server, [_pops(share, leases) for _ in range(connections)])),
    )
    paths = [f"/api/ackTask/{BIG}/{lease.decode()}" for lease in leases]
    acks = [_each("POST", paths[at::connections]) for at in range(connections)]
    costs.add(who, "ack", measure(server.roots, lambda: run(server, acks)))
    server.trim_log()


def cancels(server: Registry, ids: list[str], connections: int) -> int:
    paths = [f"/api/queues/{BIG}/tasks/{one}" for one in ids]
    return run(server, [_each("DELETE", paths[at::connections]) for at in range(connections)])


def expiring(server: Registry, who: str, costs: Costs, tasks: int) -> None:
    """Push tasks with a ttl, and as many without behind them; measure what it costs the sweeper to end them all."""
    before = server.json(f"/api/queues/{BIG}")["dead"]
    with closing(Line(server.port)) as line:
        fill(line, BIG, tasks, f"?ttl={TTL_SECONDS}")
        fill(line, BIG, tasks)

    def ended() -> int:
        end = time.monotonic() + TTL_SECONDS + 60
        while server.json(f"/api/queues/{BIG}")["dead"] < before + tasks:
            if time.monotonic() > end:
                raise RuntimeError("the ttl of some tasks has passed, and they are not dead")
            time.sleep(1)
        return tasks

    costs.add(who, "ttl", measure(server.roots, ended))


def looks(server: Registry, path: str, times: int) -> float:
    """Median milliseconds of a GET."""
    took = []
    with closing(Line(server.port)) as line:
        for _ in range(times):
            began = time.perf_counter()
            line.ask("GET", path)
            took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def main() -> None:
    parser = options(str(__doc__), rounds=5)
    parser.add_argument(
        "--ready",
        type=int,
        default=1_000_000,
        help="number of ready tasks; the other sizes follow from it [1000000]",
    )
    parser.add_argument("--tasks", type=int, default=10_000, help="tasks a round [10000]")
    given = parse(parser)
    if given.quick:
        given.ready, given.tasks = 10_000, 500
    full, empty = Registry(), Registry()
    costs = Costs()
    looked: list[tuple[str, float]] = []
    try:
        began = time.monotonic()
        each, middle = fill_all(full, given)
        view = full.json(f"/api/queues/{BIG}")
        print(f"filled in {time.monotonic() - began:.0f} s: {view}")
        for _ in range(given.rounds):
            for who, server in (("full", full), ("empty", empty)):
                one_round(server, who, costs, given.tasks, given.connections)
        # Cancel the same number of tasks on both servers, in parts and in turn, which gives several rounds.
        part = max(1, len(middle) // given.rounds)
        with closing(Line(empty.port)) as line:
            others = fill(line, BIG, len(middle))
        for at in range(0, part * given.rounds, part):
            for who, server, ids in (("full", full, middle), ("empty", empty, others)):
                costs.add(
                    who,
                    "cancel",
                    measure(
                        server.roots, partial(cancels, server, ids[at : at + part], given.connections), 2
                    ),
                )
        for who, server in (("full", full), ("empty", empty)):
            expiring(server, who, costs, given.tasks)
        times = 3 if given.quick else 20
        for path in (
            "/api/queues?limit=100",
            "/api/queues?limit=1000",
            "/api/queues?search=few:77",
            "/api/queues?family=:",
            f"/api/queues/{BIG}",
            f"/api/queues/{BIG}/tasks?state=ready",
            f"/api/queues/{BIG}/tasks?state=delayed",
        ):
            looked.append((path, looks(full, path, times)))
    finally:
        full.close()
        empty.close()
    report(
        [
            costs.row(f"{what} on a full Redis, against an empty one", ("full", what), ("empty", what), 1.2)
            for what in ("push", "leased pop", "ack", "cancel", "ttl")
        ]
        + [Row("Redis memory a waiting task of 60 bytes", each, None, "bytes")]
        + [Row(f"GET {path}", took, None, "ms") for path, took in looked]
    )


if __name__ == "__main__":
    main()

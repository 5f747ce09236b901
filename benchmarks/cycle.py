"""The cost of a task's whole life (push, leased pop, ack), in single requests and in batches of 100, compared with
beanstalkd's put, reserve and delete. Both get their load from the same small generator.

python benchmarks/cycle.py [--rounds 7] [--seconds 4] [--connections 50]
"""

from __future__ import annotations

import argparse
import json
import re

from rig import load, sockets
from rig.programs import Beanstalkd, Registry, Server, start
from rig.rounds import Costs, measure, options, parse, report

BATCH = 100
LEASE = re.compile(rb'"lease":"([^"]+)"')
QUEUE = "zoneCheck"


class Count:
    """The number of tasks that are done."""

    def __init__(self) -> None:
        self.done = 0


def single(count: Count) -> sockets.Talk:
    push = sockets.request("PUT", f"/api/pushTask/{QUEUE}", load.task())
    pop = sockets.request("GET", f"/api/popTask/{QUEUE}?lease=60&wait=5")
    while True:
        yield push
        answer = yield pop
        lease = LEASE.search(answer)
        if lease is None:
            raise RuntimeError(f"no lease in {answer!r}")
        answer = yield sockets.request("POST", f"/api/ackTask/{QUEUE}/{lease[1].decode()}")
        if answer[9:12] != b"200":
            raise RuntimeError(f"an ack was refused: {answer!r}")
        count.done += 1


def batches(count: Count) -> sockets.Talk:
    tasks = b"[" + b",".join([load.task()] * BATCH) + b"]"
    push = sockets.request("PUT", f"/api/pushTasks/{QUEUE}", tasks)
    pop = sockets.request("GET", f"/api/popTasks/{QUEUE}?count={BATCH}&lease=60&wait=5")
    while True:
        yield push
        answer = yield pop
        leases = [lease.decode() for lease in LEASE.findall(answer)]
        if not leases:
            raise RuntimeError(f"no lease in {answer!r}")
        answer = yield sockets.request(
            "POST", f"/api/ackTasks/{QUEUE}", json.dumps({"acks": leases}).encode()
        )
        done = answer.count(b'"status":"done"')
        if done != len(leases):
            raise RuntimeError(f"{done} of {len(leases)} acks were taken: {answer[:500]!r}")
        count.done += done


def beanstalk(count: Count) -> sockets.Talk:
    task = load.task()
    put = b"put 0 0 60 %d\r\n%b\r\n" % (len(task), task)
    while True:
        yield put
        answer = yield b"reserve\r\n"
        yield b"delete " + answer.split(b" ", 2)[1] + b"\r\n"
        count.done += 1


def one_round(server: Server, what: str, costs: Costs, given: argparse.Namespace) -> None:
    kind = {"cycle": single, "batches": batches, "put, reserve, delete": beanstalk}[what]
    framing = sockets.beanstalk if kind is beanstalk else sockets.http

    def work() -> int:
        count = Count()
        talks = [kind(count) for _ in range(given.connections)]
        sockets.drive(server.port, talks, framing=framing, seconds=given.seconds)
        return count.done

    costs.add(server.name, what, measure(server.roots, work))
    server.trim_log()


def main() -> None:
    given = parse(options(str(__doc__)))
    servers = start(Registry, Beanstalkd)
    costs = Costs()
    try:
        for _ in range(given.rounds):
            one_round(servers[0], "cycle", costs, given)
            for peer in servers[1:]:
                one_round(peer, "put, reserve, delete", costs, given)
            one_round(servers[0], "batches", costs, given)
    finally:
        for server in servers:
            server.close()
    if len(servers) == 1:
        print(
            costs.describe("registry", "cycle"), "a task; in batches", costs.describe("registry", "batches")
        )
        return
    peer_cycle = ("beanstalkd", "put, reserve, delete")
    report(
        [
            costs.row("push, leased pop, ack, against beanstalkd", ("registry", "cycle"), peer_cycle, 3.0),
            costs.row(
                f"a task in batches of {BATCH}, against beanstalkd", ("registry", "batches"), peer_cycle, 0.6
            ),
        ]
    )


if __name__ == "__main__":
    main()

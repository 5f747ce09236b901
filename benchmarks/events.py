"""10 viewers of the event stream, and 10,000 queues: what they cost the daemon and its Redis, idle and beside a load.

python benchmarks/events.py [--viewers 10] [--queues 10000] [--rounds 5] [--seconds 8]
"""

from __future__ import annotations

import select
import statistics
import threading
import time
from contextlib import closing

from rig import accounting, load
from rig.programs import Registry
from rig.rounds import Row, options, parse, report
from rig.sockets import Line, connect, request

# How long the daemon goes on when the last viewer has left, s.
KEPT_SECONDS = 6
SELECTION = "/api/events?family=:&sort=oldest"


def fill(line: Line, queues: int) -> None:
    """A task in each queue."""
    for number in range(queues):
        line.send("PUT", f"/api/pushTask/queue-{number}", load.task())
        line.receive()


class Viewers:
    """Open streams, whose events a thread reads and throws away."""

    def __init__(self, port: int, count: int) -> None:
        self.bytes = self.events = 0
        self._sockets = [connect(port) for _ in range(count)]
        for one in self._sockets:
            one.sendall(request("GET", SELECTION))
        self._ends = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._ends:
            for one in select.select(self._sockets, [], [], 0.1)[0]:
                data = one.recv(1 << 20)
                self.bytes += len(data)
                self.events += data.count(b"event: ")

    def close(self) -> None:
        self._ends = True
        self._thread.join()
        for one in self._sockets:
            one.close()


def work(port: int, seconds: float, a_second: int) -> list[float]:
    """Push and pop in 20 queues at this rate, pairs a second; returns the ms that each pair took."""
    # A connection of its own: while nothing is pushed, the daemon closes one that is idle.
    with closing(Line(port)) as line:
        return _work(line, seconds, a_second)


def _work(line: Line, seconds: float, a_second: int) -> list[float]:
    took, number, began = [], 0, time.monotonic()
    while time.monotonic() < began + seconds:
        number += 1
        queue = f"queue-{number % 20}"
        at = time.perf_counter()
        line.send("PUT", f"/api/pushTask/{queue}", load.task())
        line.receive()
        line.send("GET", f"/api/popTask/{queue}?wait=0")
        line.receive()
        took.append((time.perf_counter() - at) * 1000)
        time.sleep(max(0.0, began + number / a_second - time.monotonic()))
    return took


def share(daemon: Registry, seconds: float, a_second: int, took: list[float]) -> dict[str, float]:
    """The CPU of the daemon and its Redis during a round, % of a core."""
    before = accounting.cpus(daemon.roots)
    if a_second:
        took += work(daemon.port, seconds, a_second)
    else:
        time.sleep(seconds)
    after = accounting.cpus(daemon.roots)
    return {one: (after[one] - before[one]) * 100 / seconds for one in before}


def main() -> None:
    parser = options(str(__doc__), rounds=5, seconds=8)
    parser.add_argument("--viewers", type=int, default=10, help="open streams [10]")
    parser.add_argument("--queues", type=int, default=10_000, help="queues with a task each [10000]")
    given = parse(parser)
    if given.quick:
        given.queues = 200
    daemon = Registry()
    rows = []
    try:
        with closing(Line(daemon.port)) as line:
            fill(line, given.queues)
            for name, a_second in (("idle", 0), ("200 pushes and pops a second", 200)):
                costs: list[dict[str, float]] = []
                took: dict[bool, list[float]] = {False: [], True: []}
                events = 0
                for _ in range(given.rounds):
                    before = share(daemon, given.seconds, a_second, took[False])
                    viewers = Viewers(daemon.port, given.viewers)
                    # The first round reads all queues.
                    time.sleep(1 if given.quick else 4)
                    events -= viewers.events
                    after = share(daemon, given.seconds, a_second, took[True])
                    events += viewers.events
                    viewers.close()
                    costs.append({one: after[one] - before[one] for one in after})
                    # The daemon goes on for a while, in case they come back.
                    time.sleep(KEPT_SECONDS)
                cost = statistics.median(sum(one.values()) for one in costs)
                parts = {one: statistics.median(cost[one] for cost in costs) for one in costs[0]}
                detail = ", ".join(f"{one} {part:.1f} %" for one, part in parts.items())
                rows.append(
                    Row(
                        f"{given.viewers} viewers, {given.queues} queues, {name}: CPU",
                        cost,
                        2 if not a_second else 4,
                        "% of a core",
                        detail=f"{detail}; {events} events in {given.rounds} rounds",
                    )
                )
                if a_second:
                    slow = load.percentile(took[True], 99) / load.percentile(took[False], 99)
                    detail = f"{load.percentile(took[True], 99):.1f} ms, without viewers {load.percentile(took[False], 99):.1f} ms"
                    rows.append(Row("beside them: p99 of a push and a pop", slow, 1.5, detail=detail))
    finally:
        daemon.close()
    report(rows)


if __name__ == "__main__":
    main()

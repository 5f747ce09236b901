"""10 viewers of the event stream, and 10,000 queues: what they cost the daemon and its Redis, idle and beside a load.

python benchmarks/events.py [--viewers 10] [--queues 10000] [--seconds 10]
"""

from __future__ import annotations

import select
import threading
import time
from contextlib import closing

from rig import accounting, load
from rig.programs import Registry
from rig.rounds import Row, options, parse, report
from rig.sockets import Line, connect, request

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


def work(line: Line, seconds: float, a_second: int) -> list[float]:
    """Push and pop in 20 queues, so many times a second; the ms that each pair took."""
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


def main() -> None:
    parser = options(str(__doc__), seconds=10)
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
                shares: dict[bool, dict[str, float]] = {}
                slowest: dict[bool, float] = {}
                for watched in (False, True):
                    viewers = Viewers(daemon.port, given.viewers) if watched else None
                    # The first round reads all queues, and has its own row.
                    time.sleep(1 if given.quick else 5)
                    read = viewers.events if viewers else 0
                    before = accounting.cpus(daemon.roots)
                    took = work(line, given.seconds, a_second) if a_second else []
                    if not a_second:
                        time.sleep(given.seconds)
                    after = accounting.cpus(daemon.roots)
                    shares[watched] = {
                        one: (after[one] - before[one]) * 100 / given.seconds for one in before
                    }
                    slowest[watched] = load.percentile(took, 99) if took else 0.0
                    if viewers is not None:
                        read = viewers.events - read
                        viewers.close()
                        # Nobody looks for a while: the next round is without them.
                        time.sleep(6)
                cost = {one: shares[True][one] - shares[False][one] for one in shares[True]}
                detail = ", ".join(f"{one} {share:.1f} %" for one, share in cost.items())
                rows.append(
                    Row(
                        f"{given.viewers} viewers, {given.queues} queues, {name}: CPU",
                        sum(cost.values()),
                        2 if not a_second else 4,
                        "% of a core",
                        detail=f"{detail}; {read} events",
                    )
                )
                if a_second:
                    rows.append(
                        Row(
                            "beside them: p99 of a push and a pop",
                            slowest[True],
                            20,
                            "ms",
                            detail=f"{slowest[False]:.1f} ms without viewers",
                        )
                    )
    finally:
        daemon.close()
    report(rows)


if __name__ == "__main__":
    main()

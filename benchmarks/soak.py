"""Does memory stay flat? A mixed load for ten minutes: pushes and pops, one queue per task, leases that are acknowledged,
failed and left to expire, batches, parked polls whose client hangs up. Samples the memory of the daemon and of its Redis.

python benchmarks/soak.py [--minutes 10] [--rate 400] [--png docs/soak.png]

Redis grows for ten minutes, because acknowledged leases are remembered that long, and is flat from then on; so its memory
has no goal in a run of ten minutes. Done and dead tasks are kept for half a minute here.
"""

from __future__ import annotations

import argparse
import itertools
import random
import socket
import statistics
import time
from contextlib import closing

from cycle import LEASE
from rig import accounting, load, pictures
from rig.programs import Registry
from rig.rounds import Row, report
from rig.sockets import Line, connect, request

SAMPLE_SECONDS = 5
MB = 1 << 20


class Mixed:
    """The mixed load. Each step does one thing that clients do, and its queue is eventually as empty as before."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.lines = [Line(port) for _ in range(8)]
        self.chance = random.Random(seed)
        self.number = itertools.count()
        self.requests = 0
        self.parked: list[socket.socket] = []
        # By default done tasks are kept for an hour and dead ones for thirty days: intended growth, longer than this run.
        for queue in ("leased", "failed", "expired", "batch"):
            self.ask("PATCH", f"/api/queues/{queue}", b'{"retention":{"done":30,"dead":30}}')

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        self.requests += 1
        return self.lines[self.requests % len(self.lines)].ask(method, path, body)

    def step(self) -> None:
        self.chance.choices(
            [self.plain, self.own_queue, self.leased, self.failed, self.expired, self.batch, self.hang_up],
            weights=[30, 30, 25, 4, 1, 2, 8],
        )[0]()

    def task(self) -> bytes:
        return load.task(self.chance.choice((40, 60, 200, 2000)))

    def plain(self) -> None:
        self.ask("PUT", "/api/pushTask/plain", self.task())
        self.ask("GET", "/api/popTask/plain?wait=5")

    def own_queue(self) -> None:
        name = f"queue_results:{next(self.number)}"
        self.ask("PUT", f"/api/pushTask/{name}", self.task())
        self.ask("GET", f"/api/popTask/{name}?wait=5")

    def lease(self, queue: str, seconds: float) -> str:
        self.ask("PUT", f"/api/pushTask/{queue}?attempts=2", self.task())
        found = LEASE.search(self.ask("GET", f"/api/popTask/{queue}?wait=5&lease={seconds}"))
        assert found is not None
        return found[1].decode()

    def leased(self) -> None:
        self.ask("POST", f"/api/ackTask/leased/{self.lease('leased', 60)}", b'{"ok":true}')

    def failed(self) -> None:
        body = b'{"error":{"type":"Soak","message":"on purpose"},"retry":false}'
        self.ask("POST", f"/api/failTask/failed/{self.lease('failed', 60)}", body)

    def expired(self) -> None:
        self.lease("expired", 0.2)

    def batch(self) -> None:
        self.ask("PUT", "/api/pushTasks/batch", b"[" + b",".join([self.task()] * 20) + b"]")
        leases = LEASE.findall(self.ask("GET", "/api/popTasks/batch?count=20&lease=60&wait=5"))
        self.ask("POST", "/api/ackTasks/batch", b'{"acks":["%b"]}' % b'","'.join(leases))

    def hang_up(self) -> None:
        """Park a poll, and hang up on the oldest when there are more than 200: it leaves without a task."""
        connection = connect(self.port)
        connection.sendall(request("GET", f"/api/popTask/hung:{self.chance.randrange(50)}?wait=30"))
        self.parked.append(connection)
        self.requests += 1
        if len(self.parked) > 200:
            self.parked.pop(0).close()

    def close(self) -> None:
        for line in self.lines:
            line.close()
        for one in self.parked:
            one.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long [10]")
    parser.add_argument("--rate", type=float, default=400, help="requests a second [400]")
    parser.add_argument("--png", default="", help="where to save the picture (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="five seconds, to see that it runs")
    given = parser.parse_args()
    seconds = 5.0 if given.quick else given.minutes * 60
    samples: list[tuple[float, float, float]] = []
    daemon = Registry()
    assert daemon.redis is not None
    try:
        with closing(Mixed(daemon.port, 1)) as mixed:
            began = time.monotonic()
            sample_at = 0.0
            while (now := time.monotonic() - began) < seconds:
                if now >= sample_at:
                    used = int(daemon.redis.info("memory")["used_memory"])
                    samples.append((now, accounting.memory(daemon.pid) / MB, used / MB))
                    daemon.trim_log()
                    sample_at = now + (1 if given.quick else SAMPLE_SECONDS)
                mixed.step()
                ahead = mixed.requests / given.rate - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
            requests = mixed.requests
    finally:
        daemon.close()
    # Skip the first fifth, the warm-up: caches and the interpreter's free lists fill.
    fifth = max(1, len(samples) // 5)
    rows = []
    for name, column, goal in (("daemon's own memory", 1, 1.1), ("Redis's used memory", 2, None)):
        early = statistics.median(sample[column] for sample in samples[fifth : 2 * fifth] or samples)
        late = statistics.median(sample[column] for sample in samples[-fifth:])
        detail = f"{early:.1f} MB in the second fifth, {late:.1f} MB in the last; {requests} requests in {seconds:.0f} s"
        rows.append(Row(f"soak: {name}, end against beginning", late / early, goal, "×", detail=detail))
    report(rows)
    if given.png:
        pictures.save_soak(given.png, samples)


if __name__ == "__main__":
    main()

"""10,000 pollers parked on 1,000 queues: memory per poller, Redis commands per second while idle, the time of a hand-over
meanwhile, and the time to answer all of them at SIGTERM.

python benchmarks/parked.py [--pollers 10000] [--queues 1000] [--seconds 10]
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import time
from contextlib import closing

from rig import accounting, load
from rig.programs import Registry, wait_until
from rig.rounds import Row, options, parse, report
from rig.sockets import Line, connect, http, request

HAND_OVERS = 500
SPARE_FILES = 200


def park(port: int, pollers: int, queues: int, wait: int) -> list[socket.socket]:
    """Open ``pollers`` connections, each with a poll that waits up to ``wait`` seconds."""
    parked = []
    for number in range(pollers):
        connection = connect(port)
        connection.sendall(request("GET", f"/api/popTask/idle:{number % queues}?wait={wait}"))
        parked.append(connection)
    return parked


def hand_overs(pusher: Line, poller: Line, count: int, queue: str = "busy") -> list[float]:
    """Milliseconds from sending each push to the parked poll's answer."""
    took = []
    for _ in range(count):
        poller.send("GET", f"/api/popTask/{queue}?wait=30")
        time.sleep(0.01)
        began = time.perf_counter()
        pusher.send("PUT", f"/api/pushTask/{queue}", load.task())
        answer = poller.receive()
        took.append((time.perf_counter() - began) * 1000)
        pusher.receive()
        if answer[9:12] != b"200":
            raise RuntimeError(f"a poller was not given its task: {answer!r}")
    return took


def answered(parked: list[socket.socket], seconds: float) -> tuple[int, float]:
    """How many connections got a complete 202, and the time until the last one, s."""
    poll = select.epoll()
    waiting = {connection.fileno(): connection for connection in parked}
    for fd in waiting:
        poll.register(fd, select.EPOLLIN)
    began = last = time.monotonic()
    count = 0
    while waiting and time.monotonic() - began < seconds:
        for fd, _ in poll.poll(0.2):
            poll.unregister(fd)
            try:
                data = waiting.pop(fd).recv(65536)
            except ConnectionError:
                data = b""
            if data[9:12] == b"202" and http(data):
                count += 1
                last = time.monotonic()
    poll.close()
    return count, last - began


def main() -> None:
    parser = options(str(__doc__), seconds=10)
    parser.add_argument("--pollers", type=int, default=10_000, help="parked polls [10000]")
    parser.add_argument("--queues", type=int, default=1_000, help="number of queues they wait for [1000]")
    given = parse(parser)
    if given.quick:
        given.pollers, given.queues = 200, 20
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if given.pollers > hard - SPARE_FILES:
        given.pollers = hard - SPARE_FILES
        print(f"The hard limit of open files allows {given.pollers} pollers here.")
    # Polls must last longer than the measurement, which can exceed MAX_WAIT's default when hand-overs are slow.
    daemon = Registry("--max-wait", "600")
    redis = daemon.redis
    assert redis is not None
    try:
        with closing(Line(daemon.port)) as pusher, closing(Line(daemon.port)) as poller:
            hand_overs(pusher, poller, 20)
            memory = accounting.memory(daemon.pid), accounting.memory(redis.pid, "Rss")
            used = int(redis.info("memory")["used_memory"])
            began = time.monotonic()
            parked = park(daemon.port, given.pollers, given.queues, 600)
            print(f"{given.pollers} polls sent in {time.monotonic() - began:.1f} s")
            # The daemon has read all polls when it stops using the CPU.
            wait_until(lambda: at_rest(daemon.pid), 120, "a daemon at rest")
            own = accounting.memory(daemon.pid) - memory[0]
            rss = accounting.memory(redis.pid, "Rss") - memory[1]
            redis_used = int(redis.info("memory")["used_memory"]) - used
            before, cpu = redis.info("commandstats"), accounting.cpus(daemon.roots)
            total = int(redis.info("stats")["total_commands_processed"])
            time.sleep(given.seconds)
            # Subtract our own two INFO commands.
            total = int(redis.info("stats")["total_commands_processed"]) - total - 2
            after, cpu_after = redis.info("commandstats"), accounting.cpus(daemon.roots)
            took = hand_overs(pusher, poller, 20 if given.quick else HAND_OVERS)
            os.kill(daemon.pid, signal.SIGTERM)
            count, last = answered(parked, 20)
            assert daemon.process is not None
            code = daemon.process.wait(30)
        for connection in parked:
            connection.close()
    finally:
        daemon.close()
    calls = {
        name.removeprefix("cmdstat_"): _calls(after[name]) - _calls(before.get(name, "calls=0,"))
        for name in after
    }
    commands = ", ".join(f"{name} {n / given.seconds:.1f}" for name, n in sorted(calls.items()) if n)
    idle = ", ".join(f"{name} {(cpu_after[name] - cpu[name]) * 100 / given.seconds:.1f} %" for name in cpu)
    print(f"SIGTERM: {count} of {given.pollers} polls answered 202, exit code {code}; idle CPU: {idle}")
    report(
        [
            Row(
                f"{given.pollers} parked pollers on {given.queues} queues: memory each",
                (own + redis_used) / 1024 / given.pollers,
                4,
                "KB",
                detail=f"daemon's own {own / 1024 / given.pollers:.2f} KB, Redis used {redis_used} bytes "
                f"in all (RSS {rss / 1024:.0f} KB more)",
            ),
            Row("beside them: Redis commands a second", total / given.seconds, 20, "/s", detail=commands),
            Row(
                "beside them: hand-off p99",
                load.percentile(took, 99),
                20,
                "ms",
                detail=f"p50 {load.percentile(took, 50):.2f} ms, {len(took)} pushes",
            ),
            Row(
                "all answered at SIGTERM",
                last if count == given.pollers else float("inf"),
                1,
                "s",
                detail=f"{count} of {given.pollers}",
            ),
        ]
    )


def at_rest(pid: int) -> bool:
    """Whether the process hardly uses the CPU, and so has read everything that was sent to it."""
    before = accounting.cpu(pid)
    time.sleep(0.5)
    return accounting.cpu(pid) - before <= 0.05


def _calls(stat: str) -> int:
    return int(stat.partition("calls=")[2].partition(",")[0])


if __name__ == "__main__":
    main()

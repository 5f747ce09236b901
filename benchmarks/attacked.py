"""The latency of one well-behaved client, and the memory of the daemon, during an attack.

python benchmarks/attacked.py [--seconds 8]

Each attack runs in its own process for the whole time:

    pipelined  one connection asks for 8 MiB, 200 times at once, and reads nothing
    hang-ups   forty connections ask for 8 MiB and are closed in the middle of the answer, again and again
    turns      180 connections send 64 KiB of requests each, as fast as the daemon reads them
    bodies     80 connections announce bodies of 16 MiB, send 15 MiB, and then nothing more
    heads      500 connections send the head of a request one byte at a time
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from rig import load, sockets
from rig.programs import ROOT, Registry
from rig.rounds import Row, options, parse, report

BIG = "/api/queues/big/tasks?limit=1000"
LEASE = re.compile(rb'"lease":"([^"]+)"')


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.setblocking(False)
    return connection


def send(connection: socket.socket, data: bytes) -> int:
    with contextlib.suppress(BlockingIOError, OSError):
        return connection.send(data)
    return 0


def pipelined(port: int, end: float) -> None:
    connection = connect(port)
    send(connection, sockets.request("GET", BIG) * 200)
    time.sleep(max(0.0, end - time.monotonic()))
    connection.close()


def hang_ups(port: int, end: float) -> None:
    while time.monotonic() < end:
        connections = [connect(port) for _ in range(40)]
        for connection in connections:
            send(connection, sockets.request("GET", BIG))
        until = time.monotonic() + 1
        left = set(connections)
        while left and time.monotonic() < until:
            for connection in select.select(list(left), [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    connection.recv(100_000)
                left.discard(connection)
                connection.close()
        for connection in left:
            connection.close()


def turns(port: int, end: float) -> None:
    data = sockets.request("POST", "/api/popTask/nothing?wait=0") + sockets.request("GET", "/api/none")
    data *= 65_536 // len(data)
    connections = [connect(port) for _ in range(180)]
    while time.monotonic() < end:
        for connection in connections:
            send(connection, data)
            with contextlib.suppress(OSError):
                connection.recv(1 << 20)
        time.sleep(0.005)


def bodies(port: int, end: float) -> None:
    size, piece = 16 << 20, b" " * (1 << 18)
    head = f"POST /api/pushTasks/big HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
    left: dict[socket.socket, int] = {}
    while time.monotonic() < end:
        while len(left) < 80:
            connection = connect(port)
            send(connection, head)
            left[connection] = 15 << 20
        for connection in list(left):
            sent = send(connection, piece[: left[connection]])
            left[connection] -= sent
            if left[connection] and not sent:
                with contextlib.suppress(BlockingIOError):
                    with contextlib.suppress(ConnectionError):
                        if connection.recv(65_536):
                            continue
                    del left[connection]
                    connection.close()
        time.sleep(0.002)


def heads(port: int, end: float) -> None:
    data = sockets.request("GET", "/api/popTask/q?wait=0&" + "&" * 4000)
    connections = [connect(port) for _ in range(500)]
    at = 0
    while time.monotonic() < end:
        for connection in connections:
            send(connection, data[at : at + 1])
        at = (at + 1) % len(data)


ATTACKS: dict[str, Callable[[int, float], None]] = {
    "pipelined": pipelined,
    "hang-ups": hang_ups,
    "turns": turns,
    "bodies": bodies,
    "heads": heads,
}


def peak(pid: int) -> float:
    """The peak memory of this process, MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def fill(port: int) -> None:
    with contextlib.closing(sockets.Line(port)) as line:
        for _ in range(16):
            line.ask("PUT", "/api/pushTask/big", json.dumps("x" * 1_000_000).encode())


def behave(port: int, seconds: float) -> list[float]:
    """One client's push, leased pop and ack; it reconnects when the daemon closes a connection. Latencies in s."""
    found: list[float] = []
    line = sockets.Line(port)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        lease = b""
        for method, path, body in (
            ("PUT", "/api/pushTask/well", load.task()),
            ("GET", "/api/popTask/well?lease=60&wait=0", b""),
            ("POST", "/api/ackTask/well/", b""),
        ):
            began = time.perf_counter()
            answer = line.ask(method, path + (lease.decode() if method == "POST" else ""), body)
            found.append(time.perf_counter() - began)
            lease = next(iter(LEASE.findall(answer)), lease)
        time.sleep(0.01)
    line.socket.close()
    return found


def main() -> None:
    parser = options(str(__doc__), rounds=1, seconds=8)
    parser.add_argument("--only", choices=list(ATTACKS), help="run only this attack")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the checkout to run [this one]")
    given = parse(parser)
    rows = []
    for name in [given.only] if given.only else ATTACKS:
        rows += one(name, given)
    report(rows)


def one(name: str, given: argparse.Namespace) -> list[Row]:
    server = Registry(checkout=given.checkout)
    try:
        fill(server.port)
        end = time.monotonic() + given.seconds + 0.5
        attacker = multiprocessing.Process(target=ATTACKS[name], args=(server.port, end))
        attacker.start()
        time.sleep(0.5)
        found = sorted(behave(server.port, given.seconds))
        attacker.join()
        worst = found[min(len(found) - 1, int(len(found) * 0.99))] * 1000
        return [
            Row(
                f"{name}: p99 of a well-behaved client",
                worst,
                100,
                "ms",
                detail=f"worst {found[-1] * 1000:.0f} ms",
            ),
            Row(f"{name}: most memory of the daemon", peak(server.pid), 512, "MiB"),
        ]
    finally:
        server.close()


if __name__ == "__main__":
    main()

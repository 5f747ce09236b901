"""HTTP load from 50 keep-alive connections: by wrk where it is installed, else by ``sockets``."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from rig import sockets

HERE = Path(__file__).parent
WRK = shutil.which("wrk")


def task(size: int = 60) -> bytes:
    """A JSON task of that many bytes, the shape of which a worker might send."""
    start, end = b'{"zone":"example.org","check":"', b'"}'
    return start + b"x" * max(0, size - len(start) - len(end)) + end


class Load(NamedTuple):
    """Results of a load: latencies in ms; ``failed`` counts statuses from 400 on and broken connections."""

    requests: int
    seconds: float
    failed: int
    p50: float
    p99: float

    def served(self, who: str) -> int:
        """How many requests there were; RuntimeError that names the server when some failed."""
        if self.failed:
            raise RuntimeError(f"{who}: {self.failed} of {self.requests} requests failed")
        return self.requests


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


def fixed(port: int, method: str, path: str, body: bytes, connections: int, seconds: float) -> Load:
    """The same request again and again."""
    if WRK:
        return _wrk(port, "fixed.lua", connections, seconds, body, [method, path])

    def talk() -> sockets.Talk:
        text = sockets.request(method, path, body)
        while True:
            yield text

    return _own(port, [talk() for _ in range(connections)], seconds)


_numbers = itertools.count(1)


def turns(port: int, push: str, pop: str, body: bytes, connections: int, seconds: float) -> Load:
    """A push and a pop in turn; ``%d`` in both paths is the number of a queue that no other task has."""
    first = next(_numbers) * 10_000_000
    if WRK:
        return _wrk(port, "turns.lua", connections, seconds, body, [push, pop], str(first))
    numbers = itertools.count(first)

    def talk() -> sockets.Talk:
        while True:
            number = next(numbers)
            yield sockets.request("PUT", push.replace("%d", str(number)), body)
            yield sockets.request("GET", pop.replace("%d", str(number)))

    return _own(port, [talk() for _ in range(connections)], seconds)


def _own(port: int, talks: list[sockets.Talk], seconds: float) -> Load:
    latencies: list[float] = []
    count = sockets.drive(port, talks, seconds=seconds, latencies=latencies)
    p50, p99 = (percentile(latencies, percent) * 1000 for percent in (50, 99))
    return Load(count, seconds, 0, p50, p99)


def _wrk(
    port: int, script: str, connections: int, seconds: float, body: bytes, paths: list[str], *more: str
) -> Load:
    assert WRK is not None
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        result = subprocess.run(
            [
                WRK,
                "-t1",
                f"-c{connections}",
                f"-d{max(1, round(seconds))}s",
                "--timeout=60s",
                "-s",
                str(HERE / script),
                f"http://127.0.0.1:{port}/",
                "--",
                *paths,
                file.name if body else "-",
                *more,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not lines:
        raise RuntimeError(f"wrk failed: {result.stdout}{result.stderr}")
    return Load(**json.loads(lines[-1]))

"""The CPU cost of `appendfsync always` for 50 pushers, compared with `everysec`, and how many pushes share an fsync.

python benchmarks/fsync.py [--rounds 7] [--seconds 4] [--connections 50]

The fsyncs are counted by strace, in a separate run because it slows Redis down. Without strace (Debian: apt-get install
strace), or without the right to trace, they are not counted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from rig import load
from rig.programs import Registry
from rig.rounds import Costs, Row, measure, options, parse, report

PUSH = "/api/pushTask/zoneCheck"


def counted(server: Registry, connections: int, seconds: float) -> tuple[int, int] | str:
    """The number of pushes and of fsyncs in the same period; or why they cannot be counted."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed: the fsyncs are not counted."
    assert server.redis is not None
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "counts"
        watcher = subprocess.Popen(
            [strace, "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", str(out), "-p", str(server.redis.pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        time.sleep(0.5)
        done = load.fixed(server.port, "PUT", PUSH, load.task(), connections, seconds)
        if watcher.poll() is None:
            os.killpg(watcher.pid, signal.SIGINT)
        _, errors = watcher.communicate(timeout=20)
        lines = out.read_text().splitlines() if out.exists() else []
    calls = sum(int(line.split()[3]) for line in lines if line.split()[-1:] in (["fsync"], ["fdatasync"]))
    if not calls:
        return f"strace counted nothing: {errors.decode('utf-8', 'replace').strip()}"
    return done.requests, calls


def pushes_done(server: Registry, given: argparse.Namespace) -> int:
    return load.fixed(server.port, "PUT", PUSH, load.task(), given.connections, given.seconds).requests


def main() -> None:
    given = parse(options(str(__doc__)))
    servers = {"always": Registry(fsync="always"), "everysec": Registry(fsync="everysec")}
    costs = Costs()
    try:
        for _ in range(given.rounds):
            for name, server in servers.items():
                costs.add(name, "push", measure(server.roots, partial(pushes_done, server, given)))
                server.trim_log()
        found = counted(servers["always"], given.connections, given.seconds)
    finally:
        for server in servers.values():
            server.close()
    rows = [
        costs.row(
            "appendfsync always, CPU of a push against everysec",
            ("always", "push"),
            ("everysec", "push"),
            1.5,
        )
    ]
    if isinstance(found, str):
        print(found)
    else:
        pushes, calls = found
        rows.append(
            Row("pushes an fsync", pushes / calls, 2, "", True, f"{calls} fsyncs for {pushes} pushes")
        )
    report(rows)


if __name__ == "__main__":
    main()

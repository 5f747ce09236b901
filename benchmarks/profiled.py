"""Where the daemon spends its time: one kind of work under cProfile, and the functions with the most own time.

python benchmarks/profiled.py push|pop|cycle|batches|parked [--seconds 4] [--lines 25]

A profiled daemon is two to three times slower, and small functions look more expensive than they are. Compare shares, not
times.
"""

from __future__ import annotations

import os
import pstats
import re
import signal
import sys
from contextlib import closing

from cycle import Count, batches, single
from depth import fill
from parked import answered, at_rest, park
from push_pop import PATHS
from rig import load, sockets
from rig.programs import Registry, wait_until
from rig.rounds import options, parse

WORK = ("push", "pop", "cycle", "batches", "parked")


def main() -> None:
    parser = options(str(__doc__))
    parser.add_argument("work", nargs="?", choices=WORK, default="push")
    parser.add_argument("--lines", type=int, default=25)
    parser.add_argument(
        "--redis", action="store_true", help="also show which Redis commands ran, and for how long"
    )
    given = parse(parser)
    daemon = Registry(twistd=("--profile=profile", "--profiler=cprofile", "--savestats"))
    assert daemon.process is not None
    assert daemon.redis is not None
    push, pop = PATHS["registry"]
    try:
        if given.work == "pop":
            with closing(sockets.Line(daemon.port)) as line:
                fill(line, "zoneCheck", round(20_000 * given.seconds))
        daemon.redis.command("CONFIG", "RESETSTAT")
        if given.work == "push":
            count = load.fixed(
                daemon.port, "PUT", push, load.task(), given.connections, given.seconds
            ).requests
        elif given.work == "pop":
            count = load.fixed(daemon.port, "GET", pop, b"", given.connections, given.seconds).requests
        elif given.work == "parked":
            parked = park(daemon.port, 5000, 500, 50)
            wait_until(lambda: at_rest(daemon.pid), 60, "a daemon at rest")
            os.kill(daemon.pid, signal.SIGTERM)
            count, _ = answered(parked, 20)
        else:
            done = Count()
            kind = single if given.work == "cycle" else batches
            talks = [kind(done) for _ in range(given.connections)]
            sockets.drive(daemon.port, talks, seconds=given.seconds)
            count = done.done
        if given.redis:
            for name, counts in daemon.redis.info("commandstats").items():
                print(name, counts)
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.process.wait(60)
        print(f"{count} units of {given.work}")
        stats = pstats.Stats(str(daemon.folder / "profile"), stream=sys.stdout)
        # Show only the last two parts of each path.
        stats.stats = {  # type: ignore[attr-defined]
            (re.sub(r".*/(?=[^/]*/[^/]*$)", "", file), at, name): value
            for (file, at, name), value in stats.stats.items()  # type: ignore[attr-defined]
        }
        stats.sort_stats("tottime").print_stats(given.lines)
    finally:
        daemon.close()


if __name__ == "__main__":
    main()

"""The time from a push to the answer of a parked poll, on an idle daemon: through the same daemon, and through another
one on the same Redis.

python benchmarks/handoff.py [--pushes 1000]
"""

from __future__ import annotations

from contextlib import closing

from parked import hand_overs
from rig import load
from rig.programs import Registry
from rig.rounds import Row, options, parse, report
from rig.sockets import Line


def main() -> None:
    parser = options(str(__doc__))
    parser.add_argument("--pushes", type=int, default=1000, help="hand-overs of each kind [1000]")
    parser.add_argument(
        "--fsync", choices=("everysec", "always"), default="everysec", help="of the Redis [everysec]"
    )
    given = parse(parser)
    pushes = 20 if given.quick else given.pushes
    same: list[float] = []
    other: list[float] = []
    one = Registry(fsync=given.fsync)
    try:
        two = Registry(redis=one.redis)
        try:
            with (
                closing(Line(one.port)) as near,
                closing(Line(two.port)) as far,
                closing(Line(one.port)) as poller,
            ):
                for line in (near, far):
                    hand_overs(line, poller, 20)
                rounds = max(1, pushes // 50)
                for _ in range(rounds):
                    same += hand_overs(near, poller, pushes // rounds)
                    other += hand_overs(far, poller, pushes // rounds)
        finally:
            two.close()
    finally:
        one.close()
    report(
        [
            Row(f"push to parked poller, {name}: {what}", load.percentile(took, percent), goal, "ms")
            for name, took, what, percent, goal in (
                ("idle", same, "p50", 50, 1.0),
                ("idle", same, "p99", 99, 5.0),
                ("through another daemon", other, "p50", 50, None),
                ("through another daemon", other, "p99", 99, 10.0),
            )
        ]
    )


if __name__ == "__main__":
    main()

"""CPU of a push, a pop and an ack with 1,000 tokens in the file, compared with a daemon that has none.

python benchmarks/tokens.py [--rounds 7] [--seconds 4] [--connections 50]

Each connection sends the token of another worker, among the thousand.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rig import load, sockets
from rig.programs import Registry, Server
from rig.rounds import Costs, alternate, measure, options, parse, report
from rig.sockets import Line, Talk

from registry.model.tokens import hash_of, new_secret

TOKENS = 1000
KINDS = {"push": 1.03, "pop": 1.03, "cycle": None}
PUSH, POP = "/api/pushTask/zoneCheck", "/api/popTask/zoneCheck"


def talk(kind: str, headers: tuple[str, ...]) -> Talk:
    """What one worker sends, all the time."""
    push = sockets.request("PUT", PUSH, load.task(), *headers)
    pop = sockets.request("GET", f"{POP}?wait=0", b"", *headers)
    leased = sockets.request("GET", f"{POP}?wait=0&lease=60", b"", *headers)
    while True:
        if kind == "push":
            yield push
        elif kind == "pop":
            yield pop
        else:
            yield push
            answer = yield leased
            if answer[9:12] == b"200":
                lease = json.loads(answer.partition(b"\r\n\r\n")[2])["lease"]
                yield sockets.request("POST", f"/api/ackTask/zoneCheck/{lease}", b"", *headers)


def one_round(server: Server, costs: Costs, given: argparse.Namespace, secrets: list[str]) -> None:
    """Push, pop what was pushed for half of the time, then push, pop and ack."""
    step = max(1, len(secrets) // given.connections)
    headers: list[tuple[str, ...]] = [(f"Authorization: Bearer {secret}",) for secret in secrets[::step]]
    headers = headers or [()]
    for kind in KINDS:
        seconds = given.seconds / 2 if kind == "pop" else given.seconds

        def work(kind: str = kind, seconds: float = seconds) -> int:
            talks = [talk(kind, headers[number % len(headers)]) for number in range(given.connections)]
            return sockets.drive(server.port, talks, seconds=seconds)

        costs.add(server.name, kind, measure(server.roots, work))
    with contextlib.closing(Line(server.port)) as line:
        line.ask("DELETE", "/api/queues/zoneCheck", b"", *headers[0])
    server.trim_log()


@contextlib.contextmanager
def tokens_file() -> Iterator[tuple[Path, list[str]]]:
    """A file with the tokens, and the tokens."""
    secrets = [new_secret() for _ in range(TOKENS)]
    entries = [
        {"name": f"worker-{number}", "hash": hash_of(secret.encode()), "rights": _rights(number)}
        for number, secret in enumerate(secrets)
    ]
    with tempfile.TemporaryDirectory(prefix="rb") as folder:
        path = Path(folder) / "tokens.json"
        path.touch(0o600)
        path.write_text(json.dumps({"tokens": entries}), "utf-8")
        yield path, secrets


def _rights(number: int) -> list[str]:
    # The first one cleans up between rounds.
    return ["push zone*", "pop zone*", "push other*", "pop other*"] + ["operate"] * (not number)


def main() -> None:
    given = parse(options(str(__doc__)))
    costs = Costs()
    with tokens_file() as (path, secrets):
        servers = [Registry("--tokens-file", str(path), name="tokens"), Registry(name="none")]

        def both(server: Server) -> None:
            one_round(server, costs, given, secrets if server.name == "tokens" else [])

        alternate(servers, given.rounds, both)
    report(
        [
            costs.row(f"{kind} with {TOKENS} tokens against none", ("tokens", kind), ("none", kind), goal)
            for kind, goal in KINDS.items()
        ]
    )


if __name__ == "__main__":
    main()

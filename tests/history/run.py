"""One run: clients and nemesis for some seconds, then recovery, drain, and a check of what is left."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from tests.history.client import POLICY, QUEUES, SHORT_LIVED, Client, Clients
from tests.history.nemesis import Nemesis, Server
from tests.history.record import History
from tests.live import Daemon

# Hand-overs that were not confirmed lapse after 30 s; a second time some more are waited.
DRAIN_SECONDS = 100.0
CLEAN_SECONDS = 8.0
STATES = ("ready", "delayed", "leased", "dead", "done")


async def run(
    daemons: Sequence[Daemon], redis: Server, seconds: float, seed: int, fails_over: bool = False
) -> History:
    """The history of a run on these daemons, which run on this redis-server and are up when it ends.

    ``fails_over``: when the server dies or hangs, a replica takes its place.
    """
    history = History()
    clients = Clients([daemon.port for daemon in daemons], seed, history)
    looker = Client(clients, random.Random(f"{seed}/looker"))
    for queue in QUEUES:
        await looker.set_policy(queue, POLICY)
    nemesis = Nemesis(daemons, redis, seed, history, clients.set_rush, fails_over)
    everyone = [asyncio.ensure_future(one) for one in clients.everyone()]
    try:
        await nemesis.run(time.monotonic() + seconds)
        await asyncio.sleep(1)
        clients.draining = True
        await _drain(looker)
        clients.stopped = True
        await asyncio.wait_for(asyncio.gather(*everyone), 60)
        for queue in QUEUES:
            for state in STATES:
                history.stored += await looker.stored(queue, state)
        history.left_behind = await _left_behind(redis)
    finally:
        for one in everyone:
            one.cancel()
        await asyncio.gather(*everyone, return_exceptions=True)
        looker.close()
    return history


async def _drain(looker: Client) -> None:
    """Until nothing is ready, delayed or leased, or the time for it is over. The workers go on meanwhile."""
    end = time.monotonic() + DRAIN_SECONDS
    quiet = 0
    while quiet < 3 and time.monotonic() < end:
        counts = await looker.counts()
        left = {name: one for name, one in counts.items() if one["ready"] or one["delayed"] or one["leased"]}
        for name in left:
            if name.startswith(SHORT_LIVED):
                await looker.pop(name)
        quiet = 0 if left else quiet + 1
        await asyncio.sleep(0.3)


async def _left_behind(redis: Server) -> list[str]:
    end = time.monotonic() + CLEAN_SECONDS
    while True:
        keys = redis.command("KEYS", f"*{SHORT_LIVED}*")
        if not keys or time.monotonic() > end:
            return sorted(key.decode() for key in keys)
        await asyncio.sleep(0.5)

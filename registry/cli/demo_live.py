"""The lively part of `registryctl demo`: producers and workers, as tasks of one event loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from registry.cli import samples
from registry.cli.calls import Calls, encoded
from registry.cli.client import Answer
from registry.cli.errors import CliError
from registry.cli.profiles import Target
from registry.cli.samples import SampleQueue, SampleWorker

# One poll waits this long, and a task is leased for this long, s.
POLL_SECONDS, LEASE_SECONDS = 20.0, 30.0
# How long a worker that is to take nothing waits before it asks again, s.
QUIET_SECONDS = 2.0
# How long the tasks of the worker that falls silent stay leased, and when it takes the next ones, s.
SILENT_LEASE, SILENT_PAUSE = 60.0, 120.0
# A run that is longer than this reports its progress each time so much has passed, s.
PART_SECONDS = 1.0
# Giving the tasks back must not keep the command from ending, s.
GIVE_BACK_SECONDS = 10.0
# Clients that wait for the result of one request, each in a queue of its own, and how long that takes, s.
CLIENTS, RESULT_SECONDS = 3, 1.0
PRODUCER = "shop/5.0.2"
# What a task, or the demo itself, may meet: it was cancelled or taken away, its queue is full.
HARMLESS = (404, 409, 429)


class Crowd:
    """All producers and workers of one daemon. ``note`` takes sentences for people. Make it inside of an event loop."""

    def __init__(self, target: Target, seed: int, note: Callable[[str], None]) -> None:
        self._calls = Calls(target, note)
        self._seed = seed
        self._note = note
        self._stop = asyncio.Event()
        # The queue of each lease that is held.
        self._held: dict[str, str] = {}

    def stop(self) -> None:
        """End now."""
        self._stop.set()

    async def run(self, seconds: float) -> None:
        """Work for that number of seconds, or until `stop`. Raises the `CliError` that ended it early."""
        work: asyncio.Future[Any] = asyncio.gather(*self._all())
        stop: asyncio.Future[Any] = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([work, stop], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)
            await self._give_back()
            await self._calls.close()

    def _all(self) -> Iterator[Any]:
        for queue in samples.QUEUES:
            yield self._produce(queue, self._dice(queue.name))
        for worker in samples.WORKERS:
            yield self._work(worker, self._dice(worker.name))
        for number in range(CLIENTS):
            yield self._wait_for_results(self._dice(f"client {number}"))
        yield self._fall_silent(samples.SILENT)

    def _dice(self, name: str) -> random.Random:
        return random.Random(f"{self._seed} {name}")

    async def _post(self, path: str, must: str, agent: str, **more: Any) -> Answer | None:
        """POST until it is answered; None if a task, or a queue, no longer takes it."""
        headers = {"User-Agent": agent, **more.pop("headers", {})}
        try:
            return await self._calls.until_answered(
                path, more.pop("query", {}), must, headers=headers, **more
            )
        except CliError as error:
            if error.status in HARMLESS:
                return None
            raise

    # Producers

    async def _produce(self, queue: SampleQueue, dice: random.Random) -> None:
        number = 1000
        while True:
            await asyncio.sleep(dice.expovariate(queue.rate))
            number += 1
            body = samples.payload(queue.name, dice, number).encode()
            trace = {"traceparent": samples.trace_context(dice)}
            await self._post(
                _path("pushTask", queue.name),
                "success",
                PRODUCER,
                query=dict(queue.options),
                body=body,
                headers=trace,
            )

    async def _wait_for_results(self, dice: random.Random) -> None:
        """Each request has a queue of its own, to which the result is pushed; its client waits there."""
        while True:
            name = f"{samples.RESULTS}{dice.getrandbits(64):016x}"
            poll = self._post(_path("popTask", name), "task", PRODUCER, query={"wait": 10}, wait=10)
            await asyncio.gather(poll, self._answer(name, dice))

    async def _answer(self, name: str, dice: random.Random) -> None:
        await asyncio.sleep(dice.expovariate(1 / RESULT_SECONDS))
        await self._post(_path("pushTask", name), "success", "zonecheck/5.2", body=b'{"answer":true}')

    # Workers

    async def _work(self, worker: SampleWorker, dice: random.Random) -> None:
        while True:
            answer = await self._pop(worker, worker.hands, LEASE_SECONDS)
            if answer is None:
                await asyncio.sleep(QUIET_SECONDS)
                continue
            tasks = answer.json.get("tasks", [])
            await asyncio.gather(*(self._run(worker, task, dice) for task in tasks))
            order = answer.headers.get("Registry-Worker")
            if order == "stop":
                self._note(f"The worker {worker.name} was told to stop, and has stopped.")
                return
            if order or "Retry-After" in answer.headers:
                await asyncio.sleep(QUIET_SECONDS)
            if tasks and worker.pause:
                await asyncio.sleep(worker.pause)

    async def _pop(self, worker: SampleWorker, number: int, lease: float) -> Answer | None:
        names = ",".join(quote(name, safe="") for name in worker.queues)
        query = {
            "count": number,
            "lease": lease,
            "wait": POLL_SECONDS,
            "worker": worker.name,
            "order": "fair",
        }
        return await self._post(
            f"/api/popTasks/{names}", "tasks", worker.agent, query=query, wait=POLL_SECONDS
        )

    async def _run(self, worker: SampleWorker, task: dict[str, Any], dice: random.Random) -> None:
        queue, lease = task["queue"], task["lease"]
        self._held[lease] = queue
        left = length = samples.BY_NAME[queue].run * dice.lognormvariate(0, 0.4)
        while left > PART_SECONDS:
            await asyncio.sleep(PART_SECONDS)
            left -= PART_SECONDS
            body = encoded({"progress": round(1 - left / length, 2), "message": f"{left:.0f} s to go"})
            told = await self._post(_path("extendTask", queue, lease), "expires_in", worker.agent, body=body)
            if told is None or told.json.get("cancel"):
                break
        await asyncio.sleep(min(left, PART_SECONDS))
        if dice.random() < worker.fails:
            path, body = _path("failTask", queue, lease), encoded(_failure(worker, queue, dice))
        else:
            result = samples.result(queue, dice)
            path, body = _path("ackTask", queue, lease), b"" if result is None else encoded(result)
        await self._post(path, "success", worker.agent, body=body)
        self._held.pop(lease, None)

    async def _fall_silent(self, worker: SampleWorker) -> None:
        """Take tasks, and leave them alone until their leases end."""
        while True:
            answer = await self._pop(worker, worker.hands, SILENT_LEASE)
            self._held = {
                task["lease"]: task["queue"] for task in (answer.json["tasks"] if answer else ())
            } | self._held
            await asyncio.sleep(SILENT_PAUSE)

    async def _give_back(self) -> None:
        """Release the tasks that are held, as far as the daemon still answers."""
        releases = (
            self._calls.until_answered(_path("releaseTask", queue, lease), {}, "success", patience=0)
            for lease, queue in self._held.items()
        )
        try:
            await asyncio.wait_for(asyncio.gather(*releases, return_exceptions=True), GIVE_BACK_SECONDS)
        except TimeoutError:
            # They come back when their leases end.
            pass


def _path(verb: str, *names: str) -> str:
    return f"/api/{verb}/" + "/".join(quote(name, safe="") for name in names)


def _failure(worker: SampleWorker, queue: str, dice: random.Random) -> dict[str, Any]:
    if worker.fails == 1.0:
        return {"error": samples.broken(dice), "retry": False}
    return {"error": samples.error(queue, dice)}

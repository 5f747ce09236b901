"""Producers and workers that record every request and its outcome."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from tests.history.record import Fault, Given, History, Outcome, Pop, Push, Settle, Silence, Stored
from tests.history.wire import PATIENCE, Connection, HangUp, Reply

# Handed over without a lease, to clients that never hang up blindly: nothing of it may be lost.
PLAIN = "plain"
# The same, to clients that do: what was on its way to them is gone, and each may cost one task.
LOOSE = "loose"
WORK = "work"
KEYED = "keyed"
BATCHES = ("batch1", "batch2")
SHORT_LIVED = "reply:"
LEASED = (WORK, KEYED, *BATCHES)
QUEUES = (PLAIN, LOOSE, *LEASED)
# Backoffs are short, so that a run can be drained in the time it has.
POLICY = {"backoff": 0.3, "lease": 1.5, "retention": {"done": 600}}
MAX_WAITING = 600  # over all queues: a run is not there to fill Redis
TRIES = 40
LAG = 0.25


@dataclass(slots=True)
class Work:
    """A lease that somebody holds."""

    given: Given
    queue: str


class Clients:
    """All of a run's clients: what they share is the history, the numbers of the tasks, and the ports of the daemons."""

    def __init__(self, ports: Sequence[int], seed: int, history: History) -> None:
        self.ports = ports
        self.history = history
        self.draining = False
        self.stopped = False
        self._rush = False
        self._seed = seed
        self._numbers = itertools.count(1)
        self._waiting = 0  # as of the last look

    def everyone(self) -> list[Any]:
        """The coroutines of a run; they end some time after ``stopped``."""
        kinds = [
            *[(self._producer, queue) for queue in (PLAIN, LOOSE, WORK, WORK, KEYED)],
            *[(self._batch_producer, queue) for queue in BATCHES],
            *[(self._rusher, queue) for queue in (PLAIN, WORK) * 5],
            (self._short_lived, ""),
            *[(self._plain_worker, queue) for queue in (PLAIN, PLAIN, LOOSE, LOOSE)],
            *[(self._worker, queue) for queue in (WORK, WORK, WORK, WORK, KEYED, KEYED)],
            *[(self._batch_worker, "") for _ in range(3)],
        ]
        return [
            kind(Client(self, random.Random(f"{self._seed}/{n}"), f"w{n}"), queue)
            for n, (kind, queue) in enumerate(kinds)
        ] + [self._watch_lag(), self._watch_load(Client(self, random.Random(f"{self._seed}/load")))]

    def set_rush(self, rush: bool) -> None:
        """Whether those that push only in a rush do so now."""
        self._rush = rush

    async def _rusher(self, client: Client, queue: str) -> None:
        while not (self.draining or self.stopped):
            await asyncio.sleep(0.02)
            while self._rush and self._waiting < MAX_WAITING:
                if not await client.push(queue, [self.number()], {}, None, None):
                    await asyncio.sleep(0.05)

    async def _watch_lag(self) -> None:
        """When this process itself is late, its clock says nothing about the daemons."""
        while not self.stopped:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            now = time.monotonic()
            if now - before > LAG:
                self.history.faults.append(Fault("lag", before, now))

    async def _watch_load(self, client: Client) -> None:
        while not self.stopped:
            counts = await client.counts()
            self._waiting = sum(one["ready"] + one["delayed"] + one["leased"] for one in counts.values())
            await asyncio.sleep(1)

    def number(self) -> int:
        return next(self._numbers)

    # Producers

    async def _producer(self, client: Client, queue: str) -> None:
        choose = client.choose
        while not (self.draining or self.stopped):
            await asyncio.sleep(choose.expovariate(1 / 0.03) if self._waiting < MAX_WAITING else 0.2)
            options: dict[str, Any] = {}
            key = None
            if queue == KEYED:
                key = f"k{choose.randrange(12)}"
                options["key"] = key
            if queue in LEASED and choose.random() < 0.5:
                options["priority"] = choose.randrange(10)
            if choose.random() < 0.15:
                options["delay"] = round(choose.uniform(0.05, 2), 2)
            if queue in LEASED and choose.random() < 0.1:
                options["lease"] = choose.choice((0.8, 1.2))
            idempotency = str(uuid.UUID(int=choose.getrandbits(128))) if choose.random() < 0.5 else None
            await client.push(queue, [self.number()], options, key, idempotency)

    async def _batch_producer(self, client: Client, queue: str) -> None:
        choose = client.choose
        while not (self.draining or self.stopped):
            await asyncio.sleep(choose.expovariate(1 / 0.15) if self._waiting < MAX_WAITING else 0.3)
            values = [self.number() for _ in range(choose.randrange(1, 9))]
            options: dict[str, Any] = {"delay": 0.5} if choose.random() < 0.1 else {}
            idempotency = str(uuid.UUID(int=choose.getrandbits(128))) if choose.random() < 0.5 else None
            await client.push(queue, values, options, None, idempotency, batch=True)

    async def _short_lived(self, client: Client, _: str) -> None:
        """The life of `queue_results:<uuid>`: a queue for one answer, waited for before it is pushed."""
        other = Client(self, random.Random(f"{self._seed}/other"))
        while not (self.draining or self.stopped):
            queue = SHORT_LIVED + str(uuid.UUID(int=client.choose.getrandbits(128)))
            waiting = asyncio.ensure_future(other.pop(queue, wait=2))
            await asyncio.sleep(client.choose.uniform(0, 0.05))
            stored = await client.push(queue, [self.number()], {}, None, None)
            got = await waiting
            # A hand-over that was not confirmed may bring it again: the drain looks at these queues too.
            for _again in range(5):
                if got or not stored:
                    break
                got = await other.pop(queue, wait=0.5)
            await asyncio.sleep(client.choose.expovariate(1 / 0.1))
        other.close()

    # Workers

    async def _plain_worker(self, client: Client, queue: str) -> None:
        choose = client.choose
        while not self.stopped:
            hang_up = None
            if not self.draining and choose.random() < 0.1:
                after = choose.choice((0.001, 0.003, 0.01, 0.1, 0.5))
                hang_up = HangUp(after, blind=queue == LOOSE and choose.random() < 0.5)
            wait = choose.choice((0, 0.2, 1, 2)) if not self.draining else 0.5
            if not await client.pop(queue, wait=wait, hang_up=hang_up) and wait == 0:
                await asyncio.sleep(0.02)

    async def _worker(self, client: Client, queue: str) -> None:
        choose = client.choose
        ack = ""
        while not self.stopped or ack:
            hang_up = None
            if not self.draining and choose.random() < 0.12:
                after = choose.choice((0.001, 0.002, 0.005, 0.01, 0.1, 0.5))
                hang_up = HangUp(after, blind=choose.random() < 0.7)
            lease = choose.choice(("1", "1.5", "2", ""))
            idempotency = str(uuid.UUID(int=choose.getrandbits(128))) if choose.random() < 0.4 else None
            wait = choose.choice((0, 0.2, 1, 2)) if not self.draining else 0.5
            given = await client.pop(
                queue, wait=wait, lease=lease, ack=ack, idempotency=idempotency, hang_up=hang_up
            )
            ack = ""
            for one in given:
                ack = await self._treat(client, Work(one, queue), may_ride=not self.stopped)
            if not given and wait == 0:
                await asyncio.sleep(0.02)

    async def _batch_worker(self, client: Client, _: str) -> None:
        choose = client.choose
        while not self.stopped:
            queues = choose.choice((BATCHES, BATCHES[::-1], BATCHES[:1], BATCHES[1:], (*BATCHES, WORK)))
            hang_up = None
            if not self.draining and choose.random() < 0.12:
                hang_up = HangUp(choose.choice((0.001, 0.002, 0.005, 0.1)), blind=choose.random() < 0.7)
            idempotency = str(uuid.UUID(int=choose.getrandbits(128))) if choose.random() < 0.4 else None
            given = await client.pop_many(
                queues,
                count=choose.choice((1, 3, 10)),
                wait=choose.choice((0.1, 1, 2)),
                lease=choose.choice(("1", "1.5", "2")),
                order=choose.choice(("strict", "fair")),
                idempotency=idempotency,
                hang_up=hang_up,
            )
            by_queue: dict[str, list[Work]] = {}
            for one in given:
                by_queue.setdefault(one.queue, []).append(Work(one, one.queue))
            for works in by_queue.values():
                if self.draining or choose.random() < 0.7:
                    fails = [] if self.draining else [work for work in works if choose.random() < 0.1]
                    await client.settle_many(works[0].queue, works, fails)
                else:
                    for work in works:
                        await self._treat(client, work, may_ride=False)

    async def _treat(self, client: Client, work: Work, may_ride: bool) -> str:
        """What a worker does with a task it was given; returns the lease that its next pop is to acknowledge, or none."""
        choose = client.choose
        chance = choose.random()
        lease = work.given.lease
        if self.draining or chance < 0.4:
            await client.settle("ack", work)
            if choose.random() < 0.05:
                await client.settle("ack", work)
        elif chance < 0.58:
            if may_ride:
                return lease
            await client.settle("ack", work)
        elif chance < 0.68:
            body = {"error": {"type": "Flaky", "message": "again"}, "delay": choose.choice((0, 0, 0.2, 0.6))}
            await client.settle("fail", work, body)
        elif chance < 0.71:
            await client.settle("fail", work, {"error": {"type": "Broken"}, "retry": False})
        elif chance < 0.78:
            await client.settle("release", work, query=choose.choice(({}, {"delay": 0.3})))
        elif chance < 0.86:
            await asyncio.sleep(choose.uniform(0, 0.7))
            if await client.settle("extend", work, query={"lease": 2}):
                await asyncio.sleep(choose.uniform(0, 2))
            await client.settle("ack", work)
        elif chance < 0.94:
            # Late: sometimes before anybody else has it, sometimes after.
            await asyncio.sleep(work.given.seconds + choose.uniform(-0.3, 0.8))
            await client.settle("ack", work)
        # Else it is forgotten, as by a worker that died.
        return ""


class Client:
    """One client: it asks either daemon, and repeats what an Idempotency-Key makes safe to repeat. ``name``: for its leases."""

    def __init__(self, clients: Clients, choose: random.Random, name: str = "w") -> None:
        self.choose = choose
        self._name = name
        self._clients = clients
        self._history = clients.history
        self._connections = [Connection(port) for port in clients.ports]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
        hang_up: HangUp | None = None,
    ) -> tuple[Reply, int, float, float]:
        """(answer, daemon, begin, end); waits for a daemon that listens."""
        at = self.choose.randrange(len(self._connections))
        while True:
            begin = time.monotonic()
            try:
                reply = await self._connections[at].ask(method, path, body, headers, patience, hang_up)
            except ConnectionError:
                at = (at + 1) % len(self._connections)
                await asyncio.sleep(0.05)
                continue
            end = time.monotonic()
            if reply.silent:
                self._history.silences.append(Silence(path, begin, end, at))
            if reply.status >= 500:
                await asyncio.sleep(0.02)
            return reply, at, begin, end

    def _impatience(self) -> HangUp | None:
        """Now and then a request is given up about when it is carried out, so that nobody knows whether it was."""
        if self.choose.random() > 0.06 or self._clients.draining:
            return None
        return HangUp(self.choose.choice((0.001, 0.002, 0.004, 0.008)), blind=True)

    async def push(
        self,
        queue: str,
        values: list[int],
        options: Mapping[str, Any],
        key: str | None,
        idempotency: str | None,
        batch: bool = False,
    ) -> bool:
        """Push these; true when it was acknowledged, as a new task or an old one."""
        tasks = [{"n": value, "pad": "x" * self.choose.choice((0, 10, 200))} for value in values]
        body = json.dumps(tasks if batch else tasks[0]).encode()
        path = f"/api/pushTask{'s' if batch else ''}/{quote(queue, safe='')}" + query_of(options)
        headers = {"Idempotency-Key": idempotency} if idempotency else {}
        for _ in range(TRIES):
            reply, daemon, begin, end = await self._ask(
                "PUT", path, body, headers, hang_up=self._impatience()
            )
            push = Push(queue, begin, end, daemon, reply.outcome, values, [], idempotency, key)
            push.status = reply.status
            if push.outcome == "ok":
                answer = reply.json
                push.ids = answer["ids"] if batch else [answer["id"]]
                push.duplicate = bool(answer.get("duplicate"))
            self._history.pushes.append(push)
            if push.outcome == "ok":
                return True
            if idempotency is None or push.status in range(400, 500):
                return False
            await asyncio.sleep(0.05)
        return False

    async def pop(
        self,
        queue: str,
        wait: float = 0,
        lease: str | None = None,
        ack: str = "",
        idempotency: str | None = None,
        hang_up: HangUp | None = None,
    ) -> list[Given]:
        """Pop one; with an Idempotency-Key again until an answer comes."""
        query: dict[str, Any] = {"wait": wait}
        if lease is not None:
            query.update(lease=lease, worker=self._name)
        headers = {"Idempotency-Key": idempotency} if idempotency else {}
        for _ in range(TRIES):
            asked = {**query, "ack": ack} if ack else query
            path = f"/api/popTask/{quote(queue, safe='')}" + query_of(asked)
            reply, daemon, begin, end = await self._ask("GET", path, b"", headers, wait + PATIENCE, hang_up)
            if ack:
                self._rode(queue, ack, reply, daemon, begin, end)
            pop = Pop([queue], begin, end, daemon, reply.outcome, lease is not None, idempotency=idempotency)
            if reply.status == 200:
                pop.given = [given_alone(queue, reply)]
            self._done_with(pop, reply, hang_up)
            if idempotency is None or pop.outcome in ("ok", "nothing") or reply.status in range(400, 500):
                return pop.given
            hang_up = None
        return []

    async def pop_many(
        self,
        queues: Sequence[str],
        count: int,
        wait: float,
        lease: str,
        order: str,
        idempotency: str | None,
        hang_up: HangUp | None,
    ) -> list[Given]:
        """Pop several; with an Idempotency-Key again until an answer comes."""
        path = "/api/popTasks/" + ",".join(quote(queue, safe="") for queue in queues)
        path += query_of({"count": count, "wait": wait, "lease": lease, "order": order, "worker": self._name})
        headers = {"Idempotency-Key": idempotency} if idempotency else {}
        for _ in range(TRIES):
            reply, daemon, begin, end = await self._ask("GET", path, b"", headers, wait + PATIENCE, hang_up)
            pop = Pop(list(queues), begin, end, daemon, reply.outcome, True, idempotency=idempotency)
            if reply.status == 200:
                pop.given = [
                    Given(
                        one["queue"],
                        one["task"]["n"],
                        one["id"],
                        one["attempt"],
                        one["lease"],
                        one["expires_in"],
                    )
                    for one in reply.json["tasks"]
                ]
            self._done_with(pop, reply, hang_up)
            if idempotency is None or pop.outcome in ("ok", "nothing") or reply.status in range(400, 500):
                return pop.given
            hang_up = None
        return []

    def _done_with(self, pop: Pop, reply: Reply, hang_up: HangUp | None) -> None:
        pop.status = reply.status
        pop.hung_up = reply.hung_up
        pop.blind = reply.hung_up and hang_up is not None and hang_up.blind
        self._history.pops.append(pop)

    def _rode(self, queue: str, lease: str, reply: Reply, daemon: int, begin: float, end: float) -> None:
        """The ack that rode on a pop: its outcome is known only with the pop's whole answer."""
        answer = reply.headers.get("registry-ack", "")
        outcome: Outcome = "ok" if answer in ("done", "late") else "refused" if answer else "unknown"
        if reply.outcome == "refused":
            # Said of the pop: the ack goes its own way.
            outcome = "unknown"
        self._history.settles.append(
            Settle("ack", queue, begin, end, daemon, outcome, lease, answer, status=reply.status)
        )

    async def settle(
        self, verb: str, work: Work, body: Any = None, query: Mapping[str, Any] | None = None
    ) -> bool:
        """Ack, fail, release or extend, again until it is answered; true for 200."""
        queue, lease = work.queue, work.given.lease
        path = f"/api/{verb}Task/{quote(queue, safe='')}/{lease}" + query_of(query or {})
        sent = b"" if body is None else json.dumps(body).encode()
        for _ in range(TRIES):
            reply, daemon, begin, end = await self._ask("POST", path, sent, hang_up=self._impatience())
            outcome = reply.outcome
            settle = Settle(verb, queue, begin, end, daemon, outcome, lease, status=reply.status)
            self._history.settles.append(settle)
            if outcome == "ok":
                settle.answer = answer_of(verb, reply.json)
                settle.seconds = float(reply.json.get("expires_in", 0))
                return True
            if reply.status == 409:
                settle.answer = "lease_lost"
            if reply.status in range(400, 500) or verb == "extend":
                return False
        return False

    async def settle_many(self, queue: str, works: Sequence[Work], fails: Sequence[Work]) -> None:
        """All of these in one request, some of them as failed."""
        failed = {work.given.lease for work in fails}
        body = {
            "acks": [work.given.lease for work in works if work.given.lease not in failed],
            "fails": [{"lease": work.given.lease, "delay": 0.1} for work in fails],
        }
        path = f"/api/ackTasks/{quote(queue, safe='')}"
        for _ in range(TRIES):
            reply, daemon, begin, end = await self._ask("POST", path, json.dumps(body).encode())
            told = (
                {one["lease"]: one["status"] for one in reply.json["results"]} if reply.status == 200 else {}
            )
            for work in works:
                lease = work.given.lease
                verb = "fail" if lease in failed else "ack"
                answer = told.get(lease, "")
                outcome: Outcome = "refused" if answer == "lease_lost" else "ok" if answer else "unknown"
                self._history.settles.append(
                    Settle(verb, queue, begin, end, daemon, outcome, lease, answer, status=reply.status)
                )
            if reply.status == 200:
                return

    # Inspector

    async def look(self, path: str) -> Any:
        """The JSON of a GET that is answered 200, asked for until it is."""
        for _ in range(200):
            reply, *_ = await self._ask("GET", path)
            if reply.status == 200:
                return reply.json
            await asyncio.sleep(0.1)
        raise AssertionError(f"{path} is never answered 200: {reply.status} {reply.body!r}")

    async def set_policy(self, queue: str, policy: Mapping[str, Any]) -> None:
        reply, *_ = await self._ask("PATCH", f"/api/queues/{queue}", json.dumps(policy).encode())
        assert reply.status == 200, reply.body

    async def counts(self) -> dict[str, dict[str, int]]:
        """What each queue that has anything holds, by state."""
        listed = await self.look("/api/queues?limit=1000")
        states = ("ready", "delayed", "leased", "dead", "done")
        return {row["name"]: {state: row[state] for state in states} for row in listed["queues"]}

    async def stored(self, queue: str, state: str) -> list[Stored]:
        """All tasks of a queue in this state, page by page."""
        found, cursor = [], None
        while True:
            query = {"state": state, "limit": 200, **({"cursor": cursor} if cursor else {})}
            page = await self.look(f"/api/queues/{quote(queue, safe='')}/tasks" + query_of(query))
            for row in page["tasks"]:
                died = [one["worker"] for one in row["history"] if one["reason"] == "lease_expired"]
                found.append(Stored(queue, row["id"], row["task"]["n"], state, row.get("reason") or "", died))
            cursor = page["cursor"]
            if cursor is None:
                return found


def query_of(options: Mapping[str, Any]) -> str:
    return "?" + urlencode(options) if options else ""


def given_alone(queue: str, reply: Reply) -> Given:
    answer, headers = reply.json, reply.headers
    if "lease" in answer:
        seconds = answer["expires_in"]
        return Given(queue, answer["task"]["n"], answer["id"], answer["attempt"], answer["lease"], seconds)
    return Given(queue, answer["task"]["n"], headers["task-id"], int(headers["task-attempt"]))


def answer_of(verb: str, answer: Mapping[str, Any]) -> str:
    if verb == "ack":
        return "late" if answer.get("late") else "done"
    if verb == "fail":
        return str(answer["state"])
    return "released" if verb == "release" else "extended"

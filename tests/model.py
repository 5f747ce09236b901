"""A model of the scripts in plain Python: tasks and queues, without Redis, simple instead of fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

HANDOVER, HOUR, DAY = 30_000, 3_600_000, 86_400_000
DEAD_FOR, ACK_FOR = 30 * DAY, 600_000


@dataclass(eq=False)
class Task:
    """A task as the model knows it; times in ms. ``lease`` is the current one, ``lapsed`` the last that ran out.

    ``worker``: who has it; ``died_on_it``: whose leases ran out since its last retry.
    """

    id: bytes
    payload: bytes
    priority: int = 0
    key: str | None = None
    expires: int | None = None
    attempts: int = 25
    backoff: int = 10_000
    own_lease: int = 60_000
    result: int = 0
    state: str = "r"
    attempt: int = 0
    granted: int | None = None
    lapses: int = 0
    lease: bytes | None = None
    hidden: bool = False
    plain: bool = True
    ends: int = 0
    due: int = 0
    forgotten: int = 0
    ended: int = 0
    asked_until: int | None = None
    lapsed: bytes | None = None
    marked: bool = False
    worker: str = ""
    died_on_it: set[str] = field(default_factory=set)
    reason: str | None = None

    def backoff_ms(self) -> int:
        wait = self.backoff * 2 ** min(self.attempt - 1, 20)
        return int(0.45 * min(wait, HOUR) + 0.5 * min(1.1 * wait, HOUR))


# What an operator deleted: a task or a raw element, and its priority.
Aside = tuple[int, Task | bytes]


@dataclass
class Queue:
    """A queue as the model knows it; the next of each ready list is the first. Raw elements are bytes."""

    tasks: dict[bytes, Task] = field(default_factory=dict)
    ready: dict[int, list[Task | bytes]] = field(default_factory=lambda: {p: [] for p in range(10)})
    keys: dict[str, bytes] = field(default_factory=dict)
    acked: dict[bytes, int] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)

    def of(self, state: str) -> list[Task]:
        """Tasks of a state, in the order of Redis."""
        score = {"d": lambda t: (t.due, t.id), "l": lambda t: (t.ends, t.lease or b"")}
        by = score.get(state, lambda t: (t.forgotten, t.id))
        return sorted((t for t in self.tasks.values() if t.state == state), key=by)

    def length(self) -> int:
        return sum(map(len, self.ready.values())) + len(self.of("d"))

    def held(self, lease: bytes) -> Task | None:
        return next((t for t in self.tasks.values() if t.state == "l" and t.lease == lease), None)

    # Moves between the states

    def make_ready(self, task: Task, head: bool) -> None:
        task.state, task.lease = "r", None
        line = self.ready[task.priority]
        line.insert(0 if head else len(line), task)

    def make_delayed(self, task: Task, due: int) -> None:
        task.state, task.lease, task.due, task.plain = "d", None, due, False

    def leave_ready(self, task: Task) -> None:
        self.ready[task.priority].remove(task)

    def free_key(self, task: Task) -> None:
        if task.key is not None and self.keys.get(task.key) == task.id:
            del self.keys[task.key]

    def bury(self, task: Task, reason: str, now: int) -> None:
        task.state, task.lease, task.reason, task.plain = "x", None, reason, False
        task.forgotten = now + DEAD_FOR
        self.free_key(task)

    def finish(self, task: Task, now: int, handed_over: bool) -> None:
        self.free_key(task)
        stay = max(task.result, 0 if handed_over and task.key is None else HOUR)
        if not stay:
            del self.tasks[task.id]
            return
        task.state, task.lease, task.forgotten, task.plain = "e", None, now + stay, False
        task.ended, task.asked_until = now, now + task.result if task.result else None

    def lapse(self, task: Task, now: int) -> None:
        if task.plain:
            task.attempt += 1
        task.lapses += 1
        # A hidden lease of a plain task is written down nowhere but in the line of leases.
        task.lapsed = None if task.plain else task.lease
        reason = "handover_expired" if task.hidden else "lease_expired"
        task.plain = False
        if reason == "lease_expired":
            task.died_on_it.add(task.worker)
        poison = self.policy.get("poison", 3)
        if task.marked:
            self.bury(task, "cancelled", now)
        elif reason == "lease_expired" and poison and len(task.died_on_it) >= poison:
            self.bury(task, "poison", now)
        elif task.attempt >= task.attempts:
            self.bury(task, reason, now)
        elif task.lapses == 1:
            self.make_ready(task, head=True)
        else:
            self.make_delayed(task, now + task.backoff_ms())

    def enter(self, now: int, task: Task, options: dict[str, Any]) -> None:
        """A task that was just pushed."""
        self.tasks[task.id] = task
        task.plain = not options
        task.priority, task.key = options.get("p", 0), options.get("k")
        task.attempts, task.backoff = options.get("n", 25), options.get("b", 10_000)
        task.result = options.get("r", 0)
        if "x" in options:
            task.expires = now + options["x"]
        if task.key is not None:
            self.keys[task.key] = task.id
        if options.get("d"):
            self.make_delayed(task, now + options["d"])
        else:
            self.make_ready(task, head=False)

    def take(self, now: int, leased: bool, lease_ms: int, worker: str = "") -> Task | int:
        """What the model gives: a task that is now leased, or the code of the refusal."""
        if self.policy.get("paused"):
            return 3
        if "concurrency" in self.policy:
            if not leased:
                return 4
            if len(self.of("l")) >= self.policy["concurrency"]:
                return 3
        for p in range(9, -1, -1):
            while self.ready[p]:
                first = self.ready[p].pop(0)
                if isinstance(first, bytes):
                    # It has no id before its pop is answered.
                    task = self.tasks[first] = Task(b"", first)
                else:
                    task = first
                    if task.expires is not None and task.expires <= now:
                        self.bury(task, "expired", now)
                        continue
                    task.expires = None
                task.state, task.hidden, task.worker = "l", not leased, worker
                task.ends = now + (lease_ms or task.own_lease)
                if leased or not task.plain:
                    task.plain = False
                    task.attempt += 1
                return task
        return 1

    def sweep(self, now: int) -> None:
        for task in sorted(self.tasks.values(), key=lambda t: (t.expires or 0, t.id)):
            if task.state in "rd" and task.expires is not None and task.expires <= now:
                if task.state == "r":
                    self.leave_ready(task)
                self.bury(task, "expired", now)
        for task in sorted(self.of("l"), key=lambda t: t.lease or b"", reverse=True):
            if task.ends <= now:
                self.lapse(task, now)
        for task in self.of("d"):
            if task.due <= now:
                self.make_ready(task, head=False)
        for task in [*self.of("x"), *self.of("e")]:
            if task.forgotten <= now:
                del self.tasks[task.id]
        for task in self.of("e"):
            if task.asked_until is not None and task.asked_until <= now:
                task.asked_until = None
        self.acked = {lease: at for lease, at in self.acked.items() if at > now}

    def move(self, there: Queue, state: str) -> tuple[int, int]:
        """How many tasks of a state went there, and how many could not for their key."""
        moved = skipped = 0

        def goes(task: Task | bytes) -> bool:
            nonlocal moved, skipped
            if not isinstance(task, bytes):
                if task.key is not None and task.state != "x":
                    if task.key in there.keys:
                        skipped += 1
                        return False
                    self.free_key(task)
                    there.keys[task.key] = task.id
                del self.tasks[task.id]
                there.tasks[task.id] = task
            moved += 1
            return True

        if state == "ready":
            for p, line in self.ready.items():
                stays: list[Task | bytes] = []
                for task in line:
                    (there.ready[p] if goes(task) else stays).append(task)
                self.ready[p] = stays
        else:
            for task in self.of({"delayed": "d", "dead": "x"}[state]):
                goes(task)
        return moved, skipped

    def purge(self) -> list[Aside]:
        """What is gone, in order."""
        gone: list[Aside] = [(p, task) for p in range(9, -1, -1) for task in self.ready[p]]
        gone += [(task.priority, task) for task in self.of("d")]
        for _, task in gone:
            if not isinstance(task, bytes):
                self.free_key(task)
                del self.tasks[task.id]
        self.ready = {p: [] for p in range(10)}
        return gone

    def delete(self, task: Task) -> Aside:
        if task.state == "r":
            self.leave_ready(task)
        if task.state in "rd":
            self.free_key(task)
        del self.tasks[task.id]
        return task.priority, task

    def bring_back(self, aside: Aside, now: int) -> str | None:
        """Why it does not come back, None when it has."""
        priority, task = aside
        if isinstance(task, bytes):
            self.ready[priority].insert(0, task)
            return None
        if task.state == "x":
            if task.forgotten <= now:
                return "expired"
            self.tasks[task.id] = task
            return None
        if task.expires is not None and task.expires <= now:
            return "expired"
        if task.key is not None and task.key in self.keys:
            return "key_taken"
        self.tasks[task.id] = task
        if task.key is not None:
            self.keys[task.key] = task.id
        task.plain = False
        if task.state == "d":
            self.make_delayed(task, task.due)
        else:
            self.make_ready(task, head=True)
        return None

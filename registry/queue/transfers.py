"""Export and import of the tasks of a queue: a walk over all states, and storing tasks again as they were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import BadOption
from registry.model import Code, Task
from registry.queue.batching import LARGE
from registry.queue.names import check_name
from registry.queue.pages import TaskView, Walk
from registry.queue.promise import Gathering, after
from registry.queue.queues import Queues
from registry.redis.faults import error_from_reply

# The walk also meets a waiting task that is leased meanwhile, but not a leased one that comes back.
ORDER = ("ready", "delayed", "leased", "dead", "done")
# Payloads are read whole.
WHOLE = 1 << 40
# An import waits for Redis after this many tasks, so that other requests have their turn.
RESTORES_A_STEP = 128


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of the tasks of an import: how many were stored, how many were there already, and the ids whose key is taken."""

    count: int = 0
    existing: int = 0
    key_taken: tuple[str, ...] = ()


class WholeWalk:
    """A walk over the tasks of a queue in every state, with whole payloads. ``state`` limits it to one."""

    def __init__(self, queues: Queues, name: bytes, cursor: str, state: str | None) -> None:
        self._store = queues.store
        self._name = check_name(name)
        at, _, inner = cursor.partition("~")
        states = ORDER if state is None else (state,)
        if cursor and at not in states:
            raise BadOption("The option 'cursor' must be the cursor of the previous page.")
        self._states = list(states[states.index(at) if cursor else 0 :])
        self._walk = self._begin(inner)

    def _begin(self, cursor: str) -> Walk:
        return Walk(self._store, self._name, self._states[0], cursor, shown=WHOLE)

    @inlineCallbacks
    def head(self) -> Any:
        """Fires with the next task without taking it; None at the end."""
        while True:
            view: TaskView | None = yield self._walk.head()
            if view is not None:
                return view
            if len(self._states) == 1:
                return None
            del self._states[0]
            self._walk = self._begin("")

    def take(self) -> None:
        """Move past the task that `head` returned."""
        self._walk.take()

    @property
    def cursor(self) -> str | None:
        """The cursor to continue from; None at the end."""
        inner = self._walk.cursor
        if inner is not None:
            return f"{self._states[0]}~{inner}"
        return f"{self._states[1]}~" if len(self._states) > 1 else None


class Transfers:
    """Exports and imports."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues

    def walk(self, name: bytes, cursor: str, state: str | None) -> WholeWalk:
        """A walk over all that an export of this queue has, behind a cursor. Raises `BadOption` for a wrong cursor."""
        return WholeWalk(self._queues, name, cursor, state)

    @inlineCallbacks
    def restore(self, name: bytes, tasks: Sequence[tuple[bytes, bytes, Task]]) -> Any:
        """Store tasks again: id, payload and record of each. Fires with `Restored`. To be repeated after a failure."""
        check_name(name)
        # Small tasks must not overtake large ones: the order of the ready tasks is the order of delivery.
        large = any(len(payload) > LARGE for _, payload, _ in tasks)
        count = existing = 0
        taken: list[str] = []
        for at in range(0, len(tasks), RESTORES_A_STEP):
            some = tasks[at : at + RESTORES_A_STEP]
            replies = yield after(count, self._restore_some(name, some, large))
            for (task_id, _, _), reply in zip(some, replies, strict=True):
                if reply[0] == Code.OK:
                    count += 1
                elif reply[0] == Code.NOTHING:
                    existing += 1
                elif reply[0] == Code.KEY_TAKEN:
                    taken.append(task_id.decode())
                else:
                    raise error_from_reply(reply)
        return Restored(count, existing, tuple(taken))

    def _restore_some(
        self, name: bytes, tasks: Sequence[tuple[bytes, bytes, Task]], large: bool
    ) -> Deferred[list[Any]]:
        replies: Deferred[list[Any]] = Deferred()
        gathering = Gathering(len(tasks), replies)
        for at, (task_id, payload, task) in enumerate(tasks):
            entry = self._queues.store.restore(name, task_id, payload, task)
            entry.reply = gathering.part(at)
            self._queues.carry("restore", entry, large)
        return replies

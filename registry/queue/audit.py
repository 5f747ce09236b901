"""The audit: a line for each change by an operator, and the undo of these changes.

An action of an operator:

1. Its line is written, "unfinished".
2. The action is carried out. What it deletes is set aside under the serial of the line.
3. The line gets its end: how many tasks, and "done". An action that changed nothing leaves no line.

So a daemon that ends halfway leaves the line, and what it had deleted by then can be undone. Lines and queues have keys of their
own, which no script writes together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from msgspec import Struct, msgpack
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import Logger

from registry.errors import Conflict, NotFound, RegistryError
from registry.model import Code
from registry.queue.progress import Progress
from registry.queue.promise import after
from registry.queue.queues import Queues
from registry.redis.audit_store import StoredLine
from registry.redis.faults import error_from_reply

log = Logger()

# How long after its beginning an operation can be undone, ms. The lists themselves stay a minute longer.
UNDO_MS = 600_000
MOVES_A_CALL = 200
LINES_A_CALL, MAX_READ = 500, 10_000
ACTIONS = (
    "policy", "pause", "resume", "purge", "delete", "retry", "move", "cancel", "run", "undo",
    "schedule_put", "schedule_delete", "schedule_run", "import", "order",
)  # fmt: skip


class Line(Struct, omit_defaults=True, gc=False):
    """What is stored of an action. ``name``, ``address``: of its caller. ``options``: those of the request, without payloads.

    ``can_undo``: what it deleted was set aside: ``aside`` tasks in ``aside_bytes`` bytes. ``done``: its end is known.
    """

    action: str
    name: str = ""
    address: str = ""
    request_id: str = ""
    queue: str | None = None
    task: str | None = None
    schedule: str | None = None
    options: dict[str, Any] = {}
    can_undo: bool = False
    done: bool = False
    count: int | None = None
    skipped: int | None = None
    aside: int = 0
    aside_bytes: int = 0


_line = msgpack.Decoder(Line).decode


@dataclass(slots=True)
class Action:
    """An action that is under way. ``progress`` counts its tasks; ``changed``: it changed something else."""

    serial: int
    line: Line
    progress: Progress
    changed: bool = False

    def has_changed(self) -> None:
        """Call this when it has changed something other than tasks."""
        self.changed = True


@dataclass(slots=True)
class Seen:
    """A line as it is stored now. Times in ms; ``undone``: how many tasks came back."""

    serial: int
    at: int
    undone_at: int
    undone: int
    line: Line

    @property
    def undo_until(self) -> int | None:
        """Until when it can be undone, None where it cannot."""
        return self.at + UNDO_MS if self.line.can_undo else None


def seen_of(stored: StoredLine) -> Seen:
    """The line as a record."""
    return Seen(stored.serial, stored.at, stored.undone_at, stored.undone, _line(stored.text))


class Audit:
    """Writes and reads the lines."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._store = queues.store

    def _change(self, what: str, serial: int | None, text: bytes = b"") -> Deferred[list[Any]]:
        def checked(reply: list[Any]) -> list[Any]:
            if reply[0] not in (Code.OK, Code.NOTHING):
                raise error_from_reply(reply)
            return reply

        return self._queues.ask("audit", self._store.audit(what, serial, text)).addCallback(checked)

    @inlineCallbacks
    def record(self, line: Line, act: Callable[[Action], Any]) -> Any:
        """Carry out ``act``, which returns a Deferred, and record it. Fires with the `Action` and the result of ``act``."""
        begun = yield self._change("begin", None, msgpack.encode(line))
        action = Action(begun[1], line, Progress(begun[1] if line.can_undo else None))
        try:
            result = yield act(action)
        except Exception as error:
            yield self._give_up(action, error)
            raise
        if action.changed or action.progress.count:
            line.done = True
            yield self._end(action)
        else:
            yield self._drop(action)
        return action, result

    def _end(self, action: Action) -> Deferred[None]:
        line, progress = action.line, action.progress
        if progress.count:
            line.count, line.skipped = progress.count, progress.skipped
        line.aside, line.aside_bytes = progress.aside, progress.aside_bytes
        return self._written(action, self._change("end", action.serial, msgpack.encode(line)))

    def _drop(self, action: Action) -> Deferred[None]:
        return self._written(action, self._change("drop", action.serial))

    def _give_up(self, action: Action, error: Exception) -> Deferred[None]:
        """The action failed: its line stays if it changed something, or may have."""
        sure = isinstance(error, RegistryError) and getattr(error, "outcome", "not_applied") == "not_applied"
        if sure and not action.changed and not action.progress.count:
            return self._drop(action)
        return self._end(action)

    def _written(self, action: Action, written: Deferred[Any]) -> Deferred[None]:
        """The action was carried out, so its answer does not depend on the end of its line."""

        def failed(failure: Any) -> None:
            failure.trap(RegistryError)
            log.warn(
                "the end of the action {serial} ({action}) could not be written to the audit: {why}",
                serial=action.serial,
                action=action.line.action,
                why=failure.getErrorMessage(),
            )

        return written.addCallbacks(lambda _: None, failed)

    @inlineCallbacks
    def get(self, serial: int) -> Any:
        """Fires with the `Seen` of a line, or fails with `NotFound`."""
        stored = yield self._store.audit_line(serial)
        if stored is None:
            raise NotFound("The audit has no line with this id.")
        return seen_of(stored)

    @inlineCallbacks
    def read(
        self,
        before: int | None,
        since_ms: float | None,
        is_selected: Callable[[Seen], bool],
        take: Callable[[Seen], bool],
    ) -> Any:
        """Call ``take`` with the selected lines below a serial, newest first, until it returns False: it has not taken that one.

        Fires with the serial where the next page begins, None at the end. Reads a bounded number of lines.
        """
        read = 0
        while True:
            found = yield self._store.audit_lines(before, LINES_A_CALL)
            for seen in map(seen_of, found):
                if since_ms is not None and seen.at < since_ms:
                    return None
                if is_selected(seen) and not take(seen):
                    return before
                before = seen.serial
            read += len(found)
            if len(found) < LINES_A_CALL:
                return None
            if read >= MAX_READ:
                return before

    # Undo

    @inlineCallbacks
    def undo(self, seen: Seen, action: Action) -> Any:
        """Bring back what an operation set aside. Fires with how many did not come back, by reason. ``action``: the undo's own.

        Fails with `Conflict`.
        """
        line, progress = seen.line, action.progress
        name = (line.queue or "").encode()
        self.check_undo(seen)
        lists, left = yield self._store.lists_aside(name, seen.serial)
        if not lists and not left and (seen.undone_at or line.done):
            raise Conflict("already_undone", "This was already undone: nothing is left to bring back.")
        reasons: dict[str, int] = {}
        try:
            for number in reversed(range(lists)):
                more = True
                while more:
                    more = yield self._bring_back(seen, name, number, MOVES_A_CALL, progress, reasons)
            while not lists and left > 0:
                before = progress.count + progress.skipped
                yield self._bring_back(seen, name, "left", min(left, MOVES_A_CALL), progress, reasons)
                met = progress.count + progress.skipped - before
                left = left - met if met else 0
        finally:
            if progress.count:
                yield self._written(action, self._change("undone", seen.serial, b"%d" % progress.count))
        return reasons

    def check_undo(self, seen: Seen) -> None:
        """Raise `Conflict` for a line that cannot be undone."""
        if seen.undo_until is None or (seen.line.done and not seen.line.aside):
            raise Conflict(
                "not_undoable",
                "Only purges, deletions, cancellations and retries can be undone, unless they were made with undo=no.",
            )
        if self._store.now_ms() > seen.undo_until:
            raise Conflict("undo_expired", "This is more than ten minutes old: what it deleted is gone.")

    @inlineCallbacks
    def _bring_back(
        self,
        seen: Seen,
        name: bytes,
        number: int | str,
        limit: int,
        progress: Progress,
        reasons: dict[str, int],
    ) -> Any:
        entry = self._store.undo(name, seen.serial, number, limit)
        reply = yield after(progress.count, self._queues.ask("undo", entry))
        code, *more = reply
        if code:
            raise error_from_reply(reply)
        count, goes_on, *pairs = more
        progress.add(count)
        for reason, number_of in zip(pairs[::2], pairs[1::2], strict=True):
            progress.skipped += number_of
            reasons[reason.decode()] = reasons.get(reason.decode(), 0) + number_of
        return goes_on

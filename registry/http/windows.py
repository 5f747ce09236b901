"""Which queues a viewer sees: the rows of a page, found again when queues come, go or change their place."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any, NamedTuple

from registry.http.rows import COUNTED, NEVER_MS, queue_row, rfc3339
from registry.queue.inventory import Inventory, Row, Sum


class Selection(NamedTuple):
    """What a viewer asks for: these queues (None: any) whose names contain ``search``, the first ``limit`` of them by ``sort``.

    ``folds``: the queues of a family are one row.
    """

    queues: tuple[bytes, ...] | None = None
    search: bytes = b""
    sort: str = "name"
    limit: int = 100
    folds: bool = False


class Window:
    """The rows of a selection, by name. ``matching``: how many queues or families it matches; viewers of the same share it."""

    def __init__(self, selection: Selection, inventory: Inventory) -> None:
        self._selection = selection
        self._inventory = inventory
        self.rows: dict[bytes, Row | Sum] = {}
        self.matching = 0
        self.viewers = 0
        self._edge: tuple[int, bytes] | None = None
        self._find()

    def update(self) -> None:
        """The inventory has changed."""
        chosen, changed = self._selection, self._inventory.changed
        if self._inventory.came_or_went or (chosen.sort != "name" and self._crosses(changed)):
            self._find()

    def shown(self) -> Iterable[bytes]:
        """The names of the queues that should be read each time."""
        return [row.name for row in self.rows.values() if isinstance(row, Row)]

    def _crosses(self, changed: Iterable[bytes]) -> bool:
        """Whether a change may have moved a row into the window, or out of it."""
        if self._edge is None:
            return False
        for name in changed:
            row = self._row(name)
            if row is not None and (row.name in self.rows) != (self._place(row) <= self._edge):
                return True
        return False

    def _row(self, name: bytes) -> Row | Sum | None:
        row = self._inventory.rows.get(name)
        if row is not None and self._selection.folds and row.family != name:
            return self._inventory.families.get(row.family)
        return row

    def _place(self, row: Row | Sum) -> tuple[int, bytes]:
        sort = self._selection.sort
        if sort == "name":
            return 0, row.name
        if sort == "oldest":
            oldest = row.oldest_ms
            return NEVER_MS if oldest is None else oldest, row.name
        return -row.held[COUNTED.index(sort)], row.name

    def _find(self) -> None:
        chosen, inventory = self._selection, self._inventory
        self._edge = None
        if chosen.queues is not None:
            known = [(name, inventory.families.get(name) if chosen.folds else None) for name in chosen.queues]
            rows = ((name, family or inventory.rows.get(name)) for name, family in known)
            self.rows = {name: row for name, row in rows if row is not None}
            self.matching = len(self.rows)
            return
        found: list[Row | Sum] = [
            row
            for name, row in inventory.rows.items()
            if chosen.search in name and not (chosen.folds and row.family != name)
        ]
        if chosen.folds:
            found += [
                family
                for label, family in inventory.families.items()
                if chosen.search in label or any(chosen.search in name for name in family.members)
            ]
        self.matching = len(found)
        first = heapq.nsmallest(chosen.limit, found, key=self._place)
        self.rows = {row.name: row for row in first}
        if 0 < len(first) < len(found):
            self._edge = self._place(first[-1])


def live_row(row: Row | Sum, now_ms: int) -> dict[str, Any]:
    """A queue or a family as an event shows it: as in the list of queues, and since when its oldest task is ready."""
    if isinstance(row, Row):
        shown = queue_row(row.view, now_ms, {row.name: row.pollers})
    else:
        shown = {**sum_row(row, now_ms), "rates": {}, "policy": {}, "queues": row.queues}
    shown["oldest_at"] = rfc3339(row.oldest_ms)
    return shown


def sum_row(total: Sum, now_ms: int) -> dict[str, Any]:
    """The sum of some queues."""
    oldest = total.oldest_ms
    return {
        "name": total.name.decode("utf-8", "replace"),
        **dict(zip(COUNTED, total.held[:5], strict=True)),
        "oldest_age": None if oldest is None else max(0.0, (now_ms - oldest) / 1000),
        "pollers": total.held[5],
    }

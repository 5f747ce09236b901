"""What an operation on many tasks has done so far, and where it sets aside what it deletes."""

from __future__ import annotations

from dataclasses import dataclass, field

# What is set aside is spread over lists of at most about this size: Redis frees each of them at once when it expires.
TASKS_A_LIST, BYTES_A_LIST = 2000, 4 << 20


@dataclass(slots=True)
class Progress:
    """``count``, ``skipped``: tasks. ``operation``: under which number tasks are set aside, None to delete them for good.

    ``aside``: how many tasks are set aside; ``aside_bytes``: the memory that they take.
    """

    operation: int | None = None
    count: int = 0
    skipped: int = 0
    aside: int = 0
    aside_bytes: int = 0
    _list: int = 0
    _in_list: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def place(self) -> str:
        """Where the next tasks are set aside, as the scripts read it; empty for nowhere."""
        return "" if self.operation is None else f"{self.operation}:{self._list}"

    def add(self, count: int, size: int = 0) -> None:
        """Add the tasks that were changed, and the bytes of those that were set aside."""
        self.count += count
        if not size:
            return
        self.aside += count
        self.aside_bytes += size
        self._in_list[0] += count
        self._in_list[1] += size
        if self._in_list[0] >= TASKS_A_LIST or self._in_list[1] >= BYTES_A_LIST:
            self._list += 1
            self._in_list = [0, 0]

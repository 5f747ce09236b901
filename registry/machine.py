"""How much memory this process may use: that of the machine, or the lower limit of a cgroup (a container, a unit)."""

from __future__ import annotations

import os
from collections.abc import Iterator


def memory(root: str = "/") -> int:
    """The memory in bytes; ``root`` is the folder that contains proc and sys."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(root)])


_V2 = ("sys/fs/cgroup", "sys/fs/cgroup/unified")


def _limits(root: str) -> Iterator[int]:
    """The limits of this cgroup and its ancestors, in bytes. A container may see only its own cgroup, as the root."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8") as groups:
            lines = [line.rstrip("\n").split(":", 2) for line in groups]
    except (OSError, ValueError):
        return
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            # Above memory.high the kernel throttles the processes, which is as bad as a hard limit.
            files = [f"{place}{{}}/{name}" for place in _V2 for name in ("memory.max", "memory.high")]
        elif "memory" in controllers.split(","):
            files = ["sys/fs/cgroup/memory{}/memory.limit_in_bytes"]
        else:
            continue
        group = os.path.normpath("/" + path.lstrip("/"))
        while True:
            for file in files:
                yield from _number(os.path.join(root, file.format("" if group == "/" else group)))
            if group == "/":
                break
            group = os.path.dirname(group)


def _number(path: str) -> Iterator[int]:
    try:
        with open(path, encoding="ascii") as file:
            yield int(file.read(30))
    except (OSError, ValueError):  # absent, or "max"
        pass

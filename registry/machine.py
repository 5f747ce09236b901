"""How much memory this process may use: what the machine has, or less where a cgroup says so (a container, a unit)."""

from __future__ import annotations

import os
from collections.abc import Iterator


def memory(root: str = "/") -> int:
    """Bytes; ``root`` is where proc and sys are looked for."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(root)])


_V2 = ("sys/fs/cgroup", "sys/fs/cgroup/unified")


def _limits(root: str) -> Iterator[int]:
    """What the cgroup and those around it allow. A container may see its own alone, at the top."""
    try:
        with open(os.path.join(root, "proc/self/cgroup"), encoding="utf-8") as told:
            lines = [line.rstrip("\n").split(":", 2) for line in told]
    except (OSError, ValueError):
        return
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            # Above memory.high its processes are held up, which is no better than a refusal.
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

"""CPU and memory of processes, from ``/proc/<pid>/stat`` and ``smaps_rollup``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    # The name may hold blanks and parentheses; what is read starts behind its last one: state, ppid, …
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """The process and all its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
            except OSError:
                pass
    found = [pid]
    for one in found:
        found += parents.get(one, ())
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU, user and system, of a process, its children and those it has already reaped."""
    total = 0
    for one in family(pid):
        try:
            total += sum(map(int, _stat(one)[11:15]))
        except OSError:
            pass
    return total / TICK


def cpus(roots: Mapping[str, int]) -> dict[str, float]:
    return {name: cpu(pid) for name, pid in roots.items()}


def memory(pid: int, *fields: str) -> int:
    """Bytes of memory of a process and its children: the sum of these ``fields`` of ``smaps_rollup``, or what is
    theirs alone. (``Pss`` shares the libraries out over all that use them, so it moves when others come and go.)"""
    wanted = {f"{field}:" for field in fields or ("Private_Clean", "Private_Dirty")}
    total = 0
    for one in family(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines[1:] if line.split()[0] in wanted)
    return total * 1024

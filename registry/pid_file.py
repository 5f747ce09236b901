"""Removes twistd's pid file when its daemon is gone and another process has the same number.

twistd checks only whether a process with that number exists. In a container it does: it is the new daemon itself.
"""

from __future__ import annotations

import os

# A process that started more than this after the file was written did not write it, s. Start times have ticks of 1/100 s.
SLACK_SECONDS = 2.0


def remove_left_over(path: str) -> int | None:
    """Remove the file if the process it names cannot have written it. Returns that number; None when the file stays.

    A file that names no running process is left to twistd.
    """
    try:
        with open(path, "rb") as file:
            pid = int(file.read(20))
            written = os.fstat(file.fileno()).st_mtime
        if pid != os.getpid() and not _is_another(pid, written):
            return None
        os.unlink(path)
    except (OSError, ValueError):
        return None
    return pid


def _is_another(pid: int, written: float) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        if b"twist" not in file.read():  # empty for a zombie
            return True
    with open(f"/proc/{pid}/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat", "rb") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
    return booted + ticks / os.sysconf("SC_CLK_TCK") > written + SLACK_SECONDS

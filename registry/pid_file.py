"""The pid file that twistd writes, when the daemon that it names is gone and its number is in use again.

twistd asks only whether there is a process of that number. In a container there is one: the new daemon itself.
"""

from __future__ import annotations

import os

# A process writes the file after it has begun; clocks are compared that tick in hundredths, s.
SLACK_SECONDS = 2.0


def remove_left_over(path: str) -> int | None:
    """Remove the file if whom it names cannot have written it; the number, None when the file stays.

    One that names no process at all is twistd's own affair.
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
        if b"twist" not in file.read():  # a process that has ended and was not reaped has none
            return True
    with open(f"/proc/{pid}/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat", "rb") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
    return booted + ticks / os.sysconf("SC_CLK_TCK") > written + SLACK_SECONDS

"""Starts a watcher, and then becomes the private Redis server.

Run as a file, ``python -I -S keeper.py SERVER ARGUMENT...``, by ``embedded.py``; it imports nothing of the
package.

    descriptor 0   the life line: the read end of a pipe whose other end only the daemon holds
    descriptor 3   the server's lock file; it stays open in the server, so the lock lasts as long as it

The process gets a session of its own (Ctrl-C in a terminal reaches the daemon alone), forks the watcher and
becomes the server, which is therefore a direct child of the daemon. The watcher reads the life line. However
the daemon ends, kill -9 included, the kernel closes the pipe, and the watcher sends the server SIGTERM: it
fsyncs its file and exits. PR_SET_PDEATHSIG would be simpler, but it fires when the *thread* that forked ends,
some execs clear it, and the kernel sends no SIGKILL to a server that does not end.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

LIFELINE = 0
LOCK = 3
TERM_SECONDS = 10.0


def watch(server: int) -> None:
    """Return when ``server``, the parent of this process, has ended; end it when the life line is closed."""
    try:
        pidfd = os.pidfd_open(server)
    except (
        OSError
    ):  # an old kernel, or a container whose seccomp profile does not know the call: look twice a second
        pidfd = -1
    sources = [LIFELINE] if pidfd < 0 else [LIFELINE, pidfd]
    kill_at = 0.0
    # The kernel may reuse a pid; the kill is safe only while the server is still this process's parent.
    while os.getppid() == server:
        ready = select.select(sources, [], [], 0.5 if pidfd < 0 or kill_at else None)[0]
        if LIFELINE in ready and not os.read(LIFELINE, 64) and os.getppid() == server:
            os.kill(server, signal.SIGTERM)
            sources.remove(LIFELINE)
            kill_at = time.monotonic() + TERM_SECONDS
        if kill_at and time.monotonic() >= kill_at and os.getppid() == server:
            os.kill(server, signal.SIGKILL)
        if pidfd >= 0 and pidfd in ready:
            return


def main(command: list[str]) -> None:
    if os.getsid(0) != os.getpid():
        os.setsid()
    os.umask(0o077)
    server = os.getpid()
    os.ftruncate(LOCK, 0)
    os.pwrite(LOCK, b"%d\n" % server, 0)
    null = os.open(os.devnull, os.O_RDWR)
    if os.fork() == 0:
        os.close(LOCK)
        os.dup2(null, 1)
        os.dup2(null, 2)
        watch(server)
        os._exit(0)
    os.dup2(null, LIFELINE)
    try:
        os.execv(command[0], command)  # noqa: S606 - to become it is the purpose
    except OSError as error:
        print(f"# {command[0]}: {error.strerror}", flush=True)
        os._exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])

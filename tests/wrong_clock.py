"""A redis-server whose clock the test sets: a preloaded library adds an offset to the system time."""

from __future__ import annotations

import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.live import RedisServer, wait_until

_SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *shift_ms;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_SHIFT"), O_RDONLY);
    shift_ms = mmap(0, sizeof *shift_ms, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t id, struct timespec *t) {
    long r = syscall(SYS_clock_gettime, id, t);
    if (id == CLOCK_REALTIME && shift_ms) t->tv_sec += *shift_ms / 1000;
    return (int)r;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""


class ShiftedRedis(RedisServer):
    """A redis-server whose clock is ``shift`` seconds ahead of the system's."""

    def __init__(self, binary: str, folder: Path) -> None:
        if shutil.which("gcc") is None:
            pytest.skip("no gcc: it builds the library that sets a redis-server's clock")
        (folder / "shim.c").write_text(_SHIM)
        library = folder / "shim.so"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "shim.c")], check=True
        )
        self._file = folder / "shift"
        self._file.write_bytes(struct.pack("=q", 0))
        wrapper = folder / "redis-server"
        wrapper.write_text(f'#!/bin/sh\nCLOCK_SHIFT={self._file} LD_PRELOAD={library} exec {binary} "$@"\n')
        wrapper.chmod(0o755)
        super().__init__(str(wrapper))

    def shift(self, seconds: int) -> None:
        """From now on the clock is so far ahead of the system's."""
        with open(self._file, "r+b") as file:
            file.write(struct.pack("=q", seconds * 1000))

    def now(self) -> float:
        """What its clock tells."""
        seconds, micros = self.command("TIME")
        return int(seconds) + int(micros) / 1e6

    def shift_to(self, second: float) -> None:
        """Set the clock, to the nearest second."""
        self.shift(round(second - time.time()))
        # Newer servers read the clock once for a turn of their loop.
        wait_until(lambda: abs(self.now() - second) < 2, 2, f"a clock of {second}")


@contextmanager
def shifted_redis(binary: str, folder: Path, second: float) -> Iterator[ShiftedRedis]:
    """A redis-server that runs at this time, s since 1970."""
    server = ShiftedRedis(binary, folder)
    try:
        server.start()
        server.shift_to(second)
        yield server
    finally:
        server.remove()

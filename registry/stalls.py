"""Detects when the reactor is blocked, and logs which code was running.

The reactor runs a timer, the beat. While a beat is overdue, a thread records the main thread's stack; the next beat logs
it. Nothing is traced while beats are on time.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.logger import Logger

from registry.histogram import Histogram

log = Logger()

# All in seconds: the delay of a beat that counts as a stall; the interval of beats; the interval of the thread's checks.
STALL_SECONDS = 0.25
BEAT_SECONDS = 0.1
CHECK_SECONDS = 0.1
# The number of stack frames that are logged, innermost first.
MAX_FRAMES = 6
# Upper bounds of how late beats were, s.
LAGS = (0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class StallWatch:
    """Watches the thread that calls `start`, which must be the reactor's. ``later`` is the reactor's ``callLater``.

    ``lags``: how late each beat was, s.
    """

    def __init__(self, later: Callable[..., Any], now: Callable[[], float] = monotonic) -> None:
        self._later = later
        self._now = now
        self.lags = Histogram(LAGS)
        self._call: Any = None
        self._beat_at = now()
        self._seen = ""
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._watched = 0

    def start(self) -> None:
        """Start watching."""
        self._watched = threading.get_ident()
        self._beat_at = self._now()
        self._call = self._later(BEAT_SECONDS, self._beat)
        self._thread = threading.Thread(target=self._watch, name="stalls", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._call is not None and self._call.active():
            self._call.cancel()
        if self._thread is not None:
            self._thread.join(1)

    def _beat(self) -> None:
        self._call = self._later(BEAT_SECONDS, self._beat)
        now = self._now()
        late = now - self._beat_at - BEAT_SECONDS
        seen, self._seen = self._seen, ""
        self._beat_at = now
        self.lags.add(max(0.0, late))
        if late > STALL_SECONDS:
            log.warn(
                "the reactor was blocked for {seconds:.2f} s: {where}",
                seconds=late,
                where=seen or "the process did not run, or it ran code that could not be interrupted",
            )

    def _watch(self) -> None:
        while not self._stopped.wait(CHECK_SECONDS):
            if not self._seen and self._now() - self._beat_at > BEAT_SECONDS + STALL_SECONDS / 2:
                frame = sys._current_frames().get(self._watched)
                if frame is not None:
                    self._seen = describe(frame)


def describe(frame: Any) -> str:
    """The location of this frame and of its callers: ``function (file:line) < caller (file:line) …``."""
    frames = traceback.extract_stack(frame)[::-1]
    return " < ".join(
        f"{one.name} ({os.path.basename(one.filename)}:{one.lineno})" for one in frames[:MAX_FRAMES]
    )

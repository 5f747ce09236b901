"""SIGHUP: reload what can be reloaded, or stop, because the terminal has gone.

The kernel sends the same signal when the terminal of a process is closed. A process can tell the two apart: a closed terminal is no
longer its controlling terminal.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

log = Logger()

# The kernel takes the terminal away from all processes of a session in one go, but a shell may pass the signal on earlier, s.
LOOK_AGAIN_SECONDS = 0.2


class Hangup:
    """Installs the handler, unless SIGHUP is ignored, as nohup does."""

    def __init__(self, reactor: Any, reload: Callable[[], None]) -> None:
        self._reactor = reactor
        self._reload = reload
        self._had_terminal = False
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(self._received))
            # Not now: twistd may leave its terminal before the reactor runs.
            reactor.callWhenRunning(self._started)

    def _started(self) -> None:
        self._had_terminal = has_terminal()

    def _received(self) -> None:
        if self._terminal_closed():
            return
        self._reload()
        self._reactor.callLater(LOOK_AGAIN_SECONDS, self._terminal_closed)

    def _terminal_closed(self) -> bool:
        if not self._had_terminal or has_terminal():
            return False
        self._had_terminal = False
        log.info("the terminal was closed")
        self._reactor.stop()
        return True


def has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True

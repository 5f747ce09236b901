"""A test's timeout that ends the test and not the reactor.

pytest-timeout raises inside a signal handler. While an asynchronous test waits, what the signal interrupts
is the reactor's own poll: it logs the exception and stops, and every later test fails. So a waiting test is
failed in the greenlet that waits for it, and the reactor goes on.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import greenlet
import pytest
import pytest_twisted

AGAIN_SECONDS = 1.0  # a callback may swallow the first one


def _waited_for(frame: FrameType | None) -> Any:
    """The Deferred that ``blockon`` waits for in this frame or one above it."""
    while frame is not None:
        if frame.f_code.co_name == "blockon_default":
            return frame.f_locals.get("d")
        frame = frame.f_back
    return None


def _in_poll(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_name in ("doPoll", "doSelect", "doIteration", "mainLoop")


def _fail(seconds: float, frame: FrameType | None) -> None:
    failed = pytest.fail.Exception(f"Timeout: the test took more than {seconds} s", pytrace=True)
    here = greenlet.getcurrent()
    waiting = here.parent  # pytest's own greenlet, when the reactor's is the one that runs
    if here is not pytest_twisted._instances.gr_twisted or waiting is None or not _in_poll(frame):
        raise failed
    result = _waited_for(waiting.gr_frame)
    if result is not None:
        result.pause()  # its end is no longer anybody's
        if result._chainedTo is not None:
            result._chainedTo.cancel()  # what the test has in "finally" still runs
    waiting.throw(failed)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: Any, settings: Any) -> bool | None:
    """Take the place of pytest-timeout's own timer, for its usual method."""
    if settings.method != "signal":
        return None

    def on_alarm(_signal: int, frame: FrameType | None) -> None:
        _fail(settings.timeout, frame)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN_SECONDS)
    return True

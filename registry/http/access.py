"""The access log: a line per answer, gathered for a moment so that many lines are one write."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from registry.log import clf_time

# The status of a request whose client hung up before its answer, as nginx writes it.
CUT_OFF = 499
# Lines wait this long at most, s.
GATHER_SECONDS = 0.05
# Lines that are written without waiting; they come from one burst.
MAX_GATHERED = 1000


class Access:
    """Makes the lines and hands them, many at once, to ``write(*lines)``.

    ``later(seconds, f)`` calls back in time. Combined log format, with the duration in ms at the end.
    """

    def __init__(self, write: Callable[..., Any], later: Callable[..., Any]) -> None:
        self._write = write
        self._later = later
        self._lines: list[str] = []
        self._call: Any = None
        self._when = ""

    def served(
        self,
        client: str,
        line: str,
        status: int,
        sent: int,
        agents: str,
        began: float,
    ) -> None:
        """One answer; ``line`` and ``agents`` have their escapes already.

        ``began``: the monotonic time at which the request was whole.
        """
        if self._call is None:
            self._begin()
        lines = self._lines
        lines.append(
            f'{client} - - [{self._when}] "{line}" {status} {sent or "-"} {agents} '
            f"{(time.monotonic() - began) * 1000:.1f}ms"
        )
        if len(lines) >= MAX_GATHERED:
            self.flush()

    def _begin(self) -> None:
        self._when = clf_time(int(time.time()))
        self._call = self._later(GATHER_SECONDS, self._on_time)

    def _on_time(self) -> None:
        self._call = None
        self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._lines:
            lines, self._lines = self._lines, []
            self._write(*lines)

"""The access log: a line per answer. Lines are buffered briefly, so that many are one write."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time
from typing import Any

from registry.log import clf_time

# The status of a request whose client hung up before its answer, as nginx writes it.
CUT_OFF = 499
# Lines wait this long at most, s.
GATHER_SECONDS = 0.05
# This many lines, which come from a burst, are written without waiting.
MAX_GATHERED = 1000


class Access:
    """Formats the lines and passes them, many at once, to ``write(*lines)``.

    ``later(seconds, f)`` schedules a call of ``f``. Combined log format, with the duration in ms at the end.
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
        name: str = "",
    ) -> None:
        """Log one answer of ``sent`` bytes; ``line`` and ``agents`` are already escaped.

        ``began``: the monotonic time at which the request was complete. ``name``: of the caller's token, "" for none.
        """
        if self._call is None:
            self._begin()
        lines = self._lines
        lines.append(
            f'{client} - {name or "-"} [{self._when}] "{line}" {status} {sent or "-"} {agents} '
            f"{(monotonic() - began) * 1000:.1f}ms"
        )
        if len(lines) >= MAX_GATHERED:
            self.flush()

    def _begin(self) -> None:
        self._when = clf_time(int(time()))
        self._call = self._later(GATHER_SECONDS, self._on_time)

    def _on_time(self) -> None:
        self._call = None
        self.flush()

    def flush(self) -> None:
        """Write the buffered lines."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        if self._lines:
            lines, self._lines = self._lines, []
            self._write(*lines)

"""Tells when bytes that were written to a transport have all left for the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPullProducer
from zope.interface import implementer

from registry.sockets import beneath_tls


@implementer(IPullProducer)
class Drain:
    """Calls ``drained()`` once, when the buffer of the transport is empty; never if the connection is lost first.

    ``later(seconds, f)`` schedules a call of ``f``.
    """

    __slots__ = ("_drained", "_raw")

    def __init__(
        self, transport: Any, is_plain: bool, later: Callable[..., Any], drained: Callable[[], None]
    ) -> None:
        self._raw = beneath_tls(transport)
        self._drained: Callable[[], None] | None = None
        if is_plain:
            self._watch(drained)
        else:
            # TLS buffers small writes until the next turn of the reactor, then passes them down.
            later(0, self._watch_tls, drained)

    def _watch(self, drained: Callable[[], None]) -> None:
        # Registering calls `resumeProducing` at once; it does nothing then.
        self._raw.registerProducer(self, False)
        self._drained = drained

    def _watch_tls(self, drained: Callable[[], None]) -> None:
        if self._raw is not None and self._raw.connected and not self._raw.disconnecting:
            self._watch(drained)
            # If the buffer is already empty, this makes the reactor notice.
            self._raw.startWriting()

    def stop(self) -> None:
        """It no longer matters."""
        raw, self._raw = self._raw, None
        if self._drained is not None:
            self._drained = None
            raw.unregisterProducer()

    def resumeProducing(self) -> None:
        """The transport's buffer is empty."""
        drained, self._drained = self._drained, None
        if drained is not None:
            self._raw.unregisterProducer()
            drained()

    def stopProducing(self) -> None:
        """The connection is lost."""
        self._drained = None

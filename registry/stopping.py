"""What the daemon and the parent of several processes have in common: how they come to an end."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()


class StopsOnce(Service):  # type: ignore[misc]
    """A second SIGTERM is harmless: ``_stop`` runs once, and all who asked for the stop wait for the same end."""

    _over: Deferred[None] | None = None

    @property
    def stopping(self) -> bool:
        return self._over is not None

    def stopService(self) -> Deferred[None]:
        if self._over is None:
            super().stopService()  # type: ignore[no-untyped-call]
            self._over = Deferred()
            self._stop().addErrback(self._not_clean).addCallback(self._over.callback)
        waiting: Deferred[None] = Deferred()
        self._over.addCallback(lambda _: waiting.callback(None))
        return waiting

    def _stop(self) -> Deferred[Any]:
        """Do what has to be done, once."""
        raise NotImplementedError

    def _not_clean(self, failure: Failure) -> None:
        log.failure("the stop was not clean", failure)

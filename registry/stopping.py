"""A service that stops once: the base of the daemon and of the parent of several processes."""

from __future__ import annotations

from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()


class StopsOnce(Service):  # type: ignore[misc]
    """``_stop`` runs once, even after a second SIGTERM; all callers of ``stopService`` wait for the same end."""

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
        """Stop the service; called once."""
        raise NotImplementedError

    def _not_clean(self, failure: Failure) -> None:
        log.failure("the stop was not clean", failure)

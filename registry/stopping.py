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

    _stopped: Deferred[None] | None = None

    @property
    def stopping(self) -> bool:
        return self._stopped is not None

    def stopService(self) -> Deferred[None]:
        if self._stopped is None:
            super().stopService()  # type: ignore[no-untyped-call]
            self._stopped = Deferred()
            self._stop().addErrback(self._not_clean).addCallback(self._stopped.callback)
        waiting: Deferred[None] = Deferred()
        self._stopped.addCallback(lambda _: waiting.callback(None))
        return waiting

    def _stop(self) -> Deferred[Any]:
        """Stop the service; called once."""
        raise NotImplementedError

    def _not_clean(self, failure: Failure) -> None:
        log.failure("the shutdown was not clean", failure)

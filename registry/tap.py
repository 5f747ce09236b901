"""``twistd registry``: turns options into one service. The only module that imports the reactor."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from twisted.application.service import IService
from twisted.internet import reactor
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger
from twisted.python import usage

from registry import __version__
from registry.child import VARIABLE
from registry.config import SETTINGS, ConfigError, Setting, load, warnings
from registry.daemon import Daemon
from registry.endpoints import check_listen
from registry.hangup import Hangup
from registry.log import install
from registry.output import output_of
from registry.pid_file import remove_left_over
from registry.processes import Processes
from registry.redis.topology import parse_address

log = Logger()


def _option(one: Setting) -> list[str | None]:
    return [one.option, None, None, one.summary + (f" [{one.default}]" if one.default else "")]


class Options(usage.Options):  # type: ignore[misc]
    """One option per setting. A setting that is not given comes from the environment, else ``.env``, else its default."""

    synopsis = "[options]"
    longdesc = (
        "A task queue that any HTTP client can use. Every option can be given as a variable of the same name in "
        "upper case, in the environment or in a file .env in the working directory."
    )
    optParameters = [_option(one) for one in SETTINGS if one.name != "LISTEN"]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """A Twisted endpoint string: tcp:8080:interface=127.0.0.1 (else every address), unix:/run/r.sock, …; may be repeated."""
        self["listen"].append(endpoint)

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"registry {__version__}")
        sys.exit(0)

    def parseOptions(self, options: Any = None) -> None:
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as e:
            self._refuse(str(e))

    def _refuse(self, why: str) -> None:
        # A UsageError would print the whole help before the one sentence that matters.
        wrong = re.search(r"--([\w-]+) not recognized", why)
        near = get_close_matches(wrong[1], [one.option for one in SETTINGS], 1) if wrong else []
        hint = f"did you mean --{near[0]}?" if near else "see twistd registry --help."
        sys.exit(f"registry: {why.rstrip('.')}; {hint}")

    def postOptions(self) -> None:
        given = {key: value for key, value in self.items() if value not in (None, [])}
        try:
            self.config = load(given, os.environ)
            if self.config.redis_url:
                _check_files(self.config.redis_url)
            check_listen(reactor, self.config)
        except ConfigError as e:
            sys.exit(f"registry: {e}")
        except ValueError as e:  # same wording as for an address that cannot be listened on
            sys.exit(f"registry stops: {e}")
        parent: Any = self.parent or {}
        pid_file = parent.get("pidfile")  # twist has none
        if pid_file and (pid := remove_left_over(pid_file)):
            print(
                f"registry: {pid_file} named a daemon that has ended (process {pid}); removed",
                file=sys.stderr,
            )
        # The parent of a child has logged the same warnings already.
        self.warnings = [] if VARIABLE in os.environ else warnings(os.environ)
        self.access = install(self, self.config, os.environ)


def makeService(options: Options) -> IService:
    """The whole daemon as a service."""
    # Timers must not follow the wall clock: if it were set an hour forward, all of them would fire at once.
    reactor.seconds = time.monotonic  # type: ignore[attr-defined,method-assign]
    reactor.stop = _stop_once(reactor.stop)  # type: ignore[attr-defined,method-assign]
    # After the last line of the stop. From then on each write waits, so that what twistd logs later is written too.
    reactor.addSystemEventTrigger("after", "shutdown", options.access.finish)  # type: ignore[attr-defined]
    config = options.config
    for text in options.warnings:
        log.warn("{text}", text=text)
    access = options.access if config.access_log else None
    service: Daemon | Processes
    if config.processes > 1:
        service = Processes(config, reactor, os.environ, output_of(options.parent, access), _fail)
    else:
        service = Daemon(config, reactor, os.environ, access, _fail)
    Hangup(reactor, service.reload)
    return service


def _check_files(url: str) -> None:
    try:
        parse_address(url).check_files()
    except ValueError as e:
        raise ConfigError(f"REDIS_URL names a file that cannot be used: {e}.") from None


def _stop_once(stop: Callable[[], None]) -> Callable[[], None]:
    """The reactor's stop, which may be called again: a second SIGTERM must not log an error."""

    def once() -> None:
        with contextlib.suppress(ReactorNotRunning):
            stop()

    return once


def _fail(why: str) -> None:
    """Stop with a non-zero exit status: twistd has no way to set one once the reactor runs."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    # The reason is in the log already.
    atexit.register(leave)
    stop: Callable[[], Any] = reactor.stop  # type: ignore[attr-defined]
    reactor.callWhenRunning(stop)  # type: ignore[attr-defined]

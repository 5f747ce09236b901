"""``twistd registry --processes N``: a parent that serves no requests itself, and N children that do.

    parent   binds the listening sockets, runs the embedded Redis, starts the children and watches them
    child    the same daemon with PROCESSES=1 and its settings in its environment (`registry.child`)

    start:  (embedded Redis) -> sockets -> children -> READY when all of them serve
    stop:   close sockets, SIGTERM to the children -> they drain; SIGKILL after 20 s -> embedded Redis

A child that ends, or whose reactor has been silent for half a minute, is replaced; until its successor serves, another
child accepts its connections. Each child has one *slot*, numbered from 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred, DeferredList, inlineCallbacks
from twisted.internet.error import CannotListenError, ProcessDone, ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from registry import __version__
from registry.child import LINK, VARIABLE, LineLink, line_link
from registry.config import Config, passwords_of
from registry.endpoints import endpoints_of
from registry.errors import RegistryError
from registry.listening import SocketBinder, address_text, check_public, raise_file_limit, startup_error
from registry.model.tokens import TokensError, load
from registry.output import Output, reader
from registry.redis.embedded import Embedded
from registry.stopping import StopsOnce
from registry.systemd import Notifier

log = Logger()

DRAIN_SECONDS = 20.0
BACKOFF_SECONDS = (0.1, 5.0)
STABLE_SECONDS = 10.0  # the backoff is reset after a child ran this long
# Seconds without a message after which a child counts as hung; more for the first message, because it has to start.
SILENT_SECONDS = 30
STARTING_SECONDS = 120

_INHERITED = Output(pipe=False)
# setsid: Ctrl-C in a terminal then reaches only the parent, which stops everything in the right order.
_PROGRAM = "import os; os.setsid(); from twisted.scripts.twistd import run; run()"
# Variables that are meant for the parent only.
_NOT_INHERITED = frozenset(
    (
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "REDIS_URL",
    )
)


class Processes(StopsOnce):
    """The parent as a service. Arguments as for `registry.daemon.Daemon`; ``output``: where the children's lines go."""

    name = "registry"

    def __init__(
        self,
        config: Config,
        reactor: Any,
        environ: Mapping[str, str] = os.environ,
        output: Output = _INHERITED,
        fail: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.config = config
        self.reactor = reactor
        self.output = output
        self._environ = environ
        self._fail = fail
        self._id = os.urandom(6).hex()
        self._notifier = Notifier(reactor, environ)
        self._embedded: Embedded | None = None
        self.binder = SocketBinder(reactor, config.processes)
        self.slots = [WorkerSlot(self, index) for index in range(config.processes)]
        self._watch = LoopingCall(self._check_children)
        self._watch.clock = reactor
        self._redis_url = config.redis_url or ""
        self._url_file: int | None = None  # a memfd that the children read
        self._warnings: list[str] = []
        self.was_ready = self._given_up = self._has_tokens = False

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._start().addErrback(self._cannot_start)

    @inlineCallbacks
    def _start(self) -> Any:
        config = self.config
        log.info("registry {version} starts with {settings}", version=__version__, settings=config.describe())
        raise_file_limit()
        self.look_for_tokens()
        if not self._redis_url:
            fsync: Any = config.redis_fsync
            self._embedded = Embedded(
                self.reactor, config.data_dir, fsync, config.redis_server, maxmemory=config.redis_maxmemory
            )
            address = yield self._embedded.start()
            self._redis_url = f"unix://{quote(address.path)}"
        for text in endpoints_of(config, self._environ):
            yield self.binder.listen(text)
        if self.stopping:
            return
        for where in self.binder.addresses:
            log.info(
                "listening on {where}, with {n} processes", where=address_text(where), n=config.processes
            )
        allowed = config.allow_anonymous
        self._warnings = check_public(
            self.binder.addresses, has_tokens=self._has_tokens, allow_anonymous=allowed
        )
        for text in self._warnings:
            log.critical("{text}", text=text)
        for slot in self.slots:
            slot.spawn()
        self._watch.start(1, now=False)

    def _cannot_start(self, failure: Failure) -> None:
        if self.stopping:
            return
        if not failure.check(RegistryError, CannotListenError, ValueError, OSError):
            log.failure("the daemon cannot start", failure)
        self.give_up(startup_error(failure.value))

    def give_up(self, why: str) -> None:
        """Stop with a non-zero exit."""
        if not self._given_up:
            self._given_up = True
            log.critical("registry stops: {why}", why=why)
            self._fail(why)

    @property
    def _url_descriptor(self) -> int:
        return LINK + 1 + len(self.binder.bound)

    def descriptors(self) -> dict[int, int]:
        """The descriptors that a child inherits besides its output and its link: its number -> ours."""
        inherited = {fd: one.fd for fd, one in enumerate(self.binder.bound, LINK + 1)}
        if not passwords_of(self._redis_url):
            return inherited
        if self._url_file is None:
            self._url_file = os.memfd_create("redis-url")
            os.write(self._url_file, self._redis_url.encode())
        return inherited | {self._url_descriptor: self._url_file}

    def environment(self, slot: int) -> dict[str, str]:
        """A child's environment. It contains every setting, so that neither .env nor a default can change one."""
        config = self.config
        settings = dataclasses.replace(config, processes=1, listen=(), redis_url_file=None).describe()
        settings["REDIS_URL"] = self._redis_url  # describe() hides its password
        if passwords_of(self._redis_url):
            # Keep the password out of the children's environment: they read the URL from a descriptor.
            del settings["REDIS_URL"]
            settings["REDIS_URL_FILE"] = f"/dev/fd/{self._url_descriptor}"
        inherited = {name: value for name, value in self._environ.items() if name not in _NOT_INHERITED}
        bound = [[fd, one.slot, one.endpoint] for fd, one in enumerate(self.binder.bound, LINK + 1)]
        return {
            **inherited,
            **settings,
            # The children must find this package where twistd found it, such as in the working directory.
            "PYTHONPATH": os.pathsep.join(
                os.path.abspath(path) for path in sys.path if os.pathsep not in path
            ),
            VARIABLE: json.dumps(
                {
                    "daemon": self._id,
                    "slot": slot,
                    "bound": bound,
                    "tokens": self._has_tokens,
                    "warnings": self._warnings,
                }
            ),
        }

    def reload(self) -> None:
        """Let every child read again what can change: SIGHUP."""
        for slot in self.slots:
            slot.reload()

    def look_for_tokens(self) -> bool:
        """Whether there are or were tokens: a child that starts when none are left must not let everybody in."""
        if self.config.tokens_file and not self._has_tokens:
            self._has_tokens = bool(load(self.config.tokens_file).tokens)
        return self._has_tokens

    def look_again_for_tokens(self) -> None:
        """The same while the children run: they read the file themselves, and say what is wrong with it."""
        with contextlib.suppress(TokensError):
            self.look_for_tokens()

    # Called by the slots

    def changed(self) -> None:
        """A child began to serve, or has ended and will be replaced."""
        if self.stopping:
            return
        ready = [slot for slot in self.slots if slot.ready]
        if self.was_ready:
            for slot in ready:
                if slot.covers is not None and self.slots[slot.covers].ready:
                    slot.cover(None)
            covered = {slot.covers for slot in ready}
            free = [slot for slot in ready if slot.covers is None]
            left = [slot.index for slot in self.slots if not slot.ready and slot.index not in covered]
            for slot, index in zip(free, left, strict=False):
                slot.cover(index)
            self._notifier.status(f"serving with {len(ready)} of {len(self.slots)} processes")
        elif len(ready) == len(self.slots):
            self.was_ready = True
            self._notifier.ready(f"serving with {len(ready)} processes")

    def _check_children(self) -> None:
        self.look_again_for_tokens()
        for slot in self.slots:
            slot.check()

    # Stop

    @inlineCallbacks
    def _stop(self) -> Any:
        self._notifier.stopping()
        if self._watch.running:
            self._watch.stop()
        log.info("registry stops: its {n} processes finish the requests in progress", n=len(self.slots))
        closing = self.binder.close()
        yield DeferredList([slot.end() for slot in self.slots])
        yield closing
        if self._embedded is not None:
            yield self._embedded.stop()
        self._notifier.close()
        log.info("registry has stopped")


class WorkerSlot(ProcessProtocol):
    """The place of one child and of its successors: starts, watches, replaces and ends them."""

    def __init__(self, processes: Processes, index: int) -> None:
        self.index = index
        self.ready = False
        self.covers: int | None = None  # the slot whose connections this child accepts too
        self._processes = processes
        self.pid: int | None = None  # of the current or else the last child
        self._link: LineLink | None = None
        self._is_running = False
        self._silent = 0
        self._started_at = 0.0
        self._pause = BACKOFF_SECONDS[0]
        self._restart_call: Any = None
        self._ended: Deferred[None] | None = None

    def spawn(self) -> None:
        """Start a child; if that fails, it is treated as a child that ended."""
        processes = self._processes
        self._restart_call = None
        self._silent = 0
        self._started_at = time.monotonic()
        processes.look_again_for_tokens()
        opened: list[Any] = []
        try:
            ours, theirs = socket.socketpair()
            opened += ours, theirs
            null = open(os.devnull, "rb")  # noqa: SIM115 - closed below, with the others
            opened.append(null)
            fds = {0: null.fileno(), 1: 1, 2: 2, LINK: theirs.fileno()}
            environment = processes.environment(self.index)
            if processes.output.pipe:
                out, variables = reader(processes.reactor, processes.output, f"process {self.index}")
                opened.append(out)
                fds[1] = fds[2] = out.fileno()
                environment |= variables
            fds |= processes.descriptors()
            twistd = ["twistd", "-n", "--pidfile=", *processes.output.arguments, "registry"]
            arguments = [sys.executable, "-P", "-c", _PROGRAM, *twistd[1:]]
            processes.reactor.spawnProcess(self, sys.executable, arguments, env=environment, childFDs=fds)
            self._is_running = True
            assert self.transport is not None
            self.pid = self.transport.pid
            self._link = line_link(processes.reactor, ours.fileno(), self._on_line, lambda: None)
        except OSError as error:
            if self._is_running:
                self._signal("KILL")
            else:
                self._on_exit(f"could not be started: {error}", None)
        finally:
            for one in opened:
                one.close()

    def _on_line(self, word: str, number: int) -> None:
        self._silent = 0
        if word == "ready" and not self.ready:
            self.ready = True
            self._processes.changed()

    def cover(self, slot: int | None) -> None:
        """Let this child accept the connections of another slot too; None: stop doing so."""
        assert self._link is not None
        if self.covers is not None:
            self._link.send(f"uncover {self.covers}")
        if slot is not None:
            self._link.send(f"cover {slot}")
        self.covers = slot

    def check(self) -> None:
        """Called every second. It counts calls, not time, so that a parent that was suspended kills no child."""
        self._silent += 1
        if self._is_running and self._silent == (SILENT_SECONDS if self.ready else STARTING_SECONDS):
            log.critical(
                "process {slot} (pid {pid}) has sent nothing for {n} s and is being killed",
                slot=self.index,
                pid=self.pid,
                n=self._silent,
            )
            self._signal("KILL")

    def _signal(self, name: str) -> None:
        assert self.transport is not None
        try:
            self.transport.signalProcess(name)
        except ProcessExitedAlready:
            pass

    def processEnded(self, reason: Failure) -> None:
        value: Any = reason.value
        if isinstance(value, ProcessDone):
            self._on_exit("exited with status 0", 0)
        elif value.signal is not None:
            self._on_exit(f"was killed by {signal.Signals(value.signal).name}", None)
        else:
            self._on_exit(f"exited with status {value.exitCode}", value.exitCode)

    def _on_exit(self, how: str, status: int | None) -> None:
        processes = self._processes
        self._is_running = self.ready = False
        self.covers = None
        link, self._link = self._link, None
        if link is not None and link.transport is not None:
            link.transport.loseConnection()
        if processes.stopping:
            if self._ended is not None:
                self._ended.callback(None)
            return
        if status and not processes.was_ready:
            # The same reason would keep the other children, and a new one, from starting.
            processes.give_up(f"process {self.index} could not start: it {how}; see its own log lines.")
            return
        if time.monotonic() - self._started_at > STABLE_SECONDS:
            self._pause = BACKOFF_SECONDS[0]
        log.critical(
            "process {slot} (pid {pid}) {how}; restarting it in {pause:.1f} s",
            slot=self.index,
            pid=self.pid,
            how=how,
            pause=self._pause,
        )
        self._restart_call = processes.reactor.callLater(self._pause, self.spawn)
        self._pause = min(self._pause * 2, BACKOFF_SECONDS[1])
        processes.changed()

    def reload(self) -> None:
        """Pass SIGHUP on to a child that runs."""
        if self.ready:
            self._signal("HUP")

    def end(self) -> Deferred[None]:
        """Send SIGTERM, and SIGKILL after 20 s; fires when the child has ended."""
        if self._restart_call is not None:
            self._restart_call.cancel()
            self._restart_call = None
        ended: Deferred[None] = Deferred()
        if not self._is_running:
            ended.callback(None)
            return ended
        self._ended = ended
        self._signal("TERM")
        kill = self._processes.reactor.callLater(DRAIN_SECONDS, self._kill)

        def cancel_kill(result: None) -> None:
            if kill.active():
                kill.cancel()

        return ended.addCallback(cancel_kill)

    def _kill(self) -> None:
        log.critical(
            "process {slot} (pid {pid}) did not exit within {n:.0f} s and is being killed",
            slot=self.index,
            pid=self.pid,
            n=DRAIN_SECONDS,
        )
        self._signal("KILL")

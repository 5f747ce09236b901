"""Several processes behind one address: they share the work, and a child that ends is replaced."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure

from registry.config import Config, load
from registry.output import Reader
from registry.processes import Processes, WorkerSlot
from tests.conftest import LoggedErrors, StartDaemon
from tests.live import Daemon, RedisServer, children_of, processes_in, wait_until

pytestmark = pytest.mark.timeout(120)


class Connection:
    """A connection that is kept alive, and so stays with one of the children. ``child`` tells them apart."""

    def __init__(self, daemon: Daemon) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
        self.child = ""
        # Each process makes its request ids from one random beginning.
        self.child = self.ask("GET", "/api/popTask/nothing-here?wait=0")[1]["X-Request-Id"][:8]

    def send(self, method: str, path: str, body: bytes | None = None) -> None:
        self.http.request(method, path, body)

    def answer(self) -> tuple[int, Any, bytes]:
        response = self.http.getresponse()
        return response.status, response.headers, response.read()

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any, bytes]:
        self.send(method, path, body)
        return self.answer()

    def push(self, name: str, task: Any) -> str:
        status, headers, body = self.ask("PUT", f"/api/pushTask/{name}", json.dumps(task).encode())
        assert status == 200, body
        return str(headers["X-Request-Id"][:8])

    def close(self) -> None:
        self.http.close()


def one_to_each(daemon: Daemon, children: int = 2) -> list[Connection]:
    """A connection to each of the children."""
    found: dict[str, Connection] = {}
    for _ in range(200):
        one = Connection(daemon)
        if found.setdefault(one.child, one) is not one:
            one.close()
        if len(found) == children:
            return list(found.values())
    raise AssertionError(f"200 connections reached {len(found)} of {children} children")


def pollers(connection: Connection, name: str) -> int:
    body = connection.ask("GET", f"/api/queues/{name}")[2]
    return int(json.loads(body).get("pollers", -1))


@pytest.fixture
def two(daemon: StartDaemon, redis_server: RedisServer) -> Daemon:
    """Two children on ``redis_server``."""
    return daemon("--processes=2", redis=redis_server).redis_ready()


def test_both_serve_and_wake_each_other(two: Daemon) -> None:
    one, other = one_to_each(two)
    assert {one.push("mine", 1), other.push("mine", 2)} == {one.child, other.child}
    one.send("GET", "/api/popTask/q?wait=20")
    wait_until(lambda: pollers(other, "q") == 1, 10, "the poller to be counted by the other child")
    again = next(c for c in iter(lambda: Connection(two), None) if c.child == other.child)
    again.send("GET", "/api/popTask/q?wait=20")
    wait_until(lambda: pollers(other, "q") == 2, 10, "the sum over both children")
    other.push("q", "first")
    other.push("q", "second")
    told = [one.answer(), again.answer()]
    assert {status for status, _, _ in told} == {200}
    assert {json.loads(body)["task"] for _, _, body in told} == {"first", "second"}


def test_a_killed_child_is_replaced_while_the_other_serves(two: Daemon) -> None:
    one, other = one_to_each(two)
    before = set(children_of(two.pid))
    assert len(before) == 2
    for connection in (one, other):
        connection.send("GET", "/api/popTask/parked?wait=50")
    victim = before.pop()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: f"(pid {victim}) was killed by SIGKILL" in two.log, 10, "a line about it")
    # None is refused, and none has to wait for the successor: the other child covers for it.
    for _ in range(20):
        assert Connection(two).child
    wait_until(lambda: len(children_of(two.pid)) == 2, 10, "a new child")
    assert before < set(children_of(two.pid))
    third = wait_until(lambda: _other_than(two, {one.child, other.child}), 20, "an answer of the new child")
    third.push("parked", "still here")
    answers = []
    for connection in (one, other):
        try:
            answers.append(connection.answer()[2])
        except (http.client.HTTPException, OSError):
            answers.append(b"gone")
    assert sorted(answers) == [b"gone", b'{"task":"still here"}']
    assert two.terminate() in (0, -signal.SIGTERM)


def _other_than(daemon: Daemon, known: set[str]) -> Connection | None:
    connection = Connection(daemon)
    return connection if connection.child not in known else None


def test_sigterm_answers_the_polls_of_all_children(daemon: StartDaemon) -> None:
    two = daemon("--processes=2").redis_ready()
    polls = [*one_to_each(two), *(Connection(two) for _ in range(20))]
    for poll in polls:
        poll.send("GET", "/api/popTask/q?wait=50")
    watching = Connection(two)
    wait_until(lambda: pollers(watching, "q") == len(polls), 15, "all polls to be parked")
    os.kill(two.pid, signal.SIGTERM)
    os.kill(two.pid, signal.SIGTERM)
    for poll in polls:
        status, headers, _ = poll.answer()
        assert (status, headers["Connection"]) == (202, "close")
    assert two.wait(30) in (0, -signal.SIGTERM)
    assert list(processes_in(two.folder)) == []
    assert "CRITICAL" not in two.log.upper()
    with pytest.raises(OSError):
        Connection(two)


def test_a_killed_parent_leaves_no_orphan_and_no_task(daemon: StartDaemon) -> None:
    two = daemon("--processes=2").redis_ready()
    one, other = one_to_each(two)
    for number in range(10):
        (one, other)[number % 2].push("kept", number)
    one.send("GET", "/api/popTask/q?wait=50")
    wait_until(lambda: pollers(other, "q") == 1, 10, "a parked poll")
    two.kill9()
    assert one.answer()[0] == 202, "the child stops as it should: the poll is answered"
    wait_until(lambda: not list(processes_in(two.folder)), 15, "the end of the children and of their Redis")
    two.start().redis_ready()
    popped = [Connection(two).ask("GET", "/api/popTask/kept?wait=5")[2] for _ in range(10)]
    assert [json.loads(body)["task"] for body in popped] == list(range(10))


def test_the_parent_stops_when_no_child_can_start(daemon: StartDaemon, redis_server: RedisServer) -> None:
    redis_server.command("SET", "{registry}schema", "99")  # of a daemon that is newer
    two = daemon("--processes=2", redis=redis_server, wait=False)
    assert two.wait(30) == 1
    assert "could not start" in two.log
    assert "upgrade this daemon" in two.log
    assert "Traceback" not in two.log


def test_a_port_in_use_is_one_sentence(two: Daemon, daemon: StartDaemon, redis_server: RedisServer) -> None:
    again = daemon("--processes=2", f"--port={two.port}", redis=redis_server, wait=False)
    assert again.wait(20) == 1
    assert f"127.0.0.1:{two.port}" in again.log
    assert "Traceback" not in again.log
    one_to_each(two)


def test_port_0_is_one_port(daemon: StartDaemon, redis_server: RedisServer) -> None:
    two = daemon("--processes=2", redis=redis_server, env={"PORT": "0"}, wait=False)
    wait_until(lambda: "listening on 127.0.0.1:" in two.log, 20, "a line about its port")
    two.port = int(two.log.partition("listening on 127.0.0.1:")[2].partition(",")[0])
    wait_until(lambda: len(children_of(two.pid)) == 2, 10, "the children")
    assert len({one.child for one in one_to_each(two)}) == 2


def test_unix_sockets_and_tls_are_shared_too(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    pem, path = short_dir / "key.pem", short_dir / "sock"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        + ["-subj", "/CN=localhost", "-keyout", pem, "-out", short_dir / "cert.pem", "-days", "2"],
        check=True,
        capture_output=True,
    )
    two = daemon(
        "--processes=2",
        f"--listen=unix:{path}:mode=600",
        f"--listen=ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={short_dir / 'cert.pem'}",
        redis=redis_server,
        wait=False,
    )
    wait_until(lambda: two.log.count("listening on") == 2, 20, "both listeners")
    port = int(two.log.partition("listening on 127.0.0.1:")[2].partition(",")[0])

    def over_unix() -> bytes:
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(str(path))
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return one.makefile("rb").readline()

    assert over_unix() == b"HTTP/1.1 200 OK\r\n"
    trusted = ssl.create_default_context(cafile=str(short_dir / "cert.pem"))
    found = set()
    for _ in range(40):
        tls = http.client.HTTPSConnection("localhost", port, context=trusted, timeout=20)
        tls.request("GET", "/api/popTask/q?wait=0")
        answer = tls.getresponse()
        assert answer.status == 202
        found.add(answer.headers["X-Request-Id"])
        tls.close()
    assert len(found) == 40
    os.kill(children_of(two.pid)[0], signal.SIGKILL)
    wait_until(lambda: "restarting it" in two.log, 10, "a line about the end of a child")
    assert over_unix() == b"HTTP/1.1 200 OK\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "a child must not set it anew"
    assert two.terminate() in (0, -signal.SIGTERM)
    assert not path.exists()


def test_systemd_hears_the_parent_alone(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(short_dir / "notify"))
        systemd.settimeout(20)
        env = {"NOTIFY_SOCKET": str(short_dir / "notify"), "WATCHDOG_USEC": "600000"}
        two = daemon("--processes=2", redis=redis_server, env=env, wait=False)
        heard = [systemd.recv(4096) for _ in range(3)]
        assert heard == [b"READY=1\nSTATUS=serving with 2 processes", b"WATCHDOG=1", b"WATCHDOG=1"]
        one_to_each(two)
        os.kill(children_of(two.pid)[0], signal.SIGKILL)
        until(systemd, b"STATUS=serving with 1 of 2 processes")
        until(systemd, b"STATUS=serving with 2 of 2 processes")
        os.kill(two.pid, signal.SIGTERM)
        until(systemd, b"STOPPING=1")
        two.wait()


def until(systemd: socket.socket, wanted: bytes) -> None:
    for _ in range(200):
        if systemd.recv(4096) == wanted:
            return
    raise AssertionError(f"{wanted!r} was not heard")


WHO = re.compile(r"(parent|process [01]): ")


def names_its_process(lines: list[str]) -> None:
    """Each of these lines says which process wrote it; parent and children have written some, and access lines came from children."""
    who = set()
    for line in lines:
        if '" 20' in line:
            assert re.search(r"ms process [01]$", line), line
        elif not line.startswith("\t"):
            found = WHO.search(line)
            assert found and found.start() == line.index("] " if "] " in line else ": ") + 2, line
            who.add(found[1])
    assert who == {"parent", "process 0", "process 1"}


def test_lines_of_children_reach_the_log_file(daemon: StartDaemon, redis_server: RedisServer) -> None:
    file = "all.log"
    twistd = ("twistd", "-n", "--pidfile=", f"--logfile={file}")
    two = daemon("--processes=2", redis=redis_server, twistd=twistd)
    one_to_each(two)
    two.terminate()
    lines = (two.folder / file).read_text("utf-8").splitlines()
    served = [line for line in lines if "GET /api/popTask/nothing-here?wait=0" in line]
    assert served and all(line.startswith("127.0.0.1 - - [") for line in served)
    assert sum("[registry.daemon#info] process " in line and "has stopped" in line for line in lines) == 2
    names_its_process(lines)
    assert not [line for line in lines if line.startswith("<") or "<6>" in line]
    assert two.log == ""


@contextlib.contextmanager
def events() -> Iterator[list[LogEvent]]:
    seen: list[LogEvent] = []
    observer = cast(ILogObserver, seen.append)
    globalLogPublisher.addObserver(observer)
    try:
        yield seen
    finally:
        globalLogPublisher.removeObserver(observer)


def test_a_child_is_read_line_by_line(logged_errors: LoggedErrors) -> None:
    access: list[str] = []
    reader = Reader(lambda *lines: access.extend(lines), "process 1")
    with events() as seen:
        reader.dataReceived(b"<4>registry.redis.link: be")
        reader.dataReceived(b"ware: of this\n<3>registry.daemon: it failed\n<3>\tTraceback:\n<3>\t  line 1\n")
        reader.dataReceived(
            b'<6>::1 - - [24/Nov/2026:07:50:50 +0000] "GET / HTTP/1.1" 200\nno module named x\n'
        )
    told = [(e["log_namespace"], e["log_level"], formatEvent(e), e.get("log_failure")) for e in seen]
    assert told[0] == ("registry.redis.link", LogLevel.warn, "beware: of this", None)
    assert told[1][:3] == ("registry.daemon", LogLevel.error, "it failed")
    assert cast(Failure, told[1][3]).getTraceback() == "Traceback:\n  line 1"
    assert told[2] == ("registry.child", LogLevel.error, "process 1: no module named x", None)
    assert access == ['::1 - - [24/Nov/2026:07:50:50 +0000] "GET / HTTP/1.1" 200']
    logged_errors.flush()


# The supervision, with a clock and without processes


class FakeProcess:
    """What the reactor gives a protocol as its process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.signals: list[str] = []

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)


class FakeReactor(Clock):
    """A clock that starts no processes, but remembers those it was to start."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.started: list[tuple[FakeProcess, dict[str, str]]] = []

    def spawnProcess(
        self, protocol: Any, program: str, args: Any, env: dict[str, str], childFDs: Any
    ) -> None:
        process = FakeProcess(1000 + len(self.started))
        self.started.append((process, env))
        protocol.makeConnection(process)

    def adoptStreamConnection(self, fd: int, family: int, factory: Any) -> None:
        factory.buildProtocol(None)


def config(**settings: Any) -> Config:
    return Config(
        data_dir="/nowhere",
        tokens_file="/nowhere/tokens.json",
        redis_url="redis://:secret@127.0.0.1:1/0",
        **settings,
    )


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def parent(failures: list[str]) -> Processes:
    return Processes(config(processes=2), FakeReactor(), {}, fail=failures.append)


def ready(slot: WorkerSlot) -> None:
    slot._on_line("ready", -1)


def test_the_pause_doubles_and_a_child_that_lasted_starts_it_anew(
    parent: Processes, monkeypatch: pytest.MonkeyPatch, logged_errors: LoggedErrors
) -> None:
    now = 0.0
    monkeypatch.setattr("registry.processes.time.monotonic", lambda: now)
    monkeypatch.setattr(WorkerSlot, "cover", lambda slot, index: setattr(slot, "covers", index))
    reactor: FakeReactor = parent.reactor
    for slot in parent.slots:
        slot.spawn()
        ready(slot)
    crashing, other = parent.slots
    pauses = []
    for _ in range(8):
        crashing.processEnded(Failure(ProcessTerminated(1, None, 256)))
        assert other.covers == 0
        (call,) = reactor.getDelayedCalls()
        pauses.append(round(call.getTime() - reactor.seconds(), 3))
        reactor.advance(pauses[-1])
        ready(crashing)
        assert other.covers is None
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    now = 11.0
    crashing.processEnded(Failure(ProcessDone(0)))
    (call,) = reactor.getDelayedCalls()
    assert round(call.getTime() - reactor.seconds(), 3) == 0.1
    assert len(logged_errors.flush()) == 9, "each end is a critical line"


def test_a_child_that_is_not_heard_of_is_killed(parent: Processes, logged_errors: LoggedErrors) -> None:
    for slot in parent.slots:
        slot.spawn()
        ready(slot)
    silent, talking = parent.slots
    for second in range(1, 91):
        if second % 10 == 0:
            talking._on_line("alive", -1)
        parent._check_children()
    (first, _), (second_process, _) = parent.reactor.started
    assert first.signals == ["KILL"]
    assert second_process.signals == []
    assert silent.pid == first.pid
    (told,) = logged_errors.flush()
    assert "has sent nothing" in formatEvent(told)


def test_a_child_that_cannot_start_ends_all(
    parent: Processes, failures: list[str], logged_errors: LoggedErrors
) -> None:
    for slot in parent.slots:
        slot.spawn()
    for slot in parent.slots:
        slot.processEnded(Failure(ProcessTerminated(1, None, 256)))
    (why,) = failures
    assert why.startswith("process 0 could not start")
    assert not parent.reactor.getDelayedCalls()
    logged_errors.flush()


def test_children_have_every_setting_in_their_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(
        host="::1",
        port=0,
        listen=("tcp:1", "unix:/a b"),
        redis_fsync="everysec",
        queue_timeout=1.25,
        max_wait=59.125,
        pool_max=3,
        max_task_bytes=77,
        key_prefix="a:",
        access_log=False,
        log_level="debug",
        allowed_hosts=("a.example", "*"),
        processes=2,
        redis_server="/x/y",
    )
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=5\nLISTEN=tcp:9\nREDIS_URL_FILE=/nowhere\nPROCESSES=7\nKEY_PREFIX=other\n")
    outer = {"REDIS_URL_FILE": "/nowhere", "NOTIFY_SOCKET": "/x", "LISTEN_FDNAMES": "a", "PATH": "/bin"}
    parent = Processes(given, FakeReactor(), {**outer, "NOTIFY_SOCKET": ""})
    environment = parent.environment(0)
    assert not {"NOTIFY_SOCKET", "LISTEN_FDNAMES", "WATCHDOG_USEC"} & set(environment)
    assert environment["PATH"] == "/bin"
    # The password is in none of them: a child reads the URL from a descriptor, which here has another number.
    assert "REDIS_URL" not in environment
    (there,) = parent.descriptors().values()
    environment["REDIS_URL_FILE"] = f"/dev/fd/{there}"
    got = dataclasses.replace(load({}, environment, str(dotenv)), redis_url_file=None)
    os.close(there)
    assert got == dataclasses.replace(given, processes=1, listen=())


# The limit of open files


def limited(hard: int) -> tuple[str, ...]:
    return ("prlimit", f"--nofile=64:{hard}", str(Path(sys.executable).parent / "twistd"), "-n", "--pidfile=")


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_the_limit_of_open_files_is_raised_and_respected(
    daemon: StartDaemon, redis_server: RedisServer
) -> None:
    one = daemon(redis=redis_server, twistd=limited(320)).redis_ready()
    assert resource.prlimit(one.pid, resource.RLIMIT_NOFILE) == (320, 320)
    idle = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(200)]
    try:
        wait_until(lambda: "new ones are refused" in one.log, 10, "a line about the limit")
        turned_away = idle[-1]
        turned_away.settimeout(10)
        assert turned_away.recv(4096).startswith(b"HTTP/1.1 503 ")
    finally:
        for connection in idle:
            connection.close()
    wait_until(one._healthy, 10, "an answer once there is room again")
    assert "Too many open files" not in one.log
    assert one.log.count("new ones are refused") == 1

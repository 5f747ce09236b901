"""The notifier against a real datagram socket, socket activation in a real process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from registry import systemd
from registry.systemd import Notifier, listen_fds


class Receiver:
    """Plays systemd: a bound datagram socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def messages(self) -> list[str]:
        """All that came in so far; sends on a unix socket arrive at once."""
        got = []
        while True:
            try:
                got.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return got


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    os.chdir(tmp_path)  # a relative path: unix socket names end at 107 bytes
    receiver = Receiver("notify")
    yield receiver
    receiver.socket.close()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """tmp_path is often too long for the name of a unix socket."""
    with tempfile.TemporaryDirectory(prefix="reg") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _back_to_cwd() -> Iterator[None]:
    before = os.getcwd()
    yield
    os.chdir(before)


def test_ready_status_stopping(receiver: Receiver) -> None:
    notifier = Notifier(Clock(), {"NOTIFY_SOCKET": "notify"})
    notifier.ready("listening on 127.0.0.1:3000")
    notifier.status("two\nlines")
    notifier.stopping()
    notifier.close()
    assert receiver.messages() == [
        "READY=1\nSTATUS=listening on 127.0.0.1:3000",
        "STATUS=two lines",
        "STOPPING=1",
    ]


def test_abstract_socket() -> None:
    name = f"registry-test-{os.getpid()}"
    receiver = Receiver("\0" + name)
    notifier = Notifier(Clock(), {"NOTIFY_SOCKET": "@" + name})
    notifier.status("here")
    notifier.close()
    assert receiver.messages() == ["STATUS=here"]
    receiver.socket.close()


def test_watchdog_is_fed_three_times_per_period_until_close(receiver: Receiver) -> None:
    clock = Clock()
    notifier = Notifier(clock, {"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "30000000"})
    clock.advance(60)
    assert receiver.messages() == []  # nothing before ready: systemd does not watch a start
    notifier.ready("up")
    assert receiver.messages() == ["READY=1\nSTATUS=up", "WATCHDOG=1"]
    notifier.ready("up again")
    assert receiver.messages() == ["READY=1\nSTATUS=up again"]
    clock.pump([5, 5, 10, 10])
    assert receiver.messages() == ["WATCHDOG=1"] * 3
    notifier.stopping()
    clock.advance(10)
    assert receiver.messages() == ["STOPPING=1", "WATCHDOG=1"]
    notifier.close()
    notifier.close()
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("extra", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": "1"}])
def test_no_watchdog_for_us(receiver: Receiver, extra: dict[str, str]) -> None:
    clock = Clock()
    notifier = Notifier(clock, {"NOTIFY_SOCKET": "notify", **extra})
    notifier.ready("up")
    assert clock.getDelayedCalls() == []
    notifier.close()


def test_without_systemd_nothing_happens() -> None:
    clock = Clock()
    notifier = Notifier(clock, {"WATCHDOG_USEC": "30000000"})
    notifier.ready("up")
    notifier.status("x")
    notifier.stopping()
    assert clock.getDelayedCalls() == []
    notifier.close()


def test_a_systemd_that_does_not_listen_or_read_does_no_harm(receiver: Receiver) -> None:
    gone = Notifier(Clock(), {"NOTIFY_SOCKET": "absent"})
    gone.ready("up")
    gone.close()
    clock = Clock()
    notifier = Notifier(clock, {"NOTIFY_SOCKET": "notify", "WATCHDOG_USEC": "3000000"})
    notifier.ready("up")
    for _ in range(2000):  # far more than the socket holds
        clock.advance(1)
    assert 0 < len(receiver.messages()) < 2000
    clock.advance(1)
    assert receiver.messages() == ["WATCHDOG=1"]  # still feeding
    notifier.close()


def test_no_sockets_passed() -> None:
    assert listen_fds({}) == []
    assert listen_fds({"LISTEN_FDNAMES": "left:over"}) == []


@pytest.mark.parametrize(("names", "told"), [("", 1), ("a", 0)])
def test_a_socket_without_a_name_is_reported(monkeypatch: pytest.MonkeyPatch, names: str, told: int) -> None:
    lines: list[str] = []
    monkeypatch.setattr(systemd.log, "warn", lambda text, **_: lines.append(text))
    with socket.create_server(("127.0.0.1", 0)) as passed:
        assert listen_fds({"LISTEN_FDNAMES": names}, first=passed.fileno()) == []
    assert len(lines) == told
    assert all("--fdname=registry" in line for line in lines)


def test_other_descriptors_are_no_passed_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(systemd.log, "warn", lambda text, **_: pytest.fail(text))
    with open(tmp_path / "file", "w", encoding="utf-8") as file, socket.socket() as idle:
        for descriptor in (file.fileno(), idle.fileno(), 1000):
            assert listen_fds({}, first=descriptor) == []


ASK = """
import os, sys
from twisted.internet import reactor  # as twistd does: it takes LISTEN_FDS away
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from registry.systemd import listen_fds
class Hello(Protocol):
    def connectionMade(self):
        self.transport.write(b"hello")
        self.transport.loseConnection()
strings = listen_fds(os.environ)
print(*strings, flush=True)
for text in strings:
    serverFromString(reactor, text).listen(Factory.forProtocol(Hello))
reactor.callLater(20, reactor.stop)
reactor.run()
"""


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd-socket-activate")
def test_sockets_of_systemd_are_found_and_serve(short_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-l", str(short_path / "s"), "--fdname=a:b"]
        + [f"--setenv=PYTHONPATH={Path(__file__).parent.parent}", sys.executable, "-c", ASK],
        cwd=short_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        client = _connect(port)
        with client:
            assert client.recv(100) == b"hello"
        assert process.stdout is not None
        assert process.stdout.readline().split() == [
            "systemd:domain=INET:index=0",
            "systemd:domain=UNIX:index=1",
        ]
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(short_path / "s"))
            assert client.recv(100) == b"hello"
    finally:
        process.kill()
        process.communicate()


def _connect(port: int) -> socket.socket:
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=20)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError("systemd-socket-activate never listened")

"""Unix sockets: who may connect, and that leftovers of a killed daemon do not keep the next one from starting."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol

from registry.listening import listen_on
from registry.pid_file import remove_left_over
from tests.conftest import StartDaemon
from tests.live import ROOT, Daemon, RedisServer, wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes the part of other users, which needs root")
STRANGER, FRIENDS = 61001, 61002


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def listen(text: str) -> Any:
    factory = Factory.forProtocol(Protocol)
    factory.noisy = False
    return await listen_on(reactor, text, factory)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("", 0o660),
        (":backlog=100", 0o660),
        (":lockfile=1", 0o660),
        (":lockfile=0", 0o660),
        (":mode=600", 0o600),
        (":mode=666", 0o666),
        (":640", 0o640),
    ],
)
@pytest_twisted.ensureDeferred
async def test_it_is_the_owners_and_one_groups_unless_it_is_said(
    short_dir: Path, umask: int, said: str, meant: int
) -> None:
    path = short_dir / "s"
    before = os.umask(umask)
    try:
        port = await listen(f"unix:{path}{said}")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert mode(path) == meant
    assert [one.name for one in short_dir.iterdir()] == ["s"]  # and no lock
    await port.stopListening()
    assert list(short_dir.iterdir()) == []


def may_connect(path: Path, groups: list[int]) -> bool:
    """Whether somebody else, who is in these groups, gets through to the socket."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups(groups)
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(str(path))
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_root
@pytest.mark.parametrize("processes", ["1", "2"])
def test_one_group_is_let_in_and_nobody_else(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path, processes: str
) -> None:
    """As under the unit, whose folder belongs to its group; and by hand in a folder that hands its group on."""
    unit = (ROOT / "registry.service").read_text("utf-8")
    (folder_mode,) = [
        line.split("=")[1] for line in unit.splitlines() if line.startswith("RuntimeDirectoryMode")
    ]
    run = short_dir / "run"
    run.mkdir()
    os.chown(run, 0, FRIENDS)
    run.chmod(0o2000 | int(folder_mode, 8))
    short_dir.chmod(0o711)
    path = run / "http.sock"
    one = daemon(f"--listen=unix:{path}", f"--processes={processes}", redis=redis_server, wait=False)
    wait_until(lambda: "listening on" in one.log, 20, "its socket")
    assert (path.stat().st_gid, mode(path)) == (FRIENDS, 0o660)
    assert may_connect(path, [FRIENDS])
    assert not may_connect(path, [])
    assert one.terminate() == -15
    assert not path.exists()


@pytest.fixture
def left(short_dir: Path) -> Path:
    """A socket whose process was killed."""
    path = short_dir / "s"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()
    return path


@pytest.mark.parametrize("said", ["", ":lockfile=1", ":lockfile=0"])
@pytest.mark.parametrize("lock", ["none", "1", "self", "parent", "a file"])
@pytest_twisted.ensureDeferred
async def test_what_was_left_is_replaced(left: Path, said: str, lock: str) -> None:
    beside = left.with_name("s.lock")
    if lock == "a file":
        beside.write_text("somebody's\n")
    elif lock != "none":  # as Twisted locks: a link to a process id, which lives
        beside.symlink_to({"1": "1", "self": str(os.getpid()), "parent": str(os.getppid())}[lock])
    port = await listen(f"unix:{left}{said}")
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(left))
    await port.stopListening()
    assert not left.exists()
    assert beside.exists() is (lock == "a file")


@pytest_twisted.ensureDeferred
async def test_a_lock_without_a_socket_locks_nothing(short_dir: Path) -> None:
    (short_dir / "s.lock").symlink_to("1")
    port = await listen(f"unix:{short_dir}/s")
    await port.stopListening()


async def refused(path: Path) -> str:
    with pytest.raises(CannotListenError) as caught:
        await listen(f"unix:{path}")
    return str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_socket_in_use_is_left_alone(short_dir: Path) -> None:
    path = short_dir / "s"
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen(0)
        assert "Address already in use" in await refused(path)
        with socket.socket(socket.AF_UNIX) as waits, socket.socket(socket.AF_UNIX) as more:
            for waiting in (waits, more):  # its backlog is full now
                waiting.setblocking(False)
                waiting.connect_ex(str(path))
            assert "Address already in use" in await refused(path)
        assert path.exists()
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(path))
        assert "Address already in use" in await refused(path)


@pytest_twisted.ensureDeferred
async def test_what_is_no_socket_is_left_alone(left: Path) -> None:
    file, link = left.with_name("file"), left.with_name("link")
    file.write_text("kept")
    link.symlink_to(left)
    for path in (file, link, left.parent):
        assert "not a socket" in await refused(path)
    assert file.read_text() == "kept" and link.is_symlink() and left.exists()


@pytest_twisted.ensureDeferred
async def test_a_successor_keeps_its_socket_when_the_first_one_closes(short_dir: Path) -> None:
    path = short_dir / "s"
    first = await listen(f"unix:{path}")
    path.unlink()
    second = await listen(f"unix:{path}")
    await first.stopListening()
    assert path.exists()
    await second.stopListening()
    assert not path.exists()


@pytest_twisted.ensureDeferred
async def test_a_folder_that_somebody_locks_delays_and_no_more(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.unix_sockets.LOCK_SECONDS", 0.05)
    other = os.open(short_dir, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    port = await listen(f"unix:{short_dir}/s")
    os.close(other)
    await port.stopListening()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_after_kill_9_it_starts_again(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path, processes: str
) -> None:
    path = short_dir / "s"
    one = daemon(f"--listen=unix:{path}", f"--processes={processes}", redis=redis_server, wait=False)
    wait_until(lambda: serves(path), 20, "an answer on its socket")
    one.kill9()
    assert path.exists()
    if processes == "2":  # its children end by themselves, and accept until then
        wait_until(lambda: not in_use(path), 40, "the end of the children")
    again = daemon(f"--listen=unix:{path}", f"--processes={processes}", redis=redis_server, wait=False)
    wait_until(lambda: serves(path), 20, "an answer on its socket again")
    assert again.terminate() == -15
    assert not path.exists()


def serves(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(5)
        try:
            one.connect(str(path))
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return one.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def in_use(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(path)) == 0


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that calls itself twistd, for as long as its standard input is open."""
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()", "twistd"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_pid_file_whose_number_is_in_use_again(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    file = tmp_path / "twistd.pid"

    def removed(text: str, age: float = 0.0) -> bool:
        file.write_text(text)
        os.utime(file, (time.time() - age,) * 2)
        told = remove_left_over(str(file))
        assert (told is not None) is not file.exists()
        return told is not None

    assert removed(str(os.getpid())), "the daemon's own number, as in a container"
    assert removed("1\n") or "twist" in Path("/proc/1/cmdline").read_text()
    assert not removed(str(other.pid)), "it runs"
    assert removed(str(other.pid), age=3600), "it has begun after the file was written"
    other.kill()
    wait_until(lambda: not Path(f"/proc/{other.pid}/cmdline").read_bytes(), 10, "its end")
    assert removed(str(other.pid)), "nobody has reaped it"
    for text in ("", "x", "999999999", "-1"):
        assert not removed(text), "twistd says what is to be said of these"
    assert remove_left_over(str(tmp_path / "none")) is None


CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def in_container() -> bool:
    try:
        return subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(
    not in_container(), reason="needs unshare, and the right to make a namespace of processes"
)
def test_as_process_1_of_a_container_it_starts_again(
    daemon: StartDaemon, short_dir: Path, redis_binary: str
) -> None:
    """Each time with the same process id, a pid file, an embedded Redis and two sockets of its own."""
    twistd = str(Path(sys.executable).parent / "twistd")
    one = Daemon(
        (f"--listen=unix:{short_dir}/s:lockfile=1", f"--listen=unix:{short_dir}/t"),
        {"DATA_DIR": str(short_dir / "data"), "REDIS_SERVER": redis_binary},
        (*CONTAINER, twistd, "-n", f"--pidfile={short_dir}/twistd.pid"),
    )
    try:
        for _ in range(3):
            one.start(wait=False)
            wait_until(lambda: serves(short_dir / "t") or one.exit_code is not None, 20, "its sockets")
            assert one.exit_code is None, one.log
            assert (short_dir / "twistd.pid").read_text() == "1"
            one.kill9()  # with it ends process 1, and all that is in the namespace
            wait_until(lambda: not in_use(short_dir / "s"), 10)
        assert (short_dir / "s").exists() and (short_dir / "data" / "redis" / "redis.sock").exists()
    finally:
        one.remove()

"""A log that nobody reads, or that was moved away: the daemon keeps serving, and stops on a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from registry import log_streams
from registry.log_streams import BackgroundWriter, LogFile, StreamDestination
from tests.conftest import StartDaemon
from tests.live import Daemon, RedisServer, wait_until

TWISTD = str(Path(sys.executable).parent / "twistd")
# What each request adds to the log: far more than its answer, so that few requests fill a pipe and the queue behind it.
LONG = b"x" * 190


def ask(port: int, count: int) -> int:
    """Ask so often for /healthz, over one connection; how many answers were 200."""
    head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nUser-Agent: %b\r\nReferer: %b\r\n\r\n" % (LONG, LONG)
    answered = 0
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        while answered < count:
            connection.sendall(head * 50)
            got = b""
            while got.count(b"HTTP/1.1 200") < 50 or not got.endswith(b"}"):
                data = connection.recv(65536)
                assert data, got
                got += data
            answered += 50
    return answered


def onto(path: str, *twistd: str) -> tuple[str, ...]:
    """A twistd whose standard output and error are that file."""
    return ("sh", "-c", 'exec "$@" >"$0" 2>&1', path, TWISTD, "-n", "--pidfile=", *twistd)


@contextmanager
def unread(folder: Path) -> Iterator[tuple[str, int]]:
    """A FIFO that is open, and that nobody reads: its path, and the end to read from."""
    path = str(folder / "unread")
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield path, fd
    finally:
        os.close(fd)


def drained(fd: int, wanted: str, count: int = 1, nudge: Callable[[], object] = lambda: None) -> str:
    """Read until that stands there so often; ``nudge`` is called in between."""
    parts: list[str] = []

    def more() -> bool:
        try:
            parts.append(os.read(fd, 1 << 20).decode())
        except BlockingIOError:
            nudge()
        return "".join(parts).count(wanted) >= count

    wait_until(more, 20, f"{wanted} in the log")
    return "".join(parts)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_standard_output_that_nobody_reads(
    daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path, processes: str
) -> None:
    with unread(tmp_path) as (path, end):
        one = daemon(f"--processes={processes}", redis=redis_server, twistd=onto(path))
        assert ask(one.port, 4000) == 4000
        # Read again, it tells what is missing, in the right place, and goes on.
        text = drained(end, " lines lost: the log did not accept them\n", 1, lambda: ask(one.port, 50))
        lost = [int(n) for n in re.findall(r"#warn\] (?:parent: |process \d: )?(\d+) lines lost", text)]
        assert sum(lost) + text.count('"GET /healthz') >= 3900
        assert all(re.match(r"127\.0\.0\.1 - - \[|20\d\d-", line) for line in text.splitlines())
        os.close(os.open(path, os.O_WRONLY))
        ask(one.port, 1000)  # stuck once more
        assert one.terminate(20) == -signal.SIGTERM


def test_a_terminal_that_stands_still(daemon: StartDaemon, redis_server: RedisServer) -> None:
    ours, theirs = os.openpty()
    try:
        one = daemon(redis=redis_server, twistd=onto(os.ttyname(theirs)))
        assert ask(one.port, 1000) == 1000
        assert one.terminate(20) == -signal.SIGTERM
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_log_file_that_is_a_fifo(
    daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path, processes: str
) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)  # nobody has it open
    twistd = ("twistd", "-n", "--pidfile=", f"--logfile={path}")
    one = daemon(f"--processes={processes}", redis=redis_server, twistd=twistd)
    assert ask(one.port, 1000) == 1000
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert "starts with" in drained(end, '"GET /healthz', 1000)
        assert one.terminate(20) == -signal.SIGTERM
        drained(end, "registry has stopped")
    finally:
        os.close(end)


def test_the_last_lines_arrive_through_a_pipe(
    daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path
) -> None:
    with unread(tmp_path) as (path, end):
        one = daemon(redis=redis_server, twistd=onto(path))
        one.terminate()
        assert "registry has stopped" in drained(end, "Server Shut Down")


def test_why_it_does_not_start_arrives_through_a_pipe(
    daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path
) -> None:
    with unread(tmp_path) as (path, end):
        one = daemon("--listen=tcp:1:interface=192.0.2.1", redis=redis_server, twistd=onto(path), wait=False)
        assert one.wait() == 1
        drained(end, "registry stops: Cannot listen on 192.0.2.1:1")


def test_the_journals_socket_that_nobody_reads() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status = os.fstat(theirs.fileno())
        file = os.fdopen(theirs.fileno(), "w", closefd=False)
        destination = log_streams.stream(file, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        line = "y" * 1000
        for _ in range(5000):
            destination.write(6, [line])
        text = b""
        ours.settimeout(20)
        while not text.endswith(b"<6>after\n"):
            text += ours.recv(1 << 20)
            destination.write(6, ["after"])
        lost = [int(n) for n in re.findall(rb"\n<4>registry.log_streams: (\d+) lines lost", text)]
        assert lost and sum(lost) + text.count(b"<6>yyy") >= 5000


def test_the_end_waits_a_moment_for_a_reader_and_no_longer() -> None:
    reading, writing = os.pipe()
    try:
        writer = BackgroundWriter(writing)
        for _ in range(100):
            writer(b"z" * 1000)
        began = time.monotonic()
        writer.finish()
        writer(b"more")
        assert time.monotonic() - began > log_streams.FINISH_SECONDS * 0.9
        os.read(reading, 1 << 20)
    finally:
        os.close(reading)  # which ends the thread's write
        wait_until(lambda: writer._taken == writer._queued, 10, "the thread's end")
        os.close(writing)


def test_a_full_disk_is_reported_afterwards() -> None:
    took: list[bytes] = []
    full = True

    def write(data: bytes) -> None:
        if full:
            raise OSError(28, "No space left on device")
        took.append(data)

    destination = StreamDestination(write)
    destination.write(6, ["a", "\tb"])
    destination.write(6, ["c"])
    full = False
    destination.write(6, ["d"])
    destination.write(6, ["e"])
    assert re.fullmatch(rb"\S+ \[registry.log_streams#warn\] 3 lines lost: [^\n]*\nd\n", took[0])
    assert took[1:] == [b"e\n"]


# --- a log file and who moves it ---


def test_a_log_that_was_moved_away_is_opened_anew(
    daemon: StartDaemon, redis_server: RedisServer, tmp_path: Path
) -> None:
    log, moved = tmp_path / "r.log", tmp_path / "r.log.old"
    one = daemon(redis=redis_server, twistd=("twistd", "-n", "--pidfile=", f"--logfile={log}"))

    def asked() -> Daemon:
        ask(one.port, 50)
        return one

    asked()
    wait_until(lambda: log.read_text().count("/healthz") >= 50, 20, "its lines")
    log.chmod(0o640)
    log.rename(moved)
    asked()
    wait_until(lambda: log.exists() and log.read_text().count("/healthz") >= 50, 20, "lines in the new file")
    assert log.stat().st_mode & 0o777 == 0o640
    before = moved.read_text()
    assert "/healthz" in before
    log.unlink()
    asked()
    wait_until(
        lambda: log.exists() and log.read_text().count("/healthz") >= 50, 20, "lines in the third file"
    )
    assert moved.read_text() == before
    # copytruncate
    os.truncate(log, 0)
    asked()
    wait_until(lambda: log.read_text().count("/healthz") >= 50, 20, "lines in the emptied file")
    assert log.read_bytes()[:1] == b"1"


def test_a_log_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_streams, "ROTATE_BYTES", 10)
    monkeypatch.setattr(log_streams, "FILES_KEPT", 3)
    file = LogFile(str(tmp_path / "log"))
    for number in range(6):
        file(b"line %d....\n" % number)
    names = sorted(os.listdir(tmp_path))
    assert names == ["log", "log.1", "log.2", "log.3"]
    assert [(tmp_path / name).read_text()[5] for name in names] == ["5", "4", "3", "2"]
    (tmp_path / "log").write_text("")
    file.rotate_next = True
    file(b"asked\n")
    assert (tmp_path / "log").read_text() == "asked\n" and (tmp_path / "log.1").read_text() == ""


def test_a_log_whose_folder_is_gone_is_written_on_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    file = LogFile(str(folder / "log"))
    folder.rename(tmp_path / "away")
    file(b"one\n")
    assert (tmp_path / "away" / "log").read_text() == "one\n"
    folder.mkdir()
    file(b"two\n")
    assert (folder / "log").read_text() == "two\n"


@pytest.mark.parametrize("read", [False, True])
def test_a_fifo_in_the_place_of_a_log_holds_nobody_up(tmp_path: Path, read: bool) -> None:
    path = str(tmp_path / "log")
    file = LogFile(path)
    os.rename(path, path + ".old")
    os.mkfifo(path)
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if read else None
    file(b"one\n")
    assert (tmp_path / "log.old").read_text() == "one\n"
    if end is not None:
        os.close(end)
    os.unlink(path)
    file(b"two\n")
    assert (tmp_path / "log").read_text() == "two\n"

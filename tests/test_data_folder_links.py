"""DATA_DIR where another user can place links: nothing is written, and no mode changed, through them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted

from registry.errors import EmbeddedUnavailable
from registry.redis import aof as append_only
from registry.redis import data_folder
from tests.test_embedded import ask, make, refusal

SOMEBODY = 61001
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to somebody else, which needs root")


@pytest.fixture
def ours(short_dir: Path) -> Iterator[Path]:
    """A folder of this user that a link could lead to; it must stay as it is."""
    folder = short_dir / "ours"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "file").write_text("precious")
    before = sorted(folder.iterdir())
    yield folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert sorted(folder.iterdir()) == before
    assert (folder / "file").read_text() == "precious"


@pytest.fixture
def theirs(short_dir: Path) -> Path:
    """A folder of somebody else, which all may write."""
    folder = short_dir / "theirs"
    folder.mkdir()
    os.chown(folder, SOMEBODY, SOMEBODY)
    folder.chmod(0o777)
    return folder


def link(path: Path, to: Path, owner: int = SOMEBODY) -> None:
    path.symlink_to(to)
    os.lchown(path, owner, owner)


@needs_root
@pytest.mark.parametrize("owner", [0, SOMEBODY])
@pytest.mark.parametrize("where", ["itself", "redis", "above", "above, relative", "far"])
@pytest_twisted.ensureDeferred
async def test_a_link_in_somebody_elses_folder_is_not_followed(
    theirs: Path, ours: Path, redis_binary: str, where: str, owner: int
) -> None:
    data = theirs / "data"
    if where == "itself":
        link(data, ours, owner)
    elif where == "redis":
        data.mkdir()
        os.chown(data, SOMEBODY, SOMEBODY)
        link(data / "redis", ours, owner)
    elif where == "above":
        link(theirs / "up", ours, owner)
        data = theirs / "up" / "new" / "data"
    elif where == "above, relative":
        link(theirs / "up", Path("../ours"), owner)
        data = theirs / "up" / "data"
    else:  # a link of ours leads to one of theirs
        link(theirs / "up", ours, owner)
        link(ours.parent / "far", theirs / "up", 0)
        data = ours.parent / "far"
    sentence = await refusal(make(data, redis_binary).start())
    assert "is a link that another user owns" in sentence and "DATA_DIR" in sentence


@needs_root
@pytest_twisted.ensureDeferred
async def test_a_strangers_link_in_a_folder_for_all_is_not_followed(
    short_dir: Path, ours: Path, redis_binary: str
) -> None:
    tmp = short_dir / "tmp"
    tmp.mkdir()
    tmp.chmod(0o1777)
    link(tmp / "registry", ours)
    assert "is a link" in await refusal(make(tmp / "registry", redis_binary).start())


@needs_root
@pytest.mark.parametrize("kind", ["link", "hard link", "fifo"])
@pytest.mark.parametrize("name", ["lock", "redis/server.lock"])
def test_a_lock_that_is_another_file_is_not_written(theirs: Path, ours: Path, name: str, kind: str) -> None:
    path = theirs / name
    path.parent.mkdir(exist_ok=True)
    os.chown(path.parent, SOMEBODY, SOMEBODY)
    if kind == "hard link":
        path.hardlink_to(ours / "file")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        link(path, ours / "file")
    with pytest.raises(EmbeddedUnavailable, match="lock file"):
        data_folder.lock_daemon(str(theirs)) if name == "lock" else data_folder.lock_server(f"{theirs}/redis")


@pytest_twisted.ensureDeferred
async def test_ones_own_links_are_followed(short_dir: Path, redis_binary: str) -> None:
    """As when the data was moved to a larger disk."""
    disk = short_dir / "disk"
    disk.mkdir()
    (short_dir / "data").symlink_to("disk/data")
    (disk / "data").mkdir()
    (disk / "data" / "redis").symlink_to("../moved")
    (disk / "moved").mkdir(mode=0o755)
    embedded = make(short_dir / "data", redis_binary)
    path = (await embedded.start()).path
    try:
        assert ask(path, "RPUSH", "queue", "kept") == ":1"
    finally:
        await embedded.stop()
    assert stat.S_IMODE((disk / "moved").stat().st_mode) == 0o700
    assert append_only.last_aof(str(disk / "moved")) is not None


@pytest_twisted.ensureDeferred
async def test_a_ring_of_links_is_reported(short_dir: Path, redis_binary: str) -> None:
    (short_dir / "a").symlink_to("b")
    (short_dir / "b").symlink_to("a")
    assert "Too many levels" in await refusal(make(short_dir / "a", redis_binary).start())

"""An append-only file that ends inside a transaction: cutting only the last command would leave a MULTI open."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_twisted

from registry.errors import EmbeddedUnavailable
from registry.redis import aof as append_only
from tests.conftest import LoggedErrors
from tests.test_embedded import ask, every_redis, flush_critical, make

TAKE = """redis.replicate_commands()
local taken = redis.call('RPOP', 'queue')
redis.call('ZADD', 'leases', 1, taken)
return taken"""
PUSH = b"*3\r\n$5\r\nLPUSH\r\n$1\r\nq\r\n$3\r\none\r\n"
MULTI, EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"


@every_redis
@pytest.mark.parametrize("share", [0.35, 0.7, 0.99])
@pytest_twisted.ensureDeferred
async def test_a_torn_transaction_never_was_and_what_follows_is_carried_out_once(
    short_dir: Path, redis_binary: str, logged_errors: LoggedErrors, share: float
) -> None:
    first = make(short_dir, redis_binary)
    path = (await first.start()).path
    for one in ("one", "two", "three"):
        ask(path, "LPUSH", "queue", one)
    assert ask(path, "EVAL", TAKE, "0").endswith("one")
    await first.stop()
    found = append_only.last_aof(str(short_dir / "redis"))
    assert found is not None
    aof = Path(found)
    whole = aof.read_bytes()
    begins = whole.rindex(MULTI)
    aof.write_bytes(whole[: begins + int((len(whole) - begins) * share)])

    repaired = make(short_dir, redis_binary)
    path = (await repaired.start()).path
    assert ask(path, "LLEN", "queue") == ":3" and ask(path, "ZCARD", "leases") == ":0"
    assert ask(path, "EVAL", TAKE, "0").endswith("one")
    await repaired.stop()
    flush_critical(logged_errors)

    again = make(short_dir, redis_binary)
    path = (await again.start()).path
    try:
        assert ask(path, "LRANGE", "queue", "0", "-1").split() == ["*2", "$5", "three", "$3", "two"]
    finally:
        await again.stop()


@pytest.mark.parametrize(
    ("tail", "kept"),
    {
        "no transaction": (PUSH + PUSH[:-3], None),
        "whole": (MULTI + PUSH + EXEC, len(MULTI + PUSH + EXEC)),
        "open at a command's end": (MULTI + PUSH, 0),
        "open within a command": (MULTI + PUSH + PUSH[:-1], 0),
        "within EXEC": (MULTI + PUSH + EXEC[:-1], 0),
        "a torn command behind it": (MULTI + PUSH + EXEC + PUSH[:9], len(MULTI + PUSH + EXEC)),
        "open behind a whole one": (MULTI + PUSH + EXEC + MULTI + PUSH[:4], len(MULTI + PUSH + EXEC)),
        "MULTI in what another program pushed": (
            MULTI + b"*3\r\n$5\r\nLPUSH\r\n$1\r\nq\r\n$19\r\n" + MULTI + b"junk\r\n" + PUSH + EXEC + PUSH[:5],
            len(MULTI + PUSH + EXEC) + len(b"*3\r\n$5\r\nLPUSH\r\n$1\r\nq\r\n$19\r\n" + MULTI + b"junk\r\n"),
        ),
    }.values(),
)
def test_the_size_without_what_its_end_cuts_in_two(tmp_path: Path, tail: bytes, kept: int | None) -> None:
    file = tmp_path / "aof"
    for before in (b"", PUSH):
        file.write_bytes(before + tail)
        assert append_only.whole_transactions(str(file)) == (None if kept is None else len(before) + kept)


def test_half_a_copy_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would eat the room that somebody makes for the next try."""
    aof = tmp_path / "appendonly.aof"
    aof.write_bytes(PUSH)

    def full(source: str, target: str) -> None:
        Path(target).write_bytes(PUSH[:9])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("registry.redis.aof.shutil.copy2", full)
    with pytest.raises(EmbeddedUnavailable, match="No space left"):
        append_only.copy_aside(str(aof))
    assert list(tmp_path.iterdir()) == [aof]

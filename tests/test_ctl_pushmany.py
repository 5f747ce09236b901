"""``registryctl pushmany`` and ``wait``: batches of lines, bad lines, the spool, and the end of a task."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from registry.cli import pushmany
from tests.ctl import Ctl, ctl_of
from tests.live import Daemon, RedisServer, free_port, wait_until
from tests.talk import becomes, counts, drain, leased, on, policy, pushed, queue, task, tasks


@pytest.fixture
def ctl(served: Daemon, tmp_path: Path) -> Ctl:
    return ctl_of(served, tmp_path)


def spool_of(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def test_a_task_for_each_line_in_order_with_the_options(ctl: Ctl, served: Daemon, q: str) -> None:
    lines = b"".join(b" %d \r\n\n" % number for number in range(25)) + b'{"last": 1e999}'
    ids = ctl.ok("pushmany", q, "--batch", "10", "--priority", "4", "--ids", stdin=lines).splitlines()
    assert len(ids) == 26 and task(served, q, ids[3])["task"] == 3
    assert {row["priority"] for row in tasks(served, q)} == {4}
    assert [str(one) for one in drain(served, q)] == [*map(str, range(25)), "{'last': inf}"]


def test_bad_lines_are_told_with_their_numbers_and_the_others_are_pushed(
    ctl: Ctl, served: Daemon, q: str
) -> None:
    deep = b"[" * 501 + b"]" * 501
    large = b'"%b"' % (b"x" * 1_100_000)
    bad = [b"{", b"NaN", b"\xff", b"\xef\xbb\xbf1", deep, large, b"1 2", b"[" * 100_000]
    lines = [part for number, one in enumerate(bad) for part in (b"%d" % number, one)]
    result = ctl.run("--json", "pushmany", q, stdin=b"\n".join(lines))
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"pushed": len(bad), "refused": len(bad), "spooled": 0}
    told = [line.split(":")[1].strip() for line in result.stderr.splitlines()]
    assert sorted(told) == sorted(f"Line {2 * number}" for number in range(1, len(bad) + 1))
    assert drain(served, q) == list(range(len(bad)))


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "words"),
    [
        (("Q", "--priority", "99"), "1", 2, "priority"),
        (("Q", "--attempts", "0"), "1", 2, "attempts"),
        (("a/b",), "1", 2, "slash"),
        ((), "1", 2, "QUEUE"),
        (("Q", "--flush"), "", 2, "--flush"),
        (("--flush",), "", 2, "--flush"),
        (("Q", "--idempotency-key", "ä"), "1", 2, "ASCII"),
    ],
)
def test_wrong_usage(ctl: Ctl, arguments: tuple[str, ...], stdin: str, code: int, words: str) -> None:
    assert words in ctl.fails(code, "pushmany", *arguments, stdin=stdin)


def test_a_repeat_with_the_same_key_stores_nothing(ctl: Ctl, served: Daemon, q: str) -> None:
    for _ in range(2):
        ctl.ok("pushmany", q, "--batch", "2", "--idempotency-key", "k", stdin="1\n2\n3\n")
    assert counts(served, q) == {"ready": 3}
    assert "idempotency_key_reused" in ctl.fails(4, "pushmany", q, "--idempotency-key", "k", stdin="4\n")


def test_without_a_spool_it_says_from_where_on_nothing_was_pushed(
    ctl: Ctl, served: Daemon, q: str, tmp_path: Path
) -> None:
    policy(served, q, max_length=4)
    error = ctl.fails(4, "pushmany", q, "--batch", "2", stdin="1\n2\n\n3\n4\n5\n6\n")
    assert "queue_full" in error and "Line 6 and those behind it were not pushed." in error
    nobody = Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)
    assert "Line 1 and those behind it were not pushed." in nobody.fails(5, "pushmany", q, stdin="1\n")


def test_what_nobody_takes_is_spooled_and_sent_once_and_in_order_later(
    ctl: Ctl, served: Daemon, q: str, tmp_path: Path
) -> None:
    spool = spool_of(tmp_path)
    nobody = Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)
    arguments = ("pushmany", q, "--batch", "2", "--spool", str(spool), "--priority", "3")
    assert nobody.json(*arguments, stdin="1\n2\n3\n") == {"pushed": 0, "refused": 0, "spooled": 3}
    assert nobody.json(*arguments, stdin="4\n")["spooled"] == 4
    nobody.fails(5, "pushmany", "--spool", str(spool), "--flush")
    assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.iterdir()} == {0o600}
    assert len(list(spool.glob("*.batch"))) == 3

    # The first batch was stored, and its answer lost: it comes again under its key.
    first = sorted(spool.glob("*.batch"))[0]
    kept = first.read_bytes()
    assert ctl.json(*arguments, stdin="5\n") == {"pushed": 5, "refused": 0, "spooled": 0}
    first.write_bytes(kept)
    assert ctl.json("pushmany", "--spool", str(spool), "--flush")["pushed"] == 2
    assert {row["priority"] for row in tasks(served, q)} == {3}
    assert drain(served, q) == [1, 2, 3, 4, 5]
    assert list(spool.glob("*.batch")) == []


def test_a_refused_line_of_the_spool_is_set_aside_and_does_not_hold_up_the_others(
    ctl: Ctl, served: Daemon, q: str, tmp_path: Path
) -> None:
    spool = spool_of(tmp_path)
    large = '"%s"' % ("x" * 1_100_000)
    result = ctl.run("pushmany", q, "--spool", str(spool), stdin=f"1\n{large}\n3\n")
    assert result.exit_code == 1 and "Line 2:" in result.stderr
    assert drain(served, q) == [1, 3]
    [aside] = spool.glob("*.refused")
    assert aside.read_text() == f"{large}\n" and stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert list(spool.glob("*.batch")) == []
    # A batch that can never be taken is set aside too.
    assert "refused now" in ctl.fails(2, "pushmany", q, "--ttl", "x", "--spool", str(spool), stdin="1\n")
    assert list(spool.glob("*.batch")) == []
    # One of an earlier run is no reason to end before all lines of this one are pushed.
    nobody = Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)
    nobody.ok("pushmany", q, "--ttl", "x", "--spool", str(spool), stdin="1\n")
    result = ctl.run("pushmany", q, "--batch", "1", "--spool", str(spool), stdin="2\n3\n4\n")
    assert result.exit_code == 1 and "refused now" in result.stderr and drain(served, q) == [2, 3, 4]


def test_a_spool_that_cannot_be_used(ctl: Ctl, q: str, tmp_path: Path) -> None:
    spool = spool_of(tmp_path)
    arguments = ("pushmany", q, "--batch", "1", "--spool", str(spool))
    full = patch.object(os, "fsync", side_effect=OSError(28, "No space left on device"))
    with full:
        error = ctl.fails(1, *arguments, stdin="1\n2\n")
    assert "No space left" in error and "Line 1 and those behind it were neither kept nor pushed." in error
    assert [path.name for path in spool.iterdir()] == [".lock"]
    (spool / "foreign.batch").write_text("?", "utf-8")
    assert "foreign.batch is not a batch" in ctl.fails(1, *arguments, stdin="1\n")
    (spool / ".lock").unlink()
    (spool / ".lock").mkdir()
    assert f"The spool {spool} cannot be written" in ctl.fails(1, *arguments, stdin="1\n")


def test_what_is_refused_for_now_stays_in_the_spool_with_what_comes_behind_it(
    ctl: Ctl, served: Daemon, q: str, tmp_path: Path
) -> None:
    spool = spool_of(tmp_path)
    policy(served, q, max_length=2)
    arguments = ("pushmany", q, "--batch", "2", "--spool", str(spool))
    result = ctl.run(*arguments, stdin="1\n2\n3\n4\n5\n")
    assert result.exit_code == 4 and "queue_full" in result.stderr and "3 not yet pushed" in result.stderr
    policy(served, q, max_length=None)
    ctl.ok("pushmany", "--spool", str(spool), "--flush")
    assert drain(served, q) == [1, 2, 3, 4, 5]


def test_lines_are_pushed_as_they_come(ctl: Ctl, served: Daemon, q: str) -> None:
    reading, writing = os.pipe()
    with ctl.process("pushmany", q, stdin=reading) as process:
        os.close(reading)
        os.write(writing, b"1\n2\n3")
        becomes(served, q, 20, ready=2)
        os.write(writing, b"\nx\n")
        becomes(served, q, 20, ready=3)
        os.close(writing)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and "Line 4: it is not JSON" in err and "3 tasks pushed." in err


@pytest.mark.parametrize(
    ("line", "is_json"), [(b"1e999", True), (b"9" * 9000, True), (b'"\\ud800"', True), (b"", False)]
)
def test_what_counts_as_json(line: bytes, is_json: bool) -> None:
    assert (pushmany.not_json(line) == "") is is_json


def test_wait_prints_the_result_and_its_exit_code_says_how_the_task_ended(
    ctl: Ctl, served: Daemon, q: str
) -> None:
    done, dead, late = (pushed(served, q, number) for number in range(3))
    on(served, "ack", q, leased(served, q)["lease"], b'{"a": 1.10}').ok()
    error = {"error": {"type": "T", "message": "m"}, "retry": False}
    on(served, "fail", q, leased(served, q)["lease"], error).ok()
    assert ctl.ok("wait", f"{q}/{done}") == '{"a": 1.10}\n'
    assert ctl.json("wait", done, "--queue", q)["state"] == "done"
    assert "failed: T: m" in ctl.fails(1, "wait", dead)
    assert "has not ended yet: it is ready" in ctl.fails(124, "wait", f"{q}/{late}", "--timeout", "0.2")
    assert "not_found" in ctl.fails(3, "wait", f"{q}/{'0' * 24}")
    lease = leased(served, q)["lease"]
    ending = threading.Timer(0.5, lambda: on(served, "ack", q, lease, b"7").ok())
    ending.start()
    began = time.monotonic()
    assert ctl.ok("wait", f"{q}/{late}", "--timeout", "30") == "7\n"
    assert time.monotonic() - began < 20
    ending.join()


def test_wait_goes_on_while_the_daemon_is_restarted(
    module_redis_process: RedisServer, daemon: object, q: str, tmp_path: Path
) -> None:
    one = daemon(redis=module_redis_process).redis_ready()  # type: ignore[operator]
    task_id = pushed(one, q, 1)
    with ctl_of(one, tmp_path).process("wait", f"{q}/{task_id}") as process:
        wait_until(lambda: f"/api/queues/{q}/tasks/{task_id}" in one.log or queue(one, q)["ready"] == 1)
        one.kill9()
        one.start().redis_ready()
        on(one, "ack", q, leased(one, q)["lease"], b"7").ok()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "7\n"), err

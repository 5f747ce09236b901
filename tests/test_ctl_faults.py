"""``registryctl`` where things go wrong: strange answers, servers that are busy or gone, Ctrl-C, a closed pipe, a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path

import pytest

from registry.cli import output
from tests.conftest import StartDaemon
from tests.ctl import COMMAND, Canned, Ctl, answer, ctl_of
from tests.live import ROOT, Daemon, RedisServer, wait_until
from tests.talk import ask, counts, pushed

EMPTY = answer(200, {"queues": [], "cursor": None})
BUSY = {"error": "Busy.", "code": "overloaded", "outcome": "not_applied"}


def refused(status: int, code: str = "some_code", **more: str) -> bytes:
    return answer(status, {"error": "A sentence.", "code": code, **more})


@pytest.fixture
def ctl(served: Daemon, tmp_path: Path) -> Ctl:
    return ctl_of(served, tmp_path)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, 2),
        (401, 4),
        (403, 4),
        (404, 3),
        (405, 4),
        (409, 4),
        (413, 4),
        (421, 4),
        (422, 4),
        (429, 4),
        (500, 1),
        (503, 5),
    ],
)
def test_what_a_status_means(tmp_path: Path, status: int, code: int) -> None:
    with Canned(answer(status, {"error": "A sentence.", "code": "some_code"}, Retry_After="60")) as server:
        assert "A sentence." in Ctl(server.url, tmp_path).fails(code, "queues")
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (answer(200, b"<html>\x1b[31m"), 1, "not JSON"),
        (answer(200, [1]), 1, "not the registry"),
        (answer(200, {"other": 1}), 1, "not the registry"),
        (answer(404, b"<html>\r\nnot here"), 1, "does not seem to be the registry"),
        (answer(502, b"Bad Gateway", Retry_After="60"), 5, "answered 502"),
        (answer(302, b"", Location="https://elsewhere/\x9b"), 4, "redirects to https://elsewhere/"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", 5, "broke"),
        (b"nonsense\r\n\r\n", 5, "broke"),
        (answer(200, b"[" * 100_000), 1, "not JSON"),
    ],
)
def test_an_answer_that_is_not_the_registrys(tmp_path: Path, reply: bytes, code: int, words: str) -> None:
    with Canned(reply) as server:
        ctl = Ctl(server.url, tmp_path)
        result = ctl.run("queues", "--retry-for", "0.2")
        assert (result.exit_code, result.stderr.count("\n")) == (code, 1), result.output
        assert words in result.stderr and "\x1b" not in result.stderr


def test_what_was_not_carried_out_is_repeated(tmp_path: Path) -> None:
    pushed_at_last = answer(200, {"success": True, "id": "i"})
    with Canned(
        answer(503, BUSY, Retry_After="0"), answer(503, BUSY, Retry_After="0"), pushed_at_last
    ) as server:
        assert Ctl(server.url, tmp_path).ok("push", "q", "1") == "i\n"
        assert len(server.seen) == 3


@pytest.mark.parametrize(("key", "times"), [((), 1), (("--idempotency-key", "k"), 2)])
def test_what_may_have_been_carried_out_is_repeated_only_with_a_key(
    tmp_path: Path, key: tuple[str, ...], times: int
) -> None:
    unknown = answer(503, {**BUSY, "outcome": "unknown"}, Retry_After="0")
    with Canned(unknown, answer(200, {"success": True, "id": "i"})) as server:
        result = Ctl(server.url, tmp_path).run("push", "q", "1", *key)
        assert len(server.seen) == times
        assert (result.exit_code, "may have been carried out" in result.stderr) == ((5, True), (0, False))[
            times - 1
        ]


def test_the_token_goes_into_one_header_only(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("rgy_filed\n", "utf-8")
    with Canned(refused(401)) as server:
        ctl = Ctl(server.url, tmp_path)
        for more, token in (({}, None), ({"REGISTRY_TOKEN": "rgy_secret"}, "rgy_secret")):
            result = ctl.run("queues", env=more)
            assert ("Set REGISTRY_TOKEN" in result.stderr) is (token is None)
            assert "rgy_secret" not in result.output
            lines = [
                line for line in server.seen[-1].splitlines() if line.lower().startswith("authorization")
            ]
            assert lines == ([] if token is None else [f"Authorization: Bearer {token}"])
        ctl.run("queues", "--token-file", str(tmp_path / "token"))
        assert "Authorization: Bearer rgy_filed" in server.seen[-1]
        assert all("rgy_" not in head.splitlines()[0] for head in server.seen)


def test_ctrl_c_ends_it_without_a_traceback(ctl: Ctl, served: Daemon, q: str) -> None:
    with ctl.process("pop", q, "--wait", "30") as one:
        wait_until(lambda: ask(served, "GET", f"/api/queues/{q}").ok()["pollers"] == 1)
        one.send_signal(signal.SIGINT)
        out, error = one.communicate(timeout=10)
    # A line feed, because the terminal shows ^C.
    assert (one.returncode, out, error) == (130, "", "\n")


def test_a_closed_pipe_is_quiet(ctl: Ctl, served: Daemon, q: str) -> None:
    ask(served, "POST", f"/api/pushTasks/{q}", ["x" * 900] * 500).ok()
    command = f"{' '.join(COMMAND)} tasks {q} --all --json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**ctl.environ}, timeout=30, check=True
    )
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""


class Screen:
    """A command on a terminal of 100 columns; ``seen`` is all that a person saw so far."""

    def __init__(self, ctl: Ctl, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        environ = {**ctl.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30", **(env or {})}
        self._process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environ, cwd=ROOT,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, text: str | None, seconds: float = 20) -> None:
        """Read until the text is seen; without one, until the command closes the terminal."""
        end = time.monotonic() + seconds
        while text is None or text not in self.seen:
            assert select.select([self._ours], [], [], max(0.0, end - time.monotonic()))[0], self.seen
            try:
                self.seen += os.read(self._ours, 65536).decode("utf-8", "replace")
            except OSError:  # the other side is closed
                assert text is None, self.seen
                return

    def end(self) -> int:
        """The exit code."""
        self.until(None)
        return self._process.wait(10)


def on_a_terminal(
    ctl: Ctl, *arguments: str, types: str = "", env: dict[str, str] | None = None
) -> tuple[int, str]:
    """The exit code, and all that a person sees who runs this and types that."""
    with Screen(ctl, *arguments, env=env) as screen:
        screen.type(types)
        return screen.end(), screen.seen


def plain(seen: str) -> str:
    """Without colours."""
    return re.sub("\x1b\\[[0-9;]*m", "", seen)


def test_a_person_is_asked_and_sees_colours(ctl: Ctl, served: Daemon, q: str) -> None:
    for number in range(2):
        pushed(served, q, number)
    code, seen = on_a_terminal(ctl, "queue", q, "purge", types="n\n")
    assert (code, counts(served, q)) == (1, {"ready": 2})
    assert f"Delete 2 ready or delayed tasks of {q} on {served.url}? [y/N]" in seen
    code, seen = on_a_terminal(ctl, "queue", q, "purge", types="y\n")
    assert (code, counts(served, q)) == (0, {}) and "2 tasks deleted." in seen
    assert "\x1b[" in on_a_terminal(ctl, "queues", "--families")[1]
    for colourless in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b[" not in on_a_terminal(ctl, "queues", "--families", env=colourless)[1]
    assert "\x1b[" not in on_a_terminal(ctl, "doctor", "--wait", "0", env=colourless)[1]


def test_a_narrow_terminal_cuts_payloads_and_no_ids(ctl: Ctl, served: Daemon, q: str) -> None:
    task_id = pushed(served, q, "x" * 300)
    _, seen = on_a_terminal(ctl, "tasks", q)
    # Columns that are empty give their room to the payload.
    assert (
        task_id in seen
        and '"xxxxxxxxxxxxxxxx' in seen
        and "…" in seen
        and "reason" not in seen
        and max(map(len, plain(seen).splitlines())) <= 100
    )


def test_json_from_a_process(ctl: Ctl, served: Daemon, q: str) -> None:
    pushed(served, q)
    with ctl.process("--json", "queues", "--search", q) as one:
        out, error = one.communicate(timeout=20)
    assert (one.returncode, error, json.loads(out)["name"]) == (0, "", q)


def test_a_base_path_and_a_unix_socket(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path
) -> None:
    with Canned(answer(404), by_path={"/base/api/queues": EMPTY}) as server:
        assert Ctl(f"{server.url}/base/", short_dir).rows("queues") == []
    path = short_dir / "r.sock"
    one = daemon(f"--listen=unix:{path}", redis=redis_server, wait=False)
    ctl = Ctl(f"unix://{path}", short_dir)
    wait_until(lambda: ctl.run("queues").exit_code == 0, 20, f"an answer on {path}:\n{one.log}")
    assert ctl.ok("push", "q", "--", "-5") and ctl.ok("pop", "q") == "-5\n"
    assert "ok    socket" in ctl.ok("doctor", "--wait", "0")


def test_top_on_a_terminal(ctl: Ctl, served: Daemon, q: str) -> None:
    pushed(served, q)
    with Screen(ctl, "top", "--interval", "0.2", "--search", q) as screen:
        screen.until(q)
        pushed(served, q)
        screen.until("+")  # so many more a second
        screen.type("\x03")
        assert screen.end() == 130
    assert "Traceback" not in screen.seen


DEAD = {
    "type": "E\x1b",
    "message": "no [red]\x9b",
    "count": 1200,
    "queues": ["a", "b"],
    "workers": ["w"],
    "points_to": "worker",
}
WORKER = {
    "worker": "w\u202e",
    "address": "127.0.0.1:1",
    "user_agent": "curl/8\x07",
    "queues": ["a", "b"],
    "parked": True,
    "order": "run",
}


def test_the_dead_and_the_workers(tmp_path: Path) -> None:
    moments = {"first": "2026-11-24T07:46:10.226Z", "last": "2026-11-25T07:46:10.226Z"}
    since = {
        "since": "2026-11-24T07:46:10.226Z",
        "last_seen": "2026-11-24T07:46:10.226Z",
        "leases": ["x", "y"],
    }
    pages = {
        "/api/dead": answer(200, {"groups": [{**DEAD, **moments}, {**DEAD, **moments, "queues": ["c"]}]}),
        "/api/workers": answer(200, {"workers": [{**WORKER, **since}]}),
        "/api/workers/w1": answer(200, {"success": True}),
    }
    with Canned(answer(404), by_path=pages) as server:
        ctl = Ctl(server.url, tmp_path)
        assert (
            r"1,200  E\x1b  no [red]\x9b  a, b    a worker   2026-11-24 07:46:10  2026-11-25 07:46:10"
            in ctl.ok("dead")
        )
        assert [row["queues"] for row in ctl.rows("dead", "--queue", "c")] == [["c"]]
        shown = ctl.ok("workers").splitlines()[1]
        assert (
            shown.startswith(r"w\u202e") and "a, b" in shown and "waits" in shown and r"curl/8\x07" in shown
        )
        assert ctl.ok("worker", "w1", "quiet") == "The worker is told to be quiet.\n"
        ctl.fails(2, "worker", "w1", "dance")


def test_what_takes_long_shows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.0)
    monkeypatch.setattr(output, "is_terminal", lambda stream: True)
    asked = threading.Event()

    def left() -> int:
        asked.set()
        return 3

    assert output.Output().watch("deleting", 10, lambda: asked.wait(10), left) is True
    assert "deleting" in capsys.readouterr().err
    assert output.Output(as_json=True).watch("deleting", 10, lambda: 1, left) == 1
    with pytest.raises(ZeroDivisionError):
        output.Output().watch("deleting", 10, lambda: 1 // 0, left)


def test_a_shell_completes_commands(ctl: Ctl) -> None:
    env = {
        "_REGISTRYCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "registryctl queue x pur",
        "COMP_CWORD": "3",
    }
    with ctl.process(env=env) as one:
        out, error = one.communicate(timeout=20)
    assert (out, error) == ("plain,purge\n", "")


def test_a_terminal_that_knows_few_characters(ctl: Ctl, served: Daemon, q: str) -> None:
    name = f"{q}-€"
    ask(served, "PUT", f"/api/pushTask/{q}-%E2%82%AC", 1).ok()
    with ctl.process("queues", "--search", name, env={"PYTHONIOENCODING": "latin-1"}) as one:
        out, error = one.communicate(timeout=20)
    assert (one.returncode, error) == (0, "") and rf"{q}-\u20ac" in out

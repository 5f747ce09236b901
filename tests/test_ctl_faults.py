"""``registryctl`` where things go wrong: strange answers, servers that are busy or gone, Ctrl-C, a closed pipe, a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.ctl import COMMAND, Canned, Ctl, answer, ctl_of
from tests.live import Daemon, wait_until
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
        (answer(404, b"<html>\r\nnot here"), 3, "does not seem to be the registry"),
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
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b", "utf-8")
    (tmp_path / ".netrc").chmod(0o600)
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
    command = f"{' '.join(COMMAND)} tasks {q} --all --json | head -1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**ctl.environ}, timeout=30, check=True
    )
    assert len(done.stdout.splitlines()) == 1 and done.stderr == ""


def on_a_terminal(
    ctl: Ctl, *arguments: str, types: str = "", env: dict[str, str] | None = None
) -> tuple[int, str]:
    """The exit code, and all that a person sees who runs this on a terminal of 100 columns and types that."""
    ours, theirs = pty.openpty()
    environ = {**ctl.environ, "TERM": "xterm", "COLUMNS": "100", **(env or {})}
    one = subprocess.Popen([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    seen = b""
    os.write(ours, types.encode())
    end = time.monotonic() + 20
    while time.monotonic() < end and select.select([ours], [], [], 20)[0]:
        try:
            data = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        seen += data
    os.close(ours)
    return one.wait(10), seen.decode()


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
    colourless = {"NO_COLOR": "1"}
    assert "\x1b[3" not in on_a_terminal(ctl, "doctor", "--wait", "0", env=colourless)[1]


def test_a_narrow_terminal_cuts_payloads_and_no_ids(ctl: Ctl, served: Daemon, q: str) -> None:
    task_id = pushed(served, q, "x" * 300)
    _, seen = on_a_terminal(ctl, "tasks", q)
    assert task_id in seen and "…" in seen and max(map(len, plain(seen).splitlines())) <= 100


def test_json_from_a_process(ctl: Ctl, served: Daemon, q: str) -> None:
    pushed(served, q)
    with ctl.process("--json", "queues", "--search", q) as one:
        out, error = one.communicate(timeout=20)
    assert (one.returncode, error, json.loads(out)["name"]) == (0, "", q)

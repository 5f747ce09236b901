"""``registryctl work``: what each way to end means, how a command is stopped, and what a worker does when it is told to end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from registry.cli.verdicts import progress_of, result_of
from tests.callers import Callers, guarded
from tests.ctl import Ctl, ctl_of
from tests.live import Daemon, RedisServer, wait_until
from tests.talk import becomes, cancel, counts, push, pushed, queue, task, tasks

# The payload is a script, as a JSON text without escapes.
SCRIPT = ("sh", "-c", 'read -r x; x=${x#?}; eval "${x%?}"')
BINARY = "/bin/sh"


@pytest.fixture
def ctl(served: Daemon, tmp_path: Path) -> Ctl:
    return ctl_of(served, tmp_path)


@contextmanager
def working(ctl: Ctl, *arguments: str) -> Iterator[Any]:
    """A worker as a process of its own."""
    with ctl.process("work", *arguments) as worker:
        yield worker


def worked(ctl: Ctl, *arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """A worker that ends by itself with this exit code: its lines as JSON, and its stderr."""
    with working(ctl, "--json", *arguments) as worker:
        out, err = worker.communicate(timeout=30)
    assert worker.returncode == code, err
    return [json.loads(line) for line in out.splitlines()], err


def ends(worker: Any, code: int = 0) -> str:
    """What it wrote to stderr, once it has ended."""
    _, err = worker.communicate(timeout=20)
    assert worker.returncode == code, err
    return str(err)


# script -> options of its push, and what its task is then.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "echo hello": ("", {"state": "done", "result": "hello"}),
    "echo [1,2]": ("", {"state": "done", "result": [1, 2]}),
    "echo 12; echo 13": ("", {"state": "done", "result": "12\n13"}),
    "echo NaN": ("", {"state": "done", "result": "NaN"}),
    "echo; echo": ("", {"state": "done", "result": None}),
    "true": ("", {"state": "done", "result": None}),
    "echo $REGISTRY_TASK_QUEUE $REGISTRY_TASK_ATTEMPT": ("", {"state": "done", "result": "QUEUE 1"}),
    "yes | head -c 1500000": ("", {"state": "done", "result": None, "kept": "too_large"}),
    "sleep 60 & echo started": ("", {"state": "done", "result": "started"}),
    "echo 0.25 a quarter >&5": ("", {"state": "done", "progress": 0.25, "message": "a quarter"}),
    "exit 3": ("attempts=1", {"state": "dead", "type": "3", "said": "exit code 3"}),
    "exit 4": ("attempts=2&backoff=600", {"state": "delayed", "type": "4", "attempt": 1}),
    "echo a >&2; echo b >&2; exit 5": ("attempts=1", {"type": "5", "said": "b", "trace": "a\nb\n"}),
    f"head -c 9000 {BINARY} >&2; exit 6": ("attempts=1", {"state": "dead", "type": "6"}),
    "yes | head -c 3000000 >&2; exit 7": ("attempts=1", {"type": "7", "trace": "y\n" * 2048}),
    "exit 65": ("", {"state": "dead", "type": "65", "attempt": 1}),
    "exit 75": ("", {"state": "delayed", "attempt": 0, "reason": "released"}),
    "kill -9 $$": ("attempts=1", {"state": "dead", "type": "SIGKILL", "said": "killed by SIGKILL"}),
    "sleep 60": ("attempts=1", {"state": "dead", "type": "timeout", "said": "it ran longer than 4 s"}),
    "trap : TERM; while :; do sleep 60; done": ("attempts=1", {"state": "dead", "type": "timeout"}),
}


def seen(row: dict[str, Any]) -> dict[str, Any]:
    last = row["history"][-1]
    error = last["error"] or {}
    return {
        **{name: row.get(name) for name in ("state", "result", "progress", "message", "attempt")},
        "type": error.get("type"),
        "said": error.get("message"),
        "trace": error.get("trace"),
        "reason": last["reason"],
        "kept": last.get("result"),
    }


def test_what_each_end_means(ctl: Ctl, served: Daemon, q: str) -> None:
    ids = {script: pushed(served, q, script, query) for script, (query, _) in CASES.items()}
    options = (
        "--concurrency",
        "5",
        "--timeout",
        "4",
        "--kill-after",
        "0.3",
        "--progress-fd",
        "5",
        "--delay",
        "600",
    )
    lines, _ = worked(ctl, q, "--drain", *options, "--", *SCRIPT, code=1)
    assert sorted(line["id"] for line in lines) == sorted(ids.values())
    wrong = {}
    for script, (_, wanted) in CASES.items():
        found = seen(task(served, q, ids[script]))
        wanted = {
            name: "QUEUE 1".replace("QUEUE", q) if value == "QUEUE 1" else value
            for name, value in wanted.items()
        }
        if any(found[name] != value for name, value in wanted.items()):
            wrong[script] = found, wanted
    assert not wrong
    states = {line["id"]: line["state"] for line in lines}
    assert states[ids["exit 65"]] == "dead" and states[ids["exit 4"]] == "failed"
    assert states[ids["exit 75"]] == "released" and states[ids["true"]] == "done"


def test_payloads_reach_the_command_as_they_are_and_need_not_be_read(
    ctl: Ctl, served: Daemon, q: str
) -> None:
    payload = b'{"big": 123456789012345678901234567890, "e": 1e999,\n "s": "\\ud800 \xc3\xa4"}'
    push(served, q, payload).ok()
    # A comma in the name of a queue, and more than a pipe holds.
    push(served, q + "%2C1", "x" * 900_000).ok()
    worked(ctl, q, f"{q},1", "--drain", "--fair", "--", "sh", "-c", "head -c 500; exec <&-; sleep 0.1")
    rows = [tasks(served, name, "state=done")[0]["result"] for name in (q, q + "%2C1")]
    assert isinstance(rows[0], dict) and list(rows[0]) == ["big", "e", "s"]
    assert rows[1] == '"' + "x" * 499
    assert served.log.count("incident") == 0


def test_a_result_that_is_not_wanted_is_not_kept(ctl: Ctl, served: Daemon, q: str) -> None:
    one = pushed(served, q, 1)
    lines, _ = worked(ctl, q, "--once", "--no-result", "--", "cat")
    assert task(served, q, one)["result"] is None
    assert [(line["id"], line["state"]) for line in lines] == [(one, "done")]


def test_once_takes_one_and_drain_ends_where_there_is_nothing(ctl: Ctl, served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    pushed(served, q, 2)
    assert len(worked(ctl, q, "--once", "--", "cat")[0]) == 1
    assert counts(served, q) == {"ready": 1, "done": 1}
    assert worked(ctl, q + "x", "--once", "--", "cat")[0] == []


def test_a_cancelled_task_has_its_command_stopped(ctl: Ctl, served: Daemon, q: str, tmp_path: Path) -> None:
    one = pushed(served, q, f"echo $$ > {tmp_path}/pid; sleep 60")
    with working(ctl, q, "--lease", "0.6", "--", *SCRIPT) as worker:
        pid = pid_in(tmp_path / "pid")
        # Renewed in the meantime.
        time.sleep(1.0)
        assert counts(served, q) == {"leased": 1}
        assert cancel(served, q, one) == "marked"
        becomes(served, q, 10, dead=1)
        assert not Path(f"/proc/{pid}").exists()
        assert task(served, q, one)["reason"] == "cancelled"
        worker.send_signal(signal.SIGTERM)
        ends(worker)


def test_a_lost_lease_stops_the_command_with_all_that_it_started(
    ctl: Ctl, served: Daemon, module_redis: RedisServer, q: str, tmp_path: Path
) -> None:
    pushed(served, q, f"trap : TERM; sleep 60 & echo $! > {tmp_path}/pid; while :; do wait; done")
    with working(ctl, q, "--lease", "0.6", "--kill-after", "0.3", "--", *SCRIPT) as worker:
        pid = pid_in(tmp_path / "pid")
        for key in ("t", "m", "l"):
            module_redis.command("DEL", f"{{{q}}}{key}")
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), 10, "the end of the command")
        worker.send_signal(signal.SIGTERM)
        assert "lost after" in ends(worker)


def pid_in(path: Path) -> int:
    return int(wait_until(lambda: path.exists() and path.read_text().strip(), 10, "a process number"))


def test_a_worker_that_is_reported_to_end_finishes_what_runs(
    ctl: Ctl, served: Daemon, q: str, tmp_path: Path
) -> None:
    pushed(served, q, f"echo > {tmp_path}/began; sleep 1; echo ok")
    pushed(served, q, "never")
    with working(ctl, q, "--", *SCRIPT) as worker:
        wait_until((tmp_path / "began").exists)
        worker.send_signal(signal.SIGTERM)
        ends(worker)
    assert counts(served, q) == {"ready": 1, "done": 1}


def test_a_deploy_costs_no_attempt(ctl: Ctl, served: Daemon, q: str, tmp_path: Path) -> None:
    ids = [pushed(served, q, f"echo > {tmp_path}/{n}; sleep 60") for n in range(2)]
    with working(ctl, q, "--concurrency", "2", "--grace", "0.2", "--", *SCRIPT) as worker:
        wait_until(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists())
        worker.send_signal(signal.SIGINT)
        err = ends(worker)
    assert err.count("released after") == 2
    assert counts(served, q) == {"ready": 2}
    for one in ids:
        row = task(served, q, one)
        assert (row["attempt"], [end["reason"] for end in row["history"]]) == (0, ["released"])


def test_an_idle_worker_ends_at_once_and_loses_nothing(ctl: Ctl, served: Daemon, q: str) -> None:
    with working(ctl, q, "--", "cat") as worker:
        wait_until(lambda: queue(served, q)["pollers"] == 1)
        worker.send_signal(signal.SIGTERM)
        pushed(served, q, 1)
        ends(worker)
    found = counts(served, q)
    assert found in ({"ready": 1}, {"done": 1})
    if found == {"ready": 1}:
        assert tasks(served, q)[0]["attempt"] == 0


def test_a_command_that_cannot_be_executed_ends_the_worker_and_costs_no_attempt(
    ctl: Ctl, served: Daemon, q: str, tmp_path: Path
) -> None:
    command = tmp_path / "command"
    command.write_text('#!/bin/sh\nrm "$0"\n')
    command.chmod(0o755)
    ids = [pushed(served, q, n) for n in range(3)]
    _, err = worked(ctl, q, "--", str(command), code=1)
    assert f"{command} cannot be executed: No such file or directory." in err
    assert counts(served, q) == {"ready": 2, "done": 1}
    assert [task(served, q, one)["attempt"] for one in ids[1:]] == [0, 0]
    # The same as an earlier version, in which the interpreter is missing or it is no program.
    for text, why in (("#!/no/such/interpreter\n", "No such file"), ("\x00\x01", "Exec format error")):
        command.write_text(text)
        command.chmod(0o755)
        assert why in worked(ctl, q, "--", str(command), code=1)[1]
    assert counts(served, q) == {"ready": 2, "done": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Q",), "The command is missing"),
        (("Q", "--"), "The command is missing"),
        (("--", "cat"), "Missing argument"),
        (("Q", "--", "no-such-command"), "is not found"),
        (("Q", "--", "/etc/passwd"), "cannot be executed"),
        (("a/b", "--", "cat"), "no slash"),
        (("Q", "--concurrency", "0", "--", "cat"), "concurrency"),
        (("Q", "--progress-fd", "2", "--", "cat"), "progress-fd"),
        (("{", "--once", "--", "cat"), "bad_name"),
    ],
)
def test_wrong_usage(ctl: Ctl, arguments: tuple[str, ...], words: str) -> None:
    assert words in ctl.fails(2, "work", *arguments)


class Strange(BaseHTTPRequestHandler):
    """Answers polls in every way but the right one, one after the other, and then says that the worker has to stop."""

    protocol_version = "HTTP/1.1"
    answers: list[tuple[int, dict[str, str], bytes]] = []
    keys: list[str | None] = []

    def do_POST(self) -> None:
        self.keys.append(self.headers["Idempotency-Key"])
        status, headers, body = self.answers.pop(0)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def test_strange_answers_are_no_answers_and_orders_are_obeyed(ctl: Ctl, q: str) -> None:
    away = b'{"error":"Redis is away.","code":"redis_unavailable","outcome":"unknown"}'
    Strange.answers = [
        (200, {}, b"<html>the page of a proxy</html>"),
        (200, {"Content-Length": "999"}, b'{"tasks":['),
        (200, {}, b'{"tasks":['),
        (502, {}, b"Bad Gateway"),
        (404, {}, b"<html>"),
        (503, {"Retry-After": "0"}, away),
        (429, {"Retry-After": "0"}, b"{}"),
        (202, {"Registry-Worker": "quiet", "Retry-After": "0"}, b'{"tasks":[]}'),
        (202, {"Registry-Worker": "stop"}, b'{"tasks":[]}'),
    ]
    Strange.keys = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Strange) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            _, err = worked(Ctl(f"http://127.0.0.1:{server.server_port}", ctl.home), q, "--", "cat")
        finally:
            server.shutdown()
    assert "The registry tells this worker to stop." in err
    # One poll until it was answered, and two more.
    first = Strange.keys[0]
    assert Strange.keys[:8] == [first] * 8 and first
    assert len(set(Strange.keys)) == 2 and len(Strange.keys) == 9


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0.4", {"progress": 0.4}),
        ("40%", {"progress": 0.4}),
        ("0.4 half  of it ", {"progress": 0.4, "message": "half  of it"}),
        ('{"progress": 1, "message": "m"}', {"progress": 1, "message": "m"}),
        ('{"progress": "x"}', {}),
        ("working", {"message": "working"}),
        ("nan", {"message": "nan"}),
        ("1e999 x", {"message": "1e999 x"}),
        ("true", {"message": "true"}),
        ("[" * 100_000, {"message": "[" * 100_000}),
    ],
)
def test_lines_of_progress(line: str, said: dict[str, Any]) -> None:
    assert progress_of(line) == said


@pytest.mark.parametrize(
    ("output", "result"),
    [
        (b' {"a": 1e999}\n', b' {"a": 1e999}\n'),
        (b"9" * 5000, b"9" * 5000),
        (b'"\\ud800"', b'"\\ud800"'),
        (b"done\n\n", b'"done"'),
        (b"Infinity", b'"Infinity"'),
        (b"\xef\xbb\xbf1", b'"\\ufeff1"'),
        (b"\xff\x00", b'"\\ufffd\\u0000"'),
        (b"1 2", b'"1 2"'),
        (b" \n", b""),
        (b"[" * 100_000, json.dumps("[" * 100_000).encode()),
    ],
)
def test_outputs_as_results(output: bytes, result: bytes) -> None:
    assert result_of(output) == result


def test_the_environment_of_a_command_says_until_when_its_lease_is(ctl: Ctl, served: Daemon, q: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    one = pushed(served, q, 1, "lease=500", traceparent=trace)
    names = ("TASK_ID", "TASK_LEASE_EXPIRES", "URL")
    script = "echo " + " ".join(f"$REGISTRY_{name}" for name in names) + " $TRACEPARENT"
    worked(ctl, q, "--once", "--", "sh", "-c", script)
    task_id, expires, url, given = task(served, q, one)["result"].split()
    assert (task_id, url, given) == (one, served.url, trace)
    left = time.mktime(time.strptime(expires, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone - time.time()
    assert 400 < left < 501
    assert os.environ.get("REGISTRY_TASK_ID") is None


def test_a_token_is_sent_and_a_worker_without_the_right_ends(
    module_redis: RedisServer, tmp_path: Path, q: str
) -> None:
    callers = Callers(tmp_path / "tokens.json")
    pop, other = callers.add("worker", f"pop {q}"), callers.add("other", "pop other")
    callers.add("producer", f"push {q}")
    with guarded(module_redis, callers) as guard:
        one = guard.ask("producer", "POST", f"/api/pushTask/{q}", 1).ok()["id"]
        ctl = ctl_of(guard.daemon, tmp_path)
        with ctl.process("work", q, "--", "cat", env={"REGISTRY_TOKEN": other}) as worker:
            err = ends(worker, 4)
        assert "pop" in err and "rgy_" not in err
        with ctl.process("work", q, "--once", "--", "cat", env={"REGISTRY_TOKEN": pop}) as worker:
            assert f"{one} attempt 1: done" in ends(worker)
        assert "rgy_" not in guard.daemon.log


def test_a_command_gets_no_files_of_the_worker_and_the_usual_signals(
    ctl: Ctl, served: Daemon, q: str
) -> None:
    script = "ls /proc/self/fd; grep -E 'SigIgn|SigBlk' /proc/self/status"
    one = pushed(served, q, 1)
    worked(ctl, q, "--once", "--progress-fd", "9", "--", "sh", "-c", script)
    *files, blocked, ignored = task(served, q, one)["result"].split("\n")
    # ls opens the folder itself.
    assert {"0", "1", "2", "9"} <= set(files) and len(files) == 5
    # The C library uses two signals of its own.
    assert [int(line.split()[1], 16) & 0x7FFFFFFF for line in (blocked, ignored)] == [0, 0]

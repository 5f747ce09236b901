"""Each command of ``registryctl`` against a real daemon: what it does, what it prints for people and for scripts, how it ends."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from urllib.parse import quote

import pytest

from registry.cli.main import COMMANDS
from tests.ctl import Ctl, ctl_of
from tests.live import Daemon
from tests.talk import ask, counts, leased, on, policy, pushed, queue, task

# What a terminal could obey, and what changes the direction of text; line feeds and tabs do no harm.
HOSTILE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def ctl(served: Daemon, tmp_path: Path) -> Ctl:
    return ctl_of(served, tmp_path)


def words(text: str) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in text.splitlines()]


# Push and pop


@pytest.mark.parametrize(
    ("payload", "stdin", "stored"),
    [
        ('{"a": 1}', "", b'{"a": 1}'),
        ("-", "[1]\n", b"[1]\n"),
        (None, "2", b"2"),
        ("1e999", "", b"1e999"),
        ("@FILE", "", b'"of a file"'),
        (f"{'9' * 5000}", "", b"9" * 5000),
    ],
)
def test_push_keeps_the_bytes(
    ctl: Ctl, served: Daemon, q: str, tmp_path: Path, payload: str | None, stdin: str, stored: bytes
) -> None:
    (tmp_path / "file").write_bytes(b'"of a file"')
    arguments = [] if payload is None else [payload.replace("FILE", str(tmp_path / "file"))]
    task_id = ctl.ok("push", q, *arguments, stdin=stdin).strip()
    assert re.fullmatch("[0-9a-f]{24}", task_id)
    assert ask(served, "GET", f"/api/popTask/{q}?wait=0").body == b'{"task":' + stored + b"}"


def test_push_has_every_option(ctl: Ctl, served: Daemon, q: str) -> None:
    options = "--delay 60 --priority 3 --ttl 600 --attempts 4 --backoff 2 --lease 9 --key k --result 60"
    said = ctl.json("push", q, "hi", "--text", *options.split(), "--idempotency-key", "once")
    row = task(served, q, said["id"])
    assert (row["state"], row["priority"], row["task"]) == ("delayed", 3, "hi")
    again = ctl.run("push", q, "hi", "--text", "--key", "k")
    assert again.stdout == said["id"] + "\n" and "already" in again.stderr
    assert ctl.json("push", q, "1", "--at", "2100-01-01T00:00:00Z")["success"] is True
    assert counts(served, q) == {"delayed": 2}


@pytest.mark.parametrize("fails", [False, True])
def test_push_waits_for_the_result(ctl: Ctl, served: Daemon, q: str, fails: bool) -> None:
    def work() -> None:
        one = leased(served, q, "lease=30&wait=20")
        body = b'{"retry":false}' if fails else b'{"sum":42}'
        on(served, "fail" if fails else "ack", q, one["lease"], body).ok()

    worker = threading.Thread(target=work)
    worker.start()
    result = ctl.run("push", q, "[6,7]", "--wait", "20")
    worker.join()
    if fails:
        assert result.exit_code == 1 and "is dead: failed" in result.stderr
    else:
        assert (result.exit_code, result.stdout) == (0, '{"sum":42}\n')


def test_push_that_waits_in_vain(ctl: Ctl, q: str) -> None:
    assert "has not ended" in ctl.fails(1, "push", q, "1", "--wait", "0.1")


def test_pop_and_what_a_holder_says(ctl: Ctl, served: Daemon, q: str) -> None:
    for number in range(6):
        pushed(served, q, number, "attempts=1" if number == 1 else "")
    assert ctl.ok("pop", q) == "0\n"
    one = ctl.json("pop", q, "--lease", "30", "--worker", "w")
    assert (one["task"], one["attempt"]) == (1, 1)
    assert (
        ctl.ok("extend", q, one["lease"], "--lease", "60", "--progress", "0.5")
        == "The lease holds for 1 min.\n"
    )
    assert ctl.ok("fail", q, one["lease"], "--type", "T", "--message", "m") == "dead\n"
    two = ctl.json("pop", q, "--lease", "30")
    assert ctl.ok("release", q, two["lease"]) == "released\n"
    three = ctl.run("pop", q, "--lease", "30")
    assert three.stdout == "2\n"
    lease = three.stderr.split()[-1]
    assert lease.startswith(two["id"])
    four = ctl.run("pop", q, "--lease", "30", "--ack", lease)
    assert four.stdout == "3\n" and "done" in four.stderr
    assert ctl.ok("ack", q, four.stderr.split()[-1], '{"r":1}') == "done\n"
    many = ctl.rows("pop", q, "other", "--count", "5", "--wait", "0")
    assert [row["task"] for row in many] == [4, 5]
    assert counts(served, q)["leased"] == 2


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (3, ("pop", "Q", "--wait", "0")),
        (3, ("pop", "Q", "Q2", "--wait", "0")),
        (2, ("pop", "Q", "Q2", "--ack", "a-b")),
        (2, ("pop", "a{b")),
        (2, ("push", "Q", "not json")),
        (2, ("push", "Q", "@/nonexistent")),
        (2, ("push", "Q", "1", "--delay", "-1")),
        (2, ("push", "a/b", "1")),
        (2, ("push", "..", "1")),
        (2, ("push", "Q", "1", "--idempotency-key", "ä")),
        (4, ("ack", "Q", "none-none")),
        (4, ("extend", "Q", "none-none")),
        (3, ("task", "Q/nothing")),
        (3, ("task", "1a20c84f3c455d68bb30d4af")),
        (3, ("task", "Q/nothing", "cancel")),
        (2, ("task", "Q/")),
        (2, ("queue", "Q", "set", "rate=fast")),
        (2, ("queue", "Q", "set", "speed=1")),
        (2, ("queue", "Q", "set", "rate")),
        (2, ("queue", "Q", "move")),
        (2, ("tasks", "Q", "--state", "gone")),
        (3, ("schedule", "show", "none")),
        (3, ("schedule", "pause", "none")),
        (3, ("schedule", "delete", "none", "--yes")),
        (2, ("schedule", "put", "s", "--queue", "Q", "--cron", "every day")),
    ],
)
def test_exit_codes(ctl: Ctl, q: str, code: int, arguments: tuple[str, ...]) -> None:
    ctl.fails(code, *(word.replace("Q", q, 1) if word[0] == "Q" else word for word in arguments))


def test_a_full_queue_refuses(ctl: Ctl, served: Daemon, q: str) -> None:
    policy(served, q, max_length=1)
    ctl.ok("push", q, "1")
    assert "queue_full" in ctl.fails(4, "push", q, "2")


# Queues


def test_a_queue(ctl: Ctl, served: Daemon, q: str) -> None:
    pushed(served, q)
    assert ["ready", "1"] in words(ctl.ok("queue", q))
    row = ctl.json("queue", q, "set", "rate=5", 'retention={"done":60}', "paused=true")
    assert row["policy"] == {"rate": 5, "retention": {"done": 60}, "paused": True}
    assert ctl.json("queue", q, "set", "rate=", "retention=null")["policy"] == {"paused": True}
    assert ctl.json("queue", q, "resume")["policy"] == {}
    assert "paused_until" in ctl.json("queue", q, "pause", "--seconds", "60")["policy"]
    (line,) = [line for line in words(ctl.ok("queues", "--search", q)) if line[0] == q]
    assert line[1:6] == ["1", "0", "0", "0", "0"] and line[-1] == "paused"
    assert queue(served, q)["ready"] == 1


def test_lists_go_on_past_a_page(ctl: Ctl, served: Daemon, q: str) -> None:
    for _ in range(2):
        ask(served, "POST", f"/api/pushTasks/{q}", list(range(700))).ok()
    assert len(ctl.rows("tasks", q, "--all")) == 1400
    assert len(ctl.rows("tasks", q)) == 100
    assert [row["task"] for row in ctl.rows("tasks", q, "--limit", "3")] == [0, 1, 2]
    assert len(words(ctl.ok("tasks", q, "--limit", "2"))) == 3
    assert len(words(ctl.ok("tasks", q, "--all"))) == 1401


def test_bulk_operations(ctl: Ctl, served: Daemon, q: str) -> None:
    other = f"{q}-other"
    for number in range(3):
        pushed(served, q, number)
        on(
            served,
            "fail",
            q,
            leased(served, q)["lease"],
            {"retry": False, "error": {"message": f"no {number}"}},
        )
    pushed(served, q, 3, "delay=60")
    for arguments in (
        ("purge",),
        ("retry",),
        ("delete", "--state", "dead"),
        ("move", other, "--state", "dead"),
    ):
        # A script has to say that it means it.
        assert "--yes" in ctl.fails(2, "queue", q, *arguments)
    assert counts(served, q) == {"dead": 3, "delayed": 1}
    assert ctl.json("queue", q, "retry", "--error", "no 1", "--dry-run")["count"] == 1
    assert "nothing was changed" in ctl.ok("queue", q, "delete", "--state", "dead", "--dry-run")
    assert ctl.ok("queue", q, "retry", "--error", "no 1", "--yes") == "1 task retried.\n"
    assert ctl.ok("queue", q, "delete", "--state", "dead", "--limit", "1", "--yes") == "1 task deleted.\n"
    assert ctl.json("queue", q, "move", other, "--state", "dead", "--yes")["count"] == 1
    assert ctl.ok("queue", q, "purge", "--yes") == "2 tasks deleted.\n"
    assert (counts(served, q), counts(served, other)) == ({}, {"dead": 1})
    # Nothing to ask about.
    assert ctl.ok("queue", q, "purge") == "0 tasks deleted.\n"


# Tasks


def test_a_task(ctl: Ctl, served: Daemon, q: str) -> None:
    task_id = pushed(served, q, [1], "delay=60")
    for reference in ((task_id,), (f"{q}/{task_id}",), ("--queue", q, task_id)):
        shown = words(ctl.ok("task", *reference))
        assert ["queue", q] in shown and ["state", "delayed"] in shown and ["task", "[1]"] in shown
    assert "It is due in" in ctl.ok("task", task_id, "why")
    assert ctl.ok("task", task_id, "run") == "The task is ready.\n"
    assert "not_delayed" in ctl.fails(4, "task", f"{q}/{task_id}", "run")
    lease = leased(served, q, "lease=30&worker=w1")["lease"]
    assert "when it renews the lease" in ctl.ok("task", task_id, "cancel")
    on(served, "fail", q, lease, {"error": {"type": "E", "message": "boom"}})
    text = ctl.ok("task", task_id)
    assert ["state", "dead"] in words(text) and "w1" in text and "E: boom" in text
    assert ctl.ok("task", task_id, "retry") == "The task is ready again.\n"
    assert "not_dead" in ctl.fails(4, "task", task_id, "retry")
    assert "cancelled" in ctl.ok("task", task_id, "cancel")
    assert "deleted" in ctl.ok("task", task_id, "cancel")
    assert counts(served, q) == {}


def test_a_result_is_shown_as_it_was_sent(ctl: Ctl, served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "result=60")
    on(served, "ack", q, leased(served, q)["lease"], b'{"big":1e999}').ok()
    assert ["result", '{"big":1e999}'] in words(ctl.ok("task", task_id))
    assert '"result":{"big":1e999}' in ctl.ok("task", task_id, "--json")


# The audit


def test_audit_and_undo(ctl: Ctl, served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1, "key=k")
    pushed(served, q, 2)
    purged = ctl.run("queue", q, "purge", "--yes")
    assert purged.stdout == "2 tasks deleted.\n"
    entry = purged.stderr.split()[-1]
    (line,) = [line for line in words(ctl.ok("audit", "--queue", q)) if line[0] == entry]
    assert line[3:7] == ["-", "127.0.0.1", "purge", q] and "until" in line
    again = pushed(served, q, 3, "key=k")
    assert (
        ctl.ok("undo", entry)
        == "1 task came back.\n1 task did not: another task with this key waits or runs.\n"
    )
    assert counts(served, q) == {"ready": 2}
    assert [row["action"] for row in ctl.rows("audit", "--queue", q)] == ["undo", "purge"]
    assert ctl.rows("audit", "--queue", q, "--action", "policy") == []
    assert "not_found" in ctl.fails(3, "undo", "999999")
    assert "not_undoable" in ctl.fails(
        4, "undo", ctl.rows("audit", "--queue", q, "--action", "undo")[0]["id"]
    )
    assert "bad_option" in ctl.fails(2, "audit", "--action", "mischief")
    cancelled = ctl.run("task", f"{q}/{again}", "cancel")
    assert "came back" in ctl.ok("undo", cancelled.stderr.split()[-1])
    assert "undo" not in ctl.run("queue", q, "purge", "--yes", "--no-undo").stderr
    assert ctl.rows("audit", "--queue", q, "--action", "purge")[0]["undo"] is None
    ctl.fails(3, "task", f"{q}/{task_id}")


# Schedules


def test_schedules(ctl: Ctl, served: Daemon, q: str) -> None:
    put = ("schedule", "put", f"s-{q}", "--cron", "0 3 1 1 *", "--queue", q, '{"a":1e999}')
    said = ctl.ok(*put, "--timezone", "Europe/Vienna", "--missed", "once", "--option", "attempts=3")
    assert ["task", '{"a":1e999}'] in words(said)
    assert ["options", '{"attempts":3}'] in words(said)
    assert '"paused":true' in ctl.ok("schedule", "pause", f"s-{q}", "--json")
    assert ctl.json("schedule", "resume", f"s-{q}")["missed"] == "once"
    (row,) = [row for row in ctl.rows("schedule", "list") if row["name"] == f"s-{q}"]
    assert (row["timezone"], row["paused"], row["options"]) == ("Europe/Vienna", False, {"attempts": 3})
    assert any(
        line[0] == f"s-{q}" and line[-1] == '{"a":1e999}' for line in words(ctl.ok("schedule", "list"))
    )
    ctl.ok("schedule", "run", f"s-{q}")
    assert counts(served, q) == {"ready": 1}
    assert "--yes" in ctl.fails(2, "schedule", "delete", f"s-{q}")
    ctl.ok("schedule", "delete", f"s-{q}", "--yes")
    ctl.fails(3, "schedule", "show", f"s-{q}")


# Hostile text


NASTY = "\x1b[2J\x9b31m\x7f\u202e[red]\u2028"


def test_nothing_hostile_reaches_the_terminal(ctl: Ctl, served: Daemon, q: str) -> None:
    name = f"{q}\u202e[bold]\u200f"
    path = quote(name)
    payload = json.dumps({"a": NASTY}, ensure_ascii=False).encode().replace(b":", b"\r\n:\t")
    task_id = ask(served, "PUT", f"/api/pushTask/{path}", payload).ok()["id"]
    # What can be sent as it is: JSON escapes the rest itself.
    error = {"type": NASTY, "message": NASTY, "trace": NASTY}
    holder = ask(served, "GET", f"/api/popTask/{path}?lease=30&worker={quote('w[red]')}").ok()
    on(served, "fail", path, holder["lease"], {"error": error, "retry": False}).ok()
    ask(served, "PUT", f"/api/pushTask/{path}", payload).ok()
    ask(served, "PUT", f"/api/schedules/{path}", {"cron": "0 0 1 1 *", "queue": name, "task": NASTY}).ok()
    commands = [
        ("queues", "--search", q),
        ("queue", name),
        ("tasks", name),
        ("tasks", name, "--state", "dead"),
        ("tasks", name, "--state", "dead", "--search", NASTY),
        ("task", f"{name}/{task_id}"),
        ("task", task_id),
        ("task", f"{name}/{task_id}", "why"),
        ("schedule", "list"),
        ("schedule", "show", name),
        ("schedule", "show", NASTY),
        ("queue", name, "set", f"{NASTY}=1"),
        ("top", "--search", q),
        ("push", name, NASTY),
        (NASTY,),
        ("queue", name, NASTY),
        ("pop", name, "--lease", "30", "--wait", "0"),
        ("pop", name, "--wait", "0"),
    ]
    for command in commands:
        for json_too in ((), ("--json",)):
            result = ctl.run(*command, *json_too)
            assert HOSTILE.search(result.output) is None, (command, result.output)
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            assert "A bug" not in result.output, result.output
    assert "[bold]" in ctl.ok("queue", name) and "[red]" in ctl.ok("task", task_id)
    for line in ctl.ok("tasks", name, "--state", "dead", "--json").splitlines():
        assert json.loads(line)["task"] == {"a": NASTY}
    ask(served, "DELETE", f"/api/schedules/{path}").ok()


# Others


def test_top_draws_once_without_a_terminal(ctl: Ctl, served: Daemon, q: str) -> None:
    pushed(served, q)
    assert any(line[:2] == [q, "1"] for line in words(ctl.ok("top", "--search", q)))
    assert ctl.rows("top", "--search", q, "--once")[0]["name"] == q


def test_doctor(ctl: Ctl, q: str) -> None:
    rows = ctl.rows("doctor", "--wait", "0.3")
    assert [row for row in rows if row["state"] == "bad"] == []
    assert {row["check"] for row in rows} == {
        "address", "dns", "tls", "answer", "versions", "clock", "token", "redis", "findings", "wait",
    }  # fmt: skip
    assert "ok    wait      a poll may wait for 0.3 s\n" in ctl.ok("doctor", "--wait", "0.3")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(ctl: Ctl, shell: str) -> None:
    assert "registryctl" in ctl.ok("completion", shell)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(ctl: Ctl, command: str) -> None:
    text = ctl.ok(command, "--help")
    assert text.startswith("Usage: registryctl") and "--json" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_plain_http_where_tls_is_expected(served: Daemon, tmp_path: Path) -> None:
    ctl = Ctl(served.url.replace("http:", "https:"), tmp_path)
    assert "does not speak TLS" in ctl.fails(5, "queues", "--retry-for", "0")

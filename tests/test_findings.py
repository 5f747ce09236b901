"""Findings on a real daemon: each appears, says what it should, and goes away; in the API, the shell and the event stream alike."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from registry.http.findings import Report, spell
from registry.queue.findings import CODES, Finding, Found
from tests.callers import Callers, guarded
from tests.ctl import Ctl
from tests.live import Daemon, RedisServer, short_folder, wait_until
from tests.sse import streaming
from tests.talk import ask, leased, on, policy, poll, pushed, retry, running

OLD_MS = 100_000


@pytest.fixture(scope="module")
def redis(redis_binary: str) -> Iterator[RedisServer]:
    one = RedisServer(redis_binary)
    try:
        yield one.start()
    finally:
        one.remove()


@pytest.fixture(scope="module")
def lone(redis: RedisServer) -> Iterator[Daemon]:
    with running(redis) as one:
        yield one


def findings(daemon: Daemon) -> dict[tuple[str, str | None], dict[str, Any]]:
    report = ask(daemon, "GET", "/api/findings").ok()
    assert report["count"] == len(report["findings"])
    assert report["headline"].endswith(".")
    return {(row["code"], row["queue"]): row for row in report["findings"]}


def appears(daemon: Daemon, code: str, queue: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = wait_until(lambda: findings(daemon).get((code, queue)), 20, f"{code} of {queue}")
    return found


def goes(daemon: Daemon, code: str, queue: str | None = None) -> None:
    wait_until(lambda: (code, queue) not in findings(daemon), 20, f"the end of {code} of {queue}")


def make_old(redis: RedisServer, name: str) -> None:
    """Push a task as it looks long after its push: the time is in its id."""
    seconds, _ = redis.command("TIME")
    task = b"%011x" % (int(seconds) * 1000 - OLD_MS) + b"0" * 13
    key = name.encode()
    redis.command("HSET", b"{%b}t" % key, task, b"1")
    redis.command("LPUSH", key, b"\1" + task)
    redis.command("ZADD", "{registry}index", 10**14, key)


def fail(daemon: Daemon, queue: str, worker: str, message: str) -> None:
    pushed(daemon, queue, 1, "attempts=1")
    lease = leased(daemon, queue, f"lease=30&wait=0&worker={worker}")["lease"]
    on(daemon, "fail", queue, lease, {"error": {"type": "SMTPAuthError", "message": message}}).ok()


def test_nothing_is_wrong_at_first(lone: Daemon) -> None:
    assert findings(lone) == {}
    assert ask(lone, "GET", "/api/findings").ok()["headline"] == "Everything is moving."


def test_nobody_polls(lone: Daemon, redis: RedisServer) -> None:
    make_old(redis, "thumbnails")
    pushed(lone, "fresh-one")
    row = appears(lone, "nobody_polls", "thumbnails")
    assert row["count"] == 1 and row["severity"] == "warning"
    assert row["sentence"] == "Nobody polls thumbnails"
    assert row["detail"] == "1 task waits, the oldest for 1 min. No poll of it is known."
    assert ("nobody_polls", "fresh-one") not in findings(lone)
    # Its only task is being worked on, so somebody works there.
    lease = leased(lone, "thumbnails", "lease=30&wait=0&worker=thumb-1")["lease"]
    goes(lone, "nobody_polls", "thumbnails")
    on(lone, "ack", "thumbnails", lease).ok()


def test_a_family_is_one_finding(lone: Daemon, redis: RedisServer) -> None:
    for number in range(3):
        make_old(redis, f"resize:{number}")
    row = appears(lone, "nobody_polls", "resize:*")
    assert row["count"] == 3 and row["facts"]["queues"] == 3
    for number in range(3):
        ask(lone, "DELETE", f"/api/queues/resize:{number}?undo=no").ok()
    goes(lone, "nobody_polls", "resize:*")


def test_a_queue_that_somebody_polls_is_none(lone: Daemon, redis: RedisServer) -> None:
    policy(lone, "slow", rate=0.001)
    pushed(lone, "slow")
    leased(lone, "slow")
    make_old(redis, "slow")
    with streaming(lone.port, "queue=slow") as stream:
        waiting = poll(lone, "slow", "wait=50&lease=5&worker=w")
        stream.row("slow", ready=1, pollers=1)
        assert ("nobody_polls", "slow") not in findings(lone)
        waiting.hang_up()
    ask(lone, "DELETE", "/api/queues/slow?undo=no").ok()


def test_deaths_name_the_worker_and_the_error(lone: Daemon) -> None:
    for _ in range(5):
        fail(lone, "mail", "mail-3", "no 535")
    pushed(lone, "mail")
    on(lone, "ack", "mail", leased(lone, "mail", "lease=9&wait=0&worker=mail-1")["lease"]).ok()
    assert ("deaths", "mail") not in findings(lone)
    fail(lone, "mail", "mail-3", "no 536")
    row = appears(lone, "deaths", "mail")
    assert row["detail"] == "6 have died in 15 min with SMTPAuthError, every one of them on mail-3."
    assert row["facts"]["points_to"] == "worker" and row["facts"]["message"] == "no #"
    assert row["action"]["path"] == "/api/workers/mail-3" and row["action"]["body"] == {"order": "quiet"}
    assert ask(lone, row["action"]["method"], row["action"]["path"], row["action"]["body"]).status == 200
    assert retry(lone, "mail")["count"] == 6
    goes(lone, "deaths", "mail")
    ask(lone, "DELETE", "/api/queues/mail?undo=no").ok()


def test_what_an_operator_cancelled_is_no_finding(lone: Daemon) -> None:
    for _ in range(7):
        task = pushed(lone, "unwanted")
        ask(lone, "DELETE", f"/api/queues/unwanted/tasks/{task}").ok()
    fail(lone, "sure-one", "w", "x")
    assert not {code for code, _ in findings(lone)} & {"deaths"}


def test_paused_says_since_when_and_by_whom(lone: Daemon) -> None:
    policy(lone, "invoice", paused=True)
    assert ("paused", "invoice") not in findings(lone)
    pushed(lone, "invoice")
    waiting = poll(lone, "invoice", "wait=50&lease=5")
    row = wait_until(lambda: (r := appears(lone, "paused", "invoice"))["facts"]["pollers"] and r, 10)
    assert row["since"] and row["facts"]["address"] == "127.0.0.1"
    assert "by 127.0.0.1. 1 task waits; 1 poller is ready to take them." in row["detail"]
    action = row["action"]
    assert ask(lone, action["method"], action["path"]).status == 200
    assert waiting.answer().status == 200
    goes(lone, "paused", "invoice")


def test_memory_and_disk(lone: Daemon, redis: RedisServer) -> None:
    used = int(
        dict(line.split(b":") for line in redis.command("INFO", "memory").split() if b":" in line)[
            b"used_memory"
        ]
    )
    try:
        redis.command("CONFIG", "SET", "maxmemory", int(used / 0.93))
        row = appears(lone, "redis_memory")
        assert "% of its maxmemory is used" in row["detail"] and row["facts"]["limit_bytes"] > 0
        redis.command("CONFIG", "SET", "maxmemory", used // 2)
        assert appears(lone, "redis_full")["severity"] == "critical"
        assert ("redis_memory", None) not in findings(lone)
        assert ask(lone, "GET", "/api/findings").ok()["headline"] == "Redis is full. Pushes are refused."
    finally:
        redis.command("CONFIG", "SET", "maxmemory", 0)
    goes(lone, "redis_full")


def test_a_failed_snapshot(lone: Daemon, redis: RedisServer) -> None:
    pushed(lone, "kept")
    redis.command("CONFIG", "SET", "rdb-key-save-delay", 50_000_000)
    redis.command("BGSAVE")
    children = Path(f"/proc/{redis.pid}/task/{redis.pid}/children")
    os.kill(int(wait_until(children.read_text, 10).split()[0]), signal.SIGKILL)
    assert appears(lone, "redis_not_persisting")["severity"] == "critical"
    redis.command("CONFIG", "SET", "rdb-key-save-delay", 0)
    redis.command("BGSAVE")
    goes(lone, "redis_not_persisting")
    ask(lone, "DELETE", "/api/queues/kept?undo=no").ok()


def test_the_shell_and_the_stream_say_the_same(lone: Daemon, tmp_path: Path) -> None:
    ctl = Ctl(lone.url, tmp_path)
    assert ctl.ok("findings") == "Everything is moving.\n"
    with streaming(lone.port, "limit=0") as stream:
        assert stream.next("findings")["findings"] == []
        policy(lone, "invoice", paused=True)
        pushed(lone, "invoice")
        told = stream.until(lambda event: event.name == "findings" and event.data["count"]).data
        result = ctl.run("findings")
        assert result.exit_code == 1
        lines = result.output.splitlines()
        assert lines[0] == told["headline"]
        assert lines[1].startswith("warning   invoice is paused. For ")
        assert lines[2].strip() == "registryctl queue invoice resume"
        assert ctl.run("findings", "--json").output.count('"code":"paused"') == 1
        assert any(
            row["check"] == "findings" and row["state"] == "warn" for row in ctl.rows("doctor", "--wait", "0")
        )
        ask(lone, "POST", "/api/queues/invoice/pause?seconds=0").ok()
        assert stream.until(lambda event: event.name == "findings" and not event.data["count"])


def test_without_payloads_no_text_of_an_error_is_told(redis: RedisServer, lone: Daemon) -> None:
    callers = Callers(short_folder() / "tokens.json")
    callers.add("all", "view")
    callers.add("some", "view --no-payloads")
    soon = datetime.now(UTC) + timedelta(days=3, hours=1)
    callers.add("soon", "push *", expires=soon.strftime("%Y-%m-%dT%H:%M:%SZ"))
    for _ in range(6):
        fail(lone, "secret", "w", "the password is geheim")
    with guarded(redis, callers):
        bodies = {who: callers.ask(who, "GET", "/api/findings").body.decode() for who in ("all", "some")}
        assert "geheim" in bodies["all"] and "SMTPAuthError" in bodies["all"]
        assert "geheim" not in bodies["some"] and "SMTPAuthError" not in bodies["some"]
        assert '"hidden":true' in bodies["some"] and "every one of them on w" in bodies["some"]
        headers = {"Authorization": f"Bearer {callers.secrets['some']}"}
        with streaming(callers.daemon.port, "limit=0", **headers) as stream:
            told = stream.next("findings")
            token = next(row for row in told["findings"] if row["code"] == "token_expires")
            assert token["sentence"] == "The token soon expires" and token["detail"].startswith("In 3 days.")
            assert told["count"] and "geheim" not in str(told) and "SMTPAuthError" not in str(told)
            del callers.entries["soon"]
            callers.write()
            told = stream.next("findings")
            assert "token_expires" not in {row["code"] for row in told["findings"]}
    ask(lone, "DELETE", "/api/queues/secret/tasks?state=dead&undo=no").ok()


def test_redis_away(lone: Daemon, redis: RedisServer) -> None:
    with streaming(lone.port, "limit=0") as stream:
        stream.next("queues")
        redis.stop()
        row = appears(lone, "redis_away")
        assert row["severity"] == "critical" and row["since"]
        report = stream.until(lambda event: event.name == "findings" and event.data["count"]).data
        assert report["headline"].startswith("Redis has not answered for ")
        redis.start()
        goes(lone, "redis_away")
        assert not stream.until(lambda event: event.name == "findings" and not event.data["count"]).data[
            "findings"
        ]


def test_tokens_and_strangers(redis: RedisServer) -> None:
    with running(redis, HOST="0.0.0.0", ALLOW_ANONYMOUS="1") as one:
        assert appears(one, "anonymous")["severity"] == "notice"


def test_words_for_every_code() -> None:
    now = 10**12
    facts: dict[str, dict[str, Any]] = {
        "redis_away": {"why": "Redis cannot be reached."},
        "redis_full": {"used": 95, "limit": 100},
        "redis_memory": {"used": 91, "limit": 100},
        "nobody_polls": {
            "queues": 1,
            "last_poll_ms": now - 120_000,
            "last_worker": "thumb-1",
            "oldest_ms": now - 2_280_000,
        },
        "deaths": {"queues": 200},
        "paused": {"queues": 1, "pollers": 0, "until_ms": None, "by": "ops", "address": "-"},
        "token_expires": {"token": "t", "expires_ms": now + 86_400_000 * 3, "expired": False},
    }
    all_found = [Finding(code, b"q", now - 1_560_000, 4218, facts.get(code, {})) for code in CODES]
    report = Report(Found(all_found, len(all_found), 1), 12, now)
    assert [row["code"] for row in report.rows] == list(CODES)
    assert report.headline == "Redis has not answered for 26 min. Pushes are refused, nothing is lost."
    details = {row["code"]: row["detail"] for row in report.rows}
    assert (
        details["nobody_polls"]
        == "4,218 tasks wait, the oldest for 38 min. The last poll was 2 min ago, by thumb-1."
    )
    assert details["paused"] == "For 26 min, by ops. 4,218 tasks wait."
    for row in report.rows:
        assert row["sentence"] and not row["sentence"].endswith(".") and row["detail"].endswith((".", "?"))
    without = Report(Found(all_found[4:7], 3, 3), 10_247, now)
    assert without.headline == "Three of 10,247 queues need you."
    assert [spell(n) for n in (0.9, 59, 60, 5399, 5400, 200_000)] == [
        "0 s",
        "59 s",
        "1 min",
        "89 min",
        "1 h",
        "2 days",
    ]

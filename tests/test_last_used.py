"""When each token was used last: written some seconds later, for all daemons on one Redis, and kept over their restarts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from registry.errors import RedisUnavailable
from registry.http.auth import Gate
from registry.model.tokens import Token, hash_of
from registry.queue.last_used import LastUsed
from registry.redis.presence import FORGOTTEN_MS, MAX_TOKENS
from tests.callers import FUTURE, PAST, Callers, guarded
from tests.ctl import Ctl
from tests.live import RedisServer, short_folder, wait_until

KEY = "{registry}tokens"


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    one = Callers(short_folder() / "tokens.json")
    one.add("operator", "operate")
    one.add("expired", "admin", expires=PAST)
    for name in ("worker", "unused"):
        one.add(name, "pop zone*", "push b", expires=FUTURE)
    with guarded(module_redis_process, one, PROCESSES="2"):
        yield one


def listed(callers: Callers, query: str = "") -> dict[str, dict[str, Any]]:
    rows = callers.ask("operator", "GET", f"/api/tokens{query}").ok()["tokens"]
    return {row["name"]: row for row in rows}


def used(callers: Callers, name: str) -> Any:
    return listed(callers)[name]["last_used"]


def test_tokens_are_listed_without_what_lets_anybody_in(callers: Callers) -> None:
    whole = callers.ask("operator", "GET", "/api/tokens")
    rows = whole.ok()["tokens"]
    assert [row["name"] for row in rows] == ["expired", "operator", "unused", "worker"]
    assert [row["expired"] for row in rows] == [True, False, False, False]
    assert rows[2] == {
        "name": "unused",
        "rights": ["pop zone*", "push b"],
        "created": None,
        "expires": FUTURE,
        "expired": False,
        "last_used": None,
    }
    for entry in callers.entries.values():
        assert entry["hash"][:32] not in whole.body.decode()
    pages: list[list[str]] = []
    cursor: str | None = ""
    while cursor is not None:
        more = f"&cursor={cursor}" if cursor else ""
        page = callers.ask("operator", "GET", f"/api/tokens?limit=3{more}").ok()
        pages.append([row["name"] for row in page["tokens"]])
        cursor = page["cursor"]
    assert pages == [["expired", "operator", "unused"], ["worker"]]


def test_a_use_is_seen_by_all_processes_and_after_a_restart(
    callers: Callers, module_redis_process: RedisServer
) -> None:
    began = int(time.time())
    # Also a request that lacks a right; one with a wrong token is of nobody.
    callers.ask("worker", "GET", "/api/queues").refused(403, "forbidden")
    callers.ask("expired", "GET", "/api/queues").refused(401, "unauthorized")
    wait_until(lambda: used(callers, "worker"), 10)
    assert all(used(callers, "worker") for _ in range(8))
    at = datetime.fromisoformat(used(callers, "worker")).timestamp()
    assert began <= at <= time.time() + 1
    assert used(callers, "unused") is None and used(callers, "expired") is None
    # A daemon that stops has written what it knows.
    time.sleep(max(0.0, at + 1.1 - time.time()))
    callers.ask("worker", "GET", "/api/popTask/zone?wait=0")
    callers.daemon.terminate()
    [score] = [float(module_redis_process.command("ZSCORE", KEY, callers.entries["worker"]["hash"][:32]))]
    assert score > (at + 1) * 1000
    callers.daemon.start().redis_ready()
    assert datetime.fromisoformat(used(callers, "worker")).timestamp() == score // 1000


def test_a_revoked_token_leaves_nothing(callers: Callers, module_redis_process: RedisServer) -> None:
    def members() -> set[str]:
        return {one.decode() for one in module_redis_process.command("ZRANGE", KEY, 0, -1)}

    callers.add("short", "view")
    callers.write()
    wait_until(lambda: callers.ask("short", "GET", "/api/queues").status == 200)
    entry = callers.entries.pop("short")
    wait_until(lambda: entry["hash"][:32] in members(), 10)
    callers.write()
    wait_until(lambda: entry["hash"][:32] not in members(), 10)
    # One of the same name was never used.
    callers.add("short", "view")
    callers.write()
    row = wait_until(lambda: listed(callers).get("short"))
    assert row["last_used"] is None
    # Of tokens that were revoked while no daemon ran, only so many are remembered, and only for so long.
    command = module_redis_process.command
    command("ZADD", KEY, int(time.time() * 1000) - FORGOTTEN_MS - 1000, "old")
    many = [part for number in range(MAX_TOKENS + 5) for part in (int(time.time() * 1000) - 10**6, number)]
    command("ZADD", KEY, *many)
    wait_until(lambda: listed(callers) and len(members()) <= MAX_TOKENS, 10)
    assert "old" not in members()
    command("ZREMRANGEBYSCORE", KEY, "-inf", int(time.time() * 1000) - 10**5)


def test_token_list_says_it_where_a_daemon_does(callers: Callers, tmp_path: Path) -> None:
    callers.ask("worker", "GET", "/api/popTask/zone?wait=0")
    wait_until(lambda: used(callers, "worker"), 10)
    arguments = ("token", "list", "--file", str(callers.path))

    def at(url: str, who: str = "") -> Ctl:
        config = tmp_path / ".config" / "registry" / "config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        token = f'token = "{callers.secrets[who]}"' if who else ""
        config.write_text(f'default = "here"\n[profiles.here]\nurl = "{url}"\n{token}\n', "utf-8")
        config.chmod(0o600)
        return Ctl("", tmp_path)

    url = f"http://127.0.0.1:{callers.daemon.port}"

    def listed(name: str) -> Any:
        return {row["name"]: row for row in at(url, "operator").rows(*arguments)}[name]["last_used"]

    # A later use may still be on its way to Redis, and changes the answer between two questions.
    wait_until(lambda: listed("worker") == used(callers, "worker"), 10)
    assert listed("unused") is None
    assert "last used" in at(url, "operator").ok(*arguments)
    wait_until(lambda: used(callers, "worker") in at(url, "operator").ok(*arguments), 10)
    # Without the right, and without a daemon, it lists the file all the same.
    for where in ((url, "worker"), (url, ""), ("http://127.0.0.1:1", "")):
        one = at(*where)
        assert all("last_used" not in row for row in one.rows(*arguments))
        assert re.search("worker .*zone", one.ok(*arguments))
    # A daemon with another file says nothing about this one.
    other = tmp_path / "other.json"
    one = at(url, "operator")
    one.ok("token", "--file", str(other), "create", "worker", "--right", "view")
    assert [row["last_used"] for row in one.rows("token", "list", "--file", str(other))] == [None]


class Broken:
    """A store that fails as long as ``away``; ``written``: what was written."""

    def __init__(self) -> None:
        self.away = True
        self.written: list[tuple[set[str], set[str]]] = []

    def tokens_used(self, used: set[str], gone: set[str]) -> Deferred[None]:
        if self.away:
            return fail(RedisUnavailable("Redis is away."))
        self.written.append((used, gone))
        return succeed(None)


def test_what_could_not_be_written_is_written_later() -> None:
    gate, store = Gate(), Broken()
    tokens = [Token(name, hash_of(name.encode()), ("view",)) for name in ("a", "b", "c")]
    ids = [one.hash[:32] for one in tokens]
    gate.replace(tokens)
    last_used = LastUsed(store, gate.take_used)  # type: ignore[arg-type]

    def use(name: bytes) -> None:
        access = gate.identify([b"Bearer " + name])
        assert access is not None
        access.is_used = True

    for name in (b"a", b"b"):
        use(name)
        last_used.write().addErrback(lambda failure: failure.trap(RedisUnavailable))
    gate.replace(tokens[1:])
    store.away = False
    last_used.write()
    last_used.write()
    # Each once; and that of a revoked one not at all.
    assert store.written == [({ids[1]}, {ids[0]})]
    use(b"b")
    # A change of its entry does not make it another one.
    gate.replace([Token("b", tokens[1].hash, ("view", "pop x"))])
    last_used.write()
    assert store.written[1] == ({ids[1]}, {ids[2]})

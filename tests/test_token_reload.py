"""Tokens that are added, revoked and expire while the daemon runs; unusable files; many wrong tokens."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet.task import Clock

from registry.http.auth import FAILURE_SECONDS, MAX_ADDRESSES, MAX_FAILURES, Access, Failures, Gate
from registry.model.tokens import Token, create, hash_of, revoke
from registry.token_watch import LOOK_SECONDS, TokenWatch
from tests.callers import Callers, guarded
from tests.conftest import LoggedErrors
from tests.live import Daemon, RedisServer, children_of, short_folder, wait_until
from tests.talk import Asked, ask, fresh


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    one = Callers(short_folder() / "tokens.json")
    one.add("admin", "admin")
    with guarded(module_redis_process, one, ACCESS_LOG="no", MAX_WAIT="30"):
        yield one


def bearer(callers: Callers, who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {callers.secrets[who]}"}


def parked(callers: Callers, who: str, path: str = "/api/popTask/r?wait=30&lease=5") -> Asked:
    one = Asked(callers.daemon, "GET", path, b"", bearer(callers, who))
    assert one.waits(0.2)
    return one


def known(callers: Callers, who: str) -> None:
    wait_until(lambda: callers.ask(who, "GET", "/api/token").status == 200, what=f"the token {who}")


def unknown(callers: Callers, who: str) -> None:
    wait_until(lambda: callers.ask(who, "GET", "/api/token").status in (401, 429), what=f"no token {who}")


def test_a_token_comes_and_goes_and_its_polls_end_with_it(callers: Callers) -> None:
    callers.add("worker", "pop r*")
    callers.add("other", "pop r*")
    callers.write()
    known(callers, "worker")
    path = "/api/popTasks/r,r2?wait=30"
    polls = [parked(callers, "worker"), parked(callers, "worker", path)]
    stays = parked(callers, "other")
    idle = socket.create_connection(("127.0.0.1", callers.daemon.port), timeout=10)
    request = b"GET /api/popTask/r9?wait=0 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n\r\n"
    request %= callers.secrets["worker"].encode()
    for _ in range(2):
        idle.sendall(request)
        assert idle.recv(65536).startswith(b"HTTP/1.1 202")
    del callers.entries["worker"]
    callers.write()
    for poll in polls:
        poll.answer().refused(401, "unauthorized")
    # Also on a connection that was open, with the same bytes.
    idle.sendall(request)
    assert idle.recv(65536).startswith(b"HTTP/1.1 401")
    idle.close()
    # The next task is for the one who may still wait, and none is lost on the way.
    callers.ask("admin", "PUT", "/api/pushTask/r", 7).ok()
    assert stays.answer().ok()["task"] == 7


def test_a_token_whose_rights_change_loses_what_it_no_longer_may(callers: Callers) -> None:
    callers.add("worker", "pop r*", "push r*")
    callers.write()
    known(callers, "worker")
    poll, kept = parked(callers, "worker"), parked(callers, "worker", "/api/popTask/ra?wait=30")
    callers.entries["worker"]["rights"] = ["pop ra"]
    callers.write()
    poll.answer().refused(403, "forbidden", "'pop'", "'r'")
    assert kept.waits(0.1)
    kept.hang_up()
    callers.ask("worker", "PUT", "/api/pushTask/r", 1).refused(403, "forbidden", "'push'")


def test_a_token_expires_on_time_for_polls_too(callers: Callers) -> None:
    callers.add(
        "worker", "pop r*", "push r*", expires=f"{datetime.now(UTC) + timedelta(seconds=2.5):%FT%T.%fZ}"
    )
    callers.write()
    known(callers, "worker")
    wait = {**bearer(callers, "worker"), "Prefer": "wait=30"}
    waiting = Asked(callers.daemon, "PUT", "/api/pushTask/r-wait", "1", wait)
    poll = parked(callers, "worker")
    poll.answer().refused(401, "unauthorized")
    unknown(callers, "worker")
    # The push was accepted, and is not answered 401; its result is not for a token that has expired.
    lease = callers.ask("admin", "GET", "/api/popTask/r-wait?lease=30").ok()["lease"]
    callers.ask("admin", "POST", f"/api/ackTask/r-wait/{lease}", {"result": 1}).ok()
    answer = waiting.answer()
    assert answer.status == 202 and set(answer.json) == {"success", "id"}


def test_a_token_that_expires_in_the_past_was_never_valid(callers: Callers) -> None:
    callers.add("late", "admin", expires="2020-01-01T00:00:00+02:00")
    callers.add("later", "admin")
    callers.write()
    known(callers, "later")
    assert callers.ask("late", "GET", "/api/token").status == 401


def test_a_body_that_is_under_way_when_the_token_goes_is_refused(callers: Callers) -> None:
    callers.add("worker", "push r*")
    callers.write()
    known(callers, "worker")
    q = fresh("r")
    head = f"PUT /api/pushTask/{q} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
    head += f"Authorization: Bearer {callers.secrets['worker']}\r\n\r\n1"
    with socket.create_connection(("127.0.0.1", callers.daemon.port), timeout=10) as one:
        one.sendall(head.encode())
        time.sleep(0.1)
        del callers.entries["worker"]
        callers.write()
        assert one.recv(65536).startswith(b"HTTP/1.1 401")
    assert callers.ask("admin", "GET", f"/api/queues/{q}").ok()["ready"] == 0


@pytest.mark.parametrize(
    "more", ["Content-Length: 1000000000", "Transfer-Encoding: chunked", "Content-Length: 5"]
)
def test_no_body_is_read_before_the_token_is_checked(callers: Callers, more: str) -> None:
    with socket.create_connection(("127.0.0.1", callers.daemon.port), timeout=10) as one:
        head = f"PUT /api/pushTask/r HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n{more}\r\n\r\n"
        one.sendall(head.encode())
        assert one.recv(65536).startswith(b"HTTP/1.1 401")


def warned(callers: Callers, *words: str) -> bool:
    found = callers.ask("admin", "GET", "/readyz").ok()["warnings"]
    return any(all(word in text for word in words) for text in found)


def test_a_broken_file_keeps_the_tokens_and_says_so(callers: Callers) -> None:
    good = callers.path.read_bytes()
    for text in (b"{", b'{"tokens": [{}]}', good + b"x"):
        callers.path.write_bytes(text)
        wait_until(lambda: warned(callers, str(callers.path), "is not valid", "remain valid"))
        assert b"warnings" not in callers.ask("", "GET", "/readyz").body
        callers.write()
        wait_until(lambda: not warned(callers, str(callers.path)))
    callers.path.chmod(0o666)
    wait_until(lambda: warned(callers, "chmod 600"))
    callers.path.unlink()
    wait_until(lambda: warned(callers, "no longer exists"))
    assert callers.ask("", "GET", "/api/queues").status == 401
    callers.write()
    wait_until(lambda: not warned(callers, str(callers.path)))
    assert "no longer exists. The tokens read before remain valid" in callers.daemon.log
    assert "Traceback" not in callers.daemon.log


def test_a_file_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    # An editor empties the file and writes it again: nobody may lose a poll for it.
    path, clock, gate, changes = tmp_path / "tokens.json", Clock(), Gate(), []
    secret = create(str(path), "a", ["view"]).encode()
    watch = TokenWatch(str(path), gate, clock, lambda: changes.append(1))

    def valid() -> bool:
        return gate.identify([b"Bearer " + secret]) is not None

    watch.start()
    good = path.read_bytes()
    for text in (b"", b'{"tokens": []}', good[:40], good):
        path.write_bytes(text)
        clock.advance(LOOK_SECONDS)
        assert valid() and not watch.warnings and not changes
    clock.advance(LOOK_SECONDS)
    assert valid() and len(changes) == 1
    # What stays is what was meant.
    path.write_bytes(b'{"tokens": []}')
    clock.pump([LOOK_SECONDS] * 2)
    assert not valid() and gate.is_closed
    watch.stop()


def test_a_token_that_was_revoked_while_too_many_files_were_open_is_refused_as_soon_as_they_are_not(
    tmp_path: Path, logged_errors: LoggedErrors
) -> None:
    path, clock, gate, changes = tmp_path / "tokens.json", Clock(), Gate(), []
    secret, soon = create(str(path), "a", ["view"]).encode(), datetime.now(UTC) + timedelta(seconds=0.3)
    expires = create(str(path), "b", ["view"], soon).encode()
    watch = TokenWatch(str(path), gate, clock, lambda: changes.append(1))
    watch.start()
    revoke(str(path), "a")
    kept = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, kept[1]))
    try:
        clock.pump([LOOK_SECONDS] * 3)
        assert gate.identify([b"Bearer " + secret]) is not None
        assert "Too many open files. The tokens read before remain valid" in watch.warnings[0]
        # Others expire meanwhile as they should.
        wait_until(lambda: gate.identify([b"Bearer " + expires]) is None)
        clock.advance(LOOK_SECONDS)
        assert changes == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, kept)
    clock.advance(LOOK_SECONDS)
    assert gate.identify([b"Bearer " + secret]) is None and changes == [1, 1] and not watch.warnings
    # It was said once.
    assert len(logged_errors.flush()) == 1
    watch.stop()


def test_a_token_expires_again_after_the_clock_was_set_back() -> None:
    now = [1000.0]
    gate = Gate(lambda: now[0])
    expires = datetime.fromtimestamp(2000, UTC)
    gate.replace([Token("a", hash_of(b"x"), ("view",), expires=expires)])
    for _ in range(2):
        now[0] = 1500.0
        access = gate.identify([b"Bearer x"])
        assert access is not None
        over = [access.is_over, gate.has_expired()]
        now[0] = 2000.0
        # The heads that were accepted meanwhile must be forgotten.
        over += [gate.has_expired(), access.is_over, gate.has_expired()]
        assert over == [False, False, True, True, False]
        assert gate.identify([b"Bearer x"]) is None


def test_an_entry_that_stays_as_it_was_keeps_what_its_requests_have() -> None:
    gate = Gate()

    def access(name: str) -> Access:
        found = gate.identify([b"Bearer " + name.encode()])
        assert found is not None
        return found

    one, two = (Token(name, hash_of(name.encode()), ("pop a[bc]*",)) for name in ("one", "two"))
    gate.replace([one, two])
    first, second = access("one"), access("two")
    gate.replace([replace(two, rights=("pop b*",)), one])
    changed = access("two")
    assert access("one") is first and changed.may("pop", b"b")
    assert [one.is_over for one in (first, second, changed)] == [False, True, False]
    gate.replace([one])
    assert [one.is_over for one in (first, changed)] == [False, True]
    assert gate.identify([b"Bearer two"]) is None


def test_sighup_reads_a_file_that_looks_the_same(callers: Callers) -> None:
    log = len(callers.daemon.log)
    os.kill(callers.daemon.pid, signal.SIGHUP)
    wait_until(lambda: " tokens from " in callers.daemon.log[log:])
    known(callers, "admin")


def test_wrong_tokens_are_limited_and_good_ones_are_not(callers: Callers) -> None:
    def ask(who: dict[str, str], path: str = "/api/token") -> Any:
        return callers.ask("", "GET", path, address="127.2.0.1", **who)

    def statuses(who: dict[str, str], count: int) -> list[int]:
        return [ask(who).status for _ in range(count)]

    wrong = {"Authorization": "Bearer rgy_wrong"}
    assert statuses(wrong, MAX_FAILURES + 2) == [401] * MAX_FAILURES + [429] * 2
    refused = ask(wrong)
    refused.refused(429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= FAILURE_SECONDS
    # From the same address.
    assert statuses(bearer(callers, "admin"), 3) == [200] * 3
    # None, and what is no token, are no attempts.
    assert statuses({}, 3) == [401] * 3 == statuses({"Authorization": "Basic eDp5"}, 3)
    # Another address has attempts of its own.
    assert callers.ask("", "GET", "/api/token", **wrong).status == 401
    assert ask(wrong, "/readyz").status == 200


def test_the_attempts_of_an_address_are_forgotten_after_a_minute() -> None:
    now = [0.0]
    failures = Failures(lambda: now[0])
    assert [failures.count("1.2.3.4") for _ in range(MAX_FAILURES)] == [0] * MAX_FAILURES
    assert failures.count("1.2.3.4") == FAILURE_SECONDS
    now[0] = FAILURE_SECONDS - 0.5
    assert failures.count("1.2.3.4") == 1
    now[0] = FAILURE_SECONDS
    assert failures.count("1.2.3.4") == 0
    # One host may have all addresses of a /64, and none of the next.
    for number in range(MAX_FAILURES):
        assert failures.count(f"2001:db8::{number:x}") == 0
    assert failures.count("2001:db8::ffff:1") > 0
    assert failures.count("2001:db8:0:1::1") == 0
    # The memory for it is bounded.
    for number in range(MAX_ADDRESSES + 10):
        failures.count(f"10.0.{number >> 8}.{number & 255}")
    assert len(failures._counts) <= MAX_ADDRESSES


def test_every_process_demands_tokens_and_lets_none_in_when_the_last_has_gone(
    module_redis_process: RedisServer,
) -> None:
    one = Callers(short_folder() / "tokens.json")
    with guarded(module_redis_process, one, PROCESSES="2"):
        daemon = one.daemon
        # The first token comes when all processes run.
        assert one.ask("", "GET", "/api/token").status == 200
        secret = one.add("admin", "admin")
        one.write()

        def everywhere(who: str, *statuses: int) -> bool:
            return all(one.ask(who, "GET", "/api/token").status in statuses for _ in range(12))

        wait_until(lambda: everywhere("admin", 200) and everywhere("", 401))
        one.add("second", "view")
        one.write()
        wait_until(lambda: everywhere("second", 200))
        one.entries.clear()
        one.write()
        wait_until(lambda: everywhere("second", 401))
        # Children that start now do not let everybody in, either.
        before = children_of(daemon.pid)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not set(before) & set(children_of(daemon.pid)))
        wait_until(daemon._healthy)
        assert everywhere("", 401)
        for pid in (daemon.pid, *children_of(daemon.pid)):
            for name in ("cmdline", "environ"):
                assert secret.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()


def test_until_there_is_a_token_nobody_needs_one(module_redis_process: RedisServer, tmp_path: Path) -> None:
    path, unix = str(tmp_path / "tokens.json"), short_folder() / "s"
    settings = {"REDIS_URL": module_redis_process.url, "DATA_DIR": str(tmp_path)}
    listen = (f"--listen=unix:{unix}",)
    daemon = Daemon((), settings, ("twistd", "-n", "--pidfile="))
    daemon.options = (f"--listen=tcp:{daemon.port}:interface=127.0.0.1", *listen)

    def over_unix(header: str = "") -> bytes:
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(10)
            one.connect(str(unix))
            one.sendall(f"GET /api/token HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
            return one.recv(65536)

    try:
        daemon.start().redis_ready()
        said: Any = ask(daemon, "GET", "/api/token").ok()
        assert said == {"name": None, "rights": ["admin"], "expires": None, "address": "127.0.0.1"}
        assert over_unix().startswith(b"HTTP/1.1 200")
        # A header that nobody asked for changes nothing.
        assert ask(daemon, "GET", "/api/token", b"", Authorization="Bearer x").status == 200
        poll = Asked(daemon, "GET", "/api/popTask/first?wait=30")
        assert poll.waits(0.2)
        secret = create(path, "first", ["admin"])
        poll.answer().refused(401, "unauthorized")
        assert over_unix().startswith(b"HTTP/1.1 401")
        assert over_unix(f"Authorization: Bearer {secret}\r\n").startswith(b"HTTP/1.1 200")
        revoke(path, "first")
        wait_until(
            lambda: ask(daemon, "GET", "/api/token", b"", Authorization=f"Bearer {secret}").status == 401
        )
        assert ask(daemon, "GET", "/api/token").status == 401
        for value in (secret, json.dumps(secret)[5:-1]):
            assert value not in daemon.log
    finally:
        daemon.remove()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_file_that_cannot_be_used_keeps_the_daemon_from_starting(
    module_redis_process: RedisServer, tmp_path: Path, processes: str
) -> None:
    path = tmp_path / "tokens.json"
    path.write_text("{")
    settings = {"REDIS_URL": module_redis_process.url, "TOKENS_FILE": str(path), "PROCESSES": processes}
    daemon = Daemon((), settings, ("twistd", "-n", "--pidfile="))
    try:
        daemon.start(wait=False)
        assert daemon.wait() == 1
        assert f"registry stops: The tokens file {path} is not valid" in daemon.log
        assert "Traceback" not in daemon.log and "process 0" not in daemon.log
    finally:
        daemon.remove()

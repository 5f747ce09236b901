"""A master that Sentinels watch: real Sentinels, a real failover, and what was acknowledged is still there."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from registry.config import mask_url, passwords_of
from registry.redis.sentinel import SentinelAddress
from registry.redis.topology import parse_address
from tests.conftest import StartDaemon
from tests.history.checker import Checker
from tests.history.run import run
from tests.live import Daemon, RedisServer, redis_binaries, wait_until
from tests.sentinels import NAME, Sentinels, sentinel_program
from tests.talk import ask, counts, leased, on, poll, push, pushed

needs_sentinel = pytest.mark.skipif(
    sentinel_program() is None or not redis_binaries(), reason="needs redis-sentinel and a redis-server"
)


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    one = Sentinels(redis_binaries()[0])
    try:
        yield one
    finally:
        one.remove()


def served_by(daemon: StartDaemon, url: str, **env: str) -> Daemon:
    return daemon(env={"REDIS_URL": url, **env}).redis_ready(30)


def push_until(daemon: Daemon, q: str, ended: Any, seconds: float = 40) -> tuple[list[str], set[int]]:
    """Push until ``ended()``; the ids that were acknowledged, and the statuses of the others."""
    acknowledged: list[str] = []
    refused: set[int] = set()

    def step() -> bool:
        answer = push(daemon, q, {"n": len(acknowledged)})
        if answer.status == 200:
            acknowledged.append(answer.json["id"])
        else:
            refused.add(answer.status)
            assert answer.json["code"] in ("redis_unavailable", "overloaded"), answer
        return bool(ended())

    wait_until(step, seconds, "the end of the failover")
    return acknowledged, refused


def ids_of(daemon: Daemon, q: str) -> set[str]:
    found: set[str] = set()
    cursor = ""
    while True:
        page = ask(daemon, "GET", f"/api/queues/{q}/tasks?limit=1000{cursor}").ok()
        found |= {task["id"] for task in page["tasks"]}
        if page["cursor"] is None:
            return found
        cursor = f"&cursor={page['cursor']}"


# The address


@pytest.mark.parametrize(
    ("url", "text", "secrets"),
    [
        ("redis+sentinel://a:1,b/m", "redis+sentinel://a:1,b:26379/m", ()),
        ("rediss+sentinel://[::1]:7,b:2/m?db=3", "rediss+sentinel://[::1]:7,b:2/m", ()),
        (
            "redis+sentinel://u:s%40t@a/m?sentinel_password=x%26y",
            "redis+sentinel://a:26379/m",
            ("s@t", "x&y"),
        ),
        ("redis+sentinel://:pw@a/my%20master", "redis+sentinel://a:26379/my master", ("pw",)),
    ],
)
def test_an_address_is_read(url: str, text: str, secrets: tuple[str, ...]) -> None:
    address = parse_address(url)
    assert isinstance(address, SentinelAddress)
    assert str(address) == text
    assert set(secrets) <= set(passwords_of(url))
    for secret in secrets:
        assert secret not in mask_url(url) and secret not in str(address)
    assert address.sentinels[0].db == 0


def test_users_and_passwords_go_where_they_belong() -> None:
    address = parse_address(
        "rediss+sentinel://u:p@a,b/m?db=2&sentinel_username=su&sentinel_password=sp&sentinel_tls=0"
    )
    assert isinstance(address, SentinelAddress)
    assert (address.username, address.password, address.db, address.server.kind) == ("u", "p", 2, "tls")
    for sentinel in address.sentinels:
        assert (sentinel.username, sentinel.password, sentinel.kind) == ("su", "sp", "tcp")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis+sentinel://a:1,b:2", "does not name the master"),
        ("redis+sentinel://a:1,b:2/", "does not name the master"),
        ("redis+sentinel://a:1,,b/m", "a Sentinel that is not host or host:port"),
        ("redis+sentinel://a:0/m", "a Sentinel that is not host or host:port"),
        ("redis+sentinel://a:99999/m", "a Sentinel that is not host or host:port"),
        ("redis+sentinel://a/m/1", "write ?db=1"),
        ("redis+sentinel://a/m?sentinel=1", "an option that redis:// does not support"),
        ("redis+sentinel://a/m?db=x", "must be a whole number"),
        ("redis+sentinel://a/m?sentinel_username=u", "sentinel_username but no sentinel_password"),
        ("redis+sentinel://a/m?sentinel_tls=1", "needs rediss+sentinel://"),
        ("valkey+sentinel://a/m", "redis+sentinel://host:port,host:port/master"),
    ],
)
def test_an_address_that_is_wrong_is_refused_with_a_sentence(url: str, words: str) -> None:
    with pytest.raises(ValueError, match="the Redis URL") as error:
        parse_address(url)
    assert words in str(error.value)


# Failover


@needs_sentinel
def test_a_failover_on_request_is_followed(sentinels: Sentinels, daemon: StartDaemon, q: str) -> None:
    one = served_by(daemon, sentinels.url(), REPLICAS_ACK="1", REPLICAS_ACK_MS="2000")
    parked = poll(one, q + "x", "wait=60&lease=30")
    sentinels.stop_one()
    assert sentinels.ask(1, "SENTINEL", "FAILOVER", NAME)
    acknowledged, _ = push_until(
        one, q, lambda: sentinels.has_role(1, b"master") and sentinels.has_role(0, b"slave")
    )
    # The daemon is now served by the other server, and what it acknowledged is there.
    wait_until(lambda: push(one, q, "last").status == 200, 20, "a push after the failover")
    assert set(acknowledged) <= ids_of(one, q)
    assert sentinels.servers[1].command("LLEN", q) >= len(acknowledged)
    # A poll that was parked before gets what is pushed afterwards.
    wait_until(lambda: push(one, q + "x", "after").status == 200, 20, "a push that a replica acknowledges")
    assert parked.answer().json["task"] == "after"


@needs_sentinel
@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_master_that_dies_or_hangs_is_replaced(
    sentinels: Sentinels, daemon: StartDaemon, q: str, how: str
) -> None:
    one = served_by(daemon, sentinels.url(), REPLICAS_ACK="1", REPLICAS_ACK_MS="2000")
    lease = (pushed(one, q + "l", 1), leased(one, q + "l", "lease=300&wait=0"))[1]["lease"]
    before = [pushed(one, q, n) for n in range(20)]
    getattr(sentinels.servers[0], how)()
    acknowledged, refused = push_until(one, q, lambda: sentinels.has_role(1, b"master"))
    assert refused == {503}
    # Without a replica nothing is acknowledged, but a worker that has a task may go on, and so may all when the old master is back.
    assert leased(one, q, "lease=300&wait=20")["id"] in before
    sentinels.servers[0].start() if how == "kill" else sentinels.servers[0].resume()
    wait_until(lambda: push(one, q, "last").status == 200, 30, "a push that a replica acknowledges")
    more, _ = push_until(one, q, lambda: sentinels.has_role(0, b"slave"))
    leased_ids = {task["id"] for task in ask(one, "GET", f"/api/queues/{q}/tasks?state=leased").ok()["tasks"]}
    assert set(before + acknowledged + more) <= ids_of(one, q) | leased_ids
    assert on(one, "ack", q + "l", lease).status == 200
    assert sentinels.servers[1].command("LLEN", q) == counts(one, q)["ready"]


@needs_sentinel
@pytest.mark.timeout(0)  # the run has a bound of its own
def test_failovers_lose_nothing_that_was_acknowledged(
    request: pytest.FixtureRequest, sentinels: Sentinels, daemon: StartDaemon
) -> None:
    """Two daemons, many clients, and every fault of the test of the history; a master that dies or hangs is replaced."""
    seconds = request.config.getoption("--history-seconds") / 4
    seed = request.config.getoption("--history-seed") or random.randrange(1_000_000)
    print(f"history seed {seed}, {seconds:g} s")
    env = {"REPLICAS_ACK": "1", "ACCESS_LOG": "no"}
    daemons = [served_by(daemon, sentinels.url(), **env) for _ in range(2)]
    made = asyncio.run(
        asyncio.wait_for(run(daemons, sentinels, seconds, seed, fails_over=True), seconds + 240)
    )
    checker = Checker(made)
    # A pop does not wait for replicas: the new master may deliver once more, and a push whose outcome is unknown may have been
    # delivered, forgotten and repeated.
    repeated = ("was delivered again without a reason", "was stored 2 times")
    violations = [one for one in checker.check() if not any(text in one for text in repeated)]
    print(made.counts(), dict(checker.explained))
    assert not violations, f"{len(violations)} of seed {seed}:\n" + "\n".join(violations[:20])
    assert made.faults and len(made.pushes) > 2 * seconds


@needs_sentinel
def test_sentinels_with_a_password(daemon: StartDaemon, q: str) -> None:
    one = Sentinels(redis_binaries()[0], password="s3cret")
    try:
        served = served_by(daemon, one.url())
        pushed(served, q, 1)
        assert one.servers[0].command("LLEN", q) == 1
        refused = daemon(env={"REDIS_URL": one.url().replace("s3cret", "wr0ng")}, wait=False)
        wait_until(lambda: "WRONGPASS" in refused.log, 20, "the reason in the log")
        assert "s3cret" not in served.log and "wr0ng" not in refused.log
    finally:
        one.remove()


class FakeSentinel:
    """Names the server at ``port`` as the master, whatever is true."""

    def __init__(self, port: int) -> None:
        self.named = port
        self.asked = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                if connection.recv(4096):
                    self.asked += 1
                    text = str(self.named)
                    connection.sendall(f"*2\r\n$9\r\n127.0.0.1\r\n${len(text)}\r\n{text}\r\n".encode())

    def close(self) -> None:
        self._socket.close()


def test_a_sentinel_that_names_a_replica_is_not_believed(
    redis_server: RedisServer, redis_binary: str, daemon: StartDaemon, q: str
) -> None:
    """Tasks are never written to a server that is not the master, and the daemon says why it waits."""
    replica = RedisServer(redis_binary).start("--replicaof", "127.0.0.1", str(redis_server.port))
    fake = FakeSentinel(replica.port)
    try:
        one = daemon(env={"REDIS_URL": f"redis+sentinel://127.0.0.1:{fake.port}/{NAME}"})
        wait_until(lambda: "The server is not the master: its role is slave." in one.log, 20, "the reason")
        assert ask(one, "GET", "/readyz").status == 503
        # It asks again, not as fast as it can.
        asked = fake.asked
        wait_until(lambda: fake.asked > asked, 20, "another question")
        fake.named = redis_server.port
        one.redis_ready()
        pushed(one, q, 1)
        assert redis_server.command("LLEN", q) == 1
        # A majority that names another server is followed, if that server is a master.
        redis_server.command("REPLICAOF", "127.0.0.1", str(replica.port))
        replica.command("REPLICAOF", "NO", "ONE")
        fake.named = replica.port
        wait_until(
            lambda: push(one, q, 2).status == 200 and replica.command("LLEN", q) > 0, 20, "the new one"
        )
    finally:
        fake.close()
        replica.remove()


# Replicas that acknowledge


def test_too_few_replicas_make_a_change_unknown_and_lose_nothing(
    redis_server: RedisServer, redis_binary: str, daemon: StartDaemon, q: str
) -> None:
    one = daemon(env={"REPLICAS_ACK": "1", "REPLICAS_ACK_MS": "1000"}, redis=redis_server).redis_ready()
    key = {"Idempotency_Key": "k1"}
    refused = push(one, q, {"n": 1}, **key)
    assert refused.status == 503
    assert refused.json["outcome"] == "unknown"
    assert "only 0 of 1 replicas" in refused.json["error"]
    replica = RedisServer(redis_binary).start("--replicaof", "127.0.0.1", str(redis_server.port))
    try:
        wait_until(lambda: push(one, q, {"n": 1}, **key).status == 200, 20, "a replica that acknowledges")
        # The repetition found the task of the first try.
        assert counts(one, q)["ready"] == 1
        lease = leased(one, q)["lease"]
        assert on(one, "ack", q, lease, json.dumps({"done": True})).status == 200
        replica.pause()
        assert push(one, q, {"n": 2}).status == 503
        # A task is delivered all the same: at worst it is delivered once more.
        assert leased(one, q)["task"] == {"n": 2}
        replica.resume()
    finally:
        replica.remove()


def test_the_embedded_redis_has_no_replicas(daemon: StartDaemon) -> None:
    one = daemon(env={"REPLICAS_ACK": "1", "REDIS_URL": ""}, wait=False)
    assert one.wait() != 0
    assert "REPLICAS_ACK needs REDIS_URL" in one.log

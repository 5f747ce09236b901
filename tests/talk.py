"""An HTTP client for the tests: one request at a time, or several that wait in parallel."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.live import Daemon, RedisServer, wait_until

_names = itertools.count(1)
MANAGED = b"\1"


def fresh(stem: str = "q") -> str:
    """A queue's name that no other test of this session uses."""
    return f"{stem}{next(_names)}"


class Answer:
    """An answer that was read whole; of a stream of events, which does not end, the first one."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        if self.headers["content-type"] == "text/event-stream":
            self.body = b"".join(
                itertools.takewhile(lambda line: line != b"\n", iter(response.readline, b""))
            )
        else:
            self.body = response.read()

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:300]!r}>"

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def task(self) -> Any:
        """The payload in the answer of a pop."""
        return self.ok()["task"]

    def ok(self) -> Any:
        """The body of a 200."""
        assert self.status == 200, self
        return self.json

    def refused(self, status: int, code: str, *words: str) -> Any:
        """The body of this refusal, whose sentence holds all of these words."""
        assert (self.status, self.json.get("code")) == (status, code), self
        for word in words:
            assert word in self.json["error"], self
        return self.json


class Asked:
    """One request on a connection of its own, whose answer is read when it is wanted."""

    def __init__(
        self,
        daemon: Daemon,
        method: str,
        path: str,
        body: bytes | str = b"",
        headers: Mapping[str, str] | None = None,
        receive_buffer: int = 0,
    ) -> None:
        self.socket = socket.socket(socket.AF_INET)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", daemon.port))
        data = body.encode() if isinstance(body, str) else body
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost:{daemon.port}\r\nContent-Length: {len(data)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self.socket.sendall(head.encode() + b"\r\n" + data)

    def answer(self, seconds: float = 10) -> Answer:
        self.socket.settimeout(seconds)
        response = http.client.HTTPResponse(self.socket)
        try:
            response.begin()
            return Answer(response)
        finally:
            response.close()
            self.socket.close()

    def waits(self, seconds: float = 0.3) -> bool:
        """Nothing has come so far, and nothing comes in this time."""
        self.socket.settimeout(seconds)
        try:
            self.socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        return False

    def hang_up(self, reset: bool = True) -> None:
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def ask(daemon: Daemon, method: str, path: str, body: Any = b"", **headers: str) -> Answer:
    """One request and its answer. A body that is no bytes is sent as JSON; ``Idempotency_Key=`` becomes a header."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Asked(daemon, method, path, data, named).answer(20)


def push(daemon: Daemon, name: str, task: Any = None, query: str = "", **headers: str) -> Answer:
    return ask(daemon, "PUT", f"/api/pushTask/{name}{'?' if query else ''}{query}", task, **headers)


def pushed(daemon: Daemon, name: str, task: Any = None, query: str = "", **headers: str) -> str:
    """Push; the id."""
    return str(push(daemon, name, task, query, **headers).ok()["id"])


def pop(daemon: Daemon, name: str, query: str = "lease=30&wait=0", **headers: str) -> Answer:
    return ask(daemon, "GET", f"/api/popTask/{name}?{query}", **headers)


def leased(daemon: Daemon, name: str, query: str = "lease=30&wait=0", **headers: str) -> dict[str, Any]:
    """Pop with a lease; the answer's body."""
    found: dict[str, Any] = pop(daemon, name, query, **headers).ok()
    return found


def poll(daemon: Daemon, name: str, query: str = "wait=20&lease=30", **headers: str) -> Asked:
    """A pop that is left waiting, parked when this returns."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    asked = Asked(daemon, "GET", f"/api/popTask/{name}?{query}", b"", named)
    assert asked.waits(0.25)
    return asked


def on(daemon: Daemon, verb: str, name: str, lease: str, body: Any = b"", query: str = "") -> Answer:
    """What a holder says: ``verb`` is ack, fail, release or extend."""
    return ask(daemon, "POST", f"/api/{verb}Task/{name}/{lease}{'?' if query else ''}{query}", body)


def queue(daemon: Daemon, name: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(daemon, "GET", f"/api/queues/{name}").ok()
    return found


def counts(daemon: Daemon, name: str) -> dict[str, int]:
    """The counts of a queue that are not zero."""
    row = queue(daemon, name)
    return {state: row[state] for state in ("ready", "delayed", "leased", "dead", "done") if row[state]}


def becomes(daemon: Daemon, name: str, seconds: float = 3.0, **states: int) -> None:
    """Wait until the queue holds exactly these tasks."""
    wait_until(lambda: counts(daemon, name) == states, seconds, f"{states} in {name}")


def policy(daemon: Daemon, name: str, **rules: Any) -> dict[str, Any]:
    row: dict[str, Any] = ask(daemon, "PATCH", f"/api/queues/{name}", rules).ok()
    return row


def task(daemon: Daemon, name: str, task_id: str, query: str = "") -> dict[str, Any]:
    row: dict[str, Any] = ask(daemon, "GET", f"/api/queues/{name}/tasks/{task_id}{query}").ok()
    return row


def tasks(daemon: Daemon, name: str, query: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ask(daemon, "GET", f"/api/queues/{name}/tasks?{query}").ok()["tasks"]
    return rows


def cancel(daemon: Daemon, name: str, task_id: str) -> str:
    return str(ask(daemon, "DELETE", f"/api/queues/{name}/tasks/{task_id}").ok()["how"])


def retry(daemon: Daemon, name: str, query: str = "") -> dict[str, Any]:
    said: dict[str, Any] = ask(daemon, "POST", f"/api/queues/{name}/retry?{query}").ok()
    return said


def move(daemon: Daemon, name: str, to: str, query: str = "") -> dict[str, Any]:
    said: dict[str, Any] = ask(daemon, "POST", f"/api/queues/{name}/move?to={to}&{query}").ok()
    return said


def history(daemon: Daemon, name: str, task_id: str) -> list[tuple[int, str]]:
    return [(h["attempt"], h["reason"]) for h in task(daemon, name, task_id)["history"]]


def drain(daemon: Daemon, name: str) -> list[Any]:
    """All that is ready, in order, each done at once."""
    found: list[Any] = []
    while True:
        answer = pop(daemon, name, "wait=0&lease=30")
        if answer.status == 202:
            return found
        one = answer.ok()
        found.append(one["task"])
        on(daemon, "ack", name, one["lease"]).ok()


def keys_of(redis: RedisServer, name: str) -> set[bytes]:
    """Every key of this queue, and its name when it is in the index."""
    key = name.encode()
    found = {k for k in redis.command("KEYS", "*") if k == key or k.startswith(b"{%b}" % key)}
    if redis.command("ZSCORE", "{registry}index", key) is not None:
        found.add(b"index")
    return found


def leaves_nothing(redis: RedisServer, name: str) -> None:
    wait_until(lambda: not keys_of(redis, name), 5, f"no key of {name}")


def eventually(true: Any, seconds: float = 5.0) -> Any:
    return wait_until(true, seconds)


@contextmanager
def running(redis: RedisServer, *options: str, **env: str) -> Iterator[Daemon]:
    """A daemon on this Redis, ready, ended at the end."""
    one = Daemon(options, {"REDIS_URL": redis.url, **env}, ("twistd", "-n", "--pidfile="))
    try:
        yield one.start().redis_ready()
    finally:
        one.remove()


def sleep_past(seconds: float) -> None:
    """A deadline of the daemon's that lies so far ahead is over, and the sweeper (every 0.4 s) has been there."""
    time.sleep(seconds + 0.6)

"""A daemon in this process on a real Redis, and a client of it over real HTTP."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import pytest_twisted
import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import deferLater
from twisted.logger import formatEvent
from twisted.web.client import Agent, FileBodyProducer
from twisted.web.http_headers import Headers
from twisted.web.server import Site

from registry.config import Config
from registry.daemon import Daemon
from tests.conftest import LoggedErrors
from tests.live import RedisServer

QUEUE_TIMEOUT, MAX_WAIT, MAX_TASK = 0.3, 0.6, 20_000


class Answer:
    """An answer that was read whole."""

    def __init__(self, response: Any, body: bytes) -> None:
        self.status: int = response.code
        self.body = body
        self.length: Any = response.length  # a number when there is a Content-Length
        self._headers = response.headers

    def header(self, name: bytes) -> bytes | None:
        values = self._headers.getRawHeaders(name, [None])
        assert len(values) == 1, (name, values)
        found: bytes | None = values[0]
        return found

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class World:
    """A daemon in this process, and a client of it; with ``klein`` through a stock server of twisted.web and the Klein resource."""

    def __init__(self, redis: RedisServer, klein: bool, tmp: str) -> None:
        self.redis = redis.command
        self.klein = klein
        self.daemon = Daemon(
            Config(
                listen=("tcp:0:interface=127.0.0.1",),
                redis_url=redis.unix_url,
                data_dir=tmp,
                queue_timeout=QUEUE_TIMEOUT,
                max_wait=MAX_WAIT,
                max_task_bytes=MAX_TASK,
            ),
            reactor,
            environ={},
        )
        self.agent = Agent(reactor)  # no connection outlives its request

    async def start(self) -> None:
        self.daemon.startService()
        await until(lambda: self.daemon._ports and self.daemon._store.ready)
        self.port = self.daemon._ports[0].getHost().port  # type: ignore[attr-defined]
        if self.klein:
            site: Any = Site(self.daemon.api.resource(), parsePOSTFormSubmission=False)
            listen: Any = reactor.listenTCP  # type: ignore[attr-defined]
            self.site_port = listen(0, site, interface="127.0.0.1")
            self.port = self.site_port.getHost().port

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Deferred[Any]:
        """The path goes out as it is. Cancel the Deferred to hang up."""
        sent = Headers({"Host": [f"localhost:{self.port}"]})
        for name, value in headers.items():
            sent.setRawHeaders(name.replace("_", "-"), [value])
        url = f"http://127.0.0.1:{self.port}{path}".encode()
        producer = None if body is None else FileBodyProducer(BytesIO(body))
        asked: Deferred[Any] = self.agent.request(method.encode(), url, sent, producer)
        return asked

    async def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """An answer of the API; what holds for all of them is checked here."""
        response = await self.request(method, path, body, **headers)
        answer = Answer(response, await treq.content(response))
        assert answer.header(b"Cache-Control") == b"no-store"
        assert (answer.header(b"Content-Type") or b"").startswith(b"application/json")
        assert re.fullmatch(rb"[\x21-\x7e]{1,128}", answer.header(b"X-Request-Id") or b"")
        if method != "HEAD":
            assert answer.length == len(answer.body)
        return answer

    async def push(self, payload: bytes, name: str = "q", method: str = "PUT") -> Answer:
        return await self.ask(method, f"/api/pushTask/{name}", payload)

    async def pop(self, name: str = "q", query: str = "?wait=0", method: str = "GET") -> Answer:
        return await self.ask(method, f"/api/popTask/{name}{query}")

    def stored(self) -> set[bytes]:
        """Every key of tasks and queues; not what the daemon keeps about itself."""
        return {k for k in self.redis("KEYS", "*") if not k.startswith(b"{registry}")} | {
            b"index of " + name for name in self.redis("ZRANGE", "{registry}index", 0, -1)
        }

    async def nothing_is_left(self) -> None:
        await until(lambda: not self.stored())


def pause(seconds: float) -> Deferred[None]:
    waited: Deferred[None] = deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]
    return waited


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        await pause(0.01)


def running(redis: RedisServer, klein: bool, tmp: str, logged_errors: LoggedErrors) -> Iterator[World]:
    """What the fixture ``world`` of a module yields."""
    one = World(redis, klein, tmp)
    pytest_twisted.blockon(ensureDeferred(one.start()))
    [event] = logged_errors.flush()
    assert "keeps nothing on disk" in formatEvent(event)
    try:
        yield one
    finally:
        if one.klein:
            pytest_twisted.blockon(one.site_port.stopListening())
        pytest_twisted.blockon(one.daemon.stopService())

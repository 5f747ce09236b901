"""Callers with tokens: a daemon with a tokens file, and requests with one of its tokens or with none."""

from __future__ import annotations

import http.client
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry.model.tokens import hash_of, new_secret
from tests.live import Daemon, RedisServer
from tests.talk import Answer

PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


class Callers:
    """Tokens by the names of their holders. Each request comes from another address, so that no wrong token is counted twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secrets: dict[str, str] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.daemon: Any = None
        self.cookie = ""  # of a session, where a test has signed in
        self._addresses = map("127.1.{0[0]}.{0[1]}".format, itertools.product(range(256), range(1, 255)))

    def add(self, name: str, *rights: str, expires: str | None = None) -> str:
        """Put a token into the next `write`."""
        secret = self.secrets[name] = new_secret()
        self.entries[name] = {"name": name, "hash": hash_of(secret.encode()), "rights": rights}
        if expires:
            self.entries[name]["expires"] = expires
        return secret

    def write(self) -> None:
        """Write the file as the command line does, by rename."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"tokens": list(self.entries.values())}), "utf-8")
        new.chmod(0o600)
        os.replace(new, self.path)

    def ask(
        self, who: str, method: str, path: str, body: Any = b"", address: str = "", **headers: str
    ) -> Answer:
        """A request of ``who``: the holder of a token, or "" for somebody without one."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if who in self.secrets:
            named["Authorization"] = f"Bearer {self.secrets[who]}"
        connection = http.client.HTTPConnection(
            "localhost", self.daemon.port, timeout=20, source_address=(address or next(self._addresses), 0)
        )
        try:
            connection.request(method, path, data, named)
            return Answer(connection.getresponse())
        finally:
            connection.close()


@contextmanager
def guarded(redis: RedisServer, callers: Callers, *options: str, **env: str) -> Iterator[Callers]:
    """A daemon that reads the tokens of these callers."""
    callers.write()
    settings = {"REDIS_URL": redis.url, "TOKENS_FILE": str(callers.path), **env}
    callers.daemon = Daemon(options, settings, ("twistd", "-n", "--pidfile="))
    try:
        callers.daemon.start().redis_ready()
        yield callers
    finally:
        callers.daemon.remove()

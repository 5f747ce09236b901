"""The programs under test: each private, on 127.0.0.1 at a free port, with a Redis and a folder of its own.

A peer that is not installed raises ``Missing`` with the sentence to print; the benchmark goes on without it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hiredis

from registry.errors import EmbeddedUnavailable
from registry.redis.embedded import find_binary

ROOT = Path(__file__).resolve().parents[2]
SEED = ROOT / "benchmarks" / "seed2018"


class Missing(Exception):
    """A peer cannot be run here; the text says which and why."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 below the ephemeral range, so that no outgoing connection takes it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} was not met within {seconds} s")
        time.sleep(0.02)


class Program:
    """One process with a private folder; ``log`` is the file its output goes to."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp" if os.path.isdir("/tmp") else None))
        self.log = self.folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def run(self, command: list[str], env: dict[str, str] | None = None) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=env,
                start_new_session=True,
            )

    def await_port(self, port: int, seconds: float = 20) -> None:
        def open_() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"{self.process.args!r} ended:\n{self.log.read_text('utf-8', 'replace')}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(open_, seconds, f"a server on port {port}")

    def trim_log(self) -> None:
        """Empty the log: writing millions of lines is part of the measured work, but nobody needs them later."""
        with contextlib.suppress(OSError):
            os.truncate(self.log, 0)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Redis(Program):
    """A redis-server set up as the daemon's embedded one is, on a unix socket."""

    def __init__(self, fsync: str = "everysec") -> None:
        super().__init__()
        try:  # as the daemon chooses one for an empty folder
            binary = find_binary(os.environ.get("REDIS_SERVER"))
        except EmbeddedUnavailable as why:
            raise SystemExit(str(why)) from None
        self.path = str(self.folder / "s")
        options = {
            "port": "0",
            "unixsocket": self.path,
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": fsync,
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        self.run([binary, *(part for key, value in options.items() for part in (f"--{key}", value))])
        wait_until(self._answers, 20, "an answer of the redis-server")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, hiredis.ReplyError):
            return bool(self.command("PING") == b"PONG")
        return False

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def command(self, *words: str | bytes | int) -> Any:
        return self.pipeline([words])[0]

    def pipeline(self, commands: list[tuple[str | bytes | int, ...]]) -> list[Any]:
        """All in one go, on a connection of its own; replies as bytes."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self.path)
            reader = hiredis.Reader()
            connection.sendall(b"".join(hiredis.pack_command(words) for words in commands))  # type: ignore[arg-type]
            replies: list[Any] = []
            while len(replies) < len(commands):
                reply = reader.gets()
                if reply is False:
                    reader.feed(connection.recv(1 << 20))
                elif isinstance(reply, hiredis.ReplyError):
                    raise reply
                else:
                    replies.append(reply)
            return replies

    def info(self, section: str = "everything") -> dict[str, str]:
        text: bytes = self.command("INFO", section)
        return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


class Server(Program):
    """Something with an HTTP or TCP port, and the Redis behind it (None for beanstalkd)."""

    name = ""
    port: int
    redis: Redis | None = None
    owns_redis = True

    @property
    def roots(self) -> dict[str, int]:
        """Whose CPU counts: the name of a share -> pid; their children count too."""
        return {"server": self.pid} | ({"redis": self.redis.pid} if self.redis else {})

    def close(self) -> None:
        super().close()
        if self.redis is not None and self.owns_redis:
            self.redis.close()


class Registry(Server):
    """The daemon as shipped, access log on, in front of ``redis`` or of one of its own."""

    name = "registry"

    def __init__(
        self,
        *options: str,
        fsync: str = "everysec",
        redis: Redis | None = None,
        twistd: tuple[str, ...] = (),
        checkout: Path = ROOT,
        name: str = "registry",
    ) -> None:
        """``options`` go behind ``registry``, ``twistd`` are those of twistd itself, in front of it.

        ``checkout`` is the folder of the source that runs, ``name`` what the results call it.
        """
        super().__init__()
        self.name = name
        self.owns_redis = redis is None
        self.redis = redis or Redis(fsync)
        self.port = free_port()
        beside = Path(sys.executable).parent / "twistd"
        program = str(beside) if beside.exists() else shutil.which("twistd")
        if program is None:
            raise SystemExit(
                "twistd was not found: run the benchmarks with the Python that the package is installed in."
            )
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        env = {**kept, "HOME": str(self.folder), "PYTHONPATH": str(checkout), "REDIS_URL": self.redis.url}
        env |= {"HOST": "127.0.0.1", "PORT": str(self.port), "DATA_DIR": str(self.folder / "data")}
        self.run([program, "-n", "--pidfile=", *twistd, "registry", *options], env)
        wait_until(self._ready, 30, "GET /readyz of the daemon")

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"the daemon ended:\n{self.log.read_text('utf-8', 'replace')}")
        with contextlib.suppress(OSError), self.get("/readyz") as answer:
            return bool(answer.status == 200)
        return False

    def get(self, path: str) -> Any:
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60)

    def json(self, path: str) -> Any:
        with self.get(path) as answer:
            return json.load(answer)


class Webdis(Server):
    """webdis with the settings of its Debian package, on the same kind of Redis socket as the daemon."""

    name = "webdis"

    def __init__(self) -> None:
        binary = shutil.which("webdis")
        if binary is None:
            raise Missing("webdis is not installed (Debian: apt-get install webdis); skipped.")
        super().__init__()
        self.redis = Redis()
        self.port = free_port()
        settings = {
            "redis_host": self.redis.path,
            "redis_port": 0,
            "redis_auth": None,
            "http_host": "127.0.0.1",
            "http_port": self.port,
            "threads": 2,
            "daemonize": False,
            "database": 0,
            "acl": [{"disabled": ["DEBUG"]}],
            "verbosity": 3,
            "logfile": str(self.log),
        }
        (self.folder / "webdis.json").write_text(json.dumps(settings))
        self.run([binary, "webdis.json"])
        self.await_port(self.port)


class Express(Server):
    """The program of 2018 as it is described: Express, the redis package, a pool of 50 connections, BRPOP."""

    name = "2018"

    def __init__(self) -> None:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None:
            raise Missing("node is not installed; the 2018 program is skipped.")
        if not (SEED / "node_modules" / "express").is_dir():
            if npm is None:
                raise Missing("npm is not installed, and benchmarks/seed2018 needs it once; skipped.")
            result = subprocess.run(
                [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"],
                cwd=SEED,
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode:
                raise Missing(f"npm install failed in benchmarks/seed2018; skipped.\n{result.stderr}")
        super().__init__()
        self.redis = Redis()
        self.port = free_port()
        env = {"PATH": os.environ["PATH"], "PORT": str(self.port), "REDIS_PATH": self.redis.path}
        # Express itself says that it needs this to be fast.
        self.run([node, str(SEED / "server.js")], {**env, "NODE_ENV": "production"})
        self.await_port(self.port)


class Beanstalkd(Server):
    """beanstalkd with the settings of its Debian package: in memory, no binlog."""

    name = "beanstalkd"

    def __init__(self) -> None:
        binary = shutil.which("beanstalkd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            raise Missing("beanstalkd is not installed (Debian: apt-get install beanstalkd); skipped.")
        super().__init__()
        self.port = free_port()
        self.run([binary, "-l", "127.0.0.1", "-p", str(self.port)])
        self.await_port(self.port)


def start(*kinds: Callable[[], Server]) -> list[Server]:
    """Start the servers that can run here; print the reason for each of the others."""
    running = []
    for kind in kinds:
        try:
            running.append(kind())
        except Missing as why:
            print(why, flush=True)
    return running

"""Running ``registryctl``: in this process with click's runner, or as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner, Result

from registry.cli.main import cli
from tests.live import ROOT, Daemon, bare_environment

COMMAND = (sys.executable, "-m", "registry.cli")


@contextmanager
def kept_wakeup_fd() -> Iterator[None]:
    """Give the reactor back the descriptor by which it learns of signals: an asyncio loop that handles one takes it.

    Without it the reactor would never learn again that a child has ended, and every later test that waits for one would hang.
    """
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)


class Ctl:
    """`registryctl` against one daemon, with a home folder of its own; nothing of this process's settings reaches it."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.home = home

    @property
    def environ(self) -> dict[str, str]:
        url = {"REGISTRY_URL": self.url} if self.url else {}
        return {**bare_environment(self.home), **url}

    def run(self, *arguments: str, stdin: str | bytes = "", env: Mapping[str, str] | None = None) -> Result:
        """Run a command here, and return its result, whatever that is."""
        with patch.dict(os.environ, {**self.environ, **(env or {})}, clear=True), kept_wakeup_fd():
            return CliRunner().invoke(cli, list(arguments), input=stdin)

    def ok(self, *arguments: str, stdin: str | bytes = "") -> str:
        """What a command that must succeed prints on stdout."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.stdout

    def json(self, *arguments: str, stdin: str | bytes = "") -> Any:
        """The one object that a command with ``--json`` prints."""
        return json.loads(self.ok("--json", *arguments, stdin=stdin))

    def rows(self, *arguments: str) -> list[Any]:
        """The objects that a command with ``--json`` prints, one a line."""
        return [json.loads(line) for line in self.ok("--json", *arguments).splitlines()]

    def fails(self, code: int, *arguments: str, stdin: str | bytes = "") -> str:
        """The one line on stderr of a command that must end with this exit code."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == code, (arguments, result.exit_code, result.output, result.exception)
        assert result.stderr.startswith("registryctl: ") and result.stderr.count("\n") == 1, result.stderr
        return result.stderr

    @contextmanager
    def process(self, *arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
        """The command as a process of its own, ended when this is left."""
        env = {**self.environ, **more.pop("env", {})}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        with subprocess.Popen([*COMMAND, *arguments], text=True, env=env, cwd=ROOT, **pipes) as one:
            try:
                yield one
            finally:
                one.kill()


def ctl_of(daemon: Daemon, home: Path) -> Ctl:
    return Ctl(daemon.url, home)


class Canned:
    """A server that gives these answers one after the other, the last one for ever, and to a path always its own.

    ``seen`` has the heads of the requests.
    """

    def __init__(
        self, *answers: bytes, by_path: Mapping[str, bytes] | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._answers = list(answers)
        self._by_path = by_path or {}
        self.seen: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._tls = tls
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Canned:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                head = b""
                while b"\r\n\r\n" not in head and (data := connection.recv(65536)):
                    head += data
                if not head:
                    continue
                self.seen.append(head.decode("latin-1"))
                path = self.seen[-1].split()[1].partition("?")[0]
                own = self._by_path.get(path)
                answers = self._answers if own is None else [own]
                connection.sendall(answers.pop(0) if len(answers) > 1 else answers[0])


def answer(status: int, body: Any = None, **headers: str) -> bytes:
    """An answer of `Canned`: a body that is no bytes is sent as JSON; ``Retry_After=`` becomes a header."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data

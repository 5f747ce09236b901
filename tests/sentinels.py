"""A master, a replica and three Sentinels, as real processes."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import hiredis

from tests.live import RedisServer, free_port, short_folder, wait_until

NAME = "mymaster"


def sentinel_program() -> str | None:
    """The path of redis-sentinel, None where there is none."""
    return shutil.which("redis-sentinel")


class Sentinels:
    """``servers``: a master and its replica. ``ports``: those of the Sentinels, of which two must agree on a failover."""

    def __init__(self, binary: str, password: str | None = None) -> None:
        program = sentinel_program()
        assert program is not None
        self.password = password
        self.folder = short_folder()
        self.servers = [RedisServer(binary).start("--appendonly", "yes")]
        self.servers.append(RedisServer(binary).start("--replicaof", "127.0.0.1", str(self.servers[0].port)))
        self.ports = [free_port() for _ in range(3)]
        self._processes = [self._start(program, at) for at in range(3)]
        wait_until(lambda: self.servers[1].command("ROLE")[3] == b"connected", 30, "a replica that follows")
        wait_until(lambda: all(self._knows_all(at) for at in range(3)), 30, "Sentinels that know each other")

    def _start(self, program: str, at: int) -> subprocess.Popen[bytes]:
        lines = [
            f"port {self.ports[at]}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            f"sentinel monitor {NAME} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds {NAME} 700",
            f"sentinel failover-timeout {NAME} 3000",
        ]
        if self.password:
            lines += [f"requirepass {self.password}", f"sentinel sentinel-pass {self.password}"]
        conf = Path(self.folder) / f"sentinel-{at}.conf"
        conf.write_text("\n".join([*lines, ""]))
        with open(conf.with_suffix(".log"), "wb") as log:
            return subprocess.Popen(
                [program, str(conf)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def url(self, *ports: int) -> str:
        """The address for the daemon, of these Sentinels or of all."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports or self.ports)
        secret = f"&sentinel_password={self.password}" if self.password else ""
        return f"redis+sentinel://{hosts}/{NAME}?db=0{secret}"

    def ask(self, at: int, *words: str) -> list[bytes]:
        """The answer of a Sentinel."""
        with socket.create_connection(("127.0.0.1", self.ports[at]), timeout=5) as connection:
            reader = hiredis.Reader()
            replies = []
            for command in ([("AUTH", self.password)] if self.password else []) + [words]:
                connection.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]
                replies.append(RedisServer.read_reply(connection, reader))
        found: list[bytes] = replies[-1]
        return found

    def _knows_all(self, at: int) -> bool:
        try:
            found = self.ask(at, "SENTINEL", "MASTER", NAME)
        except (OSError, hiredis.ReplyError):
            return False
        state = dict(zip(found[::2], found[1::2], strict=True))
        return state[b"num-slaves"] == b"1" and state[b"num-other-sentinels"] == b"2"

    def fail_over(self) -> None:
        """Ask for a failover, as an operator does before a maintenance."""
        assert self.ask(0, "SENTINEL", "FAILOVER", NAME)

    def stop_one(self) -> None:
        """End the first Sentinel at once."""
        self._processes[0].kill()
        self._processes[0].wait()

    def has_role(self, at: int, role: bytes) -> bool:
        """Whether one of the servers has this role now."""
        try:
            return bool(self.servers[at].command("ROLE")[0] == role)
        except (OSError, hiredis.ReplyError):
            return False

    # For the test of the history: the master, whichever server that is. Taking it away ends when its replica has followed.

    @property
    def _master(self) -> RedisServer:
        for at, server in enumerate(self.servers):
            if server.running and self.has_role(at, b"master"):
                return server
        raise ConnectionError("there is no master")

    def _is_followed(self) -> bool:
        roles = [server.command("ROLE") for server in self.servers]
        return any(role[0] == b"slave" and role[3] == b"connected" for role in roles)

    def command(self, *words: str) -> Any:
        """A command to the master."""
        return self._master.command(*words)

    def pause(self) -> None:
        """Stop the master, without ending it."""
        wait_until(self._is_followed, 30, "a replica that follows")
        self._gone = self._master
        self._gone.pause()

    def resume(self) -> None:
        """Let it go on."""
        self._gone.resume()

    def kill(self) -> None:
        """Kill the master."""
        wait_until(self._is_followed, 30, "a replica that follows")
        self._gone = self._master
        self._gone.kill()

    def start(self) -> None:
        """Start it again when the other one has taken its place: by itself it would believe that it is the master."""
        other = 1 - self.servers.index(self._gone)
        wait_until(lambda: self.has_role(other, b"master"), 30, "a new master")
        self._gone.start()
        wait_until(self._is_followed, 30, "a replica that follows")

    def remove(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.wait()
        for server in self.servers:
            server.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

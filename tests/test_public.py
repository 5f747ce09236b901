"""A daemon that other machines can reach needs a token, or ALLOW_ANONYMOUS; otherwise it does not start."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress

from registry.listening import PublicWithoutTokens, check_public
from registry.model.tokens import create
from tests.conftest import StartDaemon
from tests.live import RedisServer, free_port, wait_until
from tests.talk import ask

WAYS_OUT = ("registryctl token create", "ALLOW_ANONYMOUS=1")


def tcp(host: str) -> Any:
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 3000)


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        (tcp("127.0.0.1"), False),
        (tcp("127.8.9.1"), False),
        (tcp("::1"), False),
        (tcp("::ffff:127.0.0.1"), False),
        (UNIXAddress(b"/run/registry/http.sock"), False),
        (UNIXAddress(b"\0name"), False),
        (UNIXAddress(None), False),
        (tcp("0.0.0.0"), True),
        (tcp("::"), True),
        (tcp("::ffff:0.0.0.0"), True),
        (tcp("192.0.2.1"), True),
        (tcp("10.0.0.1"), True),
        (tcp("fe80::1%eth0"), True),
        # Nobody knows where the address of somebody else's endpoint is.
        (HostnameAddress(b"localhost", 1), True),
        (None, True),
    ],
)
def test_which_addresses_are_public(address: Any, is_public: bool) -> None:
    loopback = tcp("127.0.0.1")
    for addresses in ([address], [loopback, address], [address, loopback]):
        assert check_public(addresses, has_tokens=True, allow_anonymous=False) == []
        warned = check_public(addresses, has_tokens=False, allow_anonymous=True)
        assert len(warned) == is_public
        if is_public:
            with pytest.raises(PublicWithoutTokens) as refused:
                check_public(addresses, has_tokens=False, allow_anonymous=False)
            assert all(way in str(refused.value) for way in WAYS_OUT)
            assert "127.0.0.1:3000" not in str(refused.value)
        else:
            assert check_public(addresses, has_tokens=False, allow_anonymous=False) == []


def certificate(folder: Path) -> str:
    key = folder / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    made += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(folder / "cert.pem"), "-days", "2"]
    subprocess.run(made, check=True, capture_output=True)
    return f"privateKey={key}:certKey={folder / 'cert.pem'}"


@pytest.mark.parametrize("kind", ["host", "several", "processes"])
def test_it_does_not_start_without_tokens(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path, kind: str
) -> None:
    port, other, third = free_port(), free_port(), free_port()
    options = {
        "host": lambda: ["--host=0.0.0.0"],
        "several": lambda: [
            f"--listen=tcp:{port}:interface=127.0.0.1",
            f"--listen=haproxy:tcp:{other}",
            f"--listen=ssl:{third}:{certificate(short_dir)}",
        ],
        "processes": lambda: [r"--listen=tcp6:0:interface=\:\:", "--processes=2"],
    }
    if kind == "several" and shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    one = daemon(*options[kind](), redis=redis_server, wait=False)
    assert one.wait(20) == 1
    (line,) = [line for line in one.log.splitlines() if "registry stops: Other machines" in line]
    assert all(way in line for way in WAYS_OUT)
    if kind == "several":
        assert f"connect to 0.0.0.0:{other} or 0.0.0.0:{third}, and" in line
    assert "Traceback" not in one.log


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd-socket-activate")
def test_nor_on_a_socket_of_systemd(daemon: StartDaemon, redis_server: RedisServer) -> None:
    port = free_port()
    activated: tuple[str, ...] = ("systemd-socket-activate", "-l", f"0.0.0.0:{port}", "--fdname=registry")
    for name in ("PATH", "HOME", "PYTHONPATH", "DATA_DIR", "REDIS_URL"):
        activated += (f"--setenv={name}",)
    program = shutil.which("twistd", path=str(Path(sys.executable).parent))
    assert program is not None
    one = daemon(redis=redis_server, twistd=(*activated, program, "-n", "--pidfile="), wait=False)

    def reached() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            return False
        return True

    wait_until(reached)
    assert one.wait(20) == 1
    assert f"Other machines could connect to 0.0.0.0:{port}" in one.log


@pytest.mark.parametrize("processes", ["1", "2"])
def test_it_starts_with_a_token_or_when_anonymous_callers_are_allowed(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path, processes: str
) -> None:
    path = short_dir / "tokens.json"
    settings = [
        "--host=0.0.0.0",
        "--allow-anonymous=yes",
        f"--tokens-file={path}",
        f"--processes={processes}",
    ]
    one = daemon(*settings, redis=redis_server)
    warning = ask(one, "GET", "/readyz").ok()["warnings"][0]
    assert "ALLOW_ANONYMOUS" in warning and f"0.0.0.0:{one.port}" in warning
    assert one.log.count(warning) == 1
    assert ask(one, "GET", "/api/queues").status == 200
    # The setting opens nothing once there is a token.
    bearer = {"Authorization": f"Bearer {create(str(path), 'a', ['view'])}"}
    wait_until(lambda: all(ask(one, "GET", "/api/queues").status == 401 for _ in range(8)))
    assert warning not in ask(one, "GET", "/readyz", **bearer).ok()["warnings"]
    if processes == "2":
        return
    # Nor after the last one is gone: neither while it runs, nor after a restart.
    path.write_text("")
    wait_until(lambda: ask(one, "GET", "/api/queues", **bearer).status == 401)
    one.terminate()
    one.options = tuple(option for option in one.options if "anonymous" not in option)
    assert one.start(wait=False).wait(20) == 1
    create(str(path), "a", ["view"])
    assert ask(one.start(), "GET", "/api/queues").status == 401

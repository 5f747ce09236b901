"""docs/behind-a-proxy.md: each configuration of the page, run by its program between a client and daemons."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.callers import Callers
from tests.live import ROOT, Daemon, RedisServer, bare_environment, free_port, short_folder, wait_until
from tests.sse import Events
from tests.talk import Answer as Full
from tests.talk import running

PAGE = (ROOT / "docs" / "behind-a-proxy.md").read_text("utf-8")
NAME = "registry.example"
TWISTD = ("twistd", "-n", "--pidfile=")
# The certificate of that name, the key, and both in one file; made by a fixture.
CERTIFICATES = short_folder()
TOKENS = Callers(CERTIFICATES / "tokens.json")

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="no openssl to make a certificate with"
)


@pytest.fixture(scope="module", autouse=True)
def files() -> Iterator[None]:
    """The certificate and the tokens."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem"
    names = f"-subj /CN={NAME} -addext subjectAltName=DNS:{NAME} -days 2 -out cert.pem"
    command = ["openssl", *f"req -x509 {key} {names}".split()]
    CERTIFICATES.mkdir(exist_ok=True)
    subprocess.run(command, cwd=CERTIFICATES, check=True, capture_output=True)
    both = (CERTIFICATES / "cert.pem").read_text() + (CERTIFICATES / "key.pem").read_text()
    (CERTIFICATES / "both.pem").write_text(both)
    TOKENS.add("all", "push *", "pop *", "view")
    TOKENS.add("other", "push x")
    TOKENS.write()
    yield
    shutil.rmtree(CERTIFICATES, ignore_errors=True)


def found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")


def written(name: str, ports: dict[str, int]) -> str:
    """The page's configuration for ``name``; of it only addresses are changed, to ports that are free."""
    text = re.search(rf"```{name}\n(.*?)```", PAGE, re.DOTALL)
    assert text is not None
    config = text[1]
    for old, new in (
        ("127.0.0.1:3000", f"127.0.0.1:{ports['one']}"),
        ("127.0.0.1:3001", f"127.0.0.1:{ports['two']}"),
        ("listen 443 ssl;", f"listen 127.0.0.1:{ports['proxy']} ssl;"),
        ("bind :443 ssl", f"bind 127.0.0.1:{ports['proxy']} ssl"),
        (
            f"{NAME} {{",
            f"{NAME}:{ports['proxy']} {{\n\ttls {CERTIFICATES}/cert.pem {CERTIFICATES}/key.pem",
        ),
        ("/etc/ssl/registry.example.pem", f"{CERTIFICATES}/cert.pem"),
        ("/etc/ssl/private/registry.example.key", f"{CERTIFICATES}/key.pem"),
        ("/etc/ssl/private/registry.example.pem", f"{CERTIFICATES}/both.pem"),
    ):
        config = config.replace(old, new)
    assert all(str(port) in config for port in ports.values()), config
    return config


def nginx(folder: Path, config: str) -> list[str]:
    (folder / "registry.conf").write_text(config)
    own = "".join(
        f"{what}_temp_path {folder}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # As root it would serve as somebody else, who may not write here.
    (folder / "nginx.conf").write_text(
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {own} include {folder}/registry.conf; }}\n"
    )
    return ["-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]


def haproxy(folder: Path, config: str) -> list[str]:
    (folder / "haproxy.cfg").write_text(config)
    return ["-db", "-f", str(folder / "haproxy.cfg")]


def caddy(folder: Path, config: str) -> list[str]:
    (folder / "Caddyfile").write_text(
        "{\n\tadmin off\n\tdefault_bind 127.0.0.1\n\tauto_https disable_redirects\n}\n" + config
    )
    return ["run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


PROXIES: dict[str, Callable[[Path, str], list[str]]] = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy}


@contextmanager
def proxying(name: str, one: int, two: int) -> Iterator[int]:
    """The proxy ``name`` in front of the ports ``one`` and ``two``; gives its own port."""
    port = free_port()
    with serving(name, written(name, {"one": one, "two": two, "proxy": port}), port):
        yield port


@contextmanager
def serving(name: str, config: str, port: int) -> Iterator[None]:
    """The proxy ``name`` with this configuration, which listens on ``port``."""
    program = found(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    folder = short_folder()
    arguments = PROXIES[name](folder, config)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env=bare_environment(folder),
            start_new_session=True,
        )

    def listens() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 5)):
            return True
        return False

    try:
        wait_until(listens, 20, f"{name} on its port")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


Answer = tuple[int, bytes]


def connect(port: int, source: str = "127.0.0.1") -> ssl.SSLSocket:
    """A connection to the proxy."""
    plain = socket.create_connection(("127.0.0.1", port), 30, (source, 0))
    context = ssl.create_default_context(cafile=str(CERTIFICATES / "cert.pem"))
    return context.wrap_socket(plain, server_hostname=NAME)


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """Ask through the proxy."""
    found = answered(port, method, path, body, **headers)
    return found.status, found.body


def answered(
    port: int, method: str, path: str, body: bytes | None = None, *, who: str = "all", **headers: str
) -> Full:
    """Ask through the proxy, as the client at 127.9.9.9."""
    named = {name.replace("_", "-"): value for name, value in headers.items()} | bearer(who)
    with closing(http.client.HTTPConnection(NAME, port, timeout=30)) as connection:
        connection.sock = connect(port, "127.9.9.9")
        connection.request(method, path, body, named)
        return Full(connection.getresponse())


def bearer(who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS.secrets[who]}"} if who else {}


def straight_ask(port: int, path: str, host: str = "localhost", who: str = "all") -> Answer:
    """Ask a daemon without the proxy."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("GET", path, None, {"Host": host} | bearer(who))
        answer = connection.getresponse()
        return answer.status, answer.read()


def pollers(port: int, queue: str) -> int:
    """How many polls of ``queue`` the daemon at ``port`` knows of, asked without the proxy."""
    return int(json.loads(straight_ask(port, f"/api/queues/{queue}")[1])["pollers"])


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> str:
    if found(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def daemons(module_redis_process: RedisServer) -> Iterator[list[int]]:
    """The ports of two daemons that know the name."""
    with ExitStack() as both:
        settings = dict(
            re.findall(
                r"^    ([A-Z_]+)=(.*)$", PAGE.partition("The settings of both daemons:")[2], re.MULTILINE
            )[:3]
        )
        assert set(settings) == {"TRUSTED_PROXIES", "ALLOWED_HOSTS", "TOKENS_FILE"}
        settings["TOKENS_FILE"] = str(TOKENS.path)
        yield [both.enter_context(running(module_redis_process, **settings)).port for _ in range(2)]


@pytest.fixture
def through(proxy: str, daemons: list[int]) -> Iterator[tuple[int, int]]:
    """The ports of a proxy, and of one of the two daemons behind it."""
    with proxying(proxy, *daemons) as port:
        yield port, daemons[0]


def test_who_hangs_up_takes_no_task_and_who_waits_gets_it(through: tuple[int, int], q: str) -> None:
    port, straight = through
    told: list[Answer] = []
    waits = threading.Thread(target=lambda: told.append(ask(port, "GET", f"/api/popTask/{q}?wait=30")))
    with ExitStack() as others:
        for _ in range(4):
            worker = others.enter_context(connect(port))
            token = TOKENS.secrets["all"]
            head = f"GET /api/popTask/{q}?wait=30 HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Bearer {token}\r\n\r\n"
            worker.sendall(head.encode())
        wait_until(lambda: pollers(straight, q) == 4, 20, "four polls")
        waits.start()
    wait_until(lambda: pollers(straight, q) == 1, 20, "the end of the polls whose clients hung up")
    assert ask(port, "POST", f"/api/pushTask/{q}", b'"kept"')[0] == 200
    waits.join(30)
    assert told == [(200, b'{"task":"kept"}')]


def test_events_come_as_they_happen_and_end_with_their_client(through: tuple[int, int], q: str) -> None:
    port, _ = through
    readers = [
        Events(port, f"queue={q}", bearer("all"), connection=connect(port), host=NAME) for _ in range(2)
    ]
    for reader in readers:
        reader.next("hello")
        assert reader.next("queues")["full"]
        assert ask(port, "POST", f"/api/pushTask/{q}", b"1")[0] == 200
        assert reader.row(q)
        reader.close()


def test_a_batch_of_16_mib_passes(through: tuple[int, int], q: str) -> None:
    port, straight = through
    size = 16 << 20
    tasks = b",".join(b'"%b"' % (b"x" * 1_000_000) for _ in range(16))
    batch = b"[" + tasks + b" " * (size - len(tasks) - 2) + b"]"
    status, body = ask(port, "POST", f"/api/pushTasks/{q}", batch)
    assert (status, len(json.loads(body)["ids"])) == (200, 16)
    # The daemons judge the name; that it was right says that the proxy passed it on.
    assert straight_ask(straight, "/healthz", "other.example", "")[0] == 421
    assert ask(port, "GET", "/healthz")[0] == 200


def test_the_daemon_learns_who_asks(through: tuple[int, int]) -> None:
    port, _ = through
    told: dict[str, Any]
    for told in (
        {},
        {"X_Forwarded_For": "1.2.3.4"},
        {"Forwarded": "for=1.2.3.4"},
        {"X_Forwarded_For": "127.0.0.1"},
    ):
        found = answered(port, "GET", "/api/token", None, **told)
        assert (found.ok()["name"], found.json["address"]) == ("all", "127.9.9.9"), told
    assert answered(port, "GET", "/api/queues", who="").status == 401
    answered(port, "PUT", "/api/pushTask/q", b"1", who="other").refused(403, "forbidden")
    assert answered(port, "POST", "/api/session").headers["set-cookie"].endswith("; Secure")


class Dying:
    """Two servers that take a request whole and end the connection instead of answering, as a daemon does that is
    killed. The first ``good`` requests are answered 200, and their connections kept.
    """

    def __init__(self, good: int) -> None:
        self.good = good
        self.taken: list[bytes] = []
        self._servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.ports = [server.getsockname()[1] for server in self._servers]
        for server in self._servers:
            threading.Thread(target=self._accept, args=[server], daemon=True).start()

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=[server.accept()[0]], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with closing(connection), suppress(OSError), connection.makefile("rb") as stream:
            while line := stream.readline():
                head = b"".join(iter(stream.readline, b"\r\n"))
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                stream.read(int(length[1]) if length else 0)
                if b"/healthz" not in line:
                    self.taken.append(line)
                    if len(self.taken) > self.good:
                        return
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def close(self) -> None:
        for server in self._servers:
            # A thread that waits in accept() does not wake up when its socket is closed.
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            server.close()


@pytest.mark.parametrize("good", [0, 4], ids=["new", "kept"])
@pytest.mark.parametrize("method", ["PUT", "POST", "GET"])
def test_what_a_daemon_took_before_it_died_is_not_sent_again(proxy: str, method: str, good: int) -> None:
    if (proxy, method, good) == ("caddy", "GET", 4):
        pytest.skip("the exception that the page tells")
    path, body = ("/api/popTask/q", None) if method == "GET" else ("/api/pushTask/q", b"1")
    with closing(Dying(good)) as dying, proxying(proxy, *dying.ports) as port:
        for _ in range(good):
            assert ask(port, method, path, body) == (200, b"{}")
        assert ask(port, method, path, body)[0] in (502, 503, 504)
        assert len(dying.taken) == good + 1, dying.taken


def test_one_of_two_daemons_is_gone(proxy: str, daemons: list[int], q: str) -> None:
    with proxying(proxy, free_port(), daemons[1]) as port:
        said = [ask(port, "POST", f"/api/pushTask/{q}", b"%d" % number)[0] for number in range(6)]
        # HAProxy tries the other one; nginx and Caddy find out by a request.
        assert said.count(200) >= (6 if proxy == "haproxy" else 5), said
        queue = json.loads(straight_ask(daemons[1], f"/api/queues/{q}")[1])
        assert queue["ready"] == said.count(200)


def test_haproxy_passes_tls_on_with_the_proxy_protocol(module_redis_process: RedisServer) -> None:
    proxied, port = free_port(), free_port()
    daemon = Daemon((), {"REDIS_URL": module_redis_process.url, "TOKENS_FILE": str(TOKENS.path)}, TWISTD)
    files = f"privateKey={CERTIFICATES}/key.pem:certKey={CERTIFICATES}/cert.pem"
    plain, tls = f"tcp:{daemon.port}:interface=127.0.0.1", f"ssl:{proxied}:interface=127.0.0.1:{files}"
    daemon.env["LISTEN"] = f"{plain} haproxy:{tls}"
    config = f"""
        defaults
            mode tcp
            timeout connect 3s
            timeout client 75s
            timeout server 75s
        listen registry
            bind 127.0.0.1:{port}
            server one 127.0.0.1:{proxied} send-proxy
            server two 127.0.0.1:{proxied} send-proxy-v2 check inter 200ms
"""
    try:
        daemon.start().redis_ready()
        with serving("haproxy", config, port):
            # The two take turns.
            for _ in range(4):
                assert answered(port, "GET", "/api/token").ok()["address"] == "127.9.9.9"
    finally:
        daemon.remove()


def test_the_page_waits_long_enough() -> None:
    seconds = re.findall(r"(?:proxy_read_timeout|timeout client|timeout server) +(\d+)s", PAGE)
    assert len(seconds) == 3
    assert min(map(int, seconds)) > 60, "MAX_WAIT and REDIS_WAIT together are a minute"
    kept = re.findall(r"(?:keepalive_timeout|pool-purge-delay|keepalive) +(\d+)s", PAGE)
    assert len(kept) == 3
    assert max(map(int, kept)) < 75, "the daemon's own"

"""Behind a proxy: whose word is taken about the client's address, and everything below a path of a site."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.http.proxies import Proxies
from registry.proxy_protocol import MAX_LINE, SIGNATURE, BadHeader, read_header
from tests.callers import Callers
from tests.live import Daemon, RedisServer, free_port, short_folder, wait_until
from tests.talk import Answer, fresh

PROXIES = Proxies(["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "unix"])


@pytest.mark.parametrize(
    ("values", "client"),
    [
        (["198.51.100.1"], "198.51.100.1"),
        # The client wrote what stands left of its own address.
        (["1.2.3.4, 198.51.100.1"], "198.51.100.1"),
        (["1.2.3.4", "198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1, 10.1.1.1, 192.0.2.7"], "198.51.100.1"),
        (["198.51.100.1,10.1.1.1", "2001:db8::5"], "198.51.100.1"),
        # All of them are proxies: the one that is farthest away.
        (["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2001:db9::1]:4711"], "2001:db9::1"),
        (["2001:DB9:0::1"], "2001:db9::1"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        (["::ffff:10.0.0.1, 198.51.100.1, ::ffff:10.0.0.1"], "198.51.100.1"),
        # What is no address ends the search: the last that a proxy wrote counts, or none.
        (["198.51.100.1, unknown"], ""),
        (["198.51.100.1, unknown, 10.0.0.1"], "10.0.0.1"),
        (['evil", 10.0.0.1'], "10.0.0.1"),
        (["198.51.100.1,"], ""),
        ([""], ""),
        (["999.1.1.1"], ""),
        (["localhost"], ""),
        (["198.51.100.1 198.51.100.2"], ""),
        (["<script>"], ""),
        (["\xff"], ""),
        ([", ".join(["10.0.0.1"] * 1000)], "10.0.0.1"),
    ],
)
def test_x_forwarded_for_is_read_from_the_right(values: list[str], client: str) -> None:
    assert PROXIES.client([value.encode("latin-1") for value in values], []) == client


@pytest.mark.parametrize(
    ("values", "client", "is_https"),
    [
        (["for=198.51.100.1;proto=https"], "198.51.100.1", True),
        (["For=198.51.100.1; Proto=HTTPS ;by=10.0.0.1"], "198.51.100.1", True),
        (['for="[2001:db9::1]:4711";proto=http'], "2001:db9::1", False),
        (["for=1.2.3.4;proto=https, for=198.51.100.1;proto=http, for=10.0.0.1"], "198.51.100.1", False),
        (["for=1.2.3.4", 'for="198.51.100.1:80"'], "198.51.100.1", False),
        (["for=_hidden"], "", False),
        (["for=unknown;proto=https"], "", True),
        (["proto=https"], "", True),
        (['for="1.2.3.4, for=198.51.100.1'], "198.51.100.1", False),
        (['for="a, for=1.2.3.4";proto=https'], "", True),
        (["for=198.51.100.1;for=198.51.100.2"], "", False),
        (["for=198.51.100.1 x"], "", False),
        ([";;;"], "", False),
        ([""], "", False),
        (["for=198.51.100.1;proto=https, ,"], "198.51.100.1", True),
        (['for="a;b\\"c, d", for=198.51.100.1;proto="https"'], "198.51.100.1", True),
        (['for="198.51.100.1;proto="https'], "", False),
    ],
)
def test_forwarded(values: list[str], client: str, is_https: bool) -> None:
    forwarded = [value.encode() for value in values]
    assert (PROXIES.client([], forwarded), PROXIES.is_https([], forwarded)) == (client, is_https)
    # Most proxies write the other header and pass this one on.
    assert PROXIES.client([b"198.51.100.9"], forwarded) == "198.51.100.9"
    assert PROXIES.is_https([b"https"], forwarded) and not PROXIES.is_https([b"https, http"], forwarded)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", ['"\\', '\\"', '";', "for=1;", ";", ",", '",'])
def test_the_longest_forwarded_header_costs_no_more_than_its_length(piece: str) -> None:
    # Anybody can send one. Read again from each of its quotes, it stopped the daemon for minutes.
    value = ('for="' + piece * 16_000)[:32_000].encode()
    assert PROXIES.client([], [value]) == ""
    assert not PROXIES.is_https([], [value])
    assert PROXIES.client([], [value, b"for=198.51.100.1"]) == "198.51.100.1"


def test_who_is_trusted() -> None:
    for address in ("10.255.0.1", "192.0.2.7", "2001:db8:1::1", "::ffff:10.0.0.1", "-"):
        assert PROXIES.trusts(address), address
    for address in ("11.0.0.1", "192.0.2.8", "127.0.0.1", "::1", "fe80::1%eth0", "", "x"):
        assert not PROXIES.trusts(address), address
    nobody = Proxies()
    assert not nobody and not nobody.trusts("127.0.0.1") and not nobody.trusts("-")
    # Without the setting, this machine may speak the PROXY protocol where it is spoken.
    assert nobody.speaks_proxy_protocol("127.0.0.1") and nobody.speaks_proxy_protocol("-")
    assert not nobody.speaks_proxy_protocol("192.0.2.7") and not PROXIES.speaks_proxy_protocol("127.0.0.1")


def binary(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


V4 = socket.inet_aton("198.51.100.1") + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 4711, 80)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db9::1") * 2 + struct.pack("!HH", 4711, 80)
HEADERS = [
    (b"PROXY TCP4 198.51.100.1 10.0.0.1 4711 80\r\n", "198.51.100.1"),
    (b"PROXY TCP6 2001:db9::1 2001:db8::1 4711 80\r\n", "2001:db9::1"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff:f...f 1 2\r\n", None),
    (binary(0x21, 0x11, V4), "198.51.100.1"),
    (binary(0x21, 0x11, V4 + b"\x04\0\1x"), "198.51.100.1"),
    (binary(0x21, 0x21, V6), "2001:db9::1"),
    (binary(0x21, 0x31, b"\0" * 216), ""),
    (binary(0x20, 0x11, V4), None),
    (binary(0x20, 0x00, b""), None),
    (binary(0x21, 0x00, b""), None),
]


@pytest.mark.parametrize(("header", "host"), HEADERS)
def test_a_proxy_header_is_read_however_it_is_cut(header: bytes, host: str | None) -> None:
    for cut in range(len(header)):
        assert read_header(header[:cut]) is None, cut
    for rest in (b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01"):
        found = read_header(header + rest)
        assert found is not None and found[1] == len(header)
        assert (getattr(found[0], "host", "") if found[0] is not None else None) == host


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PROXY TCP4 198.51.100.1 10.0.0.1 4711\r\n",
        b"PROXY TCP4 198.51.100.1 10.0.0.1 70000 80\r\n",
        b"PROXY TCP4 2001:db9::1 10.0.0.1 4711 80\r\n",
        b"PROXY TCP6 198.51.100.1 10.0.0.1 4711 80\r\n",
        b"PROXY TCP4 999.51.100.1 10.0.0.1 4711 80\r\n",
        b"PROXY UDP4 198.51.100.1 10.0.0.1 4711 80\r\n",
        b"proxy TCP4 198.51.100.1 10.0.0.1 4711 80\r\n",
        b"PROXY " + b"x" * MAX_LINE,
        binary(0x31, 0x11, V4),
        binary(0x22, 0x11, V4),
        binary(0x21, 0x11, V4[:11]),
        binary(0x21, 0x21, V4),
        binary(0x21, 0x11, b"x" * 5000),
        SIGNATURE[:5] + b"x" * 20,
    ],
)
def test_what_is_no_proxy_header_is_refused(data: bytes) -> None:
    with pytest.raises(BadHeader):
        read_header(data)


BASE = "/tools/registry"


class Behind(Callers):
    """``proxied``: the port of the PROXY protocol; ``place``: its unix socket, and with a 2 behind it the plain one."""

    proxied = 0
    place = Path()


@pytest.fixture(scope="module", params=["1", "2"], ids=["alone", "processes"])
def behind(request: pytest.FixtureRequest, module_redis_process: RedisServer) -> Iterator[Behind]:
    """A daemon that trusts 127.2.0.0/16 and the unix socket, below a path; and it speaks the PROXY protocol at two places."""
    one = Behind(short_folder() / "tokens.json")
    for name, right in (("admin", "admin"), ("other", "view")):
        one.add(name, right)
    one.write()
    one.proxied, one.place = free_port(), short_folder() / "s"
    settings = {"TRUSTED_PROXIES": "127.2.0.0/16, unix", "BASE_PATH": BASE + "/", "PROCESSES": request.param}
    settings |= {"TOKENS_FILE": str(one.path), "REDIS_URL": module_redis_process.url}
    one.daemon = Daemon((), settings, ("twistd", "-n", "--pidfile="))
    plain, proxied = (f"tcp:{port}:interface=127.0.0.1" for port in (one.daemon.port, one.proxied))
    one.daemon.env["LISTEN"] = f"{plain} haproxy:{proxied} haproxy:unix:{one.place} unix:{one.place}2"
    try:
        one.daemon.start().redis_ready()
        yield one
    finally:
        one.daemon.remove()


def exchange(connection: socket.socket, sent: bytes) -> Answer:
    connection.sendall(sent)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response)


def request(callers: Callers, path: str = "/api/token", **headers: str) -> bytes:
    lines = [f"GET {BASE}{path} HTTP/1.1", "Host: localhost"]
    lines += [f"Authorization: Bearer {callers.secrets['admin']}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def tcp(callers: Callers, source: str, port: int = 0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port or callers.daemon.port), 20, (source, 0))


def unix(path: Any) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def test_the_address_is_told_by_trusted_proxies_alone(behind: Behind) -> None:
    told = {"X_Forwarded_For": "1.2.3.4, 198.51.100.1, 127.2.0.9"}
    with tcp(behind, "127.2.0.1") as trusted, tcp(behind, "127.3.0.1") as stranger:
        # The same bytes, and a connection that carries the requests of several clients.
        for _ in range(2):
            assert exchange(trusted, request(behind, **told)).ok()["address"] == "198.51.100.1"
            assert exchange(stranger, request(behind, **told)).ok()["address"] == "127.3.0.1"
        other = {"Forwarded": "for=198.51.100.2"}
        assert exchange(trusted, request(behind, **other)).ok()["address"] == "198.51.100.2"
        assert exchange(stranger, request(behind, **other)).ok()["address"] == "127.3.0.1"
        assert exchange(trusted, request(behind)).ok()["address"] == "127.2.0.1"
        refused = exchange(trusted, request(behind, "/nothing", X_Forwarded_For="198.51.100.3"))
        assert refused.status == 404
    with unix(f"{behind.place}2") as local:
        assert exchange(local, request(behind, **told)).ok()["address"] == "198.51.100.1"
    wait_until(lambda: "198.51.100.3 - admin [" in behind.daemon.log)


def test_wrong_tokens_count_against_the_client_and_not_the_proxy(behind: Behind) -> None:
    def wrong(client: str) -> int:
        head = request(behind, X_Forwarded_For=client).replace(behind.secrets["admin"].encode(), b"rgy_no")
        with tcp(behind, "127.2.0.1") as connection:
            return exchange(connection, head).status

    # Each process counts for itself.
    said = [wrong("198.51.100.50") for _ in range(26)]
    assert said[0] == 401 and 429 in said and said.index(429) >= 10
    assert wrong("198.51.100.51") == 401
    # Whose own address is not told, is not let off either.
    wait_until(lambda: "198.51.100.50 - - [" in behind.daemon.log)


@pytest.mark.parametrize("header", [HEADERS[0][0], HEADERS[4][0]], ids=["v1", "v2"])
def test_the_proxy_protocol_tells_the_address(behind: Behind, header: bytes) -> None:
    for connection in (tcp(behind, "127.2.0.1", behind.proxied), unix(behind.place)):
        with connection:
            connection.sendall(header[:9])
            assert exchange(connection, header[9:] + request(behind)).ok()["address"] == "198.51.100.1"
            # It is kept, and the client that it is from is no proxy.
            again = request(behind, X_Forwarded_For="9.9.9.9")
            assert exchange(connection, again).ok()["address"] == "198.51.100.1"
    with tcp(behind, "127.2.0.1", behind.proxied) as connection:
        # A proxy that passes on the request of another proxy.
        other = b"PROXY TCP4 127.2.3.4 10.0.0.1 1 2\r\n" + request(behind, X_Forwarded_For="198.51.100.7")
        assert exchange(connection, other).ok()["address"] == "198.51.100.7"


def test_who_may_not_speak_the_proxy_protocol_gets_nothing(behind: Behind) -> None:
    for source, sent in (("127.3.0.1", HEADERS[0][0] + request(behind)), ("127.2.0.1", request(behind))):
        with tcp(behind, source, behind.proxied) as connection:
            got = b""
            try:
                connection.sendall(sent)
                got = connection.recv(100)
            except ConnectionError:
                pass
            assert got == b"", source
    wait_until(lambda: "where the PROXY protocol is spoken" in behind.daemon.log)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{BASE}/healthz", 200),
        (f"{BASE}/readyz", 200),
        ("/healthz", 200),
        ("/readyz", 200),
        ("/healthz/", 401),
        ("/api/queues", 401),
        (f"{BASE}/api/queues", 401),
        (BASE, 401),
        (f"{BASE}/", 200),  # the files of the dashboard, which hold no data
        (f"{BASE}x/healthz", 401),
        (f"{BASE}{BASE}/healthz", 401),
        ("/tools/%72egistry/healthz", 401),
        (f"{BASE}/../healthz", 401),
    ],
)
def test_everything_is_below_the_base_path(behind: Behind, path: str, status: int) -> None:
    assert behind.ask("", "GET", path).status == status
    if status == 401:
        assert behind.ask("admin", "GET", path).status == (200 if path == f"{BASE}/api/queues" else 404)


def test_the_rules_for_pages_hold_below_the_base_path(behind: Behind) -> None:
    q = fresh()
    path = f"{BASE}/api/popTask/{q}?wait=0"
    assert behind.ask("admin", "GET", path).status == 202
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        behind.ask("admin", "GET", path, **headers).refused(403, "foreign_origin")
    pushed = behind.ask("admin", "POST", f"{BASE}/api/pushTask/{q}%20r", 1, Prefer="wait=0")
    location = pushed.headers["location"]
    assert location.startswith(f"{BASE}/api/queues/{q}%20r/tasks/")
    assert behind.ask("admin", "GET", location).ok()["task"] == 1
    # The largest body depends on the path.
    task = json.dumps("x" * 1_500_000).encode()
    assert behind.ask("admin", "POST", f"{BASE}/api/pushTasks/{q}", b"[" + task + b"]").status == 413
    assert (
        behind.ask("admin", "POST", f"{BASE}/api/pushTasks/{q}", b"[" + b" " * 1_500_000 + b"1]").status
        == 200
    )

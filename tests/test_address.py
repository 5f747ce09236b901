"""Addresses of Redis, and TLS."""

from __future__ import annotations

import datetime
import ipaddress
import subprocess
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from registry.redis.link import pack, parse_redis_url
from tests.links import every_redis, make, until
from tests.live import RedisServer, free_port

__all__ = ["make"]  # a fixture


# -- addresses and packing


@pytest.mark.parametrize(
    ("url", "told", "secrets"),
    [
        ("redis://localhost", "redis://localhost:6379/0", (None, None)),
        ("redis://", "redis://127.0.0.1:6379/0", (None, None)),
        ("redis://:p%40ss@h:1/2", "redis://h:1/2", (None, "p@ss")),
        ("redis://bob:x@h/3", "redis://h:6379/3", ("bob", "x")),
        ("redis://[::1]:7/", "redis://[::1]:7/0", (None, None)),
        ("redis://h?db=4&password=a%26b", "redis://h:6379/4", (None, "a&b")),
        ("rediss://u:p@h:6380/1?verify=0", "rediss://h:6380/1", ("u", "p")),
        ("unix:///run/r.sock?db=5&password=s", "unix:///run/r.sock?db=5", (None, "s")),
        ("unix:///run/r%20x.sock", "unix:///run/r x.sock", (None, None)),
        ("redis://:@h", "redis://h:6379/0", (None, None)),
    ],
)
def test_an_address(url: str, told: str, secrets: tuple[str | None, str | None]) -> None:
    address = parse_redis_url(url)
    assert (str(address), (address.username, address.password)) == (told, secrets)
    assert address.password is None or f"={address.password!r}" not in repr(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://:hunter2@h",
        "hunter2",
        "redis://:hunter2/x@h:1",
        "redis://:hunter2@h:99999",
        "redis://:hunter2@h:port",
        "redis://:hunter2@h/one",
        "redis://:hunter2@h/-1",
        "redis://:hun#ter2@h",
        "redis://:hunter2@h?timeout=3",
        "redis://h?cafile=hunter2",
        "redis://hunter2@h",
        "unix://:hunter2@host/x",
        "unix://relative?password=hunter2",
    ],
)
def test_a_wrong_address_is_one_sentence_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="Redis URL") as caught:
        parse_redis_url(url)
    assert "ter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_pack() -> None:
    assert (
        pack("SET", b"\x00\r\n", -7, "é")
        == b"*4\r\n$3\r\nSET\r\n$3\r\n\x00\r\n\r\n$2\r\n-7\r\n$2\r\n\xc3\xa9\r\n"
    )


# -- TLS


def certificates(folder: Path) -> None:
    """A CA, and a key and certificate for localhost signed by it, good for both ends."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def write(label: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        pem = serialization.Encoding.PEM
        (folder / f"{label}.crt").write_bytes(certificate.public_bytes(pem))
        form = serialization.PrivateFormat.PKCS8
        (folder / f"{label}.key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))

    def issue(
        label: str, issuer: str, signer: ec.EllipticCurvePrivateKey | None
    ) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = x509.CertificateBuilder(
            issuer_name=name(issuer),
            subject_name=name(label),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=1),
            not_valid_after=now + datetime.timedelta(days=1),
        )
        if signer is None:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        else:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        write(label, builder.sign(signer or key, hashes.SHA256()), key)
        return key

    authority = issue("ca", "ca", None)
    issue("server", "ca", authority)
    issue("other", "other", None)


@every_redis
@pytest_twisted.ensureDeferred
async def test_tls(redis_server: RedisServer, short_dir: Path, make: Any) -> None:
    # It ends, for its certificate is missing; the last words tell whether it would know what to do with one.
    words = ["--save", "", "--port", "0", "--tls-port", str(free_port()), "--tls-cert-file", "missing"]
    told = subprocess.run(
        [redis_server.binary, *words], capture_output=True, text=True, cwd=short_dir, timeout=20
    ).stdout
    if "Failed to configure TLS" not in told:
        pytest.skip(f"redis-server {redis_server.version} at hand was built without TLS")
    certificates(short_dir)
    redis_server.stop()
    files = {"cert": "server.crt", "key": "server.key", "ca-cert": "ca.crt"}
    options = [part for word, file in files.items() for part in (f"--tls-{word}-file", str(short_dir / file))]
    redis_server.start("--port", "0", "--tls-port", str(redis_server.port), *options)
    base = f"rediss://localhost:{redis_server.port}/1"
    own = f"&certfile={short_dir}/server.crt&keyfile={short_dir}/server.key"
    verified = make(f"{base}?cafile={short_dir}/ca.crt{own}")
    believing = make(f"{base}?verify=0{own}")
    stranger = make(f"{base}?cafile={short_dir}/other.crt{own}")
    anonymous = make(f"{base}?cafile={short_dir}/ca.crt")
    unreadable = make(f"{base}?cafile={short_dir}/missing.crt")
    await until(lambda: verified.ready and believing.ready)
    payload = b"\x00" * 300_000
    await verified.command("SET", "k", payload)
    assert await believing.command("GET", "k") == payload
    await until(lambda: "certificate verify failed" in stranger.last_error)
    await until(lambda: "No such file" in unreadable.last_error)
    await until(lambda: "lost" in anonymous.last_error)
    redis_server.kill()
    await until(lambda: not verified.ready)
    redis_server.start()
    await until(lambda: verified.ready)

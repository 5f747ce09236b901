"""Where a Redis is and how to get in: ``redis://``, ``rediss://`` (TLS) and ``unix://`` addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from twisted.internet.endpoints import UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint

from registry.redis.host import HostEndpoint

_OPTIONS = {
    "redis": {"db", "username", "password"},
    "rediss": {"db", "username", "password", "verify", "cafile", "certfile", "keyfile"},
    "unix": {"db", "username", "password"},
}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One Redis. ``kind`` is tcp, tls or unix; ``str()`` is for log lines: no user, no password."""

    kind: str = "tcp"
    host: str = "127.0.0.1"
    port: int = 6379
    path: str = ""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    verify: bool = True
    cafile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None

    # What a `SentinelAddress` has: the server behind it may change.
    generation = 0
    is_master_required = False

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        return f"{'rediss' if self.kind == 'tls' else 'redis'}://{self.place}/{self.db}"

    @property
    def place(self) -> str:
        """``host:port``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def endpoint(self, reactor: Any, timeout: float = 3.0) -> IStreamClientEndpoint:
        """A client endpoint that gives up on connecting after ``timeout`` seconds.

        Reads the certificates again at every call, so that the next connection uses rotated ones. Raises
        OSError or ValueError when they cannot be read.
        """
        if self.kind == "unix":
            return UNIXClientEndpoint(reactor, self.path, timeout=timeout)
        plain = HostEndpoint(reactor, self.host, self.port, timeout)
        return wrapClientTLS(self._tls_options(), plain) if self.kind == "tls" else plain

    def start(self, reactor: Any) -> None:
        """Nothing is to be watched."""

    def stop(self) -> None:
        """Nothing is watched."""

    def pass_over(self) -> None:
        """There is no other server to prefer."""

    def check_files(self) -> None:
        """Raise ValueError, with one sentence, when a file that the URL names cannot be used."""
        files = {"cafile": self.cafile, "certfile": self.certfile, "keyfile": self.keyfile}
        for option, path in files.items():
            try:
                if path:
                    open(path, "rb").close()
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise ValueError(f"its {option} {path} cannot be read: {why}") from None
        if self.keyfile and not self.certfile:
            raise ValueError("it has a keyfile and no certfile")
        try:
            if self.kind == "tls":
                self._tls_options()
        except Exception:  # OpenSSL raises many types, and their texts do not help
            own = (
                f"certfile {self.certfile} and keyfile {self.keyfile or self.certfile}"
                if self.certfile
                else ""
            )
            given = " or ".join(filter(None, (self.cafile and f"cafile {self.cafile}", own)))
            raise ValueError(
                f"{given or 'TLS'} cannot be used: they must be PEM files, and a key, without a passphrase, must be "
                "that of its certificate"
            ) from None

    def _tls_options(self) -> Any:
        from twisted.internet import ssl  # pyOpenSSL is needed for rediss:// only

        trust: Any = None
        if self.cafile:
            with open(self.cafile) as pem:
                parts = pem.read().split("-----END CERTIFICATE-----")[:-1]
            if not parts:
                raise ValueError(f"{self.cafile} contains no certificate")
            trust = ssl.trustRootFromCertificates(
                [ssl.Certificate.loadPEM((part + "-----END CERTIFICATE-----\n").encode()) for part in parts]
            )
        own: Any = None
        if self.certfile:
            with open(self.certfile) as cert, open(self.keyfile or self.certfile) as key:
                own = ssl.PrivateCertificate.loadPEM((key.read() + "\n" + cert.read()).encode())
        if self.verify:
            return ssl.optionsForClientTLS(self.host, trust, own)
        return _unverified(self.host, own.options() if own else ssl.CertificateOptions(verify=False))


def _unverified(host: str, options: Any) -> Any:
    """TLS that encrypts but accepts any certificate, for ``?verify=0``."""
    from OpenSSL import SSL
    from twisted.internet.abstract import isIPAddress, isIPv6Address
    from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
    from zope.interface import implementer

    @implementer(IOpenSSLClientConnectionCreator)
    class Unverified:
        def clientConnectionForTLS(self, protocol: Any) -> Any:
            connection = SSL.Connection(options.getContext(), None)
            if not (isIPAddress(host) or isIPv6Address(host)):
                connection.set_tlsext_host_name(host.encode("idna"))
            return connection

    return Unverified()


def parse_redis_url(url: str) -> RedisAddress:
    """``redis://[user:password@]host[:port][/db]``, ``rediss://…`` the same over TLS, ``unix:///path?db=1``.

    User, password and path are percent-decoded. Options after ``?``: ``db``, ``username``, ``password``;
    for ``rediss`` also ``verify=0``, ``cafile``, ``certfile``, ``keyfile``. Raises ValueError with one sentence
    that never shows the password.
    """
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:  # its text may quote part of a password that has a bare "/" or "@"
        raise ValueError(
            "the Redis URL has no valid host and port (write / @ : # ? in a password as %2F %40 %3A %23 %3F)"
        ) from None
    if parts.scheme not in _OPTIONS:
        raise ValueError("the Redis URL must begin with redis://, rediss:// or unix://")
    if parts.fragment:
        raise ValueError("the Redis URL contains a # (write it as %23 in a password)")
    options = _options(parts.scheme, parts.query)
    username = options.get("username", unquote(parts.username) if parts.username else None) or None
    password = options.get("password", unquote(parts.password) if parts.password is not None else None)
    if password == "" and username is None:
        password = None
    if username is not None and password is None:
        raise ValueError(
            "the Redis URL names a user but no password (redis://:password@host for the default user)"
        )
    path = unquote(parts.path)
    if parts.scheme == "unix":
        if parts.hostname or not path.startswith("/"):
            raise ValueError("a unix:// Redis URL needs an absolute path, as in unix:///run/redis/redis.sock")
        return RedisAddress("unix", "", 0, path, username, password, _db(options.get("db", "0")))
    return RedisAddress(
        "tls" if parts.scheme == "rediss" else "tcp",
        unquote(parts.hostname or "127.0.0.1"),
        6379 if port is None else port,
        "",
        username,
        password,
        _db(options.get("db") or path.strip("/") or "0"),
        verify=options.get("verify", "1").lower() not in {"0", "no", "false", "none"},
        cafile=options.get("cafile"),
        certfile=options.get("certfile"),
        keyfile=options.get("keyfile"),
    )


def _options(scheme: str, query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _OPTIONS[scheme]:
            names = ", ".join(sorted(_OPTIONS[scheme]))
            raise ValueError(
                f"the Redis URL has an option that {scheme}:// does not support (it supports {names})"
            )
        found[name] = value
    return found


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ValueError("the database in the Redis URL must be a whole number, as in redis://host:6379/1")
    return int(text)

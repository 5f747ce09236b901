"""The HTTP client of every command: one connection pool, one table from status to error, repeats that are safe.

A request that the server did not carry out (503 with ``"outcome":"not_applied"``) is repeated after its ``Retry-After``, for
``patience`` seconds in all; one whose outcome is unknown only if a repeat does no harm.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from registry import __version__
from registry.cli.errors import BadUsage, CliError, NotFound, Refused, Unreachable
from registry.cli.profiles import Target
from registry.cli.text import clean, cut

CONNECT_SECONDS = 5.0
# The longest error text that is shown of a server that is not the registry.
SHOWN = 200
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")

_MEANING: dict[int, type[CliError]] = {
    400: BadUsage,
    404: NotFound,
    500: CliError,
    501: CliError,
    502: Unreachable,
    503: Unreachable,
    504: Unreachable,
}


def _integer(digits: str) -> int | str:
    # Python refuses to read longer ones.
    return int(digits) if len(digits) < 4000 else digits


_decoder = json.JSONDecoder(parse_int=_integer, strict=False)


@dataclass(frozen=True)
class Answer:
    """An answer below 400. ``text`` is its body; ``json`` the same, decoded."""

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def json(self) -> Any:
        try:
            return _decoder.decode(self.text) if self.text else None
        except (ValueError, RecursionError):
            beginning = cut(" ".join(self.text.split()), SHOWN)
            raise CliError(f"The answer is not JSON; is a registry at this address? {beginning}") from None

    def member(self, name: str) -> str:
        """The text of one member of the body's object, exactly as it was sent; "" if it is not there."""
        return next((text for key, text in _members(self.text) if key == name), "")

    def rows(self, name: str) -> Iterator[str]:
        """The text of each element of the list ``name``, exactly as it was sent."""
        return _elements(self.member(name))


class _Bearer(httpx2.Auth):
    """Sets the token, if there is one."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx2.Request) -> Iterator[httpx2.Request]:  # type: ignore[override]
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


class Client:
    """Requests to one server. Used as a context manager, or closed by ``close``. May be used by several threads.

    ``timeout``: seconds without a byte of the answer, on top of a request's own ``wait``. ``patience``: seconds for repeats.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout: float = 30.0,
        patience: float = 10.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.target = target
        self.patience = patience
        self._timeout = timeout
        self._sleep = sleep
        unix = unix_path(target)
        self._http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=unix, trust_env=False) if unix else None, **settings_of(target)
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(self, *path: str | tuple[str, ...], **more: Any) -> Answer:
        return self.request("GET", *path, **more)

    def post(self, *path: str | tuple[str, ...], **more: Any) -> Answer:
        return self.request("POST", *path, **more)

    def request(
        self,
        method: str,
        *path: str | tuple[str, ...],
        query: Mapping[str, Any] | None = None,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        timeout: float | None = None,
        again: bool | None = None,
        patience: float | None = None,
    ) -> Answer:
        """One request to ``/api/`` and these segments, which are quoted here; see `api_path`.

        Options of ``query`` that are None are left out; True is 1. ``wait``: how long the server may keep the request.
        ``again``: whether it may be repeated although it may have been carried out; by default a GET, a PUT of a schedule,
        and what has an Idempotency-Key. Raises a `CliError` for every status of 400 and above, and if there is no answer.
        """
        url = api_path(*path)
        named = {key: value for key, value in (query or {}).items() if value is not None}
        params = "&".join(f"{quote(key)}={quote(_text(value), safe='')}" for key, value in named.items())
        sent = dict(headers or {})
        if again is None:
            again = method == "GET" or "Idempotency-Key" in sent
        data = body.encode() if isinstance(body, str) else body
        limit = self._timeout if timeout is None else timeout
        times = httpx2.Timeout(limit + wait, connect=min(CONNECT_SECONDS, limit))
        end = time.monotonic() + (self.patience if patience is None else patience)
        while True:
            try:
                response = self._http.request(
                    method,
                    f"{url}?{params}" if params else url,
                    content=data,
                    headers=sent,
                    timeout=times,
                )
            except (httpx2.TransportError, ssl.SSLError, OSError) as error:
                failure = unreachable(self.target, error)
                # A connection that was kept open may have been closed meanwhile: a new one is tried.
                stale = isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError | httpx2.WriteError)
                if not (again and stale and time.monotonic() < end):
                    raise failure from None
                self._sleep(min(0.2, max(0.0, end - time.monotonic())))
                continue
            text = response.content.decode("utf-8", "backslashreplace")
            if response.status_code < 300:
                return Answer(response.status_code, text, response.headers)
            pause = _pause(response.status_code, response.headers, text, again)
            if pause is None or time.monotonic() + pause > end:
                raise refusal(self.target, response.status_code, response.headers, text)
            self._sleep(pause)

    def pages(self, *path: str, key: str, query: Mapping[str, Any] | None = None) -> Iterator[Answer]:
        """Every page of a list, by its cursors. ``key`` names the list."""
        cursor: str | None = None
        while True:
            answer = self.get(*path, query={**(query or {}), "cursor": cursor})
            if not isinstance(answer.json, dict) or not isinstance(answer.json.get(key), list):
                raise CliError(
                    f"{self.target.url} answered something that is not the registry's list of {key}."
                )
            yield answer
            cursor = answer.json.get("cursor")
            if not cursor:
                return


def unreachable(target: Target, error: Exception) -> CliError:
    """What to say when no answer came."""
    url = target.url
    reason = _ERRNO.sub("", clean(str(error))) or type(error).__name__
    if isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol):
        return BadUsage(f"The request cannot be sent: {reason}")
    if isinstance(error, httpx2.ConnectTimeout):
        return Unreachable(f"{url} does not take a connection within {CONNECT_SECONDS:g} s.", sent=False)
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        hint = " Is the daemon running there?" if "refused" in reason or "No such file" in reason else ""
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            hint = " If the certificate is of an authority of your own, name that: --ca-file FILE"
        if "WRONG_VERSION_NUMBER" in reason:
            hint = " It does not speak TLS: does its address begin with http://?"
        return Unreachable(f"{url} cannot be reached: {reason.rstrip('.')}.{hint}", sent=False)
    if isinstance(error, httpx2.TimeoutException):
        return Unreachable(f"{url} did not answer in time; the request may have been carried out.")
    return Unreachable(
        f"The connection to {url} broke: {reason.rstrip('.')}. The request may have been carried out."
    )


def refusal(target: Target, status: int, headers: Mapping[str, str], text: str) -> CliError:
    """What to say about an answer of 300 and above."""
    kind = _MEANING.get(status, Refused if status < 500 else CliError)
    try:
        body = json.loads(text)
        sentence, code = str(body["error"]), str(body.get("code", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if 300 <= status < 400:
            where = cut(headers.get("location", "another address"), SHOWN)
            return Refused(f"{target.url} redirects to {where}; name that address yourself.")
        beginning = cut(" ".join(text.split()), SHOWN)
        if kind is NotFound:
            # A page that somebody else's server does not have is no empty queue.
            kind = CliError
        return kind(f"{target.url} answered {status}, and it does not seem to be the registry: {beginning}")
    if status == 401 and target.withheld:
        sentence = f"{sentence} {target.withheld}"
    elif status == 401 and not target.token:
        sentence = f"{sentence} Set REGISTRY_TOKEN, or name a profile that has a token."
    outcome = body.get("outcome")
    if outcome == "unknown":
        sentence = f"{sentence} It may have been carried out."
    error = kind(f"{sentence} ({code})" if code else sentence)
    error.status, error.code = status, code
    if isinstance(error, Unreachable):
        error.sent = outcome != "not_applied"
    return error


def unix_path(target: Target) -> str | None:
    """The path of the unix socket to connect to; None for TCP."""
    return target.url.removeprefix("unix://") if target.url.startswith("unix://") else None


def settings_of(target: Target) -> dict[str, Any]:
    """The arguments of an httpx2 client of this server, blocking or not, besides its transport."""
    base = "http://localhost" if unix_path(target) else target.url
    return {
        "base_url": base,
        "auth": _Bearer(target.token),
        "headers": {"User-Agent": f"registryctl/{__version__}"},
        "follow_redirects": False,
        # Proxies of the environment are for other hosts.
        "trust_env": not unix_path(target) and not is_loopback(base),
        "verify": _tls(target),
    }


def api_path(*path: str | tuple[str, ...]) -> str:
    """The path of a request: its segments quoted below /api, or the first one as it is if it begins with a slash.

    A tuple of names is one segment, with commas between them.
    """
    if isinstance(path[0], str) and path[0].startswith("/"):
        return path[0]
    segments = [segment if isinstance(segment, tuple) else (segment,) for segment in path]
    for name in (name for segment in segments for name in segment):
        # A client library would take these out of the path, and the request would be another one.
        if name in ("", ".", "..") or "/" in name:
            raise BadUsage(f"{name!r} is not a name: it is empty, . or .., or contains a slash.")
    try:
        return "/api/" + "/".join(",".join(quote(name, safe="") for name in names) for names in segments)
    except UnicodeEncodeError:
        raise BadUsage("A name must be UTF-8; this one is not.") from None


def is_loopback(url: str) -> bool:
    """Whether the address is this machine itself."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _tls(target: Target) -> ssl.SSLContext | bool:
    if not target.url.startswith("https:"):
        # The context with all trusted certificates takes longer to make than the request.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not target.ca_file:
        return True
    try:
        return ssl.create_default_context(cafile=os.path.expanduser(target.ca_file))
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "it contains no certificate"
        raise BadUsage(f"The file of certificates {target.ca_file} cannot be used: {reason}.") from None


def _pause(status: int, headers: Mapping[str, str], text: str, again: bool) -> float | None:
    """How long to wait before a repeat, s; None if there is to be none."""
    if status not in (502, 503, 504) or not (again or '"not_applied"' in text):
        return None
    try:
        return max(0.1, float(headers.get("retry-after", "1")))
    except ValueError:
        return 1.0


def _text(value: Any) -> str:
    return {True: "1", False: "0"}[value] if isinstance(value, bool) else str(value)


_SPACE = " \t\r\n"


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _members(text: str) -> Iterator[tuple[str, str]]:
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        return
    at = _skip(text, at + 1)
    while text[at : at + 1] == '"':
        key, at = _decoder.raw_decode(text, at)
        begin = _skip(text, _skip(text, at) + 1)
        _, at = _decoder.raw_decode(text, begin)
        yield key, text[begin:at]
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            return
        at = _skip(text, at + 1)


def _elements(text: str) -> Iterator[str]:
    at = _skip(text, 1) if text[:1] == "[" else len(text)
    while at < len(text) and text[at] != "]":
        begin = at
        _, at = _decoder.raw_decode(text, begin)
        yield text[begin:at]
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)

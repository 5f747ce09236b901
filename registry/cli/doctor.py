"""``doctor``: checks the way to the daemon step by step, and says what to do where one fails."""

from __future__ import annotations

import os
import platform
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import click

from registry import __version__
from registry.cli.client import is_loopback
from registry.cli.errors import FAILED, REFUSED, UNREACHABLE, CliError, Refused, Unreachable
from registry.cli.main import App, Command
from registry.cli.text import clean, duration

# A queue that nobody pushes to; a poll of it leaves nothing behind.
PROBE = "registryctl-doctor"
OK, WARN, BAD, SKIP = "ok", "warn", "bad", "skip"
# Differences of clocks below this are the network's, s.
CLOCK = 2.0
SOON_DAYS = 21


class Check:
    """One line: what was looked at, how it is (`OK` …), and what was found or is to be done."""

    def __init__(self, what: str, state: str, text: str, code: int = 0) -> None:
        self.what, self.state, self.text, self.code = what, state, text, code


@click.command(cls=Command)
@click.option(
    "--wait",
    type=click.FloatRange(0, 3600),
    default=55.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a poll must be able to wait; 0 leaves that out.",
)
@click.pass_obj
def doctor(app: App, wait: float) -> None:
    """Check the connection, the token, the proxy's time-outs, the clock and Redis: each line is ok or says what to do.

    A poll that waits for 55 seconds shows whether a proxy cuts it off, so this takes a minute: --wait 0 leaves it out.
    """
    code = 0
    for check in checks(app, wait):
        code = code or check.code
        if app.out.as_json:
            app.out.json({"check": check.what, "state": check.state, "text": check.text})
        else:
            colour = {OK: "green", WARN: "yellow", BAD: "red"}.get(check.state)
            # click leaves the colour out where stdout is no terminal; NO_COLOR it does not know.
            state = f"{check.state:<4}"
            shown = state if os.environ.get("NO_COLOR") else click.style(state, fg=colour)
            click.echo(f"{shown}  {check.what:<8}  {clean(check.text)}")
    raise click.exceptions.Exit(code)


def checks(app: App, wait: float) -> Iterator[Check]:
    """Every check in turn; after one that makes the others pointless there are no more."""
    target = app.target
    yield Check("address", OK, f"{target.url}, from {target.origin}")
    for step in (_dns, _tls):
        for check in step(app):
            yield check
            if check.state == BAD:
                return
    begin = time.time()
    try:
        health = app.client.get("/healthz", patience=0.0)
        took = time.time() - begin
        version = str(health.json["version"])
    except Unreachable as error:
        yield Check("answer", BAD, f"{error.format_message()} {_hint(app)}".rstrip(), UNREACHABLE)
        return
    except (CliError, ValueError, KeyError, TypeError) as error:
        text = error.format_message() if isinstance(error, CliError) else "it is not JSON"
        yield Check("answer", BAD, f"{target.url}/healthz is not a registry's: {text}", FAILED)
        return
    yield Check("answer", OK, f"within {took * 1000:.0f} ms")
    same = version.split(".")[:2] == __version__.split(".")[:2]
    versions = f"daemon {version}, registryctl {__version__}, Python {platform.python_version()}"
    yield Check(
        "versions", OK if same else WARN, versions + ("" if same else ": install the same release on both")
    )
    yield from _clock(health.headers.get("date"), begin, took)
    may_look = True
    for check in _token(app):
        may_look = may_look and check.state != BAD
        yield check
    yield from _redis(app)
    if wait and may_look:
        yield from _wait(app, wait)


def _hint(app: App) -> str:
    if app.target.url.startswith("unix:"):
        return "Does the socket belong to your user or group?"
    return "Does the daemon listen on that address (HOST, PORT), and does no firewall stand between?"


def _dns(app: App) -> Iterator[Check]:
    url = app.target.url
    if url.startswith("unix://"):
        path = url.removeprefix("unix://")
        if not os.path.exists(path):
            yield Check(
                "socket",
                BAD,
                f"{path} does not exist: is the daemon running, and is that its LISTEN?",
                UNREACHABLE,
            )
        elif not os.access(path, os.W_OK):
            yield Check(
                "socket",
                BAD,
                f"{path} is not yours to write: see UNIX sockets in the configuration.",
                UNREACHABLE,
            )
        else:
            yield Check("socket", OK, path)
        return
    host = urlsplit(url).hostname or ""
    begin = time.monotonic()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        yield Check("dns", BAD, f"{host} has no address ({error.strerror}): is the name right?", UNREACHABLE)
        return
    took = time.monotonic() - begin
    addresses = ", ".join(dict.fromkeys(str(one[4][0]) for one in found))
    slow = took > 1
    yield Check(
        "dns", WARN if slow else OK, f"{host} is {addresses}" + (f", after {duration(took)}" if slow else "")
    )


def _tls(app: App) -> Iterator[Check]:
    parts = urlsplit(app.target.url)
    if parts.scheme == "unix":
        return
    if parts.scheme == "http":
        if is_loopback(app.target.url):
            yield Check("tls", OK, "not needed: the connection stays on this machine")
        elif app.target.token:
            yield Check("tls", WARN, "none: whoever is on the way can read the token; use https")
        else:
            yield Check("tls", WARN, "none: whoever is on the way can read and change tasks; use https")
        return
    context = ssl.create_default_context(cafile=app.target.ca_file or None)
    address = parts.hostname or "", parts.port or 443
    try:
        with (
            socket.create_connection(address, 5) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as secure,
        ):
            certificate, protocol = secure.getpeercert() or {}, secure.version()
    except ssl.SSLCertVerificationError as error:
        hint = (
            "name its certificate authority with --ca-file"
            if "self" in error.verify_message or "local issuer" in error.verify_message
            else "renew or replace it"
        )
        yield Check(
            "tls", BAD, f"the certificate is not accepted ({error.verify_message}): {hint}", UNREACHABLE
        )
        return
    except OSError as error:
        yield Check(
            "tls", BAD, f"no TLS there ({error.strerror or error}): is it http, or another port?", UNREACHABLE
        )
        return
    with suppress(ValueError, KeyError, TypeError):
        days = (ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) / 86_400
        text = f"{protocol}, the certificate is valid for {days:.0f} days"
        yield Check(
            "tls", OK if days > SOON_DAYS else WARN, text + ("" if days > SOON_DAYS else ": renew it")
        )


def _clock(date: str | None, begin: float, took: float) -> Iterator[Check]:
    if not date:
        yield Check("clock", SKIP, "the server does not tell the time")
        return
    try:
        there = parsedate_to_datetime(date).timestamp()
    except ValueError:
        yield Check("clock", WARN, f"the server's Date is no time: {date}")
        return
    # A Date has whole seconds, cut off.
    off = there + 0.5 - (begin + took / 2)
    if abs(off) < CLOCK + took:
        yield Check("clock", OK, "the same as the server's")
    else:
        ahead = "ahead of" if off < 0 else "behind"
        yield Check(
            "clock", WARN, f"this machine is {duration(abs(off))} {ahead} the server: set up NTP on both"
        )


def _token(app: App) -> Iterator[Check]:
    """What the token lets in, found by requests that change nothing."""
    try:
        app.client.get("queues", query={"limit": 1}, patience=0.0)
    except Refused as error:
        if error.status == 401:
            yield Check("token", BAD, error.format_message(), REFUSED)
            return
        if error.status != 403:
            yield Check("token", BAD, error.format_message(), REFUSED)
            return
    except CliError as error:
        yield Check("token", SKIP, f"the rights cannot be seen now: {error.format_message()}")
        return
    rights = [right for right, method, path, query in _PROBES if _allowed(app, method, path, query)]
    if not app.target.token:
        yield Check(
            "token",
            OK if is_local(app) else WARN,
            "none, and none is needed"
            + ("" if is_local(app) else ": anybody who reaches it may do everything"),
        )
    else:
        yield Check(
            "token", OK, f"accepted; it may: {', '.join(rights) or 'only push or pop in some queues'}"
        )


# What needs a right and changes nothing.
_PROBES: tuple[tuple[str, str, tuple[str, ...], dict[str, Any]], ...] = (
    ("view", "GET", ("queues", PROBE), {}),
    ("operate", "POST", ("queues", PROBE, "retry"), {"dry_run": True}),
)


def _allowed(app: App, method: str, path: tuple[str, ...], query: dict[str, Any]) -> bool:
    try:
        app.client.request(method, *path, query=query, patience=0.0)
    except Refused as error:
        return error.status not in (401, 403)
    except CliError:
        return True
    return True


def is_local(app: App) -> bool:
    """Whether the daemon is reached without a network."""
    return app.target.url.startswith("unix://") or is_loopback(app.target.url)


def _redis(app: App) -> Iterator[Check]:
    try:
        ready: Any = app.client.get("/readyz", patience=0.0).json
    except CliError as error:
        yield Check("redis", BAD, error.format_message(), UNREACHABLE)
        return
    warnings = ready.get("warnings") or []
    for warning in warnings:
        yield Check("redis", WARN, str(warning))
    if not warnings:
        yield Check(
            "redis", OK, "ready; it keeps what it acknowledges, and there are no warnings about its memory"
        )


def _wait(app: App, wait: float) -> Iterator[Check]:
    """Poll a queue that is empty, as long as a worker would, and see who ends it."""
    begin = time.monotonic()
    try:
        answer = app.client.post(
            "popTask", PROBE, query={"wait": f"{wait:g}", "lease": "1"}, wait=wait, timeout=10.0, patience=0.0
        )
    except Refused as error:
        yield Check("wait", SKIP, f"this token may not pop from {PROBE}: {error.format_message()}")
        return
    except CliError as error:
        after = time.monotonic() - begin
        yield Check("wait", BAD, _cut_off(after, wait, error.format_message()), FAILED)
        return
    after = time.monotonic() - begin
    if answer.status == 200:
        lease = str(answer.json["lease"])
        app.client.post("releaseTask", PROBE, lease)
        yield Check("wait", SKIP, f"somebody pushes to {PROBE}")
    elif after + 1 >= wait:
        yield Check("wait", OK, f"a poll may wait for {duration(wait)}")
    else:
        text = f"a poll of {duration(wait)} was answered after {duration(after)}: that is MAX_WAIT; a longer wait is cut to it"
        yield Check("wait", OK, text)


def _cut_off(after: float, wait: float, why: str) -> str:
    return (
        f"a poll of {duration(wait)} was cut off after {duration(after)}: {why} Let the proxy's time-out be longer than the wait "
        f"(proxy_read_timeout, timeout server), or let workers poll with wait={max(1, int(after) - 2)}."
    )

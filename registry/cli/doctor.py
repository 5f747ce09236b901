"""``doctor``: checks the connection to the daemon step by step, and says what to do if a step fails."""

from __future__ import annotations

import os
import platform
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import click

from registry import __version__
from registry.cli.client import is_loopback
from registry.cli.errors import FAILED, REFUSED, UNREACHABLE, CliError, NotFound, Refused, Unreachable
from registry.cli.findings import line_of
from registry.cli.main import App, Command
from registry.cli.output import has_styles, is_terminal
from registry.cli.text import clean, duration, moment

# A queue that is not used for anything else; a poll of it leaves nothing behind.
PROBE = "registryctl-doctor"
OK, WARN, BAD, SKIP = "ok", "warn", "bad", "skip"
# Smaller differences between the clocks may be caused by the network, s.
CLOCK = 2.0
SOON_DAYS = 21


class Check:
    """One line: what was checked, the verdict (`OK` …), and what was found or what to do."""

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
            state = f"{check.state:<4}"
            shown = click.style(state, fg=colour) if has_styles(sys.stdout) else state
            click.echo(f"{shown}  {check.what:<8}  {clean(check.text)}")
    raise click.exceptions.Exit(code)


def checks(app: App, wait: float) -> Iterator[Check]:
    """All checks in turn, up to one whose failure makes the others pointless."""
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
    let_in = True
    for check in _token(app):
        let_in = let_in and check.state != BAD
        yield check
    yield from _redis(app)
    if let_in:
        yield from _findings(app)
    if wait and let_in:
        yield from _wait(app, wait)


def _hint(app: App) -> str:
    if app.target.url.startswith("unix:"):
        return "Does the socket belong to your user or group?"
    if app.target.url.startswith("http:"):
        return "Does the daemon listen on that address (HOST, PORT), without TLS, and does no firewall stand between?"
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
            yield Check("tls", WARN, "none: others on the network can read the token; use https")
        else:
            yield Check("tls", WARN, "none: others on the network can read and change tasks; use https")
        return
    context = ssl.create_default_context(cafile=os.path.expanduser(app.target.ca_file) or None)
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
    """What the token allows; it is kept in ``app.options`` for the checks behind this one."""
    try:
        allowed: Any = app.client.get("token", patience=0.0).json
        name, rights, expires = allowed["name"], list(map(str, allowed["rights"])), allowed["expires"]
    except NotFound:
        yield Check("token", SKIP, "this daemon does not know tokens: it is of an older release")
        return
    except Refused as error:
        yield Check("token", BAD, error.format_message(), REFUSED)
        return
    except (KeyError, TypeError, CliError) as error:
        text = error.format_message() if isinstance(error, CliError) else "the answer is not a registry's"
        yield Check("token", SKIP, f"the rights cannot be seen now: {text}")
        return
    app.options["rights"] = rights
    if name is None:
        local = is_local(app)
        text = "none is needed" + (
            ""
            if local
            else ": anyone who can reach it may do everything; create one: registryctl token create"
        )
        yield Check("token", OK if local else WARN, text)
        return
    end = "" if expires is None else f", until {moment(expires)}"
    with suppress(ValueError, TypeError):
        left = (datetime.fromisoformat(expires) - datetime.now(UTC)).total_seconds()
        if left < SOON_DAYS * 86_400:
            yield Check(
                "token",
                WARN,
                f"{name} expires in {duration(left)}: create another one, and revoke this one then",
            )
    yield Check("token", OK, f"{name} may {', '.join(rights)}{end}")


def is_local(app: App) -> bool:
    """Whether the daemon is reached without a network."""
    return app.target.url.startswith("unix://") or is_loopback(app.target.url)


def probe_of(rights: list[str]) -> str:
    """A queue that these rights allow to pop from, and that is surely empty; "" if there is none."""
    globs = [right.removeprefix("pop ") for right in rights if right.startswith("pop ")]
    if "admin" in rights:
        globs.insert(0, "*")
    open_ones = [glob for glob in globs if "*" in glob and not set(glob) & set("?[")]
    return open_ones[0].replace("*", PROBE, 1).replace("*", "") if open_ones else ""


def _redis(app: App) -> Iterator[Check]:
    try:
        ready: Any = app.client.get("/readyz", patience=0.0).json
    except CliError as error:
        yield Check("redis", BAD, error.format_message(), UNREACHABLE)
        return
    warnings = ready.get("warnings")
    if warnings is None:
        yield Check("redis", OK, "ready; a token with the right view would show how it keeps its data")
        return
    for warning in warnings:
        yield Check("redis", WARN, str(warning))
    if not warnings:
        yield Check(
            "redis", OK, "ready; it keeps what it acknowledges, and there are no warnings about its memory"
        )


def _findings(app: App) -> Iterator[Check]:
    """What the registry itself finds wrong."""
    try:
        report: Any = app.client.get("findings", patience=0.0).json
    except NotFound:
        yield Check("findings", SKIP, "this daemon looks for none: it is of an older release")
        return
    except Refused:
        yield Check("findings", SKIP, "a token with the right view would show what is wrong in the queues")
        return
    except CliError as error:
        yield Check("findings", WARN, error.format_message())
        return
    for row in report["findings"]:
        yield Check("findings", WARN, line_of(row))
    if not report["count"]:
        yield Check("findings", OK, str(report["headline"]))


def _wait(app: App, wait: float) -> Iterator[Check]:
    """Poll a queue that is empty, as long as a worker would, and see who ends it."""
    name = probe_of(app.options.get("rights", ["admin"]))
    if not name:
        yield Check(
            "wait",
            SKIP,
            "the token may not pop from a queue that is surely empty: run this with a worker's token",
        )
        return
    if not app.out.as_json and is_terminal(sys.stderr):
        click.echo(f"      a poll waits for {duration(wait)} …\r", err=True, nl=False)
    begin = time.monotonic()
    try:
        answer = app.client.post(
            "popTask", name, query={"wait": f"{wait:g}", "lease": "1"}, wait=wait, timeout=10.0, patience=0.0
        )
    except Refused as error:
        yield Check("wait", SKIP, f"a poll is refused: {error.format_message()}")
        return
    except CliError as error:
        after = time.monotonic() - begin
        yield Check("wait", BAD, _cut_off(after, wait, error.format_message()), FAILED)
        return
    after = time.monotonic() - begin
    if answer.status == 200:
        lease = str(answer.json["lease"])
        app.client.post("releaseTask", name, lease)
        yield Check("wait", SKIP, f"somebody pushes to {name}")
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

"""``token``: creates, lists and revokes tokens in the tokens file. No daemon has to run; running ones notice within a second."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from dotenv import dotenv_values

from registry.cli.errors import BadUsage, CliError, NotFound, Refused
from registry.cli.main import App, Group
from registry.model import tokens

# How long a daemon has to say when tokens were used last, s.
ANSWER_SECONDS = 2.0
# Seconds by the letter of a unit.
_UNITS = dict(zip("smhdwy", (1, 60, 3600, 86_400, 7 * 86_400, 365 * 86_400), strict=True))


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value:
        context.meta["file"] = value


def with_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option that names the tokens file, before and behind the name of the command."""
    text = "The tokens file (TOKENS_FILE, else tokens.json in DATA_DIR, as the daemon finds it)."
    return click.option("--file", metavar="FILE", help=text, callback=_keep, expose_value=False)(command)


def _file(context: click.Context) -> str:
    return str(context.meta.get("file") or tokens_file(os.environ))


@click.group(cls=Group)
@with_file
def token() -> None:
    """Create, list and revoke the tokens that let clients in.

    This works on the tokens file of this machine, as the user that runs the daemon (or root). Daemons notice within a second.
    """


def tokens_file(environ: Mapping[str, str]) -> str:
    """The tokens file of a daemon that is started with this environment in this folder, whose ``.env`` it reads."""
    kept = {name: value for name, value in _env_file(".env").items() if value}
    named = {**kept, **{name: value for name, value in environ.items() if value}}
    if "TOKENS_FILE" in named:
        return named["TOKENS_FILE"]
    return tokens.default_tokens_file(named.get("DATA_DIR") or tokens.default_data_dir(environ))


def _env_file(path: str) -> dict[str, str | None]:
    if not os.path.isfile(path):
        return {}
    try:
        return dotenv_values(path, interpolate=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        # Only the user of the daemon may read it.
        return {}


@contextmanager
def _told(file: str) -> Iterator[None]:
    """Errors of the tokens file, as those of a command."""
    try:
        yield
    except tokens.NoSuchToken as error:
        raise NotFound(f"{error} (in {file})") from None
    except tokens.TokenExists as error:
        raise Refused(str(error)) from None
    except tokens.BadToken as error:
        raise BadUsage(str(error)) from None
    except tokens.TokensError as error:
        raise CliError(str(error)) from None
    except OSError as error:
        raise CliError(f"The tokens file {file} cannot be changed: {error.strerror or error}.") from None


@token.command()
@click.argument("name")
@click.option(
    "--right",
    "rights",
    multiple=True,
    required=True,
    metavar="RIGHT",
    help="'push GLOB', 'pop GLOB', view, 'view --no-payloads', operate or admin; may be repeated.",
)
@click.option("--expires", metavar="WHEN", help="A time (2027-01-31T12:00:00Z) or a length (90d, 12h).")
@with_file
@click.pass_context
def create(context: click.Context, name: str, rights: tuple[str, ...], expires: str | None) -> None:
    """Create a token and print it, alone on the last line. It is shown this once, and kept nowhere."""
    app: App = context.obj
    file = _file(context)
    try:
        for right in rights:
            tokens.parse_right(right)
    except tokens.BadToken as error:
        raise BadUsage(str(error)) from None
    end = None if expires is None else moment_of(expires, datetime.now(UTC))
    known = os.path.isdir(os.path.dirname(os.path.abspath(file)))
    with _told(file):
        secret = tokens.create(file, name, rights, end)
    if app.out.as_json:
        app.out.json(
            {"name": name, "rights": rights, "expires": end and _time(end), "file": file, "token": secret}
        )
        return
    if not known:
        app.out.warn(
            f"No daemon has used {os.path.dirname(file)} so far; if yours uses another folder, name its file: --file"
        )
    app.out.note(f"The token {name} is in {file}. It is not shown again:")
    app.out.line(secret)


@token.command("list")
@with_file
@click.pass_context
def list_tokens(context: click.Context) -> None:
    """List the tokens: names, rights, expiry. The tokens themselves are not in the file.

    If a daemon that reads this file answers, and REGISTRY_TOKEN has the right to operate, also when each was used last.
    """
    app: App = context.obj
    file = _file(context)
    with _told(file):
        found = tokens.load(file, for_its_daemon=True)
    for warning in found.warnings:
        app.out.warn(warning)
    now = datetime.now(UTC)
    last_used = _last_used(app) if found.tokens else None
    rows = []
    for one in found.tokens:
        row: dict[str, Any] = {
            "name": one.name,
            "rights": list(one.rights),
            "created": one.created and _time(one.created),
            "expires": one.expires and _time(one.expires),
            "expired": one.has_expired(now),
        }
        if last_used is not None:
            # Another daemon may have another token of the same name.
            use = last_used.get(one.name, {})
            same = all(use.get(member) == row[member] for member in ("rights", "created", "expires"))
            row["last_used"] = use.get("last_used") if same else None
        rows.append(row)
    if app.out.as_json:
        for row in rows:
            app.out.json(row)
    elif rows:
        columns = ["name", "rights", "created", "expires"]
        app.out.table(
            columns if last_used is None else [*columns, "last used"], [_cells(row) for row in rows]
        )
    else:
        app.out.note(f"There are no tokens in {file}.")


def _last_used(app: App) -> dict[str, Any] | None:
    """What a daemon says about its tokens, by name; None if none answers, or it does not tell this caller."""
    try:
        with app.new_client(timeout=ANSWER_SECONDS, patience=0.0) as client:
            pages = list(client.pages("tokens", key="tokens"))
            return {row["name"]: row for page in pages for row in page.json["tokens"]}
    except CliError:
        return None


def _cells(row: dict[str, Any]) -> list[str]:
    expires = "never" if row["expires"] is None else row["expires"] + (" (over)" if row["expired"] else "")
    cells = [row["name"], ", ".join(row["rights"]), row["created"] or "", expires]
    return [*cells, row["last_used"] or "never"] if "last_used" in row else cells


@token.command()
@click.argument("name")
@with_file
@click.pass_context
def revoke(context: click.Context, name: str) -> None:
    """Take a token out of the file; daemons refuse it within a second."""
    app: App = context.obj
    file = _file(context)
    with _told(file):
        gone = tokens.revoke(file, name)
    if app.out.as_json:
        app.out.json({"name": gone.name, "revoked": True})
    else:
        app.out.line(f"The token {gone.name} is revoked.")
    if not tokens.load(file, for_its_daemon=True).tokens:
        app.out.warn(
            f"{file} holds no token now: after its next start, a daemon lets everybody in who reaches its loopback listener."
        )


def moment_of(text: str, now: datetime) -> datetime:
    """When a token expires: a time with its zone, or a length from now on."""
    length = re.fullmatch(r"(\d{1,6})([smhdwy])", text)
    if length:
        try:
            return (now + timedelta(seconds=int(length[1]) * _UNITS[length[2]])).replace(microsecond=0)
        except OverflowError:
            raise BadUsage(f"--expires: {text} from now is after the year 9999.") from None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise BadUsage(
            f"--expires is a time such as 2027-01-31T12:00:00Z or a length such as 90d, not {text!r}."
        ) from None
    if moment.tzinfo is None:
        raise BadUsage("--expires: a time has a time zone, such as the Z in 2027-01-31T12:00:00Z.")
    return moment


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

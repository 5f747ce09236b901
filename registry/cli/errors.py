"""What ends a command early: one sentence for stderr, and the exit code."""

from __future__ import annotations

from typing import IO, Any

import click

from registry.cli.text import clean

PROGRAM = "registryctl"
FAILED, USAGE, NOT_FOUND, REFUSED, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 5, 130


class CliError(click.ClickException):
    """Something failed. The sentence is shown after ``registryctl: ``; it may quote what a server sent."""

    exit_code = FAILED
    # Of the answer, if there was one: its HTTP status and its error code.
    status = 0
    code = ""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"{PROGRAM}: {clean(self.format_message())}", file=file, err=file is None)


class BadUsage(CliError):
    """An option, an argument or the configuration is wrong, or the server says so (400)."""

    exit_code = USAGE


class NotFound(CliError):
    """There is no such task, schedule, audit entry or path (404)."""

    exit_code = NOT_FOUND


class Refused(CliError):
    """The server refuses the request: 401, 403, 409, 413, 421, 422, 429 …"""

    exit_code = REFUSED


class Unreachable(CliError):
    """The server does not answer, or cannot work now (502, 503, 504).

    ``sent``: whether the request, or a part of it, may have been carried out.
    """

    exit_code = UNREACHABLE

    def __init__(self, message: str, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent

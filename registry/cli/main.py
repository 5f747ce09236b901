"""``registryctl``: the group of all commands, and how their errors are reported.

A command is one row of `COMMANDS`, and a function in the module that the row names: only that module is imported to run it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from io import TextIOWrapper
from typing import Any, NoReturn

import click

from registry import __version__
from registry.cli.client import Client
from registry.cli.errors import FAILED, INTERRUPTED, PROGRAM, USAGE
from registry.cli.output import Output
from registry.cli.profiles import Target, find_target
from registry.cli.text import clean

# The name of each command, and "module:function" in registry.cli.
COMMANDS = {
    "push": "push:push",
    "pushmany": "pushmany:pushmany",
    "pop": "push:pop",
    "ack": "push:ack",
    "fail": "push:fail",
    "release": "push:release",
    "extend": "push:extend",
    "work": "work:work",
    "wait": "wait:wait",
    "queues": "queues:queues",
    "queue": "queues:queue",
    "tasks": "tasks:tasks",
    "task": "tasks:task",
    "dead": "overview:dead",
    "workers": "overview:workers",
    "worker": "overview:worker",
    "schedule": "schedules:schedule",
    "audit": "audit:audit",
    "undo": "audit:undo",
    "findings": "findings:findings",
    "top": "top:top",
    "export": "transfer:export",
    "import": "transfer:import_",
    "token": "tokens:token",
    "doctor": "doctor:doctor",
    "demo": "demo:demo",
    "completion": "completion:completion",
}


class App:
    """What every command receives: the common options, the client, and the output."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    @cached_property
    def target(self) -> Target:
        """The server that the options, the environment and the profiles name."""
        named = ("url", "profile", "token_file", "ca_file")
        return find_target(os.environ, **{name: self.options.get(name) for name in named})

    @cached_property
    def client(self) -> Client:
        return self.new_client()

    def new_client(self, **more: Any) -> Client:
        """Another client of the same server, with other settings; see `Client`."""
        settings = {
            "timeout": self.options.get("timeout", 30.0),
            "patience": self.options.get("retry_for", 10.0),
        }
        return Client(self.target, **{**settings, **more})

    @property
    def out(self) -> Output:
        return Output(as_json=bool(self.options.get("json")))


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Keep an option that all commands have, wherever it was written; the innermost one wins."""
    if value is not None and value is not False:
        context.ensure_object(App).options[str(parameter.name)] = value
    return value


def _common(hidden: bool) -> list[click.Option]:
    """The options that may stand before or behind the name of every command."""
    more: dict[str, Any] = {"callback": _keep, "expose_value": False}
    return [
        click.Option(
            ["--json", "json"], is_flag=True, help="Print JSON; lists as one object a line.", **more
        ),
        click.Option(
            ["--url"],
            metavar="URL",
            help="Address of the daemon: http://…, https://… or unix:///path.",
            hidden=hidden,
            **more,
        ),
        click.Option(
            ["--profile"], metavar="NAME", help="Profile of the configuration file.", hidden=hidden, **more
        ),
        click.Option(
            ["--token-file"], metavar="FILE", help="File that contains the token.", hidden=hidden, **more
        ),
        click.Option(
            ["--ca-file"],
            metavar="FILE",
            help="File of certificates to trust, for a server of your own.",
            hidden=hidden,
            **more,
        ),
        click.Option(
            ["--timeout"],
            type=click.FloatRange(0.1, 86_400),
            metavar="SECONDS",
            help="How long to wait for an answer (30).",
            hidden=hidden,
            **more,
        ),
        click.Option(
            ["--retry-for"],
            type=click.FloatRange(0, 86_400),
            metavar="SECONDS",
            help="How long to repeat what a busy server did not carry out (10).",
            hidden=hidden,
            **more,
        ),
    ]


class Command(click.Command):
    """A command of `registryctl`: has the common options, and its values may be negative numbers or other dashes after --."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        # A command may have an option of its own with the name of a common one.
        own = {name for option in self.params for name in option.opts}
        self.params.extend(option for option in _common(hidden=True) if not own.intersection(option.opts))


class Group(click.Group):
    """A command with commands of its own."""

    command_class = Command
    group_class = type

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.params.extend(_common(hidden=True))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let options of this command stand behind its arguments, too: ``queue NAME --json``, ``queue NAME --json purge``.

        click expects them in front, because what follows are the words of the inner command.
        """
        known = {
            name: one for one in self.get_params(ctx) if isinstance(one, click.Option) for name in one.opts
        }
        missing = sum(isinstance(one, click.Argument) for one in self.params)
        options, words, left = list[str](), list[str](), list(args)
        while left:
            name, sign, _ = left[0].partition("=")
            if name in known:
                options.append(left.pop(0))
                if not (sign or known[name].is_flag or name in ctx.help_option_names) and left:
                    options.append(left.pop(0))
            elif missing and not left[0].startswith("-"):
                words.append(left.pop(0))
                missing -= 1
            else:
                break
        return super().parse_args(ctx, [*options, *words, *left])


class Main(Group):
    """`registryctl` itself: imports a command when it is called, and turns every error into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = COMMANDS.get(cmd_name)
        if where is None:
            return None
        module, _, name = where.partition(":")
        found: click.Command = getattr(importlib.import_module(f"registry.cli.{module}"), name)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of the output has gone, as in "registryctl tasks q | head".
            _close_stdout()
            ctx.exit(0)
        return result

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **more: Any
    ) -> NoReturn:
        code = FAILED
        try:
            more["standalone_mode"] = False
            ended = super().main(args, prog_name or PROGRAM, **more)
            code = ended if isinstance(ended, int) else 0
        except click.exceptions.NoArgsIsHelpError as error:
            code = USAGE
            click.echo(error.format_message(), err=True)
        except click.UsageError as error:
            code = USAGE
            where = error.ctx.command_path if error.ctx is not None else PROGRAM
            sentence = clean(error.format_message()).rstrip(".")
            click.echo(f"{PROGRAM}: {sentence}. Try: {where} --help", err=True)
        except click.ClickException as error:
            code = error.exit_code
            error.show()
        except (click.Abort, KeyboardInterrupt):
            code = INTERRUPTED
        except OSError as error:
            click.echo(f"{PROGRAM}: {clean(error)}", err=True)
        except Exception as error:
            if os.environ.get("REGISTRYCTL_TRACEBACK"):
                raise
            text = clean(f"{type(error).__name__}: {error}")
            click.echo(
                f"{PROGRAM}: A bug, or a daemon of another version: {text} (REGISTRYCTL_TRACEBACK=1 shows where)",
                err=True,
            )
        sys.exit(code)


def _close_stdout() -> None:
    """Let nothing be written to a closed pipe while the interpreter ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass


@click.group(PROGRAM, cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name=PROGRAM)
@click.pass_context
def cli(context: click.Context) -> None:
    """Push, pop, inspect and manage the tasks of a registry."""
    context.ensure_object(App)


for _option in cli.params:
    if isinstance(_option, click.Option):
        _option.hidden = False


def run() -> NoReturn:
    """Run the command line of this process."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It was closed. In this order each gets its own number back, which no socket or pipe must have.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that cannot show a character gets its number.
            stream.reconfigure(errors="backslashreplace")
    cli.main()

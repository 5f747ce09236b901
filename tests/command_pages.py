"""The reference of ``registryctl``, made from its commands: the end of docs/command-line.md, and man/registryctl.1.

``python -m tests.command_pages`` writes both anew after a change of a command; tests/test_ctl_pages.py compares.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from registry import __version__
from registry.cli.main import cli
from tests.live import ROOT

PAGE = ROOT / "docs" / "command-line.md"
MAN = ROOT / "man" / "registryctl.1"
HEADING = "## All commands\n"
EXIT_CODES = (
    ("0", "done"),
    ("1", "failed: the task died, nobody confirmed, an answer made no sense; `findings`: something is wrong"),
    ("2", "wrong usage or configuration: an option, an argument, a name, a payload that is not JSON"),
    ("3", "not found: no such task, schedule or audit entry; nothing to pop"),
    ("4", "refused: no or the wrong token, a lost lease, a full queue"),
    ("5", "unreachable: nobody answers, or the daemon cannot work now"),
    ("124", "`wait --timeout`: the task has not ended in time"),
    ("130", "ended by Ctrl-C"),
)
ENVIRONMENT = (
    ("REGISTRY_URL", "Address of the daemon."),
    ("REGISTRY_TOKEN", "Token."),
    ("REGISTRY_PROFILE", "Profile of the configuration file."),
    ("REGISTRY_CA_FILE", "File of certificates to trust."),
    ("NO_COLOR", "If it is set, there are no colours."),
    ("REGISTRYCTL_TRACEBACK", "If it is set, an error that should not happen shows where it did."),
)


def contexts(
    command: click.Command, parent: click.Context | None = None, name: str = "registryctl"
) -> Iterator[click.Context]:
    """Every command in the order of the help, those of a group behind it."""
    context = click.Context(command, info_name=name, parent=parent, help_option_names=["-h", "--help"])
    yield context
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from contexts(found, context, inner)


def usage(context: click.Context) -> str:
    """How it is called."""
    return " ".join([context.command_path, *context.command.collect_usage_pieces(context)])


def paragraphs(context: click.Context) -> Iterator[tuple[str, bool]]:
    """The paragraphs of a command's help, and whether their lines stay as they are."""
    for text in inspect.cleandoc(context.command.help or "").split("\n\n"):
        fixed = text.startswith("\b\n")
        yield (text.removeprefix("\b\n") if fixed else " ".join(text.split())), fixed


def options(context: click.Context) -> Iterator[tuple[str, str]]:
    """The options of a command but those that all have, with their help."""
    common = {one.name for one in cli.params} if context.parent is not None else {"version"}
    for parameter in context.command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None and parameter.name not in common:
            names, text = record
            text = re.sub(r"\s*\[([^\]]*<=?x[^\]]*|x[<>]=?[^\]]*)\]", "", text)
            yield names, re.sub(r"\s*\[(default: [^;\]]*|required)[^\]]*\]", r" (\1)", text).strip()


def _cell(text: str) -> str:
    return re.sub(r"([|*<>_])", r"\\\1", text)


def reference() -> str:
    """The end of the page."""
    lines = [HEADING]
    for context in contexts(cli):
        if context.parent is None:
            lines += ["These options may stand before and behind the name of every command:", ""]
        else:
            lines += [
                f"### {' '.join(re.sub('[^a-z -]', '', context.command_path).split()[1:])}",
                "",
                f"    {usage(context)}",
                "",
            ]
            for text, fixed in paragraphs(context):
                lines += [re.sub("^", "    ", text, flags=re.MULTILINE) if fixed else text, ""]
        rows = [
            f"| `{names.replace('|', chr(92) + '|')}` | {_cell(help_text)} |"
            for names, help_text in options(context)
        ]
        if rows:
            lines += ["| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def page() -> str:
    """The whole page, with its end replaced."""
    return PAGE.read_text("utf-8").partition(HEADING)[0] + reference()


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("…", "...")
    return re.sub(r"(?m)^\.", r"\\&.", text)


def _terms(rows: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Iterator[str]:
    for term, text in rows:
        yield from (".TP", f"\\fB{_roff(term)}\\fR", _roff(text))


def man() -> str:
    """The man page."""
    lines = [
        '.\\" Made from the commands: python -m tests.command_pages',
        f'.TH REGISTRYCTL 1 "" "registry {__version__}" "User Commands"',
        ".SH NAME",
        "registryctl \\- push, pop, inspect and manage the tasks of a registry",
        ".SH SYNOPSIS",
        f"\\fB{_roff('registryctl')}\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]",
        ".SH DESCRIPTION",
        "A client of the HTTP API of the registry, a task queue. It prints tables for people, and JSON for scripts.",
        _roff(
            'A payload is a JSON value, so it has to be quoted for the shell: registryctl push mail \'{"to":"a@example.org"}\''
        ),
        ".SH OPTIONS",
        "They may stand before and behind the name of every command.",
    ]
    for context in contexts(cli):
        if context.parent is not None:
            lines += [".SS " + _roff(usage(context))]
            for number, (text, fixed) in enumerate(paragraphs(context)):
                lines += [".PP"] * bool(number) + ([".nf", _roff(text), ".fi"] if fixed else [_roff(text)])
        lines += _terms(options(context))
        if context.parent is None:
            lines += [".SH COMMANDS"]
    lines += [".SH ENVIRONMENT", *_terms(ENVIRONMENT)]
    lines += [
        ".SH FILES",
        *_terms((("~/.config/registry/config.toml", "Profiles: addresses and tokens. Mode 0600."),)),
    ]
    lines += [".SH EXIT STATUS", *_terms(EXIT_CODES)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    MAN.parent.mkdir(exist_ok=True)
    MAN.write_text(man(), "utf-8")

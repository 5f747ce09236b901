"""The reference of ``registryctl``: the page and the man page are those of the commands, and the man page is well formed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from registry.cli.main import cli
from tests import command_pages

AGAIN = "write them anew: python -m tests.command_pages"


def test_the_pages_are_those_of_the_commands() -> None:
    assert command_pages.PAGE.read_text("utf-8") == command_pages.page(), AGAIN
    assert command_pages.MAN.read_text("utf-8") == command_pages.man(), AGAIN


def test_the_page_has_every_exit_code_and_variable() -> None:
    text = command_pages.PAGE.read_text("utf-8")
    for name, meaning in command_pages.EXIT_CODES:
        assert f"| {name} | {meaning} |" in text
    for name, meaning in command_pages.ENVIRONMENT:
        assert f"| `{name}` | {meaning} |" in text


def test_every_option_and_argument_is_explained() -> None:
    for context in command_pages.contexts(cli):
        assert next(command_pages.paragraphs(context))[0].endswith("."), context.command_path
        for parameter in context.command.get_params(context):
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", ""), (
                    context.command_path,
                    parameter,
                )


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_man_page_is_well_formed() -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", command_pages.MAN], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    text = re.sub(".\b|\x1b\\[[0-9;]*m", "", done.stdout)
    assert (
        "EXIT STATUS" in text and "registryctl queue NAME purge" in text and "--idempotency-key KEY" in text
    )

"""``completion``: the script that makes a shell complete commands, options and names of queues."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from registry.cli.errors import PROGRAM
from registry.cli.main import Command, cli

# What click looks for in the environment when a shell asks for completions.
VARIABLE = "_REGISTRYCTL_COMPLETE"


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    In ~/.bashrc:  eval "$(registryctl completion bash)"
    In ~/.zshrc, after compinit:  eval "$(registryctl completion zsh)"
    For fish, once:  registryctl completion fish \\
                       > ~/.config/fish/completions/registryctl.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # click asks the bash of this machine for its version first; the script is the same for all that it supports.
    script = kind(cli, {}, PROGRAM, VARIABLE)
    click.echo(ShellComplete.source(script))

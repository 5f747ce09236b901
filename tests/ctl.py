"""Running ``registryctl``: in this process with click's runner, or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from click.testing import CliRunner, Result

from registry.cli.main import cli
from tests.live import ROOT, Daemon, bare_environment

COMMAND = (sys.executable, "-m", "registry.cli")


class Ctl:
    """`registryctl` against one daemon, with a home folder of its own; nothing of this process's settings reaches it."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        self.home = home

    @property
    def environ(self) -> dict[str, str]:
        url = {"REGISTRY_URL": self.url} if self.url else {}
        return {**bare_environment(self.home), **url}

    def run(self, *arguments: str, stdin: str | bytes = "", env: Mapping[str, str] | None = None) -> Result:
        """Run a command here, and return its result, whatever that is."""
        with patch.dict(os.environ, {**self.environ, **(env or {})}, clear=True):
            return CliRunner().invoke(cli, list(arguments), input=stdin)

    def ok(self, *arguments: str, stdin: str | bytes = "") -> str:
        """What a command that must succeed prints on stdout."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.stdout

    def json(self, *arguments: str, stdin: str | bytes = "") -> Any:
        """The one object that a command with ``--json`` prints."""
        return json.loads(self.ok("--json", *arguments, stdin=stdin))

    def rows(self, *arguments: str) -> list[Any]:
        """The objects that a command with ``--json`` prints, one a line."""
        return [json.loads(line) for line in self.ok("--json", *arguments).splitlines()]

    def fails(self, code: int, *arguments: str, stdin: str | bytes = "") -> str:
        """The one line on stderr of a command that must end with this exit code."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == code, (arguments, result.exit_code, result.output, result.exception)
        assert result.stderr.startswith("registryctl: ") and result.stderr.count("\n") == 1, result.stderr
        return result.stderr

    @contextmanager
    def process(self, *arguments: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
        """The command as a process of its own, ended when this is left."""
        env = {**self.environ, **more.pop("env", {})}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        with subprocess.Popen([*COMMAND, *arguments], text=True, env=env, cwd=ROOT, **pipes) as one:
            try:
                yield one
            finally:
                one.kill()


def ctl_of(daemon: Daemon, home: Path) -> Ctl:
    return Ctl(daemon.url, home)

"""docs/any-program.md: its commands work as printed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ctl import Ctl, ctl_of
from tests.live import ROOT, Daemon
from tests.talk import counts, pushed, task, tasks
from tests.test_docs import part

PAGE = (ROOT / "docs" / "any-program.md").read_text("utf-8")


@pytest.fixture
def ctl(served: Daemon, tmp_path: Path) -> Ctl:
    return ctl_of(served, tmp_path)


def typed(ctl: Ctl, script: str) -> str:
    """What a shell prints in which `registryctl` is this checkout's."""
    program = f'registryctl() {{ "{sys.executable}" -m registry.cli "$@"; }}\n'
    run = ["bash", "-euc", program + script]
    done = subprocess.run(run, env=ctl.environ, capture_output=True, text=True, timeout=50, cwd=ctl.home)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(heading: str) -> str:
    return "\n".join(
        line[4:] for line in part(PAGE, heading).splitlines() if line.startswith("    registryctl ")
    )


def test_the_first_steps(ctl: Ctl, served: Daemon) -> None:
    assert "HELLO" in typed(ctl, commands("Try it")) and counts(served, "shout") == {"done": 2}
    assert {row["result"] for row in tasks(served, "shout", "state=done")} == {"HELLO", "WORLD"}


def test_progress_is_reported_as_shown(ctl: Ctl, served: Daemon) -> None:
    one = pushed(served, "films")
    typed(
        ctl, commands("Report progress").replace("sleep 5", "sleep 0.2").replace("films ", "films --once ", 1)
    )
    row = task(served, "films", one)
    assert (row["state"], row["progress"], row["message"]) == ("done", 0.9, "reading")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_one(tmp_path: Path) -> None:
    [unit] = re.findall(r"^```ini\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    path = tmp_path / "thumbnails.service"
    path.write_text(unit.replace("/usr/local/bin/registryctl", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert "thumbnails" not in done.stderr, done.stderr

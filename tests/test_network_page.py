"""docs/network.md: its commands are typed in order, with another port and with the name localhost."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT, bare_environment, free_port, processes_in, short_folder, wait_until
from tests.test_docs import PAGES

PAGE = ROOT / "docs" / "network.md"
END = "## Make it permanent"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("openssl", "curl", "bash"))), reason="needs openssl, curl and bash"
)


def blocks() -> list[str]:
    """The indented blocks of the page up to the settings, in order."""
    text = PAGE.read_text("utf-8").partition(END)[0]
    return [
        block.replace("\n    ", "\n").strip() for block in re.findall(r"(?:^    .+\n)+", text, re.MULTILINE)
    ]


def script(port: int) -> tuple[str, list[str]]:
    """The commands as one script, and the lines that they must print."""
    typed, told = ["set -e", 'curl() { command curl -sS -m 20 "$@"; echo; }'], []
    for block in blocks():
        for line in block.splitlines():
            if line.startswith("{"):
                told.append(line)
                continue
            line = line.replace("name=registry.example", "name=localhost").replace("3443", str(port))
            # The programs of these tests stand in for those of the page's .venv.
            line = line.replace("$PWD/.venv/bin", str(Path(sys.executable).parent))
            line = line.replace("-- cat", "-- tee done.json")
            typed.append(line)
            if line.startswith("twistd"):
                typed += ["until grep -q 'listening on' registry.log; do sleep 0.05; done", "daemon=$!"]
    return "\n".join([*typed, "kill $daemon", "wait $daemon || true", "cat registry.log >&2"]), told


def test_the_page_can_be_typed() -> None:
    folder, port = short_folder(), free_port()
    commands, told = script(port)
    assert "registryctl token revoke worker" in commands and len(told) == 2
    try:
        said = subprocess.run(
            ["bash", "-c", commands],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=folder,
            env=bare_environment(folder),
        )
        assert said.returncode == 0, said.stdout + said.stderr
        for line in told:
            assert line in said.stdout, said.stdout
        assert (folder / "done.json").read_text() == '{"zone":"example.org"}'
        assert "Traceback" not in said.stderr and "registry has stopped" in said.stderr
        # What it wrote is its owner's alone, and no token is in the log.
        for path in ("producer.token", "worker.token", "producer.header", "key.pem"):
            assert (folder / path).stat().st_mode & 0o077 == 0, path
        for path in ("producer.token", "worker.token"):
            secret = (folder / path).read_text().strip()
            assert re.fullmatch(r"rgy_[A-Za-z0-9_-]{43}", secret)
            assert secret not in said.stderr
        wait_until(lambda: not list(processes_in(folder)), what="the end of the daemon and its Redis")
    finally:
        for pid in processes_in(folder):
            subprocess.run(["kill", "-9", str(pid)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def test_it_is_linked_from_where_people_begin() -> None:
    assert PAGE in PAGES
    for page in ("README.md", "docs/configuration.md", "docs/tokens.md"):
        assert "network.md" in (ROOT / page).read_text("utf-8"), page

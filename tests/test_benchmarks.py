"""The benchmarks run without errors. Their measurements are not checked: no test depends on time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py"))


def run(script: str, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
        env=env,
    )


def test_each_benchmark_is_in_their_readme() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    assert SCRIPTS
    for script in SCRIPTS:
        assert f"python benchmarks/{script}" in readme


@pytest.mark.parametrize("script", SCRIPTS)
def test_starts_and_tells_its_options(script: str) -> None:
    told = run(script, "--help")
    assert told.returncode == 0, told.stderr
    assert "usage:" in told.stdout
    assert "--quick" in told.stdout


@pytest.mark.skipif(
    not (shutil.which("valkey-server") or shutil.which("redis-server")), reason="no redis-server on PATH"
)
def test_goes_on_without_its_peers_and_says_so(tmp_path: Path) -> None:
    # A PATH with nothing on it but a Redis: no webdis, no node, no wrk.
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            (tmp_path / name).symlink_to(found)
    rows = tmp_path / "rows"
    env = {"PATH": str(tmp_path), "BENCHMARK_JSON": str(rows), "HOME": str(tmp_path)}
    told = run("short_queues.py", "--quick", env=env)
    assert told.returncode == 0, told.stderr
    assert "webdis is not installed" in told.stdout
    found_rows = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["work"] for row in found_rows] == ["one short-lived queue a task, against one queue"]
    assert found_rows[0]["measured"] > 0

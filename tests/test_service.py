"""The service, its installation, and the scripts that run the daemon without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.live import ROOT, bare_environment, free_port, wait_until

EXPOSURE = 20  # tenths: an exposure of 2.0 by systemd's own count


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def verify(folder: Path, unit: str) -> str:
    """What systemd complains about; it exits with 0 also when it does. Its programs are taken to exist."""
    for name in ("registry.service", "registry.socket"):
        text = unit if name == "registry.service" else (ROOT / name).read_text("utf-8")
        (folder / name).write_text(text.replace("/opt/registry/bin/twistd", sys.executable), "utf-8")
    command = ["systemd-analyze", "verify", *(f"{folder}/registry.{kind}" for kind in ("service", "socket"))]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@needs("systemd-analyze")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    unit = (ROOT / "registry.service").read_text("utf-8")
    assert verify(tmp_path, unit) == ""
    # The question is one that can be answered with no:
    assert "Unknown key" in verify(tmp_path, unit.replace("WatchdogSec=", "WatchdogSeconds="))


@needs("systemd-analyze")
def test_the_service_is_hardened() -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}"]
    judged = subprocess.run(
        [*command, ROOT / "registry.service"], capture_output=True, text=True, check=False
    )
    assert judged.returncode == 0, judged.stdout[-500:] + judged.stderr


def install(root: Path, *options: str) -> str:
    env = {**os.environ, "ROOT": str(root), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", ROOT / "bin" / "install-service.sh", *options],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs("useradd")
@pytest.mark.skipif(os.geteuid() != 0, reason="creating a user needs root, also below another root folder")
@pytest.mark.skipif(
    not os.environ.get("REGISTRY_TEST_NETWORK"), reason="set REGISTRY_TEST_NETWORK=1: installs"
)
def test_install_twice_and_undo(short_dir: Path) -> None:
    settings = short_dir / "etc" / "registry" / "registry.env"
    units = short_dir / "etc" / "systemd" / "system"
    app = short_dir / "opt" / "registry"

    install(short_dir)
    assert (settings.stat().st_mode & 0o777) == 0o600
    assert (units / "registry.service").exists()
    assert not (units / "registry.socket").exists()
    assert list(app.glob("lib/*/site-packages/twisted/plugins/dropin.cache"))
    assert "registry" in subprocess.check_output([app / "bin" / "twistd", "--help"], text=True)
    command = short_dir / "usr" / "local" / "bin" / "registryctl"
    manual = short_dir / "usr" / "local" / "share" / "man" / "man1" / "registryctl.1"
    assert "registryctl" in subprocess.check_output([command, "--version"], text=True)
    assert manual.exists()
    users = (short_dir / "etc" / "passwd").read_text("utf-8")
    assert [line.split(":")[0] for line in users.splitlines()] == ["registry"]

    settings.write_text("PORT=3001\n", "utf-8")
    data = short_dir / "var" / "lib" / "registry"
    data.mkdir(parents=True)
    install(short_dir, "--socket", "--no-start")
    assert settings.read_text("utf-8") == "PORT=3001\n"
    assert (units / "registry.socket").exists()
    assert (short_dir / "etc" / "passwd").read_text("utf-8") == users

    install(short_dir, "--uninstall")
    assert not app.exists() and not command.is_symlink() and not manual.exists()
    assert not list(units.rglob("registry*"))
    assert settings.exists() and data.exists()
    install(short_dir, "--uninstall", "--purge")
    assert not settings.exists() and not data.exists()
    assert "registry" not in (short_dir / "etc" / "passwd").read_text("utf-8")
    install(short_dir, "--uninstall", "--purge")  # nothing left to do, and no reason to complain


def test_install_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    command = ["bash", f"{ROOT}/bin/install-service.sh", "--frobnicate"]
    done = subprocess.run(
        command, env={**os.environ, "ROOT": str(tmp_path)}, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"--frobnicate" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run_environment(short_dir: Path, redis_binary: str) -> dict[str, str]:
    """For run.sh and dev.sh: everything they write lies in ``short_dir``, but for the pid file of run.sh."""
    (short_dir / "screens").mkdir(mode=0o700)
    twistd = Path(sys.executable).parent / "twistd"
    return {
        **bare_environment(short_dir),
        "TWISTD": str(twistd),
        "LOG": str(short_dir / "log"),
        "SCREENDIR": str(short_dir / "screens"),
        "SCREEN_NAME": short_dir.name,
        "DATA_DIR": str(short_dir / "data"),
        "REDIS_SERVER": redis_binary,
        "PORT": str(free_port()),
    }


def healthy(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def run_script(env: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """bin/run.sh with these words; stdout holds all that it printed."""
    command = ["bash", str(ROOT / "bin" / "run.sh"), *words]
    # Not through pipes: a screen that stays open would keep them open.
    with open(folder / "out", "w+", encoding="utf-8") as out:
        done = subprocess.run(command, env=env, stdout=out, stderr=out, timeout=50, check=False)
        out.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, out.read())


@needs("screen")
def test_run_keeps_it_in_screen(run_environment: dict[str, str], short_dir: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return run_script(run_environment, short_dir, *words)

    assert run("status").returncode == 3
    started = run("start", "--queue-timeout=7")
    try:
        assert started.returncode == 0, started.stdout
        wait_until(lambda: healthy(run_environment["PORT"]), 20, "an answer of the daemon in screen")
        assert run("status").returncode == 0
        assert run("start").returncode == 1, "a second one was started"
        assert "listening" in (short_dir / "log").read_text("utf-8")
        # A restart keeps the options and the log, and who moves the log gets a new one.
        before = run("status").stdout
        (short_dir / "log").rename(short_dir / "log.old")
        again = run_script({**run_environment, "LOG": ""}, short_dir, "restart")
        assert again.returncode == 0, again.stdout
        assert again.stdout.startswith("Stopped.\nThe registry is running (pid ")
        assert run("status").stdout != before
        wait_until(lambda: healthy(run_environment["PORT"]), 20, "an answer of the second daemon")
        log = (short_dir / "log").read_text("utf-8")
        assert "listening" in log and "'QUEUE_TIMEOUT': '7'" in log
    finally:
        # LOG is said at the start alone.
        log = run_environment.pop("LOG")
        status, stopped = run("status"), run("stop")
    assert f"log {log})" in status.stdout
    assert stopped.returncode == 0, stopped.stdout
    assert not healthy(run_environment["PORT"])
    assert run("stop").returncode == 0


@needs("screen")
def test_run_shows_why_it_did_not_start(run_environment: dict[str, str], short_dir: Path) -> None:
    (short_dir / "log").write_text("a line of yesterday\n", "utf-8")
    done = run_script(run_environment, short_dir, "start", "--port=nonsense")
    assert done.returncode == 1
    assert "nonsense" in done.stdout
    assert "yesterday" not in done.stdout
    done = run_script({**run_environment, "TWISTD": "/bin/true"}, short_dir)  # one that says nothing
    assert done.returncode == 1
    assert done.stdout.endswith(f"The registry did not start; see {short_dir}/log:\n")
    assert not (ROOT / f"{short_dir.name}.pid").exists()


def test_run_tells_how_it_is_used(tmp_path: Path) -> None:
    for word in ("-h", "--help", "help"):
        done = run_script(dict(os.environ), tmp_path, word)
        assert done.returncode == 0
        assert "bin/run.sh stop | restart | status | attach" in done.stdout
        assert "set -" not in done.stdout


@needs("screen")
def test_restart_starts_what_does_not_run(run_environment: dict[str, str], short_dir: Path) -> None:
    try:
        started = run_script(run_environment, short_dir, "restart", "--queue-timeout=7")
        assert started.returncode == 0, started.stdout
    finally:
        assert run_script(run_environment, short_dir, "stop").returncode == 0


def test_venv_without_arguments_makes_the_usual_one(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "venv.sh"
    script.write_text((ROOT / "bin" / "venv.sh").read_text())
    (tmp_path / "setup.py").touch()
    # A Python that only says what it is asked.
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\nmkdir -p "$3/bin"; cp "$0" "$3/bin/python"\n')
    python.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "PYTHON": str(python)}
    done = subprocess.run(["bash", script], env=env, cwd="/", capture_output=True, text=True, check=True)
    assert f"-m venv {tmp_path}/.venv\n" in done.stdout
    assert f"--editable {tmp_path}[embedded]\n" in done.stdout
    done = subprocess.run(["bash", script, "--help"], env=env, capture_output=True, text=True, check=True)
    assert "bin/venv.sh [FOLDER [EXTRAS]]" in done.stdout and "set -" not in done.stdout


def test_dev_restarts_on_a_change(run_environment: dict[str, str], short_dir: Path) -> None:
    if not (Path(sys.executable).parent / "watchfiles").exists():
        pytest.skip("watchfiles is not installed: the extra [dev]")
    source = short_dir / "source"
    for name in ("registry", "twisted", "bin"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache")
        )
    env = {**run_environment, "PYTHONPATH": str(source)}
    with open(short_dir / "log", "wb") as log:
        process = subprocess.Popen(["bash", source / "bin" / "dev.sh"], env=env, stdout=log, stderr=log)

    def starts() -> int:
        assert process.poll() is None, (short_dir / "log").read_text("utf-8")
        return (short_dir / "log").read_text("utf-8").count("listening on")

    try:
        wait_until(lambda: starts() == 1, 20, "the first start")
        script = next(source.glob("registry/redis/lua/*.lua"))
        script.write_text(script.read_text("utf-8") + "\n", "utf-8")
        wait_until(lambda: starts() == 2, 30, "the start after a change")
        wait_until(lambda: healthy(env["PORT"]), 10, "an answer of the restarted daemon")
    finally:
        process.terminate()
        process.wait(40)
    assert not healthy(env["PORT"])


@needs("systemd-analyze")
def test_systemd_understands_how_the_page_on_tokens_uses_a_credential(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tokens.md").read_text("utf-8")
    lines = page[page.index("    [Service]\n") :].partition("\n\n")[0]
    assert "LoadCredential=tokens.json:" in lines and "TOKENS_FILE=%d/tokens.json" in lines
    unit = (ROOT / "registry.service").read_text("utf-8")
    more = "\n".join(line.strip() for line in lines.splitlines())
    assert verify(tmp_path, f"{unit}\n{more}\n") == ""
    assert "Unknown key" in verify(tmp_path, f"{unit}\n{more.replace('LoadCredential', 'LoadCredentials')}\n")

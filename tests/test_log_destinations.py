"""Log destinations: streams, journald and syslog as functions, and real twistd and twist processes."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.python.usage import Options

from registry.config import Config
from registry.log import SyslogDestination, install
from registry.log_streams import StreamDestination, is_journal, stream
from tests.live import ROOT

# --- destinations ---


def test_stream_to_a_file_and_to_a_text_object(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w", encoding="ascii") as file:
        stream(file, {}).write(6, ["zône", "\tmore"])
    assert (tmp_path / "log").read_text("utf-8") == "zône\n\tmore\n"
    text = io.StringIO()
    stream(text, {}).write(6, ["zône"])
    assert text.getvalue() == "zône\n"


def test_journald_gets_a_priority_on_each_line(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as file:
        status = os.fstat(file.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(file.fileno(), environ)
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": "1:1"})
        assert not is_journal(file.fileno(), {})
        destination = stream(file, environ)
        assert not destination.stamped
        destination.write(3, ["broke", "\tat"])
    assert (tmp_path / "log").read_text() == "<3>broke\n<3>\tat\n"


def test_a_full_disk_does_not_stop_the_daemon() -> None:
    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    StreamDestination(full).write(6, ["x"])


class SyslogDaemon:
    """A bound datagram socket, read in a thread: the queue of a unix socket is short."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lines: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(0.05)
        self._thread: threading.Thread | None = None
        self._reading = True

    def start(self) -> None:
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                self.lines.append(self.socket.recv(65536).decode())
            except TimeoutError:
                if not self._reading:
                    return

    def stop(self) -> list[str]:
        """Read what is left and close; all lines."""
        self._reading = False
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join()
        self.socket.close()
        os.unlink(self.path)
        return self.lines


@pytest.fixture
def syslog_path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="reg") as folder:
        yield os.path.join(folder, "log")


SYSLOG_LINE = re.compile(r"<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d (\w+)\[(\d+)\]: (.*)")


def test_syslog_records(syslog_path: str) -> None:
    daemon = SyslogDaemon(syslog_path)
    daemon.start()
    destination = SyslogDestination("registry", syslog_path)
    destination.write(3, ["broke", "\tat"])
    destination.write(6, ["zône"])
    found = [SYSLOG_LINE.fullmatch(text) for text in daemon.stop()]
    destination.close()
    assert [m and m.groups() for m in found] == [
        (str(24 + priority), "registry", str(os.getpid()), text)
        for priority, text in ((3, "broke"), (3, "\tat"), (6, "zône"))
    ]


def test_a_stuck_syslog_daemon_blocks_nothing_and_the_loss_is_reported(syslog_path: str) -> None:
    daemon = SyslogDaemon(syslog_path)
    destination = SyslogDestination("registry", syslog_path)
    for number in range(5000):  # with a blocking socket this never returns
        destination.write(6, [f"line {number}"])
    daemon.start()
    deadline = time.monotonic() + 20
    while not any("lines lost" in text for text in list(daemon.lines)) and time.monotonic() < deadline:
        destination.write(6, ["after"])
        time.sleep(0.01)
    lines = daemon.stop()
    destination.close()
    told = [int(m[1]) for m in (re.search(r"(\d+) lines lost", text) for text in lines) if m]
    kept = sum("]: line " in text for text in lines)
    assert told and kept and sum(told) >= 5000 - kept


def test_a_restarted_syslog_daemon_is_found_again(syslog_path: str) -> None:
    destination = SyslogDestination("registry", syslog_path)
    destination.write(6, ["nobody there"])
    for _ in range(2):
        daemon = SyslogDaemon(syslog_path)
        daemon.start()
        destination.write(6, ["hello"])
        assert any(text.endswith("]: hello") for text in daemon.stop())
    destination.close()


# --- into twistd and twist ---


def test_install_leaves_a_logger_of_the_users_own_alone() -> None:
    class Sub(Options):
        pass

    parent, options = Options(), Sub()  # type: ignore[no-untyped-call]
    parent["logger"] = "some.other"
    options.parent = parent
    install(options, Config(data_dir="/x"), {})
    assert parent["logger"] == "some.other"
    options.parent = None
    install(options, Config(data_dir="/x"), {})  # a .tac file, a test


PLUGIN = """
from twisted.application.service import ServiceMaker
logprobe = ServiceMaker("logprobe", "logprobe", "Logs a few lines and stops.", "logprobe")
"""
PROBE = """
import os, warnings
from twisted.application.service import Service
from twisted.internet import defer, reactor
from twisted.logger import Logger
from twisted.python import usage
from registry.config import Config
from registry.log import install
log = Logger(namespace="probe")
class Options(usage.Options):
    def postOptions(self):
        level = os.environ.get("LEVEL", "info")
        config = Config(data_dir="/x", redis_url="redis://:hunter2@h", log_level=level)
        self.access = install(self, config, os.environ, os.environ.get("SYSLOG", "/dev/log"))
class Probe(Service):
    def __init__(self, options):
        self.access = options.access
        log.info("while building")
    def startService(self):
        reactor.callWhenRunning(self.speak)
    def speak(self):
        log.debug("a detail")
        log.warn("name {name!s}", name="a\\nb\\ud800")
        try:
            raise ValueError("with hunter2")
        except ValueError:
            log.failure("It broke")
        defer.fail(ValueError("nobody listens"))
        print("printed")
        self.access('1.2.3.4 - - "GET /"')
        reactor.callLater(0, reactor.stop)
def makeService(options):
    return Probe(options)
"""


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    (tmp_path / "twisted" / "plugins").mkdir(parents=True)
    (tmp_path / "twisted" / "plugins" / "logprobe_plugin.py").write_text(PLUGIN)
    (tmp_path / "logprobe.py").write_text(PROBE)
    return tmp_path


def run(probe: Path, program: str, *arguments: str, **extra: str) -> str:
    """Run twistd or twist with the probe and return what it wrote to standard output."""
    environ = {k: v for k, v in os.environ.items() if k != "JOURNAL_STREAM"}
    environ.update(PYTHONPATH=f"{probe}{os.pathsep}{ROOT}", **extra)
    module = {"twistd": "twisted.scripts.twistd", "twist": "twisted.application.twist._twist"}[program]
    start = {"twistd": "run()", "twist": "Twist.main()"}[program]
    code = f"from {module} import *; from {module} import {start.split('(')[0].split('.')[0]}; {start}"
    with open(probe / "out", "wb") as out:
        status = os.fstat(out.fileno())
        if extra.get("JOURNAL_STREAM") == "stdout":
            environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "logprobe"],
            cwd=probe, env=environ, stdout=out, stderr=subprocess.PIPE, text=True, timeout=50,
        )  # fmt: skip
    text = (probe / "out").read_text("utf-8")
    assert done.returncode == 0, text + done.stderr
    assert "hunter2" not in text + done.stderr
    return text


def check_plain(text: str) -> None:
    lines = text.splitlines()
    for expected in (
        r"\S+ \[probe#info\] while building",
        r"\S+ \[probe#warn\] name a\\nb\\ud800",
        r"\S+ \[probe#critical\] It broke",
        r"\tbuiltins.ValueError: with \*\*\*",
        r"\S+ \[stdout#info\] printed",
        r'1\.2\.3\.4 - - "GET /"',
    ):
        assert sum(bool(re.fullmatch(expected, one)) for one in lines) == 1, (expected, text)
    assert "Unhandled error in Deferred" in text and "nobody listens" in text
    assert "a detail" not in text


def test_twistd_in_the_foreground(probe: Path) -> None:
    check_plain(run(probe, "twistd", "-n", "--pidfile="))


def test_twistd_at_another_level(probe: Path) -> None:
    assert "[probe#debug] a detail" in run(probe, "twistd", "-n", "--pidfile=", LEVEL="debug")
    text = run(probe, "twistd", "-n", "--pidfile=", LEVEL="error")
    assert "#warn]" not in text and "GET /" not in text and "[probe#critical] It broke" in text


def test_twistd_with_a_log_file(probe: Path) -> None:
    assert run(probe, "twistd", "-n", "--pidfile=", "--logfile=my.log") == ""
    check_plain((probe / "my.log").read_text("utf-8"))


def test_twistd_as_a_daemon(probe: Path) -> None:
    run(probe, "twistd", "--pidfile=d.pid")
    deadline = time.monotonic() + 20
    log = probe / "twistd.log"
    while "Server Shut Down" not in log.read_text("utf-8") and time.monotonic() < deadline:
        time.sleep(0.05)
    check_plain(log.read_text("utf-8"))


@pytest.mark.parametrize(("arguments", "name"), [((), "registry"), (("--prefix=tasks",), "tasks")])
def test_twistd_with_syslog(probe: Path, syslog_path: str, arguments: tuple[str, ...], name: str) -> None:
    expected = {
        "probe: while building": 6,
        "probe: name a\\nb\\ud800": 4,
        "probe: It broke": 2,
        "\tbuiltins.ValueError: with ***": 2,
        '1.2.3.4 - - "GET /"': 6,
    }
    # The socket's queue holds ten lines, and the daemon waits for nobody: a reader that gets no processor in time misses some.
    for _ in range(5):
        daemon = SyslogDaemon(syslog_path)
        daemon.start()
        try:
            run(probe, "twistd", "-n", "--pidfile=", "--syslog", *arguments, SYSLOG=syslog_path)
        finally:
            lines = daemon.stop()
        found = {}
        for text in lines:
            match = SYSLOG_LINE.fullmatch(text)
            assert match and match[2] == name, text
            found[match[4]] = int(match[1]) - 24
        if expected.keys() <= found.keys():
            break
    assert {text: found.get(text) for text in expected} == expected


def test_twistd_under_systemd(probe: Path) -> None:
    lines = run(probe, "twistd", "-n", "--pidfile=", JOURNAL_STREAM="stdout").splitlines()
    assert all(re.match(r"<[2-6]>", one) for one in lines)
    assert {
        "<6>probe: while building",
        "<4>probe: name a\\nb\\ud800",
        "<2>\tbuiltins.ValueError: with ***",
        '<6>1.2.3.4 - - "GET /"',
    } <= set(lines)


def test_twist(probe: Path) -> None:
    check_plain(run(probe, "twist"))
    assert "[probe#debug] a detail" in run(probe, "twist", LEVEL="debug")
    assert "#warn]" not in run(probe, "twist", "--log-level=error")
    assert run(probe, "twist", "--log-file=my.log") == ""
    check_plain((probe / "my.log").read_text("utf-8"))


def test_a_log_file_that_cannot_be_written_is_one_sentence(probe: Path) -> None:
    with pytest.raises(
        AssertionError, match=r"The log file /nowhere/my\.log cannot be written: No such file"
    ):
        run(probe, "twistd", "-n", "--pidfile=", "--logfile=/nowhere/my.log")


def test_a_syslog_that_is_not_there_is_reported(probe: Path, syslog_path: str) -> None:
    environ = {**os.environ, "PYTHONPATH": f"{probe}{os.pathsep}{ROOT}"}
    environ["SYSLOG"] = syslog_path
    code = "from twisted.scripts.twistd import run; run()"
    command = [sys.executable, "-c", code, "-n", "--pidfile=", "--syslog", "logprobe"]
    done = subprocess.run(command, cwd=probe, env=environ, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0
    assert done.stderr == (
        f"registry: nothing reads {syslog_path} (No such file or directory): lines are lost until a syslog daemon "
        "runs. To log elsewhere, give --logfile=PATH instead of --syslog.\n"
    )

"""docs/api.md, typed line by line on a daemon without tasks: what stands there is what is answered."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator

import pytest

from tests.conftest import StartDaemon
from tests.live import ROOT, Daemon

PAGE = ROOT / "docs" / "api.md"
# What differs from one time to the next, and what stands for it.
VOLATILE = (
    (r"\b[0-9a-f]{24}-[0-9a-f]{32}\b", "…"),
    (r"\b[0-9a-f]{24}\b", "<id>"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<time>"),
    (r"\b\d+\.\d+(?=[,}])", "<seconds>"),
    (r"in \d+ s", "in <n> s"),
)


def steps() -> Iterator[tuple[str, list[str]]]:
    """Each command of the page, and the lines of its answer."""
    command, answer = "", list[str]()
    for line in [*PAGE.read_text("utf-8").splitlines(), ""]:
        if line.startswith(("    curl ", "    printf ")):
            assert not command, f"no empty line before {line}"
            command = line.strip()
        elif command and line.startswith("    "):
            answer.append(line.strip())
        elif command:
            yield command, answer
            command, answer = "", []


def alike(text: str) -> str:
    if text.startswith("{"):
        text = json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)
    for pattern, sign in VOLATILE:
        text = re.sub(pattern, sign, text)
    return text


class Terminal:
    """Types commands, with the ids and leases of the answers before in them."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._leases: list[str] = []
        self._id = ""

    def type(self, command: str) -> list[str]:
        command = command.replace("localhost:3000", f"localhost:{self._daemon.port}", 1)
        for number, lease in reversed(list(enumerate(self._leases, 1))):
            command = re.sub(rf"\bLEASE{number if number > 1 else ''}\b", lease, command)
        command = re.sub(r"\bID\b", self._id, command)
        command = re.sub(r"^(.*?)\bcurl ", r"\1curl -s ", command, count=1)
        said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=True)
        self._leases = re.findall(r'"lease":"([^"]+)"', said.stdout) or self._leases
        self._id = next(iter(re.findall(r'"id":"([^"]+)"', said.stdout)), self._id)
        return [line.rstrip("\r") for line in said.stdout.splitlines()]


def work_once(daemon: Daemon) -> None:
    with urllib.request.urlopen(f"{daemon.url}/api/popTask/calc?lease=30&wait=20") as answer:
        lease = json.load(answer)["lease"]
    urllib.request.urlopen(f"{daemon.url}/api/ackTask/calc/{lease}", b"42").close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.timeout(120)
def test_the_page_of_the_api_can_be_typed(daemon: StartDaemon, redis_binary: str) -> None:
    one = daemon(env={"REDIS_SERVER": redis_binary})
    terminal = Terminal(one)
    wrong = []
    for command, told in steps():
        if '"result":42' in "".join(told):
            threading.Thread(target=work_once, args=[one], daemon=True).start()
        said = terminal.type(command)
        # An answer with a line of "…" leaves headers out.
        missed = [line for line in map(alike, told) if line != "…" and line not in map(alike, said)]
        if missed:
            wrong.append("\n".join([command, *missed, "was", *map(alike, said)]))
    assert not wrong, "\n\n".join(wrong)

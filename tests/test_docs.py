"""README.md and docs/: their commands are typed on a daemon without tasks and answer what the page says; every link resolves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Struct, structs

from registry.model import Attempt, Lease, Task
from tests.conftest import StartDaemon
from tests.live import ROOT, Daemon

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Pages whose commands can be typed in order, the heading of the part that can, and settings of the daemon.
TYPED: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("README.md", "Push and pop", {"QUEUE_TIMEOUT": "0.5", "MAX_WAIT": "0.5"}),
    ("docs/quick-start.md", "", {}),
    ("docs/api.md", "", {}),
    ("docs/writing-a-worker.md", "Other worker requests", {}),
    ("docs/command-line.md", "Try it", {}),
)
# What differs from one time to the next, and what stands for it.
VOLATILE = (
    (r"\b[0-9a-f]{24}-[0-9a-f]{32}\b|\b1a20…-[0-9a-f]{4}…", "…"),
    (r"\b[0-9a-f]{24}\b|\b1a20…", "<id>"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<time>"),
    (r"\b\d+\.\d+(?=[,}])", "<seconds>"),
    (r'(?<="request_id": )"[0-9a-f]{16}"|(?<="id": )"\d{1,9}"', "<number>"),
    (r"in \d+ s", "in <n> s"),
)


def part(text: str, heading: str) -> str:
    """The text below this heading of the second level, up to the next one; all of it without a heading."""
    if not heading:
        return text
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, heading
    return rest.partition("\n## ")[0]


def steps(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a page, and the lines of its answer."""
    command, answer = "", list[str]()
    for line in [*text.splitlines(), ""]:
        if line.startswith(("    curl ", "    printf ", "    registryctl ")):
            if command:
                yield command, answer
            command, answer = line.strip(), []
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
        shell = f'registryctl() {{ "{sys.executable}" -m registry.cli "$@"; }}; {command}'
        env = {
            **os.environ,
            "REGISTRY_URL": self._daemon.url,
            "HOME": str(self._daemon.folder),
            "DATA_DIR": "",
        }
        said = subprocess.run(
            ["bash", "-c", shell], capture_output=True, text=True, timeout=30, check=True, cwd=ROOT, env=env
        )
        self._leases = re.findall(r'"lease":"([^"]+)"', said.stdout) or self._leases
        found = re.search(r'"id":"([^"]+)"|^([0-9a-f]{24})$', said.stdout)
        self._id = (found[1] or found[2]) if found else self._id
        return [line.rstrip("\r") for line in said.stdout.splitlines()]


def work_once(daemon: Daemon) -> None:
    with urllib.request.urlopen(f"{daemon.url}/api/popTask/calc?lease=30&wait=20") as answer:
        lease = json.load(answer)["lease"]
    urllib.request.urlopen(f"{daemon.url}/api/ackTask/calc/{lease}", b"42").close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("page", "heading", "settings"), TYPED, ids=[page for page, _, _ in TYPED])
def test_a_page_can_be_typed(
    daemon: StartDaemon, redis_binary: str, page: str, heading: str, settings: dict[str, str]
) -> None:
    one = daemon(env={"REDIS_SERVER": redis_binary, **settings})
    terminal = Terminal(one)
    wrong = []
    commands = list(steps(part((ROOT / page).read_text("utf-8"), heading)))
    assert len(commands) > 5
    for command, told in commands:
        if '"result":42' in "".join(told):
            threading.Thread(target=work_once, args=[one], daemon=True).start()
        said = terminal.type(command)
        # An answer with a line of "…" leaves headers out; a command without one must not be refused.
        missed = [line for line in map(alike, told) if line != "…" and line not in map(alike, said)]
        if command.startswith("registryctl ") and not told:
            continue  # its exit code says enough
        if missed or not (told or '"success":true' in said[-1] or '"name"' in said[-1] or '"id"' in said[-1]):
            wrong.append("\n".join([command, *missed, "was", *map(alike, said)]))
    assert not wrong, "\n\n".join(wrong)


def prose(text: str) -> str:
    """A page without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """What a link to a heading of this page ends with, as GitHub makes it."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.MULTILINE):
        stem = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        name, number = stem, 0
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found.add(name)
    return found


def links(page: Path) -> list[str]:
    """The targets of the links and pictures of a page, those to other sites aside."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8")))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_resolves(page: Path) -> None:
    wrong = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append(target)
    assert wrong == []


def test_the_readme_is_short_and_names_every_page() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert {page.name for page in PAGES[1:]} <= {Path(target).name for target in links(ROOT / "README.md")}


def test_messages_that_the_docs_quote_are_in_the_source() -> None:
    source = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "registry").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r'^\| "([^"]+)"', page, re.MULTILINE)
    assert len(quoted) > 3
    pieces = [piece.strip() for text in quoted for piece in text.split("…")]
    assert [piece for piece in pieces if piece not in source] == []


def test_the_record_of_a_task_is_the_one_of_the_code() -> None:
    page = (ROOT / "docs" / "life-of-a-task.md").read_text("utf-8").partition("### The record of a task")[2]
    tables = page.partition("\n## ")[0].split("| key | name | meaning |")[1:]
    records: tuple[type[Struct], ...] = (Task, Lease, Attempt)
    for table, record in zip(tables, records, strict=True):
        rows = re.findall(r"^\| (`.*?) \| (`.*?) \|", table, re.MULTILINE)
        named = [
            pair for keys, names in rows for pair in zip(keys.split(", "), names.split(", "), strict=True)
        ]
        fields = [(f"`{one.encode_name}`", f"`{one.name}`") for one in structs.fields(record)]
        assert sorted(named) == sorted(fields)


def test_files_that_the_docs_name_exist() -> None:
    page = (ROOT / "docs" / "development.md").read_text("utf-8")
    named = set(re.findall(r"`((?:registry|tests|benchmarks|bin|twisted|\.ci)/[\w./-]*)`", page))
    named |= {f"tests/{name}" for name in re.findall(r"^\| `(\w+\.py)` \|", page, re.MULTILINE)}
    named |= {f"registry/{path}" for path in re.findall(r"`((?:http|queue|redis)/\w+\.py)`", page)}
    # The picture of the folders: a line that ends with / is a folder, the lines below it are in it.
    folder = ""
    for line in part(page, "Find your way").partition("```\n")[2].partition("```")[0].splitlines():
        if line.startswith("    "):
            named |= {f"{folder}{name}" for name in re.findall(r"\w+\.py\b", line)}
        elif inside := re.match(r"  (\w+/)|(\w+/)$", line):
            folder = inside[2] or f"registry/{inside[1]}"
        else:
            named |= {
                f"registry/{name}" if line[0] == " " else name for name in re.findall(r"[\w/]+\.py\b", line)
            }
    assert len(named) > 40
    assert [
        name for name in sorted(named) if name != "registry/redis/lua/NAME.lua" and not (ROOT / name).exists()
    ] == []


def test_every_error_code_is_in_the_table() -> None:
    source = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "registry").rglob("*.py")))
    raised = set(re.findall(r'\bcode = "(\w+)"|(?:Refusal\(\s*\d+,|Conflict\()\s*"(\w+)"', source))
    codes = {code for pair in raised for code in pair if code} - {"bad_config", "error", "replaced"}
    table = part((ROOT / "docs" / "api.md").read_text("utf-8"), "Errors")
    rows = re.findall(r"^\| \d[\d, ]*\| ([^|]+)\|", table, re.MULTILINE)
    documented = {code for row in rows for code in re.findall(r"`(\w+)`", row)}
    assert len(codes) > 25
    assert sorted(codes - documented) == []
    assert [code for code in sorted(documented) if f'"{code}"' not in source] == []

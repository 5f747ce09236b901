"""The layers: which package may import or name what, checked in the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import registry

HOUSE = Path(registry.__file__).parent


def modules(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for folder in folders:
        for path in sorted((HOUSE / folder).glob("*.py")):
            yield f"{folder}/{path.name}", ast.parse(path.read_text("utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_queues_name_no_redis_command() -> None:
    found = [
        f"{name}:{node.lineno}: {node.value!r}"
        for name, tree in modules("queue")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes)
        if len(node.value) > 2 and node.value.isalpha() and node.value.isupper()
    ]
    assert found == []


@pytest.mark.parametrize(
    ("folder", "never"),
    [
        ("http", ("registry.redis", "txredisapi", "registry.tap", "registry.daemon")),
        ("queue", ("registry.http", "txredisapi", "registry.tap", "registry.daemon")),
        ("redis", ("registry.http", "registry.queue", "registry.tap", "registry.daemon")),
    ],
)
def test_nothing_is_imported_upwards(folder: str, never: tuple[str, ...]) -> None:
    found = [
        f"{name}: {module}"
        for name, tree in modules(folder)
        for module in imported(tree)
        if module.startswith(never)
    ]
    assert found == []


def test_the_command_line_imports_nothing_of_the_daemon_but_its_records() -> None:
    found = [
        f"{name}: {module}"
        for name, tree in modules("cli")
        for module in imported(tree)
        if module.startswith(("registry", "twisted", "klein")) and module != "registry"
        if not module.startswith(("registry.cli", "registry.model"))
    ]
    assert found == []


def test_no_line_of_a_script_is_longer_than_120_characters() -> None:
    found = [
        f"{path.name}:{number}"
        for path in sorted((HOUSE / "redis" / "lua").glob("*.lua"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if len(line) > 120
    ]
    assert found == []

"""requirements.lock, which root installs from, is in step with setup.py and complete, and each file has its hash."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.live import ROOT

LOCK = (ROOT / "requirements.lock").read_text("utf-8")
# One entry: its line and the lines of its hashes, each but the last with a backslash at its end.
ENTRIES = [entry for entry in re.split(r"(?m)^(?=[a-z])", LOCK) if entry[:1] != "#"]
LOCKED = {
    canonicalize_name(one.name): one for one in (Requirement(entry.split(" \\\n")[0]) for entry in ENTRIES)
}
MACHINES: list[dict[str, Any]] = [
    {
        **default_environment(),
        "python_version": version,
        "python_full_version": f"{version}.5",
        "sys_platform": system,
        "platform_machine": processor,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for version in ("3.11", "3.12", "3.13")
    for system, processor in (
        ("linux", "x86_64"),
        ("linux", "aarch64"),
        ("darwin", "arm64"),
        ("linux", "riscv64"),
    )
]


def declared(name: str) -> list[Requirement]:
    """What setup.py, as it was installed, asks for."""
    try:
        return [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed here")


def wanted(one: Requirement, machine: dict[str, Any], extras: set[str]) -> bool:
    return one.marker is None or any(
        one.marker.evaluate({**machine, "extra": extra}) for extra in extras | {""}
    )


def is_pinned(one: Requirement, machine: dict[str, Any]) -> bool:
    pin = LOCKED.get(canonicalize_name(one.name))
    if pin is None or not wanted(pin, machine, set()):
        return False
    (exactly,) = pin.specifier
    return exactly.operator == "==" and one.specifier.contains(exactly.version, prereleases=True)


def test_each_entry_is_one_release_with_hashes() -> None:
    assert len(LOCKED) == len(ENTRIES) > 20
    for entry in ENTRIES:
        first, *hashes = entry.rstrip("\n").split(" \\\n")
        assert re.match(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?$", first), first
        assert hashes and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), first


def test_it_names_no_index_and_no_folder() -> None:
    assert re.search(r"://|--(extra-)?index|--find-links|/opt/|@", LOCK) is None


def test_it_holds_what_setup_py_asks_for() -> None:
    ours = declared("twistd-registry")
    assert len(ours) > 8
    for machine in MACHINES:
        missing = [
            str(one) for one in ours if wanted(one, machine, {"embedded"}) and not is_pinned(one, machine)
        ]
        assert missing == [], machine["python_version"]


def test_it_holds_what_those_ask_for() -> None:
    """All the way down, or pip would refuse to install without a hash; only of packages that are installed here."""
    left = [
        (one.name, set(one.extras))
        for one in declared("twistd-registry")
        if wanted(one, MACHINES[0], {"embedded"})
    ]
    seen: set[tuple[str, str]] = set()
    while left:
        name, extras = left.pop()
        for one in declared(name):
            key = (name, str(one))
            if key in seen or not wanted(one, MACHINES[0], extras):
                continue
            seen.add(key)
            for machine in MACHINES[:1]:
                assert is_pinned(one, machine), f"{name} wants {one}"
            left.append((one.name, set(one.extras)))
    assert len(seen) > 15


def test_the_build_is_pinned_too() -> None:
    for name in ("pip", "setuptools"):
        assert name in LOCKED
    assert is_pinned(Requirement("setuptools>=77"), MACHINES[0])


def test_root_installs_nothing_else() -> None:
    script = (ROOT / "bin" / "install-service.sh").read_text("utf-8")
    installs = [line for line in script.splitlines() if re.match(r"[^#]*\bpip install\b", line)]
    assert len(installs) == 3
    for line in installs:
        assert "--require-hashes --only-binary :all:" in line or "--no-index --no-deps" in line

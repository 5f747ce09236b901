"""``registryctl`` itself: where it connects, its exit codes, its one line for an error, what it shows of hostile text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from registry.cli.client import api_path
from registry.cli.errors import BadUsage
from registry.cli.profiles import find_target
from registry.cli.text import clean, clean_json
from tests.ctl import Ctl, ctl_of
from tests.live import Daemon, free_port
from tests.talk import pushed

CONFIG = """
default = "here"
[profiles.here]
url = "http://127.0.0.1:1111/"
token = "rgy_here"
[profiles.there]
url = "unix:///run/there.sock"
token = "rgy_there"
[profiles.filed]
url = "http://h"
token_file = "~/token"
"""


@pytest.fixture
def ctl(served: Daemon, tmp_path: Path) -> Ctl:
    return ctl_of(served, tmp_path)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / ".config" / "registry" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(CONFIG, "utf-8")
    path.chmod(0o600)
    (tmp_path / "token").write_text("rgy_filed\n", "utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "environ", "url", "token"),
    [
        ({}, {}, "http://127.0.0.1:1111", "rgy_here"),
        ({"profile": "there"}, {}, "unix:///run/there.sock", "rgy_there"),
        ({}, {"REGISTRY_PROFILE": "there"}, "unix:///run/there.sock", "rgy_there"),
        # The environment comes before a profile, unless an option names the profile.
        ({}, {"REGISTRY_URL": "http://h:2/base/"}, "http://h:2/base", ""),
        ({}, {"REGISTRY_URL": "http://127.0.0.1:1111", "REGISTRY_TOKEN": "x"}, "http://127.0.0.1:1111", "x"),
        (
            {"profile": "there"},
            {"REGISTRY_URL": "http://h", "REGISTRY_TOKEN": "x"},
            "unix:///run/there.sock",
            "rgy_there",
        ),
        ({"url": "https://h"}, {"REGISTRY_URL": "http://g", "REGISTRY_TOKEN": " x\n"}, "https://h", "x"),
        ({"profile": "filed"}, {}, "http://h", "rgy_filed"),
        # The token of a profile is not sent to another address.
        ({"url": "https://h", "profile": "there"}, {}, "https://h", ""),
    ],
)
def test_where_it_connects(
    monkeypatch: pytest.MonkeyPatch,
    config: Path,
    options: dict[str, str],
    environ: dict[str, str],
    url: str,
    token: str,
) -> None:
    monkeypatch.setenv("HOME", str(config.parents[2]))
    target = find_target({"HOME": str(config.parents[2]), **environ}, **options)
    assert (target.url, target.token) == (url, token)
    assert token == "" or token not in repr(target)


def test_without_any_setting_it_is_the_daemon_of_this_machine(tmp_path: Path) -> None:
    assert find_target({"HOME": str(tmp_path)}).url == "http://127.0.0.1:3000"


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (CONFIG, 0o640, "chmod 600"),
        (CONFIG, 0o604, "chmod 600"),
        ("[profiles", 0o600, "is not TOML"),
        ('default = "gone"', 0o600, "There is no profile 'gone'"),
        ('default = "a"\n[profiles.a]\nurI = "http://h"', 0o600, "unknown field 'urI'"),
        ('default = "a"\n[profiles.a]\nurl = "http://u:p@h"', 0o600, "contains no password"),
        ('default = "a"\n[profiles.a]\nurl = "ftp://h"', 0o600, "is not an address"),
        ('default = "a"\n[profiles.a]\ntoken = "two words"', 0o600, "no token has"),
    ],
)
def test_a_wrong_configuration_is_reported(config: Path, text: str, mode: int, words: str) -> None:
    config.write_text(text, "utf-8")
    config.chmod(mode)
    error = Ctl("", config.parents[2]).fails(2, "queues")
    assert words in error
    assert "rgy_" not in error and "two words" not in error


def test_options_may_stand_anywhere(ctl: Ctl, served: Daemon, q: str) -> None:
    pushed(served, q)
    for arguments in (("--json", "queues", "--search", q), ("queues", "--search", q, "--json")):
        assert [row["name"] for row in map(json.loads, ctl.ok(*arguments).splitlines())] == [q]


@pytest.mark.parametrize(
    "url", [f"http://127.0.0.1:{free_port()}", "unix:///nowhere/at.all"], ids=["tcp", "unix"]
)
def test_nobody_there(tmp_path: Path, url: str) -> None:
    assert "cannot be reached" in Ctl(url, tmp_path).fails(5, "queues")


@pytest.mark.parametrize(
    "arguments", [("queues", "--limit", "0"), ("qeues",), ("queues", "--frob"), ("--timeout", "x", "queues")]
)
def test_wrong_usage_is_one_line(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    assert "Try: registryctl" in ctl.fails(2, *arguments)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "\ud800"])
def test_a_name_that_would_be_another_path_is_refused(name: str) -> None:
    with pytest.raises(BadUsage):
        api_path("queues", name)
    assert api_path("queues", "ä %2E:") == "/api/queues/%C3%A4%20%252E%3A"


HOSTILE = "a\x1b[31m\x9b2J\r\nb\x7f\u202ec\ud800[red]"


def test_hostile_text_is_spelt_out() -> None:
    assert clean(HOSTILE) == r"a\x1b[31m\x9b2J\x0d\x0ab\x7f\u202ec\ud800[red]"
    text = '{"a" :\r\n[1e999,\t"\x9b\x7f\u202e\\u001b"]}'
    assert clean_json(text) == r'{"a" :[1e999,"\u009b\u007f\u202e\u001b"]}'

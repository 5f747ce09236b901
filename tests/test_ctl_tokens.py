"""``registryctl token`` works on the file alone, and what it makes is what a daemon lets in; ``doctor`` sees what is wrong."""

from __future__ import annotations

import re
import ssl
import subprocess
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from registry.cli.doctor import probe_of
from registry.cli.main import cli
from tests.ctl import COMMAND, Canned, Ctl, answer, ctl_of
from tests.live import ROOT, Daemon, RedisServer, free_port
from tests.talk import fresh, running
from tests.test_address import certificates

TOKEN = re.compile("rgy_[A-Za-z0-9_-]{43}")


@pytest.fixture
def here(tmp_path: Path) -> Ctl:
    """On a machine where no daemon runs."""
    return Ctl(f"http://127.0.0.1:{free_port()}", tmp_path)


def test_create_list_and_revoke(here: Ctl, tmp_path: Path) -> None:
    file = tmp_path / ".local" / "share" / "registry" / "tokens.json"
    made = here.run(
        "token", "create", "w1", "--right", "pop zone*", "--right", "push results:*", "--expires", "90d"
    )
    assert made.exit_code == 0 and TOKEN.fullmatch(made.stdout.splitlines()[-1])
    assert "No daemon has used" in made.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    secret = made.stdout.strip()
    assert secret not in file.read_text("utf-8")
    again = here.ok(
        "--json", "token", "create", "w2", "--right", "admin", "--expires", "2100-01-31T12:00:00+02:00"
    )
    assert '"expires":"2100-01-31T10:00:00Z"' in again.replace(": ", ":")
    listed = here.ok("token", "list")
    assert "w1" in listed and "pop zone*, push results:*" in listed and "2100-01-31T10:00:00Z" in listed
    assert [row["rights"] for row in here.rows("token", "list")] == [
        ["pop zone*", "push results:*"],
        ["admin"],
    ]
    assert not TOKEN.search(listed)
    assert here.ok("token", "list", "--file", str(tmp_path / "none.json")) == ""
    assert here.ok("token", "revoke", "w1") == "The token w1 is revoked.\n"
    assert "holds no token" in here.run("token", "revoke", "w2").stderr
    assert here.ok("token", "list") == ""


def test_standard_files_may_be_closed(here: Ctl) -> None:
    # As under some supervisors: whatever is opened next must not get their numbers, and nothing is written there.
    close = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"]
    create = ["token", "create", "a", "--right", "view"]
    ended = subprocess.run([*close, *COMMAND, *create], env=here.environ, cwd=ROOT, check=False)
    assert ended.returncode == 0
    assert [row["name"] for row in here.rows("token", "list")] == ["a"]


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (2, ("create", "a", "--right", "pop"), "glob"),
        (2, ("create", "a", "--right", "root"), "is not a right"),
        (2, ("create", "a"), "--right"),
        (2, ("create", "a", "--right", "view", "--expires", "tomorrow"), "--expires"),
        (2, ("create", "a", "--right", "view", "--expires", "2100-01-01T00:00:00"), "time zone"),
        (2, ("create", "a", "--right", "view", "--expires", "9999-12-31T23:59:59-02:00"), "years"),
        (2, ("create", "a", "--right", "view", "--expires", "999999y"), "year 9999"),
        (2, ("create", "a", "--right", "push \udcff"), "UTF-8"),
        (2, ("create", "a", "--right", "view", "--expires", "2001-01-01T00:00:00Z"), "expired"),
        (2, ("create", "a/\x1b[1m", "--right", "view"), "name"),
        (4, ("create", "there", "--right", "view"), "already"),
        (3, ("revoke", "nobody"), "no token"),
    ],
)
def test_refusals(here: Ctl, code: int, arguments: tuple[str, ...], words: str) -> None:
    here.ok("token", "create", "there", "--right", "view")
    assert words in here.fails(code, "token", *arguments)


def test_a_file_that_cannot_be_used(here: Ctl, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text('{"tokens":[{"name":"rgy_' + "x" * 43 + '"}]}', "utf-8")
    error = here.fails(1, "token", "--file", str(file), "list")
    assert "is not valid" in error and not TOKEN.search(error)
    assert "cannot be" in here.fails(
        1, "token", "--file", "/proc/nothing/here", "create", "a", "--right", "view"
    )


def test_the_file_is_the_daemons(here: Ctl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the daemon finds it: TOKENS_FILE, DATA_DIR, .env of this folder, and an empty value is none."""
    monkeypatch.chdir(tmp_path)
    create = ("token", "create", "a", "--right", "view")
    here.run(*create, env={"DATA_DIR": str(tmp_path / "data"), "TOKENS_FILE": ""})
    assert (tmp_path / "data" / "tokens.json").exists()
    (tmp_path / ".env").write_text("TOKENS_FILE='own.json'\nDATA_DIR=/nonexistent\n", "utf-8")
    here.run(*create)
    assert (tmp_path / "own.json").exists()
    here.run(*create, env={"TOKENS_FILE": str(tmp_path / "env.json")})
    assert (tmp_path / "env.json").exists()


@pytest.fixture(scope="module")
def guarded(
    module_redis_process: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Daemon, dict[str, str]]]:
    """A daemon that demands tokens, and those that there are."""
    folder = tmp_path_factory.mktemp("tokens")
    ctl, file = Ctl("", folder), folder / "tokens.json"
    rights = {"me": "admin", "worker": "pop zone*", "guest": "view --no-payloads", "late": "operate"}
    made = {
        name: ctl.ok("token", "--file", str(file), "create", name, "--right", right, *more).strip()
        for name, right in rights.items()
        for more in [("--expires", "3d") if name == "late" else ()]
    }
    with running(module_redis_process, TOKENS_FILE=str(file)) as one:
        yield one, made


def test_who_may_do_what(guarded: tuple[Daemon, dict[str, str]], tmp_path: Path) -> None:
    (daemon, tokens), name = guarded, fresh("zone")
    ctl = ctl_of(daemon, tmp_path)

    def run(token: str, *arguments: str) -> Any:
        result = ctl.run(*arguments, env={"REGISTRY_TOKEN": tokens[token]} if token else {})
        assert not TOKEN.search(result.output), arguments
        return result

    assert "Set REGISTRY_TOKEN" in ctl.fails(4, "queues")
    task_id = run("me", "push", name, '"secret"').stdout.strip()
    assert run("guest", "queues").exit_code == 0
    assert "may not see" in run("guest", "task", f"{name}/{task_id}").stdout
    assert "secret" not in run("guest", "tasks", name).output
    assert run("worker", "queues").exit_code == run("guest", "push", name, "1").exit_code == 4
    assert run("late", "queue", name, "pause").exit_code == 0
    assert run("late", "queue", name, "resume").exit_code == 0
    assert run("worker", "pop", name).stdout == '"secret"\n'


@pytest.mark.parametrize(
    ("token", "code", "words"),
    [
        (
            "me",
            0,
            (
                "ok    token     me may admin",
                "ok    wait      a poll may wait",
                "warn  redis     ",
            ),
        ),
        ("worker", 0, ("worker may pop zone*", "ok    wait ", "a token with the right view would")),
        ("guest", 0, ("guest may view --no-payloads", "skip  wait ")),
        ("late", 0, ("warn  token     late expires in 2 d", "late may operate, until ")),
        ("", 4, ("bad   token     ", "ok    redis")),
    ],
)
def test_the_doctor_tells_the_rights(
    guarded: tuple[Daemon, dict[str, str]], tmp_path: Path, token: str, code: int, words: tuple[str, ...]
) -> None:
    daemon, tokens = guarded
    environ = {"REGISTRY_TOKEN": tokens[token]} if token else {}
    result = ctl_of(daemon, tmp_path).run("doctor", "--wait", "0.2", env=environ)
    assert result.exit_code == code, result.output
    for text in words:
        assert text in result.output, result.output


HEALTHY = {
    "/healthz": answer(200, {"status": "ok", "version": "1.0.0"}, Date=formatdate(usegmt=True)),
    "/api/token": answer(200, {"name": None, "rights": ["admin"], "expires": None}),
    "/readyz": answer(200, {"status": "ready", "version": "1.0.0", "warnings": []}),
    "/api/popTask/registryctl-doctor": answer(202, {"error": "No tasks available"}),
}


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ({}, 0, "that is MAX_WAIT"),
        (
            {"/healthz": answer(200, {"status": "ok", "version": "9.1.0"}, Date=formatdate(0, usegmt=True))},
            0,
            "ahead of the server: set up NTP",
        ),
        ({"/healthz": answer(200, {"status": "ok", "version": "9.1.0"})}, 0, "warn  versions  daemon 9.1.0"),
        ({"/healthz": answer(200, b"<html>")}, 1, "is not a registry's"),
        (
            {"/healthz": answer(503, {"error": "The daemon is stopping.", "code": "shutting_down"})},
            5,
            "bad   answer",
        ),
        (
            {"/readyz": answer(503, {"error": "Redis is away.", "code": "redis_unavailable"})},
            5,
            "bad   redis     Redis is away.",
        ),
        (
            {"/readyz": answer(200, {"status": "ready", "warnings": ["Redis may evict tasks."]})},
            0,
            "warn  redis     Redis may evict",
        ),
        (
            {"/api/popTask/registryctl-doctor": answer(504, b"<html>Gateway Time-out")},
            1,
            "proxy_read_timeout",
        ),
        ({"/api/popTask/registryctl-doctor": b""}, 1, "was cut off after"),
        (
            {"/api/token": answer(404, {"error": "There is nothing at this path.", "code": "not_found"})},
            0,
            "older release",
        ),
    ],
)
def test_the_doctor_says_what_to_do(tmp_path: Path, changed: dict[str, bytes], code: int, words: str) -> None:
    with Canned(answer(404), by_path={**HEALTHY, **changed}) as server:
        result = Ctl(server.url, tmp_path).run("doctor", "--wait", "20", "--timeout", "5")
    assert words in result.stdout and result.exit_code == code, result.output


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://nowhere.invalid", "has no address"),
        ("unix:///nowhere.sock", "does not exist"),
        (f"http://127.0.0.1:{free_port()}", "cannot be reached"),
    ],
    ids=["name", "unix", "tcp"],
)
def test_the_doctor_finds_nobody(tmp_path: Path, url: str, words: str) -> None:
    result = Ctl(url, tmp_path).run("doctor")
    assert words in result.stdout and result.exit_code == 5, result.output


def test_the_doctor_looks_at_the_certificate(tmp_path: Path) -> None:
    certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    with Canned(answer(404), by_path=HEALTHY, tls=context) as server:
        ctl = Ctl(server.url, tmp_path)
        unknown = ctl.run("doctor")
        assert (
            "bad   tls       the certificate is not accepted" in unknown.stdout
            and "--ca-file" in unknown.stdout
        )
        assert unknown.exit_code == 5
        assert "CERTIFICATE_VERIFY_FAILED" in ctl.fails(5, "queues")
        known = ctl.run("doctor", "--wait", "0", "--ca-file", str(tmp_path / "ca.crt"))
        assert "warn  tls       TLSv1" in known.stdout and known.exit_code == 0, known.output
        assert "no TLS there" in ctl.run("doctor", "--url", f"https://127.0.0.1:{free_port()}").stdout
        assert "cannot be used" in ctl.fails(2, "queues", "--ca-file", "/nonexistent")


@pytest.mark.parametrize(
    ("rights", "name"),
    [
        (["admin"], "registryctl-doctor"),
        (["view", "pop mail"], ""),
        (["pop mail", "pop zone*:*"], "zoneregistryctl-doctor:"),
        (["pop a?*"], ""),
        (["operate"], ""),
    ],
)
def test_the_doctor_takes_no_task(rights: list[str], name: str) -> None:
    assert probe_of(rights) == name


def test_no_option_takes_a_token() -> None:
    """Other users of the machine can see options."""
    assert not [one for one in cli.params if "--token" in one.opts]

"""The tokens file: what is written into it, what is read from it, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from registry.model import tokens
from registry.model.tokens import BadToken, NoSuchToken, TokenExists, TokensError, create, load, revoke

HASH = "0" * 64
GOOD = {"name": "a", "hash": HASH, "rights": ["view"]}
SECRET = tokens.new_secret()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "new" / "tokens.json")


def written(path: str, *entries: dict[str, Any]) -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_text(json.dumps({"tokens": entries}), "utf-8")
    os.chmod(path, 0o600)
    return path


def test_a_token_is_created_found_and_revoked(path: str) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    secret = create(path, "zone-worker", ["pop zone*", "push results:*"], tomorrow)
    assert re.fullmatch(r"rgy_[A-Za-z0-9_-]{43}", secret)
    text = Path(path).read_text("utf-8")
    assert secret not in text and secret[4:] not in text
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    (token,) = load(path).tokens
    assert token.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert (token.name, token.rights, token.expires) == (
        "zone-worker",
        ("pop zone*", "push results:*"),
        tomorrow,
    )
    assert not token.has_expired(datetime.now(UTC)) and token.has_expired(tomorrow)
    # Text that a person can read: a line each for the name, the hash and every right.
    assert '      "name": "zone-worker",\n' in text and '        "pop zone*",\n' in text
    with pytest.raises(TokenExists):
        create(path, "zone-worker", ["view"])
    assert create(path, "another", ["admin"]) != secret
    assert revoke(path, "zone-worker") == token
    assert [one.name for one in load(path).tokens] == ["another"]
    with pytest.raises(NoSuchToken):
        revoke(path, "zone-worker")
    # Nothing lies about beside it.
    assert os.listdir(os.path.dirname(path)) == ["tokens.json"]


def test_a_file_that_is_missing_or_empty_has_no_tokens(path: str) -> None:
    assert load(path).tokens == ()
    for text in ("", "\n", "{}", '{"tokens": []}'):
        written(path)
        Path(path).write_text(text, "utf-8")
        assert load(path).tokens == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "two words"}, "number 1: A token's name"),
        ({"name": SECRET}, "number 1: A token's name"),
        ({"hash": SECRET}, "token 'a': The hash"),
        ({"hash": HASH.replace("0", "A")}, "token 'a': The hash"),
        ({"rights": []}, "at least one right"),
        ({"rights": ["push"]}, "needs a glob"),
        ({"rights": ["pop " + "a" * 256]}, "needs a glob"),
        ({"rights": ["view --all"]}, "'view --all' is not a right"),
        ({"rights": ["operate zone*"]}, "'operate zone*' is not a right"),
        ({"rights": [SECRET]}, "'rgy_***' is not a right"),
        ({"rights": "view"}, "Expected `array`"),
        ({"expires": "2027-01-31T12:00:00"}, "need a time zone"),
        ({"expires": "2027-01-31"}, "Invalid RFC3339"),
        ({"expires": "9999-12-31T23:59:59-02:00"}, "outside the years"),
        ({"created": "0001-01-01T00:00:00+02:00"}, "outside the years"),
        ({"expires": 1}, "Expected `datetime | null`"),
        # A misspelt "expires" would make a token that is valid for ever.
        ({"expire": "2027-01-31T12:00:00Z"}, "unknown field `expire`"),
    ],
)
def test_an_entry_that_is_not_well_formed_spoils_the_file(
    path: str, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(TokensError, match=re.escape(says)) as refused:
        load(written(path, {**GOOD, **change}))
    assert SECRET not in str(refused.value) and path in str(refused.value)
    # The other entries are not used either: one of them may be the rest of what somebody has half written.
    with pytest.raises(TokensError):
        load(written(path, {**GOOD, "name": "b"}, {**GOOD, "hash": "1" * 64, **change}))


@pytest.mark.parametrize("text", ["{", "[]", '{"tokens": 1}', '{"token": []}', "\ufeff{}", "tokens", "\x00"])
def test_a_file_that_is_no_such_json_is_refused(path: str, text: str) -> None:
    written(path)
    Path(path).write_text(text, "utf-8")
    with pytest.raises(TokensError, match="is not valid"):
        load(path)
    before = Path(path).read_bytes()
    with pytest.raises(TokensError):
        create(path, "a", ["view"])
    assert Path(path).read_bytes() == before


def test_what_is_no_regular_file_is_refused_and_holds_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(TokensError, match="is not a regular file"):
            load(str(path))


def test_names_and_hashes_are_there_once(path: str) -> None:
    with pytest.raises(TokensError, match="two tokens named 'a'"):
        load(written(path, GOOD, {**GOOD, "hash": "1" * 64}))
    with pytest.raises(TokensError, match="'a' and 'b' are the same"):
        load(written(path, GOOD, {**GOOD, "name": "b"}))


def test_who_else_may_write_the_file_could_let_himself_in(path: str) -> None:
    written(path, GOOD)
    for mode in (0o620, 0o602, 0o666):
        os.chmod(path, mode)
        with pytest.raises(TokensError, match=f"chmod 600 {re.escape(path)}"):
            load(path)
    os.chmod(path, 0o604)
    assert len(load(path).warnings) == 1
    # The last one is a credential of systemd as it looks: an access list lets one user read it.
    for mode in (0o600, 0o640, 0o400, 0o440):
        os.chmod(path, mode)
        assert not load(path).warnings
    if os.geteuid() == 0:
        os.chown(path, 12345, 0)
        with pytest.raises(TokensError, match="uid 12345"):
            load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file for another user")
def test_root_makes_the_file_for_who_owns_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 23456)
    path = str(tmp_path / "tokens.json")
    for name in ("a", "b"):
        create(path, name, ["view"])
        assert (os.stat(path).st_uid, os.stat(path).st_gid) == (12345, 23456)
    assert [token.name for token in load(path, for_its_daemon=True).tokens] == ["a", "b"]
    # A daemon that runs as root does not trust it, and nobody a file of a third user.
    with pytest.raises(TokensError, match="uid 12345"):
        load(path)
    os.chown(path, 12346, 23456)
    for use in (lambda: load(path, for_its_daemon=True), lambda: revoke(path, "a")):
        with pytest.raises(TokensError, match="uid 12346"):
            use()


def test_a_token_that_would_be_of_no_use_is_not_made(path: str) -> None:
    for name, rights, expires in (
        ("", ["view"], None),
        ("a", [], None),
        ("a", ["push"], None),
        ("a", ["view"], datetime.now(UTC)),
        ("a", ["view"], datetime(2099, 1, 1)),
        ("a", ["view"], datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2)))),
        ("a", ["push \udcff"], None),
    ):
        with pytest.raises(BadToken):
            create(path, name, rights, expires)
    assert load(path).tokens == ()


def test_writers_wait_for_each_other(path: str) -> None:
    def write(number: int) -> None:
        create(path, f"t{number}", ["view"])
        if number % 2:
            revoke(path, f"t{number}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.name for one in load(path).tokens) == sorted(f"t{number}" for number in range(0, 16, 2))


def test_the_target_of_a_link_is_replaced_and_not_the_link(tmp_path: Path, path: str) -> None:
    create(path, "a", ["view"])
    link = tmp_path / "link.json"
    link.symlink_to(path)
    create(str(link), "b", ["view"])
    assert link.is_symlink() and len(load(path).tokens) == 2

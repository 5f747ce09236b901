"""The tokens file: the names, hashes and rights of all tokens. The daemon reads it; the command line writes it, too.

    {"tokens": [{"name": "zone-worker", "hash": "9f86d081…", "rights": ["pop zone*", "push results:*"],
                 "created": "2026-11-27T22:00:00Z", "expires": "2027-11-27T22:00:00Z"}]}

``hash`` is the SHA-256 of the whole token in hexadecimal: the file contains no usable token. A right is one of

    push GLOB            push into the queues whose name matches, and read the tasks there and their results
    pop GLOB             pop from them; ack, fail, release and extend
    view                 read everything
    view --no-payloads   the same without payloads, results, errors, keys and what workers report
    operate              view, and change queues, tasks and schedules
    admin                everything

In a glob, ``*`` stands for any characters, ``?`` for one, ``[abc]`` for one of these.

No message of this module contains a token or a hash.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

# Scanners for leaked secrets can find a token by its beginning.
PREFIX: Final = "rgy_"
TOKEN: Final = re.compile(r"rgy_[A-Za-z0-9_-]{43}")
# Some encoders escape the underline and the dash.
_PARTLY = re.compile(r"rgy(?:_|%5[Ff])[A-Za-z0-9_%-]{6,}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 16 << 20
_MAX_GLOB = 255


class TokensError(ValueError):
    """Something about the tokens file that a person can mend; ``str()`` is one sentence."""


class TokensUnreadable(TokensError):
    """The file could not be opened or read just now; it may be possible later without a change of the file."""


class BadToken(TokensError):
    """A name, a right or an expiry that no token can have."""


class TokenExists(TokensError):
    """There is a token of this name already."""


class NoSuchToken(TokensError):
    """There is no token of this name."""


class Token(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One token of the file. ``hash``: 64 hexadecimal digits; times have a time zone, None for ``expires`` means never."""

    name: str
    hash: str
    rights: tuple[str, ...]
    created: datetime | None = None
    expires: datetime | None = None

    def has_expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= now


class Right(NamedTuple):
    """A right, parsed. ``verb``: push, pop, view, operate or admin; ``glob``: of push and pop; ``payloads``: of view."""

    verb: str
    glob: str = ""
    payloads: bool = True


class _File(Struct, forbid_unknown_fields=True):
    tokens: list[Token] = []


class TokensFile(NamedTuple):
    """What was read. ``warnings``: a sentence for each thing that is wrong but does not keep the file from being used."""

    tokens: tuple[Token, ...]
    warnings: tuple[str, ...] = ()


def default_data_dir(environ: Mapping[str, str]) -> str:
    """DATA_DIR where it is not given: the folder of the daemon's data, which need not exist yet."""
    state = environ.get("STATE_DIRECTORY", "").split(":")[0]  # systemd separates several by colons
    if state:
        return state
    data_home = environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(data_home):  # the XDG specification says to ignore a relative path
        return os.path.join(data_home, "registry")
    home = environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, ".local", "share", "registry")


def default_tokens_file(data_dir: str) -> str:
    """TOKENS_FILE where it is not given: beside the data in ``data_dir``."""
    return os.path.join(data_dir, "tokens.json")


def new_secret() -> str:
    """A new token: 256 random bits behind the prefix."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(secret: bytes) -> str:
    """What the file has of a token."""
    return hashlib.sha256(secret).hexdigest()


def parse_right(text: str) -> Right:
    """Read one right; raises `BadToken`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadToken("A right must be UTF-8; this one is not.") from None
    verb, _, rest = text.strip().partition(" ")
    rest = rest.strip()
    if verb in ("push", "pop"):
        if not rest or len(rest.encode()) > _MAX_GLOB:
            raise BadToken(f"The right {verb!r} needs a glob of queue names, such as '{verb} zone*'.")
        return Right(verb, rest)
    if (verb, rest) == ("view", "--no-payloads"):
        return Right(verb, payloads=False)
    if verb in ("view", "operate", "admin") and not rest:
        return Right(verb)
    raise BadToken(
        f"{mask_tokens(text)[:80]!r} is not a right; the rights are 'push GLOB', 'pop GLOB', 'view', 'view --no-payloads', 'operate' "
        "and 'admin'."
    )


def load(path: str, *, for_its_daemon: bool = False) -> TokensFile:
    """Read the file; one that does not exist has no tokens. Raises `TokensError` for one that cannot be used.

    It cannot be used where others may write it, because they could let themselves in. ``for_its_daemon``: the caller is not the
    daemon itself; if it is root, the file may belong to the owner of its folder, as that of the installed service does.
    """
    owners = {0, os.geteuid()}
    try:
        # O_NONBLOCK: to open a pipe must not stop the daemon.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise TokensError(f"The tokens file {path} is not a regular file.")
            if for_its_daemon and os.geteuid() == 0:
                owners.add(os.stat(os.path.dirname(os.path.realpath(path))).st_uid)
            with open(fd, "rb", closefd=False) as file:
                data = file.read(_MAX_BYTES + 1)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return TokensFile(())
    except OSError as error:
        raise TokensUnreadable(f"The tokens file {path} cannot be read: {error.strerror}.") from None
    if found.st_uid not in owners:
        raise TokensError(
            f"The tokens file {path} belongs to another user (uid {found.st_uid}): its owner can let anybody in. "
            f"Give it to the user that runs the daemon: chown {os.geteuid()} {path}"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TokensError(
            f"The tokens file {path} can be written by others, who could let themselves in: chmod 600 {path}"
        )
    if len(data) > _MAX_BYTES:
        raise TokensError(f"The tokens file {path} is larger than {_MAX_BYTES >> 20} MiB.")
    warnings: tuple[str, ...] = ()
    # systemd shows credentials to one user by an access list, which the bits of the group stand for.
    if found.st_mode & stat.S_IROTH:
        warnings = (f"The tokens file {path} can be read by every user of this machine: chmod 600 {path}",)
    return TokensFile(_decode(data, path), warnings)


def _decode(data: bytes, path: str) -> tuple[Token, ...]:
    if not data.strip():
        return ()
    try:
        tokens = tuple(msgspec.json.decode(data, type=_File).tokens)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TokensError(f"The tokens file {path} is not valid: {mask_tokens(str(error))}.") from None
    names: set[str] = set()
    hashes: dict[str, str] = {}
    for number, token in enumerate(tokens, 1):
        try:
            check(token)
        except TokensError as error:
            # The name may be anything: somebody may have put the token itself there.
            shown = repr(token.name) if _is_name(token.name) else f"number {number}"
            raise TokensError(f"The tokens file {path} is not valid, token {shown}: {error}") from None
        if token.name in names:
            raise TokensError(f"The tokens file {path} has two tokens named {token.name!r}.")
        if token.hash in hashes:
            raise TokensError(
                f"In the tokens file {path}, {hashes[token.hash]!r} and {token.name!r} are the same token."
            )
        names.add(token.name)
        hashes[token.hash] = token.name
    return tokens


def mask_tokens(text: str) -> str:
    """The text, a line of a log or an error, without the tokens that somebody may have put where they do not belong.

    The beginning of a token is masked too, because long values are cut.
    """
    return _PARTLY.sub(f"{PREFIX}***", text) if "rgy" in text else text


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and not TOKEN.search(name)


def check(token: Token) -> None:
    """Refuse a token that is not well formed; raises `BadToken`."""
    if not _is_name(token.name):
        raise BadToken(
            "A token's name must be 1 to 64 letters, digits and - _ . @, and begin with a letter or a digit."
        )
    if not _HASH.fullmatch(token.hash):
        raise BadToken("The hash of a token must be its SHA-256: 64 hexadecimal digits in lower case.")
    if not token.rights:
        raise BadToken("A token needs at least one right.")
    for right in token.rights:
        parse_right(right)
    for moment in (token.created, token.expires):
        if moment is not None and moment.tzinfo is None:
            raise BadToken("The times of a token need a time zone, such as 2027-01-31T12:00:00Z.")
        try:
            if moment is not None:
                moment.astimezone(UTC)
        except OverflowError:
            raise BadToken("A time of a token is outside the years 1 to 9999.") from None


def create(path: str, name: str, rights: Sequence[str], expires: datetime | None = None) -> str:
    """Add a token to the file, which is made with mode 0600 if need be, and return the secret: it is kept nowhere.

    Raises `TokenExists`, `BadToken`, `TokensError` for a file that cannot be used, and OSError. Daemons use the
    token within a second.
    """
    secret = new_secret()
    now = datetime.now(UTC)
    token = Token(name, hash_of(secret.encode()), tuple(rights), now.replace(microsecond=0), expires)
    check(token)
    if token.has_expired(now):
        raise BadToken("The token would have expired already.")
    with _writing(path) as file:
        if any(one.name == name for one in file.tokens):
            raise TokenExists(f"There is already a token named {name!r}.")
        file.tokens.append(token)
    return secret


def revoke(path: str, name: str) -> Token:
    """Take a token out of the file and return it; daemons refuse it within a second.

    Raises `NoSuchToken`, `TokensError` for a file that cannot be used, and OSError.
    """
    with _writing(path) as file:
        found = next((one for one in file.tokens if one.name == name), None)
        if found is None:
            raise NoSuchToken(f"There is no token named {name!r}.")
        file.tokens.remove(found)
    return found


@contextmanager
def _writing(path: str) -> Iterator[_File]:
    """The tokens of the file, written back if the block raises nothing. One writer at a time, over all processes."""
    path = os.path.realpath(path)  # the target of a link is replaced, not the link
    folder = os.path.dirname(path)
    os.makedirs(folder, 0o700, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = _File(list(load(path, for_its_daemon=True).tokens))
        yield file
        _replace(path, msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n")
        os.fsync(lock)
    finally:
        os.close(lock)


def _replace(path: str, data: bytes) -> None:
    try:
        old = os.stat(path)
        mode = stat.S_IMODE(old.st_mode) & 0o640
    except FileNotFoundError:
        old, mode = os.stat(os.path.dirname(path)), 0o600
    fd, temporary = tempfile.mkstemp(prefix=".tokens-", dir=os.path.dirname(path))
    try:
        with open(fd, "wb") as file:
            if os.geteuid() == 0:
                # Root made it for the daemon, which runs as the owner of the file or folder and must be able to read it.
                os.fchown(fd, old.st_uid, old.st_gid)
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise

"""The folder of the private Redis: who may use it, where its socket is, and what a damaged file means.

    DATA_DIR/                 0700 when made here
      lock                    flock held by the daemon for its life; holds its pid
      redis/                  0700, the working directory of the server
        server.lock           flock held by the *server* for its life; holds its pid
      written-by            the server that has written the data last, such as "valkey 9.1.2"
        redis.sock            its socket, unless the path is too long for one
        appendonly.aof        its data (before Redis 7)
        appendonlydir/        its data (Redis 7 and later)
        *.before-repair-*     copies made before a cut-off end was repaired

Redis itself takes no lock, and two servers on one append-only file destroy it. A daemon that was killed
leaves no ``lock`` behind, but its server may still be writing: hence the second lock, which the server
inherits.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Mapping

from registry.errors import EmbeddedUnavailable
from registry.redis.servers import Data, Release, release_of

# sun_path holds 107 bytes and a NUL; Redis 3.2 cuts a longer path silently at 107.
MAX_SOCKET_PATH = 100

# A whole command inside the last, unfinished one. No JSON document can hold these bytes (a raw line end
# stands only between tokens, and no token begins with a star), so what follows is data, not the end of a
# file.
_NEXT_COMMAND = re.compile(rb"\r\n\*[1-9][0-9]*\r\n\$[0-9]+\r\n")
_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
# How far from the end a transaction is looked for; the largest is a batch.
TAIL_BYTES = 256 * 1024 * 1024


def private_folder(path: str, *, force_mode: bool = True) -> None:
    """Make ``path`` a folder of this user with mode 0700; an existing one keeps its mode without
    ``force_mode``."""
    path = _without_strange_links(path)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        if force_mode and stat.S_IMODE(os.lstat(path).st_mode) != 0o700:
            # Not by its name, which may lead elsewhere by now.
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                os.fchmod(fd, 0o700)
            finally:
                os.close(fd)
    except OSError as error:
        raise EmbeddedUnavailable(
            f"The data folder {path} cannot be used: {error.strerror}; "
            "set DATA_DIR to a folder this user may write."
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise EmbeddedUnavailable(
            f"The data folder {path} is not writable; set DATA_DIR to one this user may write."
        )


def _without_strange_links(path: str) -> str:
    """``path`` with its links followed. EmbeddedUnavailable where one is not this user's or root's, or lies in a folder of
    somebody else, who could make the daemon write, and change modes, wherever its user may."""
    ours = (0, os.geteuid())
    at, left = "/", path.split("/")[::-1]
    followed = 0
    while left:
        name = left.pop()
        step = os.path.join(at, name)
        try:
            found = os.lstat(step)
            if stat.S_ISLNK(found.st_mode):
                if found.st_uid not in ours or os.stat(at).st_uid not in ours:
                    raise EmbeddedUnavailable(
                        f"The data folder {path} cannot be used: {step} is a link that belongs to somebody else, "
                        "or lies in a folder that does; set DATA_DIR to the folder itself, in a place of this user's own."
                    )
                followed += 1
                if followed > 40:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(step)
                left += target.split("/")[::-1]
                at = "/" if target.startswith("/") else at
                continue
        except FileNotFoundError:
            pass  # it is made
        except OSError as error:
            raise EmbeddedUnavailable(
                f"The data folder {path} cannot be used: {error.strerror}; "
                "set DATA_DIR to a folder this user may write."
            ) from None
        at = os.path.normpath(step)
    return at


def _flock(path: str) -> int | None:
    """An exclusive lock on ``path`` as an open descriptor, or None when another process holds it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EmbeddedUnavailable(f"The lock file {path} cannot be opened: {error.strerror}.") from None
    found = os.fstat(fd)
    strange = os.stat(os.path.dirname(path)).st_uid not in (0, os.geteuid())
    # Its pid is written into it: a second name of another file would do the same as a link.
    if not stat.S_ISREG(found.st_mode) or (strange and found.st_nlink > 1):
        os.close(fd)
        raise EmbeddedUnavailable(
            f"The lock file {path} is another file as well, or none; remove it, or set DATA_DIR to a folder of this user's own."
        )
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        os.close(fd)
        raise EmbeddedUnavailable(f"The file system of {path} cannot lock files: {error.strerror}.") from None
    return fd


def _read_pid(path: str) -> int:
    """The pid written in a lock file, 0 when there is none."""
    try:
        with open(path, "rb") as file:
            return int(file.read(20).strip() or b"0")
    except (OSError, ValueError):
        return 0


def lock_daemon(data_dir: str) -> int:
    """The lock of ``data_dir`` as a descriptor to keep open; EmbeddedUnavailable when another daemon holds
    it."""
    path = os.path.join(data_dir, "lock")
    fd = _flock(path)
    if fd is None:
        pid = _read_pid(path)
        by = f" (process {pid})" if pid else ""
        raise EmbeddedUnavailable(
            f"Another daemon{by} already uses the data folder {data_dir}; "
            "stop it, or set DATA_DIR to another folder."
        )
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except OSError as error:
        os.close(fd)
        raise EmbeddedUnavailable(
            f"The data folder {data_dir} cannot be written: {error.strerror}; make room, or set DATA_DIR to another folder."
        ) from None
    return fd


def lock_server(folder: str) -> int | None:
    """The lock that the next server inherits, or None while an earlier server still lives."""
    return _flock(os.path.join(folder, "server.lock"))


def end_leftovers(folder: str, kill: bool) -> list[int]:
    """Signal what still holds ``server.lock``; the pids signalled.

    The server itself gets SIGTERM, SIGKILL with ``kill``. Anything else that holds the lock is a forked
    child of a server that is gone, writing a temporary file nobody will read: SIGKILL. Only a process that
    has this very file open is touched, never a pid because a file names it.
    """
    path = os.path.join(folder, "server.lock")
    server = _read_pid(path)
    try:
        lock = os.stat(path)
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    signalled = []
    for pid in pids:
        if pid == os.getpid() or not _has_open(pid, lock):
            continue
        try:
            os.kill(pid, signal.SIGTERM if pid == server and not kill else signal.SIGKILL)
        except OSError:
            continue
        signalled.append(pid)
    return signalled


def _has_open(pid: int, file: os.stat_result) -> bool:
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                other = os.stat(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if (other.st_dev, other.st_ino) == (file.st_dev, file.st_ino):
                return True
    except OSError:
        pass
    return False


def socket_path(folder: str, environ: Mapping[str, str]) -> str:
    """Where the socket goes: in ``folder``, or in a short 0700 folder of its own when that path is too
    long."""
    path = os.path.join(folder, "redis.sock")
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    # The same name on every start, so that killed daemons do not fill the place with empty folders.
    name = "registry-" + hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    places = [environ.get("RUNTIME_DIRECTORY", "").split(":")[0], environ.get("XDG_RUNTIME_DIR", "")]
    for place in [*places, tempfile.gettempdir(), "/tmp"]:
        path = os.path.join(place, name, "redis.sock")
        if place and len(os.fsencode(path)) <= MAX_SOCKET_PATH and _own_folder(os.path.dirname(path)):
            return path
    try:  # somebody else made a folder of our name in a place that all may write
        path = os.path.join(tempfile.mkdtemp(prefix="registry-"), "redis.sock")
    except OSError:
        path = ""
    if not path or len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise EmbeddedUnavailable(
            f"The path of {folder} is too long for a socket; set DATA_DIR to a shorter one."
        )
    return path


def _own_folder(path: str) -> bool:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = os.lstat(path)
    return (
        stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700
    )


def look_at(folder: str) -> Data:
    """What is known of the data in ``folder``."""
    parts = os.path.join(folder, "appendonlydir")
    in_folder = os.path.isdir(parts)
    names = [os.path.join(folder, "appendonly.aof"), os.path.join(folder, "dump.rdb")]
    if in_folder:
        names += [os.path.join(parts, name) for name in os.listdir(parts) if ".base." in name]
    return Data(_read_writer(folder), max(map(_format_of, names)), in_folder)


def _format_of(path: str) -> int:
    """The RDB version in the head of a file, 0 when it has none."""
    try:
        with open(path, "rb") as file:
            head = re.match(rb"REDIS(\d{4})|VALKEY(\d{3})", file.read(9))
    except OSError:
        return 0
    return int(head[1] or head[2]) if head else 0


def _read_writer(folder: str) -> Release | None:
    try:
        with open(os.path.join(folder, "written-by"), "rb") as file:
            family, _, version = file.read(100).partition(b" ")
    except OSError:
        return None
    return release_of(family + b" server v=" + version)


def note_writer(folder: str, release: Release) -> None:
    """Note who writes the data from now on; it is on disk when this returns. OSError when it cannot be."""
    if _read_writer(folder) == release:
        return
    path = os.path.join(folder, "written-by")
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(f"{release}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def last_aof(folder: str) -> str | None:
    """The file that was being appended to, the only one whose end a crash can cut off; None when there is
    none."""
    parts = os.path.join(folder, "appendonlydir")
    try:
        with open(os.path.join(parts, "appendonly.aof.manifest"), encoding="utf-8") as manifest:
            names = [line.split()[1] for line in manifest if line.rstrip().endswith(" type i")]
    except (OSError, IndexError, UnicodeDecodeError):
        names = []
    path = os.path.join(parts, names[-1]) if names else os.path.join(folder, "appendonly.aof")
    return path if os.path.isfile(path) else None


def copy_aside(path: str) -> str:
    """A copy of ``path`` beside it, on disk before this returns; its name. EmbeddedUnavailable when it
    fails."""
    aside = f"{path}.before-repair-{time.strftime('%Y%m%dT%H%M%S')}"
    number = 1
    while os.path.exists(aside):
        number += 1
        aside = f"{path}.before-repair-{time.strftime('%Y%m%dT%H%M%S')}-{number}"
    try:
        shutil.copy2(path, aside)
        fd = os.open(aside, os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        # Half a copy is of no use, and would take the room that is made for the next one.
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise EmbeddedUnavailable(
            f"The end of {path} is cut off, and no copy of it could be made before repairing it: "
            f"{error.strerror}."
        ) from None
    return aside


def whole_transactions(path: str) -> int | None:
    """The size of ``path`` without what its end cuts in two: a command, or a transaction that has no EXEC; None when that cannot
    be told, because there is no transaction near the end.

    Cutting the command alone, as Redis before Valkey 9 does, leaves a MULTI open, and what is written next becomes a part of the
    old transaction: at the next start it is carried out twice, or not at all.
    """
    size = os.path.getsize(path)
    start = max(0, size - TAIL_BYTES)
    with open(path, "rb") as file:
        file.seek(start)
        tail = file.read()
    multi = len(tail)
    for _ in range(100):
        multi = tail.rfind(_MULTI, 0, multi)
        if multi < 0:
            return None
        at, is_open = multi, True
        while (after := _whole_command(tail, at)) is not None:
            if tail[at:after].upper() == _EXEC:
                is_open = False
            at = after
        # What another program pushed may hold these bytes: then whole commands are left behind the first broken one.
        if _NEXT_COMMAND.search(tail, at) is None:
            return start + (multi if is_open else at)
    return None


def zeros_at_end(path: str) -> int:
    """How many NUL bytes ``path`` ends with. A command ends with a line end: after a power cut a file system
    may
    have given the file its new length and not yet the bytes."""
    size = left = os.path.getsize(path)
    with open(path, "rb") as file:
        while left:
            step = min(left, 1 << 16)
            file.seek(left - step)
            kept = len(file.read(step).rstrip(b"\0"))
            left -= step - kept
            if kept:
                break
    return size - left


def is_only_an_end(aside: str, kept: int) -> bool:
    """Whether what follows byte ``kept`` of ``aside`` is one command (or transaction) cut off by the end of
    the file.

    A damaged length in the middle looks to the server like a file that ends too early, and it would throw
    away every command behind it. Those can be seen: the unfinished command then contains whole ones.
    """
    with open(aside, "rb") as file:
        file.seek(kept)
        rest = file.read()
    at = 0
    while (after := _whole_command(rest, at)) is not None:
        at = after
    return _NEXT_COMMAND.search(rest, at) is None


def _whole_command(data: bytes, at: int) -> int | None:
    """The position behind the whole command at ``at``, None when there is no whole one."""
    end = data.find(b"\r\n", at)
    if data[at : at + 1] != b"*" or end < 0 or not data[at + 1 : end].isdigit():
        return None
    count = int(data[at + 1 : min(end, at + 12)])
    at = end + 2
    for _ in range(count):
        end = data.find(b"\r\n", at, at + 24)
        if data[at : at + 1] != b"$" or end < 0 or not data[at + 1 : end].isdigit():
            return None
        at = end + 2 + int(data[at + 1 : end]) + 2
        if at > len(data) or data[at - 2 : at] != b"\r\n":
            return None
    return at


def restore(aside: str, path: str) -> None:
    """Put the copy back: nothing was repaired after all."""
    os.replace(aside, path)

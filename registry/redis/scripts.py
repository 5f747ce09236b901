"""Loads the Lua scripts: joins each with the files it uses, and calls it by its SHA-1.

A file names the files it builds on in its first line, ``-- uses: base, life``. Redis 3.2 has no ``require``, so
they are joined in front of it at load.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from txredisapi import ResponseError

from registry.redis.keys import bulk

_USES = re.compile(r"\A-- uses: ([a-z_, ]+)\n")


@dataclass(frozen=True, slots=True)
class Script:
    """One verb: its whole text and the hash that EVALSHA takes. ``by_hash``: the first two words of a call."""

    name: str
    text: bytes
    sha: bytes
    by_hash: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_hash", bulk(b"EVALSHA") + bulk(self.sha))

    def run(self, send: Callable[[bytes], Deferred[Any]]) -> Deferred[Any]:
        """Call ``send`` with the first two words of the call: with the hash, or with the text where Redis lacks the script."""

        def unknown(failure: Failure) -> Any:
            if isinstance(failure.value, ResponseError) and str(failure.value).startswith("NOSCRIPT"):
                return send(bulk(b"EVAL") + bulk(self.text))
            return failure

        return send(self.by_hash).addErrback(unknown)


def load(name: str) -> Script:
    """Read ``lua/<name>.lua`` with all the files it uses, each once, dependencies first."""
    parts: list[str] = []
    seen: set[str] = set()

    def add(part: str) -> None:
        if part in seen:
            return
        seen.add(part)
        text = files("registry.redis").joinpath("lua", f"{part}.lua").read_text("utf-8")
        uses = _USES.match(text)
        for needed in uses.group(1).split(", ") if uses else []:
            add(needed)
        parts.append(_without_comments(text))

    add(name)
    whole = "\n".join(parts).encode()
    return Script(name, whole, hashlib.sha1(whole, usedforsecurity=False).hexdigest().encode())


def _without_comments(text: str) -> str:
    # Whole-line comments only. This shortens the text, which is sent to every Redis that does not have it yet.
    return "\n".join(
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("--")
    )

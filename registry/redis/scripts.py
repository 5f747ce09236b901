"""Loads the Lua scripts: joins each with the files it uses, and calls it by its SHA-1.

A file names the files it builds on in its first line, ``-- uses: base, life``. Redis 3.2 has no ``require``, so
they are joined in front of it at load, without the functions that the script does not need. Redis makes each function anew in each
call, which was up to half the cost of a call with one entry. So a file may also name functions that are called in few calls, in its
line ``-- rarely: push_one``: what only these need is made when one of them is called.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from txredisapi import ResponseError

from registry.redis.keys import bulk

# A function of the outermost level: on one line, or to the first "end" that is not indented.
_FUNCTION = re.compile(
    r"^(?=local function (\w+))(local function .*(?: end\n|\n(?:[ \t].*\n)*end\n))", re.MULTILINE
)
# A name, but not that of a field, and not the first word of a text.
_WORD = re.compile(r"(?:(?<=\.\.)|(?<![.\w']))[A-Za-z_]\w*")
_RARELY = re.compile(r"^-- rarely: ([a-z_, ]+)\n", re.MULTILINE)
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
    rare: list[str] = []

    def add(part: str) -> None:
        if part in seen:
            return
        seen.add(part)
        text = files("registry.redis").joinpath("lua", f"{part}.lua").read_text("utf-8")
        uses = _USES.match(text)
        if rarely := _RARELY.search(text):
            rare.extend(rarely[1].split(", "))
        for needed in uses.group(1).split(", ") if uses else []:
            add(needed)
        parts.append(_without_comments(text))

    add(name)
    whole = only_needed("\n".join(parts) + "\n", rare).encode()
    return Script(name, whole, hashlib.sha1(whole, usedforsecurity=False).hexdigest().encode())


def only_needed(text: str, rare: Sequence[str]) -> str:
    """The script without the functions of the outermost level that it does not need.

    A function that only those in ``rare`` need is made when one of these is called, and not before.
    """
    # What is between functions, then name and text of a function, and so on.
    pieces = _FUNCTION.split(text)
    functions = dict(zip(pieces[1::3], pieces[2::3], strict=True))
    words = {name: set(_WORD.findall(body)) & functions.keys() for name, body in functions.items()}

    def needed(names: set[str], besides: Iterable[str]) -> set[str]:
        found: set[str] = set()
        while names:
            found |= names
            names = set().union(*(words[name] for name in names)) - found - set(besides)
        return found

    common = needed(set(_WORD.findall(" ".join(pieces[0::3]))) & functions.keys(), rare)
    whole = pieces[0]
    for name, body, code in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        if name in rare:
            private = needed({name}, [*common, *rare]) - {name}
            makes = "".join(text for other, text in functions.items() if other in private)
            begin = f"local function {name}("
            whole += f"local {name}\n{name} = function(...)\n{makes}{body.replace(begin, f'{name} = function(', 1)}"
            whole += f"return {name}(...)\nend\n"
        elif name in common:
            whole += body
        whole += code
    return whole


def _without_comments(text: str) -> str:
    # Whole-line comments only. This shortens the text, which is sent to every Redis that does not have it yet.
    return "\n".join(
        line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("--")
    )

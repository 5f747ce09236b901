"""Reads ``.env``, and finds names that look like settings but are not."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

from dotenv.parser import parse_stream

# A name in the environment belongs to another program, unless it is so similar to a setting that it must be a typo.
# REDIS_URL, a short name, with two letters swapped has a similarity of 0.89.
_TYPO_SIMILARITY = 0.88
_SHORTEST = 8
_TYPO_SIMILARITY_IN_FILE = 0.7


class EnvFile(NamedTuple):
    """``values``: by name, in file order; ``bad``: the numbers of the lines that set nothing."""

    values: dict[str, str]
    bad: list[int]


def read_env_file(path: str | None) -> EnvFile:
    """Read the file; an absent file is empty. OSError or UnicodeDecodeError when it cannot be read.

    ${...} is not expanded: a password may contain it, and the program of 2018 did not expand it either.
    """
    values: dict[str, str] = {}
    bad: list[int] = []
    if path is None or os.path.isdir(path):  # a folder named .env is a virtual environment
        return EnvFile(values, bad)
    if not os.path.exists(path):
        return EnvFile(values, bad)
    with open(path, encoding="utf-8-sig") as file:
        for binding in parse_stream(file):
            if binding.key is not None and binding.value is not None and not binding.error:
                values[binding.key] = binding.value
            elif binding.error or binding.key is not None:
                text = binding.original.string
                bad.append(binding.original.line + len(text) - len(text.lstrip("\r\n")))
    return EnvFile(values, bad)


def ineffective_names(path: str | None, environ: Mapping[str, str], names: Collection[str]) -> list[str]:
    """One sentence for each line of the file that has no effect, and for each variable that seems to be a typo.

    No value is shown: an unreadable line may be a password.
    """
    found = read_env_file(path)
    sentences = [f"Line {number} of {path} is not NAME=value and has no effect." for number in found.bad]
    for name in found.values:
        if name not in names:
            near = _nearest(name, names, _TYPO_SIMILARITY_IN_FILE)
            hint = f"; did you mean {near}?" if near else ": no setting has this name."
            sentences.append(f"{_shown(name)} in {path} has no effect{hint}")
    for name in environ:
        near = (
            _nearest(name, names, _TYPO_SIMILARITY) if name not in names and len(name) >= _SHORTEST else None
        )
        if near:
            sentences.append(f"{name} in the environment has no effect; did you mean {near}?")
    return sentences


def _nearest(name: str, names: Iterable[str], cutoff: float) -> str | None:
    return next(iter(get_close_matches(name.upper().replace("-", "_"), names, 1, cutoff)), None)


def _shown(name: str) -> str:
    return name if name.isprintable() and len(name) <= 60 else "A long name"

"""A second JSON parser, one step per token; the results of `registry.http.json_check` are compared with it."""

from __future__ import annotations

import re

from registry.http import json_faults
from registry.http.json_check import MAX_DEPTH, BadJson

SPACE = re.compile(rb"[ \t\n\r]*+")
CLOSES = {0x5B: 0x5D, 0x7B: 0x7D}


def scan(body: bytes, most: int = MAX_DEPTH) -> None:
    """The same as `check_json`, a token at a time; ``body`` must be valid UTF-8."""
    pos = 0
    end = len(body)
    open_brackets = bytearray()
    while True:
        # A value is due here.
        pos = _skip_space(body, pos)
        byte = body[pos] if pos < end else -1
        if byte in CLOSES:
            if len(open_brackets) == most:
                raise BadJson(pos, f"nested more than {most} levels deep", "too_deep")
            open_brackets.append(byte)
            pos = _skip_space(body, pos + 1)
            if pos < end and body[pos] == CLOSES[byte]:
                pos += 1
                open_brackets.pop()
            elif byte == 0x7B:
                pos = _key(body, pos)
                continue
            else:
                continue
        else:
            found = json_faults.SCALAR.match(body, pos)
            if found is None:
                raise json_faults.unexpected(body, pos)
            pos = found.end()
        # A value has ended: close brackets until a comma asks for the next one.
        while True:
            pos = _skip_space(body, pos)
            if not open_brackets:
                if pos < end:
                    raise json_faults.unexpected(body, pos)
                return
            byte = body[pos] if pos < end else -1
            if byte == 0x2C:
                pos += 1
                if open_brackets[-1] == 0x7B:
                    pos = _key(body, _skip_space(body, pos))
                break
            if byte != CLOSES[open_brackets[-1]]:
                raise json_faults.unexpected(body, pos)
            open_brackets.pop()
            pos += 1


def _skip_space(body: bytes, pos: int) -> int:
    found = SPACE.match(body, pos)
    return found.end() if found else pos


def _key(body: bytes, pos: int) -> int:
    """Read a key and its colon at ``pos``; return where its value may begin."""
    found = json_faults.STRING.match(body, pos)
    if found is None:
        raise json_faults.unexpected(body, pos)
    pos = _skip_space(body, found.end())
    if body[pos : pos + 1] != b":":
        raise json_faults.unexpected(body, pos)
    return pos + 1

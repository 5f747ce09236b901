"""Words and exact positions of the errors in a body that is not JSON. See `registry.http.json_check`."""

from __future__ import annotations

import re

from registry.errors import BadBody

# How many bytes of a string are examined where no string should be.
LOOK_AHEAD = 64 * 1024

# A string without its closing quote.
_STRING_PART = rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+'
_STRING_REST = re.compile(_STRING_PART)
_STRING_START = rb'"' + _STRING_PART
_BROKEN_STRING = re.compile(_STRING_START)
STRING = re.compile(_STRING_START + rb'"')
_SCALAR = _STRING_START + rb'"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null'
SCALAR = re.compile(_SCALAR)
SHORT_VALUE = re.compile(_SCALAR + rb"|\[\]|\{\}")
_POSITION = re.compile(r"\(byte (\d+)\)$")
_ESCAPE = re.compile(rb"\\u[0-9A-Fa-f]{4}")
_WORD = b"+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class BadJson(BadBody):
    """A body that is not JSON, or too deep for us.

    ``position`` is the offset in bytes of the first byte that does not fit (the length of the body when more
    was expected), ``reason`` what is wrong there, ``code`` is ``bad_json`` or ``too_deep``.
    """

    def __init__(self, position: int, reason: str, code: str = "bad_json") -> None:
        if code == "too_deep":
            super().__init__(f"The body is {reason}, at byte {position}.")
        else:
            super().__init__(f"The body is not JSON: {reason} at byte {position}.")
        self.position = position
        self.reason = reason
        self.code = code


def escapes_before(text: bytes | memoryview, at: int, begin: int = 0) -> bool:
    """Whether a backslash right before ``at`` escapes what stands at ``at``. ``begin`` is not inside an escape."""
    run = 0
    while run < at - begin:
        piece = bytes(text[max(begin, at - run - 4096) : at - run])
        found = len(piece) - len(piece.rstrip(b"\\"))
        run += found
        if found < len(piece):
            break
    return bool(run & 1)


def not_in_escape(text: bytes, at: int, begin: int = 0) -> int:
    """The first position from ``at`` on that is not inside an escape. ``begin`` is not inside one either, and before ``at``."""
    last = text.rfind(b"\\", max(begin, at - 5), at)
    if last < 0 or not escapes_before(text, last + 1, begin):
        return at
    return max(at, last + (6 if text[last + 1 : last + 2] == b"u" else 2))


def position_of(fault: str) -> int | None:
    """The position in an error of the fast parser, None if it has none."""
    found = _POSITION.search(fault)
    return int(found[1]) if found else None


def located(body: bytes, marked: bytes, fault: str) -> BadJson:
    """Describe the error ``fault`` that the fast parser found in ``body``, with its exact position.

    ``marked``: what the parser read, `registry.http.json_check.mark` of ``body``. The parser's own position is a few
    bytes late inside a string, a number or a word.
    """
    position = position_of(fault)
    if position is None:
        position = len(body)
    escape = marked.rfind(b"\\u", max(0, position - 6), position)
    if escape >= 0 and not _ESCAPE.match(marked, escape):
        # The parser may have read a quote after it as one of its digits.
        position = escape
    before = marked[:position].replace(b'\\"', b"__")
    if "truncated" in fault:
        # The parser does not read the last bytes if the word that begins there would be longer.
        for at in range(max(0, position - 4), position):
            if marked[at] in b"tfn" and not before.count(b'"', 0, at) & 1 and not SCALAR.match(marked, at):
                return unexpected(body, at)
    if before.count(b'"') & 1:
        quote = before.rfind(b'"')
        near = not_in_escape(body, max(quote + 1, position - 32))
        rest = _STRING_REST.match(body, near, near + LOOK_AHEAD)
        if rest and body[rest.end() : rest.end() + 1] != b'"':
            return _in_string(body, rest.end())
        return unexpected(body, quote)
    if "trailing characters" in fault:
        return unexpected(body, position - 1)
    if "expected" in fault:
        return unexpected(body, position)
    start = len(before.rstrip(_WORD))
    scalar = SCALAR.match(marked, start)
    return unexpected(body, scalar.end() if scalar else start)


def _in_string(body: bytes, pos: int) -> BadJson:
    """Describe why a string cannot continue at ``pos``."""
    if body[pos:] == b"\\":
        pos += 1
    elif body[pos : pos + 1] == b"\\":
        return BadJson(pos, "an invalid escape in a string")
    if pos < len(body) and body[pos] < 0x20:
        return BadJson(pos, f"a control character (0x{body[pos]:02x}) in a string")
    return BadJson(pos, "unexpected end")


def unexpected(body: bytes, pos: int) -> BadJson:
    """Describe what is wrong at ``pos``, or inside a string that begins there."""
    broken = _BROKEN_STRING.match(body, pos, pos + LOOK_AHEAD)
    if broken and broken.end() != pos + LOOK_AHEAD and body[broken.end() : broken.end() + 1] != b'"':
        return _in_string(body, broken.end())
    if not body.strip(b" \t\n\r"):
        return BadJson(pos, "the body is empty, a value was expected")
    if pos >= len(body):
        return BadJson(pos, "unexpected end")
    if body.startswith(b"\xef\xbb\xbf") and pos == 0:
        return BadJson(0, "a byte order mark")
    character = body[pos : pos + 4].decode("utf-8", "ignore")[:1]
    shown = f'"{character}"' if character.isprintable() else f"0x{body[pos]:02x}"
    return BadJson(pos, f"unexpected {shown}")

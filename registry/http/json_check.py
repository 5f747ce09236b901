"""Is this body JSON? Answered without building anything, because a payload is kept as the bytes that came.

What counts is the grammar of RFC 8259, in strict UTF-8 without a byte order mark, at most ``MAX_DEPTH``
deep. Lone surrogate escapes, duplicate keys, ``1e999`` and integers of any length are valid; ``NaN`` is not.

Two roads lead to the answer:

* the fast one is msgspec skipping over a ``Raw`` value (about 0.2 µs for 60 bytes). It keeps to the grammar,
  but lets invalid UTF-8 through, refuses ``"\\ud800"`` and counts depth by the interpreter's recursion limit;
  the lines around it in `check_json` mend exactly these three;
* the slow one, `scan`, is a tokenizer of regular expressions. It has the last word on whatever the fast one
  refuses, and finds the byte at which a body stops being JSON.
"""

from __future__ import annotations

import re
from array import array
from itertools import accumulate

import msgspec

from registry.errors import BadBody

MAX_DEPTH = 500
# Past this size the position of a fault is the fast parser's word (it may be a byte or two late), because
# the slow road takes about half a second for a MiB of brackets and nobody else is served meanwhile.
MAX_SCAN_BYTES = 256 * 1024

_skip = msgspec.json.Decoder(type=msgspec.Raw).decode

_SPACE = re.compile(rb"[ \t\n\r]*+")
# A string without its closing quote.
_STRING_START = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+'
_BROKEN_STRING = re.compile(_STRING_START)
_STRING = re.compile(_STRING_START + rb'"')
_SCALAR = re.compile(
    _STRING_START + rb'"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null'
)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"
_FAST_POSITION = re.compile(r"\(byte (\d+)\)$")
_STEP = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_CLOSES = {0x5B: 0x5D, 0x7B: 0x7D}


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


def check_json(body: bytes, most: int = MAX_DEPTH) -> None:
    """Return when ``body`` is one JSON value, at most ``most`` deep, with nothing but white space around it, else raise `BadJson`."""
    try:
        if not body.isascii():
            body.decode("utf-8")
        _skip(body)
    except UnicodeDecodeError as error:
        raise BadJson(error.start, f"invalid UTF-8 (0x{body[error.start]:02x})") from None
    except (msgspec.DecodeError, RecursionError) as error:
        _second_look(body, error, most)
    # No nesting of 500 without as many brackets, so short bodies need no counting.
    if len(body) > most and body.count(b"[") + body.count(b"{") > most and depth(body) > most:
        raise _too_deep(body, most)


def depth(body: bytes) -> int:
    """How deep the brackets of ``body`` go, which must be JSON by the grammar."""
    # Escaped backslashes, then escaped quotes, go first: then every other part between quotes is a string.
    outside = b"".join(body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    steps = array("b", outside.translate(_STEP, _NOT_BRACKETS))
    return max(accumulate(steps), default=0)


def _second_look(body: bytes, error: Exception, most: int) -> None:
    """Judge a body that the fast parser refused: return when it is JSON nonetheless, else raise `BadJson`."""
    if b"\\u" in body:
        # msgspec wants surrogates in pairs; the grammar does not. Both substitutes keep the length, and the
        # first sees to it that what follows an escaped backslash is not taken for an escape.
        try:
            _skip(_SURROGATE.sub(rb"\\u0041", body.replace(b"\\\\", b"__")))
            return
        except (msgspec.DecodeError, RecursionError) as second:
            error = second
    position = _FAST_POSITION.search(str(error))
    if len(body) > MAX_SCAN_BYTES and position is not None:
        at = int(position.group(1))
        raise BadJson(at, "the grammar is broken")
    if position is None and depth(body) > most:
        raise _too_deep(body, most)
    scan(body, most)


def scan(body: bytes, most: int = MAX_DEPTH) -> None:
    """The same as `check_json`, told by the slow road alone; ``body`` must be valid UTF-8."""
    pos = 0
    end = len(body)
    open_brackets = bytearray()
    while True:
        # A value is due here.
        pos = _skip_space(body, pos)
        byte = body[pos] if pos < end else -1
        if byte in _CLOSES:
            if len(open_brackets) == most:
                raise BadJson(pos, _TOO_DEEP, "too_deep")
            open_brackets.append(byte)
            pos = _skip_space(body, pos + 1)
            if pos < end and body[pos] == _CLOSES[byte]:
                pos += 1
                open_brackets.pop()
            elif byte == 0x7B:
                pos = _key(body, pos)
                continue
            else:
                continue
        else:
            found = _SCALAR.match(body, pos)
            if found is None:
                raise _unexpected(body, pos)
            pos = found.end()
        # A value has ended: close brackets until a comma asks for the next one.
        while True:
            pos = _skip_space(body, pos)
            if not open_brackets:
                if pos < end:
                    raise _unexpected(body, pos)
                return
            byte = body[pos] if pos < end else -1
            if byte == 0x2C:
                pos += 1
                if open_brackets[-1] == 0x7B:
                    pos = _key(body, _skip_space(body, pos))
                break
            if byte != _CLOSES[open_brackets[-1]]:
                raise _unexpected(body, pos)
            open_brackets.pop()
            pos += 1


def _skip_space(body: bytes, pos: int) -> int:
    found = _SPACE.match(body, pos)
    return found.end() if found else pos


def _key(body: bytes, pos: int) -> int:
    """Read a key and its colon at ``pos``; return where its value may begin."""
    found = _STRING.match(body, pos)
    if found is None:
        raise _unexpected(body, pos)
    pos = _skip_space(body, found.end())
    if body[pos : pos + 1] != b":":
        raise _unexpected(body, pos)
    return pos + 1


def _too_deep(body: bytes, most: int) -> BadJson:
    """Word that ``body`` is too deep; past ``MAX_SCAN_BYTES`` with the earliest possible position."""
    if len(body) <= MAX_SCAN_BYTES:
        try:
            scan(body, most)
        except BadJson as error:
            return error
    return BadJson(most, _TOO_DEEP, "too_deep")


def _unexpected(body: bytes, pos: int) -> BadJson:
    """Word what is wrong at ``pos``, looking into a string that begins there."""
    broken = _BROKEN_STRING.match(body, pos)
    if broken and not _STRING.match(body, pos):
        pos = broken.end()
        if body[pos:] == b"\\":
            pos += 1
        elif body[pos : pos + 1] == b"\\":
            return BadJson(pos, "an escape that does not exist in a string")
        if pos < len(body) and body[pos] < 0x20:
            return BadJson(pos, f"a control character (0x{body[pos]:02x}) in a string")
    if not body.strip(b" \t\n\r"):
        return BadJson(pos, "the body is empty, a value was expected")
    if pos >= len(body):
        return BadJson(pos, "unexpected end")
    if body.startswith(b"\xef\xbb\xbf") and pos == 0:
        return BadJson(0, "a byte order mark")
    character = body[pos : pos + 4].decode("utf-8", "ignore")[:1]
    shown = f'"{character}"' if character.isprintable() else f"0x{body[pos]:02x}"
    return BadJson(pos, f"unexpected {shown}")

"""Checks whether a body is JSON, without building anything, because a payload is kept as its original bytes.

The rule is the grammar of RFC 8259, in strict UTF-8 without a byte order mark, at most ``MAX_DEPTH``
deep. Lone surrogate escapes, duplicate keys, ``1e999`` and integers of any length are valid; ``NaN`` is not.

msgspec decides, by skipping over a ``Raw`` value (about 0.2 µs for 60 bytes). It follows the grammar with three exceptions,
which are corrected here: it accepts invalid UTF-8, it refuses ``"\\ud800"``, and it limits depth by the interpreter's
recursion limit. Each correction is a pass of C over the body or a piece of it, never a step of Python for each token, and
none keeps more than two copies of the body, so that one request does not hold up the others. `_locating` finds the exact
position of an error and words it.
"""

from __future__ import annotations

import re
import sys
from array import array
from codecs import utf_8_decode
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from registry.errors import BadBody
from registry.http.turns import Steps, at_once

MAX_DEPTH = 500
# Bytes examined at a time: cutting the strings out of them briefly takes many times their size.
PIECE = 16 * 1024
PIECES_PER_TURN = 32
UTF8_PIECE = 64 * 1024
MARKS_PER_TURN = 1024 * 1024
# How many bytes of a string are examined where no string should be.
LOOK_AHEAD = 64 * 1024
# How many brackets are counted in one step.
BLOCK = 256

_skip = msgspec.json.Decoder(type=msgspec.Raw).decode

# A string without its closing quote.
_STRING_PART = rb'[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+'
_STRING_REST = re.compile(_STRING_PART)
_STRING_START = rb'"' + _STRING_PART
_BROKEN_STRING = re.compile(_STRING_START)
_STRING = re.compile(_STRING_START + rb'"')
_SCALAR = re.compile(
    _STRING_START + rb'"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null'
)
_FAST_POSITION = re.compile(r"\(byte (\d+)\)$")
_STEP = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BRACKET_OR_QUOTE = re.compile(rb'["\[\]{}]')
_WORD = b"+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# These bytes never occur in UTF-8. They replace the backslash before a surrogate, and both bytes of an escaped backslash.
_SURROGATE_MARK, _ESCAPED_MARK = b"\xfd", b"\xfe\xff"
_MARKS = (
    (b"\\\\", _ESCAPED_MARK),
    (b"\\ud", _SURROGATE_MARK + b"ud"),
    (b"\\uD", _SURROGATE_MARK + b"uD"),
)
_ESCAPE = re.compile(rb"\\u[0-9A-Fa-f]{4}")
_BAD_MARK = re.compile(rb"\xfdu[dD](?![0-9A-Fa-f]{3})")
_UNMARK = bytes.maketrans(b"\xfd\xfe\xff", b"\\\\\\")


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
    """Raise `BadJson` unless ``body`` is one JSON value, at most ``most`` deep, with nothing but white space around it."""
    try:
        if body.isascii() or _is_short_utf8(body):
            _skip(body)
            # A body nested too deep has more than ``most`` opening brackets, so short bodies need no counting.
            if len(body) <= most or body.count(b"[") + body.count(b"{") <= most:
                return
    except (msgspec.DecodeError, RecursionError):
        pass
    at_once(checking(body, most))


def _is_short_utf8(body: bytes) -> bool:
    # Long bodies are decoded in pieces: one character past U+FFFF makes every character of a text take four bytes.
    if len(body) > UTF8_PIECE:
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def checking(body: bytes, most: int = MAX_DEPTH) -> Steps[bytes]:
    """Like `check_json`, in steps that are each short enough for a turn of the reactor.

    Returns the body as msgspec can read it: with `mark` applied if that was needed.
    """
    yield from _checking_utf8(body)
    marked, fault = body, _fault(body)
    yield
    if fault and fault != TOO_DEEP and b"\\" in body:
        # msgspec wants surrogates in pairs; the grammar does not.
        marked = yield from _marking(body)
        yield
        fault = _fault(marked)
        yield
    if fault == TOO_DEEP:
        yield from _checking_depth(body, most)
        marked = yield from _marking(body)
        yield
        fault = _fault(marked, room=2 * most)
    if fault:
        error = yield from _locating(body, marked, fault)
        yield from _checking_depth(body[: error.position], most)
        raise error
    if len(body) > most and body.count(b"[") + body.count(b"{") > most:
        yield from _checking_depth(body, most)
    return marked


TOO_DEEP = "too deep for the interpreter"


def _fault(body: bytes, room: int = 0) -> str:
    """The error of the fast parser for this body, "" for none. ``room``: levels to add to the interpreter's recursion limit."""
    limit = sys.getrecursionlimit()
    if room:
        sys.setrecursionlimit(limit + room)
    try:
        _skip(body)
    except msgspec.DecodeError as error:
        return str(error)
    except RecursionError:
        return TOO_DEEP
    finally:
        if room:
            sys.setrecursionlimit(limit)
    return ""


def _checking_utf8(body: bytes) -> Steps[None]:
    if body.isascii():
        return
    view, at, pieces = memoryview(body), 0, 0
    while at < len(body):
        piece = view[at : at + UTF8_PIECE]
        try:
            # A character that is split between two pieces is left to the next one.
            at += utf_8_decode(piece, "strict", at + len(piece) == len(body))[1]
        except UnicodeDecodeError as error:
            wrong = at + error.start
            raise BadJson(wrong, f"invalid UTF-8 (0x{body[wrong]:02x})") from None
        pieces += 1
        if not pieces % PIECES_PER_TURN:
            yield


def mark(body: bytes) -> bytes:
    """Replace the escapes in ``body``, which is UTF-8, that msgspec cannot read; `unmark` restores them.

    A mark is as long as what it replaces, so positions do not change.
    """
    return at_once(_marking(body))


def _marking(body: bytes) -> Steps[bytes]:
    marked = yield from _replacing(body, len(body), _MARKS)
    for at in range(0, len(marked), MARKS_PER_TURN):
        yield
        end = at + MARKS_PER_TURN
        bad = _BAD_MARK.search(marked, at, end + 5)
        if bad is not None and (bad.start() < end or end + 5 >= len(marked)):
            # It is not a valid escape: restore it, so that the fast parser reports it.
            return marked[: bad.start()] + b"\\" + marked[bad.start() + 1 :]
    return marked


def _replacing(body: bytes, stop: int, pairs: Sequence[tuple[bytes, bytes]]) -> Steps[bytes]:
    """Replace escapes up to ``stop`` by others of the same length; one piece per step, because there may be millions."""
    pieces, at = [], 0
    while at < stop:
        end = min(at + MARKS_PER_TURN, stop)
        # An escape that is split between two pieces is left to the next one.
        for begun in (b"\\", b"\\u") if end < stop else ():
            if _ends_with(body, at, end, begun):
                end -= len(begun)
                break
        piece = body[at:end]
        for escape, other in pairs:
            piece = piece.replace(escape, other)
        pieces.append(piece)
        at = end
        yield
    return b"".join(pieces)


def _ends_with(body: bytes, start: int, end: int, begun: bytes) -> bool:
    """Whether the piece ends with ``begun`` as the beginning of an escape."""
    if not body.endswith(begun, start, end):
        return False
    # The last of an odd number of backslashes begins an escape.
    before = body[start : end - len(begun) + 1]
    return bool((len(before) - len(before.rstrip(b"\\"))) & 1)


def not_in_escape(marked: bytes | memoryview, at: int) -> int:
    """The first position from ``at`` on that is not inside an escape, in a result of `mark`."""
    for before in range(max(0, at - 5), at):
        if marked[before] in b"\\\xfd":
            at = max(at, before + (6 if marked[before + 1] == 0x75 else 2))
    # The second half of an escaped backslash
    return at + (marked[at : at + 1] == b"\xff")


def unmark(piece: bytes) -> bytes:
    """Undo `mark` in a piece of its result."""
    return piece.translate(_UNMARK)


def _checking_depth(body: bytes, most: int) -> Steps[None]:
    """Follow the brackets of ``body`` piece by piece, and raise `BadJson` at the one that is too deep."""
    level, inside = 0, 0
    at, pieces = 0, 0
    while at < len(body):
        end = at + PIECE
        if _ends_with(body, at, end, b"\\"):
            # The escaped character belongs to this piece.
            end += 1
        piece = body[at:end]
        if b"\\" in piece:
            # Remove escaped backslashes, then escaped quotes: after that, every other part between quotes is a string.
            piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        parts = piece.split(b'"')
        brackets = b"".join(parts[inside::2]).translate(_STEP, _NOT_BRACKETS)
        reached = _follow(brackets, level, most)
        if reached is None:
            raise _first_too_deep(piece, at, level, bool(inside), most)
        level = reached
        inside = (inside + len(parts) - 1) & 1
        at = end
        pieces += 1
        if not pieces % PIECES_PER_TURN:
            yield


def _follow(brackets: bytes, level: int, most: int) -> int | None:
    """The depth after these brackets, which begin at ``level``; None if it exceeds ``most`` on the way."""
    for at in range(0, len(brackets), BLOCK):
        block = brackets[at : at + BLOCK]
        opens = block.count(1)
        if level + opens > most and level + max(accumulate(array("b", block))) > most:
            return None
        level += 2 * opens - len(block)
    return level


def _first_too_deep(piece: bytes, start: int, level: int, inside: bool, most: int) -> BadJson:
    position = start
    for found in _BRACKET_OR_QUOTE.finditer(piece):
        if found[0] == b'"':
            inside = not inside
        elif not inside:
            level += 1 if found[0] in b"[{" else -1
            if level > most:
                position = start + found.start()
                break
    return BadJson(position, f"nested more than {most} levels deep", "too_deep")


def _locating(body: bytes, marked: bytes, fault: str) -> Steps[BadJson]:
    """Describe the error that the fast parser found in ``body``, with its exact position.

    The parser's own position is a few bytes late inside a string, a number or a word.
    """
    found = _FAST_POSITION.search(fault)
    position = int(found[1]) if found else len(body)
    escape = marked.rfind(b"\\u", max(0, position - 6), position)
    if escape >= 0 and not _ESCAPE.match(marked, escape):
        # The parser may have read a quote after it as one of its digits.
        position = escape
    before = yield from _replacing(marked, position, ((b'\\"', b"__"),))
    if "truncated" in fault:
        # The parser does not read the last bytes if the word that begins there would be longer.
        for at in range(max(0, position - 4), position):
            if marked[at] in b"tfn" and not before.count(b'"', 0, at) & 1 and not _SCALAR.match(marked, at):
                return _unexpected(body, at)
    if before.count(b'"') & 1:
        quote = before.rfind(b'"')
        near = not_in_escape(marked, max(quote + 1, position - 32))
        rest = _STRING_REST.match(body, near, near + LOOK_AHEAD)
        if rest and body[rest.end() : rest.end() + 1] != b'"':
            return _in_string(body, rest.end())
        return _unexpected(body, quote)
    if "trailing characters" in fault:
        return _unexpected(body, position - 1)
    if "expected" in fault:
        return _unexpected(body, position)
    start = len(before.rstrip(_WORD))
    scalar = _SCALAR.match(marked, start)
    return _unexpected(body, scalar.end() if scalar else start)


def _in_string(body: bytes, pos: int) -> BadJson:
    """Describe why a string cannot continue at ``pos``."""
    if body[pos:] == b"\\":
        pos += 1
    elif body[pos : pos + 1] == b"\\":
        return BadJson(pos, "an invalid escape in a string")
    if pos < len(body) and body[pos] < 0x20:
        return BadJson(pos, f"a control character (0x{body[pos]:02x}) in a string")
    return BadJson(pos, "unexpected end")


def _unexpected(body: bytes, pos: int) -> BadJson:
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

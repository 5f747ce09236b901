"""Checks whether a body is JSON, without building anything, because a payload is kept as its original bytes.

The rule is the grammar of RFC 8259, in strict UTF-8 without a byte order mark, at most ``MAX_DEPTH``
deep. Lone surrogate escapes, duplicate keys, ``1e999`` and integers of any length are valid; ``NaN`` is not.

msgspec decides, by skipping over a ``Raw`` value (about 0.2 µs for 60 bytes). It follows the grammar with three exceptions,
which are corrected here: it accepts invalid UTF-8, it refuses ``"\\ud800"``, and it limits depth by the interpreter's
recursion limit.

msgspec takes up to 7 ns for a byte, and cannot be interrupted: it would hold up all other requests for a tenth of a second
with a body of 16 MiB. So a long body is read in pieces. Each ends behind a comma or inside a string, and becomes a text that
is JSON exactly if the body can go on there: in front of it stand the containers that are open where it begins, and behind
it they are closed: ``1,[{"c":2,`` inside an array becomes ``[0,`` + ``1,[{"c":2,`` + ``"":0}]]``. Neither a piece
nor a body takes a step of Python for each of its tokens. `registry.http.json_cut` uses the same places to cut a body.
"""

from __future__ import annotations

import re
import sys
from array import array
from bisect import bisect_right
from codecs import utf_8_decode
from itertools import accumulate

import msgspec

from registry.http.json_faults import LOOK_AHEAD, SHORT_VALUE, BadJson, located, not_in_escape, position_of
from registry.http.turns import Steps, at_once

__all__ = ["MAX_DEPTH", "BadJson", "Places", "check_json", "checking", "is_plain"]

MAX_DEPTH = 500
# Bytes up to which a body is read in one piece if nothing is wrong with it.
SHORT = 256 * 1024
# Bytes of a piece of a longer one. The longest steps are those for a piece of brackets: 5 ms.
PIECE = 64 * 1024
# How many bytes are searched for the end of a value before its pieces are looked up.
WINDOWS = (256, 4096, PIECE)

_skip = msgspec.json.Decoder(type=msgspec.Raw).decode

SPACE = b" \t\r\n"
_STEP = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_UTF_32 = f"utf-32-{sys.byteorder[0]}e"
_BRACKET_OR_QUOTE = re.compile(rb'["\[\]{}]')

# These bytes never occur in UTF-8. They replace the backslash before a surrogate, and both bytes of an escaped backslash.
_MARKS = ((b"\\\\", b"\xfe\xff"), (b"\\ud", b"\xfdud"), (b"\\uD", b"\xfduD"))
_BAD_MARK = re.compile(rb"\xfdu[dD](?![0-9A-Fa-f]{3})")

# The open containers at a place, outermost first, are bytes of ``[``, ``{`` and, at the end only, ``"`` inside a string that
# is a value; ``K`` instead of the last ``{`` inside a string that is a key.
_KEY = b"K"
_OPENING = {b"[": b"[0,", b"{": b'{"":0,', b'"': b'"', _KEY: b'{"', b"": b""}
_CLOSING = {b"[": b"0]", b"{": b'"":0}', b'"': b'"', _KEY: b'":0}', b"": b""}
_CLOSED = bytes.maketrans(b"[{", b"]}")


def opening(containers: bytes) -> bytes:
    """The beginning of a JSON text in which these containers are open, and a value, a key or the rest of a string is due."""
    return containers[:-1].replace(b"{", b'{"":') + _OPENING[containers[-1:]]


def closing(containers: bytes) -> bytes:
    """The end of such a text, behind a comma or inside the string."""
    return _CLOSING[containers[-1:]] + containers[-2::-1].translate(_CLOSED)


class Places:
    """Where the pieces of a body begin, but for the first one: ``offsets``, and the open ``containers`` at each.

    ``lowest``: the smallest number of open containers in the piece before it; a string counts as one if it fills the piece.
    """

    __slots__ = ("body", "containers", "lowest", "offsets")

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.offsets: list[int] = []
        self.containers: list[bytes] = []
        self.lowest: list[int] = []

    def end_of(self, at: int, depth: int) -> int:
        """The offset behind the value that begins at ``at`` inside ``depth`` containers of a body that was checked."""
        body, offsets = self.body, self.offsets
        found = SHORT_VALUE.match(body, at, at + WINDOWS[0])
        if found is not None and body[found.end()] in b",]} \t\r\n":
            return found.end()
        view = memoryview(body)
        for window in WINDOWS:
            end = _end_of_first(view[at : at + window])
            if end is not None:
                return at + end
        place = bisect_right(offsets, at)
        begin, before = at, b""
        if place < len(offsets):
            end = _end_of_first(view[at : offsets[place]])
            if end is not None:
                return at + end
            # It goes on in the next piece, and ends in the first one in which its own containers are closed.
            place += 1
            while place < len(offsets) and self.lowest[place] > depth:
                place += 1
            begin, before = offsets[place - 1], opening(self.containers[place - 1][depth:])
        stop = offsets[place] if place < len(offsets) else len(body)
        end = _end_of_first(before + body[begin:stop])
        assert end is not None
        return begin - len(before) + end


def _end_of_first(text: bytes | memoryview) -> int | None:
    """The offset behind the first value of a text in which something follows it; None if it is not whole, or nothing follows."""
    fault = _fault(text)
    if fault and "trailing" not in fault:
        fault = _fault(mark(bytes(text)), room=2 * MAX_DEPTH)
    if "trailing" not in fault:
        return None
    end = position_of(fault)
    assert end is not None
    end -= 1
    # There may be white space in between.
    while True:
        window = bytes(text[max(0, end - 64) : end])
        value = window.rstrip(SPACE)
        if value:
            return end - len(window) + len(value)
        end -= len(window)


def check_json(body: bytes, max_depth: int = MAX_DEPTH) -> None:
    """Raise `BadJson` unless ``body`` is one JSON value, at most ``max_depth`` deep, with nothing but white space around it."""
    if not is_plain(body, max_depth):
        at_once(_walking(body, max_depth))


def checking(body: bytes, max_depth: int = MAX_DEPTH) -> Steps[Places | None]:
    """Like `check_json`, in steps that are each short enough for a turn of the reactor.

    Returns the places at which it was divided, None if msgspec can read it as it is, and it is short.
    """
    if len(body) <= SHORT and is_plain(body, max_depth):
        return None
    return (yield from _walking(body, max_depth))


def is_plain(body: bytes, max_depth: int = MAX_DEPTH) -> bool:
    """Whether this is certainly JSON. Otherwise it may be, or not."""
    try:
        if body.isascii() or _is_short_utf8(body):
            _skip(body)
            # A body nested too deep has more than ``max_depth`` opening brackets, so short bodies need no counting.
            return len(body) <= max_depth or body.count(b"[") + body.count(b"{") <= max_depth
    except (msgspec.DecodeError, RecursionError):
        pass
    return False


def _is_short_utf8(body: bytes) -> bool:
    # Long bodies are decoded in pieces: one character past U+FFFF makes every character of a text take four bytes.
    if len(body) > PIECE:
        return False
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


TOO_DEEP = "too deep for the interpreter"


def _fault(text: bytes | memoryview, room: int = 0) -> str:
    """The error of the fast parser for this text, "" for none. ``room``: levels to add to the interpreter's recursion limit."""
    limit = sys.getrecursionlimit()
    if room:
        sys.setrecursionlimit(limit + room)
    try:
        _skip(text)
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
    view, at = memoryview(body), 0
    while at < len(body):
        piece = view[at : at + PIECE]
        try:
            # A character that is split between two pieces is left to the next one.
            at += utf_8_decode(piece, "strict", at + len(piece) == len(body))[1]
        except UnicodeDecodeError as error:
            wrong = at + error.start
            raise BadJson(wrong, f"invalid UTF-8 (0x{body[wrong]:02x})") from None
        yield


def mark(text: bytes) -> bytes:
    """Replace the escapes in ``text``, a piece of a body, that msgspec cannot read, by as many bytes."""
    if b"\\" not in text:
        return text
    for escape, other in _MARKS:
        text = text.replace(escape, other)
    bad = _BAD_MARK.search(text)
    if bad is not None:
        # It is not a valid escape: restore it, so that the fast parser reports it.
        return text[: bad.start()] + b"\\" + text[bad.start() + 1 :]
    return text


def _walking(body: bytes, max_depth: int) -> Steps[Places]:
    """Check the body piece by piece, one a step. See the module's docstring."""
    yield from _checking_utf8(body)
    if not body:
        raise _refused(body, 0, b"", 0)
    places = Places(body)
    # Where the current text begins, and what is open there; how far the brackets were followed, and what is open now.
    start, opened = 0, b""
    at, open_now, is_inside = 0, b"", False
    lowest = 0
    while at < len(body):
        end = min(not_in_escape(body, at + PIECE, at), len(body))
        piece = body[at:end]
        if b"\\" in piece:
            # Without escaped quotes, every other part between quotes is a string.
            piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        parts = piece.split(b'"')
        stop = end
        if end < len(body):
            parts = _cut(parts, is_inside)
            # A text that ends neither behind a comma nor inside a string goes on in the next piece.
            stop = at + sum(map(len, parts)) + len(parts) - 1
        was_inside, is_inside = is_inside, bool((is_inside + len(parts) - 1) & 1)
        ends = stop == len(body) or is_inside or parts[-1].endswith(b",")
        brackets = b"".join(parts[was_inside::2]).translate(None, _NOT_BRACKETS)
        after = _follow(brackets, open_now, max_depth)
        if isinstance(after, int):
            raise _too_deep(body, start, opened, at, piece, was_inside, after, max_depth)
        if after is None:
            raise _refused(body, start, opened, stop)
        open_now, kept = after
        lowest = min(lowest, kept)
        at = stop
        if ends:
            now = open_now
            if at == len(body):
                now = b""
            elif is_inside and len(parts) == 1 and was_inside:
                # The same string as in the piece before.
                now, lowest = opened, len(opened)
            elif is_inside and _is_key(body, start, at - len(parts[-1]) - 1, open_now):
                now = open_now[:-1] + _KEY
            elif is_inside:
                now += b'"'
            is_over = at < len(body) and not now
            if is_over or not _is_valid(opening(opened) + body[start:at] + closing(now)):
                raise _refused(body, start, opened, at)
            start, opened = at, now
            if at < len(body):
                places.offsets.append(start)
                places.containers.append(opened)
                places.lowest.append(lowest)
            lowest = len(open_now)
        yield
    return places


def _cut(parts: list[bytes], is_inside: bool) -> list[bytes]:
    """The parts of a piece up to its last comma outside of strings, or else up to a place inside its last string, if it has one."""
    for number in range(len(parts) - 1, -1, -1):
        if (number + is_inside) & 1 == 0:
            comma = parts[number].rfind(b",") + 1
            if comma:
                return [*parts[:number], parts[number][:comma]]
            if len(parts) - number > 3 * MAX_DEPTH:
                # So many strings without a comma are not JSON.
                break
    if (len(parts) + is_inside) & 1 and (len(parts) > 2 or (is_inside and parts[0])):
        # It ends behind a string: leave the closing quote to the next piece.
        return parts[:-1]
    return parts


def _is_key(body: bytes, start: int, quote: int, containers: bytes) -> bool:
    """Whether the string that begins at ``quote`` must be a key."""
    return containers[-1:] == b"{" and not body[start:quote].rstrip(SPACE).endswith(b":")


def _is_valid(text: bytes) -> bool:
    return not _fault(text) or not _fault(mark(text), room=2 * MAX_DEPTH)


def _follow(brackets: bytes, containers: bytes, max_depth: int) -> tuple[bytes, int] | int | None:
    """The open containers after these brackets, and how many of them were never closed meanwhile.

    Or the index of the bracket that is one too many, or None if one closes nothing.
    """
    # Most containers are closed soon. To remove those without others inside takes less time than to follow them.
    rest, hidden = brackets, 0
    while len(rest) > 64:
        less = rest.replace(b"[]", b"").replace(b"{}", b"")
        if 4 * len(less) > 3 * len(rest):
            break
        rest, hidden = less, hidden + 1
    if hidden and len(containers) + hidden <= max_depth:
        after = _follow_each(rest, containers, max_depth - hidden)
        if not isinstance(after, int):
            return after
    return _follow_each(brackets, containers, max_depth)


def _follow_each(brackets: bytes, containers: bytes, max_depth: int) -> tuple[bytes, int] | int | None:
    if not brackets:
        return containers, len(containers)
    levels = array("i", accumulate(array("b", brackets.translate(_STEP)), initial=len(containers)))
    underflow = False
    # As text, because its searches are fast. No character is negative.
    try:
        text = levels.tobytes().decode(_UTF_32, "surrogatepass")
    except UnicodeDecodeError as error:
        text, underflow = levels[: error.start // 4].tobytes().decode(_UTF_32, "surrogatepass"), True
    deep = text.find(chr(max_depth + 1))
    if deep >= 0:
        return deep - 1
    if underflow:
        return None
    # The container at each level was opened where the level below it was left for the last time.
    opened = bytearray()
    level, last = levels[-1], len(text)
    while level > len(opened) and (last := text.rfind(chr(level - len(opened) - 1), 0, last)) >= 0:
        opened.append(brackets[last])
    kept = level - len(opened)
    return containers[:kept] + opened[::-1], kept


def _too_deep(
    body: bytes, start: int, opened: bytes, at: int, piece: bytes, is_inside: bool, index: int, max_depth: int
) -> BadJson:
    """The error for the bracket with this index in the piece at ``at``, unless there is another one before it."""
    position = at
    for found in _BRACKET_OR_QUOTE.finditer(piece):
        if found[0] == b'"':
            is_inside = not is_inside
        elif not is_inside:
            if not index:
                position = at + found.start()
                break
            index -= 1
    before = _error_in(body, start, opened, position + 16)
    if before is not None and before.position <= position:
        return before
    return BadJson(position, f"nested more than {max_depth} levels deep", "too_deep")


def _refused(body: bytes, start: int, opened: bytes, stop: int) -> BadJson:
    """The error that makes the text from ``start`` to ``stop`` wrong."""
    error = _error_in(body, start, opened, stop + 2 * LOOK_AHEAD)
    assert error is not None
    return error


def _error_in(body: bytes, start: int, opened: bytes, stop: int) -> BadJson | None:
    before = opening(opened)
    text = before + body[start:stop]
    marked = mark(text)
    fault = _fault(marked, room=2 * MAX_DEPTH)
    if not fault or fault == TOO_DEEP:
        return None
    error = located(text, marked, fault)
    return BadJson(start - len(before) + error.position, error.reason)

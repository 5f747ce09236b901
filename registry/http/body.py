"""Bodies that arrive in pieces, by Content-Length or chunked."""

from __future__ import annotations

import re
from io import BytesIO

from registry.http.limits import MAX_HEADERS_SIZE, MAX_LINE, too_large
from registry.http.validation import Refusal, bad_request

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
# The longest line with a chunk's size, bytes.
MAX_SIZE_LINE = 1024


class Counted:
    """A body of ``length`` bytes. ``feed`` returns None until the body is complete, then the bytes after it; see ``whole()``."""

    __slots__ = ("_body", "_left")

    def __init__(self, length: int) -> None:
        self._left = length
        self._body = BytesIO()

    def feed(self, data: bytes) -> bytes | None:
        """Take more bytes."""
        left = self._left
        self._left -= len(data)
        if self._left >= 0:
            self._body.write(data)
            return None if self._left else b""
        self._body.write(data[:left])
        return data[left:]

    def whole(self) -> bytes:
        """The body, which is not copied."""
        return self._body.getvalue()


class Chunks:
    """A chunked body. ``feed`` returns None until the body is complete, then the bytes after it; see ``whole()``.

    Raises `Refusal` for malformed input, and for a chunk that would exceed ``limit`` bytes, before the chunk arrives.
    """

    __slots__ = ("_body", "_extensions", "_left", "_limit", "_line", "_trailers")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body = BytesIO()
        self._line = b""  # the part of a size line or a trailer that has arrived
        self._left = -1  # bytes missing of the chunk, including its line end; -1: its size has not arrived
        self._extensions = 0  # bytes of chunk extensions, which follow the sizes
        self._trailers = -1  # bytes of trailers; -1: none yet

    def whole(self) -> bytes:
        """The body, which is not copied."""
        return self._body.getvalue()

    def feed(self, data: bytes) -> bytes | None:
        """Take more bytes."""
        at, size = 0, len(data)
        while at < size:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                self._body.write(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            if self._left > 0:
                # The chunk's own line end.
                if data[at] != b"\r\n"[2 - self._left]:
                    raise bad_request("A chunk of the body is longer than its stated size.")
                self._left -= 1
                at += 1
                if self._left == 0:
                    self._left = -1
                continue
            end = data.find(b"\n", at)
            self._line += data[at : end + 1] if end >= 0 else data[at:]
            if len(self._line) > (MAX_LINE if self._trailers >= 0 else MAX_SIZE_LINE):
                raise bad_request("A line between the chunks of the body is too long.")
            if end < 0:
                return None
            at = end + 1
            line, self._line = self._line, b""
            if not line.endswith(b"\r\n"):
                raise bad_request("A line between the chunks of the body does not end in CR LF.")
            if self._trailers >= 0:
                self._trailers += len(line)
                if self._trailers > MAX_HEADERS_SIZE:
                    raise Refusal(431, "headers_too_large", "The trailers are too large.")
                if line == b"\r\n":
                    return data[at:]
                continue
            found = _CHUNK_SIZE.fullmatch(line)
            if found is None:
                raise bad_request("A chunk of the body has an invalid size.")
            self._extensions += len(line) - len(found[1]) - 2
            if self._extensions > MAX_HEADERS_SIZE:
                raise bad_request("The chunks of the body have too many extensions.")
            length = int(found[1], 16)
            if length == 0:
                self._trailers = 0
            elif self._body.tell() + length > self._limit:
                raise too_large(self._limit)
            else:
                self._left = length + 2
        return None

"""The files of the dashboard: read and compressed once, when the daemon starts.

They hold no data, so everybody may read them. A browser keeps them and asks each time whether they have changed; the ETag,
a hash of the content, answers that without sending them again.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path
from typing import Final

from msgspec import Struct

from registry.errors import NotFound
from registry.http.codec import Answer
from registry.http.request import Request

FOLDER: Final = Path(__file__).parent / "dashboard"
PAGE: Final = "index.html"
MEDIA: Final = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".txt": b"text/plain; charset=utf-8",
    ".json": b"application/json",
}
# Nothing of another host, no script and no style inside a page, and no page of another site around this one.
POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    b"form-action 'self'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"Content-Security-Policy", POLICY),
    (b"Referrer-Policy", b"no-referrer"),
    (b"X-Frame-Options", b"DENY"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
)
# Keep it, and ask each time.
_CACHE: Final = b"no-cache"
_CODING: Final = re.compile(rb"\s*([^\s;,]+)\s*(?:;\s*q\s*=\s*([0-9.]+)\s*)?")


class File(Struct, frozen=True):
    """A file as it is sent: plain, and compressed. ``etag``: without quotes."""

    plain: bytes
    zipped: bytes
    media: bytes
    etag: bytes


class Static:
    """The files below ``folder`` by their path. Those of unknown types are not served."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.files: dict[str, File] = {}
        for path in sorted(folder.rglob("*")):
            media = MEDIA.get(path.suffix)
            if media is not None and path.is_file():
                self.files[path.relative_to(folder).as_posix()] = file_of(path.read_bytes(), media)

    def page(self, request: Request) -> Answer:
        """The page itself."""
        return self._answer(PAGE, request)

    def file(self, request: Request) -> Answer:
        """A file that the page needs, by the segments of its path; raises `NotFound`."""
        return self._answer(b"/".join(request.segments).decode("latin-1"), request)

    def _answer(self, path: str, request: Request) -> Answer:
        file = self.files.get(path)
        if file is None:
            raise NotFound("The dashboard has no such file.")
        return answer_with(file, request)


def file_of(plain: bytes, media: bytes) -> File:
    """A file with this content."""
    etag = hashlib.sha256(plain).hexdigest()[:24].encode()
    # The time would make the same file another one after each start.
    return File(plain, gzip.compress(plain, 9, mtime=0), media, etag)


def answer_with(file: File, request: Request) -> Answer:
    """The answer to a request for this file: 304 if its sender has it already."""
    zips = _takes_gzip(request.header(b"accept-encoding") or b"") and len(file.zipped) < len(file.plain)
    etag = b'"%b%b"' % (file.etag, b"-gzip" if zips else b"")
    headers = [*_HEADERS, (b"ETag", etag), (b"Vary", b"Accept-Encoding")]
    if _has(request.header(b"if-none-match") or b"", etag):
        return Answer(304, b"", tuple(headers), media=file.media, cache=_CACHE)
    if zips:
        headers.append((b"Content-Encoding", b"gzip"))
    return Answer(200, file.zipped if zips else file.plain, tuple(headers), media=file.media, cache=_CACHE)


def _takes_gzip(accepted: bytes) -> bool:
    """Whether this Accept-Encoding allows gzip; a coding with a weight of 0 is refused, ``*`` stands for those not named."""
    weights: dict[bytes, bool] = {}
    for part in accepted.lower().split(b","):
        found = _CODING.fullmatch(part)
        if found is not None:
            weights[found[1]] = found[2] is None or bool(found[2].strip(b"0."))
    return weights.get(b"gzip", weights.get(b"*", False))


def _has(given: bytes, etag: bytes) -> bool:
    """Whether an If-None-Match names this ETag; a proxy may have marked it as weak."""
    tags = [tag.strip().removeprefix(b"W/") for tag in given.split(b",")]
    return etag in tags or tags == [b"*"]

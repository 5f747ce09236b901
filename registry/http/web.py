"""What Klein and twisted.web need to serve the same endpoints as our own connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from werkzeug.routing import PathConverter

from registry.http.auth import ANYONE


class AnyPath(PathConverter):  # type: ignore[misc]
    """Any part of a path. Werkzeug matches the decoded path; the table of routes splits the raw path, and decides."""

    regex = r"(?s:.*)"
    part_isolating = False


class WebHead:
    """The head of a request of twisted.web."""

    __slots__ = ("access", "address", "get", "method", "path", "query", "request_id")
    request_id: bytes

    def __init__(self, request: Any) -> None:
        self.access = ANYONE
        self.method: bytes = request.method
        target: bytes = request.uri
        if target[:1] != b"/" and b"://" in target:
            target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
        self.path, _, self.query = target.partition(b"?")
        self.get: Callable[[bytes], bytes | None] = request.getHeader
        self.address: str = getattr(request.getClientAddress(), "host", None) or "-"

"""Cross-origin requests (CORS) of the web pages that ``CORS_ORIGINS`` names, and of no others.

No answer allows credentials: a page of another origin sends a token in a header, and never uses the session of the dashboard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from registry.http.codec import Answer

# What a page may send besides the headers that every page may, and what it may read. An asterisk would leave out Authorization.
_REQUEST_HEADERS: Final = b", ".join(
    (
        b"Authorization",
        b"Content-Type",
        b"Idempotency-Key",
        b"Prefer",
        b"X-Request-Id",
        b"traceparent",
        b"tracestate",
    )
)
_ANSWER_HEADERS: Final = b", ".join(
    (
        *(b"Idempotency-Replayed", b"Location", b"Preference-Applied", b"Registry-Ack", b"Retry-After"),
        *(b"WWW-Authenticate", b"X-Request-Id", b"traceparent", b"tracestate"),
    )
)
# How long a browser may remember the answer to a preflight, s.
_MAX_AGE: Final = 600


class Cors:
    """``origins``: as browsers write them."""

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._lines = {
            origin.encode(): b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Expose-Headers: %b\r\nVary: Origin\r\n"
            % (origin.encode(), _ANSWER_HEADERS)
            for origin in origins
        }

    def lines(self, origin: Sequence[bytes]) -> bytes:
        """The header lines for a page of this origin; b"" where no other origin's page may use the API."""
        return self._lines.get(origin[0], b"") if len(origin) == 1 and self._lines else b""


def preflight(request: Any) -> Answer:
    """The answer to the question whether a page of an allowed origin may send a request; it needs no token."""
    return Answer(
        200,
        b"",
        (
            (b"Access-Control-Allow-Methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
            (b"Access-Control-Allow-Headers", _REQUEST_HEADERS),
            (b"Access-Control-Max-Age", b"%d" % _MAX_AGE),
        ),
    )

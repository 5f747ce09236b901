"""The tokens over HTTP: a list to read. They are created and revoked in the file alone."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.http import options
from registry.http.auth import Entry, Gate, time_text
from registry.http.codec import json_answer, text, whole
from registry.http.request import Options, Request

PAGE, MAX_PER_PAGE = 100, 1000
TOKENS_OPTIONS: Options = {"cursor": text(1, 800), "limit": whole(1, MAX_PER_PAGE)}


class TokenList:
    """Lists the tokens of ``gate``. ``last_used()`` fires with the time of the last request by the id of its token, ms."""

    def __init__(self, gate: Gate, last_used: Callable[[], Deferred[dict[str, int]]]) -> None:
        self._gate = gate
        self._last_used = last_used

    @inlineCallbacks
    def list(self, request: Request) -> Any:
        """The tokens by name, a page at a time: all but the hashes."""
        last_used = yield self._last_used()
        limit = request.options.get("limit", PAGE)
        behind = options.decode_cursor(request.options.get("cursor", ""))
        page = heapq.nsmallest(
            limit + 1,
            (entry for entry in self._gate.entries if entry.token.name.encode() > behind),
            key=lambda entry: entry.token.name,
        )
        cursor = options.encode_cursor(page[limit - 1].token.name.encode()) if len(page) > limit else None
        rows = [_row(entry, last_used.get(entry.id)) for entry in page[:limit]]
        return json_answer(200, {"tokens": rows, "cursor": cursor})


def _row(entry: Entry, used_ms: int | None) -> dict[str, Any]:
    token, access = entry.token, entry.access
    return {
        "name": token.name,
        "rights": token.rights,
        "created": None if token.created is None else time_text(token.created.timestamp()),
        "expires": None if token.expires is None else time_text(token.expires.timestamp()),
        "expired": access.is_over,
        "last_used": None if used_ms is None else time_text(used_ms / 1000),
    }

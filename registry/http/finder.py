"""Finds what answers a request on a connection, and remembers it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace
from twisted.python.failure import Failure

from registry.http.codec import Answer, failure_answer, names_from
from registry.http.parser import Found, Head, remember
from registry.http.request import Match, Request, Route, Table
from registry.http.validation import ALLOW

# The rights of routes whose requests the audit may record.
RECORDED = ("operate", "admin")
SESSION = "/api/session"
# The longest query that is remembered, bytes.
MAX_QUERY = 128


class Finder:
    """The routes with their endpoints. ``found``: by verb, for a head that comes once, and for one that comes often.

    ``unknown``: how many requests for unknown paths were answered, by status.
    """

    def __init__(self, endpoints: Iterable[tuple[Route, Callable[[Request], Any]]]) -> None:
        self.table = Table()
        self.unknown: dict[int, int] = {}
        self.found: dict[str, tuple[Found, Found]] = {}
        for row, endpoint in endpoints:
            self.table.add(row)
            self.found[row.verb] = _found(row, _answering(row, endpoint))
        self._leaves: dict[tuple[bytes, bytes, bytes], tuple[Found, bytes, bytes, dict[str, Any]]] = {}
        self._queries: dict[tuple[str, bytes], tuple[bytes, dict[str, Any]]] = {}

    def find(self, head: Head) -> Found:
        """Find what answers this head on a connection; if that fails, the error is the answer."""
        if head.method == b"OPTIONS" and head.path in (b"*", b"/"):
            return Found(_options, right="open")
        # In the paths of leases and tasks, all but the last segment repeats often.
        above, _, last = head.path.rpartition(b"/")
        leaf = self._leaves.get((head.method, above, head.query))
        if leaf is not None:
            found, head.name, first, head.options = leaf
            head.segments = first, last
            return found
        # Every admitted caller learns that there is no such path, but only holders of the right learn of wrong options.
        found = Found(None, counts=self.unknown)
        try:
            match = self.table.find(head.method, head.path)
            route, segments = match
            once, often = self.found[route.verb]
            found = Found(None, body=route.body, counts=once.counts)
            head.name, head.segments = match.name(), segments
            if once.many:
                names_from(segments[0])
            found = once
            head.query, head.options = self._query(match, head.query)
        except Exception:
            answer = failure_answer(Failure())
            return replace(found, verb=lambda head, body, address: answer, parks=False)
        if len(segments) == 1 and b":" not in segments[0]:
            # A queue that was made for one request (its name has a colon) does not come again.
            found = often
        if len(segments) == 2 and route.path.endswith(">"):
            leaf = found, head.name, segments[0], head.options
            remember(self._leaves, (head.method, above, head.query), leaf)
        return found

    def _query(self, match: Match, query: bytes) -> tuple[bytes, dict[str, Any]]:
        """The query and its options; all requests that wait with the same query share these objects."""
        key = match.route.verb, query
        found = self._queries.get(key)
        if found is None:
            found = query, match.options(query)
            if len(query) <= MAX_QUERY:
                remember(self._queries, key, found)
        return found


def _found(row: Route, verb: Callable[..., Any]) -> tuple[Found, Found]:
    """What `Finder.find` returns for a route: for a head that comes once, and for one that comes often."""
    once = Found(verb, row.parks, False, row.right, row.or_push, "<names>" in row.path, row.body)
    return once, once if row.right in RECORDED else replace(once, remembers=True)


def _answering(row: Route, endpoint: Callable[[Request], Any]) -> Callable[[Head, bytes, str], Any]:
    def answer(
        head: Head, body: bytes, address: str, request_id: bytes = b"", is_secure: bool = False
    ) -> Any:
        head.access.is_used = True
        return endpoint(
            Request(
                head.name,
                head.segments,
                head.query,
                head.options,
                head.fields.get,
                body,
                head.access,
                address,
                request_id,
                is_secure,
            )
        )

    def answer_recorded(head: Head, body: bytes, address: str) -> Any:
        # The audit has the id that the answer will have. Such a head is not remembered, so this is no other request's.
        head.request_id = head.request_id or new_id()
        return answer(head, body, address, head.request_id)

    if row.path == SESSION:
        return lambda head, body, address: answer(head, body, address, is_secure=head.is_secure)
    return answer_recorded if row.right in RECORDED else answer


def new_id() -> bytes:
    """An id for a request whose client gave none."""
    return secrets.token_hex(8).encode()


def _options(head: Head, body: bytes, address: str) -> Answer:
    """The methods that the whole server takes; some proxies use this to check that it is up."""
    return Answer(200, b"", ((b"Allow", ALLOW),))

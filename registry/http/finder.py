"""Finds what answers a request on a connection, and remembers it."""

from __future__ import annotations

from collections import defaultdict
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
# The longest query that is remembered, bytes.
MAX_QUERY = 128


class Finder:
    """The routes with their endpoints. ``found``: by verb, for a head that comes once, and for one that comes often.

    ``unknown``: how many requests for unknown paths were answered, by status.
    """

    def __init__(self, endpoints: Iterable[tuple[Route, Callable[[Request], Any]]]) -> None:
        self.table = Table()
        self.unknown: dict[int, int] = defaultdict(int)
        self.found: dict[str, tuple[Found, Found]] = {}
        for row, endpoint in endpoints:
            self.table.add(row)
            self.found[row.verb] = _found(row, endpoint)
        self._leaves: dict[tuple[bytes, bytes, bytes], tuple[Found, bytes, bytes, dict[str, Any]]] = {}
        self._queries: dict[tuple[str, bytes], tuple[bytes, dict[str, Any]]] = {}

    def find(self, head: Head) -> Found:
        """Find what answers this head on a connection; if that fails, the error is the answer."""
        # In the paths of leases and tasks, all but the last segment repeats often.
        above, _, last = head.path.rpartition(b"/")
        leaf = self._leaves.get((head.method, above, head.query))
        if leaf is not None:
            found, head.name, first, head.options = leaf
            head.segments = first, last
            return found
        if head.method == b"OPTIONS" and head.path in (b"*", b"/"):
            return Found(_options, right="open")
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
            return replace(found, verb=lambda request: answer, parks=False)
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


def _found(row: Route, endpoint: Callable[[Request], Any]) -> tuple[Found, Found]:
    """What `Finder.find` returns for a route: for a head that comes once, and for one that comes often."""
    once = Found(endpoint, row.parks, False, row.right, row.or_push, "<names>" in row.path, row.body)
    if row.streams:
        once = replace(once, parks=True, streams=True)
    if row.right in RECORDED:
        once = replace(once, is_recorded=True)
        return once, once
    return once, replace(once, remembers=True)


def _options(request: Request) -> Answer:
    """The methods that the whole server takes; some proxies use this to check that it is up."""
    return Answer(200, b"", ((b"Allow", ALLOW),))

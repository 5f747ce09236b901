"""A request as a verb sees it, and the table that finds the verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from registry.errors import NotFound
from registry.http.auth import Access, Caller
from registry.http.codec import WrongMethod, name_from, options
from registry.queue.names import check_name

# The options of a query by name, each with its reader ``(name, text) -> value``.
Options = Mapping[str, Callable[[str, str], Any]]
NO_OPTIONS: Options = {}


class Request(Struct, eq=False):
    """A request. ``name``: the queue or schedule in the path, b"" if there is none.

    ``segments``: the raw variable segments of the path, the name's first. ``options``: the parsed options of the query; do not change
    them, because other requests may share them. ``header(name)`` takes a name in lower case and returns a value, or None.
    ``request_id``: sure to be there only where the route demands "operate" or "admin". ``is_secure``: whether the client used TLS;
    sure only of a request without a token.
    """

    name: bytes
    segments: Sequence[bytes]
    query: bytes
    options: dict[str, Any]
    header: Callable[[bytes], bytes | None]
    body: bytes
    access: Access
    address: str
    request_id: bytes | None = b""
    is_secure: bool = False

    @property
    def caller(self) -> Caller:
        """Who sent it, and what that caller may do."""
        return Caller(self.access, self.address)


class Route(NamedTuple):
    """One row of the table. ``path``: segments in ``<…>`` vary; one called ``<name>`` is a name.

    ``right``: what its caller needs, one of `registry.http.auth.RIGHTS`; for "push" and "pop" in the queues that the path names.
    ``or_push``: the right to push into the queue that the path names is enough.
    ``options``: the readers of its query. ``takes_task``: a GET takes a task away. ``parks``: the request may wait for long, and is
    cancelled when its client leaves. ``streams``: it parks, and its answer goes on (`registry.http.stream`). ``body``: what bounds
    the size of its body: "task", "result" or "batch".
    """

    methods: frozenset[bytes]
    path: str
    verb: str
    right: str
    options: Options = NO_OPTIONS
    takes_task: bool = False
    parks: bool = False
    or_push: bool = False
    body: str = "task"
    streams: bool = False


class Match(NamedTuple):
    """A route, and the raw variable segments of a path."""

    route: Route
    segments: tuple[bytes, ...]

    def name(self) -> bytes:
        """The name in the path, or b"" where there is none; raises `BadName`."""
        return check_name(name_from(self.segments[0])) if "<name>" in self.route.path else b""

    def options(self, query: bytes) -> dict[str, Any]:
        """The options of the query; raises `BadOption`."""
        return options(query, self.route.options)


class Table:
    """Finds routes by method and raw path. A path is split into segments before it is decoded, so ``%2F`` splits nothing."""

    def __init__(self) -> None:
        self._root: dict[bytes, Any] = {}

    def add(self, route: Route) -> None:
        """Add a row."""
        node = self._root
        for segment in route.path.encode().split(b"/")[1:]:
            node = node.setdefault(_VARIES if segment[:1] == b"<" else segment, {})
        methods = node.setdefault(_METHODS, {})
        for method in route.methods:
            methods[method] = route
        # HEAD is answered like GET without the body, but not where GET takes a task.
        if b"GET" in route.methods and not route.takes_task:
            methods.setdefault(b"HEAD", route)

    def find(self, method: bytes, path: bytes) -> Match:
        """The route of this request; raises `NotFound` and `WrongMethod`."""
        node: dict[bytes, Any] | None = self._root
        segments: list[bytes] = []
        for segment in path.split(b"/")[1:]:
            assert node is not None
            found = node.get(segment)
            if found is None:
                found = node.get(_VARIES)
                segments.append(segment)
            node = found
            if node is None:
                break
        methods = node.get(_METHODS) if node is not None and path[:1] == b"/" else None
        if methods is None:
            raise NotFound("There is nothing at this path.")
        route = methods.get(method)
        if route is None:
            raise WrongMethod(methods)
        return Match(route, tuple(segments))


# Keys that no segment can equal, because a segment holds no slash.
_VARIES, _METHODS = b"/varies", b"/methods"

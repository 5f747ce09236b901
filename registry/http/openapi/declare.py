"""How an operation of the OpenAPI document is declared: one `Operation` per route, by the name of its endpoint.

Method, path, right, names and bounds of the options come from the route itself; a declaration adds what only prose can say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET, Struct

Schema = Mapping[str, Any]
JSON, NDJSON, HTML, PROMETHEUS = (
    "application/json",
    "application/x-ndjson",
    "text/html",
    "text/plain",
)
# The values that the examples share. A test replaces them by those of a daemon.
QUEUE, SCHEDULE, WORKER = "mail", "nightly", "w1"
ID = "1a20c84f3c455d68bb30d4af"
LEASE = f"{ID}-8bb94204259215ca85cf703f6f82ad47"
TIME = "2026-11-24T07:46:43.145Z"


def ref(name: str) -> Schema:
    """A reference to a schema of `registry.http.openapi.schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The schema of an object with these members, and perhaps others: members may be added to answers."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def body_of(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The schema of an object in a request, which must have no other members."""
    return {**record(required, optional), "additionalProperties": False}


class Example(Struct, frozen=True, kw_only=True):
    """A request and its answer.

    ``path``, ``query``, ``headers``: their values by name. ``body``: sent as JSON, a str as it is where the media is not JSON.
    ``answer``: the body, bytes if it is not JSON. ``after``: the operations whose first examples are sent before.
    ``varies``: the answer also depends on what else the daemon holds.
    """

    title: str = ""
    path: Mapping[str, str] = {}
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    body: Any = UNSET
    media: str = JSON
    status: int = 200
    answer: Any = UNSET
    after: Sequence[str] = ()
    varies: bool = False


class Body(Struct, frozen=True, kw_only=True):
    """The body of a request. ``media``: schemas by media type. ``limit``: see `registry.http.request.Route.body`."""

    media: Mapping[str, Schema]
    text: str = ""
    required: bool = True


class Reply(Struct, frozen=True, kw_only=True):
    """An answer. ``headers``: names of `registry.http.openapi.headers.ANSWER_HEADERS`."""

    text: str
    schema: Schema | None = None
    headers: Sequence[str] = ()
    media: str = JSON


class Operation(Struct, frozen=True, kw_only=True):
    """What the document says about a route.

    ``options``: what each option of the query means; ``required``: those that must be there; ``defaults``: of the others.
    ``headers``: names of `registry.http.openapi.headers.REQUEST_HEADERS`. ``path``: what the variable segments mean, where that is
    not said in `registry.http.openapi.document`. ``errors``: the codes that this operation answers beside those that follow from
    its route. ``redis``: it needs Redis.
    """

    tag: str
    summary: str
    text: str = ""
    options: Mapping[str, str] = {}
    required: Sequence[str] = ()
    defaults: Mapping[str, Any] = {}
    headers: Sequence[str] = ()
    body: Body | None = None
    answers: Mapping[int, Reply]
    errors: Sequence[str] = ()
    redis: bool = True
    examples: Sequence[Example]

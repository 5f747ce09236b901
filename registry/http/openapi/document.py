"""The OpenAPI document: the routes of the code, joined with what `registry.http.openapi` says about each of them.

It is made at the first request for it: most daemons are never asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import UNSET

from registry import __version__
from registry.config import Config
from registry.http.codec import ACCEPTED
from registry.http.openapi import live, overview, process, producers, queues, tasks, workers
from registry.http.openapi.declare import JSON, Example, Operation, Reply, Schema
from registry.http.openapi.errors import ERRORS, codes_of
from registry.http.openapi.headers import ALWAYS, ANSWER_HEADERS, BY_STATUS, REQUEST_HEADERS
from registry.http.openapi.schemas import AUDIT_ID, LEASE_ID, TASK_ID, WORKER, schemas
from registry.http.options import NAME
from registry.http.request import Route

OPERATIONS: Final[dict[str, Operation]] = {
    name: operation
    for module in (producers, workers, queues, tasks, overview, live, process)
    for name, operation in module.OPERATIONS.items()
}
# Paths that are not part of the API, and are in no document: the files of the dashboard.
_FILES: Final = "/dashboard/"
TAGS: Final = {
    "Push": "What producers do.",
    "Work": "What workers do.",
    "Queues": "Look at queues, and change them.",
    "Tasks": "Look at tasks, and change them.",
    "Dead tasks": "Why tasks died.",
    "Stats": "What happened in the last minutes, hours and days.",
    "Workers": "Who works, and what workers are told.",
    "Schedules": "Tasks that are pushed at the times of a cron expression.",
    "Audit": "What operators changed, and how to undo it.",
    "Tokens": "Who may do what.",
    "Process": "The daemon itself.",
}
_ABOUT: Final = """A task queue over HTTP. Durations are seconds, rounded up to the millisecond; times are RFC 3339. \
An unknown option, or an unknown field of a body, is 400. The content type of a body does not matter, except for \
`application/x-ndjson`. Every GET that takes no task answers HEAD too."""
_VARIES: Final = re.compile(r"<(\w+)>")
# The variable segments of a path: their schema and meaning.
_SEGMENTS: Final[dict[str, tuple[Schema, str]]] = {
    "queue": (
        NAME,
        "The queue: 1 to 255 bytes of UTF-8, without control characters and `/ { }`; `.` and `..` are no names.",
    ),
    "queues": (
        {"type": "array", "items": NAME, "minItems": 1, "maxItems": 100},
        "The queues, with commas between them. A comma in a name is written `%2C`.",
    ),
    "name": (NAME, "The schedule."),
    "lease": (LEASE_ID, "The `lease` of the pop."),
    "task": (TASK_ID, "The task."),
    "entry": (AUDIT_ID, "The entry of the audit."),
    "worker": (WORKER, "The name of the worker."),
}


def parameter_of(path: str, segment: str) -> tuple[str, str]:
    """The name of the variable segment of a route's path in the document, and its key in `_SEGMENTS`."""
    if segment == "name" and not path.startswith("/api/schedules/"):
        return "queue", "queue"
    if segment == "names":
        return "queues", "queues"
    if segment == "id":
        return "id", "entry" if path.startswith("/api/audit/") else "task"
    return segment, segment


def path_of(path: str) -> str:
    """A route's path as the document has it."""
    return _VARIES.sub(lambda found: f"{{{parameter_of(path, found[1])[0]}}}", path)


def documented(routes: Iterable[Route]) -> Iterator[Route]:
    """The routes that belong into the document."""
    return (route for route in routes if route.path != "/" and not route.path.startswith(_FILES))


def operation_ids(route: Route) -> dict[str, str]:
    """The operation's id by method, in the order in which methods are recommended; that of the first has no suffix.

    Proxies repeat PUT and GET by themselves, so POST goes first where there is a choice.
    """
    methods = sorted(method.decode().lower() for method in route.methods)
    methods.sort(key=lambda method: method != "post")
    return {method: route.verb if not at else f"{route.verb}_{method}" for at, method in enumerate(methods)}


class Document:
    """Builds the document for these routes and settings."""

    def __init__(self, routes: Iterable[Route], config: Config) -> None:
        self._routes = list(documented(routes))
        self._config = config
        self._refusals: dict[str, Any] = {}

    def build(self) -> dict[str, Any]:
        """The whole document."""
        paths: dict[str, Any] = {}
        for route in self._routes:
            for method, operation_id in operation_ids(route).items():
                paths.setdefault(path_of(route.path), {})[method] = self._operation(route, operation_id)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "registry",
                "version": __version__,
                "summary": "A task queue over HTTP",
                "description": _ABOUT,
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": self._config.base_path or "/"}],
            "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
            "paths": paths,
            "components": {
                "schemas": schemas(),
                "parameters": {
                    name: {"name": name, "in": "header", "required": False, **header}
                    for name, header in REQUEST_HEADERS.items()
                },
                "headers": ANSWER_HEADERS,
                "responses": self._refusals,
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "A token. Without any token in the tokens file, none is needed.",
                    },
                    "session": {
                        "type": "apiKey",
                        "in": "cookie",
                        "name": "registry_session",
                        "description": "The session of a web page; never for requests that push or pop.",
                    },
                },
            },
        }

    def _operation(self, route: Route, operation_id: str) -> dict[str, Any]:
        about = OPERATIONS[route.verb]
        refused = codes_of(
            route.right,
            any(f"<{name}>" in route.path for name in ("name", "names")),
            about.redis,
            tuple(about.errors),
        )
        responses = {
            str(status): self._reply(about, status, reply) for status, reply in about.answers.items()
        }
        for status, codes in refused.items():
            responses[str(status)] = self._refusal(status, codes)
        found: dict[str, Any] = {
            "operationId": operation_id,
            "tags": [about.tag],
            "summary": about.summary,
            "description": f"{about.text} {_right_text(route)}".strip(),
            "parameters": list(self._parameters(route, about)),
            "responses": responses,
            "security": _security(route),
            "x-right": route.right,
        }
        if about.body is not None:
            limits = {"task": "max_task_bytes", "batch": "max_batch_bytes", "result": "max_batch_bytes"}
            limit = getattr(self._config, limits[route.body])
            found["requestBody"] = {
                "description": f"{about.body.text} At most {limit} bytes.",
                "required": about.body.required,
                "content": {
                    media: {"schema": schema, **_examples(_bodies(about.examples, media))}
                    for media, schema in about.body.media.items()
                },
            }
        return found

    def _parameters(self, route: Route, about: Operation) -> Iterator[dict[str, Any]]:
        example = about.examples[0]
        for segment in _VARIES.findall(route.path):
            name, key = parameter_of(route.path, segment)
            schema, text = _SEGMENTS[key]
            value: Any = example.path[name]
            if schema.get("type") == "array":
                value = value.split(",")
            yield {
                "name": name,
                "in": "path",
                "required": True,
                "description": text,
                "schema": schema,
                "example": value,
            }
        for name, reader in route.options.items():
            schema = dict(ACCEPTED[reader])
            if name in about.defaults:
                schema["default"] = about.defaults[name]
            yield {
                "name": name,
                "in": "query",
                "required": name in about.required,
                "description": about.options[name],
                "schema": schema,
            }
        for name in (*about.headers, "X-Request-Id"):
            yield {"$ref": f"#/components/parameters/{name}"}

    def _reply(self, about: Operation, status: int, reply: Reply) -> dict[str, Any]:
        found: dict[str, Any] = {"description": reply.text, "headers": _headers((*ALWAYS, *reply.headers))}
        if reply.schema is not None:
            values = [(one.title, one.answer) for one in about.examples if one.status == status]
            found["content"] = {reply.media: {"schema": reply.schema, **_examples(values)}}
        return found

    def _refusal(self, status: int, codes: list[str]) -> dict[str, Any]:
        """A reference to the answer with one of these codes; operations share it."""
        name = f"{status}-{'-'.join(codes)}"
        if name not in self._refusals:
            text = "\n".join(f"- `{code}`: {ERRORS[code].meaning}" for code in codes)
            schema = {"properties": {"code": {"enum": codes}}}
            required = {"required": ["outcome"]} if status == 503 else {}
            self._refusals[name] = {
                "description": text,
                "headers": _headers((*ALWAYS, *BY_STATUS.get(status, ()))),
                "content": {
                    JSON: {
                        "schema": {"allOf": [{"$ref": "#/components/schemas/Error"}, {**schema, **required}]}
                    }
                },
            }
        return {"$ref": f"#/components/responses/{name}"}


def _right_text(route: Route) -> str:
    if route.right == "open":
        return "Needs no token."
    if route.right == "sign-in":
        return ""
    return "Needs a token of any rights." if route.right == "any" else f"Needs the right `{route.right}`."


def _security(route: Route) -> list[dict[str, list[str]]]:
    if route.right == "open":
        return [{}]
    # A session is refused where tasks are pushed or popped.
    session: list[dict[str, list[str]]] = [] if route.right in ("push", "pop") else [{"session": []}]
    return [{}, {"token": []}, *session]


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _bodies(examples: Iterable[Example], media: str) -> list[tuple[str, Any]]:
    return [(one.title, one.body) for one in examples if one.body is not UNSET and one.media == media]


def _examples(values: Iterable[tuple[str, Any]]) -> Mapping[str, Any]:
    shown = {
        f"example{number}": {
            **({"summary": title} if title else {}),
            "value": value.decode() if isinstance(value, bytes) else value,
        }
        for number, (title, value) in enumerate(values, 1)
    }
    return {"examples": shown} if shown else {}

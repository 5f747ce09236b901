"""The page that draws the OpenAPI document: plain HTML without a script, made from the document alone."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final
from urllib.parse import quote, urlencode

from registry.http.openapi.declare import JSON, Example
from registry.http.openapi.document import OPERATIONS, documented, operation_ids, path_of
from registry.http.openapi.errors import ERRORS
from registry.http.request import Route

Node = Mapping[str, Any]
_CODE: Final = re.compile(r"`([^`]+)`")
_ABOUT_ERRORS: Final = (
    'Every error is `{"error":"…","code":"…"}`: a sentence for people, which may change, and a code for programs. A 503 also has '
    "`outcome`: `not_applied`, repeat the request; or `unknown`, repeat it with the same Idempotency-Key."
)
_WHERE: Final = {"path": "in the path", "query": "option", "header": "header"}
_HEAD: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>API · registry</title>
<link rel="icon" type="image/svg+xml" href="dashboard/icon.svg">
<script src="dashboard/theme.js"></script>
<link rel="stylesheet" href="dashboard/css/tokens.css">
<link rel="stylesheet" href="dashboard/css/base.css">
<link rel="stylesheet" href="dashboard/css/reference.css">
</head>
<body class="reference">
"""


class Page:
    """Draws ``document``, which was built for ``routes``; the commands are for ``host``, such as ``localhost:3000``."""

    def __init__(self, routes: Iterable[Route], document: Node, host: str) -> None:
        self._routes = list(documented(routes))
        self._document = document
        server = document["servers"][0]["url"].rstrip("/")
        self._address = f"{host}{server}"

    def html(self) -> str:
        """The whole page."""
        return "".join(self._parts())

    def _parts(self) -> Iterator[str]:
        info = self._document["info"]
        yield _HEAD
        yield f'<header><p><a href="./">registry {_text(info["version"])}</a></p><h1 class="verdict">API</h1>'
        yield f'<p class="lead">{_text(info["description"])}</p>'
        yield '<p>For programs: <a href="openapi.json">openapi.json</a> (OpenAPI 3.1).</p></header>'
        yield '<div class="columns"><nav aria-label="Requests">'
        for tag in self._document["tags"]:
            yield f"<h2>{_text(tag['name'])}</h2><ul>"
            for route in self._of(tag["name"]):
                summary = OPERATIONS[route.verb].summary
                yield f'<li><a href="#{route.verb}">{_text(summary)}</a></li>'
            yield "</ul>"
        yield '<h2>Parts</h2><ul><li><a href="#errors">Errors</a></li><li><a href="#shapes">Shapes</a></li></ul></nav><main>'
        for tag in self._document["tags"]:
            name = _text(tag["name"])
            yield f'<section aria-label="{name}"><h2 class="tag">{name}</h2><p class="lead">{_text(tag["description"])}</p>'
            for route in self._of(tag["name"]):
                yield from self._operation(route)
            yield "</section>"
        yield from self._errors()
        yield from self._shapes()
        yield "</main></div></body></html>\n"

    def _of(self, tag: str) -> Iterator[Route]:
        return (route for route in self._routes if OPERATIONS[route.verb].tag == tag)

    def _operation(self, route: Route) -> Iterator[str]:
        path, methods = path_of(route.path), list(operation_ids(route))
        node = self._document["paths"][path][methods[0]]
        shown = " or ".join(method.upper() for method in methods)
        title = f"{route.verb}-title"
        yield f'<article id="{route.verb}" aria-labelledby="{title}"><h3 id="{title}">{_text(node["summary"])}</h3>'
        yield f'<p class="request"><b>{shown}</b> <code>{_text(path)}</code></p>'
        yield f"<p>{_text(node['description'])}</p>"
        yield from self._parameters(node)
        if "requestBody" in node:
            body = node["requestBody"]
            needed = "" if body["required"] else " It may be left out."
            yield f"<h4>Body</h4><p>{_text(body['description'])}{needed}</p>"
            yield _rows((media, "", _type(one["schema"])) for media, one in body["content"].items())
        yield "<h4>Answers</h4>"
        yield _rows(self._answers(node))
        yield from self._examples(route, path, methods[0])
        yield "</article>"

    def _parameters(self, node: Node) -> Iterator[str]:
        found = [self._resolved(one) for one in node["parameters"]]
        # This header is the same everywhere: the table would have it fifty times.
        shown = [one for one in found if one["name"] != "X-Request-Id"]
        if shown:
            yield "<h4>Parameters</h4>"
            yield _rows((one["name"], _kind(one), _text(one["description"])) for one in shown)

    def _answers(self, node: Node) -> Iterator[tuple[str, str, str]]:
        for status, found in node["responses"].items():
            if "$ref" in found:
                codes = found["$ref"].rpartition("/")[2].split("-")[1:]
                yield status, "", " ".join(f'<a href="#{code}"><code>{code}</code></a>' for code in codes)
                continue
            (media, content), *_ = found.get("content", {"": {"schema": {}}}).items()
            headers = [name for name in found["headers"] if name not in ("X-Request-Id", "Cache-Control")]
            more = f" Headers: {', '.join(f'<code>{name}</code>' for name in headers)}." if headers else ""
            kind = "" if not media else _type(content["schema"]) if media == JSON else _text(media)
            yield status, kind, _text(found["description"]) + more

    def _examples(self, route: Route, path: str, method: str) -> Iterator[str]:
        for example in OPERATIONS[route.verb].examples:
            title = example.title or "Example"
            yield f'<h4>{_text(title)}</h4><pre tabindex="0" role="group" aria-label="{_text(title)}">'
            yield f"{escape(self._command(path, method, example))}\n\n<samp>{escape(_answer(example))}</samp></pre>"

    def _command(self, path: str, method: str, example: Example) -> str:
        for name, value in example.path.items():
            path = path.replace(f"{{{name}}}", quote(value, safe=","))
        url = f"{self._address}{path}" + (f"?{urlencode(example.query)}" if example.query else "")
        words = ["curl"]
        has_body = isinstance(example.body, str | dict | list)
        if method != ("post" if has_body else "get"):
            words += ["-X", method.upper()]
        words.append(url)
        for name, value in example.headers.items():
            words += ["-H", f"{name}: {value}"]
        if has_body:
            plain = isinstance(example.body, str)
            words += ["-H", f"Content-Type: {example.media}", "--data-binary"] if plain else ["-d"]
            words.append(example.body.rstrip("\n") if plain else _compact(example.body))
        return shlex.join(words)

    def _errors(self) -> Iterator[str]:
        yield '<section id="errors" aria-label="Errors"><h2 class="tag">Errors</h2>'
        yield f"<p>{_text(_ABOUT_ERRORS)}</p>"
        yield "<dl>"
        for code, error in ERRORS.items():
            yield f'<div id="{code}"><dt>{_code(code)}<span>{error.status}</span></dt><dd>{_text(error.meaning)}</dd></div>'
        yield "</dl></section>"

    def _shapes(self) -> Iterator[str]:
        yield '<section id="shapes" aria-label="Shapes"><h2 class="tag">Shapes</h2>'
        for name, schema in self._document["components"]["schemas"].items():
            if "properties" not in schema:
                continue
            yield f'<article id="shape-{name}" aria-labelledby="shape-{name}-title"><h3 id="shape-{name}-title">{name}</h3>'
            required = schema.get("required", ())
            yield _rows(
                (member, "" if member in required else "optional", _type(one))
                for member, one in schema["properties"].items()
            )
            yield "</article>"
        yield "</section>"

    def _resolved(self, node: Node) -> Node:
        if "$ref" not in node:
            return node
        found: Node = self._document["components"]["parameters"][node["$ref"].rpartition("/")[2]]
        return found


def _kind(parameter: Node) -> str:
    """Where a parameter stands, and what it takes."""
    needed = " · required" if parameter["required"] and parameter["in"] != "path" else ""
    return f"{_WHERE[parameter['in']]}{needed} · {_type(parameter['schema'])}"


def _type(schema: Any) -> str:
    """What a schema takes, in a few words."""
    if not schema or set(schema) == {"description"}:
        return "any JSON value"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{"errors" if name == "ErrorCode" else f"shape-{name}"}">{name}</a>'
    if "allOf" in schema:
        return " with ".join(map(_type, schema["allOf"]))
    for either in ("anyOf", "oneOf"):
        if either in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[either])))
    if "const" in schema:
        return _code(json.dumps(schema["const"]))
    if "enum" in schema:
        shown = [_code(str(one)) for one in schema["enum"]]
        return ", ".join(shown) + _default(schema)
    kinds = [schema["type"]] if isinstance(schema.get("type"), str) else schema.get("type", ["object"])
    return " or ".join(_one_type(kind, schema) for kind in kinds) + _default(schema)


def _one_type(kind: str, schema: Any) -> str:
    if kind == "array":
        items = schema.get("items")
        return f"array of {_type(items)}" if items else "array"
    if kind == "object" and "properties" in schema:
        required = schema.get("required", ())
        members = [_code(name) + ("" if name in required else "?") for name in schema["properties"]]
        return f"object: {', '.join(members)}"
    if kind in ("number", "integer"):
        return ("whole number" if kind == "integer" else "number") + _bounds(schema)
    if kind == "string" and schema.get("format") == "date-time":
        return "time"
    most = schema.get("maxLength")
    if kind == "string" and most == 0:
        return "empty"
    return "text" + (f", at most {most}" if most else "") if kind == "string" else kind


def _bounds(schema: Any) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    least = schema.get("exclusiveMinimum")
    if low is None and least is not None and least >= 0:
        # The bound of a duration, which is rounded up to the ms before it is compared.
        low = least + 0.001
    words = [f"from {low:g}" if low is not None else ""]
    if high is not None:
        words.append(f"to {high:,}")
    shown = " ".join(filter(None, words))
    return f", {shown}" if shown else ""


def _default(schema: Any) -> str:
    return f", default {_code(str(schema['default']))}" if "default" in schema else ""


def _rows(rows: Iterable[tuple[str, str, str]]) -> str:
    """A list of names, each with its kind and its meaning, both HTML already."""
    parts = [
        f"<div><dt>{_code(name)}{f'<span>{kind}</span>' if kind else ''}</dt><dd>{meaning}</dd></div>"
        for name, kind, meaning in rows
    ]
    return f"<dl>{''.join(parts)}</dl>"


def _answer(example: Example) -> str:
    if isinstance(example.answer, bytes):
        return example.answer.decode().rstrip()
    return _compact(example.answer) if isinstance(example.answer, dict | list) else str(example.status)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _text(text: str) -> str:
    """Text as HTML; what stands in backticks is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"

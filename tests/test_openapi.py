"""``GET /openapi.json``: it has every route and every error of the code, it is valid, and its examples answer what they say."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from msgspec import UNSET
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

import registry
from registry.config import Config
from registry.errors import BadName, BadOption
from registry.http.codec import ACCEPTED, STATUS
from registry.http.openapi.declare import ID, JSON, LEASE, QUEUE, SCHEDULE, Example
from registry.http.openapi.document import OPERATIONS, Document, documented, operation_ids, path_of
from registry.http.openapi.errors import ERRORS
from registry.http.request import Route
from registry.http.routes import ROUTES
from tests.live import ROOT, Daemon
from tests.talk import Answer, Asked

Operation = dict[str, Any]
# What differs from one run to the next, and what stands for it.
VOLATILE = (
    (r"\b[0-9a-f]{24}-[0-9a-f]{32}\b", "<lease>"),
    (r"\b[0-9a-f]{24}\b", "<id>"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "<time>"),
    (r"\b\d+\.\d+(?=[,}])", "<seconds>"),
    (r'(?<="request_id": )"[0-9a-f]+"|(?<="id": )"\d{1,9}"', "<number>"),
)
_undeclared = {route.verb for route in documented(ROUTES)} - set(OPERATIONS)
assert not _undeclared, f"declare these endpoints in registry/http/openapi/: {_undeclared}"
DOCUMENT: dict[str, Any] = json.loads(json.dumps(Document(ROUTES, Config(data_dir="/nowhere")).build()))
ROUTES_SHOWN = list(documented(ROUTES))
_numbers = itertools.count(1)


def operations() -> Iterator[tuple[str, str, Operation]]:
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def parameters(operation: Operation, where: str) -> dict[str, dict[str, Any]]:
    found = [resolved(one) for one in operation["parameters"]]
    return {one["name"]: one for one in found if one["in"] == where}


def resolved(node: Any) -> Any:
    """What a reference stands for."""
    if "$ref" not in node:
        return node
    target: Any = DOCUMENT
    for word in node["$ref"].removeprefix("#/").split("/"):
        target = target[word]
    return target


def conforms(value: Any, schema: Any) -> list[str]:
    """What is wrong with this value by this schema of the document."""
    whole = {**schema, "components": DOCUMENT["components"]}
    return [error.message for error in OAS31Validator(whole).iter_errors(value)]


def test_the_document_is_valid() -> None:
    errors = [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()]
    assert errors == []


def test_every_route_of_the_code_is_declared() -> None:
    missing = {route.verb for route in ROUTES_SHOWN} - set(OPERATIONS)
    assert not missing, f"declare these endpoints in registry/http/openapi/: {missing}"
    assert set(OPERATIONS) <= {route.verb for route in ROUTES_SHOWN}, "no route has this name any more"


def test_every_method_and_path_of_the_code_is_in_the_document_and_no_other() -> None:
    expected = {
        (method, path_of(route.path)): (operation_id, route.right)
        for route in ROUTES_SHOWN
        for method, operation_id in operation_ids(route).items()
    }
    assert {(m, p): (o["operationId"], o["x-right"]) for m, p, o in operations()} == expected


@pytest.mark.parametrize("route", ROUTES_SHOWN, ids=[route.verb for route in ROUTES_SHOWN])
def test_the_options_of_a_route_are_those_that_its_code_reads(route: Route) -> None:
    about = OPERATIONS[route.verb]
    assert set(about.options) == set(route.options)
    assert set(about.required) | set(about.defaults) <= set(route.options)
    for method in operation_ids(route):
        found = parameters(DOCUMENT["paths"][path_of(route.path)][method], "query")
        assert list(found) == list(route.options)
        for name, reader in route.options.items():
            schema = {key: value for key, value in found[name]["schema"].items() if key != "default"}
            assert schema == ACCEPTED[reader], name
            if name in about.defaults:
                default = about.defaults[name]
                assert conforms(default, schema) == []
                reader(name, str(default))


def beyond(schema: Any) -> list[str]:
    """Texts that a schema does not allow, just past each of its bounds."""
    kind, found = schema.get("type"), []
    if kind in ("number", "integer"):
        step = 1 if kind == "integer" else 0.001
        found = ["x", "-1", "nan", ""]
        if schema.get("minimum"):
            found.append(str(schema["minimum"] - step))
        if "exclusiveMinimum" in schema:
            found.append(str(schema["exclusiveMinimum"]))
        if "maximum" in schema:
            found.append(str(schema["maximum"] + step))
        if kind == "integer":
            found.append("1.5")
    elif "enum" in schema:
        found = ["", "no such word", str(schema["enum"][0]).upper() + " "]
    elif schema.get("format") == "date-time":
        found = ["", "2026-01-31", "2026-13-31T12:00:00Z"]
    elif kind == "string":
        found = ["x" * (schema["maxLength"] + 1)] if "maxLength" in schema else []
        found += ["a\x00b", *([""] if schema.get("minLength") else [])]
    return found


def within(schema: Any) -> list[str]:
    """Texts that a schema allows, on each of its bounds."""
    if "anyOf" in schema:
        return [text for one in schema["anyOf"] for text in within(one)]
    if "enum" in schema:
        return [str(one) for one in schema["enum"]]
    if schema.get("format") == "date-time":
        return ["2026-01-31T12:00:00Z", "2026-01-31t12:00:00.5+01:00"]
    if schema["type"] == "string":
        return ["x" * schema.get("minLength", 0), "x" * schema.get("maxLength", 1)]
    bounds = [schema.get("minimum", 1), schema.get("maximum", 1)]
    least = schema.get("exclusiveMinimum")
    return [str(one) for one in [*bounds, *([least + 0.001] if least is not None else [])]]


READERS = {(route.verb, name): read for route in ROUTES_SHOWN for name, read in route.options.items()}


@pytest.mark.parametrize(("verb", "name"), READERS, ids=["-".join(one) for one in READERS])
def test_an_option_is_accepted_up_to_its_bounds_and_refused_beyond(verb: str, name: str) -> None:
    read, schema = READERS[verb, name], ACCEPTED[READERS[verb, name]]
    for text in within(schema):
        read(name, text)
    for text in beyond(schema):
        with pytest.raises((BadOption, BadName)):
            read(name, text)


def test_the_path_of_an_operation_has_its_parameters() -> None:
    for _, path, operation in operations():
        assert set(parameters(operation, "path")) == set(re.findall(r"{(\w+)}", path))
        for one in parameters(operation, "path").values():
            assert conforms(one["example"], one["schema"]) == []


def test_every_tag_is_described() -> None:
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    assert {tag for _, _, operation in operations() for tag in operation["tags"]} == tags


def codes_in_the_source() -> Iterator[tuple[str, int]]:
    """Every code with which the daemon refuses a request, and its status where it stands beside it, else 0."""
    folder = Path(registry.__file__).parent
    for path in folder.rglob("*.py"):
        if path.is_relative_to(folder / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                values = [one.value for one in node.args if isinstance(one, ast.Constant)]
                if node.func.id in ("Refusal", "error_answer") and len(values) > 1:
                    yield str(values[1]), int(str(values[0]))
                elif node.func.id == "Conflict" and values and values[0] != LEASE:
                    yield str(values[0]), 409
    for kind, status in STATUS:
        for one in (kind, *kind.__subclasses__()):
            # The classes that only others inherit from have no code of their own.
            if one.code != "error":
                yield one.code, status


def test_every_error_of_the_code_is_in_the_table_with_its_status() -> None:
    found = {(code, status) for code, status in codes_in_the_source() if "_" in code or code == "forbidden"}
    assert len(found) > 25
    assert {
        (code, status) for code, status in found if code not in ERRORS or ERRORS[code].status != status
    } == set()


def test_the_table_of_errors_in_the_docs_is_the_same() -> None:
    section = (
        (ROOT / "docs" / "api.md").read_text("utf-8").partition("\n## Errors\n")[2].partition("\n### ")[0]
    )
    documented_codes = {
        code: {int(status) for status in row[1].split(",")}
        for row in re.finditer(r"^\| ([\d, ]+) \| ([^|]+) \|", section, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", row[2])
    }
    assert set(documented_codes) == set(ERRORS)
    assert all(error.status in documented_codes[code] for code, error in ERRORS.items())


class Terminal:
    """Sends the examples of one operation, with a queue and a schedule of its own and the ids that the daemon gives."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        number = f"{next(_numbers):04}"
        self._names = {QUEUE: QUEUE + number, SCHEDULE: SCHEDULE + number}
        self._ids: dict[str, str] = {}

    def _real(self, text: str) -> str:
        # A lease begins with an id, so it is replaced first.
        for shown, real in {**self._names, **dict(sorted(self._ids.items(), reverse=True))}.items():
            text = re.sub(rf"\b{shown}(?![\w.])", real, text)
        return text

    def shown(self, text: str) -> str:
        for shown, real in self._names.items():
            text = text.replace(real, shown)
        return text

    def send(self, route: Route, example: Example) -> Answer:
        method = next(iter(operation_ids(route))).upper()
        path = path_of(route.path)
        for name, value in example.path.items():
            path = path.replace(f"{{{name}}}", quote(self._real(value), safe=","))
        assert "{" not in path, path
        query = urlencode({name: self._real(value) for name, value in example.query.items()})
        body, headers = b"", dict(example.headers)
        if example.body is not UNSET:
            text = json.dumps(example.body) if example.media == JSON else example.body
            body, headers["Content-Type"] = self._real(text).encode(), example.media
        answer = Asked(self._daemon, method, f"{path}?{query}" if query else path, body, headers).answer()
        self._learn(answer)
        return answer

    def _learn(self, answer: Answer) -> None:
        text = answer.body.decode()
        for shown, pattern in ((ID, r'"id":"([0-9a-f]{24})"'), (LEASE, r'"lease":"([\w-]+)"')):
            if found := re.search(pattern, text):
                self._ids[shown] = found[1]
        if entry := answer.headers.get("Registry-Audit"):
            self._ids["12"] = entry


def alike(text: str) -> str:
    text = json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)
    for pattern, sign in VOLATILE:
        text = re.sub(pattern, sign, text)
    return text


def by_name(verb: str) -> Route:
    return next(route for route in ROUTES_SHOWN if route.verb == verb)


@pytest.mark.parametrize("verb", OPERATIONS)
def test_the_examples_of_an_operation_are_answered_as_they_say(served: Daemon, verb: str) -> None:
    route, about = by_name(verb), OPERATIONS[verb]
    operation = DOCUMENT["paths"][path_of(route.path)][next(iter(operation_ids(route)))]
    assert about.examples
    for example in about.examples:
        terminal = Terminal(served)
        for name in example.after:
            before = OPERATIONS[name].examples[0]
            assert terminal.send(by_name(name), before).status == before.status, name
        answer = terminal.send(route, example)
        assert answer.status == example.status, answer
        check_request(operation, example)
        check_answer(operation, answer, example)
        if not example.varies:
            assert alike(terminal.shown(answer.body.decode())) == alike(json.dumps(example.answer))


def check_request(operation: Operation, example: Example) -> None:
    """An example is a request that the document allows."""
    query, headers = parameters(operation, "query"), parameters(operation, "header")
    assert {name for name, one in query.items() if one["required"]} <= set(example.query) <= set(query)
    assert set(example.headers) <= set(headers)
    for name, value in example.query.items():
        schema = query[name]["schema"]
        number = json.loads(value) if value.isdigit() else value
        assert not conforms(value, schema) or not conforms(number, schema), name
    if example.body is not UNSET:
        schema = operation["requestBody"]["content"][example.media]["schema"]
        assert conforms(example.body, schema) == []
    else:
        assert not operation.get("requestBody", {}).get("required")


def check_answer(operation: Operation, answer: Answer, example: Example) -> None:
    """An answer is what the document says, and so is the one that an example shows."""
    reply = operation["responses"][str(answer.status)]
    (media, content), *none = reply["content"].items()
    assert not none and answer.headers["Content-Type"].startswith(media)
    required = {name for name, one in reply["headers"].items() if resolved(one).get("required")}
    assert required <= set(answer.headers)
    if media == JSON:
        assert conforms(answer.json, content["schema"]) == []
        assert conforms(example.answer, content["schema"]) == []


def test_the_daemon_serves_the_document_of_its_settings(served: Daemon) -> None:
    answer = Asked(served, "GET", "/openapi.json").answer()
    assert answer.headers["Content-Type"].startswith(JSON)
    assert answer.ok() == DOCUMENT

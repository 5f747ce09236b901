"""CORS: the pages of the origins that an operator names may use the API, with a token; those of no other origin."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from registry.values import origins
from tests.callers import Callers, guarded
from tests.live import RedisServer, short_folder
from tests.talk import Answer

APP = "https://app.example"
OTHERS = [
    "https://evil.example",
    "http://app.example",
    "https://app.example:8443",
    "https://app.example.evil",
    "null",
    "",
]
PREFLIGHT = {"Access_Control_Request_Method": "PUT", "Access_Control_Request_Headers": "authorization"}


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    one = Callers(short_folder() / "tokens.json")
    one.add("me", "admin")
    with guarded(module_redis_process, one, CORS_ORIGINS=f"{APP}, http://localhost:8080"):
        signed_in = one.ask("me", "POST", "/api/session")
        one.cookie = signed_in.headers["set-cookie"].partition(";")[0]
        yield one


def cors(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("Access-Control")}


def test_a_page_of_a_named_origin_uses_the_api_with_a_token(callers: Callers) -> None:
    page = {
        "Origin": APP,
        "Sec_Fetch_Site": "cross-site",
        "Sec_Fetch_Mode": "cors",
        "User_Agent": "Mozilla/5.0",
    }
    requests: list[tuple[str, str, Any]] = [
        ("PUT", "/api/pushTask/q", 1),
        ("GET", "/api/popTask/q?wait=0", b""),
    ]
    # Once more: heads are remembered.
    for method, path, body in requests * 2:
        answer = callers.ask("me", method, path, body, **page)
        assert answer.status == 200, answer
        assert answer.headers["access-control-allow-origin"] == APP
        assert answer.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in answer.headers
        assert "Registry-Ack" in answer.headers["access-control-expose-headers"]
    # It can read what is wrong, too.
    for who, path, status in (
        ("", "/api/queues", 401),
        ("me", "/nothing", 404),
        ("me", "/api/queues?x=1", 400),
    ):
        answer = callers.ask(who, "GET", path, **page)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, APP)


def test_the_preflight_needs_no_token(callers: Callers) -> None:
    for origin in (APP, "http://localhost:8080"):
        answer = callers.ask("", "OPTIONS", "/api/pushTask/q", Origin=origin, **PREFLIGHT)
        assert answer.status == 200 and answer.body == b""
        allowed = cors(answer)
        assert allowed["Access-Control-Allow-Origin"] == origin
        assert {"PUT", "DELETE", "PATCH"} <= set(allowed["Access-Control-Allow-Methods"].split(", "))
        assert {"Authorization", "Idempotency-Key"} <= set(
            allowed["Access-Control-Allow-Headers"].split(", ")
        )
    # A question that is no preflight is one of a stranger.
    callers.ask("", "OPTIONS", "/api/pushTask/q", Origin=APP).refused(401, "unauthorized")


@pytest.mark.parametrize("origin", OTHERS)
def test_pages_of_other_origins_get_nothing(callers: Callers, origin: str) -> None:
    page = {"Origin": origin}
    callers.ask("", "OPTIONS", "/api/pushTask/q", **page, **PREFLIGHT).refused(401, "unauthorized")
    for method, path in (("PUT", "/api/pushTask/q"), ("GET", "/api/popTask/q?wait=0")):
        answer = callers.ask("me", method, path, 1, **page)
        answer.refused(403, "foreign_origin")
        assert not cors(answer)
    assert not cors(callers.ask("me", "GET", "/api/queues", **page))


def test_a_request_that_names_no_origin_is_no_page_of_the_named_one(callers: Callers) -> None:
    page = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Referer": f"{APP}/"}
    callers.ask("me", "GET", "/api/popTask/q?wait=0", 1, **page).refused(403, "foreign_origin")


def test_no_other_page_uses_the_session(callers: Callers) -> None:
    for headers in ({"Origin": APP}, {"Origin": APP, "Sec_Fetch_Site": "same-site"}):
        for method, path in (("GET", "/api/queues"), ("POST", "/api/queues/q/pause?seconds=0")):
            callers.ask("", method, path, Cookie=callers.cookie, **headers).refused(403, "foreign_origin")
    assert callers.ask("", "GET", "/api/queues", Cookie=callers.cookie).status == 200


def test_without_the_setting_there_is_no_cors(module_redis_process: RedisServer) -> None:
    one = Callers(short_folder() / "tokens.json")
    one.add("me", "admin")
    with guarded(module_redis_process, one):
        for who, method in (("", "OPTIONS"), ("me", "OPTIONS"), ("me", "GET"), ("me", "PUT")):
            assert not cors(one.ask(who, method, "/api/pushTask/q", Origin=APP, **PREFLIGHT))


def test_origins_are_written_as_browsers_do() -> None:
    assert origins("https://App.example:443, http://a.example:80 http://[::1]:3000") == (
        "https://app.example",
        "http://a.example",
        "http://[::1]:3000",
    )
    for text in (
        "*",
        "null",
        "app.example",
        "https://app.example/",
        "https://*.example",
        "ftp://a",
        "https://a:70000",
    ):
        with pytest.raises(ValueError, match="origins separated by commas"):
            origins(text)

"""The OpenAPI document of the requests about the process and its callers."""

from __future__ import annotations

from typing import Any, Final

from registry import __version__
from registry.http.openapi.declare import (
    HTML,
    JSON,
    PROMETHEUS,
    Body,
    Example,
    Operation,
    Reply,
    body_of,
    record,
    ref,
)
from registry.http.openapi.queues import CURSOR, LIMIT
from registry.http.openapi.schemas import FLAG, TEXT, array, or_null, page

_UNCHANGED: Final = Reply(text="It is the one that If-None-Match names.", headers=("ETag",))
_NOBODY: Final[dict[str, Any]] = {"name": None, "rights": ["admin"], "expires": None}

OPERATIONS: Final = {
    "token": Operation(
        tag="Tokens",
        summary="What the token of the request allows",
        text="As long as there is no token, every request may do everything.",
        answers={200: Reply(text="Its name and its rights.", schema=ref("Rights"))},
        redis=False,
        examples=(Example(answer={**_NOBODY, "address": "127.0.0.1"}),),
    ),
    "tokens": Operation(
        tag="Tokens",
        summary="List tokens",
        text="All tokens of the daemon's tokens file, by name. They are created and revoked in the file alone.",
        options={"cursor": CURSOR, "limit": LIMIT},
        defaults={"limit": 100},
        answers={200: Reply(text="A page of tokens.", schema=page("tokens", ref("Token")))},
        errors=("wrong_type",),
        examples=(Example(answer={"tokens": [], "cursor": None}),),
    ),
    "sign_in": Operation(
        tag="Tokens",
        summary="Sign in",
        text="For web pages of the registry: the token is in the header Authorization, or in the body. The cookie stands in its "
        "place for 12 hours, but never to push or to pop.",
        body=Body(
            media={JSON: body_of({"token": {"type": "string", "pattern": r"^[\x00-\x7f]*$"}})},
            text="The token, if no header has it.",
            required=False,
        ),
        answers={200: Reply(text="Who is signed in.", schema=ref("Rights"), headers=("Set-Cookie",))},
        errors=("bad_json",),
        examples=(Example(answer=_NOBODY),),
    ),
    "session": Operation(
        tag="Tokens",
        summary="Who is signed in",
        answers={200: Reply(text="The name and the rights of the token.", schema=ref("Rights"))},
        redis=False,
        examples=(Example(answer=_NOBODY),),
    ),
    "sign_out": Operation(
        tag="Tokens",
        summary="Sign out",
        text="Removes the cookie from the browser.",
        answers={200: Reply(text="It is removed.", schema=ref("Success"), headers=("Set-Cookie",))},
        redis=False,
        examples=(Example(answer={"success": True}),),
    ),
    "me": Operation(
        tag="Tokens",
        summary="Who looks at the dashboard",
        text="What a page needs to know to show only what its caller may do and see. Without the right `view`, `warnings` is empty.",
        answers={
            200: Reply(
                text="The rights of the token or the session, and what this registry is.",
                schema={
                    "allOf": [
                        ref("Rights"),
                        record(
                            {
                                "may": record(dict.fromkeys(("view", "operate", "admin", "push"), FLAG)),
                                "payloads": FLAG,
                                "needs_token": FLAG,
                                "environment": or_null(TEXT),
                                "version": TEXT,
                                "warnings": array(TEXT),
                            }
                        ),
                    ]
                },
            )
        },
        redis=False,
        examples=(
            Example(
                answer={
                    **_NOBODY,
                    "may": {"view": True, "operate": True, "admin": True, "push": True},
                    "payloads": True,
                    "needs_token": False,
                    "environment": "staging",
                    "version": __version__,
                    "warnings": [],
                },
                varies=True,
            ),
        ),
    ),
    "healthz": Operation(
        tag="Process",
        summary="Whether the process answers",
        answers={
            200: Reply(
                text="It does.",
                schema=record({"status": {"type": "string", "const": "ok"}, "version": TEXT}),
            )
        },
        redis=False,
        examples=(Example(answer={"status": "ok", "version": __version__}),),
    ),
    "readyz": Operation(
        tag="Process",
        summary="Whether pushes and pops can be served",
        text="Asks Redis, at every request. Without the right `view` the answer has no details.",
        answers={
            200: Reply(
                text="They can. `warnings`: what this Redis could lose.",
                schema=record(
                    {"status": {"type": "string", "const": "ready"}},
                    {"version": TEXT, "warnings": array(TEXT)},
                ),
            )
        },
        examples=(Example(answer={"status": "ready", "version": __version__, "warnings": []}, varies=True),),
    ),
    "metrics": Operation(
        tag="Process",
        summary="Metrics",
        text="In the text format of Prometheus.",
        answers={200: Reply(text="The metrics.", schema=TEXT, media=PROMETHEUS)},
        examples=(Example(answer=b"registry_redis_up 1.0\n", varies=True),),
    ),
    "openapi": Operation(
        tag="Process",
        summary="This document",
        answers={
            200: Reply(
                text="An OpenAPI 3.1 document.",
                schema={"type": "object"},
                headers=("ETag", "Content-Encoding"),
            ),
            304: _UNCHANGED,
        },
        redis=False,
        examples=(Example(answer={"openapi": "3.1.0"}, varies=True),),
    ),
    "docs": Operation(
        tag="Process",
        summary="This document as a page",
        answers={
            200: Reply(text="The page.", schema=TEXT, media=HTML, headers=("ETag", "Content-Encoding")),
            304: _UNCHANGED,
        },
        redis=False,
        examples=(Example(answer=b"<!doctype html>", varies=True),),
    ),
}

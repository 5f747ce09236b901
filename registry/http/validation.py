"""Checks that refuse a request before the application sees it: pure functions of a request line and its headers.

Each check raises `Refusal` if it refuses the request and returns otherwise. None of them touches a
connection; `registry.http.server` turns a refusal into bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from registry.model.tokens import PREFIX, mask_tokens

METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
ALLOW = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
SAFE_METHODS = frozenset((b"GET", b"HEAD", b"OPTIONS"))
# A GET of this path takes a task away, so it changes state; popTasks begins with the same characters.
TAKING = b"/api/poptask"

_VERSION = re.compile(rb"HTTP/\d\.\d")
_LABEL = rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})"
_HOST = re.compile(
    rb"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|" + _LABEL + rb"(?:\." + _LABEL + rb")*\.?)(?::(?P<port>\d{0,5}))?"
)
# User agents of browsers, and of the media players that some browsers use to fetch audio and video. PowerShell calls
# itself Mozilla too.
_BROWSER = re.compile(rb"mozilla/|opera/|com\.apple\.webkit|applecoremedia/|stagefright/", re.IGNORECASE)
_PREFIX = PREFIX.encode()
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")


class Refusal(Exception):
    """A refused request: ``status``, ``code``, one sentence, and further headers and members of the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        sentence: str,
        headers: Sequence[tuple[bytes, bytes]] = (),
        **more: str,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.sentence = sentence
        self.headers = headers
        self.more = more
        self.head: Any = None  # of the request, as far as it was parsed

    def body(self) -> bytes:
        # Compact, as all other answers are.
        return json.dumps(
            {"error": mask_tokens(self.sentence), "code": self.code, **self.more}, separators=(",", ":")
        ).encode()


def bad_request(sentence: str) -> Refusal:
    return Refusal(400, "bad_request", sentence)


def sane_request_id(values: Sequence[bytes]) -> bytes | None:
    """The client's own X-Request-Id if there is exactly one and it is safe in a log line, else None.

    The audit keeps it, so a token is not safe there either.
    """
    if len(values) != 1 or not _REQUEST_ID.fullmatch(values[0]) or _PREFIX in values[0]:
        return None
    return values[0]


def check_request_line(line: bytes) -> tuple[bytes, bytes | None]:
    """Check ``line``; return it in origin form, and the authority of an absolute target or None.

    The returned line is pure ASCII: bytes past 127 in the target, which curl sends as they were typed, are
    percent-escaped.
    """
    parts = line.split(b" ")
    if len(parts) != 3:
        raise bad_request("The request line is not of the form METHOD TARGET HTTP/1.1.")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise Refusal(505, "http_version", "Only HTTP/1.1 and HTTP/1.0 are supported.")
        raise bad_request("The request line does not end in an HTTP version.")
    if method not in METHODS:
        if method in (b"TRACE", b"CONNECT", b"QUERY"):
            sentence = f"The method {method.decode()} is not allowed."
            raise Refusal(405, "method_not_allowed", sentence, [(b"Allow", ALLOW)])
        sentence = "The method is unknown; methods are case-sensitive, in capitals."
        raise Refusal(501, "not_implemented", sentence, [(b"Allow", ALLOW)])
    authority = None
    if not target.startswith(b"/"):
        scheme, mark, rest = target.partition(b"://")
        if mark and scheme.lower() in (b"http", b"https"):
            authority, slash, path = rest.partition(b"/")
            if not slash:
                authority, question, query = authority.partition(b"?")
                path = question + query
            target = b"/" + path
        elif target != b"*" or method != b"OPTIONS":
            raise bad_request("The request target is neither a path nor an http URL.")
    for byte in target:
        if byte <= 0x20 or byte == 0x7F:
            raise bad_request("The request target contains a control character.")
    if not target.isascii():
        target = _NOT_ASCII.sub(lambda found: b"%%%02X" % found.group()[0], target)
    if b"%" in target:
        try:
            unquote_to_bytes(target.partition(b"?")[0]).decode("utf-8")
        except UnicodeDecodeError:
            raise Refusal(400, "bad_name", "The path is not UTF-8 after percent-decoding.") from None
    return b" ".join((method, target, version)), authority


def check_host(values: Sequence[bytes], version: bytes) -> bytes | None:
    """Check the Host headers; return the name in lower case, without port or brackets, or None."""
    if len(values) > 1:
        raise bad_request("There is more than one Host header.")
    if not values:
        if version == b"HTTP/1.1":
            raise bad_request("An HTTP/1.1 request needs a Host header.")
        return None
    found = _HOST.fullmatch(values[0])
    if found is None or len(found["name"]) > 253 or int(found["port"] or 0) > 65535:
        raise Refusal(400, "bad_host", "The Host header is not a valid host name.")
    return found["name"].strip(b"[]").rstrip(b".").lower()


def check_encoding(values: Sequence[bytes]) -> None:
    for value in values:
        if value.lower() not in (b"", b"identity"):
            sentence = "Compressed bodies are not supported; send the body without a Content-Encoding."
            raise Refusal(415, "unsupported_encoding", sentence, [(b"Accept-Encoding", b"identity")])


def check_key(values: Sequence[bytes]) -> None:
    """Refuse more than one key: it would be unclear which of them a repeated request must carry."""
    if len(values) > 1:
        raise Refusal(400, "bad_option", "There is more than one Idempotency-Key header.")


def like_a_browser(user_agent: bytes | None) -> bool:
    """Whether this may be a browser, which any page can make send requests."""
    return user_agent is not None and _BROWSER.search(user_agent) is not None


def check_site(
    method: bytes,
    target: bytes,
    fetch_site: Sequence[bytes],
    origin: Sequence[bytes],
    host: Sequence[bytes],
    user_agent: Sequence[bytes],
) -> None:
    """Refuse a request that changes state if a page of another site made a browser send it.

    ``Sec-Fetch-Site``, which no page can forge, decides if it is present, because a proxy may have rewritten
    ``Host``; otherwise ``Origin`` must name the requested host. A request with neither does not come from a
    browser, because a browser sends ``Origin`` with every method but GET and HEAD. With a GET, a browser sends
    neither header if the name is not a loopback name and the connection is not TLS; therefore a GET that takes a
    task and has neither must not look like a browser's.
    """
    if method in SAFE_METHODS:
        path = unquote_to_bytes(target.partition(b"?")[0]) if method == b"GET" else b""
        if not path.lower().startswith(TAKING):
            return
    if fetch_site:
        foreign = any(value.lower() not in (b"same-origin", b"none") for value in fetch_site)
    elif origin:
        foreign = any(_authority(value) not in map(bytes.lower, host) for value in origin)
    elif method == b"GET" and any(map(like_a_browser, user_agent)):
        raise Refusal(
            403,
            "foreign_origin",
            "The User-Agent is a browser's, and no header says which site's page sent the request. "
            "If this is not a browser, send the header Sec-Fetch-Site: none, or another User-Agent.",
        )
    else:
        return
    if foreign:
        raise Refusal(403, "foreign_origin", "Pages of other sites may not change anything.")


def check_own_page(
    method: bytes, fetch_site: Sequence[bytes], origin: Sequence[bytes], host: Sequence[bytes]
) -> None:
    """Refuse a request with a session's cookie that may come from a page which the daemon did not serve.

    Of requests that change something, a header has to say that they come from an own page.
    """
    is_safe = method in SAFE_METHODS
    if fetch_site:
        own = (b"same-origin", b"none") if is_safe else (b"same-origin",)
        allowed = all(value.lower() in own for value in fetch_site)
    elif origin:
        allowed = all(_authority(value) in map(bytes.lower, host) for value in origin)
    else:
        allowed = is_safe
    if not allowed:
        raise Refusal(403, "foreign_origin", "The session is only for the pages of the registry itself.")


def _authority(origin: bytes) -> bytes:
    return origin.partition(b"://")[2].lower()

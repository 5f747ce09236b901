"""The header block of a request. Clients send the same one again and again, so a parsed one is shared by many heads."""

from __future__ import annotations

import re

from registry.http.auth import Access
from registry.http.validation import bad_request, sane_request_id
from registry.log import escape
from registry.model.tokens import mask_tokens

# The name of the cookie of a session, see `registry.http.sessions`.
COOKIE = b"registry_session"
_LENGTH = re.compile(rb"[0-9]{1,18}")


class Fields:
    """A header block. ``get(name)`` takes a name in lower case and returns the last value of that name, or None.

    ``length``: Content-Length in bytes, 0 for none. ``access``: what its token allows, None as long as no valid one was found.
    ``client``: the client's address if a trusted proxy sent this; ``cors``: the header lines for the page that sent this, see
    `registry.http.cors`; ``cookies``: the Cookie headers in which there may be a session.
    """

    __slots__ = (
        "accepted",
        "accepted_with_token",
        "access",
        "all",
        "chunked",
        "client",
        "close",
        "cookies",
        "cors",
        "expects",
        "get",
        "keep_alive",
        "length",
        "logged",
        "others",
        "request_id",
    )

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        values: dict[bytes, list[bytes]] = {}
        for name, value in pairs:
            values.setdefault(name.lower(), []).append(value.strip(b" \t"))
        self.all = values
        self.access: Access | None = None
        self.client = ""
        self.cors = b""
        self.cookies = [value for value in values.get(b"cookie", ()) if COOKIE in value]
        self.accepted = False  # checked before, and accepted with every method and path
        self.accepted_with_token = False  # the same together with any valid token
        self.others: Fields | None = None  # the same headers without the token
        last = {name: found[-1] for name, found in values.items()}
        if b"tracestate" in last:
            # It may be split over several lines.
            last[b"tracestate"] = b",".join(values[b"tracestate"])
        self.get = last.get
        length = last.get(b"content-length")
        if length is not None and not _LENGTH.fullmatch(length):
            raise bad_request("The Content-Length is not a valid number.")
        self.length = int(length or 0)
        codings = values.get(b"transfer-encoding", ())
        if codings and (len(codings) > 1 or codings[0].lower() != b"chunked"):
            raise bad_request("The only supported Transfer-Encoding is chunked.")
        self.chunked = bool(codings)
        tokens = {token.strip() for token in b",".join(values.get(b"connection", ())).lower().split(b",")}
        self.close = b"close" in tokens
        self.keep_alive = b"keep-alive" in tokens and not self.close
        self.expects = last.get(b"expect", b"").lower() == b"100-continue"
        self.request_id = sane_request_id(values.get(b"x-request-id", ()))
        self.logged = logged_agents(last.get(b"referer"), last.get(b"user-agent"))

    def with_token(self, authorization: bytes, access: Access | None) -> Fields:
        """The same headers, and this value of Authorization; ``get`` does not find it."""
        fields = Fields.__new__(Fields)
        fields.all = {**self.all, b"authorization": [authorization]}
        fields.others, fields.access = self, access
        fields.accepted = self.accepted_with_token and access is not None
        fields.accepted_with_token = False
        fields.client, fields.cors, fields.cookies = self.client, self.cors, self.cookies
        fields.get = self.get
        fields.length, fields.chunked, fields.expects = self.length, self.chunked, self.expects
        fields.close, fields.keep_alive = self.close, self.keep_alive
        fields.request_id, fields.logged = self.request_id, self.logged
        return fields

    def values(self, name: bytes) -> list[bytes]:
        """Every value of this name, in order."""
        return self.all.get(name, [])


def logged_agents(referer: bytes | None, user_agent: bytes | None) -> str:
    """The two headers of an access line, quoted and escaped; "-" for a missing one."""
    return mask_tokens(
        f'"{escape(referer) if referer else "-"}" "{escape(user_agent) if user_agent else "-"}"'
    )

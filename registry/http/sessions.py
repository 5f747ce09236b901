"""The session of the dashboard: a cookie in place of a token, so that no script of a page can read a token.

The cookie is ``NAME.EXPIRES.MAC``: the token's name, the time of its end, and a signature. The key of the signature is made from
a secret in Redis, which all daemons on this Redis share, and the token's hash: the session ends with its token, and who reads
the tokens file alone can make none. Nothing is stored for a session, so signing out only removes the cookie from the browser.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from typing import Final

from registry.errors import BadBody, RedisUnavailable
from registry.http.auth import ANYONE, STRANGER, Access, Gate, describe
from registry.http.codec import Answer, json_answer
from registry.http.fields import COOKIE
from registry.http.options import members
from registry.http.request import Request
from registry.http.turns import at_once
from registry.http.validation import Refusal

SECONDS: Final = 12 * 3600
# Several registries of one host have cookies of one name, each with its path.
MAX_COOKIES: Final = 4
# The body of a sign-in, bytes.
MAX_BODY: Final = 4096


class Session(Access):
    """What a signed-in page may do: what its token may, but never push or pop."""

    __slots__ = ()

    def may(self, right: str, queue: bytes = b"") -> bool:
        return right not in ("push", "pop") and super().may(right, queue)

    def may_fill(self, queue: bytes) -> bool:
        return "push" not in self._globs or super().may("push", queue)


class Sessions:
    """``secret``: what the signatures are made with, b"" as long as it is unknown; ``path``: of the cookie."""

    def __init__(self, gate: Gate, path: str = "", now: Callable[[], float] = time.time) -> None:
        self.secret = b""
        self._gate = gate
        self._path = path or "/"
        self._now = now

    def find(self, cookies: Sequence[bytes]) -> Access | None:
        """What the session in these Cookie headers allows; None if there is no valid one."""
        if not self.secret:
            return None
        pairs = [part.strip().partition(b"=") for part in b";".join(cookies).split(b";")]
        for value in [value for name, _, value in pairs if name == COOKIE][:MAX_COOKIES]:
            name, _, rest = value.rpartition(b".")[0].rpartition(b".")
            if rest.isdigit() and len(rest) < 12 and int(rest) > self._now():
                entry = self._gate.entry(name.decode("latin-1"))
                if entry is not None and hmac.compare_digest(
                    value, self._sign(entry.token.hash, name, int(rest))
                ):
                    entry.access.is_used = True
                    return Session(entry.access.name, entry.access.rights, entry.token.expires)
        return None

    def _sign(self, token_hash: str, name: bytes, expires: int) -> bytes:
        signed = b"%b.%d" % (name, expires)
        return b"%b.%b" % (
            signed,
            hmac.digest(self.secret, token_hash.encode() + b" " + signed, "sha256").hex().encode(),
        )

    def sign_in(self, request: Request, is_secure: bool) -> Answer:
        """Give a cookie to the holder of a token, in the header or in the body: ``{"token": "rgy_…"}``."""
        access, given = request.access, _token_in(request.body)
        if access is ANYONE:
            return json_answer(200, describe(access))
        if access is STRANGER or isinstance(access, Session):
            found = self._gate.identify(given)
            if found is None:
                return _refused(self._gate.unknown(given, request.address))
            access = found
        if not self.secret:
            raise RedisUnavailable("Redis is away; nobody can sign in.", retry_after=2)
        entry = self._gate.entry(access.name)
        if entry is None:
            return _refused(self._gate.unknown((), None))
        expires = int(min(self._now() + SECONDS, entry.access.expires_at))
        value = self._sign(entry.token.hash, access.name.encode(), expires)
        seconds = max(0, expires - int(self._now()))
        described = describe(Session(access.name, access.rights, entry.token.expires))
        return json_answer(200, described, [self._cookie(value, seconds, is_secure)])

    def sign_out(self, is_secure: bool) -> Answer:
        """Take the cookie away from the browser."""
        return json_answer(200, {"success": True}, [self._cookie(b"", 0, is_secure)])

    def _cookie(self, value: bytes, seconds: int, is_secure: bool) -> tuple[bytes, bytes]:
        text = b"%b=%b; Path=%b; Max-Age=%d; HttpOnly; SameSite=Strict" % (
            COOKIE,
            value,
            self._path.encode(),
            seconds,
        )
        return b"Set-Cookie", text + (b"; Secure" if is_secure else b"")


def _token_in(body: bytes) -> list[bytes]:
    """The token in the body of a request, as a header would have it; raises `BadBody` and `BadOption`."""
    if not body:
        return []
    wrong = BadBody('The body must be empty, or {"token": "rgy_…"}.')
    if len(body) > MAX_BODY:
        raise wrong
    part = at_once(members(body, "token")).get("token")
    token = part.value("token") if part is not None else None
    if not isinstance(token, str) or not token.isascii():
        raise wrong
    return [b"Bearer " + token.encode()]


def _refused(refusal: Refusal) -> Answer:
    return Answer(refusal.status, refusal.body(), tuple(refusal.headers))

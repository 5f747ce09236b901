"""Authentication and authorisation: tokens, rights, 401, 403 and 429.

Once a token exists, every request needs one: ``Authorization: Bearer rgy_…``. The check happens when the head of a request has
arrived, before its body is read. Parsed heads are remembered together with the verdict on them, so `Gate.replace` has to be
followed by `Heads.forget`; a request that repeats the bytes of an earlier one costs no look-up.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import translate
from typing import Final, NamedTuple

from registry.http.validation import Refusal
from registry.model.tokens import Token, hash_of, parse_right

# What a route may demand. "open" demands nothing, "sign-in" no wrong token, "any" a token of whatever rights; "push" and "pop"
# count for the queues that the path names.
RIGHTS: Final = ("open", "sign-in", "any", "push", "pop", "view", "operate", "admin")
# Verdicts that a token remembers for push, and for pop.
MAX_VERDICTS = 512
# An address may send this many wrong tokens in this many seconds; then they are answered 429.
MAX_FAILURES, FAILURE_SECONDS = 10, 60.0
# The addresses whose wrong tokens are counted, at most.
MAX_ADDRESSES = 10_000

_WILD = re.compile(r"[*?\[]")
_BEARER = re.compile(rb"(?i:bearer) +([A-Za-z0-9._~+/-]+=*)")


class Globs:
    """The names that match one of several globs. ``prefixes``: of the globs whose only wildcard is the ``*`` at their end."""

    __slots__ = ("_known", "_others", "_pattern", "prefixes")

    def __init__(self, globs: Sequence[str]) -> None:
        simple = [glob for glob in globs if not _WILD.search(glob[:-1]) and glob[-1:] == "*"]
        self.prefixes = tuple(glob[:-1].encode() for glob in simple)
        self._others = [glob for glob in globs if glob not in simple]
        self._pattern: re.Pattern[str] | None = None
        self._known: dict[bytes, bool] = {}

    def match(self, name: bytes) -> bool:
        """Whether this name matches one of the other globs."""
        if not self._others:
            return False
        verdict = self._known.get(name)
        if verdict is None:
            if self._pattern is None:
                # Compiled when first needed: that takes longer than all else about a token, and a file may have thousands.
                self._pattern = re.compile("|".join(f"(?:{translate(glob)})" for glob in self._others))
            verdict = self._pattern.match(name.decode("utf-8", "replace")) is not None
            if len(self._known) >= MAX_VERDICTS:
                self._known.clear()
            self._known[name] = verdict
        return verdict


class Access:
    """What a token lets its holder do. ``name``: of the token, "" without one; ``rights``: as they are in the file.

    ``reads_payloads``: whether lists and look-ups show what producers and workers wrote; ``is_over``: the token is no longer valid;
    ``is_used``: there was a request with it since `Gate.take_used`.
    """

    __slots__ = ("_globs", "_verbs", "expires_at", "is_over", "is_used", "name", "reads_payloads", "rights")

    def __init__(self, name: str, rights: Iterable[str], expires: datetime | None = None) -> None:
        self.name = name
        self.rights = tuple(rights)
        self.is_over = self.is_used = False
        self.expires_at = expires.timestamp() if expires is not None else math.inf
        parsed = [parse_right(text) for text in self.rights]
        verbs = {right.verb for right in parsed}
        everything = "admin" in verbs
        self.reads_payloads = (
            everything
            or "operate" in verbs
            or any(right.verb == "view" and right.payloads for right in parsed)
        )
        if everything:
            verbs |= {"admin", "operate", "push", "pop"}
        if "operate" in verbs:
            verbs.add("view")
        self._verbs = verbs | ({"open", "sign-in", "any"} if parsed else {"open", "sign-in"})
        self._globs: dict[str, Globs] = {}
        for verb in ("push", "pop"):
            globs = ["*"] if everything else [right.glob for right in parsed if right.verb == verb]
            if globs:
                self._globs[verb] = Globs(globs)

    def may(self, right: str, queue: bytes = b"") -> bool:
        """Whether the holder has this right, for push and pop in this queue."""
        globs = self._globs.get(right)
        if globs is None:
            return right in self._verbs
        return queue.startswith(globs.prefixes) or globs.match(queue)

    def may_fill(self, queue: bytes) -> bool:
        """Whether the holder, who may operate, may also bring tasks into this queue, as a schedule or a move does.

        The right to operate is for all queues; a token that names queues to push into keeps to these.
        """
        return "push" not in self._globs or self.may("push", queue)

    def reads(self, queue: bytes) -> bool:
        """Whether the holder may see the payloads of this queue."""
        return self.reads_payloads or self.may("push", queue)


# Any caller while there are no tokens; and a caller without one where they are needed.
ANYONE: Final = Access("", ["admin"])
STRANGER: Final = Access("", [])


class Caller(NamedTuple):
    """The sender of a request. ``address``: where it comes from, "-" for a unix socket."""

    access: Access
    address: str

    @property
    def name(self) -> str:
        """The name of its token, "" without one."""
        return self.access.name


class Entry(NamedTuple):
    """A token of the file, and what it allows."""

    token: Token
    access: Access

    @property
    def id(self) -> str:
        """What tells it from all other tokens, also from a later one of the same name."""
        return self.token.hash[:32]


_NO_ENTRY: Final = Entry(Token("", "", ()), STRANGER)


class Gate:
    """Checks tokens. ``is_closed``: a token is needed; once there was one, that stays so until the daemon is restarted.

    ``now()`` tells the time of day as `time.time`, ``monotonic()`` as `time.monotonic`.
    """

    def __init__(
        self, now: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.is_closed = False
        self._now = now
        self._by_hash: dict[str, Entry] = {}
        self._by_name: dict[str, Entry] = {}
        self._gone: set[str] = set()
        self._next_expiry = math.inf
        self._failures = Failures(monotonic)

    def replace(self, tokens: Sequence[Token]) -> None:
        """From now on, these tokens are valid, and no others."""
        known, self._by_hash = self._by_hash, {}
        for token in tokens:
            entry = known.get(token.hash)
            if entry is not None and entry.token == token:
                del known[token.hash]
            else:
                access = Access(token.name, token.rights, token.expires)
                access.is_used = entry is not None and entry.access.is_used
                entry = Entry(token, access)
            self._by_hash[token.hash] = entry
        for hashed, entry in known.items():
            entry.access.is_over = True
            if hashed not in self._by_hash:
                self._gone.add(entry.id)
        self._by_name = {entry.token.name: entry for entry in self._by_hash.values()}
        self.is_closed = self.is_closed or bool(tokens)
        self._find_next_expiry()

    @property
    def entries(self) -> list[Entry]:
        """The tokens of the file, in its order; also those that have expired."""
        return list(self._by_hash.values())

    def take_used(self) -> tuple[set[str], set[str]]:
        """The ids of the tokens that were used since the last call, and of those that were revoked since."""
        used = {entry.id for entry in self._by_hash.values() if entry.access.is_used}
        for entry in self._by_hash.values():
            entry.access.is_used = False
        gone, self._gone = self._gone, set()
        return used, gone

    def _find_next_expiry(self) -> None:
        now = self._now()
        self._next_expiry = math.inf
        for _, access in self._by_hash.values():
            access.is_over = access.expires_at <= now
            if not access.is_over and access.expires_at < self._next_expiry:
                self._next_expiry = access.expires_at

    def expiries(self) -> list[tuple[str, float]]:
        """The tokens that expire, by name, and when, in s since 1970; the first one first."""
        found = [(access.name, access.expires_at) for _, access in self._by_hash.values()]
        return sorted([one for one in found if one[1] < math.inf], key=lambda one: one[1])

    def has_expired(self) -> bool:
        """Whether a token has expired since this was last asked; what is remembered of heads must be forgotten then."""
        if self._now() < self._next_expiry:
            return False
        self._find_next_expiry()
        return True

    def entry(self, name: str) -> Entry | None:
        """The valid token of this name, and what it allows."""
        found = self._by_name.get(name)
        return found if found is not None and found.access.expires_at > self._now() else None

    def identify(self, authorization: Sequence[bytes]) -> Access | None:
        """What the token in these Authorization headers allows; None if there is no valid one."""
        found = _BEARER.fullmatch(authorization[0]) if len(authorization) == 1 else None
        if found is None:
            return None
        # The look-up is by the hash: its duration reveals nothing about a token.
        hashed = hash_of(found[1])
        token, access = self._by_hash.get(hashed, _NO_ENTRY)
        if not hmac.compare_digest(token.hash, hashed) or access.expires_at <= self._now():
            return None
        if access.is_over:
            # The clock was set back. The token will expire again, and then, too, what is remembered must be forgotten.
            self._find_next_expiry()
        return access

    def unknown(self, authorization: Sequence[bytes], address: str | None) -> Refusal:
        """The answer to a request without a valid token; a wrong one is counted against the address, unless that is None."""
        given = address is not None and any(map(_BEARER.fullmatch, authorization))
        seconds = self._failures.count(address or "-") if given else 0
        if seconds:
            return Refusal(
                429,
                "rate_limited",
                "Too many tokens from this address were not valid; try again later. Valid ones are still let in.",
                [(b"Retry-After", b"%d" % seconds)],
            )
        return Refusal(
            401,
            "unauthorized",
            "A valid token is needed here, in the header Authorization: Bearer TOKEN.",
            [(b"WWW-Authenticate", b"Bearer")],
        )


def forbidden(access: Access, right: str, queue: bytes = b"") -> Refusal:
    """The answer to a holder of a token who lacks a right."""
    access.is_used = True
    where = f" for the queue {queue.decode('utf-8', 'replace')!r}" if queue else ""
    return Refusal(
        403, "forbidden", f"The token {access.name!r} lacks the right {right!r}{where}.", right=right
    )


class Failures:
    """Counts the wrong tokens of each address, over a window that begins with the first."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._counts: dict[str, tuple[int, float]] = {}  # by address: how many, and when the window ends

    def count(self, address: str) -> int:
        """Count one more; the seconds until the address may try again, 0 while it still may."""
        now = self._monotonic()
        key = _network(address)
        count, end = self._counts.get(key, (0, 0.0))
        if end <= now:
            # Take it out first: the oldest windows are in front.
            self._counts.pop(key, None)
            count, end = 0, now + FAILURE_SECONDS
            if len(self._counts) >= MAX_ADDRESSES:
                del self._counts[next(iter(self._counts))]
        self._counts[key] = count + 1, end
        return math.ceil(end - now) if count >= MAX_FAILURES else 0


def _network(address: str) -> str:
    """The address, or the /64 of an IPv6 address: one host may have all addresses of it."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))


def describe(access: Access) -> dict[str, object]:
    """A token as its holder sees it. ``expires``: RFC 3339, None for never."""
    expires = None if access.expires_at == math.inf else time_text(access.expires_at)
    return {"name": access.name or None, "rights": list(access.rights), "expires": expires}


def describe_rights(access: Access) -> dict[str, object]:
    """The same, and what a page needs to know to show only what its caller may do and see.

    ``push``: whether it may push into every queue; the session of a page never may.
    """
    may = {right: access.may(right) for right in ("view", "operate", "admin", "push")}
    return {**describe(access), "may": may, "payloads": access.reads_payloads}


def time_text(seconds: float) -> str:
    """A time of day, s, as RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

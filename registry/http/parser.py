"""Request heads: bytes in, a `Head` out, or a `Refusal`.

``httptools`` parses the header block; `registry.http.validation` refuses what it accepts and we do not. Clients send the
same heads and header blocks again and again, so the parsed ones are remembered.
"""

from __future__ import annotations

import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import httptools
from msgspec import Struct, field

from registry.http.auth import ANYONE, STRANGER, Access, Gate, forbidden
from registry.http.codec import names_from
from registry.http.cors import Cors, preflight
from registry.http.fields import Fields
from registry.http.limits import (
    MAX_HEADERS,
    MAX_HEADERS_SIZE,
    MAX_LINE,
    header_too_long,
    headers_too_large,
    line_too_long,
    too_large,
    too_many_headers,
)
from registry.http.proxies import Proxies
from registry.http.validation import (
    METHODS,
    Refusal,
    bad_request,
    check_encoding,
    check_host,
    check_key,
    check_own_page,
    check_request_line,
    check_site,
    like_a_browser,
)
from registry.log import VALUE_LIMIT, escape
from registry.model.tokens import mask_tokens

# How many heads and header blocks are remembered, and the longest of them, bytes.
# A thousand workers that each have a token of their own send two thousand different heads.
MAX_REMEMBERED = 4096
MAX_REMEMBERED_SIZE = 2048

# A request line that needs no further check: only the characters of RFC 3986, and no escape in the path.
_PLAIN_LINE = re.compile(
    rb"(GET|POST|PUT|PATCH|DELETE|HEAD) ((/[A-Za-z0-9\-._~!$&'()*+,;=:@/]*)(?:\?([A-Za-z0-9\-._~!$&'()*+,;=:@%/?]*))?) HTTP/1\.1"
)
# A token on a line of its own that no further line continues.
_TOKEN = re.compile(rb"[Aa]uthorization: ([Bb]earer rgy_[A-Za-z0-9_-]{43})\r\n(?![ \t])")
# All heads share one object per method.
_METHODS = {method: method for method in METHODS}


class Found(Struct, frozen=True):
    """What answers a head: ``verb(request)``; None where nothing does.

    ``parks``: the request may wait for long, and is cancelled when its client leaves. ``remembers``: the head is worth
    remembering, because the same bytes will come again. ``right``, ``or_push``, ``body``: see `registry.http.request.Route`.
    ``streams``: its answer goes on (`registry.http.stream`). ``many``: the path names several queues. ``counts``: how often it was
    answered, by status. ``is_recorded``: the audit may record it, so it needs an id before it is answered.
    """

    verb: Any
    parks: bool = False
    remembers: bool = False
    right: str = "any"
    or_push: bool = False
    many: bool = False
    body: str = "task"
    counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    is_recorded: bool = False
    streams: bool = False


NO_OPTIONS: dict[str, Any] = {}
_NOT_YET = Found(None)
_PREFLIGHT = Found(preflight, right="open")
# Checks of other programs ask these without BASE_PATH, too.
_WITHOUT_BASE = (b"/healthz", b"/readyz", b"*")


class Head(Struct, eq=False):
    """A request without its body; ``found`` says what answers it. An access line shows ``line``.

    ``name``, ``segments``, ``options``: what `registry.http.routes` found in path and query. ``access``: what its sender may do.
    ``is_secure``: its client used TLS; not true of a remembered head. ``limit``: of its body, bytes. Ten thousand polls may wait,
    each with its own head, so a head keeps no copy of what many can share.
    """

    method: bytes
    path: bytes
    query: bytes
    fields: Fields
    line: str
    request_id: bytes | None
    expects: bool
    close: bool
    keep_alive: bool
    bodiless: bool
    is_secure: bool
    options: dict[str, Any]
    found: Found = _NOT_YET
    name: bytes = b""
    segments: tuple[bytes, ...] = ()
    access: Access = ANYONE
    limit: int = 0


class Collector:
    """Receives the callbacks of ``httptools`` while it reads a header block."""

    __slots__ = ("done", "pairs")

    def __init__(self) -> None:
        self.pairs: list[tuple[bytes, bytes]] = []
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) + len(value) > MAX_LINE:
            raise header_too_long()
        self.pairs.append((name, value))
        if len(self.pairs) > MAX_HEADERS:
            raise too_many_headers()

    def on_headers_complete(self) -> None:
        self.done = True


class BlockReader:
    """Reads a header block piece by piece, and refuses it as soon as it can no longer become valid."""

    def __init__(self) -> None:
        self.collector = Collector()
        self._parser = httptools.HttpRequestParser(self.collector)
        # The real request line is checked separately; any valid one will do here.
        self._parser.feed_data(b"POST / HTTP/1.1\r\n")

    def feed(self, data: bytes) -> None:
        """Read more bytes; raises `Refusal`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request is answered as if it had not asked for another protocol.
            pass
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, Refusal):
                raise cause from None
            raise bad_request(f"The headers are not well-formed HTTP: {error}.") from None


class PartialHead:
    """A head that arrives in pieces; ``data`` is what has arrived. Refused as soon as it can no longer become valid.

    Each byte is examined once.
    """

    __slots__ = ("_block", "_scanned", "data")

    def __init__(self) -> None:
        self.data = bytearray()
        self._scanned = 0  # bytes already searched for the end of the head
        self._block: BlockReader | None = None  # reads the headers, after the request line

    def feed(self, more: bytes) -> bool:
        """Take more bytes; return whether the head is complete. Raises `Refusal`."""
        data = self.data
        data += more
        if data.find(b"\r\n\r\n", max(0, self._scanned - 3)) >= 0:
            return True
        if self._block is None and not self._read_line():
            self._scanned = len(data)
            return False
        assert self._block is not None
        self._block.feed(bytes(data[self._scanned :]))
        self._scanned = len(data)
        # One more byte is allowed: it may be a CR.
        if len(data) - 1 - data.rfind(b"\n", -MAX_LINE - 2) > MAX_LINE + 1:
            raise header_too_long()
        if len(data) > MAX_LINE + MAX_HEADERS_SIZE:
            raise headers_too_large()
        return False

    def _read_line(self) -> bool:
        end = self.data.find(b"\n", max(0, self._scanned - 1))
        if end < 0:
            if len(self.data) > MAX_LINE + 1:
                raise line_too_long()
            return False
        line = bytes(self.data[:end])
        if line[-1:] != b"\r":
            raise bad_request("The request line does not end in CR LF.")
        check_request_line(line[:-1])
        self._block = BlockReader()
        self._scanned = end + 1
        return True


class Heads:
    """Parses and remembers heads. ``find(head)`` returns what answers a head; see `registry.http.routes`.

    ``host_allowed(name)`` tells whether a Host is accepted; ``limit_of(body)`` returns the longest body of a route, bytes;
    ``gate`` checks tokens; ``find_session(cookies)`` returns what a session allows, or None.
    """

    def __init__(
        self,
        find: Callable[[Head], Found],
        host_allowed: Callable[[bytes], bool],
        limit_of: Callable[[str], int],
        gate: Gate | None = None,
        *,
        find_session: Callable[[Sequence[bytes]], Access | None] = lambda cookies: None,
        proxies: Proxies | None = None,
        cors: Cors | None = None,
        base_path: str = "",
    ) -> None:
        self.remembered: dict[bytes, Head] = {}
        self._blocks: dict[bytes, Fields] = {}
        self._find = find
        self._host_allowed = host_allowed
        self._limit_of = limit_of
        self._gate = gate or Gate()
        self._find_session = find_session
        self.proxies = proxies or Proxies()
        self._cors = cors or Cors()
        self._base_path = base_path.encode()

    def forget(self) -> None:
        """Forget every head: the verdicts on them are out of date."""
        self.remembered.clear()
        self._blocks.clear()

    def parse(self, data: bytes, address: str = "-", is_trusted: bool = False, is_tls: bool = False) -> Head:
        """Parse a head from ``address``; ``data`` includes its last empty line. Raises `Refusal`.

        ``is_trusted``: a trusted proxy sent it; ``is_tls``: over TLS.
        """
        line, _, block = data.partition(b"\r\n")
        if len(line) > MAX_LINE:
            raise line_too_long()
        plain = _PLAIN_LINE.fullmatch(line)
        authority = None
        if plain is not None:
            method, target, path, query = plain.groups()
            is_http_10 = False
        else:
            line, authority = check_request_line(line)
            method, target, version = line.split(b" ")
            path, _, query = target.partition(b"?")
            is_http_10 = version == b"HTTP/1.0"
        fields = self._blocks.get(block) or self._block(block)
        if len(target) > VALUE_LIMIT:
            line = line.replace(target, target[:VALUE_LIMIT] + b"...")
        # A plain line needs no escaping.
        shown = mask_tokens(line.decode() if plain is not None else escape(line))
        if self._base_path:
            path = self._below_base(path)
            target = path + b"?" + query if query else path
        head = Head(
            _METHODS[method],
            path,
            query or b"",
            fields,
            shown,
            fields.request_id,
            fields.expects and not is_http_10,
            fields.close or (is_http_10 and not fields.keep_alive),
            fields.keep_alive,
            method == b"HEAD",
            is_tls,
            NO_OPTIONS,
        )
        if is_trusted:
            address = fields.client or address
            head.is_secure = is_tls or self.proxies.is_https(
                fields.values(b"x-forwarded-proto"), fields.values(b"forwarded")
            )
        if fields.cors and method == b"OPTIONS" and fields.get(b"access-control-request-method"):
            head.found = found = _PREFLIGHT
        else:
            head.found = found = self._find(head)
        try:
            if not fields.accepted or plain is None or self._gate.is_closed:
                self._validate(head, target, authority, b"HTTP/1.0" if is_http_10 else b"HTTP/1.1", address)
            if fields.length or fields.chunked:
                head.limit = self._limit_of(found.body)
                if fields.length > head.limit:
                    raise too_large(head.limit)
        except Refusal as refusal:
            refusal.head = head
            raise
        lasts = found.remembers and not fields.cookies
        if lasts and authority is None and len(data) <= MAX_REMEMBERED_SIZE:
            remember(self.remembered, data, head)
        if found.is_recorded and not head.request_id:
            head.request_id = new_id()
        return head

    def _below_base(self, path: bytes) -> bytes:
        """The path without BASE_PATH; b"", which is no path of ours, for one that is not below it."""
        if path.startswith(self._base_path + b"/"):
            return path[len(self._base_path) :]
        return path if path in _WITHOUT_BASE else b""

    def _block(self, block: bytes) -> Fields:
        at = block.find(b"uthorization: ") - 1 if self._gate.is_closed else -1
        found = _TOKEN.match(block, at) if at == 0 or (at > 0 and block[at - 1] == 0x0A) else None
        if found is not None:
            # Apart from their tokens, many workers send the same headers: these are read once.
            rest = block[: found.start()] + block[found.end() :]
            others = self._blocks.get(rest) or self._read_block(rest)
            if b"authorization" not in others.all:
                fields = others.with_token(found[1], self._gate.identify([found[1]]))
                if len(block) <= MAX_REMEMBERED_SIZE:
                    remember(self._blocks, block, fields)
                return fields
        return self._read_block(block)

    def _read_block(self, block: bytes) -> Fields:
        if len(block) > MAX_HEADERS_SIZE:
            raise headers_too_large()
        if max(map(len, block.split(b"\r\n"))) > MAX_LINE:
            raise header_too_long()
        reader = BlockReader()
        reader.feed(block)
        if not reader.collector.done:
            raise bad_request("The headers are not well-formed HTTP.")
        fields = Fields(reader.collector.pairs)
        if self.proxies:
            fields.client = self.proxies.client(
                fields.values(b"x-forwarded-for"), fields.values(b"forwarded")
            )
        fields.cors = self._cors.lines(fields.values(b"origin"))
        if len(block) <= MAX_REMEMBERED_SIZE:
            remember(self._blocks, block, fields)
        return fields

    def _validate(
        self, head: Head, target: bytes, authority: bytes | None, version: bytes, address: str
    ) -> None:
        fields = head.fields
        if fields.accepted and authority is None and version == b"HTTP/1.1":
            if self._gate.is_closed:
                found, access = head.found, fields.access
                if access is not None and not found.many and access.may(found.right, head.name):
                    head.access = access
                else:
                    self._admit(head, address, None)
            return
        hosts = fields.values(b"host")
        host = check_host(hosts, version)
        if authority is not None:
            # An absolute target replaces the Host header, which is required all the same.
            hosts = [authority]
            host = check_host(hosts, version)
        if fields.chunked and version != b"HTTP/1.1":
            raise bad_request("HTTP/1.0 does not allow Transfer-Encoding.")
        self._admit(head, address, None if head.found is _PREFLIGHT else host)
        agents = fields.values(b"user-agent")
        pages = fields.values(b"sec-fetch-site"), fields.values(b"origin"), hosts, agents
        if not fields.cors:
            check_site(head.method, target, *pages)
        check_encoding(fields.values(b"content-encoding"))
        check_key(fields.values(b"idempotency-key"))
        # A request that may come from another site's page is checked for each method and path.
        maybe_page = pages[0] or pages[1] or fields.cookies or any(map(like_a_browser, agents))
        fields.accepted = authority is None and version == b"HTTP/1.1" and not maybe_page
        if fields.accepted and fields.others is not None and fields.access is not None:
            fields.others.accepted_with_token = True

    def _admit(self, head: Head, address: str | None, host: bytes | None) -> None:
        """Check the token and its rights, and the Host of a request without a valid token; raises `Refusal`.

        A wrong token is counted against the address, unless that is None.
        """
        gate, fields, right = self._gate, head.fields, head.found.right
        access: Access | None = ANYONE
        if gate.is_closed:
            given = fields.values(b"authorization")
            access = fields.access
            if access is None and given:
                access = fields.access = gate.identify(given)
                if access is None and right != "open":
                    raise gate.unknown(given, address)
            elif access is None and fields.cookies:
                # Not kept with the fields: it ends at its time.
                access = self._session(head)
        if host is not None and (access is None or access is ANYONE) and not self._host_allowed(host):
            # It is a valid host name, so nothing in it needs escaping.
            sentence = f"The host name {host.decode()!r} is not allowed; see the setting ALLOWED_HOSTS."
            raise Refusal(421, "foreign_host", sentence)
        if access is None:
            if right not in ("open", "sign-in"):
                raise gate.unknown((), address)
            access = STRANGER
        head.access = access
        if access is not ANYONE:
            check_right(access, head.found, head.name, head.segments)

    def _session(self, head: Head) -> Access | None:
        values = head.fields.values
        access = self._find_session(head.fields.cookies)
        if access is not None:
            check_own_page(head.method, values(b"sec-fetch-site"), values(b"origin"), values(b"host"))
        return access

    def admit_again(self, head: Head) -> None:
        """Check the token of a request that has not been answered yet, after tokens have changed; raises `Refusal`."""
        head.fields.access = None
        try:
            self._admit(head, None, None)
        except Refusal as refusal:
            refusal.head = head
            raise


def check_right(access: Access, found: Found, name: bytes, segments: Sequence[bytes]) -> None:
    """Refuse the holder of a token who lacks the right, for each of the queues that the path names."""
    right = found.right
    for queue in names_from(segments[0]) if found.many else (name,):
        if not (access.may(right, queue) or (found.or_push and access.may("push", queue))):
            raise forbidden(access, right, queue if right in ("push", "pop") else b"")


def new_id() -> bytes:
    """An id for a request whose client gave none."""
    return secrets.token_hex(8).encode()


def remember(table: dict[Any, Any], key: Any, value: Any) -> None:
    """Remember a parsed value. A full table is emptied: frequent entries soon return."""
    if len(table) >= MAX_REMEMBERED:
        table.clear()
    table[key] = value

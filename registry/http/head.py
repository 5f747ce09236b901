"""What the front door is sure of in the bytes of a request: its line, its headers, the queue's name in its path.

Everything here has two answers, understood and not understood. It never judges: what is not understood is read again
by the site, which knows every rule and says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from registry.errors import BadName
from registry.http.channel import Channel
from registry.http.screening import Refusal, like_a_browser, sane_request_id, screen_host
from registry.http.site import RegistrySite
from registry.http.verbs import ROUTES, Verbs
from registry.log import VALUE_LIMIT, escape
from registry.queue.names import check_name

# The characters of RFC 3986's pchar, an escape being looked at later.
REQUEST_LINE = re.compile(
    rb"(GET|POST|PUT) (/api/([A-Za-z]{1,20})/([A-Za-z0-9\-._~!$&'()*+,;=:@%]+)(?:/([A-Za-z0-9\-_]+))?"
    rb"(?:\?([A-Za-z0-9\-._~!$&'()*+,;=:@%/?]*))?) HTTP/1\.1\r\n"
)
# No two parts of it can take the same byte: what does not fit is found out in one pass.
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\x20-\x7e\t]*)")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,8}")
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONNECTION = {b"keep-alive": False, b"close": True}
# Of one head; a longer one is the site's to judge. Bytes.
MAX_HEAD = 8192
MAX_HEADERS = Channel.maxHeaders
# Clients send the same lines and headers again and again: so many are remembered as they were understood.
MAX_REMEMBERED = 512
MAX_HEAD_REMEMBERED = 2048
# The verbs that may wait for long, and are cancelled when their client hangs up. No other is: a push is carried
# to its end, or nobody would wake the poller that waits for it.
PARKING = frozenset(("pop", "pop_many"))
# Headers that change what a request is, or who may send it. The site knows what to do about them.
UNUSUAL = frozenset(
    (
        b"content-encoding",
        b"expect",
        b"http2-settings",
        b"origin",
        b"proxy-connection",
        b"sec-fetch-site",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


def named_agents(referer: bytes | None, user_agent: bytes | None) -> str:
    """The two headers that an access line shows, as it shows them."""
    return f'"{escape(referer) if referer else "-"}" "{escape(user_agent) if user_agent else "-"}"'


class Head:
    """A request's headers as they were understood; ``get(name)`` takes a name in lower case."""

    __slots__ = ("close", "get", "keeps", "length", "logged", "request_id")

    def __init__(self, headers: dict[bytes, bytes], length: int, close: bool) -> None:
        self.get = headers.get
        self.length = length
        self.close = close
        self.keeps = not close and b"connection" in headers  # and wants to hear for how long
        self.request_id = sane_request_id([headers.get(b"x-request-id", b"")])
        self.logged = named_agents(headers.get(b"referer"), headers.get(b"user-agent"))


class Ask:
    """A request without its body: ``call(*args, body)`` answers it. An access line shows ``line``."""

    __slots__ = ("args", "call", "head", "line", "parks")

    def __init__(
        self, call: Callable[..., Any], args: tuple[Any, ...], head: Head, parks: bool, line: str
    ) -> None:
        self.call = call
        self.args = args
        self.head = head
        self.parks = parks
        self.line = line


def may_become_ours(data: bytes) -> bool:
    """Whether these bytes, which are no whole head yet, may be the beginning of one that is certainly fine."""
    line = REQUEST_LINE.match(data)
    if line is None:
        # Lines of other paths are the site's.
        return b"\r\n" not in data and len(data) <= MAX_HEAD and data[:1] in (b"G", b"P")
    # The site refuses a bad header as soon as it has come, and so do we.
    return (
        len(data) - line.end() <= MAX_HEAD and read_fields(data[line.end() :].split(b"\r\n")[:-1]) is not None
    )


def read_fields(lines: list[bytes]) -> dict[bytes, bytes] | None:
    """Understand header lines: values by name in lower case; None when one of them is not certainly fine."""
    headers: dict[bytes, bytes] = {}
    if len(lines) > MAX_HEADERS:
        return None
    for line in lines:
        found = _FIELD.fullmatch(line)
        if found is None:
            return None
        name, value = found.groups()
        name, value = name.lower(), value.strip(b" \t")
        if name in headers or name in UNUSUAL:
            return None
        if name == b"content-length" and not _LENGTH.fullmatch(value):
            return None
        headers[name] = value
    return headers


def read_head(block: bytes, host_allowed: Callable[[bytes], bool]) -> Head | None:
    """Understand a block of header lines, each with its line end; None when it is not certainly fine."""
    headers = read_fields(block[:-2].split(b"\r\n"))
    if headers is None:
        return None
    close = _CONNECTION.get(headers.get(b"connection", b"keep-alive").lower())
    host = headers.get(b"host")
    # What may be a browser's is the site's to judge, as it is when a header says which page it comes from.
    if close is None or host is None or like_a_browser(headers.get(b"user-agent")):
        return None
    try:
        host = screen_host([host], b"HTTP/1.1")
    except Refusal:
        return None
    if host is None or not host_allowed(host):
        return None
    return Head(headers, int(headers.get(b"content-length", b"0")), close)


def sound_name(raw: bytes) -> bool:
    """Whether a queue's name, as it stands in the path, is certainly fine once it is percent-decoded."""
    if _BAD_ESCAPE.search(raw):
        return False
    try:
        check_name(unquote_to_bytes(raw))
    except BadName:
        return False
    return True


def remember(known: dict[bytes, Any], key: bytes, value: Any) -> None:
    """Keep what was understood; when that is too much, all is forgotten, and what comes often is soon back."""
    if len(known) >= MAX_REMEMBERED:
        known.clear()
    known[key] = value


class Asks:
    """What clients ask, understood. ``known``: what came lately, by its head as it came."""

    def __init__(self, verbs: Verbs, site: RegistrySite) -> None:
        self.known: dict[bytes, Ask] = {}
        self._heads: dict[bytes, Head] = {}
        self._site = site
        self._routes = {
            word: (
                frozenset(route.methods),
                getattr(verbs, route.verb),
                route.segments,
                route.verb in PARKING,
            )
            for word, route in ROUTES.items()
        }

    def understand(self, head: bytes) -> Ask | None:
        """What a request asks for, by its line and its headers; None when it is not certainly fine."""
        line = REQUEST_LINE.match(head)
        if line is None or len(head) > MAX_HEAD:
            return None
        method, target, word, name, lease, query = line.groups()
        route = self._routes.get(word)
        if route is None:
            return None
        methods, call, segments, parks = route
        if (
            method not in methods
            or (lease is None) == (segments == 2)
            or ((b"%" in name or name[0] == 0x2E) and not sound_name(name))
        ):
            return None
        block = head[line.end() : -2]
        fields = self._heads.get(block) or self.head(block)
        if fields is None:
            return None
        size, site = fields.length, self._site
        if size > site.max_body and size > site.limit_of(target.partition(b"?")[0]):
            return None
        # Nothing in a line needs an escape, but a long target is cut.
        shown = (
            line[0][:-2]
            if len(target) <= VALUE_LIMIT
            else b"%b %b HTTP/1.1" % (method, target[:VALUE_LIMIT] + b"...")
        )
        query = query or b""
        args = (name, query, fields.get) if lease is None else (name, lease, query, fields.get)
        ask = Ask(call, args, fields, parks, shown.decode())
        # A lease is asked about once or twice, and so is a queue that was made for one request: their names are families.
        if lease is None and b":" not in name and len(head) <= MAX_HEAD_REMEMBERED:
            remember(self.known, head, ask)
        return ask

    def head(self, block: bytes) -> Head | None:
        """A block of headers, understood; most were seen before."""
        head = read_head(block, self._site.host_allowed)
        if head is not None and len(block) <= MAX_HEAD_REMEMBERED:
            remember(self._heads, block, head)
        return head

"""When each version of a worker was first seen: a change of what goes well is often a change of the workers.

A version is what a poll that names its worker says in its User-Agent, ``mailer/2.4.1``. It is kept by the label of the queue that was
polled, so that the charts of a queue show only its own workers.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.redis.store import Store

# A process remembers at most this many sights, and of those that are not in Redis yet at most as many as this.
MAX_KNOWN, MAX_NEW = 5000, 200
# A chart has at most this many marks, the latest.
MAX_MARKS = 50
# A product with a version, as RFC 9110 writes it, at the beginning; a version has a digit.
_VERSION = re.compile(r"([A-Za-z0-9!#$%&'*+.^_`|~-]{1,64})/([A-Za-z0-9!#$%&'*+.^_`|~-]{1,64})(?=[ (]|$)")
# What HTTP clients call themselves where nobody has named the worker. In lower case.
_LIBRARIES = """
aiohttp akka-http apache-httpasyncclient apache-httpclient axios bun cohttp cpp-httplib curl dart deno dio faraday fasthttp fetch
finch go-http-client got grequests guzzlehttp hackney http-kit http.jl http.rb http_request2 httparty httpclient httpie httpx
hyper insomnia java java-http-client jetty ky libcurl libwww-perl lwp lwp-request manticore mechanize mint mozilla needle node
node-fetch node-superagent node.js okhttp perl php postmanruntime powershell pycurl python python-aiohttp python-httpx
python-requests python-urllib python-urllib3 req reqwest rest-client rest.js restsharp ruby superagent symfony tesla treq twisted
typhoeus undici unirest-java ureq urllib urllib3 vert.x-webclient wget windowspowershell winhttp wrk
"""
LIBRARIES = frozenset(_LIBRARIES.split())
Seen = dict[tuple[bytes, bytes], None]


def version_of(agent: bytes) -> str | None:
    """The name and version of a worker from its User-Agent; None for a library, a browser, or without a version."""
    found = _VERSION.match(agent[:200].decode("latin-1"))
    if found is None or found[1].lower() in LIBRARIES or not re.search(r"\d", found[2]):
        return None
    return found[0]


class Sights:
    """``seen``: what was seen since it was last written, label and User-Agent; `registry.queue.roster` adds to it."""

    def __init__(self, store: Store, seen: Seen) -> None:
        self._store = store
        self._seen = seen
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._new: dict[bytes, int] = {}

    @inlineCallbacks
    def write(self) -> Any:
        """Store what was seen for the first time since the last call. Fails with `Unavailable`, and is then repeated."""
        now_ms = self._store.now_ms()
        seen = list(self._seen)
        self._seen.clear()
        for label, agent in seen:
            version = version_of(agent)
            if version is None:
                continue
            sight = version.encode() + b" " + label
            if sight in self._known:
                self._known.move_to_end(sight)
            elif len(self._new) < MAX_NEW:
                self._new.setdefault(sight, now_ms)
        if not self._new:
            return
        new = dict(self._new)
        yield self._store.add_sights(new)
        for sight in new:
            self._new.pop(sight, None)
            self._known[sight] = None
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    @inlineCallbacks
    def read(self, label: bytes | None) -> Any:
        """Fires with when each version was first seen at a queue of this label, or at any: ms and version, in order of time."""
        first: dict[str, int] = {}
        for sight, at in (yield self._store.sights()).items():
            version, _, seen_at = sight.partition(b" ")
            if label is None or seen_at == label:
                text = version.decode("utf-8", "replace")
                first[text] = min(first.get(text, at), at)
        return sorted((at, text) for text, at in first.items())[-MAX_MARKS:]

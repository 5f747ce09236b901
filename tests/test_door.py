"""The front door: it answers as the site behind it does, whatever bytes come and however they are cut.

Both run over a transport in memory, with verbs that tell what they were asked. Whether these are the same for all
requests a client may think of is for hypothesis to find out; the rest is about what only the door does: order,
deadlines, hang-ups, and the moment in which an answer has left.
"""

# mypy: allow-untyped-calls, disable-error-code="comparison-overlap,unreachable"

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.tcp import Server
from twisted.python.failure import Failure

from registry.errors import BadName, ShuttingDown
from registry.http.access import Access
from registry.http.api import Api
from registry.http.door import MAX_BEHIND, FrontDoor
from registry.http.head import read_head
from registry.http.site import make_site
from registry.http.verbs import ROUTES
from registry.http.wire import Answer, name_from
from registry.queue.names import check_name

LIMIT = 200
TOLD_HEADERS = (b"content-type", b"idempotency-key", b"prefer", b"traceparent", b"x-odd")


class Verbs:
    """Answers each verb with what it was asked; ``later`` lets it wait, as a poll does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.later: list[Deferred[Answer]] | None = None
        self.cancelled = 0
        self.delivered_: list[Answer] = []
        self.lost_: list[Answer] = []

    def __getattr__(self, verb: str) -> Callable[..., Deferred[Answer]]:
        if verb not in {route.verb for route in ROUTES.values()}:
            raise AttributeError(verb)

        def call(*args: Any) -> Deferred[Answer]:
            *segments, query, header, body = args
            name = check_name(name_from(segments[0]))
            if name == b"boom":
                raise BadName("That name is refused here.")
            told = {n.decode(): v.decode("latin-1") for n in TOLD_HEADERS if (v := header(n)) is not None}
            parts = [verb, repr(name), *map(repr, segments[1:]), repr(query), repr(body)]
            self.asked.append(verb)
            answer = Answer(200, json.dumps([*parts, told]).encode(), ((b"Task-Id", b"x"),))
            if self.later is None:
                return succeed(answer)
            waiting: Deferred[Answer] = Deferred(lambda _: setattr(self, "cancelled", self.cancelled + 1))
            self.later.append(waiting)
            return waiting

        return call

    def delivered(self, answer: Answer) -> None:
        self.delivered_.append(answer)

    def lost(self, answer: Answer) -> None:
        self.lost_.append(answer)


class Socket:
    """Takes ``room`` bytes, None for all of them."""

    family = socket.AF_INET

    def __init__(self, out: bytearray) -> None:
        self.out = out
        self.room: int | None = None

    def send(self, data: bytes) -> int:
        if self.room == 0:
            raise BlockingIOError
        taken = data if self.room is None else data[: self.room]
        if self.room is not None:
            self.room -= len(taken)
        self.out += taken
        return len(taken)

    def setsockopt(self, *args: object) -> None:
        pass


class Transport(Server):  # type: ignore[misc]
    """A socket's transport without a socket; what was written is in ``out``."""

    def __init__(self, protocol: Any) -> None:
        self.out = bytearray()
        self.buffered = bytearray()
        self.socket = Socket(self.out)  # type: ignore[assignment]
        self.client = ("192.0.2.1", 7)
        self.connected = 1
        self.protocol = protocol
        self.producer: Any = None
        self.reading = True
        self.ended = ""
        protocol.makeConnection(self)

    def write(self, data: bytes) -> None:
        self.buffered += data
        if self.socket.room is None:  # type: ignore[attr-defined]
            self.flush()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def flush(self) -> None:
        """The kernel takes all, as when the socket has become writable."""
        self.socket.room = None  # type: ignore[attr-defined]
        self.out += self.buffered
        self.buffered.clear()
        if self.producer is not None and not self.streaming:
            self.producer.resumeProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None
        self.producer = producer
        self.streaming = streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def startWriting(self) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getHandle(self) -> Any:
        return self.socket

    def getPeer(self) -> Any:
        return IPv4Address("TCP", "192.0.2.1", 7)

    def getHost(self) -> Any:
        return IPv4Address("TCP", "127.0.0.1", 3000)

    def loseConnection(self) -> None:
        self.ended = self.ended or "closed"

    def loseWriteConnection(self) -> None:
        self.ended = self.ended or "half closed"

    def abortConnection(self) -> None:
        self.ended = "aborted"

    def hang_up(self) -> None:
        """The other end is gone."""
        self.connected = 0
        self.protocol.connectionLost(Failure(ConnectionDone()))


class World:
    """A door, the site behind it, and a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.verbs: Any = Verbs()
        self.lines: list[str] = []
        self.access = Access(lambda *lines: self.lines.extend(lines), self.clock.callLater)
        stopped: Any = lambda: False  # noqa: E731
        api = Api(self.verbs, None, lambda: "", stopped, list)  # type: ignore[arg-type]
        self.site = make_site(
            api.resource(),
            reactor=self.clock,  # type: ignore[arg-type]
            max_body=LIMIT,
            host_allowed=lambda name: name == b"localhost",
            access_log=self.access.request,
        )
        verbs: Any = self.verbs
        self.door = FrontDoor(verbs, self.site, reactor=self.clock, access=self.access)

    def at_door(self) -> Transport:
        return Transport(self.door.buildProtocol(None))

    def at_site(self) -> Transport:
        return Transport(self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 7)))

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)

    def passed_on(self, transport: Transport) -> bool:
        return transport.protocol not in self.door.connections


@pytest.fixture
def world() -> World:
    return World()


def ask(line: str, *headers: str, body: bytes = b"", host: str = "Host: localhost") -> bytes:
    if body and not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        headers += (f"Content-Length: {len(body)}",)
    lines = [f"{line} HTTP/1.1", *([host] if host else []), *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


PUSH = ask("PUT /api/pushTask/q", body=b'{"a":1}')
POP = ask("GET /api/popTask/q")


def answers(out: bytes) -> list[tuple[bytes, dict[bytes, bytes], bytes]]:
    """All answers in these bytes: status line, headers without what is never the same, body."""
    found = []
    while out:
        head, mark, rest = out.partition(b"\r\n\r\n")
        assert mark, out
        first, *lines = head.split(b"\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b": ")
            assert name.lower() not in headers, (name, head)
            headers[name.lower()] = value
        if first == b"HTTP/1.1 100 Continue":
            found.append((first, headers, b""))
            out = rest
            continue
        length = int(headers[b"content-length"])
        assert b"x-request-id" in headers
        for name in (b"date", b"x-request-id"):
            value = headers.pop(name, b"")
            assert name != b"x-request-id" or re.fullmatch(rb"[\w.-]{1,64}", value), head
        assert len(rest) >= length, (head, rest)
        found.append((first, headers, re.sub(rb"incident \w+|[0-9a-f]{12}", b"", rest[:length])))
        out = rest[length:]
    return found


def same(*pieces: bytes) -> list[tuple[bytes, dict[bytes, bytes], bytes]]:
    """What both answer to these bytes; they must not differ, nor in how they leave the connection."""
    told = []
    for through in ("door", "site"):
        world = World()
        transport = world.at_door() if through == "door" else world.at_site()
        for piece in pieces:
            if transport.ended in ("closed", "aborted"):
                break
            transport.protocol.dataReceived(piece)
        told.append((answers(bytes(transport.out)), transport.ended, world.verbs.asked))
        transport.hang_up()
        for call in world.clock.getDelayedCalls():
            call.cancel()
    assert told[0] == told[1]
    return told[0][0]


# -- the same through both

TABLE = {
    "push": (PUSH, 200),
    "push, posted": (ask("POST /api/pushTask/q", body=b"1"), 200),
    "pop": (POP, 200),
    "pop, posted with a body": (ask("POST /api/popTask/q?wait=0", body=b"x"), 200),
    "ack": (ask("POST /api/ackTask/q/a-b", body=b"{}"), 200),
    "ack without a lease": (ask("POST /api/ackTask/q"), 404),
    "pop with a segment too many": (ask("GET /api/popTask/q/r"), 404),
    "all verbs of many": (ask("GET /api/popTasks/a,b%2Cc?count=3"), 200),
    "an escaped colon": (ask("GET /api/popTask/queue_results%3Ab4c5"), 200),
    "an escape in lower case": (ask("GET /api/popTask/queue_results%3ab4c5"), 200),
    "an escaped slash": (ask("GET /api/popTask/a%2Fb"), 400),
    "an escape of nothing": (ask("GET /api/popTask/a%zz"), 400),
    "an escape twice": (ask("GET /api/popTask/a%2525"), 200),
    "not UTF-8": (ask("GET /api/popTask/a%ff"), 400),
    "a dot": (ask("GET /api/popTask/."), 400),
    "two dots": (ask("GET /api/popTask/.."), 400),
    "two escaped dots": (ask("GET /api/popTask/%2E%2E"), 400),
    "a name that is refused": (ask("GET /api/popTask/boom"), 400),
    "a name too long": (ask("GET /api/popTask/" + "x" * 256), 400),
    "no name": (ask("GET /api/popTask/"), None),
    "a tail": (ask("GET /api/popTask/q/"), 404),
    "two slashes": (ask("GET //api/popTask/q"), 404),
    "an empty query": (ask("GET /api/popTask/q?"), 200),
    "two question marks": (ask("GET /api/popTask/q?a?b=/"), 200),
    "a fragment": (ask("GET /api/popTask/q#x"), None),
    "an unknown word": (ask("GET /api/takeTask/q"), 404),
    "another method": (ask("DELETE /api/popTask/q"), 405),
    "a method of another verb": (ask("PUT /api/popTask/q"), 405),
    "HEAD": (ask("HEAD /api/popTask/q", "Connection: close"), None),
    "OPTIONS": (ask("OPTIONS /api/popTask/q"), None),
    "a method in lower case": (ask("get /api/popTask/q"), 501),
    "a path in lower case": (ask("GET /api/poptask/q"), 404),
    "no host": (ask("GET /api/popTask/q", host=""), 400),
    "a foreign host": (ask("GET /api/popTask/q", host="Host: evil.example"), 421),
    "two hosts": (ask("GET /api/popTask/q", "Host: localhost"), 400),
    "a malformed host": (ask("GET /api/popTask/q", host="Host: a..b"), 400),
    "a host with its port": (ask("GET /api/popTask/q", host="hOsT:\tLOCALHOST:3000 "), 200),
    "an origin": (ask("GET /api/popTask/q", "Origin: http://evil.example"), 403),
    "our own origin": (ask("GET /api/popTask/q", "Origin: http://localhost"), 200),
    "a page of another site": (ask("GET /api/popTask/q", "Sec-Fetch-Site: cross-site"), 403),
    "a compressed body": (ask("PUT /api/pushTask/q", "Content-Encoding: gzip", body=b"1"), 415),
    "a body too large": (ask("PUT /api/pushTask/q", body=b"1" * (LIMIT + 1)), 413),
    "a body just right": (ask("PUT /api/pushTask/q", body=b"1" * LIMIT), 200),
    "a length twice": (ask("PUT /api/pushTask/q", "Content-Length: 1", "Content-Length: 1") + b"1", 400),
    "two lengths in one": (ask("PUT /api/pushTask/q", "Content-Length: 1, 1") + b"1", 400),
    "a length with a sign": (ask("PUT /api/pushTask/q", "Content-Length: +1") + b"1", 400),
    "a length with a zero in front": (ask("PUT /api/pushTask/q", "Content-Length: 01") + b"1", 200),
    "a length below zero": (ask("PUT /api/pushTask/q", "Content-Length: -1") + b"1", 400),
    "no length": (ask("PUT /api/pushTask/q"), 200),
    "an empty length": (ask("PUT /api/pushTask/q", "Content-Length:"), 400),
    "a huge length": (ask("PUT /api/pushTask/q", "Content-Length: " + "9" * 5000), 400),
    "both ways of length": (
        ask("PUT /api/pushTask/q", "Content-Length: 1", "Transfer-Encoding: chunked") + b"1",
        400,
    ),
    "chunks": (ask("PUT /api/pushTask/q", "Transfer-Encoding: chunked") + b"1\r\n7\r\n0\r\n\r\n", 200),
    "an unknown coding": (ask("PUT /api/pushTask/q", "Transfer-Encoding: x") + b"1", 400),
    "a folded header": (ask("GET /api/popTask/q", "X: a", " b"), 400),
    "a header without a colon": (ask("GET /api/popTask/q", "nonsense"), 400),
    "a space before the colon": (ask("GET /api/popTask/q", "Content-Length : 1"), 400),
    "a header that is not ASCII": (ask("GET /api/popTask/q", "X-Odd: \xe9"), 200),
    "a header twice": (ask("GET /api/popTask/q", "X-Odd: 1", "X-Odd: 2"), 200),
    "a request id": (ask("GET /api/popTask/q", "X-Request-Id: abc"), 200),
    "a request id that is none": (ask("GET /api/popTask/q", 'X-Request-Id: "><script>'), 200),
    "to be closed": (ask("GET /api/popTask/q", "Connection: Close"), 200),
    "to be kept": (ask("GET /api/popTask/q", "Connection: Keep-Alive", "Keep-Alive: timeout=5"), 200),
    "to be upgraded": (ask("GET /api/popTask/q", "Connection: Upgrade", "Upgrade: h2c"), 200),
    "HTTP/1.0": (POP.replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    "HTTP/2.0": (POP.replace(b"HTTP/1.1", b"HTTP/2.0"), 505),
    "another protocol": (POP.replace(b"HTTP/1.1", b"HTTPS"), 400),
    "an absolute target": (POP.replace(b"GET /", b"GET http://localhost/"), 200),
    "two spaces": (POP.replace(b"GET /", b"GET  /"), 400),
    "lines that end in one character": (POP.replace(b"\r\n", b"\n") + b"\r\n", 400),
    "a bare carriage return": (ask("GET /api/popTask/q", "X-Odd: a\rb"), None),
    "an empty line first": (b"\r\n" + POP, 200),
    "nonsense": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    "a wish to continue": (ask("PUT /api/pushTask/q", "Expect: 100-continue", body=b"1"), 200),
}


@pytest.mark.parametrize("which", TABLE)
def test_both_answer_alike(which: str) -> None:
    request, status = TABLE[which]
    if which == "HEAD":  # its answer has a length and no body
        request = request.replace(b"HEAD", b"GET")
    *found, last = same(request)
    assert [first for first, _, _ in found] == [b"HTTP/1.1 100 Continue"] * ("continue" in which)
    if status is not None:
        assert int(last[0].split()[1]) == status, last


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_bytes_come_in_pieces(size: int) -> None:
    stream = PUSH + POP + ask("GET /api/popTask/q?x=1", "X-Odd: yes") + ask("GET /healthz") + PUSH
    found = same(*(stream[at : at + size] for at in range(0, len(stream), size)))
    assert [first for first, _, _ in found] == [b"HTTP/1.1 200 OK"] * 5


def test_a_request_hidden_in_a_body_is_not_seen() -> None:
    found = same(ask("PUT /api/pushTask/q", body=POP) + POP)
    assert [json.loads(body)[0] for _, _, body in found] == ["push", "pop"]


NAMES = st.sampled_from(
    [
        "q",
        "queue_results:1",
        "a%3Ab",
        "a%2Fb",
        "%C3%A9",
        "%",
        "%4",
        "..",
        ".x",
        "a/b",
        "a;b",
        "~!$&'()*+,=@",
        "\xe9",
        "",
    ]
)
# Most parts of a request are good: one that has a single fault gets furthest.
GOOD_LINES = st.sampled_from(
    [
        f"{line} HTTP/1.1"
        for line in (
            "PUT /api/pushTask/q",
            "POST /api/pushTask/a%3Ab?priority=1",
            "GET /api/popTask/q",
            "POST /api/popTask/q?wait=0",
            "GET /api/popTasks/a,b",
            "POST /api/ackTask/q/l-1",
        )
    ]
)
ODD_LINES = st.builds(
    "{} {}{}{}{}{}".format,
    st.sampled_from(["GET", "GET", "PUT", "POST", "POST", "DELETE", "get", "GET ", ""]),
    st.sampled_from(
        ["/api/popTask/", "/api/pushTask/", "/api/ackTask/", "/api/popTasks/"] * 3
        + ["/api/", "//", "*", "http://localhost/api/popTask/"]
    ),
    NAMES,
    st.sampled_from(["", "", "", "/l-1", "/"]),
    st.sampled_from(["", "", "", "?", "?wait=0", "?wait=%30", "?a=b&&a", "?\xe9", "# "]),
    st.sampled_from([" HTTP/1.1"] * 6 + [" HTTP/1.0", " HTTP/1.2", "", " HTTP/1.1 "]),
)
LINES = st.one_of(GOOD_LINES, GOOD_LINES, ODD_LINES)
FIELDS = st.lists(
    st.sampled_from(
        [
            "Accept: */*", "User-Agent: x/1", "X-Odd: 1", "x-odd:2", "X-Odd:  a b\t", "X-Odd:", "X-Odd: \xff", "X-Odd: a\x00b",
            "Connection: close", "Connection: keep-alive", "Connection: close, x", "Host: localhost", "Host: evil",
            "Content-Length: 0", "Content-Length: 2", "Content-Length: 3", "Content-Length: 02", "Content-Length: 2,2",
            "Content-Length: 201", "content-length: 2 ", "Content_Length: 2", "Transfer-Encoding: chunked",
            "Transfer-Encoding: identity", "Transfer-Encoding : chunked", "Idempotency-Key: \"k\"", "Prefer: wait=1",
            "Content-Encoding: gzip", "Content-Encoding: identity", "Origin: null", "Sec-Fetch-Site: none",
            "Expect: 100-continue", "X-Request-Id: ok", "X-Request-Id: not ok", " folded", "nonsense", ": x", "X\x0b: 1",
        ]
    ),
    max_size=3,
)  # fmt: skip
BODIES = st.sampled_from(
    [b"", b"", b"{}", b"[1]", b"1\r\n7\r\n0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\r\n"]
)
HOSTS = st.sampled_from(
    ["Host: localhost"] * 20 + ["Host: localhost:1", "Host: [::1]", "Host: ", "Host: a b", ""]
)
REQUESTS = st.builds(
    lambda line, host, fields, body: (
        "\r\n".join([line, *([host] if host else []), *fields]).encode("latin-1") + b"\r\n\r\n" + body
    ),
    LINES,
    HOSTS,
    FIELDS,
    BODIES,
)
GOOD = st.sampled_from(
    [
        PUSH,
        POP,
        ask("GET /healthz"),
        ask("POST /api/ackTask/q/l-1", body=b"{}"),
        ask("GET /api/popTask/q?x=1"),
    ]
)


def break_in(stream: bytes, wounds: list[tuple[int, bytes, int]]) -> bytes:
    for at, what, cut in wounds:
        at %= len(stream) + 1
        stream = stream[:at] + what + stream[at + cut :]
    return stream


WOUNDS = st.lists(
    st.tuples(
        st.integers(0, 10_000),
        st.sampled_from(
            [b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\x00", b"\xff", b"%", b"0", b"\r\n\r\n"]
        ),
        st.integers(0, 3),
    ),
    max_size=1,
)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    at = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[a:b] for a, b in pairwise(at)]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.one_of(GOOD, REQUESTS), min_size=1, max_size=3),
    WOUNDS,
    st.lists(st.integers(0, 10_000), max_size=4),
)
def test_both_answer_alike_whatever_comes(
    requests: list[bytes], wounds: list[tuple[int, bytes, int]], places: list[int]
) -> None:
    stream = break_in(b"".join(requests), wounds)
    if b"HEAD " in stream:
        return
    same(*cut(stream, places))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=3))
def test_both_answer_alike_to_noise(noise: bytes, places: list[int]) -> None:
    same(*cut(b"GET /api/popTask/q" + noise, places))


# -- who answers


@pytest.mark.parametrize(
    "request_", [PUSH, POP, ask("POST /api/ackTask/q/a-b", body=b"{}")], ids=["push", "pop", "ack"]
)
def test_the_door_answers_plain_requests_itself(world: World, request_: bytes) -> None:
    transport = world.at_door()
    for _ in range(3):
        transport.protocol.dataReceived(request_)
    assert not world.passed_on(transport) and not world.site.connections
    assert len(answers(bytes(transport.out))) == 3
    transport.hang_up()
    assert not world.door.connections


def test_what_the_door_does_not_know_stays_with_the_site(world: World) -> None:
    transport = world.at_door()
    transport.protocol.dataReceived(PUSH + ask("GET /healthz") + POP)
    assert world.passed_on(transport) and len(world.site.connections) == 1
    assert len(answers(bytes(transport.out))) == 3
    transport.hang_up()
    assert not world.site.connections
    world.clock.advance(100)


def test_heads_are_understood_once_and_forgotten(world: World) -> None:
    block = b"Host: localhost\r\nX-Request-Id: a\r\n"
    first = world.door.head(block)
    assert first is not None and first.request_id == b"a" and first.get(b"host") == b"localhost"
    for i in range(2000):
        world.door.head(b"Host: localhost\r\nX-Number: %d\r\n" % i)
    assert len(world.door._heads) <= 512
    assert read_head(b"Host: evil\r\n", lambda name: name == b"localhost") is None


# -- one after the other


def test_a_request_behind_a_poll_waits_for_its_answer(world: World) -> None:
    world.verbs.later = []
    transport = world.at_door()
    transport.protocol.dataReceived(POP + PUSH)
    assert world.verbs.asked == ["pop"]
    transport.protocol.dataReceived(POP)
    assert world.verbs.asked == ["pop"] and not transport.out
    world.verbs.later[0].callback(Answer(200, b"first"))
    assert world.verbs.asked == ["pop", "push"]
    world.verbs.later[1].callback(Answer(200, b"second"))
    world.verbs.later[2].callback(Answer(202, b"third"))
    assert [body for _, _, body in answers(bytes(transport.out))] == [b"first", b"second", b"third"]


def test_what_waits_behind_a_poll_is_bounded(world: World) -> None:
    world.verbs.later = []
    transport = world.at_door()
    transport.protocol.dataReceived(POP)
    transport.protocol.dataReceived(PUSH * (MAX_BEHIND // len(PUSH) + 1))
    assert not transport.reading
    world.verbs.later[0].callback(Answer(200, b"1"))
    assert transport.reading


def test_answers_of_a_group_leave_together(world: World) -> None:
    world.verbs.later = []
    transports = [world.at_door() for _ in range(3)]
    for transport in transports:
        transport.protocol.dataReceived(POP)
    world.door.gather(True)
    for waiting in world.verbs.later:
        waiting.callback(Answer(200, b"x", (), (object(),)))  # type: ignore[arg-type]
    assert not any(transport.out for transport in transports)
    transports[1].hang_up()
    world.door.gather(False)
    assert [bool(transport.out) for transport in transports] == [True, False, True]
    assert len(world.verbs.delivered_) == 2 and len(world.verbs.lost_) == 1


# -- hanging up, and what has left


def test_a_hang_up_cancels_a_poll_and_no_push(world: World) -> None:
    world.verbs.later = []
    for request in (POP, PUSH):
        transport = world.at_door()
        transport.protocol.dataReceived(request)
        transport.hang_up()
    assert world.verbs.cancelled == 1
    world.verbs.later[1].callback(Answer(200, b"{}"))
    assert not world.door.connections


def test_an_answer_that_comes_after_the_hang_up_is_lost(world: World) -> None:
    world.verbs.later = []
    transport = world.at_door()
    transport.protocol.dataReceived(ask("POST /api/ackTask/q/a-b"))
    transport.hang_up()
    answer = Answer(200, b"1", (), (object(),))  # type: ignore[arg-type]
    world.verbs.later[0].callback(answer)
    assert world.verbs.lost_ == [answer]


def taking(world: World, transport: Transport) -> Answer:
    """A poll is answered while the kernel takes only ten bytes."""
    world.verbs.later = []
    transport.protocol.dataReceived(POP)
    transport.socket.room = 10  # type: ignore[attr-defined]
    answer = Answer(200, b"x" * 100, (), (object(),))  # type: ignore[arg-type]
    world.verbs.later[0].callback(answer)
    return answer


def test_an_answer_is_delivered_when_the_kernel_has_all_of_it(world: World) -> None:
    transport = world.at_door()
    answer = taking(world, transport)
    transport.protocol.dataReceived(PUSH)
    assert not world.verbs.delivered_ and len(transport.out) == 10 and world.verbs.asked == ["pop"]
    transport.flush()
    assert world.verbs.delivered_ == [answer] and world.verbs.asked == ["pop", "push"]
    assert answers(bytes(transport.out))[0][2] == b"x" * 100
    assert transport.producer is None


def test_an_answer_is_lost_when_the_connection_is(world: World) -> None:
    transport = world.at_door()
    answer = taking(world, transport)
    transport.hang_up()
    assert world.verbs.lost_ == [answer] and not world.verbs.delivered_


def test_a_client_that_takes_nothing_is_cut_off(world: World) -> None:
    transport = world.at_door()
    answer = taking(world, transport)
    world.pass_time(20)
    assert not transport.ended
    world.pass_time(2)
    assert transport.ended == "aborted"
    transport.hang_up()
    assert world.verbs.lost_ == [answer]


# -- deadlines


def test_an_idle_connection_ends(world: World) -> None:
    transport = world.at_door()
    world.pass_time(60)
    transport.protocol.dataReceived(PUSH)
    world.pass_time(75)
    assert not transport.ended
    world.pass_time(2)
    assert transport.ended == "closed"
    world.pass_time(20)
    assert transport.ended == "aborted"


@pytest.mark.parametrize(
    ("part", "seconds"), [(POP[:20], 10), (POP[:-2], 10), (PUSH[:-1], 30)], ids=["line", "head", "body"]
)
def test_a_request_that_does_not_come_to_its_end(world: World, part: bytes, seconds: int) -> None:
    transport = world.at_door()
    half = len(part) // 2
    transport.protocol.dataReceived(part[:half])
    for at in range(half, len(part)):  # every byte comes, but late
        world.clock.advance(0.001)
        transport.protocol.dataReceived(part[at : at + 1])
    world.pass_time(seconds - 1)
    assert not transport.out
    world.pass_time(3)
    assert transport.out.startswith(b"HTTP/1.1 408 ")
    transport.hang_up()


def test_a_parked_poll_has_no_deadline_of_the_door(world: World) -> None:
    world.verbs.later = []
    transport = world.at_door()
    transport.protocol.dataReceived(POP)
    world.pass_time(200)
    assert not transport.ended
    world.verbs.later[0].callback(Answer(202, b"{}"))
    assert answers(bytes(transport.out))[0][0] == b"HTTP/1.1 202 Accepted"


def test_nothing_ticks_when_nobody_is_there(world: World) -> None:
    transport = world.at_door()
    transport.hang_up()
    assert not world.clock.getDelayedCalls()


# -- the end


def test_draining_ends_what_is_idle_and_lets_the_rest_finish(world: World) -> None:
    world.verbs.later = []
    idle, parked = world.at_door(), world.at_door()
    parked.protocol.dataReceived(POP)
    world.door.drain()
    assert idle.ended == "closed" and not parked.ended
    world.verbs.later[0].callback(Answer(202, b"{}"))
    assert answers(bytes(parked.out))[0][1][b"connection"] == b"close"
    assert parked.ended == "closed"


def test_what_fails_is_told(world: World) -> None:
    world.verbs.later = []
    transport = world.at_door()
    transport.protocol.dataReceived(PUSH)
    world.verbs.later[0].errback(ShuttingDown("The registry is stopping."))
    [(first, headers, body)] = answers(bytes(transport.out))
    assert first == b"HTTP/1.1 503 Service Unavailable" and headers[b"retry-after"].isdigit()
    assert json.loads(body)["code"] == "shutting_down"


# -- the log


def test_an_access_line_is_the_same_from_both(world: World) -> None:
    long = "x" * 250
    for request in (PUSH, ask(f"GET /api/popTask/q?a={long}", 'User-Agent: a"b', "Referer: r")):
        for transport in (world.at_door(), world.at_site()):
            transport.protocol.dataReceived(request)
            transport.hang_up()
    world.clock.advance(1)
    lines = [re.sub(r"\[.*?\]|[\d.]+ms", "", line) for line in world.lines]
    assert len(lines) == 4
    assert lines[0] == lines[1] and lines[2] == lines[3]
    assert lines[0].startswith('192.0.2.1 - -  "PUT /api/pushTask/q HTTP/1.1" 200 ')
    assert 'a\\"b' in lines[2] and long not in lines[2]


def test_lines_wait_for_others_but_not_for_long(world: World) -> None:
    transport = world.at_door()
    transport.protocol.dataReceived(PUSH + PUSH)
    assert not world.lines
    world.clock.advance(0.1)
    assert len(world.lines) == 2
    transport.protocol.dataReceived(PUSH)
    world.access.flush()
    assert len(world.lines) == 3


def test_a_poll_that_was_cancelled_says_nothing(world: World) -> None:
    world.verbs.later = []
    transport = world.at_door()
    transport.protocol.dataReceived(POP)
    transport.hang_up()
    assert world.verbs.later[0].called
    world.verbs.later[0].addErrback(lambda f: f.trap(CancelledError))
    assert not transport.out and not world.lines

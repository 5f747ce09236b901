"""Sends the same bytes to our connection and to a stock twisted.web server in front of the same endpoints."""

# mypy: allow-untyped-calls, disable-error-code="comparison-overlap,unreachable"

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from registry.errors import BadName
from registry.http.codec import Answer, name_from
from registry.http.parser import Heads
from registry.http.request import Request
from registry.http.routes import ROUTES, Api
from registry.http.server import Server
from registry.queue.names import check_name
from tests.one_connection import LIMIT, TOLD_HEADERS, Transport, answers, without_numbers

# The codes of what a connection refuses before an endpoint is asked; a stock server lets some of that through.
REFUSALS = {
    "foreign_host", "bad_host", "foreign_origin", "unsupported_encoding", "body_too_large", "headers_too_large", "target_too_long",
    "bad_option", "bad_name", "bad_request", "not_implemented", "method_not_allowed", "http_version",
}  # fmt: skip


class Tasks:
    """Answers each verb with what it was asked; ``later`` lets it wait, as a poll does."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.delivered_: list[Answer] = []
        self.lost_: list[Answer] = []

    def __getattr__(self, verb: str) -> Callable[..., Deferred[Answer]]:
        if verb not in {route.verb for route in ROUTES}:
            raise AttributeError(verb)

        def call(request: Request) -> Deferred[Answer]:
            name = check_name(name_from(request.segments[0]))
            if name == b"boom":
                raise BadName("That name is refused here.")
            told = {
                n.decode(): v.decode("latin-1") for n in TOLD_HEADERS if (v := request.header(n)) is not None
            }
            parts = [
                verb,
                repr(name),
                *map(repr, request.segments[1:]),
                repr(request.query),
                repr(request.body),
            ]
            self.asked.append(verb)
            answer = Answer(200, json.dumps([*parts, told]).encode(), ((b"Task-Id", b"x"),))
            return succeed(answer)

        return call

    def delivered(self, answer: Answer) -> None:
        self.delivered_.append(answer)

    def lost(self, answer: Answer) -> None:
        self.lost_.append(answer)


class Leaf(Resource):
    """Every path leads to the endpoints."""

    isLeaf = True

    def __init__(self, api: Api) -> None:
        super().__init__()
        self._api = api

    def render(self, request: Any) -> Any:
        def written(body: Any) -> None:
            if isinstance(body, bytes):
                request.write(body)
                request.finish()

        maybeDeferred(self._api.serve, request).addCallback(written)
        return NOT_DONE_YET


class Pair:
    """Two servers with the same endpoints, on a clock that stands still."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.verbs: Any = Tasks()
        stopped: Callable[[], bool] = lambda: False  # noqa: E731
        api = Api(self.verbs, None, lambda: succeed(""), stopped, list)  # type: ignore[arg-type]
        heads = Heads(api.find, lambda name: name == b"localhost", lambda body: LIMIT)
        self.ours = Server(heads, delivered=self.verbs.delivered, lost=self.verbs.lost, reactor=self.clock)
        self.stock = Site(Leaf(api), parsePOSTFormSubmission=False, reactor=self.clock)  # type: ignore[arg-type]

    def answers(self, server: Any, pieces: tuple[bytes, ...]) -> tuple[bytes, str]:
        """What this one answers, and how it leaves the connection."""
        transport = Transport(server.buildProtocol(IPv4Address("TCP", "192.0.2.1", 7)))
        for piece in pieces:
            if transport.ended in ("closed", "aborted"):
                break
            try:
                transport.protocol.dataReceived(piece)
            except (AttributeError, ValueError):
                # Some malformed lines are more than the stock server is ready for.
                assert server is self.stock
                break
            self.clock.advance(0)
        out = bytes(transport.out)
        transport.hang_up()
        for call in self.clock.getDelayedCalls():
            call.cancel()
        return out, transport.ended


def compare(*pieces: bytes) -> list[tuple[bytes, dict[bytes, bytes], bytes]]:
    """What ours answers. What it lets through, the stock server answers alike; it may refuse more, and ends there."""
    pair = Pair()
    out, _ = pair.answers(pair.ours, pieces)
    ours = [one for one in answers(out) if one[0] != b"HTTP/1.1 100 Continue"]
    stock_out, _ = pair.answers(pair.stock, pieces)
    stock = stock_answers(stock_out)
    # A target that is not ASCII is escaped here, and not there.
    ascii_ = b"".join(pieces).isascii()
    for at, (first, headers, body) in enumerate(ours):
        status = int(first.split()[1])
        theirs = stock[at] if at < len(stock) else None
        code = json.loads(body).get("code") if status >= 400 and body else ""
        if headers.get(b"connection") == b"close" and code in REFUSALS and theirs != (status, body):
            assert at == len(ours) - 1
            break
        if not ascii_ and theirs == (400, b""):
            break
        assert theirs is not None and theirs[0] == status, (ours, stock)
        assert theirs[1] == body or not ascii_, (ours, stock)
    return ours


def stock_answers(out: bytes) -> list[tuple[int, bytes]]:
    """Status and body of each answer of a stock server; its own refusals have neither header nor body."""
    found = []
    while out:
        head, _, rest = out.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(lines.get(b"content-length", b"0"))
        if status != 100:
            found.append((status, without_numbers(rest[:length])))
        out = rest[length:]
    return found

"""A connection answers as a stock server of twisted.web does, whatever bytes come and however they are cut.

Whether these are the same for all requests a client may think of is for hypothesis to find out.
"""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.one_connection import LIMIT, POP, PUSH, answers, ask
from tests.oracle import Pair, compare

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
    "two question marks": (ask("GET /api/popTask/q?wait?=1"), 400),
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
    "a browser that does not say whose page": (ask("GET /api/popTask/q", "User-Agent: Mozilla/5.0"), 403),
    "a browser's look for many": (ask("GET /api/popTasks/q,r", "User-Agent: Opera/9.80"), 403),
    "a player's own name": (ask("GET /api/popTask/q", "User-Agent: AppleCoreMedia/1.0.0.19E241"), 403),
    "a name in small letters": (ask("GET /api/popTask/q", "User-Agent: App/1 mozilla/5.0"), 403),
    "the browser's name beside another": (
        ask("GET /api/popTask/q", "User-Agent: curl/8", "User-Agent: Mozilla/5.0"),
        403,
    ),
    "PowerShell, that says so": (
        ask(
            "GET /api/popTask/q",
            "User-Agent: Mozilla/5.0 (Windows NT) WindowsPowerShell/5.1",
            "Sec-Fetch-Site: none",
        ),
        200,
    ),
    "PowerShell, posting": (ask("POST /api/popTask/q", "User-Agent: Mozilla/5.0"), 200),
    "PowerShell, pushing": (ask("PUT /api/pushTask/q", "User-Agent: Mozilla/5.0", body=b"1"), 200),
    "a browser on our own page": (
        ask("GET /api/popTask/q", "User-Agent: Mozilla/5.0", "Origin: http://localhost"),
        200,
    ),
    "a program": (ask("GET /api/popTask/q", "User-Agent: curl/8.5.0"), 200),
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
    "a key twice": (ask("PUT /api/pushTask/q", "Idempotency-Key: a", "Idempotency-Key: b", body=b"1"), 400),
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
    *found, last = compare(request)
    assert not found
    if status is not None:
        assert int(last[0].split()[1]) == status, last


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_bytes_come_in_pieces(size: int) -> None:
    stream = PUSH + POP + ask("GET /api/popTask/q?wait=1", "X-Odd: yes") + ask("GET /healthz") + PUSH
    found = compare(*(stream[at : at + size] for at in range(0, len(stream), size)))
    assert [first for first, _, _ in found] == [b"HTTP/1.1 200 OK"] * 5


def test_a_request_hidden_in_a_body_is_not_seen() -> None:
    found = compare(ask("PUT /api/pushTask/q", body=POP) + POP)
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
            "User-Agent: Mozilla/5.0",
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
        ask("GET /api/popTask/q?wait=1"),
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


@settings(max_examples=100, deadline=None)
@given(st.lists(GOOD, min_size=1, max_size=4), st.lists(st.integers(0, 10_000), max_size=6))
def test_what_is_good_is_never_refused(requests: list[bytes], places: list[int]) -> None:
    found = compare(*cut(b"".join(requests), places))
    assert [first for first, _, _ in found] == [b"HTTP/1.1 200 OK"] * len(requests)


@settings(max_examples=600, deadline=None)
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
    compare(*cut(stream, places))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=3))
def test_both_answer_alike_to_noise(noise: bytes, places: list[int]) -> None:
    compare(*cut(b"GET /api/popTask/q" + noise, places))


def test_a_path_that_ends_like_a_known_one_is_found_by_itself() -> None:
    """Of a path that ends in a lease or an id, all but its end is remembered."""
    pair = Pair()
    known = [ask("POST /api/ackTask/q/a-b"), ask("POST /api/failTask/q/a-b"), ask("POST /api/ackTask/q/c-d")]
    out, _ = pair.answers(pair.ours, (b"".join(known),))
    assert [json.loads(body)[:3:2] for _, _, body in answers(out)] == [
        ["ack", "b'a-b'"],
        ["fail", "b'a-b'"],
        ["ack", "b'c-d'"],
    ]
    others = {
        "GET /api/ackTask/q/a-b": 405,
        "POST /api/ackTask/q/a-b/c": 404,
        "POST /api/ackTask/q": 404,
        "POST /api/ackTask/q/a-b?x=1": 400,
        "POST /api/ackTask/r%2Fs/a-b": 400,
    }
    for line, status in others.items():
        out, _ = pair.answers(pair.ours, (ask(line),))
        assert int(out.split()[1]) == status, line

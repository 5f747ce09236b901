"""Heads with tokens: those of many workers differ in nothing else, and are read once apart from that."""

from __future__ import annotations

from typing import Any

import pytest

from registry.http.auth import MAX_VERDICTS, Access, Gate
from registry.http.fields import Fields
from registry.http.parser import BlockReader, Found, Head, Heads
from registry.http.validation import Refusal
from registry.model.tokens import Token, hash_of, new_secret

SECRETS = [new_secret() for _ in range(3)]
RIGHTS = ("push a*", "pop b*", "pop [cd]?")


def find(head: Head) -> Found:
    head.name = head.path.rpartition(b"/")[2]
    right = "open" if head.path == b"/open" else "push"
    return Found(print, remembers=head.path.endswith(b"/a"), right=right)


def heads(closed: bool = True) -> Heads:
    gate = Gate()
    if closed:
        gate.replace([Token(f"t{n}", hash_of(one.encode()), RIGHTS) for n, one in enumerate(SECRETS)])
    return Heads(find, lambda host: host == b"localhost", lambda body: 1000, gate)


def head(*lines: str, path: str = "/push/a") -> bytes:
    return "\r\n".join([f"PUT {path} HTTP/1.1", *lines, "", ""]).encode()


def verdict(parser: Heads, data: bytes) -> Any:
    """The fields that this head has, or the status of the refusal."""
    try:
        parsed = parser.parse(data)
    except Refusal as refusal:
        return refusal.status
    names = [
        name
        for name in Fields.__slots__
        if name not in ("access", "accepted", "accepted_with_token", "get", "others")
    ]
    fields = parsed.fields
    return (
        {"who": parsed.access.name}
        | {name: getattr(fields, name) for name in names}
        | {"agent": fields.get(b"user-agent")}
    )


TOKEN = f"Authorization: Bearer {SECRETS[0]}"
OTHER = f"Authorization: Bearer {SECRETS[1]}"
WRONG = f"Authorization: Bearer {new_secret()}"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Host: localhost", TOKEN], 0),
        ([TOKEN, "Host: localhost"], 0),
        (["Host: localhost", TOKEN.replace("Auth", "auth").replace("Bear", "bear"), "User-Agent: x"], 0),
        (["Host: localhost", TOKEN.replace(": ", ":   ")], 0),
        (["Host: elsewhere", TOKEN, "Content-Length: 5", "Connection: close"], 0),
        (["Host: localhost", "Transfer-Encoding: chunked", TOKEN, "Expect: 100-continue"], 0),
        (["Host: localhost", WRONG], 401),
        (["Host: localhost", TOKEN + " x"], 401),
        (["Host: localhost", TOKEN, TOKEN], 401),
        (["Host: localhost", TOKEN, OTHER], 401),
        (["Host: localhost", TOKEN, "AUTHORIZATION: Basic eDp5"], 401),
        (["Host: localhost", f"X-{TOKEN}"], 401),
        (["Host: localhost", f"X: {TOKEN}"], 401),
        # A line that goes on, and one that continues another.
        (["Host: localhost", TOKEN, " x"], 400),
        (["Host: localhost", TOKEN, "\tx"], 400),
        (["Host: localhost", "X: y", f" {TOKEN}"], 400),
        ([TOKEN], 400),
        (["Host: localhost", TOKEN, "Content-Length: 2000"], 413),
        (["Host: localhost", TOKEN, "Content-Length: 5", "Content-Length: 6"], 400),
        (["Host: localhost", TOKEN, "Content-Encoding: gzip"], 415),
        (["Host: localhost", TOKEN, "Origin: https://evil.example"], 403),
    ],
)
def test_a_head_is_read_the_same_with_its_token_apart(
    lines: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, used = heads(), heads()
    data = head(*lines)
    # The others were there before, so that nothing but the token is new.
    for line in (OTHER, WRONG, TOKEN):
        verdict(used, data.replace(TOKEN.encode(), line.encode()))
        verdict(used, data.replace(b"/push/a", b"/push/b"))
    plain = heads()
    monkeypatch.setattr(plain, "_block", plain._read_block)
    found = verdict(plain, data)
    assert verdict(fresh, data) == verdict(used, data) == verdict(used, data) == found
    assert found == status or (status == 0 and isinstance(found, dict))


def test_headers_are_read_once_for_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    feed = BlockReader.feed

    def counted(self: BlockReader, data: bytes) -> None:
        read.append(data)
        feed(self, data)

    monkeypatch.setattr(BlockReader, "feed", counted)
    parser = heads()
    for secret in SECRETS:
        for path in ("/push/a", "/push/a1"):
            one = parser.parse(head("Host: elsewhere", f"Authorization: Bearer {secret}", path=path))
            assert one.access.name == f"t{SECRETS.index(secret)}"
    assert len(read) == 1 and b"rgy_" not in read[0]
    # The same headers with a wrong token are not accepted for it, nor with none.
    for lines in (["Host: elsewhere", WRONG], ["Host: elsewhere"]):
        assert verdict(parser, head(*lines)) in (401, 421)
        assert verdict(parser, head(*lines, path="/open")) == 421


def test_a_remembered_head_is_forgotten_with_its_verdict() -> None:
    parser = heads()
    data = head("Host: localhost", TOKEN)
    assert parser.parse(data) is parser.remembered[data]
    parser._gate.replace([])
    parser.forget()
    assert not parser.remembered and verdict(parser, data) == 401


def test_without_tokens_the_header_means_nothing() -> None:
    parser = heads(closed=False)
    for line in (TOKEN, WRONG, "Authorization: Basic eDp5"):
        assert isinstance(verdict(parser, head("Host: localhost", line)), dict)
        assert verdict(parser, head("Host: elsewhere", line)) == 421


def test_the_verdicts_that_a_token_remembers_are_bounded() -> None:
    access = Access("t", RIGHTS)
    for number in range(3 * MAX_VERDICTS):
        assert access.may("pop", b"c%d" % number) is (number < 10)
        assert access.may("push", b"a%d" % number)
    assert len(access._globs["pop"]._known) <= MAX_VERDICTS
    assert not access._globs["push"]._known
    assert not access.may("push", b"c1") and not access.may("view") and access.may("any")


def test_globs_that_could_take_long_do_not() -> None:
    access = Access("t", ["pop " + "*a" * 100 + "b"])
    assert not access.may("pop", b"a" * 255)

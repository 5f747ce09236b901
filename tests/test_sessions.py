"""The dashboard's session: a cookie in place of a token, and what it may not do."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from registry.http.auth import Gate, describe, time_text
from registry.http.fields import COOKIE, Fields
from registry.http.sessions import SECONDS, Session, Sessions
from registry.model.tokens import Token, hash_of
from tests.callers import Callers, guarded
from tests.live import RedisServer, short_folder, wait_until
from tests.talk import Answer

OWN = {"Sec_Fetch_Site": "same-origin"}
BASE = "/registry"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def made(*rights: str) -> tuple[Gate, Sessions, Clock]:
    clock = Clock()
    gate = Gate(now=clock)
    gate.replace(
        [Token("me.and-you@x", hash_of(b"rgy_1"), rights), Token("other", hash_of(b"rgy_2"), rights)]
    )
    sessions = Sessions(gate, now=clock)
    sessions.secret = b"s" * 64
    return gate, sessions, clock


def value_of(sessions: Sessions, gate: Gate, secret: bytes = b"rgy_1") -> bytes:
    access = gate.identify([b"Bearer " + secret])
    assert access is not None
    request: Any = type(
        "Request", (), {"access": access, "header": lambda name: None, "body": b"", "address": "-"}
    )
    (header,) = sessions.sign_in(request, False).headers
    return header[1].partition(b";")[0]


def test_a_cookie_is_valid_for_twelve_hours_and_as_long_as_its_token() -> None:
    gate, sessions, clock = made("admin")
    cookie = value_of(sessions, gate)
    access = sessions.find([cookie])
    assert access is not None and access.name == "me.and-you@x"
    assert sessions.find([b"a=b; " + cookie + b"; c=d"]) and sessions.find([b"a=b", cookie])
    # Of several registries of one host; one of them is ours.
    assert sessions.find([COOKIE + b"=x.1.y; " + cookie])
    clock.now += SECONDS - 1
    assert sessions.find([cookie])
    clock.now += 2
    assert sessions.find([cookie]) is None
    cookie = value_of(sessions, gate)
    # Another token of the same name is not the one that signed in.
    gate.replace(
        [Token("me.and-you@x", hash_of(b"rgy_3"), ("admin",)), Token("other", hash_of(b"rgy_2"), ("admin",))]
    )
    assert sessions.find([cookie]) is None
    cookie = value_of(sessions, gate, b"rgy_2")
    sessions.secret = b"t" * 64
    assert sessions.find([cookie]) is None
    sessions.secret = b""
    assert sessions.find([cookie]) is None


def test_a_session_says_when_its_token_expires() -> None:
    gate, sessions, clock = made("admin")
    expires = datetime.fromtimestamp(clock.now + 60, UTC)
    gate.replace([Token("me", hash_of(b"rgy_1"), ("admin",), expires=expires)])
    access = sessions.find([value_of(sessions, gate)])
    assert access is not None and describe(access)["expires"] == time_text(clock.now + 60)


def test_no_byte_of_a_cookie_can_be_changed() -> None:
    gate, sessions, _ = made("admin")
    cookie = value_of(sessions, gate)
    start = len(COOKIE) + 1
    for at in range(start, len(cookie)):
        for new in (b"0", b"1", b".", b""):
            changed = cookie[:at] + new + cookie[at + 1 :]
            assert changed == cookie or sessions.find([changed]) is None, changed
    for value in (
        b"",
        b".",
        b"..",
        b"other.9999999999.",
        b"x" * 5000,
        b"other.\xff.\xff",
        cookie[start:].replace(b"me", b"you"),
    ):
        assert sessions.find([COOKIE + b"=" + value]) is None


def test_the_cookies_of_others_change_nothing() -> None:
    # A load balancer may give one to every worker, whose heads are remembered all the same.
    assert Fields([(b"Cookie", b"SERVERID=one; session=x")]).cookies == []
    assert len(Fields([(b"cookie", b"a=b; registry_session=x"), (b"Cookie", b"c=d")]).cookies) == 1


def test_a_session_keeps_to_the_globs_of_its_token() -> None:
    session = Session("a", ["push a*", "pop b*", "operate"])
    assert session.may("operate") and session.may("view") and session.may("any")
    assert not session.may("push", b"a1") and not session.may("pop", b"b1") and not session.may("admin")
    # Its schedules and moves bring tasks into the same queues as those of the token.
    assert session.may_fill(b"a1") and not session.may_fill(b"b1")
    assert Session("a", ["operate"]).may_fill(b"b1") and Session("a", ["admin"]).may_fill(b"b1")
    assert not Session("a", ["admin"]).may("push", b"q")
    assert not Session("a", ["view --no-payloads", "push a*"]).reads(b"a1")


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    one = Callers(short_folder() / "tokens.json")
    for name, *rights in (("admin", "admin"), ("me", "operate", "push a*", "pop a*"), ("pusher", "push a*")):
        one.add(name, *rights)
    settings = {
        "BASE_PATH": BASE,
        "PROCESSES": "2",
        "TRUSTED_PROXIES": "127.1.0.0/16",
        "ALLOWED_HOSTS": "registry.example",
    }
    with guarded(module_redis_process, one, **settings):
        yield one


def signed_in(callers: Callers, who: str, **headers: str) -> tuple[Answer, str]:
    """Sign in; the answer and the cookie."""
    answer = callers.ask(who, "POST", f"{BASE}/api/session", **headers)
    answer.ok()
    return answer, answer.headers["set-cookie"].partition(";")[0]


def test_the_cookie_is_for_this_daemon_and_no_script(callers: Callers) -> None:
    answer, _ = signed_in(callers, "me")
    assert answer.json == {"name": "me", "rights": ["operate", "push a*", "pop a*"], "expires": None}
    value, *attributes = answer.headers["set-cookie"].split("; ")
    assert attributes == [f"Path={BASE}", f"Max-Age={SECONDS}", "HttpOnly", "SameSite=Strict"]
    assert callers.secrets["me"][4:] not in value
    for proto, secure in (("https", True), ("http", False), ("HTTPS", True), ("https, http", False)):
        cookie = signed_in(callers, "me", X_Forwarded_Proto=proto)[0].headers["set-cookie"]
        assert cookie.endswith("; Secure") is secure, proto
    gone = callers.ask("", "DELETE", f"{BASE}/api/session")
    assert gone.ok() == {"success": True}
    assert (
        gone.headers["set-cookie"] == f"registry_session=; Path={BASE}; Max-Age=0; HttpOnly; SameSite=Strict"
    )


def test_a_page_signs_in_with_the_token_in_the_body(callers: Callers) -> None:
    body = {"token": callers.secrets["me"]}
    path = f"{BASE}/api/session"
    assert "registry_session=me." in callers.ask("", "POST", path, body, **OWN).headers["set-cookie"]
    for foreign in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "https://evil.example"}):
        callers.ask("", "POST", path, body, **foreign).refused(403, "foreign_origin")
    for wrong in ({"token": "rgy_no"}, {"token": ""}, b""):
        answer = callers.ask("", "POST", path, wrong)
        answer.refused(401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer" and "set-cookie" not in answer.headers
    malformed: Any
    for malformed in ([], {}, {"token": 1}, {"token": "ä"}, b"rgy_no", b"{"):
        callers.ask("", "POST", path, malformed).refused(400, "bad_json")
    callers.ask("", "POST", path, b"[" * 600).refused(400, "too_deep")
    callers.ask("", "POST", path, b"[" * 100_000).refused(400, "bad_json")
    callers.ask("", "POST", path, {**body, "user": "me"}).refused(400, "bad_option", "'user'")
    callers.ask("", "POST", path, body, Host="evil.example").refused(421, "foreign_host")


def test_wrong_tokens_in_bodies_are_limited_too(callers: Callers) -> None:
    def wrong(client: str) -> int:
        headers = {"X_Forwarded_For": client}
        return callers.ask("", "POST", f"{BASE}/api/session", {"token": "rgy_no"}, **headers).status

    said = [wrong("198.51.100.1") for _ in range(24)]
    # Each process counts for itself.
    assert said[0] == 401 and 429 in said
    assert wrong("198.51.100.2") == 401


def test_a_session_does_all_but_push_and_pop(callers: Callers) -> None:
    callers.ask("me", "PUT", f"{BASE}/api/pushTask/a1", 1).ok()
    _, cookie = signed_in(callers, "me")
    lease = f"{'0' * 24}-{'0' * 32}"
    # Both processes know it.
    for _ in range(6):
        assert callers.ask("", "GET", f"{BASE}/api/session", Cookie=cookie).ok()["name"] == "me"
    assert callers.ask("", "GET", f"{BASE}/api/queues", Cookie=cookie).ok()["queues"]
    assert (
        callers.ask("", "POST", f"{BASE}/api/queues/a1/pause?seconds=0", Cookie=cookie, **OWN).status == 200
    )
    for method, path in (
        ("PUT", "pushTask/a1"),
        ("POST", "pushTasks/a1"),
        ("GET", "popTask/a1?wait=0"),
        ("POST", "popTasks/a1?wait=0"),
        ("POST", "ackTasks/a1"),
        *(("POST", f"{verb}Task/a1/{lease}") for verb in ("ack", "fail", "release", "extend")),
    ):
        answer = callers.ask("", method, f"{BASE}/api/{path}", [1], Cookie=cookie, **OWN)
        right = "push" if "push" in path else "pop"
        answer.refused(403, "forbidden", f"'{right}'")
    # Of a token that may only push, not even that is left.
    _, poor = signed_in(callers, "pusher")
    callers.ask("", "GET", f"{BASE}/api/queues", Cookie=poor).refused(403, "forbidden")
    callers.ask("", "PUT", f"{BASE}/api/pushTask/a1", 1, Cookie=poor, **OWN).refused(403, "forbidden")
    # A header counts more than a cookie.
    callers.ask("pusher", "GET", f"{BASE}/api/queues", Cookie=cookie).refused(403, "forbidden")


@pytest.mark.parametrize(
    ("method", "headers", "allowed"),
    [
        ("GET", {}, True),
        ("GET", {"Sec_Fetch_Site": "same-origin"}, True),
        ("GET", {"Sec_Fetch_Site": "none"}, True),
        ("GET", {"Sec_Fetch_Site": "same-site"}, False),
        ("GET", {"Sec_Fetch_Site": "cross-site"}, False),
        ("GET", {"Origin": "https://evil.example"}, False),
        ("POST", {}, False),
        ("POST", {"Sec_Fetch_Site": "same-origin"}, True),
        ("POST", {"Sec_Fetch_Site": "none"}, False),
        ("POST", {"Sec_Fetch_Site": "same-site"}, False),
        ("POST", {"Origin": "http://registry.example", "Host": "registry.example"}, True),
        ("POST", {"Origin": "http://evil.example", "Host": "registry.example"}, False),
        ("POST", {"Origin": "null"}, False),
        ("POST", {"User_Agent": "curl/8"}, False),
    ],
)
def test_only_pages_of_the_registry_use_the_session(
    callers: Callers, method: str, headers: dict[str, str], allowed: bool
) -> None:
    _, cookie = signed_in(callers, "admin")
    path = f"{BASE}/api/queues" if method == "GET" else f"{BASE}/api/queues/a1/pause?seconds=0"
    # Twice: what was found out about a header block is remembered.
    for _ in range(2):
        answer = callers.ask("", method, path, Cookie=cookie, **headers)
        if allowed:
            assert answer.status == 200, answer
        else:
            answer.refused(403, "foreign_origin")


def test_a_session_ends_with_its_token_and_survives_the_daemon(callers: Callers) -> None:
    callers.add("guest", "view")
    callers.write()
    path = f"{BASE}/api/queues"
    wait_until(lambda: all(callers.ask("guest", "GET", path).status == 200 for _ in range(6)))
    _, cookie = signed_in(callers, "guest")
    callers.daemon.terminate()
    callers.daemon.start().redis_ready()
    wait_until(lambda: callers.ask("", "GET", path, Cookie=cookie).status == 200)
    # On a connection that is kept, too.
    kept = http.client.HTTPConnection("localhost", callers.daemon.port, timeout=20)
    try:
        kept.request("GET", path, headers={"Cookie": cookie})
        assert Answer(kept.getresponse()).status == 200
        del callers.entries["guest"]
        callers.write()
        wait_until(lambda: all(callers.ask("", "GET", path, Cookie=cookie).status == 401 for _ in range(6)))
        kept.request("GET", path, headers={"Cookie": cookie})
        assert Answer(kept.getresponse()).status == 401
    finally:
        kept.close()


def test_without_tokens_nobody_needs_a_session(module_redis_process: RedisServer) -> None:
    one = Callers(short_folder() / "tokens.json")
    with guarded(module_redis_process, one):
        for method in ("GET", "POST"):
            answer = one.ask("", method, "/api/session")
            assert answer.ok()["rights"] == ["admin"] and "set-cookie" not in answer.headers

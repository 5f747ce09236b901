"""Who may do what: every endpoint, asked by every kind of caller."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from registry.http.auth import RIGHTS
from registry.http.request import Route
from registry.http.routes import ROUTES
from tests.callers import FUTURE, PAST, Callers, guarded
from tests.live import RedisServer, short_folder, wait_until
from tests.talk import Asked

# Nobody of these has a valid token.
STRANGERS = ("", "unknown", "expired", "revoked", "basic", "cookie", "query", "two")
# The holders of a token, by their rights. The requests below are about the queue a1.
HOLDERS = {
    "push": ["push a*"],
    "pop": ["pop a*"],
    "push-other": ["push b*"],
    "pop-other": ["pop b*"],
    "view": ["view"],
    "states": ["view --no-payloads"],
    "operate": ["operate"],
    "admin": ["admin"],
}
# Whoever has the cookie of a session that began with the token "admin".
SESSION = "session"
EVERYBODY = {*STRANGERS, *HOLDERS, SESSION}
PUSH, POP = {"push", "admin"}, {"pop", "admin"}
VIEW, OPERATE, ADMIN = {"view", "states", "operate", "admin"}, {"operate", "admin"}, {"admin"}
READ_TASK = VIEW | {"push"}
ID, LEASE = "0" * 24, f"{'0' * 24}-{'0' * 32}"
SCHEDULE = {"cron": "0 0 1 1 *", "queue": "a1", "task": 1}

# By the endpoint's name: who is let in, and the requests.
TABLE: dict[str, tuple[set[str], list[tuple[str, str, Any]]]] = {
    "push": (PUSH, [("PUT", "/api/pushTask/a1", 1), ("POST", "/api/pushTask/a1?key=k", 1)]),
    "push_many": (PUSH, [("PUT", "/api/pushTasks/a1", [1]), ("POST", "/api/pushTasks/a1", [1])]),
    "pop": (POP, [("GET", "/api/popTask/a1?wait=0&lease=1", b""), ("POST", "/api/popTask/%611?wait=0", b"")]),
    "pop_many": (POP, [("GET", "/api/popTasks/a1,a2?wait=0", b""), ("POST", "/api/popTasks/a1?wait=0", b"")]),
    "ack": (POP, [("POST", f"/api/ackTask/a1/{LEASE}", b"")]),
    "fail": (POP, [("POST", f"/api/failTask/a1/{LEASE}", b"")]),
    "release": (POP, [("POST", f"/api/releaseTask/a1/{LEASE}", b"")]),
    "extend": (POP, [("POST", f"/api/extendTask/a1/{LEASE}", b"")]),
    "settle": (POP, [("POST", "/api/ackTasks/a1", {"acks": [LEASE]})]),
    "queues": (VIEW, [("GET", "/api/queues", b""), ("HEAD", "/api/queues?search=a", b"")]),
    "queue": (VIEW, [("GET", "/api/queues/a1", b"")]),
    "patch": (OPERATE, [("PATCH", "/api/queues/a1", {"attempts": 3})]),
    "purge": (OPERATE, [("DELETE", "/api/queues/a1", b"")]),
    "pause": (OPERATE, [("POST", "/api/queues/a1/pause?seconds=0", b"")]),
    "retry": (OPERATE, [("POST", "/api/queues/a1/retry?dry_run=1", b"")]),
    "move": (OPERATE, [("POST", "/api/queues/a1/move?to=a2", b"")]),
    "export": (OPERATE, [("GET", "/api/queues/a1/export", b"")]),
    "restore": (ADMIN, [("POST", "/api/queues/a1/import", b"")]),
    "tasks": (VIEW, [("GET", "/api/queues/a1/tasks?state=dead", b"")]),
    "delete": (OPERATE, [("DELETE", "/api/queues/a1/tasks?state=dead&dry_run=1", b"")]),
    "task": (
        READ_TASK,
        [("GET", f"/api/queues/a1/tasks/{ID}", b""), ("GET", f"/api/queues/a1/tasks/{ID}?wait=0", b"")],
    ),
    "cancel": (OPERATE, [("DELETE", f"/api/queues/a1/tasks/{ID}", b"")]),
    "why": (READ_TASK, [("GET", f"/api/queues/a1/tasks/{ID}/why", b"")]),
    "run": (OPERATE, [("POST", f"/api/queues/a1/tasks/{ID}/run", b"")]),
    "dead": (VIEW, [("GET", "/api/dead", b""), ("GET", "/api/dead?queue=a1&limit=1", b"")]),
    "workers": (VIEW, [("GET", "/api/workers", b""), ("HEAD", "/api/workers?limit=1", b"")]),
    "findings": (VIEW, [("GET", "/api/findings", b""), ("HEAD", "/api/findings", b"")]),
    "events": (VIEW, [("GET", "/api/events?limit=0", b""), ("HEAD", "/api/events", b"")]),
    "stats": (VIEW, [("GET", "/api/stats", b""), ("HEAD", "/api/stats?range=15m&queue=a1", b"")]),
    "order": (OPERATE, [("POST", "/api/workers/w", {"order": "run"})]),
    "schedules": (VIEW, [("GET", "/api/schedules", b"")]),
    "schedule": (VIEW, [("GET", "/api/schedules/a1", b"")]),
    "put_schedule": (OPERATE, [("PUT", "/api/schedules/a1", SCHEDULE)]),
    "drop_schedule": (OPERATE, [("DELETE", "/api/schedules/a1", b"")]),
    "run_schedule": (OPERATE, [("POST", "/api/schedules/a1/run", b"")]),
    "audit": (VIEW, [("GET", "/api/audit", b""), ("GET", "/api/audit?queue=a1&limit=1", b"")]),
    "undo": (OPERATE, [("POST", "/api/audit/999999999/undo", b"")]),
    "tokens": (OPERATE, [("GET", "/api/tokens", b""), ("HEAD", "/api/tokens?limit=1", b"")]),
    "token": (set(HOLDERS), [("GET", "/api/token", b"")]),
    "sign_in": (set(HOLDERS), [("POST", "/api/session", b"")]),
    "session": (set(HOLDERS), [("GET", "/api/session", b"")]),
    "sign_out": (EVERYBODY, [("DELETE", "/api/session", b"")]),
    "me": (set(HOLDERS), [("GET", "/api/me", b"")]),
    "page": (EVERYBODY, [("GET", "/", b""), ("HEAD", "/", b"")]),
    "page_file": (EVERYBODY, [("GET", "/dashboard/app.js", b"")]),
    "page_file_below": (EVERYBODY, [("GET", "/dashboard/css/base.css", b"")]),
    "healthz": (EVERYBODY, [("GET", "/healthz", b""), ("HEAD", "/healthz", b"")]),
    "readyz": (EVERYBODY, [("GET", "/readyz", b"")]),
    "openapi": (EVERYBODY, [("GET", "/openapi.json", b""), ("HEAD", "/openapi.json", b"")]),
    "docs": (EVERYBODY, [("GET", "/docs", b""), ("HEAD", "/docs", b"")]),
    "metrics": (VIEW, [("GET", "/metrics", b""), ("HEAD", "/metrics", b"")]),
}


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    one = Callers(short_folder() / "tokens.json")
    for name, rights in HOLDERS.items():
        one.add(name, *rights, expires=FUTURE)
    one.add("expired", "admin", expires=PAST)
    one.add("mixed", "push a*", "push [xy]?", "pop b*", "operate")
    one.add("mixed-view", "push a*", "view --no-payloads")
    one.add("revoked", "admin")
    with guarded(module_redis_process, one):
        assert one.ask("revoked", "GET", "/api/token").status == 200
        del one.entries["revoked"]
        one.write()
        wait_until(lambda: one.ask("revoked", "GET", "/api/token").status == 401)
        signed_in = wait_until(lambda: one.ask("admin", "POST", "/api/session"))
        one.cookie = signed_in.headers["set-cookie"].partition(";")[0]
        one.secrets["unknown"] = one.secrets["admin"][:-1] + ("a" if one.secrets["admin"][-1] != "a" else "b")
        yield one


def asked(callers: Callers, who: str, method: str, path: str, body: Any) -> Any:
    secret = callers.secrets["admin"]
    if who == "basic":
        return callers.ask("", method, path, body, Authorization=f"Basic {secret}")
    if who == "cookie":
        return callers.ask("", method, path, body, Cookie=f"session={secret}; token={secret}")
    if who == SESSION:
        return callers.ask("", method, path, body, Cookie=callers.cookie, Sec_Fetch_Site="same-origin")
    if who == "query":
        mark = "&" if "?" in path else "?"
        return callers.ask("", method, f"{path}{mark}access_token={secret}", body)
    if who == "two":
        return callers.ask("", method, path, body, Authorization=f"Bearer {secret}, Bearer {secret}")
    return callers.ask(who, method, path, body)


def test_every_route_has_its_line() -> None:
    assert set(TABLE) == {route.verb for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.verb)
def test_every_route_demands_a_right(route: Route) -> None:
    assert route.right in RIGHTS
    # These two rights count for the queues that the path names.
    if route.right in ("push", "pop"):
        assert "<name" in route.path
    assert {method for method, _, _ in TABLE[route.verb][1]} - {"HEAD"} == {m.decode() for m in route.methods}


@pytest.mark.parametrize("verb", TABLE)
def test_an_endpoint_admits_only_holders_of_its_right(callers: Callers, verb: str) -> None:
    let_in, requests = TABLE[verb]
    right = next(one for one in ROUTES if one.verb == verb).right
    # A session is never valid for push and pop, nor to begin another one.
    let_in = let_in - {SESSION} if verb == "sign_in" or right in ("push", "pop") else let_in | {SESSION}
    for method, path, body in requests:
        for who in EVERYBODY:
            answer = asked(callers, who, method, path, body)
            if who in let_in:
                # What the endpoint says: there is no such task, schedule or lease.
                assert answer.status in (200, 202, 400, 404, 409), (who, path, answer)
            elif (who, verb) == ("query", "sign_in"):
                # Everybody learns there that it takes no options.
                assert answer.status == 400 and "set-cookie" not in answer.headers
            elif who in STRANGERS or (who, verb) == (SESSION, "sign_in"):
                assert answer.status == 401, (who, path, answer)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert method == "HEAD" or answer.json["code"] == "unauthorized"
            else:
                assert answer.status == 403, (who, path, answer)
                # It names the right, and the queue where that matters.
                if method != "HEAD":
                    route = next(one for one in ROUTES if one.verb == verb)
                    reply = answer.refused(
                        403, "forbidden", f"'{route.right}'", f"'{'admin' if who == SESSION else who}'"
                    )
                    assert ("'a1'" in reply["error"]) is (route.right in ("push", "pop"))


def test_all_invalid_tokens_get_the_same_answer(callers: Callers) -> None:
    received = {asked(callers, who, "GET", "/api/queues", b"").body for who in STRANGERS}
    assert len(received) == 1
    # They do not learn which paths exist, nor what is wrong with their requests.
    for method, path in (
        ("GET", "/nothing"),
        ("PATCH", "/api/pushTask/a1"),
        ("GET", "/api/popTask/%00"),
        ("GET", "/api/popTask/a1?wait=x"),
        ("GET", "/api/popTasks/a%zz"),
        ("OPTIONS", "/api/pushTask/a1"),
    ):
        assert callers.ask("", method, path).body in received, path
        assert callers.ask("admin", method, path).status in (400, 404, 405), path


def test_the_scheme_may_be_written_in_any_case(callers: Callers) -> None:
    secret = callers.secrets["view"]
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert callers.ask("", "GET", "/api/queues", Authorization=f"{scheme} {secret}").status == 200
    for value in (secret, f"Bearer{secret}", f"Token {secret}", "Bearer", f"Bearer {secret} x", "Bearer ,"):
        assert callers.ask("", "GET", "/api/queues", Authorization=value).status == 401, value


@pytest.mark.parametrize(
    ("names", "status"),
    [
        ("b1", 202),
        ("b1,b2", 202),
        ("b1,%62%32", 202),
        ("b1,a1", 403),
        ("a1,b1", 403),
        ("b1,%61%31", 403),
        # A comma in a name, and a name that only looks like the glob.
        ("b1%2Ca1", 202),
        ("x,b1", 403),
        ("B1", 403),
    ],
)
def test_a_pop_of_several_queues_needs_the_right_for_each(callers: Callers, names: str, status: int) -> None:
    assert callers.ask("pop-other", "GET", f"/api/popTasks/{names}?wait=0").status == status


def test_globs(callers: Callers) -> None:
    for name, status in (
        ("a", 200),
        ("a:b:c", 200),
        ("xy", 200),
        ("y1", 200),
        ("x", 403),
        ("xyz", 403),
        ("ba", 403),
    ):
        assert callers.ask("mixed", "PUT", f"/api/pushTask/{name}", 1).status == status, name
    # Of any character, not of any byte.
    assert callers.ask("mixed", "PUT", "/api/pushTask/x%C3%A4", 1).status == 200


@pytest.mark.parametrize("verb", ["popTask", "popTasks"])
def test_the_name_of_a_worker_ends_no_poll_of_another_token(callers: Callers, verb: str) -> None:
    def poll(who: str, queue: str) -> Asked:
        path = f"/api/{verb}/{queue}?wait=20&lease=5&worker={verb}"
        one = Asked(callers.daemon, "GET", path, b"", {"Authorization": f"Bearer {callers.secrets[who]}"})
        assert one.waits(0.2)
        return one

    first = poll("pop", "a-named")
    others = [poll("pop-other", "b-named"), poll("admin", "a-named")]
    assert first.waits(0.2)
    second = poll("pop", "a-named")
    assert first.answer().headers["registry-worker"] == "replaced"
    for one in (second, *others):
        assert one.waits(0.01)
        one.hang_up()


def test_a_lease_is_of_its_queue(callers: Callers) -> None:
    callers.ask("admin", "PUT", "/api/pushTask/a-leased", 1).ok()
    lease = callers.ask("admin", "GET", "/api/popTask/a-leased?lease=30").ok()["lease"]
    other = "pop-other"
    for verb in ("ack", "fail", "release", "extend"):
        callers.ask(other, "POST", f"/api/{verb}Task/b1/{lease}").refused(409, "lease_lost")
    settled = callers.ask(other, "POST", "/api/ackTasks/b1", {"acks": [lease], "fails": [{"lease": lease}]})
    assert {one["status"] for one in settled.ok()["results"]} == {"lease_lost"}
    popped = callers.ask(other, "GET", f"/api/popTask/b1?wait=0&lease=1&ack={lease}")
    assert popped.headers["registry-ack"] == "lease_lost"
    callers.ask("pop", "POST", f"/api/ackTask/a-leased/{lease}").ok()


def test_keys_are_of_their_queue(callers: Callers) -> None:
    first = callers.ask("push", "PUT", "/api/pushTask/a-key?key=k", 1, Idempotency_Key="i").ok()["id"]
    for headers in ({}, {"Idempotency_Key": "i"}):
        other = callers.ask("push-other", "PUT", "/api/pushTask/b-key?key=k", 1, **headers).ok()
        assert other["id"] != first
        callers.ask("push-other", "PUT", "/api/pushTask/a-key?key=k", 1, **headers).refused(403, "forbidden")
    popped = callers.ask("pop", "GET", "/api/popTask/a-key?lease=30", Idempotency_Key="p").ok()
    callers.ask("pop-other", "GET", "/api/popTask/a-key?lease=30", Idempotency_Key="p").refused(
        403, "forbidden"
    )
    assert callers.ask("pop-other", "GET", "/api/popTask/b-key?lease=30", Idempotency_Key="p").ok() != popped


def test_schedules_and_moves_of_a_token_with_globs_keep_to_them(callers: Callers) -> None:
    ask = callers.ask
    for who, queue, status in (("mixed", "b1", 403), ("mixed", "a1", 200), ("operate", "b1", 200)):
        put = ask(who, "PUT", "/api/schedules/s", {**SCHEDULE, "queue": queue})
        assert put.status == status, (who, queue)
    # It names b1 now.
    ask("mixed", "POST", "/api/schedules/s/run").refused(403, "forbidden", "'push'", "'b1'")
    ask("mixed", "PUT", "/api/schedules/s", {**SCHEDULE, "queue": "b2"}).refused(403, "forbidden")
    assert ask("view", "GET", "/api/schedules/s").ok()["queue"] == "b1"
    ask("mixed", "POST", "/api/queues/a1/move?to=b1").refused(403, "forbidden", "'push'", "'b1'")
    ask("mixed", "POST", "/api/queues/b1/move?to=a1").ok()
    ask("operate", "DELETE", "/api/schedules/s").ok()


def test_a_pusher_reads_its_tasks_and_no_others(callers: Callers) -> None:
    ask = callers.ask
    task_id = ask("push", "PUT", "/api/pushTask/a-own?result=60", {"n": 1}).ok()["id"]
    path = f"/api/queues/a-own/tasks/{task_id}"
    assert ask("push", "GET", path).ok()["task"] == {"n": 1}
    assert ask("push", "GET", f"{path}/why").ok()["state"] == "ready"
    lease = ask("pop", "GET", "/api/popTask/a-own?lease=30").ok()["lease"]
    ask("pop", "POST", f"/api/ackTask/a-own/{lease}", {"r": 2}).ok()
    assert ask("push", "GET", f"{path}?wait=1").ok()["result"] == {"r": 2}
    for who in ("push-other", "pop"):
        for more in ("", "?wait=1", "/why"):
            ask(who, "GET", path + more).refused(403, "forbidden", "'view'")
    # Also not through a queue of its own.
    ask("push-other", "GET", f"/api/queues/b1/tasks/{task_id}?wait=0.1").refused(404, "not_found")


def test_without_payloads_nothing_that_producers_and_workers_wrote_is_shown(
    callers: Callers, module_redis_process: RedisServer
) -> None:
    ask, q = callers.ask, "a-hidden"
    written = "SECRET"
    error = {"type": f"{written}-type", "message": f"{written}-message", "trace": f"{written}-trace"}
    options = f"attempts=1&result=600&key={written}-key"
    for count in range(3):
        trace = f"00-{count + 1:032x}-00f067aa0ba902b7-01"
        ask("admin", "PUT", f"/api/pushTask/{q}?{options}{count}", f"{written}-task", traceparent=trace).ok()
    first, second = (ask("admin", "GET", f"/api/popTask/{q}?lease=60").ok() for _ in range(2))
    message = {"progress": 0.5, "message": f"{written}-progress"}
    ask("admin", "POST", f"/api/extendTask/{q}/{first['lease']}", message).ok()
    ask("admin", "POST", f"/api/failTask/{q}/{second['lease']}", {"error": error}).ok()
    third = ask("admin", "GET", f"/api/popTask/{q}?lease=60").ok()
    ask("admin", "POST", f"/api/ackTask/{q}/{third['lease']}", f"{written}-result").ok()
    schedule = {**SCHEDULE, "queue": q, "task": f"{written}-scheduled", "options": {"key": f"{written}-key"}}
    ask("admin", "PUT", "/api/schedules/hidden", schedule).ok()
    ids = [one["id"] for one in (first, second, third)]
    seen = ""
    paths = [
        "/api/queues",
        f"/api/queues/{q}",
        "/api/schedules",
        "/api/schedules/hidden",
        "/readyz",
        "/api/token",
    ]
    paths += [f"/api/queues/{q}/tasks?state={state}" for state in ("leased", "dead", "done")]
    paths += [f"/api/queues/{q}/tasks/{one}{more}" for one in ids for more in ("", "/why", "?wait=0.1")]
    for path in paths:
        found = ask("states", "GET", path)
        assert found.status == 200 and written not in found.body.decode(), path
        assert b"00f067aa0ba902b7" not in found.body
        full = ask("view", "GET", path)
        seen += full.body.decode()
        # The same tasks, in the same states.
        if path.startswith(f"/api/queues/{q}/tasks?"):
            few, all_ = found.json["tasks"], full.json["tasks"]
            for name in ("id", "state", "attempt", "pushed_at", "progress"):
                assert [one[name] for one in few] == [one[name] for one in all_]
            assert all(one["task"] is None and one["hidden"] for one in few)
    # All of it is there for those who may see it.
    for word in ("type", "message", "trace", "key", "task", "progress", "result", "scheduled"):
        assert f"{written}-{word}" in seen, word
    # Nor can it be found out by searching.
    for option in (
        *(f"{name}={written}" for name in ("search", "error", "type", "message")),
        "type=",
        "message=",
    ):
        ask("states", "GET", f"/api/queues/{q}/tasks?state=dead&{option}").refused(403, "forbidden")
    assert ask("view", "GET", f"/api/queues/{q}/tasks?state=dead&search={written}").ok()["tasks"]
    # Nor by trying out what the cursor behind another program's element is a hash of.
    module_redis_process.command("LPUSH", f"{q}-raw", f'"{written}"', "1")
    page = ask("states", "GET", f"/api/queues/{q}-raw/tasks?state=ready&limit=1").ok()
    digest = hashlib.sha1(f'"{written}"'.encode(), usedforsecurity=False).hexdigest()
    assert digest not in page["cursor"]
    cursor = quote(page["cursor"])
    last = ask("states", "GET", f"/api/queues/{q}-raw/tasks?state=ready&limit=1&cursor={cursor}").ok()
    assert len(page["tasks"]) == len(last["tasks"]) == 1 and last["cursor"] != page["cursor"]
    # Who may push into the queue reads it all the same.
    assert ask("mixed-view", "GET", f"/api/queues/{q}/tasks/{ids[0]}").ok()["task"] == f"{written}-task"
    assert ask("mixed-view", "GET", f"/api/queues/{q}/tasks?state=dead").ok()["tasks"][0]["task"] is None
    ask("operate", "DELETE", "/api/schedules/hidden").ok()


def test_the_details_of_readyz_need_the_right_to_view(callers: Callers) -> None:
    for who in (*STRANGERS[:4], "push", "pop"):
        assert callers.ask(who, "GET", "/readyz").ok() == {"status": "ready"}, who
    for who in ("view", "states", "operate", "admin"):
        assert set(callers.ask(who, "GET", "/readyz").ok()) == {"status", "version", "warnings"}


def test_a_caller_sees_its_own_token(callers: Callers) -> None:
    reply = callers.ask("mixed-view", "GET", "/api/token").ok()
    assert reply.pop("address").startswith("127.1.")
    assert reply == {"name": "mixed-view", "rights": ["push a*", "view --no-payloads"], "expires": None}
    assert callers.ask("view", "GET", "/api/token").ok()["expires"] == FUTURE


def test_pages_of_strangers_are_refused_with_a_token_too(callers: Callers) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        for method, path in (("PUT", "/api/pushTask/a1"), ("GET", "/api/popTask/a1?wait=0")):
            callers.ask("admin", method, path, 1, **headers).refused(403, "foreign_origin")


def test_the_host_is_for_those_without_a_token(callers: Callers) -> None:
    host = {"Host": "elsewhere.example"}
    assert callers.ask("push", "PUT", "/api/pushTask/a1", 1, **host).status == 200
    assert callers.ask("push", "PUT", "/api/pushTask/b1", 1, **host).status == 403
    for path in ("/api/queues", "/healthz", "/readyz"):
        callers.ask("", "GET", path, **host).refused(421, "foreign_host")
    callers.ask("unknown", "GET", "/api/queues", **host).refused(401, "unauthorized")


def test_no_token_is_in_the_log_nor_in_an_answer(callers: Callers) -> None:
    secret = callers.secrets["admin"]
    for who in ("", "admin"):
        for path in (
            f"/{secret}",
            f"/{secret.replace('_', '%5F')}",
            f"/api/queues?token={secret}",
            f"/api/popTask/q?wait={secret}",
            f"/api/queues?{secret}=1",
        ):
            found = callers.ask(
                who, "GET", path, User_Agent=secret, Referer=f"http://h/?{secret}", X_Request_Id=secret
            )
            assert found.status in (400, 401, 404)
            assert secret[4:] not in found.body.decode() + json.dumps(found.headers.items())
    callers.ask("admin", "GET", "/api/token").ok()
    # The audit keeps the id of a request.
    callers.ask("admin", "POST", "/api/queues/noted/pause", X_Request_Id=secret).ok()
    assert secret[4:] not in callers.ask("admin", "GET", "/api/audit?queue=noted").body.decode()
    wait_until(lambda: "GET /api/audit?queue=noted" in callers.daemon.log)
    log = callers.daemon.log
    assert "GET /rgy_*** HTTP/1.1" in log and "rgy%5F" not in log
    for one in callers.secrets.values():
        assert one[4:24] not in log


def test_an_access_line_names_the_token(callers: Callers) -> None:
    asked = (
        ("push", "/api/token", "push"),
        ("states", "/api/popTask/named", "states"),  # it lacks the right
        ("unknown", "/api/queues", "-"),
        ("", "/healthz", "-"),
    )
    for who, path, _ in asked:
        callers.ask(who, "GET", f"{path}?named={who}")
    wait_until(lambda: "/healthz?named= " in callers.daemon.log)
    for who, path, shown in asked:
        line = rf'^127\.1\.\S+ - {shown} \[[^]]+\] "GET {re.escape(path)}\?named={who} '
        assert re.search(line, callers.daemon.log, re.MULTILINE), path

"""The event stream on a real daemon: what it sends, to whom, and how it ends."""

from __future__ import annotations

import pytest

from tests.live import Daemon, RedisServer
from tests.sse import Events, streaming
from tests.talk import ask, cancel, fresh, leased, on, policy, push, pushed, running


def test_it_says_hello_then_all_rows_then_what_changes(served: Daemon, q: str) -> None:
    push(served, q, 1)
    with streaming(served.port) as stream:
        headers = stream.headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        assert headers["connection"] == "close"
        assert headers["transfer-encoding"] == "chunked" and "content-length" not in headers
        first = stream.next("queues")
        assert first["full"] is True
        listed = {row["name"]: row for row in ask(served, "GET", "/api/queues").ok()["queues"]}
        rows = {row["name"]: row for row in first["queues"]}
        assert set(rows) == set(listed)
        assert set(rows[q]) == {*listed[q], "oldest_at"}
        assert first["totals"]["queues"] == len(listed)
        push(served, q, 2)
        changed = stream.next("queues")
        assert changed["full"] is False
        assert [(row["name"], row["ready"]) for row in changed["queues"]] == [(q, 2)]
        ask(served, "DELETE", f"/api/queues/{q}?undo=no").ok()
        assert stream.next("queues")["gone"] == [q]


def test_an_action_comes_as_an_event_and_again_to_a_client_that_missed_it(served: Daemon, q: str) -> None:
    with streaming(served.port, "limit=0") as stream:
        stream.next("queues")
        policy(served, q, attempts=3)
        line = stream.next("audit")
        assert (line["action"], line["queue"], line["outcome"]) == ("policy", q, "done")
        stream.until(lambda event: event.name != "audit") if stream.last_id is None else None
        known = line["id"]
    policy(served, q, attempts=4)
    policy(served, q, attempts=None)
    for query, headers in ((f"after={known}", {}), ("", {"Last_Event_ID": known})):
        with streaming(served.port, query, **headers) as stream:
            assert stream.next("audit")["options"] == {"attempts": 4}
            assert stream.next("audit")["options"] == {"attempts": None}


def test_a_selection_of_rows(served: Daemon) -> None:
    family, other = fresh("fam"), fresh("other")
    for name in (f"{family}:1", f"{family}:2", other):
        pushed(served, name)
    label = f"{family}:*"
    for query, names in (
        (f"queue={other}", [other]),
        (f"queue={other}/{family}:1", [other, f"{family}:1"]),
        (f"search={family}", [f"{family}:1", f"{family}:2"]),
        (f"search={family}&family=:", [label]),
        (f"queue={label}/{other}&family=:", [label, other]),
        (f"search={family}&limit=1", [f"{family}:1"]),
        ("limit=0", []),
    ):
        with streaming(served.port, query) as stream:
            assert [row["name"] for row in stream.next("queues")["queues"]] == names, query
    with streaming(served.port, f"queue={label}&family=:") as stream:
        assert stream.row(label, ready=2, queues=2)
        pushed(served, f"{family}:3")
        assert stream.row(label, ready=3, queues=3)


def test_what_is_malformed_is_refused(served: Daemon) -> None:
    for query, word in (
        ("limit=201", "limit"),
        ("queue=", "name"),
        ("queue=a/../b", "name"),
        ("queue=" + "/".join(map(str, range(201))), "200"),
        ("family=x", "family"),
        ("timeout=1", "timeout"),
    ):
        answer = ask(served, "GET", f"/api/events?{query}")
        assert answer.status == 400 and word in answer.json["error"], (query, answer)


def test_http_1_0_gets_the_events_without_chunks(served: Daemon) -> None:
    stream = Events(served.port, "limit=0", version="1.0")
    assert "transfer-encoding" not in stream.headers
    stream.next("hello")
    assert stream.next("queues")["full"]
    stream.close()


@pytest.mark.every_redis
def test_each_change_of_a_queue_is_seen(redis_server: RedisServer) -> None:
    with running(redis_server) as one, streaming(one.port, "queue=q") as stream:
        task = pushed(one, "q", 1, "attempts=1")
        assert stream.row("q", ready=1)
        lease = leased(one, "q")["lease"]
        assert stream.row("q", ready=0, leased=1)
        on(one, "fail", "q", lease).ok()
        assert stream.row("q", leased=0, dead=1)
        policy(one, "q", lease=7)
        assert stream.row("q", policy={"lease": 7})
        pushed(one, "q", 2, "delay=1")
        assert stream.row("q", delayed=1)
        assert stream.row("q", delayed=0, ready=1)
        # Another program's push, of which nobody tells.
        redis_server.command("LPUSH", "q", "3")
        assert stream.row("q", ready=2)
        cancel(one, "q", task)
        assert stream.row("q", dead=0)
        for number in range(6):
            pushed(one, "bad", number, "attempts=1")
            on(one, "fail", "bad", leased(one, "bad")["lease"]).ok()
        told = stream.until(lambda event: event.name == "findings" and event.data["count"]).data
        assert told["findings"][0]["code"] == "deaths" and told["findings"][0]["count"] == 6

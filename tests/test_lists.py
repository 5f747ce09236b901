"""Lists of tasks: bounded in bytes, with cursors that stay valid while tasks come and go."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import ask, cancel, fresh, leased, move, on, policy, pushed, retry, task, tasks

pytestmark = pytest.mark.every_redis
STATES = ["ready", "delayed", "leased", "dead", "done"]
MIB = 1 << 20


def filled(served: Daemon, q: str, state: str, payloads: list[Any]) -> list[str]:
    """Tasks of one state; their ids, in the order of the pushes."""
    query = "?delay=60" if state == "delayed" else ""
    body = json.dumps(payloads, ensure_ascii=False).encode()
    ids = ask(served, "PUT", f"/api/pushTasks/{q}{query}", body).ok()["ids"]
    if state not in ("leased", "dead", "done"):
        return ids  # type: ignore[no-any-return]
    held: list[dict[str, Any]] = []
    while len(held) < len(ids):
        held += ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0&lease=60").ok()["tasks"]
    for one in held:
        if state == "dead":
            on(served, "fail", q, one["lease"], {"retry": False}).ok()
        elif state == "done":
            on(served, "ack", q, one["lease"]).ok()
    return ids  # type: ignore[no-any-return]


def page(served: Daemon, q: str, query: str, cursor: str | None = None) -> tuple[list[Any], str | None]:
    behind = f"&cursor={quote(cursor)}" if cursor else ""
    reply = ask(served, "GET", f"/api/queues/{q}/tasks?{query}{behind}").ok()
    return reply["tasks"], reply["cursor"]


def rest(served: Daemon, q: str, query: str, cursor: str | None) -> list[Any]:
    """What the pages from a cursor on show."""
    found: list[Any] = []
    while cursor is not None:
        rows, cursor = page(served, q, query, cursor)
        found += rows
        assert len(found) < 500, "a list without end"
    return found


# Cursors


@pytest.mark.parametrize("state", STATES)
def test_a_list_shows_once_what_was_there_all_the_while(
    served: Daemon, module_redis_process: RedisServer, q: str, state: str
) -> None:
    ids = filled(served, q, state, list(range(12)))
    rows, cursor = page(served, q, f"state={state}&limit=4")
    seen = [row["id"] for row in rows]
    # Most of those that were seen go, and one that was not; others come.
    gone = [*seen[1:], next(one for one in ids if one not in seen)]
    for one in gone:
        if state == "leased":
            held = module_redis_process.command("ZRANGE", f"{{{q}}}l", 0, -1)
            lease = next(k.decode() for k in held if k.startswith(one.encode()))
            on(served, "ack", q, lease).ok()
        else:
            cancel(served, q, one)
    filled(served, q, state, ["new", "newer"])
    found = [row["id"] for row in rest(served, q, f"state={state}&limit=2", cursor)]
    assert len(found) == len(set(found))
    assert set(found) >= set(ids) - set(seen) - set(gone)
    assert not set(found) & set(seen)


def test_the_dead_are_emptied_page_by_page(served: Daemon, q: str) -> None:
    """List one, delete it, follow the cursor."""
    ids = filled(served, q, "dead", list(range(5)))
    rows, cursor = page(served, q, "state=dead&limit=1")
    met = [row["id"] for row in rows]
    while True:
        for row in rows:
            assert cancel(served, q, row["id"]) == "removed"
        if cursor is None:
            break
        rows, cursor = page(served, q, "state=dead&limit=1", cursor)
        met += [row["id"] for row in rows]
    assert sorted(met) == sorted(ids)


def test_a_list_of_the_ready_goes_on_while_workers_pop_and_producers_push(served: Daemon, q: str) -> None:
    ids = filled(served, q, "ready", list(range(40)))
    found, cursor = page(served, q, "limit=5")
    popped: list[str] = []
    while cursor is not None:
        popped += [leased(served, q)["id"] for _ in range(3)]
        ask(served, "PUT", f"/api/pushTasks/{q}", ["new"] * 2).ok()
        rows, cursor = page(served, q, "limit=5", cursor)
        found += rows
        assert len(found) < 200
    seen = [row["id"] for row in found]
    assert len(seen) == len(set(seen))
    assert set(seen) >= set(ids) - set(popped)


def test_a_list_of_the_ready_goes_on_after_all_that_it_showed_was_popped(served: Daemon, q: str) -> None:
    ids = filled(served, q, "ready", list(range(12)))
    _, cursor = page(served, q, "limit=3")
    for _ in range(5):
        leased(served, q)
    assert [row["id"] for row in rest(served, q, "limit=3", cursor)] == ids[5:]
    # What is put back at the head is in front of what comes next.
    _, cursor = page(served, q, "limit=3")
    held = leased(served, q)
    on(served, "release", q, held["lease"]).ok()
    assert [row["id"] for row in rest(served, q, "limit=3", cursor)] == ids[8:]


@pytest.mark.parametrize("body", [{"delay": 0}, {"delay": 0.01}, {"retry": False}])
def test_a_list_of_the_ready_goes_on_where_the_last_that_it_showed_comes_again_at_the_tail(
    served: Daemon, q: str, body: dict[str, Any]
) -> None:
    ids = filled(served, q, "ready", list(range(6)))
    _, cursor = page(served, q, "limit=2")
    on(served, "ack", q, leased(served, q)["lease"]).ok()
    again = leased(served, q)
    on(served, "fail", q, again["lease"], body).ok()
    if "retry" in body:
        retry(served, q, f"id={again['id']}")
    wait_until(lambda: task(served, q, again["id"])["state"] == "ready", 10, "the task again")
    # As far from the tail as it was when it was shown, and farther.
    new = [pushed(served, q, "new") for _ in range(5)]
    assert [row["id"] for row in rest(served, q, "limit=2", cursor)] == [*ids[2:], again["id"], *new]


def test_a_list_of_the_ready_finds_its_place_far_from_where_it_was(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    """Farther than one look for it goes."""
    ask(served, "PUT", f"/api/pushTasks/{q}", ["first"] * 3).ok()
    for _ in range(6):
        ask(served, "PUT", f"/api/pushTasks/{q}", [0] * 1000).ok()
    last = ask(served, "PUT", f"/api/pushTasks/{q}", ["last"] * 2).ok()["ids"]
    rows, cursor = page(served, q, "limit=1")
    for _ in range(61):
        rows, cursor = page(served, q, "limit=98", cursor)
    assert cursor is not None
    assert rows[-1]["task"] == 0
    for _ in range(5):
        ask(served, "GET", f"/api/popTasks/{q}?count=100&wait=0").ok()
    for _ in range(7):
        ask(served, "PUT", f"/api/pushTasks/{q}", ["new"] * 1000).ok()
    rows, _ = page(served, q, "limit=1000", cursor)
    numbers = [row["task"] for row in rows]
    # The 6,003 but for the first and 61 pages, and then those that came.
    assert numbers[:27] == [0] * 24 + ["last"] * 2 + ["new"]
    assert [row["id"] for row in rows[24:26]] == last


def test_a_list_of_what_other_programs_pushed_goes_on_too(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    module_redis_process.command("LPUSH", q, *[f'"raw {n}"' for n in range(9)])
    rows, cursor = page(served, q, "limit=3")
    assert [row["task"] for row in rows] == ["raw 0", "raw 1", "raw 2"]
    for _ in range(5):
        leased(served, q)
    module_redis_process.command("LPUSH", q, '"new"')
    assert [row["task"] for row in rest(served, q, "limit=2", cursor)] == [
        *(f"raw {n}" for n in range(5, 9)),
        "new",
    ]
    equal = fresh()
    module_redis_process.command("LPUSH", equal, *["1"] * 20)
    rows, cursor = page(served, equal, "limit=3")
    assert len(rows + rest(served, equal, "limit=3", cursor)) == 20


def test_of_many_that_have_one_moment_each_is_listed_once(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    ids = filled(served, q, "delayed", list(range(30)))
    module_redis_process.command("ZADD", f"{{{q}}}d", *[w for one in ids for w in ("4000000000000", one)])
    rows, cursor = page(served, q, "state=delayed&limit=7")
    seen = [row["id"] for row in rows]
    for one in seen:
        cancel(served, q, one)
    found = [row["id"] for row in rest(served, q, "state=delayed&limit=7", cursor)]
    assert sorted(seen + found) == sorted(ids)


def test_a_lease_that_is_extended_is_listed_once(served: Daemon, q: str) -> None:
    ids = filled(served, q, "ready", list(range(9)))
    held = {one["id"]: one["lease"] for one in (leased(served, q) for _ in ids)}
    rows, cursor = page(served, q, "state=leased&limit=3")
    for row in rows:
        on(served, "extend", q, held[row["id"]], query="lease=600").ok()
    on(served, "extend", q, held[ids[-1]], query="lease=5").ok()
    found = rows + rest(served, q, "state=leased&limit=3", cursor)
    assert [row["id"] for row in found] == ids


def test_a_done_task_whose_time_ends_while_it_is_listed_is_listed_once(served: Daemon, q: str) -> None:
    ids = []
    for n in range(12):
        ids.append(pushed(served, q, n, "result=1.5" if n % 2 else ""))
        on(served, "ack", q, leased(served, q)["lease"]).ok()
    rows, cursor = page(served, q, "state=done&limit=5")
    time.sleep(2.5)  # Those that a push asked to keep are like the others now.
    found = [row["id"] for row in rows + rest(served, q, "state=done&limit=5", cursor)]
    assert sorted(found) == sorted(ids)


@pytest.mark.parametrize("sort", ["name", "ready", "oldest"])
def test_a_list_of_queues_shows_once_what_was_there_all_the_while(served: Daemon, sort: str) -> None:
    stem = fresh("kept")
    for n in range(9):
        ask(served, "PUT", f"/api/pushTasks/{stem}-{n}", [0] * (1 + n // 3)).ok()
    path = f"/api/queues?search={stem}&sort={sort}&limit=3"
    reply = ask(served, "GET", path).ok()
    seen = [row["name"] for row in reply["queues"]]
    for name in seen:
        ask(served, "DELETE", f"/api/queues/{name}").ok()
    pushed(served, f"{stem}-00", "new")
    while reply["cursor"] is not None:
        reply = ask(served, "GET", f"{path}&cursor={quote(reply['cursor'])}").ok()
        seen += [row["name"] for row in reply["queues"]]
    kept = [name for name in seen if name != f"{stem}-00"]
    assert sorted(kept) == [f"{stem}-{n}" for n in range(9)]


@pytest.mark.parametrize("state", STATES)
def test_a_cursor_of_another_list_is_refused(served: Daemon, q: str, state: str) -> None:
    for cursor in ("x%20y", "1~2~3", "9~1~1~zz", "a~b", "%00", "1~" + "x" * 300):
        ask(served, "GET", f"/api/queues/{q}/tasks?state={state}&cursor={cursor}").refused(400, "bad_option")


# Bytes


@pytest.mark.parametrize("state", STATES)
def test_a_page_has_8_mib_at_most_and_then_a_cursor(served: Daemon, q: str, state: str) -> None:
    long = "\u00fc" * 40_000
    ids = filled(served, q, state, [f"{n} {long}" for n in range(90)])
    answer = ask(served, "GET", f"/api/queues/{q}/tasks?state={state}&limit=1000")
    assert len(answer.body) <= 8 * MIB
    reply = answer.ok()
    assert 8 <= len(reply["tasks"]) < 90
    assert reply["cursor"] is not None
    for row in reply["tasks"]:
        assert row["truncated"] is True
        assert len(row["task"].encode()) <= 65_536
        assert "\ufffd" not in row["task"]
    found = reply["tasks"] + rest(served, q, f"state={state}&limit=1000", reply["cursor"])
    assert sorted(row["id"] for row in found) == sorted(ids)
    whole = task(served, q, ids[0])
    assert (whole["task"], "truncated" in whole) == (f"0 {long}", False)


def test_what_has_64_kib_is_shown_whole(served: Daemon, q: str) -> None:
    ask(served, "PUT", f"/api/pushTask/{q}", b'"' + b"x" * 65_534 + b'"').ok()
    ask(served, "PUT", f"/api/pushTask/{q}", b'"' + b"x" * 65_535 + b'"').ok()
    first, second = tasks(served, q)
    assert (first["task"], "truncated" in first) == ("x" * 65_534, False)
    assert (second["task"], second["truncated"]) == ('"' + "x" * 65_535, True)


def test_a_long_result_is_cut_in_lists(served: Daemon, q: str) -> None:
    task_id = pushed(served, q, 1)
    result = json.dumps("r" * 100_000).encode()
    on(served, "ack", q, leased(served, q)["lease"], result).ok()
    [row] = tasks(served, q, "state=done")
    assert (row["truncated"], row["result"]) == (True, result[:65_536].decode())
    assert task(served, q, task_id)["result"] == "r" * 100_000


def test_a_long_element_of_another_program_is_cut_too(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    module_redis_process.command("LPUSH", q, b"x" * 300_000, b"[1]", b'"' + b"y" * 300_000 + b'"')
    rows = tasks(served, q)
    assert [(row["task"][:2], row.get("truncated")) for row in rows if row["task"] != [1]] == [
        ("xx", True),
        ('"y', True),
    ]
    assert [row["task"][:2] for row in tasks(served, q, "search=y%22")] == ['"y']


def sent_by(redis: RedisServer, what: Any) -> int:
    """How many bytes Redis sent while this was asked."""

    def sent() -> int:
        info = redis.command("INFO", "stats").decode()
        return int(next(line for line in info.splitlines() if "total_net_output_bytes" in line).split(":")[1])

    before = sent()
    what()
    return sent() - before


def test_a_look_reads_no_more_than_it_shows(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    ids: list[str] = []
    for _ in range(4):
        ids += filled(served, q, "ready", [{"n": n, "long": "x" * 100_000} for n in range(100)])
    cancel(served, q, ids[5])
    path = f"/api/queues/{q}/tasks"
    received: list[Any] = []
    sent = sent_by(
        module_redis_process, lambda: received.append(ask(served, "GET", f"{path}/{ids[-1]}/why").ok())
    )
    assert sent < 400_000
    assert [r["position"] for r in received[0]["reasons"] if r["code"] == "position"] == [398]
    # One payload in a hundred holds it, and only these leave Redis.
    sent = sent_by(module_redis_process, lambda: tasks(served, q, "search=%22n%22:%2077,"))
    # Redis 3.2 counts the replies of scripts several times over.
    assert sent < 4_000_000
    # What a bulk operation moves is not read.
    policy(served, q, paused=True)
    assert sent_by(module_redis_process, lambda: move(served, q, fresh())) < 200_000


def test_a_search_reads_so_much_and_answers_with_a_cursor(served: Daemon, q: str) -> None:
    for _ in range(3):
        ask(served, "PUT", f"/api/pushTasks/{q}", list(range(1000))).ok()
    pushed(served, q, "here")
    rows, cursor = page(served, q, "search=here")
    assert rows == []
    assert cursor is not None
    assert [row["task"] for row in rest(served, q, "search=here", cursor)] == ["here"]


def test_a_search_reads_so_many_bytes_and_answers_with_a_cursor(served: Daemon, q: str) -> None:
    for _ in range(3):
        filled(served, q, "delayed", ["x" * 1_000_000 for _ in range(13)])
    last = pushed(served, q, "here", "delay=100")
    rows, cursor = page(served, q, "state=delayed&search=here")
    assert rows == []
    assert [row["id"] for row in rest(served, q, "state=delayed&search=here", cursor)] == [last]


def test_the_list_of_schedules_is_bounded_in_bytes(served: Daemon) -> None:
    stem = fresh("long")
    for n in range(45):
        reply = {"cron": "0 0 1 1 *", "queue": "x", "task": "\u00fc" * 80_000}
        ask(
            served, "PUT", f"/api/schedules/{stem}-{n:02d}", json.dumps(reply, ensure_ascii=False).encode()
        ).ok()
    names: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        behind = f"&cursor={quote(cursor)}" if cursor else ""
        answer = ask(served, "GET", f"/api/schedules?limit=1000{behind}")
        assert len(answer.body) <= 8 * MIB
        rows, cursor = answer.ok()["schedules"], answer.ok()["cursor"]
        assert all(row["truncated"] and row["task"][:2] == '"\u00fc' for row in rows)
        names += [row["name"] for row in rows]
    assert names == [f"{stem}-{n:02d}" for n in range(45)]
    whole = ask(served, "GET", f"/api/schedules/{names[0]}").ok()
    assert (whole["task"], "truncated" in whole) == ("\u00fc" * 80_000, False)
    for name in names:
        ask(served, "DELETE", f"/api/schedules/{name}").ok()

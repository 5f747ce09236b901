"""``GET /api/workers``: who works, over all daemons, as polls and leases show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench import Bench
from tests.ctl import Ctl
from tests.live import Daemon, wait_until
from tests.talk import ask, eventually, leased, on, poll, pop, pushed


@pytest.fixture(scope="module")
def served(pair: tuple[Daemon, Daemon]) -> Daemon:
    """One of the two."""
    return pair[0]


def workers(daemon: Daemon) -> dict[str | None, dict[str, Any]]:
    return {one["worker"]: one for one in ask(daemon, "GET", "/api/workers").ok()["workers"]}


def row_of(daemon: Daemon, name: str | None, **members: Any) -> dict[str, Any]:
    """The row of a worker, once it has these members."""

    def found() -> dict[str, Any] | None:
        row = workers(daemon).get(name)
        return row if row and {key: row[key] for key in members} == members else None

    row: dict[str, Any] = wait_until(found, 10, f"{name}: {members}")
    return row


def test_a_worker_is_known_to_every_daemon(pair: tuple[Daemon, Daemon], q: str) -> None:
    one, two = pair
    pop(two, f"{q}b", f"wait=0&worker={q}", User_Agent="mail/1.2")
    parked = poll(one, q, f"wait=20&worker={q}", User_Agent="mail/1.2")
    for daemon in pair:
        row = row_of(daemon, q, queues=[q, f"{q}b"], parked=1)
        assert (row["address"], row["user_agent"], row["order"]) == ("127.0.0.1", "mail/1.2", "run")
        assert row["since"] <= row["last_seen"] and (row["leases"], row["lease_count"]) == ([], 0)
    parked.hang_up()
    row_of(two, q, parked=0)


def test_what_a_worker_holds(served: Daemon, q: str) -> None:
    ids = [pushed(served, q, n) for n in range(2)]
    held = [leased(served, q, f"lease={length}&wait=0&worker={q}")["lease"] for length in (60, 30)]
    on(served, "extend", q, held[0], {"progress": 0.5}).ok()
    row = row_of(served, q, lease_count=2)
    # The one that ends first comes first. A lease is a secret of its holder.
    assert [lease["id"] for lease in row["leases"]] == ids[::-1]
    last = row["leases"][1]
    assert (last["queue"], last["attempt"], last["progress"]) == (q, 1, 0.5)
    assert row["since"] <= last["leased_at"] < last["lease_ends_at"]
    assert held[0] not in ask(served, "GET", "/api/workers").body.decode()
    on(served, "ack", q, held[0]).ok()
    row_of(served, q, lease_count=1)
    on(served, "ack", q, held[1]).ok()
    row_of(served, q, lease_count=0, leases=[])


def test_several_queues_at_once(served: Daemon, q: str) -> None:
    ask(served, "GET", f"/api/popTasks/{q}a,{q}b?wait=0&worker={q}")
    row_of(served, q, queues=[f"{q}a", f"{q}b"], user_agent=None)


def test_leases_of_workers_without_a_name_are_together(served: Daemon, q: str) -> None:
    pushed(served, q, 1)
    lease = leased(served, q)["lease"]
    row = eventually(lambda: workers(served).get(None))
    assert q in [one["queue"] for one in row["leases"]]
    assert (row["address"], row["queues"], row["parked"]) == (None, [], 0)
    on(served, "ack", q, lease).ok()


def test_a_name_that_several_use_is_named(served: Daemon, q: str) -> None:
    polls = [poll(served, q, f"wait=20&worker={q}") for _ in range(3)]
    # The first was ended by the second; the third and the second both live.
    row_of(served, q, shared_name=True, parked=2)
    for one in polls:
        one.hang_up()


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "queue=a"])
def test_bad_options(served: Daemon, query: str) -> None:
    ask(served, "GET", f"/api/workers?{query}").refused(400, "bad_option")


def test_a_short_list_says_so(served: Daemon, q: str) -> None:
    for name in (f"{q}a", f"{q}b"):
        pop(served, q, f"wait=0&worker={name}")
        row_of(served, name)
    few = ask(served, "GET", "/api/workers?limit=1").ok()
    assert len(few["workers"]) == 1 and few["left_out"] >= 1 and few["complete"] is True


def test_the_command(served: Daemon, tmp_path: Path, q: str) -> None:
    ctl = Ctl(served.url, tmp_path)
    pop(served, q, f"wait=0&worker={q}w", User_Agent="mail/1.2")
    row_of(served, f"{q}w")
    (line,) = [line for line in ctl.ok("workers").splitlines() if line.startswith(f"{q}w ")]
    assert "127.0.0.1" in line and "mail/1.2" in line and f" {q} " in line and " run " in line
    assert [row["queues"] for row in ctl.rows("workers") if row["worker"] == f"{q}w"] == [[q]]


@pytest.mark.every_redis
async def test_the_roster_of_another_process_ends_with_it(bench: Bench) -> None:
    store = bench.store
    await store.beat(b"", 60_000)
    bench.redis("ZADD", "{registry}beats", bench.now() + 60_000, "other")
    bench.redis("SET", "{registry}roster:other", "theirs", "PX", 60_000)
    await store.beat_workers(b"ours", 60_000)
    # The module's daemon, on the same Redis, may have written its own again.
    others = await store.other_workers()
    assert b"theirs" in others and b"ours" not in others
    bench.redis("PEXPIRE", "{registry}roster:other", 1)
    while bench.redis("EXISTS", "{registry}roster:other"):
        pass
    assert b"theirs" not in await store.other_workers()

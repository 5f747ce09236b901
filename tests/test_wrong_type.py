"""Another program's key in place of a queue's list: a refused request changes nothing."""

from __future__ import annotations

import pytest

from tests.live import Daemon, RedisServer, wait_until
from tests.talk import (
    ask,
    becomes,
    counts,
    leased,
    on,
    pop,
    pushed,
    retry,
    sleep_past,
)

pytestmark = pytest.mark.every_redis


@pytest.mark.parametrize("verb", ["release", "fail"])
def test_a_holder_keeps_its_task(
    served: Daemon, module_redis_process: RedisServer, q: str, verb: str
) -> None:
    pushed(served, q, 1)
    lease = leased(served, q)["lease"]
    module_redis_process.command("SET", q, "not ours")
    on(served, verb, q, lease, b'{"delay":0}' if verb == "fail" else b"").refused(409, "wrong_type")
    module_redis_process.command("DEL", q)
    assert counts(served, q) == {"leased": 1}
    on(served, verb, q, lease, b'{"delay":0}' if verb == "fail" else b"").ok()
    assert leased(served, q)["task"] == 1


def test_a_delayed_task_stays_delayed(served: Daemon, module_redis_process: RedisServer, q: str) -> None:
    one = pushed(served, q, 1, "delay=60")
    module_redis_process.command("SET", q, "not ours")
    run = f"/api/queues/{q}/tasks/{one}/run"
    ask(served, "POST", run).refused(409, "wrong_type")
    module_redis_process.command("DEL", q)
    assert counts(served, q) == {"delayed": 1}
    ask(served, "POST", run).ok()
    assert leased(served, q)["id"] == one


def test_the_dead_stay_dead(served: Daemon, module_redis_process: RedisServer, q: str) -> None:
    one = pushed(served, q, 1, "attempts=1")
    on(served, "fail", q, leased(served, q)["lease"]).ok()
    module_redis_process.command("SET", q, "not ours")
    for query in (f"?id={one}", "", "?dry_run=1"):
        ask(served, "POST", f"/api/queues/{q}/retry{query}").refused(409, "wrong_type")
    module_redis_process.command("DEL", q)
    assert counts(served, q) == {"dead": 1}
    assert retry(served, q)["count"] == 1


def test_what_time_does_waits_until_the_key_is_gone(
    served: Daemon, module_redis_process: RedisServer, q: str
) -> None:
    pushed(served, q, "lapses")
    leased(served, q, "lease=0.2&wait=0")
    pushed(served, q, "due", "delay=0.2")
    module_redis_process.command("SET", q, "not ours")
    sleep_past(0.2)
    module_redis_process.command("DEL", q)
    becomes(served, q, 5, ready=2)
    assert [leased(served, q)["task"] for _ in range(2)] == ["lapses", "due"]


def test_a_refused_policy_is_not_kept(served: Daemon, module_redis_process: RedisServer, q: str) -> None:
    module_redis_process.command("SET", q, "not ours")
    ask(served, "PATCH", f"/api/queues/{q}", {"paused": True}).refused(409, "wrong_type")
    module_redis_process.command("DEL", q)
    assert ask(served, "GET", f"/api/queues/{q}").ok()["policy"] == {}
    pushed(served, q, 1)
    assert pop(served, q, "wait=0").status == 200
    wait_until(lambda: counts(served, q) == {}, 3)

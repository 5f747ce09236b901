"""GET /metrics of a real daemon: what is counted, under which names, and how it adds up over processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.live import Daemon, RedisServer, children_of, wait_until
from tests.talk import Answer, ask, fresh, leased, on, poll, pop, push, pushed, running

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Page:
    """A page of metrics that was scraped."""

    def __init__(self, answer: Answer) -> None:
        assert answer.status == 200, answer
        self.text = answer.body.decode()
        self.families = list(text_string_to_metric_families(self.text))
        self.samples: Samples = {}
        for family in self.families:
            for one in family.samples:
                key = one.name, frozenset(one.labels.items())
                assert key not in self.samples, key
                self.samples[key] = one.value

    def of(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (one, has), value in self.samples.items() if one == name and wanted <= has)

    def labels(self, name: str, label: str) -> set[str]:
        return {dict(has)[label] for one, has in self.samples if one == name}


def scrape(daemon: Daemon) -> Page:
    return Page(ask(daemon, "GET", "/metrics"))


def test_the_page_is_what_prometheus_reads(served: Daemon) -> None:
    answer = ask(served, "GET", "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers.get_all("Content-Type") == [answer.headers["Content-Type"]]
    page = Page(answer)
    assert all(family.name.startswith("registry_") and family.documentation for family in page.families)
    for name in ("registry_redis_up", "registry_redis_memory_bytes", "registry_build_info"):
        assert page.of(name) > 0
    assert "# {" not in page.text  # an exemplar
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip(
            "promtool, of Debian's package prometheus, is not installed: the rest of this test needs it"
        )
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=answer.body, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_life_of_tasks_is_counted(served: Daemon) -> None:
    q, before = fresh(), scrape(served)
    for _ in range(3):
        push(served, q, 1).ok()
    ask(served, "PUT", f"/api/pushTasks/{q}", [1, 2, 3]).ok()
    pushed(served, q, 1, "key=k")
    assert push(served, q, 1, "key=k").ok()["duplicate"]
    held = leased(served, q)
    on(served, "ack", q, held["lease"]).ok()
    on(served, "ack", q, held["lease"]).ok()  # a repeat
    on(served, "fail", q, leased(served, q)["lease"], {"retry": False}).ok()
    on(served, "fail", q, leased(served, q)["lease"], {"delay": 600}).ok()
    assert pop(served, q, "wait=0").status == 200
    many = ask(served, "GET", f"/api/popTasks/{q},{fresh()}?count=2&wait=0").ok()["tasks"]
    assert len(many) == 2
    expired = pushed(served, q, 1, "ttl=0.01&priority=0")
    # The hand-over is confirmed, and the expired task is found, within a moment.
    expected = {"done": 2.0, "dead": 2.0}

    def ended() -> Page | None:
        page = scrape(served)
        found = {
            outcome: page.of("registry_tasks_ended_total", queue=q, outcome=outcome) for outcome in expected
        }
        return page if found == expected else None

    page = wait_until(ended, what=f"the ends of {q}, {expired} among them,")
    assert page.of("registry_tasks_pushed_total", queue=q) == 8
    assert page.of("registry_tasks_started_total", queue=q) == 6
    assert page.of("registry_attempts_failed_total", queue=q) == 2

    def by_state() -> dict[str, float]:
        return {
            state: scrape(served).of("registry_tasks", queue=q, state=state)
            for state in ("ready", "delayed", "leased", "dead")
        }

    # What the queues hold is not read again for each scrape.
    wait_until(
        lambda: by_state() == {"ready": 1, "delayed": 1, "leased": 2, "dead": 2}, what="the tasks by state"
    )
    assert page.of("registry_oldest_ready_seconds", queue=q) > 0
    for name, count in (("wait", 6), ("run", 1)):
        metric = f"registry_task_{name}_seconds"
        assert page.of(f"{metric}_count") - before.of(f"{metric}_count") == count
        assert page.of(f"{metric}_bucket", le="+Inf") == page.of(f"{metric}_count")
        assert 0 <= page.of(f"{metric}_sum") - before.of(f"{metric}_sum") < 600


def test_waits_and_runs_are_measured(served: Daemon) -> None:
    q, before = fresh(), scrape(served)
    pushed(served, q, 1, "delay=0.3")
    started = wait_until(lambda: (answer := pop(served, q, "lease=30&wait=5")).status == 200 and answer)
    lease = started.json["lease"]
    wait_until(lambda: ask(served, "POST", f"/api/extendTask/{q}/{lease}").status == 200)
    pushed(served, q, 2)
    wait_until(lambda: scrape(served).of("registry_oldest_ready_seconds", queue=q) > 0.3)
    on(served, "ack", q, lease).ok()
    leased(served, q)
    after = scrape(served)
    waited, ran = (
        after.of(f"registry_task_{n}_seconds_sum") - before.of(f"registry_task_{n}_seconds_sum")
        for n in ("wait", "run")
    )
    # A delay is no wait; the second task waited while the first one ran.
    assert waited >= 0.3 and ran >= 0.3


def test_requests_polls_and_refusals_are_counted(served: Daemon) -> None:
    q, before = fresh(), scrape(served)
    parked = poll(served, q)
    page = wait_until(lambda: (one := scrape(served)).of("registry_pollers", queue=q) == 1 and one)
    assert page.of("registry_polls_parked") == 1
    assert page.of("registry_http_connections") >= 1
    push(served, q, 1).ok()
    assert parked.answer().status == 200
    assert pop(served, q, "wait=0").status == 202
    assert ask(served, "GET", f"/api/popTasks/{q}?wait=0").status == 202
    ask(served, "POST", f"/api/ackTask/{q}/{'0' * 24}-{'0' * 32}").refused(409, "lease_lost")
    ask(served, "GET", "/nothing").refused(404, "not_found")
    ask(served, "PUT", f"/api/pushTask/{q}?delay=x", 1).refused(400, "bad_option")
    ask(served, "PUT", f"/api/pushTask/{q}", b"{").refused(400, "bad_json")
    ask(served, "PUT", f"/api/pushTask/{q}", 1, Origin="http://elsewhere.example").refused(
        403, "foreign_origin"
    )
    after = wait_until(lambda: (one := scrape(served)).of("registry_pollers", queue=q) == 0 and one)

    def more(name: str, **labels: str) -> float:
        return float(after.of(name, **labels) - before.of(name, **labels))

    assert after.of("registry_polls_parked") == 0
    assert more("registry_polls_empty_total") == 2
    pops = {"route": "/api/popTask/<name>", "endpoint": "pop"}
    assert more("registry_http_requests_total", **pops, status="200") == 1
    assert more("registry_http_requests_total", **pops, status="202") == 1
    assert more("registry_http_requests_total", endpoint="push", status="200") == 1
    assert more("registry_http_requests_total", endpoint="push", status="400") == 2
    assert more("registry_http_requests_total", route="", status="404") == 1
    reasons = ("lease_lost", "not_found", "bad_option", "bad_json", "foreign_origin")
    assert {reason: more("registry_refused_total", reason=reason) for reason in reasons} == dict.fromkeys(
        reasons, 1
    )
    for name in ("redis_group_size", "redis_round_trip_seconds", "reactor_lag_seconds"):
        assert more(f"registry_{name}_count") > 0


def test_names_are_escaped_and_families_are_one(served: Daemon) -> None:
    for name in ("%22odd%5C%E2%80%AE", "family:1", "family:2", "family:x:3"):
        pushed(served, name, 1)
    page = wait_until(lambda: (one := scrape(served)).of("registry_tasks", queue="family:*") == 3 and one)
    assert page.of("registry_tasks", queue='"odd\\‮', state="ready") == 1
    assert page.of("registry_tasks", queue="family:*", state="ready") == 3
    assert page.of("registry_tasks_pushed_total", queue="family:*") == 3
    assert not any(
        name.startswith("family:") and name != "family:*" for name in page.labels("registry_tasks", "queue")
    )


QUEUES = 230


def test_processes_answer_with_their_sum_and_two_hundred_queues(module_redis: RedisServer) -> None:
    with running(module_redis, PROCESSES="2") as daemon:
        # Each request has a connection of its own, so both processes get some of them.
        for number in range(QUEUES):
            pushed(daemon, f"many{number}", 1)
        # Each process shares its numbers every two seconds.
        metric = "registry_tasks_pushed_total"
        wait_until(lambda: scrape(daemon).of(metric) == QUEUES, what="the sum over both processes")
        page = wait_until(
            lambda: (one := scrape(daemon)).of("registry_tasks", state="ready") == QUEUES and one
        )
        for name in ("registry_tasks", "registry_pollers", metric, "registry_tasks_ended_total"):
            labels = page.labels(name, "queue")
            assert len(labels) == 201 and "other" in labels, name
        assert page.of("registry_tasks", queue="other") == QUEUES - 200
        # A process that ends takes no number with it, also when its successor answers.
        [key] = module_redis.command("KEYS", "{registry}metrics:*")
        victim = min(children_of(daemon.pid))
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in children_of(daemon.pid))
        left = module_redis.command("HVALS", key)
        # The successor has shared its own numbers, and so has the other one.
        wait_until(lambda: not set(left) & set(module_redis.command("HVALS", key)), 20)
        answered = []
        for _ in range(8):
            page = scrape(daemon)
            assert page.of(metric) == QUEUES
            answered.append(page.of("registry_http_requests_total", endpoint="push"))
        assert answered == [float(QUEUES)] * 8

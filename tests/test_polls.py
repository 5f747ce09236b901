"""The table of `registry.queue.polls`, event by event, for both kinds of poller; and how one that ends passes on why it was woken."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.python.failure import Failure

from registry.errors import Conflict, RedisUnavailable
from registry.model import PopOptions
from registry.queue.pollers import HANDOVER_MS, ManyPoller, OnePoller
from registry.queue.polls import ABANDONED, CLOSED, EXPIRED, IN_FLIGHT, REPLACED, Poller
from registry.queue.wait_lists import PARKED
from tests.memory import World

STATES = {
    "PARKED": PARKED,
    "IN_FLIGHT": IN_FLIGHT,
    "EXPIRED": EXPIRED,
    "REPLACED": REPLACED,
    "ABANDONED": ABANDONED,
    "CLOSED": CLOSED,
}
# event: for each state in which it may come, what the client is told, and the state behind it. "-": nothing yet, or never.
TABLE = {
    "woken": {"PARKED": "- IN_FLIGHT"},
    "a task": {
        "IN_FLIGHT": "task CLOSED",
        "EXPIRED": "task CLOSED",
        "REPLACED": "task CLOSED",
        "ABANDONED": "- CLOSED",
    },
    "ask again": {
        "IN_FLIGHT": "- IN_FLIGHT",
        "EXPIRED": "- EXPIRED",
        "REPLACED": "Replaced CLOSED",
        "ABANDONED": "- CLOSED",
    },
    "no JSON": {
        "IN_FLIGHT": "- IN_FLIGHT",
        "EXPIRED": "- EXPIRED",
        "REPLACED": "Replaced CLOSED",
        "ABANDONED": "- CLOSED",
    },
    "nothing": {
        "IN_FLIGHT": "- PARKED",
        "EXPIRED": "nothing CLOSED",
        "REPLACED": "Replaced CLOSED",
        "ABANDONED": "- CLOSED",
    },
    "limited": {
        "IN_FLIGHT": "- PARKED",
        "EXPIRED": "nothing CLOSED",
        "REPLACED": "Replaced CLOSED",
        "ABANDONED": "- CLOSED",
    },
    "refused": {
        "IN_FLIGHT": "Conflict CLOSED",
        "EXPIRED": "Conflict CLOSED",
        "REPLACED": "Conflict CLOSED",
        "ABANDONED": "- CLOSED",
    },
    "no reply": {
        "IN_FLIGHT": "- PARKED",
        "EXPIRED": "RedisUnavailable CLOSED",
        "REPLACED": "RedisUnavailable CLOSED",
        "ABANDONED": "- CLOSED",
    },
    "time is up": {
        "PARKED": "nothing CLOSED",
        "IN_FLIGHT": "- EXPIRED",
        "EXPIRED": "- EXPIRED",
        "REPLACED": "- REPLACED",
        "ABANDONED": "- ABANDONED",
    },
    "newer poll": {
        "PARKED": "Replaced CLOSED",
        "IN_FLIGHT": "- REPLACED",
        "EXPIRED": "- REPLACED",
        "REPLACED": "- REPLACED",
        "ABANDONED": "- ABANDONED",
    },
    "hang-up": {
        "PARKED": "- CLOSED",
        "IN_FLIGHT": "- ABANDONED",
        "EXPIRED": "- ABANDONED",
        "REPLACED": "- ABANDONED",
        "ABANDONED": "- ABANDONED",
    },
    "the daemon stops": {
        "PARKED": "nothing CLOSED",
        "IN_FLIGHT": "- IN_FLIGHT",
        "EXPIRED": "- EXPIRED",
        "REPLACED": "- REPLACED",
        "ABANDONED": "- ABANDONED",
    },
}


class Receiver:
    told = "-"

    def callback(self, found: Any) -> None:
        assert self.told == "-"
        self.told = "task" if found else "nothing"

    def errback(self, failure: Failure) -> None:
        assert self.told == "-"
        self.told = type(failure.value).__name__


class Bench(World):
    """Pollers whose questions go nowhere: their replies come from the test."""

    def __init__(self, many: bool) -> None:
        super().__init__()
        self.many = many
        self.asked: list[Any] = []
        self.queues.polls.carry = lambda verb, entry: self.asked.append(entry.reply)

    def poll(self, *names: bytes, many: bool | None = None) -> tuple[Any, Receiver]:
        receiver, polls = Receiver(), self.queues.polls
        if self.many if many is None else many:
            poller: Poller = ManyPoller(polls, receiver, names or (b"q", b"r"), 0, PopOptions(count=1))
        else:
            poller = OnePoller(polls, receiver, names[0] if names else b"q", HANDOVER_MS, None)
        poller.begin(polls.now(), 10)
        return poller, receiver

    def reach(self, state: str) -> tuple[Any, Receiver]:
        poller, receiver = self.poll()
        if state == "PARKED":
            poller.callback([1])
        elif state == "EXPIRED":
            poller.time_up()
        elif state == "REPLACED":
            poller.replace()
        elif state == "ABANDONED":
            poller.hang_up()
        assert poller.state == STATES[state]
        return poller, receiver

    def task(self, poller: Poller, payload: bytes = b"1") -> list[Any]:
        self.store.put(b"q", payload)
        one = self.store._pop(b"q", poller.nonce)
        return [0, [*one, 0, b"q", poller.nonce]] if isinstance(poller, ManyPoller) else one

    def happens(self, event: str, poller: Any) -> None:
        if event == "woken":
            self.queues.wait_lists.wake(b"q")
        elif event == "a task":
            poller.callback(self.task(poller))
        elif event == "no JSON":
            poller.callback(self.task(poller, b"?"))
        elif event == "ask again":
            poller.callback([2])
        elif event == "nothing":
            poller.callback([1])
        elif event == "limited":
            poller.callback([3, b"rate_limited", 500] + ([b"q"] if self.many else []))
        elif event == "refused":
            poller.callback([4])
        elif event == "no reply":
            poller.errback(Failure(RedisUnavailable("gone")))
        elif event == "time is up":
            poller.time_up()
        elif event == "newer poll":
            poller.replace()
        elif event == "hang-up":
            poller.hang_up()
        elif event == "the daemon stops":
            self.queues.draining = True
            self.queues.polls.end_all()


@pytest.fixture(params=[False, True], ids=["one", "many"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


@pytest.mark.parametrize(
    ("event", "state", "expected"),
    [(event, state, expected) for event, row in TABLE.items() for state, expected in row.items()],
)
def test_the_table(bench: Bench, event: str, state: str, expected: str) -> None:
    poller, receiver = bench.reach(state)
    asked = len(bench.asked)
    told, after = expected.split()
    bench.happens(event, poller)
    assert (receiver.told, poller.state) == (told, STATES[after])
    # "Ask again" and a wake lead to one question more, and nothing else does.
    assert len(bench.asked) - asked == (event in ("woken", "ask again", "no JSON") and after != "CLOSED")
    wait_lists = bench.queues.wait_lists
    places = 2 if bench.many else 1
    assert wait_lists.parked == (places if after == "PARKED" else bench.many and event == "woken")
    if after == "CLOSED":
        bench.turn()
        assert bench.nothing_left()
        assert [verb for verb, _ in bench.store.asked] == (
            ["putback"]
            if (event, state) == ("a task", "ABANDONED")
            else ["bury"]
            if event == "no JSON"
            else []
        )


def test_a_poll_without_a_wait_is_answered_with_its_first_reply(bench: Bench) -> None:
    receiver = Receiver()
    if bench.many:
        poller: Poller = ManyPoller(bench.queues.polls, receiver, [b"q", b"r"], 0, PopOptions(count=1))
    else:
        poller = OnePoller(bench.queues.polls, receiver, b"q", HANDOVER_MS, None)
    poller.begin(0.0, 0)
    assert poller.state == EXPIRED
    poller.callback([1])
    assert receiver.told == "nothing"
    assert bench.nothing_left()


@pytest.mark.parametrize("reply", [[1], [2], [3, b"paused"]])
def test_when_the_daemon_stops_nothing_is_parked(bench: Bench, reply: list[Any]) -> None:
    poller, receiver = bench.poll()
    bench.queues.draining = True
    poller.callback(reply)
    if reply == [2]:
        poller.callback([1])
    assert receiver.told == "nothing" and bench.nothing_left()


def test_a_poller_woken_in_flight_asks_again_before_it_is_parked(bench: Bench) -> None:
    poller, receiver = bench.poll()
    bench.queues.wait_lists.wake(b"q")
    poller.callback([1])
    assert poller.state == IN_FLIGHT and len(bench.asked) == 2
    poller.callback([1])
    assert poller.state == PARKED and receiver.told == "-"


@pytest.mark.parametrize("end", ["a task", "refused", "nothing", "ask again"])
@pytest.mark.parametrize("gone", [False, True])
def test_the_wake_of_a_poller_that_ends_is_passed_on(bench: Bench, end: str, gone: bool) -> None:
    """Woken twice: by two tasks, say, of which it gets one, or none since it is refused or has hung up."""
    poller, _ = bench.poll()
    poller.callback([1])
    other, _ = bench.poll(b"q", many=False)
    if bench.many:
        other.callback([1]) if other.state == IN_FLIGHT else None
    assert other.state == PARKED
    bench.queues.wait_lists.wake(b"q")
    bench.queues.wait_lists.wake(b"q", wake_next=True)
    assert poller.state == IN_FLIGHT and other.state == PARKED
    if gone:
        poller.hang_up()
    elif end in ("nothing", "ask again"):
        poller.replace()
    bench.happens(end, poller)
    assert poller.state == CLOSED
    assert other.state == IN_FLIGHT


def test_a_poller_of_several_queues_that_hangs_up_loses_no_wake_of_the_others() -> None:
    bench = Bench(many=True)
    poller, _ = bench.poll(b"a", b"b")
    poller.callback([1])
    other, _ = bench.poll(b"b", many=False)
    other.callback([1]) if other.state == IN_FLIGHT else None
    bench.queues.wait_lists.wake(b"a")
    bench.queues.wait_lists.wake(b"b")
    poller.hang_up()
    poller.callback([1])
    assert other.state == IN_FLIGHT


def test_a_poller_without_lease_does_not_wait_behind_one_of_several_queues() -> None:
    """Where a lease is required it is refused at once; the other, always leased, waits."""
    bench = Bench(many=True)
    poller, _ = bench.poll(b"q", b"r")
    poller.callback([3, b"concurrency_limited"])
    plain, receiver = bench.poll(b"q", many=False)
    plain.callback([4])
    assert receiver.told == Conflict.__name__

"""Polls: the life of a popTask or popTasks between the request and its answer. One state machine serves both.

A poller asks Redis at once. If there is no task, it is parked in this process, in the wait list of each of its queues. A push, a
notice or the sweeper wakes one poller of a queue, which asks again. A question is never cancelled: a task that arrives for a client
that has hung up is put back.

    PARKED     in the wait lists of all its queues
    IN_FLIGHT  its question is on the way to Redis
    EXPIRED    in flight, and its time is up: this reply is its last. A poll with wait=0 begins in this state
    REPLACED   in flight, and a newer poll of its worker has arrived: it still answers with a task if it gets one
    ABANDONED  in flight, and its client has hung up
    CLOSED     answered, or there is no client to answer

event       | PARKED          | IN_FLIGHT   | EXPIRED        | REPLACED           | ABANDONED          | method
------------|-----------------|-------------|----------------|--------------------|--------------------|--------------
begin       |                 | the first question; or PARKED without one, behind others that wait     | begin
woken       | ask: IN_FLIGHT  | (1)         | (1)            | (1)                |                    | woken
a task      |                 | answer (2)  | answer (2)     | answer (2)         | put it back (2)    | callback
ask again   |                 | ask         | ask: EXPIRED   | Replaced, pass on  | pass on            | _ask_again
nothing     |                 | PARKED (3)  | answer nothing | Replaced           | CLOSED             | _found_nothing
refused     |                 | fail (4)    | fail (4)       | fail (4)           | CLOSED (4)         | callback
no reply    |                 | PARKED (5)  | fail           | fail               | CLOSED             | errback
time is up  | answer nothing  | EXPIRED     |                |                    |                    | time_up
            | (6)             |             |                |                    |                    |
newer poll  | Replaced        | REPLACED    | REPLACED       |                    |                    | replace
hang-up     | CLOSED          | ABANDONED   | ABANDONED      | ABANDONED          |                    | hang_up
the daemon  | answer nothing  |             |                |                    |                    | end
stops       |                 |             |                |                    |                    |

Every answer and failure leads to CLOSED. *Pass on*: wake the next poller, because the task that woke this one may still be there.
"Ask again" has three causes: Redis replied AGAIN; the reply was "nothing", but a wake came while the question was in flight; or all
elements of the reply were not JSON.
(1) A wake that finds nobody parked is counted in the wait list (`pending_wakes`), and causes one more question after "nothing".
(2) Passes on if a notice woke it, which may announce several tasks, or if another wake came meanwhile.
(3) Answers "nothing" if the daemon is stopping.
(4) Passes on if it was woken: Redis may give another poller what it refuses to this one.
(5) Only while Redis is away and the daemon is not stopping; otherwise it fails.
(6) Fails if its last question failed, or Redis is away: it is unknown whether there is a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.python.failure import Failure

from registry.errors import RedisUnavailable, Replaced
from registry.model import Code, PopOptions
from registry.queue.promise import Receiver, unknown_first
from registry.queue.wait_lists import PARKED
from registry.redis.faults import error_from_reply

if TYPE_CHECKING:
    from registry.queue.pollers import Polls

# The states, with `PARKED` (1). From IN_FLIGHT on, a question is in flight.
CLOSED: Final = 0
IN_FLIGHT: Final = 2
EXPIRED: Final = 3
REPLACED: Final = 4
ABANDONED: Final = 5


class Poller:
    """One poll. `pollers.OnePoller` and `pollers.ManyPoller` define how it asks, its wait lists, and which pollers it wakes.

    ``on_result`` receives the result. ``name``: its queue, or the first of several. ``questions``: how many it has asked.
    ``was_woken``: it has been parked and woken. ``wake_next``: its last wake may announce more than one task.
    ``failure``: the error of its last question, or None. ``forget_worker``: called when the poll ends, if it named its worker.
    """

    __slots__ = (
        "failure",
        "forget_worker",
        "lease_ms",
        "leased",
        "name",
        "nonce",
        "on_result",
        "options",
        "polls",
        "questions",
        "state",
        "ticket",
        "timer",
        "until",
        "wake_next",
        "was_woken",
    )

    def __init__(
        self, polls: Polls, receiver: Receiver, name: bytes, lease_ms: int, options: PopOptions | None
    ) -> None:
        self.polls = polls
        self.on_result: Any = receiver
        self.name = name
        self.leased = options is not None and options.leased
        self.lease_ms = lease_ms
        self.options = options
        self.state: int = IN_FLIGHT
        self.ticket = polls.wait_lists.ticket()
        self.questions = 0
        self.nonce = b""
        self.was_woken = self.wake_next = False
        self.until = 0.0
        self.timer: Any = None
        self.failure: Failure | None = None
        self.forget_worker: Callable[[], None] | None = None

    # Events

    def begin(self, now: float, wait: float) -> None:
        """The request has arrived at ``now``, and waits up to ``wait`` seconds."""
        options = self.options
        if options is not None and options.worker:
            begin_poll = self.polls.workers.begin_poll
            self.forget_worker = begin_poll(options.worker, self.replace, options.owner or "")
        if wait > 0:
            self.until = now + wait
            if self._waits_behind_others():
                self._park()
                return
        else:
            self.state = EXPIRED
        self.ask()

    def woken(self, wake_next: bool) -> None:
        """There may be a task now. The wait list has already removed this poller."""
        self.was_woken = True
        self.wake_next = wake_next
        self.state = IN_FLIGHT
        self.ask()

    def callback(self, reply: list[Any]) -> None:
        """Redis has answered the question."""
        self.failure = None
        pending_wake = self._landed()
        code = reply[0]
        if code == Code.OK:
            found = self._read(reply)
            if not found:
                self._ask_again()
            elif self.state == ABANDONED:
                self._put_back(found)
                self._close()
            else:
                self._answer(found)
            if pending_wake or self.wake_next:
                self._forget_pending_wake()
                self._pass_on()
        elif code == Code.NOTHING or code == Code.HELD_BACK:
            if pending_wake:
                self._forget_pending_wake()
                self.wake_next = True
                self._ask_again()
            else:
                self._found_nothing()
            if len(reply) > 2:
                self._wake_later(reply)
        elif code == Code.AGAIN:
            self._ask_again()
        else:
            self._forget_pending_wake()
            self._fail(Failure(error_from_reply(reply)))
            if pending_wake or self.was_woken:
                self._pass_on()

    def _ask_again(self) -> None:
        if self.state == REPLACED:
            self._fail(Failure(Replaced()))
        elif self.state == ABANDONED:
            self._close()
        else:
            self.ask()
            return
        self._pass_on()

    def _found_nothing(self) -> None:
        if self.state == REPLACED:
            self._fail(Failure(Replaced()))
        elif self.state == ABANDONED:
            self._close()
        elif self.state == EXPIRED or self.polls.queues.draining:
            self._answer_nothing()
        else:
            self._park()

    def errback(self, failure: Failure) -> None:
        """The question was not applied, or its outcome is unknown."""
        self._landed()
        self.failure = failure = unknown_first(self.failure, failure)
        if self.state == IN_FLIGHT and failure.check(RedisUnavailable) and not self.polls.queues.draining:
            # Wait until Redis is back or the time is up: a client that got an error at once would poll again at once.
            self._park()
        else:
            self._fail(failure)

    def time_up(self) -> None:
        """The wait that its client asked for is over."""
        if self.state == PARKED:
            failure = self.polls.away(self.failure)
            if failure is None:
                self._answer_nothing()
            else:
                self._fail(failure)
        elif self.state == IN_FLIGHT:
            self.state = EXPIRED

    def replace(self) -> None:
        """A newer poll of its worker takes over."""
        if self.state == PARKED:
            self._fail(Failure(Replaced()))
        elif self.state == IN_FLIGHT or self.state == EXPIRED:
            self.state = REPLACED

    def hang_up(self) -> None:
        """Its client has disconnected."""
        if self.state == CLOSED or self.state == ABANDONED:
            return
        self._close(CLOSED if self.state == PARKED else ABANDONED)
        # The receiver refers to this poller; the cycle would stay in memory until the garbage collector runs.
        self.on_result = None

    def end(self) -> None:
        """The daemon stops."""
        if self.state == PARKED:
            self._answer_nothing()

    def forget_failure(self) -> None:
        """Redis is back: if its time ends now, the answer is "nothing" again, and not the failure."""
        self.failure = None

    def in_flight(self, question: int) -> bool:
        """Whether its question with this number is still in flight."""
        return self.state >= IN_FLIGHT and self.questions == question

    # Actions

    def _park(self) -> None:
        if self.timer is None:
            # The timer starts only here: most pops are answered at once, and a timer costs as much as the rest of a pop.
            left = max(0.0, self.until - self.polls.now())
            self.timer = self.polls.later(left, self.time_up)
        self.state = PARKED
        self.wake_next = False
        self._enter_lists()

    def _answer(self, found: Any) -> None:
        self._close()
        self.on_result.callback(found)

    def _fail(self, failure: Failure) -> None:
        abandoned = self.state == ABANDONED
        self._close()
        if not abandoned:
            self.on_result.errback(failure)

    def _close(self, state: int = CLOSED) -> None:
        before, self.state = self.state, state
        if self.timer is not None:
            if self.timer.active():
                self.timer.cancel()
            self.timer = None
        if self.forget_worker is not None:
            self.forget_worker()
            self.forget_worker = None
        self._leave_lists(before == PARKED)

    # Defined by the two kinds of poller

    def ask(self) -> None:
        """Send a question with the next group; `callback` or `errback` receives its reply."""
        raise NotImplementedError

    def _waits_behind_others(self) -> bool:
        raise NotImplementedError

    def _landed(self) -> int:
        """The question is no longer in flight. Returns true if a wake came meanwhile; `_forget_pending_wake` resets that."""
        raise NotImplementedError

    def _forget_pending_wake(self) -> None:
        raise NotImplementedError

    def _pass_on(self) -> None:
        raise NotImplementedError

    def _enter_lists(self) -> None:
        raise NotImplementedError

    def _leave_lists(self, was_parked: bool) -> None:
        raise NotImplementedError

    def _read(self, reply: list[Any]) -> Any:
        """The valid tasks of a reply; a false value if there are none."""
        raise NotImplementedError

    def _put_back(self, found: Any) -> None:
        raise NotImplementedError

    def _answer_nothing(self) -> None:
        raise NotImplementedError

    def _wake_later(self, reply: list[Any]) -> None:
        """The rate limit of a queue permits no task until the time in the reply: wake a poller then."""
        raise NotImplementedError

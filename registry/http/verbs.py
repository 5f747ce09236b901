"""What the busiest requests mean, for both doors: bytes in, an `Answer` out. No transport in here.

PUT  /api/pushTask/{worker}   body: any JSON value          -> 200 {"success":true,"id":"…"}
GET  /api/popTask/{worker}    ?wait=s                        -> 200 {"task":<payload>} · 202 {"error":"No tasks available"}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from registry.config import Config
from registry.http.json_check import check_json
from registry.http.wire import Answer, options, seconds
from registry.queue.queues import HANDOVER_MS, Pushed, Queues, Taken

Header = Callable[[bytes], "bytes | None"]

NOTHING = Answer(202, b'{"error":"No tasks available"}')
# More than a day is certainly a mistake; what is above MAX_WAIT is capped to it.
MAX_WAIT_ASKED = 86_400

POP_OPTIONS = {"wait": seconds(0, MAX_WAIT_ASKED)}
PUSH_OPTIONS: dict[str, Any] = {}


class Verbs:
    """The requests of producers and workers on these queues."""

    def __init__(self, queues: Queues, config: Config) -> None:
        self._queues = queues
        self._wait = config.queue_timeout
        self._max_wait = max(config.max_wait, config.queue_timeout)

    def push(self, name: bytes, query: bytes, header: Header, body: bytes) -> Deferred[Answer]:
        """One task into a queue."""
        if query:
            options(query, PUSH_OPTIONS)
        check_json(body)
        return self._queues.push(name, body).addCallback(_pushed)

    def pop(self, name: bytes, query: bytes, header: Header, body: bytes) -> Deferred[Answer]:
        """The next task of a queue. Cancel the Deferred when the client has gone."""
        wait = self._wait
        if query:
            wait = min(options(query, POP_OPTIONS).get("wait", wait), self._max_wait)
        return self._queues.pop(name, wait, HANDOVER_MS).addCallback(_popped)

    def delivered(self, answer: Answer) -> None:
        """The answer has left for the kernel: what it handed over without lease is done."""
        for taken in answer.taken:
            self._queues.confirm(taken)

    def lost(self, answer: Answer) -> None:
        """The answer did not get out: what it handed over goes back."""
        for taken in answer.taken:
            self._queues.put_back(taken)


def _pushed(pushed: Pushed) -> Answer:
    return Answer(200, b'{"success":true,"id":"%b"}' % pushed.id)


def _popped(taken: Taken | None) -> Answer:
    if taken is None:
        return NOTHING
    headers = ((b"Task-Id", taken.id), (b"Task-Attempt", b"%d" % taken.attempt))
    return Answer(200, b'{"task":%b}' % taken.payload, headers, (taken,))

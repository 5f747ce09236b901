"""What an operator looks at across all queues: why tasks are dead, and who works."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.http.codec import json_answer, text, whole
from registry.http.request import Options, Request
from registry.http.rows import rfc3339
from registry.queue.deaths import Deaths, Group, Pathologist
from registry.queue.queues import Queues
from registry.queue.roster import Held, Look, Worker

PAGE, MAX_PER_PAGE = 100, 1000
# How many queues and workers a group names, the most frequent first.
MAX_NAMES = 100
WORKERS_OPTIONS: Options = {"limit": whole(1, MAX_PER_PAGE)}
DEAD_OPTIONS: Options = {"queue": text(1, 255), "limit": whole(1, MAX_PER_PAGE)}


class Looks:
    """The looks. Every method takes a `Request`."""

    def __init__(self, queues: Queues) -> None:
        self._pathologist = Pathologist(queues)
        self._roster = queues.roster

    @inlineCallbacks
    def dead(self, request: Request) -> Any:
        """The dead tasks, grouped by what they died of."""
        given, payloads = request.options, request.caller.access.reads_payloads
        name = given["queue"].encode() if "queue" in given else None
        found: Deaths = yield self._pathologist.look(name)
        shown = found.groups[: given.get("limit", PAGE)]
        answer = {
            "groups": [group_row(group, payloads) for group in shown],
            "count": found.count,
            "left_out": len(found.groups) - len(shown),
            "complete": found.complete,
            "at": rfc3339(found.at),
        }
        return json_answer(200, answer)

    @inlineCallbacks
    def workers(self, request: Request) -> Any:
        """The workers over all daemons."""
        found: Look = yield self._roster.look()
        shown = found.workers[: request.options.get("limit", MAX_PER_PAGE)]
        answer = {
            "workers": [worker_row(worker) for worker in shown],
            "left_out": len(found.workers) - len(shown),
            "complete": found.complete,
            "at": rfc3339(found.at),
        }
        return json_answer(200, answer)


def worker_row(worker: Worker) -> dict[str, Any]:
    """A worker as the API shows it."""
    return {
        "worker": worker.name,
        "address": worker.address,
        "user_agent": worker.user_agent,
        "queues": sorted(worker.queues),
        "since": rfc3339(worker.since),
        "last_seen": rfc3339(worker.last),
        "parked": worker.parked,
        "shared_name": worker.shared,
        "lease_count": worker.held,
        "leases": [_lease_row(held) for held in worker.leases],
        "order": "run",
    }


def _lease_row(held: Held) -> dict[str, Any]:
    return {
        "queue": held.queue,
        "id": held.id,
        "attempt": held.attempt,
        "leased_at": rfc3339(held.since),
        "lease_ends_at": rfc3339(held.ends),
        "progress": held.progress,
    }


def group_row(group: Group, payloads: bool) -> dict[str, Any]:
    """A group as the API shows it; without ``payloads`` not what workers wrote."""
    queue, task_id = group.example
    row = {
        "reason": group.reason,
        "type": group.type,
        "message": group.message,
        "count": group.count,
        "queues": [name for name, _ in group.queues.most_common(MAX_NAMES)],
        "workers": [name for name, _ in group.workers.most_common(MAX_NAMES)],
        "first": rfc3339(group.first),
        "last": rfc3339(group.last),
        "points_to": group.points_to,
        "example": {"queue": queue, "id": task_id},
    }
    if not payloads and group.reason == "failed":
        row.update(type=None, message=None, hidden=True)
    return row

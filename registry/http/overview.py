"""Across all queues: the dead tasks grouped by error, the workers, and the orders for workers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import inlineCallbacks

from registry.errors import BadBody, BadName, BadOption
from registry.http import options
from registry.http.audit import Trail
from registry.http.codec import accepts, json_answer, name_from, text, whole
from registry.http.json_check import check_json
from registry.http.json_cut import load
from registry.http.request import Options, Request
from registry.http.rows import rfc3339
from registry.queue.audit import Action
from registry.queue.dead_tasks import DeadTasks, Deaths, Group
from registry.queue.orders import ORDERS
from registry.queue.queues import Queues
from registry.queue.roster import Held, Worker, WorkerList
from registry.queue.worker_counts import Verdict

PAGE, MAX_PER_PAGE = 100, 1000
# How many queues and workers a group names, the most frequent first.
MAX_NAMES = 100
# The body of an order, bytes.
MAX_BODY = 1024
_worker_name = text(1, 255)
WORKERS_OPTIONS: Options = {"limit": whole(1, MAX_PER_PAGE)}
DEAD_OPTIONS: Options = {"queue": accepts(text(1, 255), options.NAME), "limit": whole(1, MAX_PER_PAGE)}


class Overview:
    """Every method takes a `Request`."""

    def __init__(self, queues: Queues, trail: Trail) -> None:
        self._dead_tasks = DeadTasks(queues)
        self._roster = queues.roster
        self._orders = queues.orders
        self._trail = trail

    @inlineCallbacks
    def dead(self, request: Request) -> Any:
        """The dead tasks, grouped by what they died of."""
        given, payloads = request.options, request.caller.access.reads_payloads
        name = given["queue"].encode() if "queue" in given else None
        found: Deaths = yield self._dead_tasks.groups(name)
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
        found: WorkerList = yield self._roster.workers()
        shown = found.workers[: request.options.get("limit", MAX_PER_PAGE)]
        answer = {
            "workers": [self._row(worker) for worker in shown],
            "left_out": len(found.workers) - len(shown),
            "complete": found.complete,
            "at": rfc3339(found.at),
        }
        return json_answer(200, answer)

    def _row(self, worker: Worker) -> dict[str, Any]:
        # The order is that of now, also where the rest was kept for a moment.
        name = worker.name or ""
        return {
            **worker_row(worker),
            "order": self._orders.standing.get(name, "run"),
            "order_until": rfc3339(self._orders.until.get(name)),
        }

    @inlineCallbacks
    def order(self, request: Request) -> Any:
        """Tell a worker to run, to be quiet or to stop."""
        try:
            worker = _worker_name("worker", name_from(request.segments[0]).decode())
        except UnicodeDecodeError:
            raise BadName("The name of a worker must be UTF-8.") from None
        except BadOption as error:
            raise BadName(str(error)) from None
        if len(request.body) > MAX_BODY:
            raise BadBody(f"The order is larger than the limit of {MAX_BODY} bytes.")
        check_json(request.body)
        given = load(request.body)
        if not isinstance(given, dict) or set(given) != {"order"} or given["order"] not in ORDERS:
            raise BadBody('The body must be {"order":"run"}, {"order":"quiet"} or {"order":"stop"}.')
        order = given["order"]

        @inlineCallbacks
        def act(action: Action) -> Any:
            if (yield self._orders.give(worker, order)):
                action.has_changed()
            until = rfc3339(self._orders.until.get(worker))
            return json_answer(200, {"success": True, "worker": worker, "order": order, "until": until})

        about = {"worker": worker, "order": order}
        return (yield self._trail.record(request, "order", act, options=about))


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
        "version": worker.version,
        "done": worker.done,
        "failed": worker.failed,
        "failing": worker.verdict is not None,
        "verdict": None if worker.verdict is None else verdict_row(worker.verdict),
        "lease_count": worker.held,
        "leases": [_lease_row(held) for held in worker.leases],
    }


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """Why a worker is called failing."""
    queue, ended = verdict.queue.decode("utf-8", "replace"), verdict.done + verdict.failed
    others, theirs = verdict.others, verdict.others_done + verdict.others_failed
    sentence = (
        f"It failed {verdict.failed} of {ended} tasks of {queue} in the last minutes; "
        f"{'another worker' if others == 1 else f'{others} others'} finished {verdict.others_done} of {theirs}."
    )
    return {
        "code": "fails_what_others_finish",
        "sentence": sentence,
        "queue": queue,
        "done": verdict.done,
        "failed": verdict.failed,
        "others_done": verdict.others_done,
        "others_failed": verdict.others_failed,
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
        "hours": group.hours,
        "recent": group.recent,
        "points_to": group.points_to,
        "worker": group.suspect() if group.points_to == "worker" else None,
        "example": {"queue": queue, "id": task_id},
    }
    if not payloads and group.reason == "failed":
        row.update(type=None, message=None, hidden=True)
    return row

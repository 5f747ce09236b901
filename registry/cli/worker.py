"""The loop of `registryctl work`: takes leased tasks, runs a command for each, renews their leases, and reports how they ended.

A task's course: popped -> its command runs -> acknowledged, failed or released by what the exit code means (`verdict`).
Cancelled, lost and timed-out tasks have their command stopped. A stop of the worker takes nothing new, waits for what runs, then
stops it and gives its tasks back uncounted.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from registry.cli.calls import Calls, encoded
from registry.cli.client import Answer
from registry.cli.errors import CliError
from registry.cli.program import Program
from registry.cli.verdicts import MAX_RESULT, MAX_TRACE, Settings, Verdict, progress_of, verdict

# A longer output is read as JSON beside the loop, bytes.
LARGE = 1 << 18
# A lease is renewed after a third of its length, and at least this often, s, because the answer also reports a cancel.
RENEW_SECONDS = 20.0
SHORTEST_RENEWAL = 0.05
# Progress is reported at most once in this time, s.
PROGRESS_SECONDS = 1.0
# How long one poll waits; proxies give up after a minute.
POLL_SECONDS = 40.0
# How long a worker that must take nothing waits before it asks again, s.
QUIET_SECONDS = 5.0
# When a worker stops, how long it asks for a task that its last poll may have taken, and reports how its last tasks ended, s.
RECOVER_SECONDS, SETTLE_SECONDS = 5.0, 20.0
# No memory, no process or no descriptor free for the command: not the task's fault, nor the command's.
TRANSIENT = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


@dataclass
class Job:
    """A leased task. ``payload``: its bytes as they were pushed."""

    queue: str
    id: str
    lease: str
    attempt: int
    expires_in: float
    payload: bytes
    traceparent: str = ""
    tracestate: str = ""
    began: float = field(default_factory=time.monotonic)
    lost: bool = False

    def path(self, verb: str) -> str:
        return f"/api/{verb}Task/{quote(self.queue, safe='')}/{self.lease}"


@dataclass(frozen=True)
class Line:
    """A line of the log: what became of a task. ``how``: done, failed, dead, released, lost or unknown."""

    job: Job
    how: str
    seconds: float
    detail: str = ""


class Worker:
    """Works until it is stopped, or until there is nothing left to do. ``log`` takes each `Line`, ``note`` other sentences."""

    def __init__(
        self, calls: Calls, settings: Settings, log: Callable[[Line], None], note: Callable[[str], None]
    ) -> None:
        self._calls = calls
        self._settings = settings
        self._log = log
        self._note = note
        self._running: dict[asyncio.Task[None], Program | None] = {}
        self._free = asyncio.Event()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._taken = 0
        self._failed = 0
        self._error: CliError | None = None

    def stop(self) -> None:
        """Take nothing new, and let what runs finish; called again, do not wait for it any longer."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    async def run(self) -> int:
        """Work. Returns how many tasks did not end well. Raises the `CliError` that ended it early."""
        try:
            await self._take()
        finally:
            await self._finish()
        if self._error is not None:
            raise self._error
        return self._failed

    # Taking tasks

    async def _take(self) -> None:
        settings = self._settings
        while not self._stop.is_set():
            self._free.clear()
            room = settings.concurrency - len(self._running)
            if settings.max_tasks is not None:
                room = min(room, settings.max_tasks - self._taken)
                if room <= 0 and self._taken >= settings.max_tasks:
                    return
            if room <= 0:
                await self._first(self._free.wait(), self._stop.wait())
                continue
            try:
                answer = await self._poll(room)
            except CliError as error:
                self._fail(error)
                return
            if answer is None:
                return
            jobs = self._start_all(answer)
            if jobs or self._stop.is_set():
                continue
            if answer.headers.get("Registry-Worker") == "quiet" or "Retry-After" in answer.headers:
                await self._first(asyncio.sleep(_pause(answer)), self._stop.wait())
            elif settings.wait is not None:
                if not self._running:
                    return
                # What runs may push more.
                await self._first(self._free.wait(), self._stop.wait())

    async def _poll(self, room: int) -> Answer | None:
        """One pop, until it is answered; None if the worker was stopped meanwhile."""
        settings = self._settings
        path = "/api/popTasks/" + ",".join(quote(name, safe="") for name in settings.queues)
        wait = POLL_SECONDS if settings.wait is None else settings.wait
        query = {
            "count": min(room, 100),
            "lease": settings.lease,
            "order": settings.order,
            "worker": settings.name,
        }
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        poll = asyncio.ensure_future(
            self._calls.until_answered(
                path,
                {**query, "wait": wait},
                "tasks",
                headers=headers,
                wait=wait,
                patience=settings.patience,
            )
        )
        await self._first(asyncio.shield(poll), self._stop.wait())
        if poll.done():
            return poll.result()
        await _drop(poll)
        # The answer may have been on its way. The same request again gets the same leases; without any, it may get others.
        try:
            answer = (
                await self._calls.until_answered(
                    path, {**query, "wait": 0}, "tasks", headers=headers, patience=RECOVER_SECONDS
                )
                if poll.cancelled()
                else poll.result()
            )
        except CliError as error:
            self._note(
                f"{error.message} If the last poll was given a task, it comes back when its lease ends."
            )
            return None
        self._obey(answer)
        await asyncio.gather(*(self._give_back(job) for job in _jobs(answer)))
        return None

    def _start_all(self, answer: Answer) -> list[Job]:
        self._obey(answer)
        jobs = _jobs(answer)
        for job in jobs:
            self._taken += 1
            work = asyncio.ensure_future(self._give_back(job) if self._stop.is_set() else self._work(job))
            self._running[work] = None
            work.add_done_callback(self._ended)
        return jobs

    def _obey(self, answer: Answer) -> None:
        if answer.headers.get("Registry-Worker") == "stop" and not self._stop.is_set():
            self._note("The registry tells this worker to stop.")
            self.stop()

    def _ended(self, work: asyncio.Task[None]) -> None:
        del self._running[work]
        self._free.set()
        if not work.cancelled() and (error := work.exception()) is not None:
            self._fail(error if isinstance(error, CliError) else CliError(f"Unexpected: {error!r}"))

    def _fail(self, error: CliError) -> None:
        self._error = self._error or error
        self._stop.set()

    # One task

    async def _work(self, job: Job) -> None:
        settings = self._settings
        progress = _Progress()
        program = Program(
            settings.path,
            settings.arguments,
            self._environ(job),
            max_output=MAX_RESULT if settings.result else 0,
            max_errors=MAX_TRACE,
            kill_after=settings.kill_after,
            progress=None if settings.progress is None else (settings.progress, progress.take),
        )
        current = asyncio.current_task()
        assert current is not None
        self._running[current] = program
        renewing = asyncio.ensure_future(self._renew(job, program, progress))
        limit = None
        if settings.time_limit is not None:
            limit = asyncio.get_running_loop().call_later(settings.time_limit, program.stop, "timeout")
        try:
            ended = await program.run(job.payload)
        except OSError as error:
            await self._cannot_start(job, error)
            return
        finally:
            if limit is not None:
                limit.cancel()
            await _drop(renewing)
            self._running[current] = None
        if job.lost:
            self._failed += 1
            self._log(Line(job, "lost", time.monotonic() - job.began, "its lease is no longer held"))
            return
        await self._tell_progress(job, progress)
        if len(ended.output or b"") > LARGE:
            outcome = await asyncio.to_thread(verdict, ended, settings)
        else:
            outcome = verdict(ended, settings)
        await self._settle(job, outcome)

    def _environ(self, job: Job) -> dict[str, str]:
        expires = datetime.now(UTC) + timedelta(seconds=job.expires_in)
        more = {
            "REGISTRY_TASK_ID": job.id,
            "REGISTRY_TASK_QUEUE": job.queue,
            "REGISTRY_TASK_ATTEMPT": str(job.attempt),
            "REGISTRY_TASK_LEASE_EXPIRES": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        if job.traceparent:
            more["TRACEPARENT"] = job.traceparent
        if job.tracestate:
            more["TRACESTATE"] = job.tracestate
        if self._settings.progress is not None:
            more["REGISTRY_TASK_PROGRESS_FD"] = str(self._settings.progress)
        return {**os.environ, **more}

    async def _cannot_start(self, job: Job, error: OSError) -> None:
        if error.errno in TRANSIENT:
            await self._give_back(job, f"the command could not be started now: {error.strerror}", delay=1)
            return
        self._stop.set()
        await self._give_back(job, f"the command cannot be executed: {error.strerror}")
        raise CliError(f"{self._settings.path} cannot be executed: {error.strerror}.")

    async def _renew(self, job: Job, program: Program, progress: _Progress) -> None:
        """Renew the lease until this is cancelled; stop the command when the task is cancelled or lost."""
        length = job.expires_in
        while True:
            pause = max(min(length / 3, RENEW_SECONDS), SHORTEST_RENEWAL)
            # Not wait_for: before Python 3.12 it swallows a cancel that comes at the same time as the result.
            await self._first(progress.wait(), asyncio.sleep(pause))
            try:
                answer = await self._calls.until_answered(
                    job.path("extend"), {}, "expires_in", progress.body(), patience=float("inf")
                )
            except CliError as error:
                if error.code == "lease_lost":
                    job.lost = True
                    program.stop("lost")
                    return
                # Any other refusal: the lease runs out, and the end of the task is reported all the same.
                self._note(f"The lease of {job.id} cannot be renewed: {error.message}")
                return
            progress.received()
            self._obey(answer)
            renewed = answer.json
            length = float(renewed["expires_in"])
            if renewed.get("cancel"):
                program.stop("cancelled")

    async def _tell_progress(self, job: Job, progress: _Progress) -> None:
        """Report the last progress, once: it is not worth waiting for the registry, because the end is reported next."""
        if body := progress.body():
            try:
                await self._calls.until_answered(job.path("extend"), {}, "expires_in", body, patience=0)
            except CliError:
                pass

    # How it ended

    async def _settle(self, job: Job, outcome: Verdict) -> None:
        seconds = time.monotonic() - job.began
        try:
            answer = await self._tell(job, outcome)
        except CliError as error:
            if error.status in (400, 413) and outcome.body and outcome.verb == "ack":
                # The registry, or a proxy, finds the result too large or not JSON: the work is done all the same.
                await self._settle(job, Verdict("ack", outcome.word, detail="its result was refused"))
                return
            self._failed += 1
            if error.code == "lease_lost":
                # A repeated fail or release that had been carried out gets the same answer.
                self._log(Line(job, "lost", seconds, f"{outcome.word}, but its lease was no longer held"))
                return
            self._log(Line(job, "unknown", seconds, f"{outcome.word}, but the registry refuses to hear it"))
            raise
        if answer is None:
            self._failed += 1
            self._log(Line(job, "unknown", seconds, f"{outcome.word}, but the registry does not answer"))
            return
        result = answer.json
        how = "dead" if result.get("state") == "dead" else outcome.word
        self._failed += how in ("failed", "dead")
        details = [outcome.detail, "late" if result.get("late") else ""]
        if result.get("result") == "too_large":
            details.append("its result was too large and is not kept")
        self._log(Line(job, how, seconds, ", ".join(filter(None, details))))

    async def _tell(self, job: Job, outcome: Verdict) -> Answer | None:
        """Report how a task ended, until there is an answer; None if the worker has to stop before."""
        path = job.path(outcome.verb)
        request = asyncio.ensure_future(
            self._calls.until_answered(path, outcome.query, "success", outcome.body)
        )
        await self._first(asyncio.shield(request), self._hurry.wait())
        if not request.done():
            await asyncio.wait([request], timeout=SETTLE_SECONDS)
        if request.done():
            answer = request.result()
            self._obey(answer)
            return answer
        await _drop(request)
        return None

    async def _give_back(self, job: Job, detail: str = "", delay: float = 0) -> None:
        query = {"delay": str(delay)} if delay else {}
        await self._settle(job, Verdict("release", "released", query=query, detail=detail))

    # The end

    async def _finish(self) -> None:
        """Let running commands finish, after a stop only for the grace; then stop them, and wait until that is reported."""
        ended = asyncio.ensure_future(self._all_ended())
        await self._first(asyncio.shield(ended), self._stop.wait())
        if not ended.done():
            count = len(self._running)
            self._note(f"Stopping; {count} {'task still runs' if count == 1 else 'tasks still run'}.")
            grace = asyncio.sleep(self._settings.grace)
            await self._first(asyncio.shield(ended), self._hurry.wait(), grace)
        self._hurry.set()
        for program in list(self._running.values()):
            if program is not None:
                program.stop("stopped")
        await ended

    async def _all_ended(self) -> None:
        while self._running:
            await asyncio.wait(list(self._running))

    async def _first(self, *waits: Any) -> None:
        """Wait for the first of these; the others are cancelled."""
        tasks = [asyncio.ensure_future(one) for one in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _drop(task: asyncio.Future[Any]) -> None:
    """Cancel a task, and wait until it has ended, one way or another."""
    while not task.done():
        task.cancel()
        # A cancel may be swallowed by what is being waited for.
        await asyncio.wait([task], timeout=0.2)


class _Progress:
    """The last progress of a command that was not reported yet."""

    def __init__(self) -> None:
        self._line: bytes | None = None
        self._sent: bytes | None = None
        self._came = asyncio.Event()
        self._last = 0.0

    def take(self, line: bytes) -> None:
        self._line = line
        self._came.set()

    async def wait(self) -> None:
        """Wait for progress, and until it may be reported."""
        await self._came.wait()
        await asyncio.sleep(max(0.0, self._last + PROGRESS_SECONDS - time.monotonic()))

    def body(self) -> bytes:
        """The body of the next renewal."""
        self._came.clear()
        self._sent = self._line
        if self._line is None:
            return b""
        self._last = time.monotonic()
        return encoded(progress_of(self._line.decode("utf-8", "replace")))

    def received(self) -> None:
        """The last body was received."""
        if self._line is self._sent:
            self._line = None


def _jobs(answer: Answer) -> list[Job]:
    if answer.status != 200:
        return []
    found = []
    for text in answer.rows("tasks"):
        row = Answer(200, text)
        fields = row.json
        found.append(
            Job(
                fields["queue"],
                fields["id"],
                fields["lease"],
                fields["attempt"],
                float(fields["expires_in"]),
                row.member("task").encode("utf-8", "surrogatepass"),
                fields.get("traceparent", ""),
                fields.get("tracestate", ""),
            )
        )
    return found


def _pause(answer: Answer) -> float:
    try:
        return min(max(float(answer.headers.get("Retry-After", "")), 0.1), 60.0)
    except ValueError:
        return QUIET_SECONDS


def worker_name() -> str:
    """A name for this process: its host and its number."""
    return f"{os.uname().nodename[:200]}-{os.getpid()}"

"""The workers of README.md and docs/writing-a-worker.md, as they stand there, through whatever can happen to them.

Of their text only addresses, the queue and the length of their pauses are changed. Between them and a real daemon stands
a proxy that spoils the answers it is told to, and restarts the daemon or its Redis at a given step.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.live import ROOT, Daemon, RedisServer, bare_environment, wait_until
from tests.talk import running

PAUSE = 0.1  # s; the workers' own is 1 s
HTML = b"<html><body>Something of a proxy</body></html>"
# Of each worker: where it stands, how it is run, and what its work is with a task that says how it fails.
WORKERS = {
    "short": ("README.md", "sh", ["sh"], "jq .task"),
    "shell": ("docs/writing-a-worker.md", "sh", ["sh"], "jq .task"),
    "python": ("docs/writing-a-worker.md", "python", [sys.executable, "-u"], 'work("zoneCheck", print)'),
    "node": ("docs/writing-a-worker.md", "js", ["node"], "  console.log(task);"),
}
FAILING = {
    "jq .task": """jq -c 'if .task.fail then error("no") else .task end'""",
    'work("zoneCheck", print)': "def f(task):\n    if task.get('fail'):\n        raise TypeError('no')\n"
    '    print(json.dumps(task, separators=(",", ":")))\n\nwork("zoneCheck", f)',
    "  console.log(task);": "  if (task.fail) throw new TypeError('no');\n  console.log(JSON.stringify(task));",
}
NEEDED = {"short": ("curl", "jq"), "shell": ("curl", "jq"), "python": (), "node": ("node",)}


def program(which: str, api: str, queue: str) -> str:
    """The worker's text, at ``api`` and on ``queue``."""
    page, language, _, work = WORKERS[which]
    text = (ROOT / page).read_text("utf-8")
    found = [
        block for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if "popTask" in block
    ]
    assert len(found) == 1
    changes = {
        "http://localhost:3000/api": api,
        work: FAILING[work],
        "zoneCheck": queue,
    }
    changes |= (
        {"pause = 1": f"pause = {PAUSE}"} if language in ("python", "js") else {"sleep 1": f"sleep {PAUSE}"}
    )
    if which == "short":  # it has no key: what it lost comes back when the lease is over
        changes |= {"lease=120": "lease=1"}
    for old, new in changes.items():
        assert old in found[0], old
        found[0] = found[0].replace(old, new)
    return str(found[0])


class Answer:
    """What a worker is told: ``cut`` after half of the body, ``dropped`` before the first byte.

    ``sized``: its length is told, as the registry does; some proxies let the end of the connection tell it.
    """

    def __init__(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.body = body
        self.headers = headers or {}
        self.cut = self.dropped = False
        self.sized = True


class Spoiler(ThreadingHTTPServer):
    """Passes requests on to ``daemon``, each spoiled by the next step of ``steps[queue, verb]``.

    A step takes a function that asks the daemon, and returns the answer. ``gaps`` has the time between a spoiled
    answer and the queue's next request.
    """

    daemon_threads = True

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.steps: dict[tuple[str, str], deque[Any]] = defaultdict(deque)
        self.asked: list[tuple[str, str]] = []
        self.gaps: list[tuple[str, float]] = []
        self._spoiled: dict[str, tuple[str, float]] = {}
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/api"

    def answer(self, verb: str, queue: str, ask: Callable[[], Answer]) -> Answer:
        self.asked.append((queue, verb))
        if queue in self._spoiled:
            name, at = self._spoiled.pop(queue)
            self.gaps.append((name, time.monotonic() - at))
        steps = self.steps[queue, verb]
        if not steps:
            return ask()
        step = steps.popleft()
        answer: Answer = step(ask)
        self._spoiled[queue] = (f"{queue} {verb} {step.__name__}", time.monotonic())
        return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Spoiler

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def ask() -> Answer:
            with closing(http.client.HTTPConnection("127.0.0.1", self.server.daemon.port, timeout=60)) as way:
                headers = {name: value for name, value in self.headers.items() if name == "Idempotency-Key"}
                way.request(self.command, self.path, body, headers)
                got = way.getresponse()
                after = got.getheader("Retry-After")
                return Answer(got.status, got.read(), {"Retry-After": after} if after else {})

        _, _, verb, queue = self.path.partition("?")[0].split("/")[:4]
        try:
            answer = self.server.answer(verb, queue, ask)
        except (OSError, http.client.HTTPException, threading.BrokenBarrierError):
            answer = dropped()
        self.close_connection = answer.cut or answer.dropped
        with suppress(OSError):
            if not answer.dropped:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.sized:
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


def dropped() -> Answer:
    answer = Answer(0, b"")
    answer.dropped = True
    return answer


# Steps. Those that name a status have not asked the daemon.


def drop(ask: Callable[[], Answer]) -> Answer:
    ask()
    return dropped()


def drop_unasked(ask: Callable[[], Answer]) -> Answer:
    return dropped()


def cut(ask: Callable[[], Answer]) -> Answer:
    answer = ask()
    answer.cut = True
    return answer


def cut_unsized(ask: Callable[[], Answer]) -> Answer:
    answer = cut(ask)
    answer.sized = False
    return answer


def html(ask: Callable[[], Answer]) -> Answer:
    return Answer(200, HTML, {"Content-Type": "text/html"})


def html_202(ask: Callable[[], Answer]) -> Answer:
    return Answer(202, HTML)


def html_502(ask: Callable[[], Answer]) -> Answer:
    return Answer(502, HTML)


def unavailable(ask: Callable[[], Answer]) -> Answer:
    return Answer(503, b'{"error":"no","code":"redis_unavailable","outcome":"unknown"}')


def other_json(ask: Callable[[], Answer]) -> Answer:
    return Answer(200, b"[]")


def nothing(ask: Callable[[], Answer]) -> Answer:
    return Answer(200, b"")


def empty_lease(ask: Callable[[], Answer]) -> Answer:
    return Answer(200, b'{"task":{"n":0},"lease":""}')


def no_lease(ask: Callable[[], Answer]) -> Answer:
    return Answer(200, b'{"task":{"n":0}}')


def too_many(ask: Callable[[], Answer]) -> Answer:
    return Answer(429, HTML)


def too_slow(ask: Callable[[], Answer]) -> Answer:
    return Answer(408, b'{"error":"slow","code":"request_timeout"}')


def too_large(ask: Callable[[], Answer]) -> Answer:
    return Answer(413, HTML)


def lease_lost(ask: Callable[[], Answer]) -> Answer:
    ask()
    return Answer(409, b'{"error":"lost","code":"lease_lost"}')


LOST = [
    drop, drop_unasked, cut, cut_unsized, html_502, unavailable, html, nothing, other_json, too_many, too_slow
]  # fmt: skip
# Valid JSON that some parsers refuse, and answers that look like another one's.
ODD_TASKS = [
    b"null", b'""', b'"\\u0000 %s"', b'{"a":"\\ud800"}', b'{"a":1e999}', b"9" * 5000, b"[" * 499 + b"]" * 499,
    b'{"a":1,\n"a":2}', b'{"lease":"x","error":"y","success":true}', b'"' + b"x" * 500_000 + b'"',
]  # fmt: skip


@contextmanager
def at_work(folder: Path, api: str, queues: dict[str, str]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """The workers that can be run here, by name; each prints to ``NAME.out`` and ``NAME.err`` in ``folder``."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for which, queue in queues.items():
            (folder / which).write_text(program(which, api, queue))
            name = folder / f"{which}.mjs"
            (folder / which).rename(name)
            command = [*WORKERS[which][2], str(name)]
            without = "--no-experimental-global-webcrypto"  # as Node 18 is
            if (
                which == "node"
                and not subprocess.run(["node", without, "-e", "0"], capture_output=True).returncode
            ):
                command.insert(1, without)
            home = folder / f"{which}.home"
            home.mkdir()
            env = {**bare_environment(home), "TMPDIR": str(home)}
            with open(folder / f"{which}.out", "wb") as out, open(folder / f"{which}.err", "wb") as err:
                processes[which] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=home, env=env,
                    start_new_session=True,
                )  # fmt: skip
        yield processes
    finally:
        for process in processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def told(folder: Path, which: str) -> str:
    return "".join((folder / f"{which}.{end}").read_text("utf-8", "replace") for end in ("out", "err"))


def worked_on(folder: Path, which: str) -> list[int]:
    lines = (folder / f"{which}.out").read_text("utf-8").splitlines()
    return [json.loads(line)["n"] for line in lines if line.startswith('{"n"')]


def push(daemon: Daemon, queue: str, *tasks: object, query: str = "") -> None:
    body = json.dumps(tasks).encode()
    urllib.request.urlopen(f"{daemon.url}/api/pushTasks/{queue}{query}", body).close()


def look(daemon: Daemon, queue: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{daemon.url}/api/queues/{queue}") as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@pytest.fixture
def queues(q: str) -> dict[str, str]:
    """A queue for each worker that can be run here."""
    able = [which for which, programs in NEEDED.items() if all(map(shutil.which, programs))]
    return {which: f"{q}{which}" for which in able}


@contextmanager
def spoiling(daemon: Daemon) -> Iterator[Spoiler]:
    one = Spoiler(daemon)
    try:
        yield one
    finally:
        one.shutdown()
        one.server_close()


def leaves_no_file(folder: Path, queues: dict[str, str]) -> None:
    assert [str(path) for which in queues for path in (folder / f"{which}.home").rglob("*")] == []


def all_done(daemon: Daemon, queue: str) -> bool:
    try:
        state = look(daemon, queue)
    except urllib.error.HTTPError:
        return False  # Redis is away
    return not (state["ready"] or state["leased"] or state["delayed"])


@pytest.mark.timeout(120)
def test_answers_that_are_spoiled(served: Daemon, queues: dict[str, str], short_dir: Path) -> None:
    with ExitStack() as stack:
        spoiler = stack.enter_context(spoiling(served))
        for which, queue in queues.items():
            short = which == "short"
            spoiler.steps[queue, "popTask"] += [*LOST, empty_lease, no_lease, *([] if short else [html_202])]
            # The short one believes each 200 of an ack; then the task comes once more.
            believed = (cut_unsized, html, nothing, other_json) if short else ()
            spoiler.steps[queue, "ackTask"] += [step for step in LOST if step not in believed]
            spoiler.steps[queue, "ackTask"] += [
                lease_lost,
                *([too_large] if which in ("python", "node") else []),
            ]
            spoiler.steps[queue, "failTask"] += [drop, html_502, too_many]
            push(served, queue, *({"n": n} for n in range(4)), query="?backoff=0.1")
            push(served, queue, {"fail": True}, query="?attempts=1")
            push(served, queue, {"n": 4}, query="?backoff=0.1")
        processes = stack.enter_context(at_work(short_dir, spoiler.api, queues))
        for which, queue in queues.items():

            def through(which: str = which, queue: str = queue) -> bool:
                assert processes[which].poll() is None, told(short_dir, which)
                left = any(spoiler.steps[queue, verb] for verb in ("popTask", "ackTask", "failTask"))
                return not left and all_done(served, queue)

            try:
                wait_until(through, 60, which)
            except AssertionError:
                raise AssertionError(
                    f"{which}: {spoiler.steps} {look(served, queue)} {told(short_dir, which)}"
                ) from None
            numbers = worked_on(short_dir, which)
            assert sorted(set(numbers)) == list(range(5)), told(short_dir, which)
            # What is asked for with the same key is given again, so that nothing has to be done twice.
            assert which == "short" or len(numbers) == 5, (which, numbers)
            assert look(served, queue)["dead"] == 1
        leaves_no_file(short_dir, queues)
    patient = [(name, gap) for name, gap in spoiler.gaps if not name.endswith(("lease_lost", "too_large"))]
    assert len(patient) > 20 * len(queues)
    assert [(name, gap) for name, gap in patient if gap < PAUSE * 0.9] == []


@pytest.mark.timeout(120)
def test_a_task_that_its_language_cannot_read_holds_up_no_worker(
    served: Daemon, queues: dict[str, str], short_dir: Path
) -> None:
    for queue in queues.values():
        for body in ODD_TASKS:
            urllib.request.urlopen(f"{served.url}/api/pushTask/{queue}?attempts=1", body).close()
        push(served, queue, {"n": 0})
    with at_work(short_dir, f"{served.url}/api", queues) as processes:
        for which, queue in queues.items():
            wait_until(lambda queue=queue: all_done(served, queue), 60, which)  # type: ignore[misc]
            assert processes[which].poll() is None
            assert worked_on(short_dir, which) == [0]
            with urllib.request.urlopen(f"{served.url}/api/queues/{queue}/tasks?state=dead") as answer:
                dead = json.load(answer, parse_int=float)["tasks"]
            assert {task["history"][0]["reason"] for task in dead} <= {"failed"}, told(short_dir, which)


@pytest.mark.timeout(120)
def test_restarts_at_each_step(redis_binary: str, queues: dict[str, str], short_dir: Path) -> None:
    redis = RedisServer(redis_binary)
    with ExitStack() as stack:
        stack.callback(redis.remove)
        redis.start("--appendonly", "yes", "--appendfsync", "always")
        daemon = stack.enter_context(running(redis))
        spoiler = stack.enter_context(spoiling(daemon))

        def killed() -> None:
            daemon.kill9()
            daemon.start().redis_ready()

        def stopped() -> None:
            daemon.terminate()
            daemon.start().redis_ready()

        def redis_restarted() -> None:
            redis.kill()
            redis.start()

        # All workers come to each of these, so one restart serves for all.
        def before(restart: Callable[[], None]) -> Any:
            gate = threading.Barrier(len(queues), restart, timeout=60)

            def restarted_before(ask: Callable[[], Answer]) -> Answer:
                gate.wait()
                return ask()

            return restarted_before

        def after(restart: Callable[[], None]) -> Any:
            gate = threading.Barrier(len(queues), restart, timeout=60)

            def restarted_after(ask: Callable[[], Answer]) -> Answer:
                ask()
                gate.wait()
                return dropped()

            return restarted_after

        pops = [after(killed), before(redis_restarted)]
        acks = [before(stopped), after(killed), after(redis_restarted)]
        for queue in queues.values():
            spoiler.steps[queue, "popTask"] += pops
            spoiler.steps[queue, "ackTask"] += acks
            push(daemon, queue, *({"n": n} for n in range(4)), query="?backoff=0.1")
        processes = stack.enter_context(at_work(short_dir, spoiler.api, queues))

        def all_through() -> bool:
            for which in queues:
                assert processes[which].poll() is None, told(short_dir, which)
            left = any(
                spoiler.steps[queue, verb] for queue in queues.values() for verb in ("popTask", "ackTask")
            )
            return not left and all(all_done(daemon, queue) for queue in queues.values())

        wait_until(all_through, 90, "the end of all tasks")
        # And while they wait for a task.
        stopped()
        for queue in queues.values():
            push(daemon, queue, {"n": 4})
        wait_until(all_through, 30, "the last task")
        for which in queues:
            assert sorted(set(worked_on(short_dir, which))) == list(range(5)), told(short_dir, which)
        leaves_no_file(short_dir, queues)


@pytest.mark.parametrize("status", [404, 421])
def test_a_request_that_is_wrong_ends_a_worker(
    served: Daemon, queues: dict[str, str], short_dir: Path, status: int
) -> None:
    sentence = b'{"error":"A sentence to act on.","code":"x"}'
    with ExitStack() as stack:
        spoiler = stack.enter_context(spoiling(served))

        def wrong(ask: Callable[[], Answer]) -> Answer:
            return Answer(status, sentence if status != 404 else HTML)

        for queue in queues.values():
            spoiler.steps[queue, "popTask"] += [wrong] * 3  # a 421 is tried on another connection by fetch
        processes = stack.enter_context(at_work(short_dir, spoiler.api, queues))
        for which, process in processes.items():
            assert process.wait(30) == 1, which
            said = (short_dir / f"{which}.err").read_text()
            assert str(status) in said, said
            assert (sentence if status != 404 else HTML).decode() in said, said


def test_waits_fit_under_a_proxy() -> None:
    for page in ("README.md", "docs/writing-a-worker.md"):
        text = (ROOT / page).read_text("utf-8")
        waits = [int(seconds) for seconds in re.findall(r"wait=(\d+)", text)]
        assert waits
        assert max(waits) < 50, page
    assert "Node 18 or newer" in text

"""The event stream as a connection: revoked, stopped, cut, slow, too many, and through another daemon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import msgpack

from registry.http.auth import ANYONE
from registry.http.events import LINES_PER_PIECE, MAX_LINES, MAX_STREAMS, Viewer
from registry.http.windows import Selection
from registry.queue.audit import Line, Seen
from registry.queue.inventory import Sum
from tests.callers import Callers, guarded
from tests.conftest import StartDaemon
from tests.live import Daemon, RedisServer, short_folder, wait_until
from tests.sse import Events as Reader
from tests.sse import streaming
from tests.talk import ask, fresh, policy, pushed


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    one = Callers(short_folder() / "tokens.json")
    one.add("admin", "admin")
    with guarded(module_redis_process, one):
        yield one


def bearer(callers: Callers, who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {callers.secrets[who]}"}


def add(callers: Callers, who: str, *rights: str, expires: str | None = None) -> None:
    callers.add(who, *rights, expires=expires)
    callers.write()
    wait_until(lambda: callers.ask(who, "GET", "/api/token").status == 200)


def test_revoking_a_token_ends_its_streams_alone(callers: Callers) -> None:
    add(callers, "viewer", "view")
    port = callers.daemon.port
    with (
        streaming(port, **bearer(callers, "viewer")) as one,
        streaming(port, **bearer(callers, "admin")) as other,
    ):
        del callers.entries["viewer"]
        callers.write()
        assert one.next("end")["code"] == "unauthorized"
        assert one.ended() and one.is_over
        policy_change = callers.ask("admin", "PATCH", "/api/queues/a", {"attempts": 2})
        assert policy_change.status == 200 and other.next("audit")["name"] == "admin"
    assert Reader(port, headers=bearer(callers, "viewer")).status == 401


def test_a_token_that_expires_or_loses_its_right_ends_them(callers: Callers) -> None:
    at = datetime.now(UTC) + timedelta(seconds=3)
    add(callers, "short", "view", expires=at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")[:-4] + "Z")
    add(callers, "less", "view")
    port = callers.daemon.port
    with (
        streaming(port, **bearer(callers, "short")) as short,
        streaming(port, **bearer(callers, "less")) as less,
    ):
        callers.entries["less"]["rights"] = ["push a*"]
        callers.write()
        assert less.next("end")["code"] == "forbidden" and less.ended()
        assert short.next("end")["code"] == "unauthorized" and short.ended()


def test_a_session_ends_with_its_token(callers: Callers) -> None:
    add(callers, "page", "view")
    signed_in = callers.ask("page", "POST", "/api/session")
    cookie = signed_in.headers["set-cookie"].partition(";")[0]
    with streaming(callers.daemon.port, Cookie=cookie, Sec_Fetch_Site="same-origin") as stream:
        stream.next("queues")
        del callers.entries["page"]
        callers.write()
        assert stream.next("end")["code"] == "unauthorized" and stream.ended()


def test_a_stop_of_the_daemon_ends_them_at_once(daemon: StartDaemon, module_redis: RedisServer) -> None:
    one = daemon(env={"REDIS_URL": module_redis.url})
    streams = [Reader(one.port, "limit=0") for _ in range(3)]
    for stream in streams:
        stream.next("queues")
    began = time.monotonic()
    code = one.terminate()
    # It waits for nothing: the deadline of a stop is 15 s.
    assert time.monotonic() - began < 8 and code == -15
    for stream in streams:
        assert stream.next("end")["code"] == "shutting_down" and stream.ended() and stream.is_over
    assert "Traceback" not in one.log
    assert one.log.count('"GET /api/events?limit=0 HTTP/1.1" 200') == 3


def test_there_is_a_limit_of_streams(served: Daemon) -> None:
    readers = [Reader(served.port, "limit=0") for _ in range(MAX_STREAMS)]
    refused = ask(served, "GET", "/api/events")
    refused.refused(503, "overloaded", str(MAX_STREAMS))
    assert refused.headers["retry-after"]
    readers[0].close()
    wait_until(lambda: ask(served, "GET", "/api/events?limit=0").status == 200)
    for reader in readers:
        reader.close()


def test_what_happens_at_another_daemon_is_seen_here(pair: tuple[Daemon, Daemon], q: str) -> None:
    here, there = pair
    with streaming(here.port, f"queue={q}") as stream:
        stream.next("queues")
        pushed(there, q)
        assert stream.row(q, ready=1)
        policy(there, q, attempts=7)
        line = stream.next("audit")
        assert line["queue"] == q and line["options"] == {"attempts": 7}
        assert stream.last_id is None or stream.last_id.isdigit()


def test_a_gap_that_is_too_long_is_told(served: Daemon, module_redis: RedisServer, q: str) -> None:
    policy(served, q, attempts=1)
    with streaming(served.port, "limit=0") as stream:
        stream.next("queues")
        policy(served, q, attempts=2)
        known = int(stream.next("audit")["id"])
    for number in range(MAX_LINES + 1):
        module_redis.command(
            "ZADD",
            "{registry}audit",
            known + 1 + number,
            b"%d 1790000000000 0 0 " % (known + 1 + number) + msgpack.encode(Line("pause", done=True)),
        )
    module_redis.command("SET", "{registry}audit:last", known + 1 + MAX_LINES)
    with streaming(served.port, "limit=0", Last_Event_ID=str(known)) as stream:
        assert stream.next("reset")["code"] == "gap"
    with streaming(served.port, "limit=0", Last_Event_ID=str(known + 1)) as stream:
        assert stream.next("audit")["id"] == str(known + 2)
    with streaming(served.port, "limit=0", Last_Event_ID="999999999") as stream:
        assert stream.next("reset")["code"] == "gap"


def test_a_client_that_reads_nothing_is_cut_and_costs_one_piece(
    daemon: StartDaemon, module_redis: RedisServer
) -> None:
    one = daemon(env={"REDIS_URL": module_redis.url})
    prefix = fresh("wide") + "x" * 200
    names = [f"{prefix}{number}" for number in range(150)]
    for name in names:
        pushed(one, name)
    # Its kernel takes little, and nobody reads.
    reader = Reader(one.port, f"limit=200&search={prefix}", receive_buffer=4096)
    before, begin = resident(one.pid), time.monotonic()
    with closing(HTTPConnection("127.0.0.1", one.port, timeout=20)) as line:
        while "GET /api/events" not in one.log:
            assert time.monotonic() < begin + 60, "it was not cut"
            if time.monotonic() < begin + 15:
                # All rows change once a second: some 70 kB.
                line.request("POST", f"/api/pushTask/{names[int(time.monotonic() * 100) % 150]}", b"1")
                line.getresponse().read()
            time.sleep(0.005)
    assert time.monotonic() > begin + 19
    assert resident(one.pid) - before < 20 << 20
    assert ask(one, "GET", "/api/events?limit=0").status == 200
    reader.close()


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


class Slow:
    """A sink whose client does not read."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.is_full = False
        self.pieces: list[bytes] = []

    def wake(self) -> None:
        if not self.is_full and (piece := self.viewer.piece()):
            self.pieces.append(piece)

    def check_again(self) -> None:
        pass

    def end(self, last: bytes) -> None:
        pass


class Still:
    """The events of a daemon in which nothing happens by itself."""

    ended, begun, report = 1, 0, None
    store = SimpleNamespace(now_ms=lambda: 0)
    feed = SimpleNamespace(mark=None)

    def __init__(self) -> None:
        self.inventory = SimpleNamespace(total=Sum(b"*"))

    def add(self, viewer: Viewer) -> Any:
        return SimpleNamespace(rows={}, matching=0)


def test_a_slow_viewer_holds_a_bounded_number_of_lines_and_is_told() -> None:
    still: Any = Still()
    viewer = Viewer(still, Selection(), ANYONE, None)
    sink = Slow(viewer)
    viewer.begin(sink)
    sink.is_full = True
    for number in range(1, 5 * MAX_LINES):
        viewer.add_lines([Seen(number, 0, 0, 0, Line("pause", done=True))])
        assert len(viewer._lines) <= 2 * MAX_LINES
        viewer.wake()
    sink.is_full = False
    sink.pieces.clear()
    viewer.wake()
    first = sink.pieces[0]
    assert first.startswith(b'event: reset\ndata: {"code":"too_slow"')
    assert first.count(b"event: audit") == LINES_PER_PIECE
    assert len(first) < 100_000

"""`GET /api/events`: what changes, as server-sent events.

event    | data                                                                    | when
---------|-------------------------------------------------------------------------|-----------------------------------
hello    | {"version","at","interval","heartbeat","replay"}                        | at the beginning
queues   | {"at","full","totals":{…},"matching","queues":[…],"gone":[name,…]}      | at first with all rows ("full");
         |                                                                         | then what has changed, once a second
findings | {"headline","findings":[…],"count","at"}                                | at first, and when they change
audit    | a line of the audit                                                     | when its action has ended
reset    | {"code","error"}                                                        | lines of the audit were left out
end      | {"code","error"}                                                        | before the registry ends the stream

An ``id:`` says up to which line of the audit all are known; a client sends it back as ``Last-Event-ID``. A line may come twice.

One round a second reads for all viewers of this process. A viewer that does not read has one piece in its connection's buffer at
most, and here a bounded list of lines of the audit; all else is what it has not been told yet of the present state.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

import msgspec
from twisted.internet.defer import inlineCallbacks
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from registry import __version__
from registry.errors import BadOption, Overloaded, Unavailable, stopping
from registry.http.audit import row_of
from registry.http.auth import Access
from registry.http.codec import accepts, dumps, one_of, text, whole
from registry.http.findings import FindingList, Report
from registry.http.request import Options, Request
from registry.http.rows import COUNTED, rfc3339
from registry.http.stream import Sink
from registry.http.windows import Selection, Window, live_row, sum_row
from registry.queue.audit import Seen
from registry.queue.audit_feed import AuditFeed
from registry.queue.inventory import Inventory, Row, Sum
from registry.queue.names import check_name
from registry.queue.queues import Queues

log = Logger()

ROUND_SECONDS, HEARTBEAT_SECONDS = 1.0, 15.0
# Findings are looked for in each second round.
ROUNDS_PER_FINDINGS = 2
# For a new viewer a round begins at once, unless the last one began so short a time ago, s.
SOON_SECONDS = 0.25
# Findings that differ only in how long they have been so are sent again after this time, s.
REPORT_SECONDS = 30.0
# Streams of one process.
MAX_STREAMS = 100
PAGE, MAX_ROWS = 100, 200
# Lines of the audit that are kept for one viewer, and sent again to one who comes back; and sent in one piece.
MAX_LINES, LINES_PER_PIECE = 200, 50
# What viewers see is kept this long after the last of them has left, s: a page that is loaded again finds it.
KEPT_SECONDS = 5.0
HEARTBEAT = b": \n\n"
_json = msgspec.json.Encoder().encode


def _read_names(option: str, value: str) -> tuple[bytes, ...]:
    """A reader of names of queues with ``/`` between them, which no name contains."""
    names = tuple(dict.fromkeys(value.encode().split(b"/")))
    if len(names) > MAX_ROWS:
        raise BadOption(f"The option {option!r} must have at most {MAX_ROWS} names.")
    for name in names:
        check_name(name)
    return names


EVENTS_OPTIONS: Options = {
    "queue": accepts(_read_names, {"type": "string", "minLength": 1}),
    "family": one_of(":"),
    "search": text(0, 255),
    "sort": one_of("name", "oldest", *COUNTED),
    "limit": whole(0, MAX_ROWS),
    "after": whole(0, 10**12 - 1),
}


class Events:
    """The viewers of this process, and the rounds that read for them. ``later``, ``clock``: the reactor's."""

    def __init__(self, queues: Queues, inventory: Inventory, findings: FindingList, clock: Any) -> None:
        self._queues = queues
        self.store = queues.store
        self.inventory = inventory
        self._findings = findings
        self._clock = clock
        self.feed = AuditFeed(queues.store)
        self.viewers: set[Viewer] = set()
        self.report: Report | None = None
        self._reads_all = True  # what it knows is old
        self._was_ready = True
        self._reported_at = 0.0
        self._windows: dict[Selection, Window] = {}
        self._encoded: dict[bytes, tuple[int, bytes]] = {}
        self.begun = self.ended = (
            0  # number of the latest round that has begun, and of the latest that has read the queues
        )
        self._begun_at = 0.0
        self._is_reading = False
        self._soon_call: Any = None
        self._call: LoopingCall | None = None
        self._end_call: Any = None
        inventory.shown = self._shown

    def open(self, request: Request) -> Viewer:
        """A new viewer; raises `Overloaded` where there are too many."""
        if self._queues.draining:
            raise stopping()
        if len(self.viewers) >= MAX_STREAMS:
            raise Overloaded(f"{MAX_STREAMS} event streams are open, as many as one process serves.")
        given = request.options
        selection = Selection(
            given.get("queue"),
            given.get("search", "").encode(),
            given.get("sort", "name"),
            given.get("limit", PAGE),
            "family" in given,
        )
        return Viewer(self, selection, request.access, _last_id(request))

    def end_all(self) -> None:
        """The daemon stops: every stream ends now."""
        for viewer in list(self.viewers):
            viewer.end("shutting_down", "The registry is stopping; connect again in a moment.")
        self._stop()

    # Viewers come and go

    def add(self, viewer: Viewer) -> Window:
        """A viewer has begun to read; its rows."""
        self.viewers.add(viewer)
        if self._end_call is not None:
            self._end_call.cancel()
            self._end_call = None
        if self._call is None:
            self.inventory.watch()
            self._call = LoopingCall(self._round)
            self._call.clock = self._clock
            self._call.start(ROUND_SECONDS, now=True)
        elif not self._is_reading and self._soon_call is None and monotonic() - self._begun_at > SOON_SECONDS:
            self._soon_call = self._clock.callLater(0, self._round_soon)
        window = self._windows.get(viewer.selection)
        if window is None:
            window = self._windows[viewer.selection] = Window(viewer.selection, self.inventory)
        window.viewers += 1
        return window

    def remove(self, viewer: Viewer) -> None:
        """A viewer has left."""
        if viewer not in self.viewers:
            return
        self.viewers.discard(viewer)
        window = self._windows[viewer.selection]
        window.viewers -= 1
        if not window.viewers:
            del self._windows[viewer.selection]
        if not self.viewers and self._call is not None:
            self._end_call = self._clock.callLater(KEPT_SECONDS, self._stop)

    def _stop(self) -> None:
        """Nobody has been there for a while: no more rounds."""
        for call in (self._end_call, self._soon_call):
            if call is not None and call.active():
                call.cancel()
        self._end_call = self._soon_call = None
        if self._call is not None:
            self._call.stop()
            self._call = None
            self.inventory.unwatch()
            self.feed.forget()
            self._encoded.clear()
            self.report, self._reads_all = None, True

    def _shown(self) -> list[bytes]:
        return [name for window in self._windows.values() for name in window.shown()]

    # Rounds

    def _round_soon(self) -> None:
        self._soon_call = None
        self._round()

    @inlineCallbacks
    def _round(self) -> Any:
        if self._is_reading:
            return
        self._is_reading = True
        call, is_ready = self._call, self.store.ready
        self.begun += 1
        number, self._begun_at = self.begun, monotonic()
        try:
            if is_ready:
                yield self.inventory.round(everything=self._reads_all)
                self.ended, self._reads_all = number, False
                for window in self._windows.values():
                    window.update()
                self._pass_on((yield self.feed.read()))
            if self.report is None or is_ready != self._was_ready or number % ROUNDS_PER_FINDINGS == 0:
                self._take_report((yield self._findings.read()))
        except Unavailable:
            # The next round says so, in a finding.
            self._reads_all = True
        except Exception:
            log.failure("a round of the event stream failed")
        finally:
            self._is_reading = False
        self._was_ready = is_ready
        if self._call is not call:
            return
        for viewer in list(self.viewers):
            try:
                viewer.wake()
            except Exception:
                log.failure("an event stream failed")
                viewer.end("internal_error", "Internal error; see the log.")

    def _take_report(self, report: Report) -> None:
        """Keep it, if it says something else, or if its times are old."""
        now, last = monotonic(), self.report
        is_old = now - self._reported_at >= REPORT_SECONDS
        if last is None or report.key != last.key or (is_old and report.rows != last.rows):
            self.report, self._reported_at = report, now

    def _pass_on(self, lines: list[Seen] | None) -> None:
        for viewer in self.viewers:
            if lines is None:
                viewer.reset("began_anew", "The audit has begun anew; read it again.")
            else:
                viewer.add_lines(lines)

    def encoded(self, row: Row | Sum, now_ms: int) -> bytes:
        """A row as JSON; all but the age is made once for each version of the row."""
        known = self._encoded.get(row.name)
        if known is None or known[0] != row.version:
            fields = live_row(row, now_ms)
            del fields["oldest_age"]
            if len(self._encoded) > 20 * MAX_ROWS:
                self._encoded.clear()
            known = self._encoded[row.name] = row.version, _json(fields)[:-1]
        oldest = row.oldest_ms
        age = b"null" if oldest is None else b"%.3f" % max(0.0, (now_ms - oldest) / 1000)
        return b'%b,"oldest_age":%b}' % (known[1], age)


class Viewer:
    """One reader of the stream; a `registry.http.stream.Source`."""

    media = b"text/event-stream"
    # nginx passes each event on at once.
    headers = ((b"X-Accel-Buffering", b"no"),)

    def __init__(self, events: Events, selection: Selection, access: Access, last_id: int | None) -> None:
        self.selection = selection
        self.access = access
        self._events = events
        self._last_id = last_id
        self._sink: Any = None
        self._window: Any = None
        self._first_round = 0
        self._is_greeted = self._has_rows = False
        self._told: dict[bytes, int] = {}  # version of each row that it was told
        self._told_totals: object = None
        self._told_report: Report | None = None
        self._told_id: int | None = None
        self._lines: deque[Seen] = deque()
        self._reset: tuple[str, str] | None = None
        self._is_replaying = False
        self._heard_at = monotonic()

    def begin(self, sink: Sink) -> None:
        self._sink = sink
        # Its first rows are of a round that begins now.
        self._first_round = self._events.begun + 1
        self._window = self._events.add(self)
        if self._last_id is not None:
            self._replay(self._last_id)
        sink.wake()

    def closed(self) -> None:
        self._events.remove(self)

    def refused(self, code: str, sentence: str) -> bytes:
        return event(b"end", dumps({"code": code, "error": sentence}))

    def end(self, code: str, sentence: str) -> None:
        """End the stream from our side."""
        self._sink.end(self.refused(code, sentence))

    def wake(self) -> None:
        """A round has ended."""
        # A session ends at its time, of which nobody tells.
        self._sink.check_again()
        self._sink.wake()

    # The audit

    @inlineCallbacks
    def _replay(self, after: int) -> Any:
        """Send the lines that it has missed."""
        self._is_replaying = True
        try:
            missed = yield self._events.feed.after(after, MAX_LINES)
        except Unavailable:
            missed = None
        self._is_replaying = False
        if missed is None:
            self.reset("gap", "More has happened than is sent again; read the audit.")
        else:
            first = self._lines[0].serial if self._lines else None
            self._lines.extendleft(
                reversed([line for line in missed if first is None or line.serial < first])
            )

    def reset(self, code: str, sentence: str) -> None:
        """Lines of the audit are left out: say so."""
        self._lines.clear()
        self._reset = code, sentence

    def add_lines(self, lines: list[Seen]) -> None:
        """New lines of the audit."""
        self._lines.extend(lines)
        if len(self._lines) > 2 * MAX_LINES:
            self.reset("too_slow", "More has happened than is kept for a slow reader; read the audit.")

    # Pieces

    def piece(self) -> bytes:
        now_ms = self._events.store.now_ms()
        parts = []
        if not self._is_greeted:
            self._is_greeted = True
            parts.append(self._hello(now_ms))
        if self._events.ended >= self._first_round:
            parts.append(self._queues(now_ms))
        report = self._events.report
        if report is not None and report is not self._told_report:
            self._told_report = report
            parts.append(event(b"findings", report.encoded(self.access.reads_payloads)))
        parts.append(self._audit())
        found = b"".join(parts)
        now = monotonic()
        if not found and now - self._heard_at >= HEARTBEAT_SECONDS:
            found = HEARTBEAT
        if found:
            self._heard_at = now
        return found

    def _hello(self, now_ms: int) -> bytes:
        data = {
            "version": __version__,
            "at": rfc3339(now_ms),
            "interval": ROUND_SECONDS,
            "heartbeat": HEARTBEAT_SECONDS,
            "replay": self._last_id is not None,
        }
        return event(b"hello", dumps(data))

    def _queues(self, now_ms: int) -> bytes:
        events, told, rows = self._events, self._told, self._window.rows
        changed = [row for name, row in rows.items() if told.get(name) != row.version]
        gone = [name for name in told if name not in rows]
        total = events.inventory.total
        totals = total.version, self._window.matching
        full = not self._has_rows
        if not full and not changed and not gone and totals == self._told_totals:
            return b""
        self._has_rows, self._told_totals = True, totals
        for row in changed:
            told[row.name] = row.version
        for name in gone:
            del told[name]
        sums = {"queues": total.queues, **sum_row(total, now_ms), "oldest_at": rfc3339(total.oldest_ms)}
        del sums["name"]
        head = {
            "at": rfc3339(now_ms),
            "full": full,
            "totals": sums,
            "matching": self._window.matching,
            "gone": [name.decode("utf-8", "replace") for name in gone],
        }
        listed = b",".join(events.encoded(row, now_ms) for row in changed)
        return event(b"queues", b'%b,"queues":[%b]}' % (_json(head)[:-1], listed))

    def _audit(self) -> bytes:
        if self._is_replaying:
            return b""
        parts = []
        if self._reset is not None:
            code, sentence = self._reset
            self._reset = None
            parts.append(event(b"reset", dumps({"code": code, "error": sentence})))
        payloads = self.access.reads_payloads
        for _ in range(min(len(self._lines), LINES_PER_PIECE)):
            parts.append(event(b"audit", dumps(row_of(self._lines.popleft(), payloads))))
        mark = self._events.feed.mark
        if self._lines and mark is not None:
            mark = min(mark, self._lines[0].serial - 1)
        if mark is not None and mark != self._told_id:
            # An id without data is no event, but the client keeps it.
            self._told_id = mark
            parts.append(b"id: %d\n\n" % mark)
        return b"".join(parts)


def event(name: bytes, data: bytes) -> bytes:
    """One event; ``data`` is JSON, which has no line break."""
    return b"event: %b\ndata: %b\n\n" % (name, data)


def _last_id(request: Request) -> int | None:
    """The last line of the audit that the client knows: from the header, else from the option ``after``."""
    value = request.header(b"last-event-id")
    if value is not None and value.isdigit() and len(value) <= 12:
        return int(value)
    after: int | None = request.options.get("after")
    return after

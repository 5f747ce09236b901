"""The cost of hostile bodies, in bytes of memory and steps of Python. Nothing here is timed."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.errors import RegistryError
from registry.http import json_check, options
from registry.http.json_check import PIECE, SHORT, BadJson, check_json, checking
from registry.http.json_cut import Part
from registry.http.turns import Steps, Turns, at_once
from registry.model import Error, FailOptions
from tests.live import Daemon, wait_until
from tests.talk import Asked

SIZE = 1024 * 1024
LONE = b'"\\ud800"'


def full(piece: bytes, before: bytes = b"[", after: bytes = b"]", between: bytes = b",") -> bytes:
    """A body of ``SIZE`` bytes at most, of this piece as often as it fits in."""
    times = (SIZE - len(before) - len(after)) // (len(piece) + len(between))
    return before + between.join([piece] * times) + after


def failed(body: bytes) -> Steps[Any]:
    return (yield from options.fail_options((yield from options.members(body, "error", "delay", "retry"))))


def extended(body: bytes) -> Steps[Any]:
    return options.extend_options((yield from options.members(body, "progress", "message")))


def listed(body: bytes) -> Steps[Any]:
    return options.payloads(lambda name: None, body)


def lines(body: bytes) -> Steps[Any]:
    return options.payloads(lambda name: b"application/x-ndjson" if name == b"content-type" else None, body)


def schedule(body: bytes) -> Steps[Any]:
    return options.schedule(body)


READ: dict[str, Callable[[bytes], Steps[Any]]] = {
    "push": checking,
    "list": listed,
    "lines": lines,
    "settle": options.settle_entries,
    "fail": failed,
    "extend": extended,
    "release": lambda body: options.no_members(body, "No body."),
    "schedule": schedule,
}

COSTLY = {
    # name: (how it is read, the body)
    "a list of empty lists": ("list", full(b"[]")),
    "a list of floats": ("list", full(b"1.0")),
    "a list of zeros": ("list", full(b"0")),
    "a list of texts, one with half a character": ("list", full(b'""', b"[" + LONE + b",")),
    "a list of empty lists, and half a character": ("list", full(b"[]", b"[" + LONE + b",")),
    "a list of halves of characters": ("list", full(LONE)),
    "a task of empty lists": ("push", full(b"[]")),
    "a task of empty objects, and half a character": ("push", full(b"{}", b"[" + LONE + b",")),
    "a task of halves of characters": ("push", full(b"\\ud800", b'"', b'"', b"")),
    "a task of escaped backslashes": ("push", full(b"\\\\", b'"\\ud800', b'"', b"")),
    "a task of escaped quotes": ("push", full(b'\\"', b'["\\ud800', b'",' + b"[]," * 501 + b"0]", b"")),
    "a task of short texts and lists": ("push", full(b'"ab",[]')),
    "a task that goes to the limit of depth again and again": (
        "push",
        b"[" * 499 + full(b"[]")[1:-1][:-1500].rstrip(b"[,") + b"]" * 499,
    ),
    "a task of deep lists": ("push", full(b"[" * 490 + b"]" * 490)),
    "a task of keys": ("push", full(b'"a":[]', b"{", b"}")),
    "a task that breaks off": ("push", full(b"[]", after=b"")),
    "a text that breaks off": ("push", full(b"\\ud800", b'"', b"", b"")),
    "a task with trailing garbage": ("push", full(b"[]", after=b"]]")),
    "ASCII with one character of four bytes": ("push", full(b"a", b'"', '😀"'.encode(), b"")),
    "one integer": ("push", b"9" * SIZE),
    "line ends": ("lines", b"\n" * SIZE),
    "spaces": ("lines", b" " * SIZE),
    "numbers on lines": ("lines", b"1\n" * (SIZE // 2)),
    "a thousand lines": ("lines", full(b"[" + b"1.0," * 260 + b"1]", b"", b"", b"\n")),
    "a long line": ("lines", full(b"[]") + b"\n"),
    "acks of nothing": ("settle", full(b"[]", b'{"acks":[', b"]}")),
    "acks of numbers": ("settle", full(b"1.0", b'{"acks":[', b"]}")),
    "fails of empty objects": ("settle", full(b"{}", b'{"fails":[', b"]}")),
    "a result of many elements, and half a character": (
        "settle",
        full(b"[]", b'{"acks":[{"lease":"a-b","result":[' + LONE + b",", b"]}]}"),
    ),
    "an ack of many keys": ("settle", full(b'"result":[]', b'{"acks":[{"lease":"a-b",', b"}]}")),
    "a fail of unknown keys": (
        "fail",
        b"{" + b",".join(b'"%07x":1' % n for n in range(SIZE // 12)) + b"}",
    ),
    "a fail of one key again and again": ("fail", full(b'"error":[]', b"{", b"}")),
    "a fail with a long delay": ("fail", b'{"delay":' + b"9" * SIZE + b"}"),
    "a fail with a delay of lists": ("fail", full(b"[]", b'{"delay":[', b"]}")),
    "an error of lists": ("fail", full(b"[]", b'{"error":[', b"]}")),
    "an error whose type is lists": ("fail", full(b"[]", b'{"error":{"type":[', b"]}}")),
    "a long trace": ("fail", full(b"a", b'{"error":{"trace":"', b'"}}', b"")),
    "a trace of backslashes": ("fail", full(b"\\\\", b'{"error":{"trace":"', b'"}}', b"")),
    "a trace of halves of characters": ("fail", full(b"\\ud800", b'{"error":{"trace":"', b'"}}', b"")),
    "a progress of lists": ("extend", full(b"[]", b'{"progress":[', b"]}")),
    "a long message": ("extend", full(b"a", b'{"message":"', '😀"}'.encode(), b"")),
    "a release of lists": ("release", full(b"[]", b'{"a":[', b"]}")),
    "a schedule of lists": ("schedule", full(b"[]", b'{"options":[', b"]}")),
    "a schedule with a task of lists": ("schedule", full(b"[]", b'{"task":[', b"]}")),
    "a schedule of unknown keys": (
        "schedule",
        b"{" + b",".join(b'"%07x":1.5' % n for n in range(SIZE // 14)) + b"}",
    ),
}


def read(kind: str, body: bytes) -> None:
    try:
        at_once(READ[kind](body))
    except RegistryError:
        # A refusal is cheap as well.
        pass


@pytest.mark.parametrize(("kind", "body"), COSTLY.values(), ids=COSTLY)
def test_no_body_takes_more_than_four_times_its_size(kind: str, body: bytes) -> None:
    read(kind, body)
    tracemalloc.start()
    try:
        read(kind, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(body) + peak <= 4 * len(body), f"{1 + peak / len(body):.1f} times"


@pytest.mark.parametrize(("kind", "body"), COSTLY.values(), ids=COSTLY)
def test_no_body_takes_a_step_of_python_for_each_of_its_tokens(kind: str, body: bytes) -> None:
    steps = 0

    def count(frame: Any, event: str, argument: object) -> Any:
        nonlocal steps
        steps += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        read(kind, body)
    finally:
        sys.settrace(before)
    # Bodies like these have from 80,000 to 500,000 tokens.
    assert steps < 40_000, steps


def test_a_batch_is_not_built_past_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    init = Part.__init__

    def counted(self: Part, *given: Any) -> None:
        nonlocal made
        made += 1
        init(self, *given)

    monkeypatch.setattr(Part, "__init__", counted)
    with pytest.raises(RegistryError, match="at least 1001"):
        at_once(listed(full(b"1.0")))
    assert made <= 1002
    with pytest.raises(RegistryError, match="At most 1000"):
        at_once(options.settle_entries(full(b"1.0", b'{"acks":[', b"]}")))
    assert made <= 2 * 1005


# Digits, white space and brackets are read in one piece however many they are: that takes a nanosecond for each.
IN_ONE_PIECE = {"one integer", "a fail with a long delay"}


@pytest.mark.parametrize("name", COSTLY)
def test_the_parser_reads_no_more_than_two_pieces_in_a_step(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be interrupted, and takes up to 7 ns for a byte."""
    kind, body = COSTLY[name]
    lengths = [0]
    skip = json_check._skip

    def counted(text: bytes) -> object:
        lengths[-1] += len(text)
        return skip(text)

    monkeypatch.setattr(json_check, "_skip", counted)
    try:
        for _ in READ[kind](body):
            lengths.append(0)
    except RegistryError:
        pass
    # An error is looked for three times, with bytes around it.
    most = 4 * len(body) if name in IN_ONE_PIECE else 12 * PIECE
    assert max(lengths) <= most
    assert len(lengths) >= len(body) // SHORT or kind == "lines" or sum(lengths) < SHORT


class Reactor:
    """Has one call a turn, and a clock on which a step takes a ms."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []
        self.turns = 0
        self.time = 0.0

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.calls.append((seconds, call))

    def turn(self) -> float:
        """Returns for how long the reactor did other work before it."""
        ((seconds, call),), self.calls = self.calls, []
        self.turns += 1
        call()
        return seconds


def test_the_work_of_all_requests_together_takes_a_few_ms_of_a_turn_in_rotation() -> None:
    reactor = Reactor()
    turns = Turns(reactor.later, lambda: reactor.time)
    done: list[str] = []

    def work(name: str, steps: int) -> Steps[str]:
        for _ in range(steps):
            reactor.time += 0.001
            done.append(name)
            yield
        return name

    a, b, c = (turns.run(work(*one)) for one in (("a", 5), ("b", 3), ("c", 1)))
    pauses = [reactor.turn() for _ in range(2)]
    assert done == [*"abca", *"bab"] + ["a"]
    assert pauses == [0, pytest.approx(0.004)]
    assert (c.result, b.called) == ("c", False)
    while reactor.calls:
        reactor.turn()
    assert (a.result, b.result) == ("a", "b")
    # It rests until there is more to do.
    d = turns.run(work("d", 1))
    while not d.called:
        reactor.turn()
    assert not reactor.calls


def test_an_error_of_one_does_not_end_the_others() -> None:
    reactor = Reactor()
    turns = Turns(reactor.later, lambda: reactor.time)
    errors: list[Any] = []
    turns.run(checking(b"[" * 600)).addErrback(errors.append)
    good = turns.run(checking(b"[]"))
    reactor.turn()
    assert errors[0].check(BadJson) and good.result is None


def test_work_in_turns_ends_when_nobody_waits_for_it_any_more() -> None:
    reactor = Reactor()
    turns = Turns(reactor.later, lambda: reactor.time)

    def work() -> Steps[None]:
        while True:
            reactor.time += 0.001
            yield

    done = turns.run(work()).addErrback(lambda _: None)
    reactor.turn()
    done.cancel()
    reactor.turn()
    assert not reactor.calls


PAYLOADS = [
    b"1",
    b'"\\ud800"',
    b'{"a":"\\\\ud800\\\\","b":["\\ud83d\\ude00","\xc3\xa9"]}',
    b'"\\\\"',
    b"[ 1 , 2 ]",
    b"1e999",
    b"-0",
    b'{"a":1,"a":2}',
    b'"\\uDFFF\\u0041\\ud8"'.replace(b"\\ud8", b"\\ud812"),
]


@pytest.mark.parametrize("padding", [0, 300_000])
def test_payloads_are_cut_as_the_bytes_that_came(padding: int) -> None:
    space = b" " * padding
    body = space + b"[ " + b" ,\n ".join(PAYLOADS) + b" ]" + space
    assert [bytes(part) for part in at_once(listed(body))] == PAYLOADS
    body = b"\n\n" + space + b"\r\n \n".join(PAYLOADS) + space
    assert [bytes(part) for part in at_once(lines(body))] == PAYLOADS
    for part in PAYLOADS:
        check_json(part)


def test_results_are_cut_as_the_bytes_that_came() -> None:
    entries = b",".join(b'{"lease":"a-%d","result": %b }' % (n, raw) for n, raw in enumerate(PAYLOADS))
    acks, fails = at_once(options.settle_entries(b'{"acks":[' + entries + b',"b-1"],"fails":[]}'))
    assert [part and part.whole() for _, part in acks] == [*PAYLOADS, None]
    assert [lease for lease, _ in acks] == [*(b"a-%d" % n for n in range(len(PAYLOADS))), b"b-1"]
    assert fails == []


@pytest.mark.parametrize(
    "acks",
    [
        b'["a-1","b-2"]',
        b'[ "a-1"\t,\r\n"b-2" ]',
        b'["\\u0061-1","b-2"]',
        b'["a-1",{"lease":"b-2"}]',
        b'[{"lease":"a-1"},{"lease":"b-2","result":null}]',
    ],
)
def test_leases_mean_the_same_however_an_array_names_them(acks: bytes) -> None:
    found = at_once(options.settle_entries(b'{"fails":[{"lease":"c-3"}],"acks":%b}' % acks))
    assert found == ([(b"a-1", None), (b"b-2", None)], [(b"c-3", FailOptions())])


@pytest.mark.parametrize(
    "unit",
    ["a", "é", "😀", '\\"', "\\\\", "\\n", "\\u0041", "\\ud83d\\ude00", "\\\\\\n", "\\\\u", "a\\\\\\u00e9"],
)
@pytest.mark.parametrize("lead", ["", "b", "bc", "bcd", "bcde", "bcdef", "\\\\", "\\ud800"])
def test_a_long_trace_keeps_its_end_and_says_so(unit: str, lead: str) -> None:
    """However its escapes lie at the place where it is cut."""
    import json

    text = f'"{lead}{unit * (120_000 // len(unit))}"'
    whole = json.loads(text)
    failed = at_once(READ["fail"](b'{"error":{"trace":%b}}' % text.encode()))
    assert failed.error == Error(trace=options.shortened(whole, -8000), truncated=True)
    told = options.extend_options(at_once(options.members(b'{"message":%b}' % text.encode(), "message")))
    assert told.message == options.shortened(whole, 1000)


# Over a connection

LONG = {
    # name: (path, the piece that is repeated, what comes before and after)
    "acks with a long result": (
        "/api/ackTasks",
        b"[]",
        b'{"acks":[{"lease":"a-b","result":[' + LONE + b",",
        b"0]}]}",
    ),
    "a batch with half a character": ("/api/pushTasks", b"[]", b"[" + LONE + b",", b"0]"),
    "a batch of numbers": ("/api/pushTasks", b"1.0", b"[", b"0]"),
}
each_long = pytest.mark.parametrize(("path", "piece", "before", "after"), LONG.values(), ids=LONG)


def unread(daemon: Daemon, client: socket.socket) -> int:
    """How many bytes of this connection the daemon has not read yet."""
    ours, theirs = (f"0100007F:{port:04X}" for port in (client.getsockname()[1], daemon.port))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    queues = {(row[1], row[2]): [int(size, 16) for size in row[4].split(":")] for row in rows}
    return queues[ours, theirs][0] + queues[theirs, ours][1]


@each_long
def test_others_are_served_while_a_long_body_is_read(
    served: Daemon, q: str, path: str, piece: bytes, before: bytes, after: bytes
) -> None:
    # It is refused at its end, without a look at Redis.
    body, path = before + (piece + b",") * (SIZE // (len(piece) + 1)), f"{path}/{q}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    short = Asked(served, "GET", "/healthz")
    assert not short.waits(10) and short.socket.recv(100_000)
    with socket.create_connection(("127.0.0.1", served.port), 60) as long:
        long.sendall(head.encode() + body[:-1])
        wait_until(lambda: unread(served, long) == 0)
        # When it goes on, the last byte has come first, and then the request of another.
        os.kill(served.pid, signal.SIGSTOP)
        try:
            long.sendall(body[-1:])
            wait_until(lambda: unread(served, long) == 1)
            short.socket.sendall(b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % q.encode())
            wait_until(lambda: unread(served, short.socket) > 1)
        finally:
            os.kill(served.pid, signal.SIGCONT)
        assert short.answer(60).status == 404
        assert b" 400 " in long.recv(100)
    lines = re.compile(rf'"(?:GET|POST) /\S*{q} ')
    wait_until(lambda: len(lines.findall(served.log)) == 2)
    assert lines.findall(served.log) == [f'"GET /{q} ', f'"POST {path} ']


@each_long
def test_the_daemon_grows_by_four_times_a_body_at_most(
    served: Daemon, q: str, path: str, piece: bytes, before: bytes, after: bytes
) -> None:
    def memory(of: str) -> int:
        status = Path(f"/proc/{served.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(of))

    body = before + (piece + b",") * (8 * SIZE // (len(piece) + 1)) + after
    at_first = memory("VmRSS")
    Path(f"/proc/{served.pid}/clear_refs").write_text("5")  # the peak begins anew
    assert Asked(served, "POST", f"{path}/{q}", body).answer(200).status in (200, 400)
    grown = memory("VmHWM") - at_first
    assert grown <= 4 * len(body), f"{grown / len(body):.1f} times"

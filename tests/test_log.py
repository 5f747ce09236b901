"""One event, one line, one priority: values, access lines and events as functions."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel
from twisted.python import log as legacy
from twisted.python.failure import Failure

from registry.child import VARIABLE
from registry.config import Config
from registry.log import (
    AccessLog,
    Observer,
    escape,
    mask,
    process_of,
)
from registry.log_streams import StreamDestination


class Kept:
    """A destination that keeps what it is given."""

    def __init__(self, stamped: bool = False) -> None:
        self.stamped = stamped
        self.process = ""
        self.records: list[tuple[int, list[str]]] = []

    def write(self, priority: int, lines: Iterable[str]) -> None:
        self.records.append((priority, list(lines)))

    def finish(self) -> None:
        """Nothing to do."""


def observed(
    level: str = "debug", secrets: tuple[str, ...] = (), stamped: bool = False
) -> tuple[Kept, Logger]:
    kept = Kept(stamped)
    return kept, Logger(namespace="test", observer=Observer(kept, level, secrets))


def failure(error: Exception) -> Failure:
    try:
        raise error
    except Exception:
        return Failure()


# --- values ---


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("zôneCheck", "zôneCheck"),
        (b"z\xc3\xb4ne", "zône"),
        ('a"b\\c', 'a\\"b\\\\c'),
        ("a\r\nb\tc\x00\x1b[31m", "a\\r\\nb\\tc\\x00\\x1b[31m"),
        ("\ud800", "\\ud800"),
        (b"\xff", "\\xff"),
        ("\u202e\u2028\x85", "\\u202e\\u2028\\x85"),
        ("x" * 201, "x" * 200 + "..."),
    ],
)
def test_escape(value: str | bytes, shown: str) -> None:
    assert escape(value) == shown


@given(st.one_of(st.text(st.characters(), max_size=300), st.binary(max_size=300)))
def test_an_escaped_value_is_one_printable_line_and_cannot_end_its_quotes(value: str | bytes) -> None:
    shown = escape(value)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert re.fullmatch(r'(?:[^"\\]|\\.)*', shown)


def test_mask() -> None:
    assert mask("to redis://:hunter2@h:1/0, again") == "to redis://:***@h:1/0, again"
    assert mask("it said hunter2", ["hunter2"]) == "it said ***"
    assert mask("a cat", ["a"]) == "a cat"


# --- access lines ---


# --- events ---


def test_levels_are_priorities() -> None:
    kept, log = observed()
    for level in ("debug", "info", "warn", "error", "critical"):
        log.emit(LogLevel.lookupByName(level), "said {n}", n=1)
    assert kept.records == [(p, ["test: said 1"]) for p in (7, 6, 4, 3, 2)]


def test_what_is_below_the_level_is_not_logged() -> None:
    kept, log = observed("warn")
    log.debug("no")
    log.info("no")
    log.emit(LogLevel.warn, "yes")
    assert [lines for _, lines in kept.records] == [["test: yes"]]


def test_a_stamped_line_has_time_source_and_level() -> None:
    kept, log = observed(stamped=True)
    log.emit(LogLevel.warn, "text")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[test#warn\] text", kept.records[0][1][0])


def test_values_cannot_break_a_line() -> None:
    kept, log = observed()
    log.info("name {name}", name="a\n<0>forged\x1b[2J\ud800")
    assert kept.records == [(6, ["test: name a\\n<0>forged\\x1b[2J\\ud800"])]


def test_a_very_long_event_is_cut() -> None:
    kept, log = observed()
    log.info("{x}", x="y" * 1_000_000)
    assert len(kept.records[0][1][0]) < 2100


def test_a_traceback_is_one_record_of_marked_lines() -> None:
    kept, log = observed()
    log.failure("It broke", failure(ValueError("two\nlines \x1b[1m")), level=LogLevel.error)
    ((priority, lines),) = kept.records
    assert (priority, lines[0]) == (3, "test: It broke")
    assert len(lines) > 3 and all(text.startswith("\t") and text[1:].isprintable() for text in lines[1:])
    assert any("lines \\x1b[1m" in text for text in lines)


def test_an_endless_traceback_keeps_its_two_ends() -> None:
    kept, log = observed()
    log.failure("It broke", failure(ValueError("\n".join(map(str, range(1000))) + "\nthe end")))
    ((_, lines),) = kept.records
    assert len(lines) < 110
    assert "Traceback" in lines[1] and "the end" in "".join(lines[-5:])


def test_an_exception_that_cannot_be_shown_is_logged_all_the_same() -> None:
    class Shy(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    kept, log = observed()
    log.failure("It broke", failure(Shy()))
    assert kept.records[0][1][0] == "test: It broke"


def test_secrets_are_taken_out_of_messages_and_tracebacks() -> None:
    kept, log = observed(secrets=("hunter2",))
    log.info("to {url}", url="redis://h:other@x")
    log.failure("with hunter2", failure(ValueError("AUTH hunter2 refused")))
    text = str(kept.records)
    assert "hunter2" not in text and "other" not in text and "AUTH *** refused" in text


def test_events_of_the_old_logging() -> None:
    kept = Kept()
    publisher = legacy.LogPublisher(publishPublisher=Observer(kept, "debug"))  # type: ignore[arg-type]
    publisher.msg("hello\nthere", system="-")
    publisher.msg(failure=failure(ValueError("x")), why="Unhandled", isError=1, system="-")
    assert kept.records[0] == (6, ["log_legacy: hello\\nthere"])
    assert kept.records[1][0] == 2 and kept.records[1][1][0] == "log_legacy: Unhandled"
    assert kept.records[1][1][-1].endswith("ValueError: x")


def test_access_log_goes_past_the_events_and_keeps_to_the_level() -> None:
    access = AccessLog()
    kept = Kept()
    access.attach(Observer(kept, "info"))
    access("a line")
    assert kept.records == [(6, ["a line"])]
    access.attach(Observer(kept, "warn"))
    access("another")
    assert len(kept.records) == 1


# --- several processes ---


@pytest.mark.parametrize(
    ("environ", "processes", "text", "access"),
    [
        ({}, 1, "hello", "a line"),
        ({}, 2, "parent: hello", "a line"),
        ({VARIABLE: '{"slot": 2, "bound": []}'}, 1, "process 2: hello", "a line process 2"),
    ],
)
@pytest.mark.parametrize("stamped", [True, False])
def test_a_line_names_the_process_that_wrote_it(
    environ: dict[str, str], processes: int, text: str, access: str, stamped: bool
) -> None:
    kept = Kept(stamped)
    process = process_of(Config(data_dir="/x", processes=processes), environ)
    observer = Observer(kept, "info", process=process)
    log = Logger(namespace="test", observer=observer)
    log.info("hello")
    log.failure("hello", failure(ValueError("x")))
    observer.access("a line")
    (_, [line]), (_, [first, *traceback]), (_, [served]) = kept.records
    assert [line.rpartition("] ")[2], first.rpartition("] ")[2]] == (
        [text, text] if stamped else [f"test: {text}", f"test: {text}"]
    )
    assert traceback and all(one.startswith("\t") for one in traceback)
    assert served == access
    # A parent that reads the line of a child does not put its own name in front of it.
    log.info("process 1: hello", log_process="process 1")
    assert kept.records[-1][1][0].endswith("] process 1: hello" if stamped else "test: process 1: hello")


def test_a_loss_names_the_process_whose_lines_are_lost() -> None:
    written: list[bytes] = []
    full = True

    def write(data: bytes) -> None:
        if full:
            raise BlockingIOError
        written.append(data)

    destination = StreamDestination(write)
    Observer(destination, "info", process="process 1").access("a line")
    full = False
    destination.write(6, ["another"])
    assert b"#warn] process 1: 1 lines lost: the log did not accept them\nanother\n" in written[0]

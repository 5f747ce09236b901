"""What commands print: tables for people, JSON for scripts (``--json``: one object a line), notes on stderr.

Everything goes through `registry.cli.text`, and rich's own markup is off: ``[red]`` in a payload is text.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, TypeVar

import click

from registry.cli.errors import FAILED, PROGRAM
from registry.cli.text import clean, clean_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")
# What takes longer shows a progress bar, s.
PATIENCE = 1.0
# Of what goes to a file or a pipe: nothing is cut there.
UNLIMITED = 100_000
# rich fits this many rows of a table into a terminal within a second.
FITTED = 500


def console_of(stream: IO[str]) -> Console:
    """A console on this stream: colour on a terminal only, and not with NO_COLOR or TERM=dumb."""
    from rich.console import Console

    terminal = is_terminal(stream)
    return Console(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        force_terminal=terminal,
        color_system="auto" if has_styles(stream) else None,
        width=None if terminal else UNLIMITED,
        # Windows aside, the legacy renderer would ask the terminal by other means.
        legacy_windows=False,
    )


def is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def has_styles(stream: IO[str]) -> bool:
    """Whether colours and bold type may go there: to a terminal that knows them, unless NO_COLOR is set."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Output:
    """Prints the results of one command. ``as_json``: for a script."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json

    # For scripts

    def json(self, value: Any) -> None:
        """One line: JSON text (as it came from the server) as it is, anything else encoded."""
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        click.echo(clean_json(text))

    # For people

    def line(self, text: object = "") -> None:
        """A line on stdout."""
        click.echo(clean(text))

    def note(self, text: object) -> None:
        """A line for people on stderr; scripts that read JSON do not get it."""
        if not self.as_json:
            click.echo(clean(text), err=True)

    def warn(self, text: object) -> None:
        """A line on stderr, also with --json."""
        click.echo(f"{PROGRAM}: {clean(text)}", err=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows below their headings. A heading that begins with # is of numbers, one that ends with … may be cut."""
        cells = [[clean("" if value is None else value) for value in row] for row in rows]
        if is_terminal(sys.stdout) and len(cells) <= FITTED:
            # A terminal is narrow: columns without content leave their place to the others.
            filled = [number for number in range(len(columns)) if any(row[number] for row in cells)]
            shown = [[row[number] for number in filled] for row in cells]
            self.draw(table_of([columns[number] for number in filled], shown))
        else:
            for line in lines_of(columns, cells):
                click.echo(line)

    def draw(self, what: Any) -> None:
        """Something of rich's on stdout, without the spaces that fill its lines up."""
        console = console_of(sys.stdout)
        with console.capture() as drawn:
            console.print(what)
        for line in drawn.get().splitlines():
            click.echo(line.rstrip(), color=console.is_terminal)

    def fields(self, pairs: Iterable[tuple[str, Any]]) -> None:
        """One thing, a line for each of its fields; what is None or "" is left out."""
        known = [(name, value) for name, value in pairs if value is not None and value != ""]
        width = max((len(name) for name, _ in known), default=0)
        for name, value in known:
            click.echo(f"{clean(name):<{width}}  {clean(value)}")

    # Before and while something changes

    def confirm(self, question: str, yes: bool) -> None:
        """Ask on a terminal; without one, ``--yes`` must have been given. Ends the command on a no."""
        if yes:
            return
        if not is_terminal(sys.stdin):
            raise click.UsageError(f"{clean(question)} There is no terminal to ask on: add --yes.")
        if not click.confirm(clean(question), err=True):
            click.echo("Nothing was changed.", err=True)
            raise click.exceptions.Exit(FAILED)

    def watch(self, title: str, total: int, work: Callable[[], T], left: Callable[[], int]) -> T:
        """Run ``work`` and return what it returns; if it takes longer than a second, show how much is ``left`` of ``total``.

        ``work`` runs in a thread of its own, ``left`` in this one, twice a second.
        """
        result: list[T] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                result.append(work())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        if thread.is_alive():
            self._show(title, total, thread, left)
        if failure:
            raise failure[0]
        return result[0]

    def _show(self, title: str, total: int, thread: threading.Thread, left: Callable[[], int]) -> None:
        from registry.cli.errors import CliError

        if self.as_json or not is_terminal(sys.stderr):
            thread.join()
            return
        with progress(title, total) as advance:
            while thread.is_alive():
                try:
                    advance(total - left())
                except CliError:
                    pass
                thread.join(0.5)
            advance(total)


class progress:
    """A progress bar on stderr; calling it sets how much is done. ``total`` None: it is not known."""

    def __init__(self, title: str, total: int | None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._bar = Progress(*columns, TimeElapsedColumn(), console=console_of(sys.stderr), transient=True)
        self._task = self._bar.add_task(clean(title), total=total)
        self._total = total

    def __enter__(self) -> progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int) -> None:
        completed = done if self._total is None else min(done, self._total)
        self._bar.update(self._task, completed=max(0, completed))


def lines_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table of clean cells, as wide as they are: for a file, a pipe, or more rows than rich is fast for."""
    from rich.cells import cell_len

    table = [[name.strip("#…") for name in columns], *rows]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    right = [name.startswith("#") for name in columns]
    for row in table:
        cells = []
        for cell, width, to_the_right in zip(row, widths, right, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if to_the_right else cell + space)
        yield "  ".join(cells).rstrip()


def table_of(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """The table of `Output.table`, which fits into the width of a terminal: columns whose heading ends with … are cut."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        cut = name.endswith("…")
        table.add_column(
            name.strip("#…"),
            justify="right" if name.startswith("#") else "left",
            # A column that may wrap gives way to those that must not; its cells then are cut instead.
            no_wrap=not cut,
            overflow="ellipsis" if cut else "fold",
            min_width=8 if cut else None,
        )
    for row in rows:
        table.add_row(*(Text(clean("" if value is None else value), no_wrap=True) for value in row))
    return table


class Live:
    """A part of the screen that is drawn again: ``with Live() as show: show(table)``."""

    def __init__(self) -> None:
        from rich.live import Live as RichLive

        self._live = RichLive(console=console_of(sys.stdout), auto_refresh=False, screen=True)

    def __enter__(self) -> Callable[[Any], None]:
        self._live.start()
        return lambda what: self._live.update(what, refresh=True)

    def __exit__(self, *_: object) -> None:
        self._live.stop()

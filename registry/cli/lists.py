"""Lists of the API, page by page, and how commands print them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from registry.cli.client import Answer
from registry.cli.main import App
from registry.cli.text import clean_json, cut

PAGE = 1000
# Characters of a payload that a table shows.
SHOWN = 80


def each_row(
    app: App, *path: str, key: str, query: Mapping[str, Any] | None = None, limit: int | None = None
) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of the list ``key``, decoded and as they were sent, at most ``limit`` (None: all)."""
    shown = 0
    options = {**(query or {}), "limit": min(limit or PAGE, PAGE)}
    for page in app.client.pages(*path, key=key, query=options):
        for row, text in zip(page.json[key], page.rows(key), strict=True):
            yield row, text
            shown += 1
            if shown == limit:
                return


def print_rows(
    app: App,
    rows: Iterator[tuple[dict[str, Any], str]],
    columns: Sequence[str],
    cells: Callable[[dict[str, Any], str], Sequence[Any]],
    none: str,
) -> None:
    """Print rows: a line of JSON each as they come, or a table; ``none`` says that there are none.

    ``cells``: called with a row and its JSON text.
    """
    if app.out.as_json:
        for _, text in rows:
            app.out.json(text)
        return
    table = [cells(row, text) for row, text in rows]
    if table:
        app.out.table(columns, table)
    else:
        app.out.note(none)


def shown(text: str, name: str) -> str:
    """The beginning of one member of a row, as it was sent, because Python cannot hold every number."""
    return cut(clean_json(Answer(200, text).member(name)), SHOWN)

"""The files that list every setting, made from the one table in registry/config.py.

``python -m tests.settings_files`` writes them anew after a change there; tests/test_config.py compares.
"""

from __future__ import annotations

import textwrap

from registry.config import SETTINGS
from tests.live import ROOT

SAMPLE = ROOT / ".env.sample"
PAGE = ROOT / "docs" / "configuration.md"
_TABLE_HEAD = "| setting | default | meaning |\n|---|---|---|\n"
_SAMPLE_HEAD = """\
# Copy this file to .env and uncomment the lines you change. Each line shows the default.
# The environment overrides this file; the command line overrides both (twistd registry --help).
# An empty value means the default.
"""


def sample() -> str:
    """``.env.sample``."""
    parts = [_SAMPLE_HEAD]
    for one in SETTINGS:
        text = textwrap.wrap(
            f"{one.summary} {one.details}", 116, break_long_words=False, break_on_hyphens=False
        )
        parts.append("".join(f"# {line}\n" for line in text) + f"#{one.name}={one.default}\n")
    return "\n".join(parts)


def table() -> str:
    """The table of docs/configuration.md."""
    rows = []
    for one in SETTINGS:
        default = f"`{one.default}`" if one.default else ""
        text = f"{one.summary} {one.details}".replace("|", "\\|").replace("*", "\\*")
        rows.append(f"| `{one.name}` | {default} | {text} |\n")
    return _TABLE_HEAD + "".join(rows)


def page() -> str:
    """The whole page, with the table that stands in it replaced."""
    before, _, rest = PAGE.read_text("utf-8").partition(_TABLE_HEAD)
    lines = rest.splitlines(keepends=True)
    while lines and lines[0].startswith("|"):
        lines.pop(0)
    return before + table() + "".join(lines)


if __name__ == "__main__":
    SAMPLE.write_text(sample(), "utf-8")
    PAGE.write_text(page(), "utf-8")

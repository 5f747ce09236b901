"""Who sends a request, and what that caller may do."""

from __future__ import annotations

from typing import Final, NamedTuple

# What a route may demand. "open" demands nothing; "push" and "pop" count for the queues in the path.
RIGHTS: Final = ("open", "push", "pop", "view", "operate", "admin")


class Caller(NamedTuple):
    """The sender of a request. ``name``: of its token, "" without one; ``address``: where it comes from, "-" for a unix socket."""

    name: str
    address: str

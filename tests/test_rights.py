"""Who may do what."""

from __future__ import annotations

import pytest

from registry.http.auth import RIGHTS
from registry.http.request import Route
from registry.http.routes import ROUTES


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.verb)
def test_every_route_demands_a_right(route: Route) -> None:
    assert route.right in RIGHTS
    # These two rights count for the queues that the path names.
    if route.right in ("push", "pop"):
        assert "<name" in route.path

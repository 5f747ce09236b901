"""``GET /docs`` in a real Chromium: it has every request of the document, asks no other host, and everybody can read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from registry.http.openapi.document import documented, operation_ids, path_of
from registry.http.openapi.errors import ERRORS
from registry.http.routes import ROUTES
from tests.browser import browser, needs_browser, violations, watched
from tests.callers import Callers, guarded
from tests.live import RedisServer, short_folder

pytestmark = [needs_browser, pytest.mark.timeout(120)]
BASE = "/registry"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def url(module_redis_process: RedisServer) -> Iterator[str]:
    """A daemon with tokens below a base path: the page needs no token."""
    callers = Callers(short_folder() / "tokens.json")
    callers.add("root", "admin")
    with guarded(module_redis_process, callers, BASE_PATH=BASE):
        yield f"http://localhost:{callers.daemon.port}{BASE}"


def test_every_request_and_every_error_is_on_the_page(chromium: Any, url: str) -> None:
    with watched(chromium, url) as one:
        page = one.open("docs")
        requests = [line.strip() for line in page.locator("main .request").all_inner_texts()]
        expected = [
            f"{' or '.join(operation_ids(route)).upper().replace(' OR ', ' or ')} {path_of(route.path)}"
            for route in documented(ROUTES)
        ]
        assert sorted(requests) == sorted(expected)
        assert page.locator("#errors dt code").all_inner_texts() == list(ERRORS)
        # Each command goes to this daemon, below its base path.
        commands = page.locator("main pre").all_inner_texts()
        assert len(commands) >= len(expected)
        assert all(
            text.startswith("curl ") and f"localhost:{url.split(':')[2]}/" in text for text in commands
        )


def test_each_link_leads_somewhere(chromium: Any, url: str) -> None:
    with watched(chromium, url) as one:
        page = one.open("docs")
        missing = page.evaluate(
            "[...document.querySelectorAll('a[href^=\"#\"]')].map((a) => a.hash.slice(1))"
            ".filter((id) => document.getElementById(id) === null)"
        )
        assert missing == []
        assert page.evaluate(
            "new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size"
        ) == page.evaluate("document.querySelectorAll('[id]').length")
        for place in page.evaluate(
            "[...document.querySelectorAll('a:not([href^=\"#\"])')].map((a) => a.href)"
        ):
            assert one.context.request.get(place).status == 200, place


# All of the page is checked each time, which takes long: the colours differ by theme, the layout by width.
@pytest.mark.parametrize(("dark", "phone"), [(False, False), (True, True)], ids=["light-1280", "dark-390"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    chromium: Any, url: str, dark: bool, phone: bool
) -> None:
    with watched(chromium, url, dark=dark, phone=phone) as one:
        page = one.open("docs")
        assert violations(page) == []
        page.set_viewport_size({"width": 320 if phone else 720, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

"""Every page of the dashboard, in both themes, wide and on a phone: axe-core finds nothing, and no page scrolls sideways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.browser import browser, needs_browser, violations, watched
from tests.callers import Callers, guarded
from tests.live import RedisServer, short_folder

pytestmark = [needs_browser, pytest.mark.timeout(180)]
LONG = "a-queue-with-a-rather-long-name." * 7


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def places(module_redis_process: RedisServer) -> Iterator[dict[str, Any]]:
    """A daemon with a task in each state, and the places to look at, each with a selector that is there when it is drawn."""
    one = Callers(short_folder() / "tokens.json")
    one.add("root", "admin")
    with guarded(module_redis_process, one, ENVIRONMENT="staging"):
        ask = one.ask
        ask("root", "PUT", "/api/pushTasks/mail", [{"to": "ann"}] * 5).ok()
        ask("root", "PUT", "/api/pushTask/mail?delay=900&key=k", {"to": "bob"}).ok()
        ask("root", "PUT", f"/api/pushTask/{quote(LONG)}", "x" * 3000).ok()
        pop = "/api/popTask/mail?wait=0&lease=600&worker=mail-"
        first, second, held = (ask("root", "GET", f"{pop}{number}").ok() for number in (1, 2, 3))
        ask("root", "POST", f"/api/ackTask/mail/{first['lease']}", {"sent": True}).ok()
        error = {
            "type": "SMTPAuthError",
            "message": "535 authentication failed",
            "trace": "line 1\\n  line 2",
        }
        ask("root", "POST", f"/api/failTask/mail/{second['lease']}", {"error": error, "retry": False}).ok()
        schedule = {"cron": "0 3 * * *", "queue": "mail", "task": {"kind": "daily"}}
        ask("root", "PUT", "/api/schedules/nightly", schedule).ok()
        ask("root", "POST", "/api/queues/mail/pause").ok()
        task = "#/queues/mail/tasks/"
        yield {
            "callers": one,
            "places": {
                "#/": "tr[data-row]",
                **{f"#/queues/mail?tab={tab}": "h1" for tab in ("leased", "dead")},
                f"#/queues/{quote(LONG)}": "h1",
                **{f"{task}{found['id']}": "h1" for found in (second, held)},
                **{
                    f"#/{page}": "h1"
                    for page in ("dead", "workers", "schedules", "audit", "tokens", "nowhere")
                },
            },
        }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["1280", "390"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    chromium: Any, places: dict[str, Any], dark: bool, phone: bool
) -> None:
    callers = places["callers"]
    found: dict[str, Any] = {}
    with watched(chromium, f"http://localhost:{callers.daemon.port}", dark=dark, phone=phone) as one:
        page = one.open()
        page.wait_for_selector("#token")
        found["sign in"] = violations(page, dark)
        page.fill("#token", callers.secrets["root"])
        page.press("#token", "Enter")
        page.wait_for_selector(".bar")
        for place, selector in places["places"].items():
            page.evaluate("(place) => { location.hash = place }", place)
            page.wait_for_selector(f"main {selector}")
            one.until("document.querySelector('main h1').innerText.trim() !== ''")
            found[place] = violations(page, dark)
            for width in (320, 390) if phone else (720, 1280):
                page.set_viewport_size({"width": width, "height": 844})
                try:
                    one.until("document.documentElement.scrollWidth <= innerWidth", 3)
                except AssertionError:
                    found[place].append(f"it is wider than {width} px")
        page.keyboard.press("?")
        page.wait_for_selector("[role=dialog]")
        found["help"] = violations(page, dark)
    assert {place: wrong for place, wrong in found.items() if wrong} == {}

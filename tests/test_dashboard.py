"""The dashboard in a real Chromium: the frame, signing in, the overview, and a daemon that goes away and comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.browser import browser, needs_browser, watched
from tests.callers import Callers, guarded
from tests.live import RedisServer, short_folder
from tests.redis_proxy import ProxyProcess

pytestmark = [needs_browser, pytest.mark.timeout(120)]
BASE = "/registry"
HOSTILE = "<img src=x onerror=alert(1)>\u202egnp"
SECRET = "payload-of-somebody"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    """A daemon with tokens below a base path, and a few queues."""
    one = Callers(short_folder() / "tokens.json")
    for name, *rights in (
        ("root", "admin"),
        ("ops-laptop", "operate"),
        ("viewer", "view"),
        ("states", "view --no-payloads"),
        ("pusher", "push *"),
    ):
        one.add(name, *rights)
    with guarded(module_redis_process, one, BASE_PATH=BASE, ENVIRONMENT="staging"):
        for queue, many in (("mail", 30), ("thumbnails", 7), ("crawl:a", 2), ("crawl:b", 3)):
            one.ask("root", "PUT", f"{BASE}/api/pushTasks/{queue}", [SECRET] * many).ok()
        one.ask("root", "PUT", f"{BASE}/api/pushTask/{quote(HOSTILE)}", 1).ok()
        yield one


def url(callers: Callers) -> str:
    return f"http://localhost:{callers.daemon.port}{BASE}"


def sign_in(page: Any, callers: Callers, who: str) -> None:
    page.fill("#token", callers.secrets[who])
    page.press("#token", "Enter")
    page.wait_for_selector(".bar")


def test_signing_in_keeps_the_address_and_no_script_reads_the_token(chromium: Any, callers: Callers) -> None:
    with watched(chromium, url(callers)) as one:
        page = one.open("#/?q=crawl&folds=no")
        page.wait_for_selector("text=Sign in")
        page.fill("#token", "rgy_wrong")
        page.press("#token", "Enter")
        page.wait_for_selector("text=This token is not valid")
        sign_in(page, callers, "ops-laptop")
        page.wait_for_selector("text=crawl:b")
        assert page.url.endswith(f"{BASE}/#/?q=crawl&folds=no")
        assert page.inner_text(".account").split() == ["ops-laptop", "operator"]
        assert page.inner_text(".environment") == "staging"
        secret = callers.secrets["ops-laptop"]
        assert secret not in page.evaluate(
            "document.cookie + JSON.stringify(localStorage) + JSON.stringify(sessionStorage)"
        )
        assert secret not in page.content()
        page.click("text=Sign out")
        page.wait_for_selector("#token")
        assert page.url.endswith("#/?q=crawl&folds=no")


@pytest.mark.parametrize(
    ("who", "shown"), [("viewer", "viewer"), ("states", "viewer, no payloads"), ("root", "admin")]
)
def test_the_bar_says_who_looks(chromium: Any, callers: Callers, who: str, shown: str) -> None:
    with watched(chromium, url(callers)) as one:
        page = one.open()
        sign_in(page, callers, who)
        page.wait_for_selector("text=thumbnails")
        assert page.inner_text(".account") == f"{who} {shown}"
        assert SECRET not in page.content()
        buttons = page.locator(".findings button").all_inner_texts()
        assert who == "root" or buttons == []


def test_a_token_without_the_right_to_look_is_told_so(chromium: Any, callers: Callers) -> None:
    with watched(chromium, url(callers)) as one:
        one.expected += ("Failed to load resource: the server responded with a status of 403",)
        page = one.open()
        sign_in(page, callers, "pusher")
        page.wait_for_selector("text=This token may not look.")
        assert "push *" in page.inner_text("main")


def test_the_address_holds_the_state_and_back_undoes_it(chromium: Any, callers: Callers) -> None:
    with watched(chromium, url(callers)) as one:
        page = one.open()
        sign_in(page, callers, "viewer")
        page.wait_for_selector("text=crawl:*")
        # Folded and summed.
        row = page.locator("tr", has_text="crawl:*")
        assert row.locator("td").nth(2).inner_text() == "5"
        page.click("text=crawl:*")
        page.wait_for_selector("text=crawl:a")
        assert page.locator("text=thumbnails").count() == 0
        page.select_option("select[aria-label=Order]", "ready")
        one.until("document.querySelector('.queue-name')?.innerText === 'crawl:b'")
        assert page.url.endswith("#/?q=crawl%3A&folds=no&sort=ready")
        page.reload()
        one.until("document.querySelector('.queue-name')?.innerText === 'crawl:b'")
        page.go_back()
        one.until("!location.hash.includes('sort')")
        page.go_back()
        page.wait_for_selector("text=thumbnails")
        page.click("a:has-text('Workers') >> visible=true")
        one.until("location.hash === '#/workers'")
        page.go_back()
        page.wait_for_selector("text=thumbnails")


def test_names_of_others_are_text(chromium: Any, callers: Callers) -> None:
    with watched(chromium, url(callers)) as one:
        page = one.open("#/?q=onerror")
        sign_in(page, callers, "viewer")
        name = page.locator("td bdi").first
        name.wait_for()
        # Nothing hides in a name: the turn of the writing direction is written out. A long one is cut in its middle.
        assert name.get_attribute("title") == HOSTILE.replace("\u202e", "\\u202e")
        assert name.inner_text() == "<img src=x onerro…ert(1)>\\u202egnp"
        assert page.locator("td img").count() == 0


def test_the_keyboard_leads_everywhere(chromium: Any, callers: Callers) -> None:
    with watched(chromium, url(callers)) as one:
        page = one.open()
        sign_in(page, callers, "viewer")
        page.wait_for_selector("text=thumbnails")
        press = page.keyboard.press
        for key, place in (
            ("d", "#/dead"),
            ("w", "#/workers"),
            ("s", "#/schedules"),
            ("a", "#/audit"),
            ("o", "#/"),
        ):
            press("g")
            press(key)
            one.until(f"location.hash === '{place}'")
        page.wait_for_selector("text=thumbnails")
        press("/")
        page.keyboard.type("thumb")
        page.wait_for_selector("[role=option]")
        press("Enter")
        one.until("location.hash === '#/queues/thumbnails'")
        page.go_back()
        page.wait_for_selector("tr[data-row]")
        press("f")
        page.keyboard.type("mail")
        one.until("document.querySelectorAll('tr[data-row]').length === 1")
        press("Escape")
        press("j")
        assert page.evaluate("document.activeElement.innerText").split()[0] == "mail"
        page.wait_for_selector("text=Order held while you point")
        press("Enter")
        one.until("location.hash === '#/queues/mail'")
        press("?")
        page.wait_for_selector("[role=dialog]")
        # Single letters can be switched off.
        page.click("text=Single letters are shortcuts")
        press("Escape")
        page.wait_for_selector("[role=dialog]", state="detached")
        press("g")
        press("d")
        press("?")
        assert page.url.endswith("#/queues/mail") and page.locator("[role=dialog]").count() == 0


def test_the_order_is_held_while_somebody_points(chromium: Any, callers: Callers) -> None:
    def push(queue: str, many: int) -> None:
        callers.ask("root", "PUT", f"{BASE}/api/pushTasks/{queue}", [1] * many).ok()

    with watched(chromium, url(callers)) as one:
        page = one.open("#/?sort=ready&q=hold-")
        for at in range(3):
            push(f"hold-{at}", 10 - at)
        sign_in(page, callers, "viewer")
        one.until("document.querySelectorAll('tr[data-row]').length === 3")
        names = (
            "[...document.querySelectorAll('tr[data-row] .queue-name')].map((one) => one.innerText).join()"
        )
        assert page.evaluate(names) == "hold-0,hold-1,hold-2"
        page.hover("tr[data-row] >> nth=1")
        page.wait_for_selector("text=Order held while you point")
        push("hold-2", 20)
        push("hold-3", 50)
        # The number changes in its place; the new row waits.
        one.until("document.querySelectorAll('tr[data-row]')[2].innerText.includes('28')")
        page.wait_for_selector("text=1 new, show")
        assert page.evaluate(names) == "hold-0,hold-1,hold-2"
        page.hover("h1")
        one.until(f"({names}) === 'hold-3,hold-2,hold-0,hold-1'")


def test_the_theme_is_chosen_before_anything_is_drawn(chromium: Any, callers: Callers) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    with watched(chromium, url(callers)) as one:
        page = one.open()
        sign_in(page, callers, "viewer")
        assert page.evaluate(ground) == "rgb(250, 251, 251)"
        page.click("button.theme")
        assert page.evaluate(ground) == "rgb(15, 20, 21)"
        page.goto(f"{one.url}/", wait_until="commit")
        one.until("document.documentElement.dataset.theme === 'dark'")
        page.wait_for_selector(".bar")
        page.click("button.theme")
        assert page.evaluate(ground) == "rgb(250, 251, 251)"


def test_a_daemon_that_goes_away_and_comes_back(chromium: Any, callers: Callers) -> None:
    with watched(chromium, url(callers)) as one:
        one.expected += ("Failed to load resource: ",)
        page = one.open()
        sign_in(page, callers, "viewer")
        page.wait_for_selector("tr[data-row]:has-text('thumbnails')")
        page.wait_for_selector(".state:has-text('Live')")
        callers.daemon.terminate()
        page.wait_for_selector(".state.late")
        # What was there stays.
        assert page.locator("tr", has_text="thumbnails").count() == 1
        page.wait_for_selector("text=Last word")
        callers.daemon.start().redis_ready()
        callers.ask("root", "PUT", f"{BASE}/api/pushTask/back-again", 1).ok()
        # It may have come back by itself a moment ago.
        page.evaluate("document.querySelector('.state.late')?.click()")
        page.wait_for_selector(".state:has-text('Live')")
        # Still signed in, and looking.
        page.wait_for_selector("text=back-again")


def test_an_empty_registry_says_what_to_do(chromium: Any, callers: Callers) -> None:
    with watched(chromium, url(callers)) as one:
        zeros = dict.fromkeys(("queues", "ready", "delayed", "leased", "dead", "done", "pollers"), 0)
        told = {
            "at": "2026-01-01T00:00:00Z",
            "full": True,
            "totals": zeros,
            "matching": 0,
            "queues": [],
            "gone": [],
        }
        stream = f"event: queues\ndata: {json.dumps(told)}\n\n"
        one.page.route(
            "**/api/events?*", lambda route: route.fulfill(body=stream, content_type="text/event-stream")
        )
        page = one.open()
        sign_in(page, callers, "viewer")
        page.wait_for_selector("text=No queues yet. Push a task and it appears here.")
        assert f"curl {url(callers)}/api/pushTask/mail" in page.inner_text("main")


def test_a_stream_that_is_cut_comes_back(chromium: Any, callers: Callers) -> None:
    between = ProxyProcess(callers.daemon.port)
    try:
        with watched(chromium, f"http://localhost:{between.port}{BASE}") as one:
            one.expected += ("Failed to load resource: ",)
            page = one.open()
            sign_in(page, callers, "viewer")
            page.wait_for_selector("tr[data-row]:has-text('thumbnails')")
            between.set("refuse")
            page.wait_for_selector(".state.late")
            # What was there stays.
            assert page.locator("tr", has_text="thumbnails").count() == 1
            callers.ask("root", "PUT", f"{BASE}/api/pushTask/meanwhile", 1).ok()
            between.set("pass")
            page.wait_for_selector("text=meanwhile")
            page.wait_for_selector(".state:has-text('Live')")
    finally:
        between.stop()


def test_the_events_of_a_stream_come_in_any_pieces(chromium: Any, callers: Callers) -> None:
    """The bytes of an event may arrive one by one."""
    stream = ": heartbeat\n\nid: 7\n\nevent: queues\ndata: {}\nid: 8\n\ndata: a\r\ndata: b\r\n\r\n"
    run = """async (stream) => {
      const { parser } = await import(`${location.pathname}dashboard/lib/stream.js`);
      const found = [];
      for (const size of [1, 3, 1000]) {
        const one = parser((name, data, id) => found.push([name, data, id ?? null]));
        for (let at = 0; at < stream.length; at += size) one.feed(stream.slice(at, at + size));
      }
      return found;
    }"""
    with watched(chromium, url(callers)) as one:
        page = one.open()
        page.wait_for_selector("#token")
        events = [["message", "", "7"], ["queues", "{}", "8"], ["message", "a\nb", None]]
        assert page.evaluate(run, stream) == events * 3

"""A real Chromium for the tests of the dashboard, driven by playwright. One browser for a module, one `Watched` page for a test.

A watched page remembers what must never happen: errors in the console, reports of the Content-Security-Policy, exceptions,
and requests to another host. `Watched.check` fails the test for each of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.live import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# What the browser says of itself about an answer that the page expects.
EXPECTED = ("Failed to load resource: the server responded with a status of 401",)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium of its own, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright for Python is not installed")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield running
        finally:
            running.close()


class Watched:
    """A page of the dashboard at ``url``, in a context of its own: no cookie and no storage of other tests.

    ``expected``: beginnings of messages of the console that are all right, for tests in which the daemon goes away.
    """

    def __init__(self, running: Any, url: str, dark: bool = False, phone: bool = False, **more: Any) -> None:
        self.url = url
        self.host = urlsplit(url).netloc
        self.expected: tuple[str, ...] = EXPECTED
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.context = running.new_context(
            viewport=PHONE if phone else WIDE,
            color_scheme="dark" if dark else "light",
            has_touch=phone,
            reduced_motion="reduce",
            **more,
        )
        self.context.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => "
            "console.error(`policy: ${event.effectiveDirective} ${event.blockedURI}`))"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if urlsplit(request.url).netloc != self.host and not request.url.startswith("data:"):
            self.foreign.append(request.url)

    def open(self, place: str = "") -> Any:
        """Go to a place of the dashboard, such as ``#/dead``; returns playwright's page."""
        self.page.goto(f"{self.url}/{place}")
        return self.page

    def until(self, expression: str, seconds: float = 15.0) -> Any:
        """Wait until this JavaScript is true. Playwright's own way needs an eval that the page's policy forbids."""
        return wait_until(lambda: self.page.evaluate(expression), seconds, expression)

    def check(self) -> None:
        """Nothing happened that must never happen."""
        wrong = [text for text in self.complaints if not text.startswith(self.expected)]
        assert not wrong, wrong
        assert not self.foreign, self.foreign

    def close(self) -> None:
        self.context.close()


@contextmanager
def watched(running: Any, url: str, **more: Any) -> Iterator[Watched]:
    """A watched page that is checked at the end of a test that has not failed before."""
    one = Watched(running, url, **more)
    try:
        yield one
        one.check()
    finally:
        one.close()


def violations(page: Any, colours_only: bool = False) -> list[str]:
    """What axe-core finds wrong on a page, one line each: the rule, what it means, and the first element.

    ``colours_only``: for another theme of what was checked before, which has the same elements.
    """
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe-playwright-python is not installed")
    # Half a megabyte: once for a document, not for each place of it.
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(axe.AXE_SCRIPT)
    options: dict[str, Any] = {"resultTypes": ["violations"], "iframes": False}
    if colours_only:
        options["runOnly"] = ["color-contrast", "link-in-text-block"]
    found = page.evaluate("(options) => axe.run(options).then((all) => all.violations)", options)
    return [f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}" for one in found]

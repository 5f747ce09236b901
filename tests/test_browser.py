"""What a page of another site can make a real browser send takes no task and pushes none.

The names matter: to a plain-HTTP name that is not a loopback name Chromium sends no ``Sec-Fetch-Site``, and with most
GETs no ``Origin``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import StartDaemon
from tests.live import RedisServer, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

# One attack a line. URL is where its task can be taken; /answer is a path of the page's own site.
ATTACKS = {
    "image": '<img src="URL?wait=0">',
    "image-cors": '<img crossorigin src="URL?wait=0">',
    "image-redirected": '<img src="/answer?redirect=URL?wait=0">',
    "svg": '<svg><image href="URL?wait=0" width="9" height="9"/></svg>',
    "background": """<div style="width:9px;height:9px;background:url('URL?wait=0')"></div>""",
    "style": '<link rel="stylesheet" href="URL?wait=0">',
    "script": '<script src="URL?wait=0"></script>',
    "module": '<script type="module" src="URL?wait=0"></script>',
    "film": '<video src="URL?wait=0"></video>',
    "sound": '<audio src="URL?wait=0"></audio>',
    "object": '<object data="URL?wait=0"></object>',
    "embed": '<embed src="URL?wait=0">',
    "prefetch": '<link rel="prefetch" href="URL?wait=0">',
    "preload": '<link rel="preload" as="image" href="URL?wait=0">',
    "frame": '<iframe src="URL?wait=0"></iframe>',
    "frame-sandboxed": '<iframe sandbox src="URL?wait=0"></iframe>',
    "frame-unreferred": '<iframe referrerpolicy="no-referrer" src="URL?wait=0"></iframe>',
    "navigation": """<iframe src="/answer?page=<script>location='URL?wait=0'</script>"></iframe>""",
    "refresh": """<iframe src="/answer?page=<meta http-equiv=refresh content='0;url=URL?wait=0'>"></iframe>""",
    "window": '<script>setTimeout(() => open("URL?wait=0"), 200)</script>',
    "form-get": '<iframe name="fg"></iframe><form id="g" target="fg" action="URL"></form><script>g.submit()</script>',
    "fetch": '<script>fetch("URL?wait=0").catch(() => 0)</script>',
    "fetch-no-cors": '<script>fetch("URL?wait=0", {mode: "no-cors"}).catch(() => 0)</script>',
    "fetch-forged": '<script>fetch("URL?wait=0", {mode: "no-cors", referrerPolicy: "no-referrer", '
    'headers: {"Sec-Fetch-Site": "none", "User-Agent": "curl/8"}}).catch(() => 0)</script>',
    "xhr": '<script>x = new XMLHttpRequest(); x.open("GET", "URL?wait=0"); x.send()</script>',
    "events": '<script>new EventSource("URL?wait=0")</script>',
    "worker": "<script>new Worker(window.URL.createObjectURL(new Blob([\"importScripts('URL?wait=0')\"])))</script>",
    # POST takes as GET does, and pushes.
    "form": '<iframe name="fp"></iframe><form id="p" target="fp" method="post" enctype="text/plain" action="PUSH">'
    '<input name="1" value=""></form><script>p.submit()</script>',
    "form-redirected": '<iframe name="fr"></iframe><form id="r" target="fr" method="post" enctype="text/plain" '
    'action="/answer?redirect=PUSH"><input name="1" value=""></form><script>r.submit()</script>',
    "form-sandboxed": '<iframe sandbox="allow-scripts allow-forms" srcdoc="<form id=s method=post enctype=text/plain '
    'action=PUSH><input name=1 value=1></form><script>s.submit()</script>"></iframe>',
    "post-no-cors": '<script>fetch("URL?wait=0", {method: "POST", mode: "no-cors", referrerPolicy: "no-referrer"})'
    ".catch(() => 0)</script>",
    "beacon": '<script>navigator.sendBeacon("PUSH", "1")</script>',
    "ping": '<a id="a" href="#here" ping="URL?wait=0">here</a><script>a.click()</script>',
    "report": '<iframe src="/answer?csp=URL?wait=0"></iframe>',
}
# They get no further than to asking whether they may, which is answered with no leave.
ASKED = {
    "put": '<script>fetch("PUSH", {method: "PUT", body: "1"}).catch(() => 0)</script>',
    "head": '<script>fetch("URL?wait=0", {method: "HEAD", mode: "no-cors"}).catch(() => 0)</script>',
}


class Page(BaseHTTPRequestHandler):
    """The foreign site: the page of all attacks at /, and its helpers at /answer."""

    page = ""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        how, _, what = unquote(query).partition("=")
        headers = {"Content-Type": "text/html", "Referrer-Policy": "unsafe-url"}
        body = self.page if path == "/" else ""
        if how == "redirect":
            headers["Location"] = what
        elif how == "csp":
            headers["Content-Security-Policy"] = f"img-src 'none'; report-uri {what}"
            body = '<img src="http://evil.lan/">'
        elif how == "page":
            body = what
        self.send_response(307 if how == "redirect" else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def visited(page: str, folder: Path) -> Iterator[None]:
    """A browser that looks at ``page`` of the site evil.lan."""
    site = ThreadingHTTPServer(("127.0.0.1", 0), type("OnePage", (Page,), {"page": page}))
    threading.Thread(target=site.serve_forever, daemon=True).start()
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    flags += ["disable-background-networking", "disable-component-update", "disable-popup-blocking"]
    flags += [f"user-data-dir={folder}", "host-resolver-rules=MAP * 127.0.0.1"]
    browser = subprocess.Popen(
        [str(CHROMIUM), *(f"--{flag}" for flag in flags), f"http://evil.lan:{site.server_address[1]}/"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
        site.shutdown()
        site.server_close()


@pytest.mark.timeout(150)
@pytest.mark.parametrize("name", ["registry.lan", "localhost"])
def test_a_page_of_another_site_takes_and_pushes_nothing(
    daemon: StartDaemon, redis_server: RedisServer, short_dir: Path, name: str
) -> None:
    one = daemon(env={"ALLOWED_HOSTS": "registry.lan"}, redis=redis_server)
    page = "<!doctype html><title>evil</title>"
    for queue, attack in {**ATTACKS, **ASKED}.items():
        urllib.request.urlopen(f"{one.url}/api/pushTask/{queue}", b"1").close()
        for word, path in (("URL", "popTask"), ("PUSH", "pushTask")):
            attack = re.sub(rf"(?<!\.)\b{word}\b", f"http://{name}:{one.port}/api/{path}/{queue}", attack)
        page += attack + "\n"

    def answered() -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for path, status in re.findall(r'"\w+ /api/\w+/([a-z-]+)[^"]*" (\d+) \S+ "[^"]*" "Mozilla/', one.log):
            found.setdefault(path, set()).add(status)
        return found

    def missing() -> set[str]:
        return {*ATTACKS, *ASKED} - answered().keys()

    with visited(page, short_dir):
        try:
            wait_until(lambda: not missing(), 60, "each attack")
        except AssertionError:
            raise AssertionError(f"the browser did not send {missing()}") from None
    wrong = {queue: found for queue in ATTACKS if (found := answered()[queue]) != {"403"}}
    assert not wrong
    with urllib.request.urlopen(f"{one.url}/api/queues?limit=1000") as answer:
        ready = {queue["name"]: queue["ready"] for queue in json.load(answer)["queues"]}
    assert ready == dict.fromkeys([*ATTACKS, *ASKED], 1)

"""The files of the dashboard: what is served, with which headers, how large they are, and where they come from."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry import __version__
from registry.http.request import Request
from registry.http.static import FOLDER, POLICY, Static
from tests.callers import Callers, guarded
from tests.live import RedisServer, short_folder

VENDOR = FOLDER / "vendor"
BASE = "/registry"
OWN = [path for path in FOLDER.rglob("*") if path.is_file() and VENDOR not in path.parents]
# What the page may weigh in all, compressed.
MAX_BYTES = 150_000


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    one = Callers(short_folder() / "tokens.json")
    one.add("viewer", "view")
    with guarded(module_redis_process, one, BASE_PATH=BASE, ENVIRONMENT="staging 2"):
        yield one


def test_the_libraries_are_those_that_the_record_names() -> None:
    named = {"vendor.json", "preact.LICENSE.txt"}
    for library in json.loads((VENDOR / "vendor.json").read_text("utf-8")):
        assert re.fullmatch(r"\d+\.\d+\.\d+", library["version"])
        assert (VENDOR / library["licence_file"]).stat().st_size > 500
        named.add(library["licence_file"])
        for name, about in library["files"].items():
            named.add(name)
            assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == about["sha256"], name
    assert named == {path.name for path in VENDOR.iterdir()}


def test_the_page_is_small() -> None:
    files = Static().files
    # Licences and the record are there to be read, and no page loads them.
    loaded = {
        path: file
        for path, file in files.items()
        if not path.endswith((".txt", ".json")) and "icon-" not in path
    }
    assert sum(len(file.zipped) for file in loaded.values()) < MAX_BYTES
    for path in OWN:
        assert path.read_text("utf-8").count("\n") <= 500, path


def test_every_file_is_served_and_has_a_type() -> None:
    paths = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert paths == set(Static().files)
    # The routes name a file, or a folder and a file.
    assert max(path.count("/") for path in paths) <= 1


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_file_asks_another_host_or_writes_a_style(path: Path) -> None:
    text = path.read_text("utf-8")
    hosts = set(re.findall(r"(?:https?:)?//([a-z0-9.-]+\.[a-z]{2,})", text))
    assert hosts <= {"www.w3.org"}
    assert not re.search(r"\bstyle\s*=", text), "a style attribute is against the page's own policy"
    assert not re.search(r"innerHTML|document\.write|\beval\(|new Function", text)


def test_each_import_is_there() -> None:
    for path in OWN:
        if path.suffix == ".js":
            for name in re.findall(r"""(?:from|import\()\s*"(\.[^"]+)\"""", path.read_text("utf-8")):
                assert (path.parent / name).is_file(), (path, name)


def test_the_page_is_open_and_holds_no_data(callers: Callers) -> None:
    for who in ("", "viewer"):
        answer = callers.ask(who, "GET", f"{BASE}/")
        assert answer.status == 200 and b'<div id="app"></div>' in answer.body
        headers = answer.headers
        assert headers["content-type"] == "text/html; charset=utf-8"
        assert headers["content-security-policy"] == POLICY.decode()
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
        assert b"staging" not in answer.body
        linked = re.findall(r'(?:href|src)="([^"]+)"', answer.body.decode())
        assert len(linked) > 5
        for name in linked:
            file = callers.ask(who, "GET", f"{BASE}/{name}")
            assert file.status == 200, name
            kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
            assert file.headers["content-type"].startswith(kinds[name.rpartition(".")[2]])
            assert file.headers["content-security-policy"] == POLICY.decode()
    callers.ask("", "GET", "/").refused(401, "unauthorized")
    callers.ask("viewer", "GET", "/").refused(404, "not_found")


def test_a_file_comes_once_and_compressed(callers: Callers) -> None:
    plain = (FOLDER / "app.js").read_bytes()
    path = f"{BASE}/dashboard/app.js"
    tags = set()
    for accepted, zips in (
        ("gzip, deflate, br", True),
        ("br;q=1.0, GZIP;q=0.5", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*;q=0", False),
    ):
        answer = callers.ask("", "GET", path, Accept_Encoding=accepted)
        assert answer.status == 200 and answer.headers["vary"] == "Accept-Encoding"
        assert ("content-encoding" in answer.headers) is zips, accepted
        assert (gzip.decompress(answer.body) if zips else answer.body) == plain
        etag = answer.headers["etag"]
        tags.add(etag)
        for given in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            again = callers.ask("", "GET", path, Accept_Encoding=accepted, If_None_Match=given)
            assert again.status == 304 and again.body == b"" and again.headers["etag"] == etag
            assert "content-length" not in again.headers
        assert callers.ask("", "GET", path, Accept_Encoding=accepted, If_None_Match='"x"').status == 200
    # The two codings are two representations.
    assert len(tags) == 2
    head = callers.ask("", "HEAD", path)
    assert head.body == b"" and head.headers["content-length"] == str(len(plain))


def test_what_is_no_file_of_the_dashboard_is_not_found(callers: Callers) -> None:
    for name in (
        "",
        "x.js",
        "css",
        "css/",
        "css/x.css",
        "..%2Fstatic.py",
        "../static.py",
        "css/..%2F..%2Fstatic.py",
        "%00",
    ):
        answer = callers.ask("viewer", "GET", f"{BASE}/dashboard/{name}")
        assert answer.status == 404 and answer.json["code"] == "not_found", name
    for method in ("POST", "PUT", "DELETE"):
        answer = callers.ask("viewer", method, f"{BASE}/")
        assert answer.status == 405 and answer.headers["allow"] == "GET"


def test_the_page_learns_who_looks(callers: Callers) -> None:
    warnings = callers.ask("viewer", "GET", "/readyz").ok()["warnings"]
    assert callers.ask("viewer", "GET", f"{BASE}/api/me").ok() == {
        "name": "viewer",
        "rights": ["view"],
        "expires": None,
        "may": {"view": True, "operate": False, "admin": False, "push": False},
        "payloads": True,
        "needs_token": True,
        "environment": "staging 2",
        "version": __version__,
        "warnings": warnings,
    }
    callers.ask("", "GET", f"{BASE}/api/me").refused(401, "unauthorized")


def test_a_folder_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>one")
    (tmp_path / "notes.md").write_text("not served")
    static = Static(tmp_path)
    (tmp_path / "index.html").write_text("<p>two")
    request = Request(b"", (), b"", {}, lambda name: None, b"", None, "-")  # type: ignore[arg-type]
    assert static.page(request).body == b"<p>one"
    assert set(static.files) == {"index.html"}


def colours() -> list[dict[str, str]]:
    """The colours of the two themes, by their names."""
    text = (FOLDER / "css" / "tokens.css").read_text("utf-8")
    blocks = re.findall(r"\{([^{}]+)\}", text)
    found = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block)) for block in blocks]
    light, by_system, chosen = [one for one in found if "canvas" in one]
    assert by_system == chosen and light.keys() == chosen.keys()
    return [light, chosen]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", colours(), ids=["light", "dark"])
def test_text_and_signs_can_be_told_from_every_ground(theme: dict[str, str]) -> None:
    for ground in ("canvas", "surface", "sunken"):
        for text in ("ink", "ink-2", "ink-3", "move", "ask", "dead"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for fill in ("control", "move-fill", "ask-fill", "dead-fill", "focus"):
            assert contrast(theme[fill], theme[ground]) >= 3, (fill, ground)
    for text in ("ink", "ink-2", "ask"):
        assert contrast(theme[text], theme["ask-tint"]) >= 4.5
    for text in ("ink", "dead"):
        assert contrast(theme[text], theme["dead-tint"]) >= 4.5
    for text in ("inverse-text", "inverse-2"):
        assert contrast(theme[text], theme["inverse"]) >= 4.5
    assert contrast(theme["canvas"], theme["ink"]) >= 4.5

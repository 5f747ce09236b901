"""The dashboard's pages in a real Chromium: a queue and its tasks, the dead, workers, schedules, the audit, the tokens."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.browser import Watched, browser, needs_browser, watched
from tests.callers import Callers, guarded
from tests.live import RedisServer, short_folder

pytestmark = [needs_browser, pytest.mark.timeout(120)]
# A payload that a parser would change, and a name and an error that would be markup, or turn the line.
ODD = '{"n":1e999,"big":12345678901234567890,"n":2}'
HOSTILE = "<script>alert(1)</script>\u202egnp & co"
SHOWN = HOSTILE.replace("\u202e", "\\u202e")
SECRET = "written-by-somebody"
TRACE = "Traceback (most recent call last):\n" + "\n".join(f'  File "mail.py", line {at}' for at in range(12))
_names = map("q{}".format, itertools.count(1))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def callers(module_redis_process: RedisServer) -> Iterator[Callers]:
    """A daemon with tokens, and an incident: mail-3 fails what mail-1 finishes."""
    one = Callers(short_folder() / "tokens.json")
    rights = {
        "root": ["admin"],
        "ops-laptop": ["operate"],
        "viewer": ["view"],
        "states": ["view --no-payloads"],
        "pusher": ["push *"],
    }
    for name, given in rights.items():
        one.add(name, *given)
    with guarded(module_redis_process, one):
        finish(one, "mail", "mail-1")
        for at in range(4):
            fail(
                one,
                "mail",
                "mail-3",
                {"type": "SMTPAuthError", "message": f"535 for user 'u{at}'", "trace": TRACE},
            )
        fail(one, "mail", "mail-1", {"type": "TemplateError", "message": SECRET})
        put(one, "pushTask/mail?delay=3600&key=k-1", {"secret": SECRET})
        schedule = f'{{"cron":"30 3 * * 1-5","queue":"report","task":{ODD},"timezone":"Europe/Vienna"}}'
        one.ask("root", "PUT", "/api/schedules/nightly", schedule.encode()).ok()
        yield one


@pytest.fixture
def q() -> str:
    return next(_names)


def put(callers: Callers, path: str, body: Any = 1) -> Any:
    return callers.ask("root", "POST", f"/api/{path}", body).ok()


def lease(callers: Callers, queue: str, worker: str) -> str:
    """Pop a task; its lease."""
    found = callers.ask(
        "root", "POST", f"/api/popTask/{quote(queue)}?lease=60&wait=0&worker={quote(worker)}"
    ).ok()
    return str(found["lease"])


def fail(callers: Callers, queue: str, worker: str, error: dict[str, str], payload: Any = 1) -> str:
    """Push a task, and let it fail for good; its id."""
    task: str = put(callers, f"pushTask/{quote(queue)}", payload)["id"]
    put(callers, f"failTask/{quote(queue)}/{lease(callers, queue, worker)}", {"retry": False, "error": error})
    return task


def finish(callers: Callers, queue: str, worker: str) -> None:
    put(callers, f"pushTask/{queue}")
    put(callers, f"ackTask/{queue}/{lease(callers, queue, worker)}", {"sent": True})


def signed_in(one: Watched, callers: Callers, who: str, place: str) -> Any:
    """The page of a signed-in caller."""
    page = one.open(place)
    page.fill("#token", callers.secrets[who])
    page.press("#token", "Enter")
    page.wait_for_selector(".bar")
    return page


def tab(page: Any, state: str) -> str:
    """The text of a tab: the state, and how many tasks are in it."""
    return " ".join(page.inner_text(f'[data-tab="{state}"]').split())


def counts(one: Watched, state: str, many: int) -> None:
    one.until(f"""document.querySelector('[data-tab="{state}"]').innerText.trim().endsWith(' {many}')
        || document.querySelector('[data-tab="{state}"] .count').innerText === '{many}'""")


def test_a_task_is_pushed_fails_is_retried_and_purged_and_each_deed_undone(
    chromium: Any, callers: Callers, q: str
) -> None:
    with watched(chromium, callers.daemon.url) as one:
        page = signed_in(one, callers, "ops-laptop", f"#/queues/{q}")
        page.wait_for_selector("text=Empty: nothing waits, and nobody polls.")
        page.click("text=Push a task")
        page.fill("#push-payload", '{"to": ')
        # The session of the page may not push: the form asks for a token that may.
        page.click("form >> text=Push >> nth=-1")
        page.wait_for_selector("text=Give a token that has the right “push” for this queue.")
        page.fill("#push-token", callers.secrets["pusher"])
        one.expected += ("Failed to load resource: the server responded with a status of 400",)
        page.press("#push-token", "Enter")
        page.wait_for_selector("text=The body is not JSON")
        page.fill("#push-payload", ODD)
        page.press("#push-token", "Enter")
        page.wait_for_selector("text=/Pushed [0-9a-f]{24}/")
        counts(one, "ready", 1)
        page.keyboard.press("Escape")
        # It arrives in the list as it was pushed.
        page.wait_for_selector(f"tbody >> text={ODD[:20]}")
        assert callers.secrets["pusher"] not in page.evaluate(
            "JSON.stringify({...localStorage, ...sessionStorage})"
        )

        put(
            callers,
            f"failTask/{q}/{lease(callers, q, 'w1')}",
            {"retry": False, "error": {"type": "Boom", "message": "no"}},
        )
        counts(one, "dead", 1)
        page.click('[data-tab="dead"]')
        page.wait_for_selector("text=Boom: no")
        page.click("text=Retry 1…")
        page.wait_for_selector("text=Retry 1 dead task?")
        page.click("text=Retry 1 task >> visible=true >> nth=-1")
        page.wait_for_selector("text=Retried 1 task.")
        counts(one, "ready", 1)
        page.click("[data-undo]")
        page.wait_for_selector("text=Undone: 1 task came back.")
        counts(one, "dead", 1)

        page.click("text=Pause >> visible=true")
        page.wait_for_selector("text=It is paused")
        assert callers.ask("root", "GET", f"/api/queues/{q}").ok()["policy"] == {"paused": True}
        page.click("text=Resume")
        page.wait_for_selector("text=/^Pause$/")

        put(callers, f"pushTasks/{q}", [1, 2, 3])
        counts(one, "ready", 3)
        page.click("[aria-label='More for this queue']")
        page.click("text=Purge 3…")
        page.wait_for_selector("text=Purge 3 tasks?")
        # The safe choice has the focus.
        one.until("document.activeElement.innerText === 'Cancel'")
        page.click("text=/^Purge 3 tasks$/")
        page.wait_for_selector("text=Purged 3 tasks.")
        counts(one, "ready", 0)
        page.keyboard.press("z")
        counts(one, "ready", 3)


def test_a_filter_selects_what_a_deed_is_about(chromium: Any, callers: Callers, q: str) -> None:
    ids = [
        fail(callers, q, worker, {"type": kind, "message": "m"})
        for kind, worker in (("A", "w1"), ("A", "w2"), ("B", "w1"))
    ]
    with watched(chromium, callers.daemon.url) as one:
        page = signed_in(one, callers, "ops-laptop", f"#/queues/{q}?tab=dead")
        page.wait_for_selector("tbody tr")
        rows = "document.querySelectorAll('tbody tr').length"
        page.fill("[data-filter]", "error: A")
        page.press("[data-filter]", "Enter")
        page.wait_for_selector("text=2 of 3 match.")
        one.until(f"{rows} === 2")
        # What all say is said once, and the filter stands in the address.
        page.wait_for_selector("text=All say “A: m”.")
        assert page.url.endswith("tab=dead&q=error%3A+A")
        page.fill("[data-filter]", "worker: w2")
        page.press("[data-filter]", "Enter")
        page.wait_for_selector("text=1 of 3 match.")
        page.click("text=Delete 1…")
        page.wait_for_selector("text=Delete 1 dead task?")
        assert "error: A, worker: w2" in page.inner_text(".panel")
        page.click("text=/^Delete 1 task$/")
        page.wait_for_selector("text=Deleted 1 task.")
        page.wait_for_selector("text=No task matches")
        page.click("text=Clear >> nth=-1")
        one.until(f"{rows} === 2")
        page.go_back()
        page.wait_for_selector("text=No task matches")
        page.goto(f"{one.url}/#/queues/{q}?tab=dead&q=id%3A {ids[2]}")
        one.until(f"{rows} === 1")
        page.wait_for_selector(f"tbody >> text={ids[2]}")
        # Those that are selected one by one: the rest stays.
        page.goto(f"{one.url}/#/queues/{q}?tab=dead")
        one.until(f"{rows} === 2")
        page.keyboard.press("j")
        page.keyboard.press("x")
        page.wait_for_selector("text=1 selected.")
        page.keyboard.press("r")
        page.click("text=/^Retry 1 task$/")
        page.wait_for_selector("text=Retried 1 task.")
        counts(one, "dead", 1)


@pytest.mark.parametrize("who", ["viewer", "states"])
def test_what_a_token_may_not_do_or_see_is_not_shown(chromium: Any, callers: Callers, who: str) -> None:
    dead = callers.ask("root", "GET", "/api/queues/mail/tasks?state=dead").ok()["tasks"][0]["id"]
    places = {
        "#/queues/mail": "text=/It moves, but|Every task dies/",
        "#/queues/mail?tab=dead": "tbody tr",
        f"#/queues/mail/tasks/{dead}": "text=Why is it dead?",
        "#/dead": "tbody tr",
        "#/workers": "text=mail-3",
        "#/schedules": "text=every day",
        "#/audit": "text=Set the schedule",
    }
    places["#/schedules"] = "text=Monday to Friday at 03:30"
    texts = []
    with watched(chromium, callers.daemon.url) as one:
        page = signed_in(one, callers, who, "#/queues/mail")
        for place, shown in places.items():
            page.goto(f"{one.url}/{place}")
            page.wait_for_selector(shown)
            if place == "#/dead":
                page.click("tbody tr >> nth=-1")
                page.wait_for_selector(
                    ".group-detail >> text=" + ("Hidden from this token." if who == "states" else SECRET)
                )
            buttons = (
                page.locator("main button:not(.chip)").all_inner_texts()
                + page.locator("main input.tick").all_inner_texts()
            )
            deeds = re.compile("Retry|Delete|Purge|Pause|Run|Quiet|Stop|Cancel|Edit|Push|Undo")
            assert [text for text in buttons if deeds.search(text)] == [], place
            texts.append(page.inner_text("main"))
    assert any(SECRET in text for text in texts) == (who == "viewer")
    assert any("1e999" in text or "535" in text for text in texts) == (who == "viewer")


def test_what_others_wrote_is_text(chromium: Any, callers: Callers) -> None:
    queue, worker = HOSTILE.replace("/", "|"), HOSTILE
    shown = SHOWN.replace("/", "|")
    error = {"type": HOSTILE, "message": f"{HOSTILE}\x00\x1b[31m", "trace": HOSTILE}
    task = fail(callers, queue, worker, error, {"html": HOSTILE})
    # As large as a task may be, and a line break in a string of it.
    large = put(callers, f"pushTask/{quote(queue)}", {"long": "x" * 1_000_000, "end": "the-end"})["id"]
    where = quote(queue, safe="")
    with watched(chromium, callers.daemon.url) as one:
        page = signed_in(one, callers, "ops-laptop", f"#/queues/{where}?tab=dead")
        page.wait_for_selector("tbody tr")
        assert page.inner_text("h1") == shown
        assert page.title().endswith(f"{shown} · registry")
        row = page.inner_text("tbody")
        assert SHOWN[:30] in row and "\u202e" not in row
        page.goto(f"{one.url}/#/queues/{where}/tasks/{task}")
        page.wait_for_selector("text=Attempt 1")
        main = page.inner_text("main")
        assert f"{SHOWN}: {SHOWN}␀␛[31m" in main
        for place in ("#/dead", "#/workers", "#/audit"):
            page.goto(f"{one.url}/{place}")
            page.wait_for_selector("tbody tr")
            assert "\u202e" not in page.inner_text("main")
            assert page.locator("main script, main img").count() == 0
        page.goto(f"{one.url}/#/queues/{where}/tasks/{large}")
        page.wait_for_selector("text=Show all")
        well = "document.querySelector('.rail .well').innerText"
        assert page.evaluate(f"{well}.length") <= 33_000
        assert "1 MB, the first 33 kB are shown." in page.inner_text(".rail")
        page.click("text=Show all")
        one.until(f"{well}.includes('the-end')")


def test_the_incident_by_keyboard_alone(chromium: Any, callers: Callers) -> None:
    """See, open, quiet, retry, undo."""
    with watched(chromium, callers.daemon.url) as one:
        page = signed_in(one, callers, "ops-laptop", "#/")
        press = page.keyboard.press
        press("g")
        press("d")
        page.wait_for_selector("text=SMTPAuthError >> nth=0")
        press("f")
        page.keyboard.type("SMTPAuth")
        one.until("document.querySelectorAll('tbody tr').length === 1")
        press("Escape")
        press("j")
        press("Enter")
        page.wait_for_selector("text=failed on mail-3")
        for _ in range(6):
            press("Tab")
            if page.evaluate("document.activeElement.innerText").startswith("Quiet"):
                break
        press("Enter")
        page.wait_for_selector("text=mail-3 takes no new tasks.")
        workers = callers.ask("root", "GET", "/api/workers").ok()["workers"]
        assert [one["worker"] for one in workers if one["order"] == "quiet"] == ["mail-3"]
        press("r")
        page.wait_for_selector("text=Retry 4 dead tasks?")
        one.until("document.activeElement.innerText === 'Retry 4 tasks'")
        press("Enter")
        page.wait_for_selector("text=Retried 4 tasks.")
        one.until("!document.querySelector('.panel')")
        press("z")
        page.wait_for_selector("text=Undone: 4 tasks came back.")
        assert callers.ask("root", "GET", "/api/queues/mail").ok()["dead"] == 5
        callers.ask("root", "POST", "/api/workers/mail-3", {"order": "run"}).ok()


def test_why_a_task_is_not_running(chromium: Any, callers: Callers, q: str) -> None:
    task = put(callers, f"pushTask/{q}?delay=3600&attempts=3", {"x": 1})["id"]
    with watched(chromium, callers.daemon.url) as one:
        # At the end the page asks for a task that was deleted.
        one.expected += ("Failed to load resource: the server responded with a status of 404",)
        page = signed_in(one, callers, "ops-laptop", f"#/queues/{q}/tasks/{task}")
        page.wait_for_selector("text=Why is it not running?")
        shut = "[...document.querySelectorAll('.gate.shut p:first-child')].map((one) => one.innerText).join()"
        one.until(f"{shut} === 'Not due yet,Nobody polls'")
        callers.ask("root", "PATCH", f"/api/queues/{q}", {"paused": True, "concurrency": 2}).ok()
        one.until(f"{shut} === 'Queue paused,Not due yet,Nobody polls'")
        page.click("text=Run it now")
        one.until(f"{shut} === 'Queue paused,Nobody polls'")
        callers.ask("root", "PATCH", f"/api/queues/{q}", {"paused": None}).ok()
        held = lease(callers, q, "w1")
        page.wait_for_selector("text=w1 has it for")
        put(callers, f"extendTask/{q}/{held}", {"progress": 0.62, "message": "page 31 of 50"})
        page.wait_for_selector("text=62%, page 31 of 50")
        put(callers, f"ackTask/{q}/{held}", {"sent": True})
        page.wait_for_selector('text="sent": true')
        assert page.inner_text("main h2 >> nth=0") == "Result"
        page.click("text=Delete…")
        page.click("text=/^Delete 1 task$/")
        page.wait_for_selector("text=This queue has no such task.")
        page.click("[data-undo]")
        page.wait_for_selector("text=done by w1")


def test_a_policy_is_edited_in_place(chromium: Any, callers: Callers, q: str) -> None:
    callers.ask("root", "PATCH", f"/api/queues/{q}", {"lease": 30, "retention": {"done": 60}}).ok()
    with watched(chromium, callers.daemon.url) as one:
        one.expected += ("Failed to load resource: the server responded with a status of 400",)
        page = signed_in(one, callers, "ops-laptop", f"#/queues/{q}")
        page.click("text=Edit")
        page.fill("#rule-rate", "fast")
        page.press("#rule-rate", "Enter")
        page.wait_for_selector(".policy-form .error >> text=rate")
        page.fill("#rule-rate", "2.5")
        page.fill("#rule-lease", "")
        page.fill("#rule-kept-dead_max", "7")
        page.click("text=Save")
        page.wait_for_selector("text=Changed 3 rules of the policy.")
        page.wait_for_selector("text=2.5 per s")
        policy = callers.ask("root", "GET", f"/api/queues/{q}").ok()["policy"]
        assert policy == {"rate": 2.5, "retention": {"done": 60, "dead_max": 7}}


def test_schedules_run_now_and_are_paused_with_their_task_as_it_was(chromium: Any, callers: Callers) -> None:
    with watched(chromium, callers.daemon.url) as one:
        page = signed_in(one, callers, "ops-laptop", "#/schedules")
        page.wait_for_selector("text=Monday to Friday at 03:30")
        page.click("text=Run now")
        page.wait_for_selector("text=Pushed the task of nightly.")
        page.wait_for_selector("[aria-label='Pause nightly'][aria-disabled]", state="detached")
        page.click("[aria-label='Pause nightly']")
        page.wait_for_selector("text=One schedule, all paused.")
        kept = callers.ask("root", "GET", "/api/schedules/nightly")
        assert ODD in kept.body.decode() and kept.ok()["paused"]
        page.click("[aria-label='Resume nightly']")
        page.wait_for_selector("text=One schedule, none paused.")


def test_the_audit_undoes_and_the_tokens_are_listed(chromium: Any, callers: Callers, q: str) -> None:
    put(callers, f"pushTasks/{q}", [1, 2])
    callers.ask("ops-laptop", "DELETE", f"/api/queues/{q}").ok()
    with watched(chromium, callers.daemon.url) as one:
        page = signed_in(one, callers, "ops-laptop", f"#/audit?q={q}")
        page.wait_for_selector("text=One deed can be undone.")
        row = page.inner_text("tbody tr")
        assert f"Purged {q}" in row and "ops-laptop" in row and "127." in row
        page.click("tbody button >> text=Undo")
        page.wait_for_selector("text=Undone: 2 tasks came back.")
        page.wait_for_selector("text=Undid the purge")
        page.goto(f"{one.url}/#/tokens")
        page.wait_for_selector("text=5 tokens.")
        assert "view --no-payloads" in page.inner_text("tbody")
        assert not any(secret in page.content() for secret in callers.secrets.values())


WORDS = {
    "* * * * *": "every minute",
    "*/5 * * * *": "every 5 minutes",
    "0 * * * *": "every hour",
    "5,35 * * * *": "every hour at :05 and :35",
    "30 3 * * *": "every day at 03:30",
    "0 8 * * 1-5": "Monday to Friday at 08:00",
    "0 8 * * MON": "on Monday at 08:00",
    "0 8,20 * * *": "every day at 08:00 and 20:00",
    "*/15 8-18 * * 1-5": "every 15 minutes from 08:00 to 18:59, Monday to Friday",
    "0 */6 * * *": "every 6 hours at :00",
    "0 0 1 * *": "on the 1st of each month at 00:00",
    "0 0 1,15,22 * *": "on the 1st, 15th and 22nd of each month at 00:00",
    "15 0 11 6 *": "on the 11th in June at 00:15",
    "0 0 1 jan-mar *": "on the 1st in January to March at 00:00",
    "0 0 1 * 0": "on the 1st or on Sunday of each month at 00:00",
    "@daily": "every day at 00:00",
    "0-10/2 3 * * *": None,
    "1-5 */2 * * *": None,
    "nonsense": None,
}
JSON = [
    ODD,
    "[]",
    "{}",
    '"a \\"quoted\\" \\\\"',
    ' [1 , {"a":[ ] ,"b\\u0022":"}"} , null ] ',
    "-1.5e-7",
    '{"deep":' * 60 + "1" + "}" * 60,
]


def test_cron_in_words_and_json_as_text(chromium: Any, callers: Callers) -> None:
    with watched(chromium, callers.daemon.url) as one:
        page = one.open()
        page.wait_for_selector("#token")
        load = "async ([name, call, args]) => (await import(`./dashboard/lib/${name}.js`))[call](...args)"

        def call(name: str, function: str, *args: Any) -> Any:
            return page.evaluate(load, [name, function, list(args)])

        assert {cron: call("cron", "cronInWords", cron) for cron in WORDS} == WORDS
        for text in JSON:
            assert (
                call("json-text", "member", f'{{"a":[{{"task":0}}],"task": {text},"z":"task"}}', "task")
                == text.strip()
            )
            pretty = "".join(part["text"] for part in call("json-text", "indented", text))
            tokens = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s"]')
            assert tokens.findall(pretty) == tokens.findall(text)
        assert call("json-text", "elements", '[1, "a,b", {"c":[2]}]') == ["1", '"a,b"', '{"c":[2]}']
        assert call("json-text", "member", "{}", "task") is None
        parsed = call("filter", "parseFilter", "no space error: E: 5 x worker:w 1")
        assert parsed == {
            "text": "no space",
            "tokens": [{"key": "error", "value": "E: 5 x"}, {"key": "worker", "value": "w 1"}],
        }
        assert call("filter", "writeFilter", parsed) == "no space error: E: 5 x worker: w 1"

"""The sample work of `registryctl demo`: its queues, workers, payloads, errors and schedules.

One incident: version 2.4.1 of the mailer, which only mail-3 runs, fails every mail; nobody polls thumbnails; invoice is paused.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# The schedule that marks a daemon as one that holds the sample work, and what its task is.
MARK, MARKED = "demo", {"demo": "registryctl demo --clean deletes this sample work"}
CRAWLED = tuple(f"crawl:{name}.example" for name in ("alps", "birch", "coast", "delta", "ember", "fjord"))
# Queues of one result each, as the clients of the first program made them.
RESULTS = "queue_results:demo-"
# A name as strange as a name may be.
STRANGE = "Bücher & <i>日本語 100%"
# The limit of webhook.deliver, and how many workers it has.
CONCURRENCY = 8


@dataclass(frozen=True)
class SampleQueue:
    """A queue. ``rate``: pushes a second in the lively part; ``run``: how long a task takes, s."""

    name: str
    rate: float
    run: float
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class SampleWorker:
    """A worker. ``agent``: its User-Agent; ``hands``: tasks at once; ``pause``: after them, s; ``fails``: the share that fails."""

    name: str
    agent: str
    queues: tuple[str, ...]
    hands: int = 1
    pause: float = 0.0
    fails: float = 0.0


QUEUES = (
    SampleQueue("mail", 2.0, 0.25, (("attempts", 5), ("backoff", 20))),
    SampleQueue("thumbnails", 0.8, 0.3),
    SampleQueue("invoice", 0.3, 0.4),
    *(SampleQueue(name, 0.3, 0.6, (("attempts", 2), ("backoff", 1))) for name in CRAWLED),
    SampleQueue("webhook.deliver", 2.6, 3.2, (("backoff", 15),)),
    SampleQueue("image.resize", 0.8, 4.0, (("result", 600),)),
    SampleQueue("search-index", 1.5, 0.15),
    SampleQueue("zoneCheck", 3.0, 0.05, (("result", 300),)),
    SampleQueue("push.android", 1.0, 0.1),
    SampleQueue("push.ios", 0.7, 0.1),
    SampleQueue("report", 0.1, 12.0, (("attempts", 5), ("result", 3600))),
    SampleQueue("sync_crm", 0.2, 0.5),
    SampleQueue(STRANGE, 0.05, 0.5),
)
BY_NAME = {queue.name: queue for queue in QUEUES}
POLICIES: dict[str, dict[str, Any]] = {
    "webhook.deliver": {"concurrency": CONCURRENCY},
    "crawl:fjord.example": {"rate": 5},
    "report": {"max_run": 3600},
    "search-index": {"max_length": 100_000},
}
MAILERS = (
    SampleWorker("mail-1", "mailer/2.4.0", ("mail",), 3, fails=0.02),
    SampleWorker("mail-2", "mailer/2.4.0", ("mail",), 3, fails=0.02),
    SampleWorker("mail-3", "mailer/2.4.1", ("mail",), pause=2.0, fails=1.0),
)
WORKERS = (
    *MAILERS,
    SampleWorker("billing-1", "billing/1.12.3", ("invoice",), 2),
    SampleWorker("billing-2", "billing/1.12.3", ("invoice",), 2),
    SampleWorker("crawl-1", "crawler/0.31", CRAWLED, 3, fails=0.05),
    SampleWorker("crawl-2", "crawler/0.31", CRAWLED, 3, fails=0.05),
    *(
        SampleWorker(f"hook-{n}", "webhooks/3.0.1", ("webhook.deliver",), fails=0.1)
        for n in range(1, 1 + CONCURRENCY)
    ),
    SampleWorker("image-1", "resize/3.0.2", ("image.resize",), 4),
    SampleWorker("image-2", "resize/3.0.2", ("image.resize",), 4),
    SampleWorker("search-1", "indexer/7.2", ("search-index",), 2),
    SampleWorker("zone-1", "zonecheck/5.2", ("zoneCheck",), 2),
    SampleWorker("zone-2", "zonecheck/5.2", ("zoneCheck",), 2),
    SampleWorker("push-a", "curl/8.9.1", ("push.android", "push.ios")),
    SampleWorker("report-1", "report/1.9.0", ("report",), 2),
    SampleWorker("crm", "python-requests/2.32.3", ("sync_crm", STRANGE)),
)
# They polled once, and are heard of no more: one has left its queue alone, one holds tasks.
GONE = SampleWorker("thumb-1", "thumbnailer/1.4.0", ("thumbnails",))
SILENT = SampleWorker("report-2", "report/1.9.0", ("report",), 2)
NAMES = tuple(worker.name for worker in (*WORKERS, GONE, SILENT))

SCHEDULES: dict[str, dict[str, Any]] = {
    "nightly-report": {
        "cron": "30 3 * * *",
        "timezone": "Europe/Vienna",
        "queue": "report",
        "task": {"report": "daily", "accounts": "all"},
        "options": {"attempts": 3, "result": 86_400},
        "missed": "once",
    },
    "weekly-digest": {
        "cron": "0 8 * * 1",
        "timezone": "America/New_York",
        "queue": "mail",
        "task": {"template": "digest", "to": "subscribers"},
    },
    "zone-sweep": {"cron": "15 0 1 * *", "queue": "zoneCheck", "task": {"zone": "*"}},
    "old-sync": {"cron": "0 * * * *", "queue": "sync_crm", "task": {"full": True}, "paused": True},
}
# Only in the lively part: it would change the counts of one that stands still.
EACH_MINUTE = {"reindex": {"cron": "* * * * *", "queue": "search-index", "task": {"reindex": "recent"}}}
MARK_SCHEDULE = {"cron": "0 0 1 1 *", "queue": "report", "task": MARKED, "paused": True}


def is_sample(name: str) -> bool:
    """Whether the demo has a queue of this name."""
    return name in BY_NAME or name.startswith(RESULTS)


# Payloads, by queue. Each takes the random numbers to use, and the number of the task.

_FIRST = (
    "anna",
    "björn",
    "chloé",
    "dmitri",
    "ewa",
    "farid",
    "giulia",
    "håkon",
    "ines",
    "jürgen",
    "李娜",
    "márta",
)


def _mail(dice: random.Random, number: int) -> Any:
    template = dice.choice(("welcome", "receipt", "password-reset", "newsletter"))
    return {
        "to": f"{dice.choice(_FIRST)}.{number}@example.org",
        "template": template,
        "order": 40_000 + number,
    }


def _thumbnail(dice: random.Random, number: int) -> Any:
    return {"image": f"media/2026/11/{dice.getrandbits(32):08x}.jpg", "sizes": [160, 320, 640]}


def _invoice(dice: random.Random, number: int) -> Any:
    return {
        "invoice": f"2026-{number:05d}",
        "customer": dice.randint(1000, 9999),
        "total": f"{dice.uniform(9, 900):.2f}",
    }


def _crawl(dice: random.Random, number: int) -> Any:
    return {
        "url": f"https://shop.example/products/{dice.randint(1, 90_000)}?page={number}",
        "depth": dice.randint(0, 4),
    }


def _hook(dice: random.Random, number: int) -> Any:
    event = dice.choice(("order.paid", "order.shipped", "user.created", "refund.issued"))
    return {"url": f"https://hooks.example/{dice.randint(1, 40)}", "event": event, "sequence": number}


def _image(dice: random.Random, number: int) -> Any:
    return {
        "image": f"{dice.getrandbits(48):012x}.png",
        "width": dice.choice((640, 1280, 2560)),
        "quality": 82,
    }


def _index(dice: random.Random, number: int) -> Any:
    return {"index": "products", "document": dice.randint(1, 500_000), "fields": ["title", "price", "stock"]}


def _zone(dice: random.Random, number: int) -> Any:
    return {
        "zone": f"{dice.choice(('north', 'south', 'east', 'west'))}{number % 97}.example",
        "serial": 2026112800 + number % 100,
    }


def _device(dice: random.Random, number: int) -> Any:
    return {
        "device": f"{dice.getrandbits(64):016x}",
        "title": "Your parcel is on its way 📦",
        "badge": dice.randint(1, 9),
    }


def _report(dice: random.Random, number: int) -> Any:
    return {
        "report": dice.choice(("monthly-statement", "tax-summary", "stock")),
        "account": dice.randint(10_000, 99_999),
    }


def _crm(dice: random.Random, number: int) -> Any:
    return {
        "contact": dice.randint(1, 20_000),
        "name": dice.choice(_FIRST).title(),
        "changed": ["phone", "address"],
    }


PAYLOADS: dict[str, Callable[[random.Random, int], Any]] = {
    "mail": _mail,
    "thumbnails": _thumbnail,
    "invoice": _invoice,
    **dict.fromkeys(CRAWLED, _crawl),
    "webhook.deliver": _hook,
    "image.resize": _image,
    "search-index": _index,
    "zoneCheck": _zone,
    "push.android": _device,
    "push.ios": _device,
    "report": _report,
    "sync_crm": _crm,
    STRANGE: _crm,
}


def payload(queue: str, dice: random.Random, number: int) -> str:
    """The JSON text of a task."""
    return json.dumps(PAYLOADS[queue](dice, number), ensure_ascii=False)


# What a page or a program that shows payloads has to bear; JSON text, because some of it no encoder would write.
UNUSUAL = (
    "null",
    '""',
    "[]",
    "123456789012345678901234567890.000000000000000000000000000001",
    '{"a":1,"a":2,"":{"a":"the same key twice, and an empty one"}}',
    '{"markup":"<script>document.title=\'run\'</script><img src=x onerror=alert(1)>","entity":"&lt;b&gt;"}',
    '{"controls":"\\u001b[31mred\\u001b[0m \\u0007 \\u0000","lines":"one\\ntwo\\r\\n\\tthree"}',
    '{"right to left":"שלום עולם، مرحبا","override":"\u202eevitcelfer\u202c","joined":"👩‍👩‍👧‍👦 e\u0301 Z̸̢̛a̵l̷g̶o"}',
    '{"half a character":"\\ud83d","number":1e999}',
    f'{{"deep":{"[" * 120}1{"]" * 120}}}',
    f'{{"a word without end":"{"Donaudampfschifffahrtsgesellschaft" * 60}"}}',
    json.dumps({"long text": "All work and no play makes a dull queue. " * 2500}),
    json.dumps({"many members": {f"field_{number}": number for number in range(400)}}),
)


def trace_context(dice: random.Random) -> str:
    """A header ``traceparent``."""
    return f"00-{dice.getrandbits(128) | 1:032x}-{dice.getrandbits(64) | 1:016x}-01"


# Errors, by queue: type, message, trace.

_TRACE = """Traceback (most recent call last):
  File "/srv/{program}/worker.py", line 88, in handle
    self.{call}(task)
  File "/srv/{program}/client.py", line {line}, in {call}
    raise {kind}(answer)
{kind}: {message}
"""


def _error(kind: str, message: str, program: str, call: str, line: int) -> dict[str, str]:
    trace = _TRACE.format(program=program, call=call, line=line, kind=kind, message=message)
    return {"type": kind, "message": message, "trace": trace}


def error(queue: str, dice: random.Random) -> dict[str, str]:
    """Why a task of this queue fails on a worker that works."""
    if queue == "mail":
        message = f"451 4.7.1 Greylisted, try again in {dice.randint(60, 300)} seconds"
        return _error("SMTPTemporaryError", message, "mailer", "send", 141)
    if queue == "webhook.deliver":
        message = f"hooks.example answered 503 after {dice.randint(900, 9000)} ms"
        return _error("BadGateway", message, "webhooks", "deliver", 57)
    if queue in CRAWLED:
        message = f'404 for "https://shop.example/products/{dice.randint(1, 90_000)}"'
        return _error("PageNotFound", message, "crawler", "fetch", 23)
    return _error("TimeoutError", f"no answer within {dice.randint(5, 30)} s", "worker", "run", 12)


def broken(dice: random.Random) -> dict[str, str]:
    """Why every mail fails on version 2.4.1."""
    message = f"535 5.7.8 Authentication failed for user 'mailer-{dice.randint(10, 99)}'"
    return _error("SMTPAuthError", message, "mailer", "login", 102)


def result(queue: str, dice: random.Random) -> Any:
    """What a worker returns, None for nothing."""
    if queue == "image.resize":
        return {"bytes": dice.randint(20_000, 900_000), "format": "webp"}
    if queue == "zoneCheck":
        return {"ok": dice.random() > 0.02, "ms": dice.randint(3, 80)}
    if queue == "report":
        return {"pages": dice.randint(2, 60), "file": f"reports/{dice.getrandbits(40):010x}.pdf"}
    return None

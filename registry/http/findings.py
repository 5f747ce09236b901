"""Findings in words, for the page, the command line and the event stream. `registry.queue.findings` finds them."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import inlineCallbacks

from registry.http.auth import Gate
from registry.http.codec import Raw, dumps, json_answer
from registry.http.request import Request
from registry.http.rows import rfc3339
from registry.queue.findings import DEATHS_SECONDS, Finding, Findings, Found
from registry.queue.inventory import Inventory

# A token is a finding from so long before it expires, s, until so long after.
SOON_SECONDS, EXPIRED_SECONDS = 14 * 86_400.0, 7 * 86_400.0
# At most this many are listed.
MAX_FINDINGS = 100
NUMBERS = (
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


class Report:
    """The findings of one moment: ``rows`` for those who may see error texts, ``plain_rows`` for the others."""

    def __init__(self, found: Found, queues: int | None, now_ms: int) -> None:
        self.count = found.total
        self.headline = headline(found, queues, now_ms)
        shown = found.findings[:MAX_FINDINGS]
        self.rows = [row_of(one, now_ms, True) for one in shown]
        self.plain_rows = [row_of(one, now_ms, False) for one in shown]
        self.key = self._key(shown)
        self.at = now_ms
        self._encoded: dict[bool, Raw] = {}

    @staticmethod
    def _key(found: list[Finding]) -> object:
        """What is equal for two reports that say the same, apart from how long it has been so."""
        return [
            (one.code, one.queue, one.count, one.facts.get("worker"), one.facts.get("message"))
            for one in found
        ]

    def encoded(self, payloads: bool) -> Raw:
        """The report as the API shows it; encoded once for all who read it."""
        found = self._encoded.get(payloads)
        if found is None:
            body = {
                "headline": self.headline,
                "findings": self.rows if payloads else self.plain_rows,
                "count": self.count,
                "at": rfc3339(self.at),
            }
            found = self._encoded[payloads] = Raw(dumps(body))
        return found


class FindingList:
    """Puts the findings about tokens and strangers beside the others. ``strangers()``: whether everybody may come in."""

    def __init__(
        self,
        findings: Findings,
        inventory: Inventory,
        gate: Gate,
        strangers: Callable[[], bool],
        now_ms: Callable[[], int],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._findings = findings
        self._inventory = inventory
        self._gate = gate
        self._strangers = strangers
        self._now_ms = now_ms
        self._now = now

    @inlineCallbacks
    def read(self) -> Any:
        """Fires with the `Report`."""
        base: Found = yield self._findings.read()
        found = list(base.findings)
        now = self._now()
        for name, at in self._gate.expiries():
            if now - EXPIRED_SECONDS < at < now + SOON_SECONDS:
                facts = {"token": name, "expires_ms": at * 1000, "expired": at <= now}
                found.append(Finding("token_expires", None, None, None, facts))
        if self._strangers():
            found.append(Finding("anonymous"))
        away = any(one.code == "redis_away" for one in found)
        whole = Found(found, base.total + len(found) - len(base.findings), base.queues)
        return Report(whole, None if away else self._inventory.total.queues, self._now_ms())

    @inlineCallbacks
    def list(self, request: Request) -> Any:
        """What is wrong and does not heal by itself."""
        report = yield self.read()
        return json_answer(200, report.encoded(request.caller.access.reads_payloads))


def headline(all_found: Found, queues: int | None, now_ms: int) -> str:
    """The state of everything in one sentence. ``queues``: how many there are."""
    found, needy = all_found.findings, all_found.queues
    for one in found:
        if one.code == "redis_away":
            seconds = spell((now_ms - (one.since_ms or now_ms)) / 1000)
            return f"Redis has not answered for {seconds}. Pushes are refused, nothing is lost."
    for code, sentence in (
        ("redis_full", "Redis is full. Pushes are refused."),
        ("redis_not_persisting", "Redis cannot write to its disk."),
    ):
        if any(one.code == code for one in found):
            return sentence
    if needy:
        verb = "needs" if needy == 1 else "need"
        of = f" of {queues:,} queues" if queues and queues > 1 else (" queue" if needy == 1 else " queues")
        return f"{_number(needy).capitalize()}{of} {verb} you."
    if any(one.code == "redis_memory" for one in found):
        return "Redis is nearly full."
    if any(one.code == "token_expires" for one in found):
        return "Everything is moving, but a token expires."
    return "Everything is moving."


def _number(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else f"{count:,}"


def spell(seconds: float) -> str:
    """A length of time in words: ``12 s``, ``38 min``, ``5 h``, ``3 days``."""
    whole = max(0, math.floor(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h"
    return f"{whole // 86_400} days"


def tasks(count: int, verb: tuple[str, str] = ("", "")) -> str:
    """``1 task waits``, ``2 tasks wait``."""
    one, many = verb
    return f"{count:,} {'task' if count == 1 else 'tasks'}{' ' if one else ''}{one if count == 1 else many}"


def row_of(finding: Finding, now_ms: int, payloads: bool) -> dict[str, Any]:
    """A finding as the API shows it; without ``payloads`` no text of an error."""
    queue = None if finding.queue is None else finding.queue.decode("utf-8", "replace")
    sentence, detail, action, facts = _WORDS[finding.code](finding, queue or "", now_ms, payloads)
    return {
        "code": finding.code,
        "severity": finding.severity,
        "queue": queue,
        "sentence": sentence,
        "detail": detail,
        "since": rfc3339(finding.since_ms),
        "count": finding.count,
        "action": action,
        "facts": facts,
    }


Words = tuple[str, str, "dict[str, Any] | None", dict[str, Any]]


def _call(label: str, method: str, path: str, body: Any = None, command: str | None = None) -> dict[str, Any]:
    """A request that an operator may want to send next."""
    return {
        "label": label,
        "method": method,
        "path": path,
        "body": body,
        "right": "operate",
        "command": command,
    }


def _look(label: str, path: str, command: str | None = None) -> dict[str, Any]:
    return {"label": label, "method": "GET", "path": path, "body": None, "right": "view", "command": command}


def _path(queue: str) -> str:
    return f"/api/queues/{quote(queue, safe='')}"


def _open_queue(queue: str) -> dict[str, Any]:
    if queue.endswith(":*"):
        return _look("Open queues", f"/api/queues?search={quote(queue[:-1], safe='')}")
    return _look("Open queue", _path(queue), f"registryctl queue {shlex.quote(queue)}")


def _redis_away(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    why = str(finding.facts["why"])
    seconds = spell((now_ms - (finding.since_ms or now_ms)) / 1000)
    detail = f"For {seconds}. Pushes are refused, polls wait, nothing is lost. {why}"
    return "Redis does not answer", detail, None, {"why": why}


def _memory(finding: Finding) -> tuple[str, dict[str, Any]]:
    used, limit = finding.facts["used"], finding.facts["limit"]
    return f"{100 * used / limit:.0f} % of its maxmemory is used.", {"used_bytes": used, "limit_bytes": limit}


def _redis_full(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    text, facts = _memory(finding)
    detail = f"{text} Pushes are refused with redis_full. Let workers take tasks, delete tasks, or raise maxmemory."
    return "Redis is full", detail, None, facts


def _redis_memory(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    text, facts = _memory(finding)
    return "Redis is nearly full", f"{text} At 100 % pushes are refused.", None, facts


def _not_persisting(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    detail = "Tasks that were pushed since then are lost if Redis ends. Is the disk full?"
    return "Redis cannot write to its disk", detail, None, {}


def _nobody_polls(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    facts, count = finding.facts, finding.count or 0
    last, worker, oldest = facts["last_poll_ms"], facts["last_worker"], facts["oldest_ms"]
    wait = f"{tasks(count, ('waits', 'wait'))}, the oldest for {spell((now_ms - oldest) / 1000)}."
    if last is None:
        poll = "No poll of it is known."
    else:
        ago = spell((now_ms - last) / 1000)
        poll = f"The last poll was {ago} ago{', by ' + worker if worker else ''}."
    shown = {
        "queues": facts["queues"],
        "oldest_at": rfc3339(oldest),
        "last_polled_at": rfc3339(last),
        "last_polled_by": worker,
    }
    return f"Nobody polls {queue}", f"{wait} {poll}", _open_queue(queue), shown


def _deaths(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    facts, count = finding.facts, finding.count or 0
    sentence = f"Tasks of {queue} die"
    minutes = round(DEATHS_SECONDS / 60)
    detail = f"{count:,} have died in {minutes} min"
    shown: dict[str, Any] = {"seconds": DEATHS_SECONDS, "queues": facts["queues"]}
    if "reason" not in facts:
        return sentence, f"{detail}.", _look("See the errors", "/api/dead", "registryctl dead"), shown
    cause = ""
    if facts["reason"] != "failed":
        cause = f": {facts['reason'].replace('_', ' ')}"
    elif payloads and (facts["type"] or facts["message"]):
        cause = f" with {facts['type'] or _short(facts['message'])}"
    worker = facts["worker"]
    same = facts["of"] == facts["read"]
    where = ""
    if worker:
        where = f", {'every one' if facts['all'] and same else 'most'} of them on {worker}"
    elif len(facts["workers"]) > 1:
        where = f", on {len(facts['workers'])} workers"
    if not same:
        cause = f"{', most' if 2 * facts['of'] > facts['read'] else ', many'}{cause}" if cause else ""
    example_queue, example_id = facts["example"]
    shown.update(
        reason=facts["reason"],
        type=facts["type"] if payloads else None,
        message=facts["message"] if payloads else None,
        worker=worker,
        workers=facts["workers"],
        points_to=facts["points_to"],
        example={"queue": example_queue.decode("utf-8", "replace"), "id": example_id.decode()},
    )
    if not payloads:
        shown["hidden"] = True
    if worker and facts["points_to"] == "worker":
        action = _call(
            f"Quiet {worker}",
            "POST",
            f"/api/workers/{quote(worker, safe='')}",
            {"order": "quiet"},
            f"registryctl worker {shlex.quote(worker)} quiet",
        )
    else:
        family = queue.endswith(":*")
        path = "/api/dead" if family else f"/api/dead?queue={quote(queue, safe='')}"
        action = _look(
            "See the error", path, "registryctl dead" + ("" if family else f" --queue {shlex.quote(queue)}")
        )
    return sentence, f"{detail}{cause}{where}.", action, shown


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _paused(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    facts, count = finding.facts, finding.count or 0
    by = facts["by"] or facts["address"]
    length = "" if finding.since_ms is None else f"for {spell((now_ms - finding.since_ms) / 1000)}"
    until = rfc3339(facts["until_ms"])
    parts = [length, f"by {by}" if by else "", f"until {until}" if until else ""]
    begin = ", ".join(part for part in parts if part)
    pollers = facts["pollers"]
    ready = (
        f"; {pollers:,} {'poller is' if pollers == 1 else 'pollers are'} ready to take them"
        if pollers
        else ""
    )
    detail = f"{begin[:1].upper()}{begin[1:]}{'. ' if begin else ''}{tasks(count, ('waits', 'wait'))}{ready}."
    shown = {
        "queues": facts["queues"],
        "pollers": pollers,
        "by": facts["by"],
        "address": facts["address"],
        "until": until,
    }
    action = (
        _open_queue(queue)
        if queue.endswith(":*")
        else _call(
            f"Resume {queue}",
            "POST",
            f"{_path(queue)}/pause?seconds=0",
            None,
            f"registryctl queue {shlex.quote(queue)} resume",
        )
    )
    return f"{queue} is paused", detail, action, shown


def _token_expires(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    facts = finding.facts
    name, at = facts["token"], facts["expires_ms"]
    shown = {"token": name, "expires": rfc3339(at)}
    advice = "Create another one, and revoke this one then."
    command = "registryctl token create NAME --right RIGHT"
    action = {
        "label": "Create another",
        "method": None,
        "path": None,
        "body": None,
        "right": None,
        "command": command,
    }
    if facts["expired"]:
        ago = spell((now_ms - at) / 1000)
        return f"The token {name} has expired", f"{ago} ago. {advice}", action, shown
    return f"The token {name} expires", f"In {spell((at - now_ms) / 1000)}. {advice}", action, shown


def _anonymous(finding: Finding, queue: str, now_ms: int, payloads: bool) -> Words:
    command = "registryctl token create NAME --right admin"
    action = {
        "label": "Create a token",
        "method": None,
        "path": None,
        "body": None,
        "right": None,
        "command": command,
    }
    detail = "ALLOW_ANONYMOUS is set and there are no tokens: whoever reaches the daemon may read, change and delete everything."
    return "Everybody in the network may do everything", detail, action, {}


_WORDS: dict[str, Callable[[Finding, str, int, bool], Words]] = {
    "redis_away": _redis_away,
    "redis_full": _redis_full,
    "redis_not_persisting": _not_persisting,
    "redis_memory": _redis_memory,
    "nobody_polls": _nobody_polls,
    "deaths": _deaths,
    "paused": _paused,
    "token_expires": _token_expires,
    "anonymous": _anonymous,
}

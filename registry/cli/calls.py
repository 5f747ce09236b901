"""The HTTP client of `registryctl work`: many requests at once, each repeated until the registry answers it.

An answer counts only if it comes from the registry: a 200 has the expected member; anything else is a proxy's page, or a
truncated answer. Repeating these requests is harmless: a pop has an Idempotency-Key, and the others name a lease.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from registry.cli.client import Answer, refusal, settings_of, unix_path, unreachable
from registry.cli.errors import CliError
from registry.cli.profiles import Target

CONNECT_SECONDS = 5.0
# How long an answer may take, in addition to the wait of the request, s.
ANSWER_SECONDS = 15.0
# The pauses between repeats if the registry names none, s; and the longest pause that it may ask for.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0
LONGEST_RETRY_AFTER = 60.0
# Statuses that mean "try again", not "wrong request".
LATER = (408, 425, 429)


@dataclass(eq=False)
class NoAnswer(Exception):
    """The registry did not answer, or asked for a repetition after some seconds (None: it named no time)."""

    sentence: str
    pause: float | None = None


class Calls:
    """Requests to one server. ``note``: takes a sentence when the server stops answering, and when it answers again."""

    def __init__(self, target: Target, note: Callable[[str], None]) -> None:
        self.target = target
        self._note = note
        self._away = False
        unix = unix_path(target)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=60)
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=unix, trust_env=False, limits=limits) if unix else None,
            limits=limits,
            **settings_of(target),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def until_answered(
        self,
        path: str,
        query: Mapping[str, Any],
        must: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
        patience: float = float("inf"),
    ) -> Answer:
        """POST until the registry answers with 200 or 202 and the member ``must``.

        ``wait``: how long the server may keep the request, s. ``patience``: after this many seconds without an answer, and for
        what the registry refuses, it raises a `CliError`.
        """
        loop = asyncio.get_running_loop()
        end, pause = loop.time() + patience, FIRST_PAUSE
        while True:
            try:
                answer = await self._once(path, query, must, body, headers or {}, wait)
            except NoAnswer as failure:
                if not self._away:
                    self._away = True
                    self._note(f"{failure.sentence} Trying again.")
                later = pause * random.uniform(0.75, 1.25) if failure.pause is None else failure.pause
                if loop.time() + later > end:
                    raise failure.__cause__ or CliError(failure.sentence) from None
                await asyncio.sleep(later)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if self._away:
                    self._away = False
                    self._note(f"{self.target.url} answers again.")
                return answer

    async def _once(
        self,
        path: str,
        query: Mapping[str, Any],
        must: str,
        body: bytes,
        headers: Mapping[str, str],
        wait: float,
    ) -> Answer:
        try:
            response = await self._http.post(
                path,
                params=query or None,
                content=body,
                headers=headers,
                timeout=httpx2.Timeout(ANSWER_SECONDS + wait, connect=CONNECT_SECONDS),
            )
        except (httpx2.TransportError, httpx2.DecodingError, ssl.SSLError, OSError) as error:
            problem = unreachable(self.target, error)
            raise NoAnswer(problem.message) from problem
        status, text = response.status_code, response.content.decode("utf-8", "backslashreplace")
        if status in (200, 202):
            answer = Answer(status, text, response.headers)
            if status == 202 or _has(text, must):
                return answer
            raise NoAnswer(f"{self.target.url} answered something that is not the registry's.")
        refused = refusal(self.target, status, response.headers, text)
        if status >= 500 or status in LATER or not refused.code:
            raise NoAnswer(refused.message, _retry_after(response.headers)) from refused
        raise refused


def _has(text: str, member: str) -> bool:
    # It is not parsed twice: an answer that was cut does not end like this, and no proxy's page begins so.
    return f'"{member}":' in text and text.rstrip().endswith("}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return min(max(float(headers.get("retry-after", "")), FIRST_PAUSE), LONGEST_RETRY_AFTER)
    except ValueError:
        return None


def encoded(value: Any) -> bytes:
    """A body of JSON in ASCII, so that halves of characters pass."""
    return json.dumps(value).encode()

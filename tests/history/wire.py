"""A small HTTP client that tells apart what a caller must tell apart: answered, refused, or nobody knows.

One connection, one request at a time. A request may hang up in the middle, reading on or not.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Longer than any answer may take: a call to Redis has 3 s, and a put-off answer some more on a busy machine.
PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class HangUp:
    """Go ``after`` so many seconds without an answer; ``blind``: reset the connection, else say goodbye and read on."""

    after: float
    blind: bool


@dataclass(slots=True)
class Reply:
    """``status`` is 0 when no whole answer came; ``hung_up`` when we went before it came."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    hung_up: bool = False
    silent: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outcome(self) -> Any:
        if self.status == 200:
            return "ok"
        if self.status == 202:
            return "nothing"
        if 400 <= self.status < 500:
            return "refused"
        if self.status == 503 and self.json.get("outcome") == "not_applied":
            return "refused"
        return "unknown"


class Connection:
    """A connection to one daemon, made when it is needed and kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
        hang_up: HangUp | None = None,
    ) -> Reply:
        """One request. Only a connection that could not be made at all is ``ConnectionError``: nothing was sent."""
        if self._writer is None or self._writer.is_closing() or self._reader is None or self._reader.at_eof():
            self.close()
            try:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError as error:
                raise ConnectionError("nobody listens") from error
        assert self._reader is not None
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self._port}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        whole = False
        try:
            self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            reply = await self._read(self._reader, patience, hang_up)
            whole = not reply.hung_up and bool(reply.status) and reply.headers.get("connection") != "close"
            return reply
        except (OSError, EOFError):
            return Reply(0)
        finally:
            # Also when the task is cancelled: half an answer must not be taken for the next request's.
            if not whole:
                self.close()

    async def _read(self, reader: asyncio.StreamReader, patience: float, hang_up: HangUp | None) -> Reply:
        reading = asyncio.ensure_future(_answer(reader))
        try:
            if hang_up is None:
                done, _ = await asyncio.wait([reading], timeout=patience)
                return reading.result() if done else Reply(0, silent=True)
            done, _ = await asyncio.wait([reading], timeout=hang_up.after)
            if done:
                return reading.result()
            assert self._writer is not None
            if hang_up.blind:
                self._writer.transport.abort()
                return Reply(0, hung_up=True)
            self._writer.write_eof()
            done, _ = await asyncio.wait([reading], timeout=patience)
            if not done:
                return Reply(0, hung_up=True, silent=True)
            try:
                reply = reading.result()
            except (OSError, EOFError):
                reply = Reply(0)
            reply.hung_up = True
            return reply
        finally:
            if not reading.done():
                reading.cancel()
            elif not reading.cancelled():
                reading.exception()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None


async def _answer(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in head[1:]:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(head[0].split()[1]), headers, body)

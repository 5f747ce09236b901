"""A reader of server-sent events, for the tests."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class Event(NamedTuple):
    name: str
    data: Any
    id: str | None


class Events:
    """An open stream. ``status``, ``headers``: of the answer; ``last_id``: what a browser would send when it comes back."""

    def __init__(
        self,
        port: int,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        version: str = "1.1",
        receive_buffer: int = 0,
        connection: Any = None,
        host: str = "localhost",
    ) -> None:
        self.socket = connection or socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if connection is None:
            self.socket.settimeout(10)
            self.socket.connect(("127.0.0.1", port))
        mark = "?" if query else ""
        head = f"GET /api/events{mark}{query} HTTP/{version}\r\nHost: {host}:{port}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        self.socket.sendall(head.encode() + b"\r\n")
        self._raw, self._is_closed = b"", False
        while b"\r\n\r\n" not in self._raw:
            assert self._receive(10), self._raw
        start, _, self._raw = self._raw.partition(b"\r\n\r\n")
        lines = start.decode().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        self._is_chunked = self.headers.get("transfer-encoding") == "chunked"
        self._text = b""
        self.is_over = False
        self.last_id: str | None = None
        self.seen: list[Event] = []

    def _receive(self, seconds: float) -> bool:
        """Read what has come; False at the end of the connection, or when nothing comes in this time."""
        self.socket.settimeout(max(0.01, seconds))
        try:
            data = self.socket.recv(1 << 20)
        except TimeoutError:
            return False
        except ConnectionResetError:
            data = b""
        self._is_closed = not data
        self._raw += data
        return bool(data)

    def _take(self) -> None:
        if not self._is_chunked:
            self._text, self._raw = self._text + self._raw, b""
            return
        while b"\r\n" in self._raw:
            size, _, rest = self._raw.partition(b"\r\n")
            length = int(size, 16)
            if len(rest) < length + 2:
                return
            assert rest[length : length + 2] == b"\r\n"
            self._text, self._raw = self._text + rest[:length], rest[length + 2 :]
            self.is_over = self.is_over or not length

    def _parsed(self) -> Iterator[Event]:
        self._take()
        while b"\n\n" in self._text:
            block, _, self._text = self._text.partition(b"\n\n")
            fields = dict[str, str]()
            for line in block.decode().split("\n"):
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            self.last_id = fields.get("id", self.last_id)
            if "data" in fields:
                yield Event(fields["event"], json.loads(fields["data"]), self.last_id)

    def until(self, true: Callable[[Event], Any], seconds: float = 10.0) -> Event:
        """The next event of which this is true; those before it are skipped."""
        end = time.monotonic() + seconds
        while True:
            for event in self._parsed():
                self.seen.append(event)
                if true(event):
                    return event
            left = end - time.monotonic()
            assert left > 0 and self._receive(left), f"it has not come: {self.seen[-5:]}"

    def next(self, name: str, seconds: float = 10.0) -> Any:
        """The data of the next event of this name."""
        return self.until(lambda event: event.name == name, seconds).data

    def row(self, name: str, seconds: float = 10.0, **fields: Any) -> dict[str, Any]:
        """The row of this queue, once it has these fields."""

        def found(event: Event) -> Any:
            if event.name != "queues":
                return None
            rows = [row for row in event.data["queues"] if row["name"] == name]
            return next((row for row in rows if fields.items() <= row.items()), None)

        row: dict[str, Any] = found(self.until(found, seconds))
        return row

    def ended(self, seconds: float = 10.0) -> bool:
        """Whether the connection has ended, in this time; what still came is in ``seen``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self._receive(0.2) and self._is_closed:
                self.seen += self._parsed()
                return True
        return False

    def close(self) -> None:
        self.socket.close()


@contextmanager
def streaming(port: int, query: str = "", **headers: str) -> Iterator[Events]:
    """A stream that has said hello."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    one = Events(port, query, named)
    try:
        assert one.status == 200, one.headers
        one.next("hello")
        yield one
    finally:
        one.close()

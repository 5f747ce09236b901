"""A small load generator on plain sockets: each connection runs a Python generator that yields requests.

Its own CPU is not counted; it is kept low so that the machine has some left for what is measured.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

# Yields a request, is sent the whole answer to it.
Talk = Generator[bytes, bytes, None]
# How many bytes the first answer in the buffer has; 0 while it is not whole.
Framing = Callable[[bytes], int]


def http(data: bytes) -> int:
    """Frame an answer of the daemon, which always has a Content-Length."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 0
    at = data.find(b"ontent-Length: ", 0, end)
    if at < 0:
        at = data.find(b"ontent-length: ", 0, end)
    length = int(data[at + 15 : data.find(b"\r", at)]) if at >= 0 else 0
    whole = end + 4 + length
    return whole if len(data) >= whole else 0


def beanstalk(data: bytes) -> int:
    """Frame a line; after RESERVED, a task of the length that the line gives."""
    end = data.find(b"\r\n")
    if end < 0:
        return 0
    whole = end + 2
    if data[:9] == b"RESERVED ":
        whole += int(data[9:end].split()[1]) + 2
    return whole if len(data) >= whole else 0


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """A complete request; PUT and POST have a Content-Length."""
    length = f"Content-Length: {len(body)}\r\n" if body or method != "GET" else ""
    more = "".join(f"{header}\r\n" for header in headers)
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}{more}\r\n".encode() + body


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def drive(
    port: int,
    talks: Sequence[Talk],
    *,
    framing: Framing = http,
    seconds: float = 3600,
    latencies: list[float] | None = None,
) -> int:
    """Run every talk on a connection of its own, until all end or ``seconds`` have passed (the requests under way
    are still answered). Returns the number of answers; their latencies, in seconds, are added to ``latencies``."""
    poll = select.epoll()
    state: dict[int, list[Any]] = {}  # socket, talk, what has come of an answer, when it was asked for
    answers = 0
    clock = time.perf_counter
    end = clock() + seconds
    try:
        for talk in talks:
            connection = connect(port)
            connection.setblocking(False)
            state[connection.fileno()] = [connection, talk, b"", clock()]
            poll.register(connection.fileno(), select.EPOLLIN)
        for fd in list(state):
            connection, talk, _, _ = state[fd]
            state[fd][3] = clock()
            _send(connection, next(talk))
        while state:
            for fd, _ in poll.poll(60):
                entry = state[fd]
                connection, talk, buffer, began = entry
                data = connection.recv(1 << 18)
                if not data:
                    raise ConnectionError("the server closed a connection under load")
                if buffer:
                    data = buffer + data
                if framing(data) != len(data):
                    entry[2] = data
                    continue
                entry[2] = b""
                answers += 1
                now = clock()
                if latencies is not None:
                    latencies.append(now - began)
                try:
                    asked = talk.send(data) if now < end else None
                except StopIteration:
                    asked = None
                if asked is None:
                    poll.unregister(fd)
                    connection.close()
                    del state[fd]
                    continue
                entry[3] = clock() if latencies is not None else 0.0
                _send(connection, asked)
    finally:
        for entry in state.values():
            entry[0].close()
        poll.close()
    return answers


def _send(connection: socket.socket, data: bytes) -> None:
    try:
        sent = connection.send(data)
    except BlockingIOError:
        sent = 0
    if sent < len(data):
        # Rare: a request larger than the socket's buffer. The server reads all the while.
        connection.setblocking(True)
        connection.sendall(data[sent:])
        connection.setblocking(False)


class Line:
    """One connection, one request at a time, blocking."""

    def __init__(self, port: int) -> None:
        self.socket = connect(port)
        self.socket.settimeout(120)

    def send(self, method: str, path: str, body: bytes = b"", *headers: str) -> None:
        self.socket.sendall(request(method, path, body, *headers))

    def receive(self) -> bytes:
        """The next answer, head and body."""
        data = b""
        while not http(data):
            got = self.socket.recv(1 << 20)
            if not got:
                raise ConnectionError("the server closed the connection")
            data += got
        return data

    def ask(self, method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
        """The body of the answer; RuntimeError when its status is not 200."""
        self.send(method, path, body, *headers)
        data = self.receive()
        if data[9:12] != b"200":
            raise RuntimeError(f"{method} {path}: {data[:2000].decode('utf-8', 'replace')}")
        return data.partition(b"\r\n\r\n")[2]

    def close(self) -> None:
        self.socket.close()

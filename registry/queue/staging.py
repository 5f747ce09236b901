"""A batch that is too large for one call: its payloads are stored in parts, then one small call turns them into tasks.

Redis does nothing else while it runs a call. A call of 16 MiB made every other client wait for a third of a second, mostly
for the disk. Between the parts, other clients are served.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, inlineCallbacks

from registry.errors import RegistryError, Unavailable, not_applied
from registry.redis.faults import error_from_reply
from registry.redis.store import Entry, Store

# Bytes of one part.
PART = 1 << 20

Payload = bytes | memoryview


class Queues(Protocol):
    """The part of `Queues` that this module uses."""

    store: Store

    def ask(self, verb: str, entry: Entry) -> Deferred[Any]: ...


def is_large(payloads: Sequence[Payload]) -> bool:
    """Whether a batch of these payloads must be stored in parts."""
    return sum(map(len, payloads)) > PART


@inlineCallbacks
def stage(queues: Queues, name: bytes, tails: Sequence[bytes], payloads: Sequence[Payload]) -> Any:
    """Store the payloads of a batch. Fires with the head of the tasks' ids. If it fails, nothing stays stored."""
    head = b""
    for part in _parts(payloads):
        try:
            reply = yield queues.ask("stage", queues.store.stage(name, head, tails[part], payloads[part]))
            if reply[0]:
                raise error_from_reply(reply)
        except RegistryError as error:
            if head:
                # If this call fails too, the sweeper deletes the rest.
                left = queues.ask("unstage", queues.store.unstage(name, head, tails[: part.stop]))
                left.addErrback(lambda _: None)
            raise not_applied(error) if isinstance(error, Unavailable) else error from None
        head = reply[1]
    return head


def _parts(payloads: Sequence[Payload]) -> Iterator[slice]:
    begin = size = 0
    for at, payload in enumerate(payloads):
        if at > begin and size + len(payload) > PART:
            yield slice(begin, at)
            begin, size = at, 0
        size += len(payload)
    yield slice(begin, len(payloads))

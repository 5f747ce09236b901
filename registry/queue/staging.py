"""A batch that is too large for one call: its payloads are stored in parts, and one small call makes tasks of them.

Redis does nothing else while it carries out a call. One of 16 MiB kept every other client waiting for a third of a second,
most of it for the disk; between the parts the others have their turn.
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
    """What is asked here of the queues."""

    store: Store

    def ask(self, verb: str, entry: Entry) -> Deferred[Any]: ...


def is_large(payloads: Sequence[Payload]) -> bool:
    """Whether a batch of these is stored in parts."""
    return sum(map(len, payloads)) > PART


@inlineCallbacks
def stage(queues: Queues, name: bytes, tails: Sequence[bytes], payloads: Sequence[Payload]) -> Any:
    """Store the payloads of a batch; fires with the head of the tasks' ids. When it fails, nothing is left of them."""
    head = b""
    for part in _parts(payloads):
        try:
            reply = yield queues.ask("stage", queues.store.stage(name, head, tails[part], payloads[part]))
            if reply[0]:
                raise error_from_reply(reply)
        except RegistryError as error:
            if head:
                # What cannot be forgotten now, the sweeper forgets.
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

"""Notices from other daemons: a subscription that renews itself, on its own supervised connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from registry.redis.link import Link, first_error
from registry.redis.protocol import LinkProtocol
from registry.redis.topology import Address


class Subscriber:
    """Subscribes to ``channels`` on every connect and then calls ``on_subscribed()``.

    Redis does not keep notices for a subscriber that is away: ``on_subscribed`` must look at everything again.
    ``on_message(channel, payload)`` is called once per notice, both as bytes.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        address: Address,
        channels: Sequence[bytes],
        on_message: Callable[[bytes, bytes], None],
        on_subscribed: Callable[[], None],
        *,
        name: str = "notices",
        command_seconds: float = 3.0,
    ) -> None:
        self._channels = tuple(channels)
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self.link = Link(
            reactor,
            address,
            name=name,
            on_ready=self._subscribe,
            command_seconds=command_seconds,
            protocol=lambda link: _NoticeProtocol(link, self._noticed),
        )

    @property
    def ready(self) -> bool:
        """Whether notices can arrive."""
        return self.link.ready

    def start(self) -> None:
        """Connect, and reconnect until ``stop``."""
        self.link.start()

    def stop(self) -> Deferred[None]:
        """Close the connection."""
        return self.link.stop()

    def _subscribe(self, link: Link) -> Deferred[Any]:
        # One command per channel, so that each has one reply, like all other commands.
        answers = [link.command(b"SUBSCRIBE", channel) for channel in self._channels]
        return gatherResults(answers, consumeErrors=True).addCallbacks(self._subscribed, first_error)

    def _subscribed(self, answers: Any) -> None:
        try:
            self._on_subscribed()
        except Exception:
            self._log.failure("{name}: on_subscribed failed", name=self.link.name)

    def _noticed(self, channel: bytes, payload: bytes) -> None:
        try:
            self._on_message(channel, payload)
        except Exception:  # this is no fault of the connection
            self._log.failure("{name}: a notice could not be processed", name=self.link.name)


class _NoticeProtocol(LinkProtocol):
    """Once subscribed, Redis mixes notices among the replies: ``[message, channel, payload]``."""

    def __init__(self, link: Link, noticed: Callable[[bytes, bytes], None]) -> None:
        super().__init__(link)
        self._noticed = noticed

    def unsolicited(self, reply: Any) -> bool:
        if reply.__class__ is list and len(reply) == 3 and reply[0] == b"message":
            self._noticed(reply[1], reply[2])
            return True
        return False

"""What can go wrong, in the words of the domain. HTTP gives these their statuses in ``http/codec.py``."""

from __future__ import annotations

from copy import copy


class RegistryError(Exception):
    """Base of all errors a caller can act on; ``str()`` is one sentence for a person.

    ``code`` is the snake_case word that programs compare, ``retry_after`` whole seconds or 0 for "no use".
    """

    code = "error"
    retry_after = 0


class BadName(RegistryError):
    """A queue name that is empty, too long, not UTF-8, or holds what a name must not hold."""

    code = "bad_name"


class BadOption(RegistryError):
    """An option that is unknown or malformed; the sentence names it."""

    code = "bad_option"


class BadBody(RegistryError):
    """A body that is not what the request needs; for JSON the sentence gives the position."""

    code = "bad_json"


class TooLarge(RegistryError):
    """A task of a batch that is over ``MAX_TASK_BYTES``; a body that is too large is refused before it is read."""

    code = "body_too_large"


class NotFound(RegistryError):
    """No such task, queue or page."""

    code = "not_found"


class Conflict(RegistryError):
    """The request does not fit the state; ``code`` is lease_lost, key_taken, wrong_type or lease_required."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Replaced(RegistryError):
    """A newer poll of the same worker has ended this one; its answer is that there is nothing."""

    code = "replaced"
    retry_after = 1


class KeyReused(RegistryError):
    """An Idempotency-Key that came before with another body or other options."""

    code = "idempotency_key_reused"


class QueueFull(RegistryError):
    """The queue holds ``max_length`` tasks already."""

    code = "queue_full"
    retry_after = 5


class Unavailable(RegistryError):
    """The request could not be carried out now.

    ``outcome`` is ``not_applied`` (it never reached Redis, or was refused there) or ``unknown`` (it was sent and
    no answer came).
    """

    outcome = "not_applied"


def partly(error: Unavailable) -> Unavailable:
    """The error of a request of which something was carried out already, or may have been."""
    # Many requests may have been told the same error: theirs stays as it is.
    known = copy(error)
    known.outcome = "unknown"
    return known


def not_applied(error: Unavailable) -> Unavailable:
    """The error of a request that changes nothing unless a later step is carried out, which it will not be."""
    known = copy(error)
    known.outcome = "not_applied"
    return known


class RedisUnavailable(Unavailable):
    """No usable Redis, or one that did not answer in time. ``why`` may be what a log line says after a colon."""

    code = "redis_unavailable"

    def __init__(self, why: str, outcome: str = "not_applied", retry_after: int = 1) -> None:
        super().__init__(sentence(why))
        self.outcome = outcome
        self.retry_after = retry_after


class EmbeddedUnavailable(RegistryError):
    """The private Redis cannot be started; the sentence says why and what to do."""

    code = "redis_unavailable"


class RedisFull(Unavailable):
    """Redis is at ``maxmemory`` and refused to store more."""

    code = "redis_full"
    retry_after = 10


class Overloaded(Unavailable):
    """More is waiting to be sent to Redis than the daemon is ready to hold."""

    code = "overloaded"
    retry_after = 1


class ShuttingDown(Unavailable):
    """The daemon is stopping and takes no new work."""

    code = "shutting_down"
    retry_after = 2


def stopping() -> ShuttingDown:
    """What a new request is told while the daemon stops."""
    return ShuttingDown("The registry is stopping; try again in a moment.")


def sentence(text: str) -> str:
    """A text with a capital and one full stop: what Redis and the kernel say has seldom both."""
    return f"{text[:1].upper()}{text[1:].rstrip('. ')}."

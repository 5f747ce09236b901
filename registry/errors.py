"""The errors of the domain, independent of HTTP. ``http/codec.py`` maps them to statuses."""

from __future__ import annotations

from copy import copy


class RegistryError(Exception):
    """Base of all errors that a caller can act on; ``str()`` is one sentence for a person.

    ``code``: a snake_case word for programs. ``retry_after``: whole seconds; 0 when retrying does not help.
    """

    code = "error"
    retry_after = 0


class BadName(RegistryError):
    """A queue name that is empty, too long, not UTF-8, or contains a character that is not allowed."""

    code = "bad_name"


class BadOption(RegistryError):
    """An option that is unknown or malformed; the sentence names it."""

    code = "bad_option"


class BadBody(RegistryError):
    """A body that is invalid for the request; for bad JSON the sentence gives the position."""

    code = "bad_json"


class TooLarge(RegistryError):
    """A task in a batch is larger than ``MAX_TASK_BYTES``. (A whole body that is too large is refused before it is read.)"""

    code = "body_too_large"


class Forbidden(RegistryError):
    """The caller lacks a right that is needed because of what the request says, rather than because of its path."""

    code = "forbidden"


class NotFound(RegistryError):
    """No such task, queue or page."""

    code = "not_found"


class Conflict(RegistryError):
    """The request conflicts with the current state; ``code`` is lease_lost, key_taken, wrong_type or lease_required."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Replaced(RegistryError):
    """A newer poll of the same worker has ended this one, which is answered as if no task had arrived."""

    code = "replaced"
    retry_after = 1


class KeyReused(RegistryError):
    """An Idempotency-Key that was used before with another body or other options."""

    code = "idempotency_key_reused"


class QueueFull(RegistryError):
    """The queue already holds ``max_length`` tasks."""

    code = "queue_full"
    retry_after = 5


class Unavailable(RegistryError):
    """The request could not be carried out now.

    ``outcome`` is ``not_applied`` (it never reached Redis, or was refused there) or ``unknown`` (it was sent and
    no answer came).
    """

    outcome = "not_applied"


def partly(error: Unavailable) -> Unavailable:
    """A copy of the error, with outcome ``unknown``, for a request that was, or may have been, carried out in part."""
    # A copy, because many requests may share the same error object.
    changed = copy(error)
    changed.outcome = "unknown"
    return changed


def not_applied(error: Unavailable) -> Unavailable:
    """A copy of the error, with outcome ``not_applied``, for a request whose deciding last step will not be carried out."""
    changed = copy(error)
    changed.outcome = "not_applied"
    return changed


class RedisUnavailable(Unavailable):
    """Redis cannot be used, or did not answer in time. ``why`` may lack a capital and a full stop."""

    code = "redis_unavailable"

    def __init__(self, why: str, outcome: str = "not_applied", retry_after: int = 1) -> None:
        super().__init__(sentence(why))
        self.outcome = outcome
        self.retry_after = retry_after


class EmbeddedUnavailable(RegistryError):
    """The embedded Redis cannot be started; the sentence says why and what to do."""

    code = "redis_unavailable"


class RedisFull(Unavailable):
    """Redis has reached ``maxmemory`` and refuses to store more."""

    code = "redis_full"
    retry_after = 10


class Overloaded(Unavailable):
    """The daemon is at one of its limits: of work that waits for Redis, of unread answers, or of parked polls."""

    code = "overloaded"
    retry_after = 1


class ShuttingDown(Unavailable):
    """The daemon is stopping and accepts no new work."""

    code = "shutting_down"
    retry_after = 2


def stopping() -> ShuttingDown:
    """The error for new requests while the daemon stops."""
    return ShuttingDown("The registry is stopping; try again in a moment.")


def sentence(text: str) -> str:
    """The text with a capital and one full stop, because messages of Redis and the kernel seldom have both."""
    return f"{text[:1].upper()}{text[1:].rstrip('. ')}."

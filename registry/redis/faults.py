"""What an error of Redis, or the code in a script's reply, means for a request, and the text for its client.

Clients learn whose fault it is, and no details of the server. The texts of the kernel, the TLS library and Redis itself are for
operators: they are in the log and in ``/readyz``.
"""

from __future__ import annotations

import re
from typing import Any

from txredisapi import ResponseError

from registry.errors import BadOption, Conflict, KeyReused, QueueFull, RedisFull, RedisUnavailable
from registry.model import Code

# The error words by which Redis says that its own state prevents a call.
STATE_ERRORS = re.compile(
    r"\b(MISCONF|READONLY|LOADING|MASTERDOWN|NOREPLICAS|BUSY|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|CROSSSLOT|NOAUTH|NOPERM|UNKILLABLE)\b"
)
_OPERATOR = "; the operator of the registry has to fix this, and its log has the details"
# The first pattern that matches decides. Faults that pass by themselves do not mention the operator.
_FAULTS = tuple(
    (re.compile(pattern, re.IGNORECASE), text)
    for pattern, text in (
        (r"did not answer", "Redis does not answer"),
        (r"LOADING", "Redis is starting and is still loading its data"),
        (r"\bBUSY\b", "Redis is busy running a script of another program"),
        (r"max number of clients", "Redis has reached its limit of clients"),
        (r"READONLY|MASTERDOWN", "this Redis is a replica, which accepts no writes"),
        (
            r"WRONGPASS|NOAUTH|invalid password|invalid username|no password is set|without any password",
            "Redis rejects the password that the registry uses" + _OPERATOR,
        ),
        (
            r"NOPERM|no permissions",
            "the Redis user of the registry lacks a permission that it needs" + _OPERATOR,
        ),
        (r"DENIED", "Redis accepts no connections from the registry's host" + _OPERATOR),
        (r"SSL|TLS|certificate", "the registry cannot set up TLS with Redis" + _OPERATOR),
        (r"DB index|SELECT", "Redis does not have the configured database" + _OPERATOR),
        (
            r"not the Redis protocol|out of turn",
            "the server at the configured address is not Redis" + _OPERATOR,
        ),
        (r"look-up|DNS", "the host name of Redis cannot be resolved" + _OPERATOR),
        (r"No such file|PEM", "the registry cannot read a file that it needs to reach Redis" + _OPERATOR),
        (
            r"keys in this Redis|is not the registry's",
            "the keys in Redis do not belong to this registry" + _OPERATOR,
        ),
        (r"lost|closed|reset", "the connection to Redis was lost"),
        (r"connect", "Redis cannot be reached"),
    )
)


def public_text(text: str) -> str:
    """The text for a client, made from the link's description of what is wrong."""
    for pattern, message in _FAULTS:
        if pattern.search(text):
            return message
    return "the registry cannot use its Redis" + _OPERATOR


# The meanings of the words with which Redis refuses a call.
_WORDS = {
    "MISCONF": "it cannot write to its disk" + _OPERATOR,
    "NOPERM": "the registry's user lacks a permission" + _OPERATOR,
    "NOAUTH": "the registry did not give a password" + _OPERATOR,
    "NOREPLICAS": "too few of its replicas are connected" + _OPERATOR,
    "READONLY": "it is a replica",
    "LOADING": "it is still loading its data",
    "BUSY": "it is busy running a script of another program",
    "MASTERDOWN": "it is a replica that has lost its master",
}


def refusal_text(word: str) -> str:
    """The text for a client when Redis refused a call with this word."""
    means = _WORDS.get(word)
    return (
        f"Redis refused the request: {word}, {means}"
        if means
        else f"Redis refused the request: {word}{_OPERATOR}"
    )


class ScriptError(Exception):
    """A script failed in a way that no state of Redis explains."""


def error_from_redis(text: str) -> Exception:
    """The domain error for an error of Redis; the refused call was not applied."""
    if "OOM command" in text:
        return RedisFull("Redis is full and accepts no more tasks; pops still work.")
    if text.startswith("WRONGTYPE"):
        return Conflict(
            "wrong_type", "A key in Redis holds another type of value than the registry stores there."
        )
    found = STATE_ERRORS.search(text)
    if found is None:
        # Not Redis's state, but a fault in our code or in the keys.
        return ScriptError(text)
    word = found[0]
    return RedisUnavailable(refusal_text(word), retry_after=5 if word == "MISCONF" else 1)


def raise_domain_error(failure: Any) -> Any:
    """As an errback: raise the domain error for Redis's refusal of a whole call; pass other failures on."""
    error = failure.value
    if isinstance(error, ResponseError):
        raise error_from_redis(str(error)) from None
    return failure


def error_from_reply(reply: list[Any]) -> Exception:
    """The error that a script's code stands for."""
    code = reply[0]
    if code == Code.LEASE_REQUIRED:
        return Conflict(
            "lease_required", "This queue limits how many tasks run at once: pop with lease=SECONDS."
        )
    if code == Code.KEY_REUSED:
        return KeyReused("This Idempotency-Key was already used with another body or other options.")
    if code == Code.WRONG_TYPE:
        return Conflict("wrong_type", "The Redis key with this queue's name does not hold a list.")
    if code == Code.QUEUE_FULL:
        return QueueFull(f"The queue is full: its max_length is {reply[1]} tasks.")
    if code == Code.EXPIRES_FIRST:
        ttl, delay = (f"{ms / 1000:.15g} s" for ms in reply[1:3])
        return BadOption(
            f"The option 'ttl' of the push or the queue is {ttl}: the task would expire before it is due, in {delay}."
        )
    if code == Code.PARTS_GONE:
        return RedisUnavailable("Redis lost parts of this batch before the last one arrived.")
    if code in (Code.REDIS_FULL, Code.REFUSED):
        return error_from_redis(reply[1].decode("utf-8", "replace"))
    return BadOption(f"The request was refused ({code}).")

"""What an error of Redis, or the code in a script's reply, means for a request, and how clients are told.

Clients learn whose fault it is, and no details of the server. The texts of the kernel, the TLS library and Redis itself are for
whoever runs the registry: they are in the log and in ``/readyz``.
"""

from __future__ import annotations

import re
from typing import Any

from txredisapi import ResponseError

from registry.errors import BadOption, Conflict, KeyReused, QueueFull, RedisFull, RedisUnavailable
from registry.model import Code

# The error words by which Redis says that its own state prevents a call.
IN_THE_WAY = re.compile(
    r"\b(MISCONF|READONLY|LOADING|MASTERDOWN|NOREPLICAS|BUSY|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|CROSSSLOT|NOAUTH|NOPERM|UNKILLABLE)\b"
)
_RUNS = "; that is for whoever runs the registry to put right, and its log says more"
# The first pattern that matches decides. Faults that pass by themselves do not mention whoever runs the registry.
_FAULTS = tuple(
    (re.compile(pattern, re.IGNORECASE), text)
    for pattern, text in (
        (r"did not answer", "Redis does not answer"),
        (r"LOADING", "Redis is starting and still loads its data"),
        (r"\bBUSY\b", "Redis is kept busy by a script of another program"),
        (r"max number of clients", "Redis has as many clients as it takes"),
        (r"READONLY|MASTERDOWN", "the Redis that was found is a replica, which takes no writes"),
        (
            r"WRONGPASS|NOAUTH|invalid password|invalid username|no password is set|without any password",
            "Redis refuses the password that the registry has for it" + _RUNS,
        ),
        (r"NOPERM|no permissions", "Redis denies the registry's user a right that it needs" + _RUNS),
        (r"DENIED", "Redis takes no connections from where the registry runs" + _RUNS),
        (r"SSL|TLS|certificate", "the registry and Redis do not agree on TLS" + _RUNS),
        (r"DB index|SELECT", "Redis does not have the database that the registry is to use" + _RUNS),
        (r"not the Redis protocol|out of turn", "what answers in the place of Redis is no Redis" + _RUNS),
        (r"look-up|DNS", "the host name of Redis cannot be looked up" + _RUNS),
        (r"No such file|PEM", "the registry cannot read a file that it needs to reach Redis" + _RUNS),
        (
            r"keys in this Redis|is not the registry's",
            "the keys in Redis are not those of this registry" + _RUNS,
        ),
        (r"lost|closed|reset", "the connection to Redis was lost"),
        (r"connect", "Redis cannot be reached"),
    )
)


def public(text: str) -> str:
    """The text for a client, made from the link's description of what is wrong."""
    for pattern, message in _FAULTS:
        if pattern.search(text):
            return message
    return "the registry cannot use its Redis" + _RUNS


# The meanings of the words with which Redis refuses a call.
_WORDS = {
    "MISCONF": "it cannot write to its disk" + _RUNS,
    "NOPERM": "the registry's user lacks a right" + _RUNS,
    "NOAUTH": "the registry did not give a password" + _RUNS,
    "NOREPLICAS": "too few of its replicas are there" + _RUNS,
    "READONLY": "it is a replica",
    "LOADING": "it still loads its data",
    "BUSY": "a script of another program keeps it busy",
    "MASTERDOWN": "it is a replica that has lost its master",
}


def refused(word: str) -> str:
    """The text for a client when Redis refused a call with this word."""
    means = _WORDS.get(word)
    return (
        f"Redis refused the request: {word}, {means}"
        if means
        else f"Redis refused the request: {word}{_RUNS}"
    )


class ScriptError(Exception):
    """A script failed in a way that no state of Redis explains."""


def error_from_redis(text: str) -> Exception:
    """The domain error for an error of Redis; the refused call was not applied."""
    if "OOM command" in text:
        return RedisFull("Redis is full and takes no more tasks; pops still work.")
    if text.startswith("WRONGTYPE"):
        return Conflict("wrong_type", "A key in Redis holds something else than the registry keeps there.")
    found = IN_THE_WAY.search(text)
    if found is None:
        # Not Redis's state, but a fault in our code or in the keys.
        return ScriptError(text)
    word = found[0]
    return RedisUnavailable(refused(word), retry_after=5 if word == "MISCONF" else 1)


def as_domain(failure: Any) -> Any:
    """As an errback: raise the domain error for Redis's refusal of a whole call; pass other failures on."""
    error = failure.value
    if isinstance(error, ResponseError):
        raise error_from_redis(str(error)) from None
    return failure


def error_from_reply(reply: list[Any]) -> Exception:
    """The error that a script's code stands for."""
    code = reply[0]
    if code == Code.LEASE_REQUIRED:
        return Conflict("lease_required", "This queue limits how many run at once: pop with lease=.")
    if code == Code.KEY_REUSED:
        return KeyReused("This Idempotency-Key came before with another body or other options.")
    if code == Code.WRONG_TYPE:
        return Conflict("wrong_type", "The key of this queue's name holds something else than a list.")
    if code == Code.QUEUE_FULL:
        return QueueFull(f"The queue is full: it may hold {reply[1]} tasks.")
    if code == Code.EXPIRES_FIRST:
        ttl, delay = (f"{ms / 1000:.15g} s" for ms in reply[1:3])
        return BadOption(
            f"The option 'ttl', the push's own or the queue's, is {ttl}: it is over before the task is due in {delay}."
        )
    if code == Code.PARTS_GONE:
        return RedisUnavailable("Redis no longer had all parts of this batch when the last one had come.")
    if code in (Code.REDIS_FULL, Code.REFUSED):
        return error_from_redis(reply[1].decode("utf-8", "replace"))
    return BadOption(f"The request was refused ({code}).")
